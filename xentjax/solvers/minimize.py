"""The driver of all solvers: one compiled loop with a stopping rule, a named status and a history."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.solvers import status as codes
from xentjax.solvers.objective import Point, as_objective, evaluate, largest_component
from xentjax.solvers.status import Status

#: Steps that neither move the parameters by more than rounding nor better anything, after which a run has stalled.
_PATIENCE = 100


class Solver(Protocol):
    """A frozen dataclass, registered as a pytree, that makes steps; the driver does the rest."""

    def init(self, objective: Any, point: Point) -> Any:
        """The solver's own state before the first step."""
        ...

    def step(self, objective: Any, point: Point, state: Any) -> tuple[Point, Any]:
        """The next point, with value and gradient there, and the next state."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """Value and gradient norm of every step.

    Both have the fixed length ``max_steps + 1``. Entry 0 belongs to the initial parameters; what comes after the last
    step is NaN. A run that diverged has one entry more than steps: what it stopped at.
    """

    value: jax.Array
    gradient_norm: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """Where a minimization ended.

    ``params`` with the objective's ``value`` and the gradient's infinity-norm ``gradient_norm`` there, the number of
    ``steps``, the ``status`` and the ``history``. A pytree: under ``vmap`` every field has a leading axis.
    """

    params: Any
    value: jax.Array
    gradient_norm: jax.Array
    steps: jax.Array
    status: Status
    history: History

    @property
    def message(self) -> str:
        """The status in words, with what to do."""
        return self.status.message


class _State(NamedTuple):
    point: Point
    solver: Any
    step: Any
    code: Any
    norm: Any
    best_value: Any
    best_norm: Any
    idle: Any  # steps since the last progress
    values: Any  # [blocks, block]
    norms: Any


def minimize(
    objective: Any, init: Any, solver: Solver, *, tol: float | jax.Array = 1e-6, max_steps: int = 1000
) -> Solution:
    r"""Minimize an objective until no component of its gradient exceeds ``tol``.

    Args:
      objective: a function ``f(params) -> scalar`` (automatic gradient), an :class:`Objective`, or anything with
        ``value_and_gradient(params)``, as :class:`LogisticObjective`. Arrays in an objective that is a pytree are
        data: other data of the same shape do not compile again.
      init: initial parameters, a pytree of arrays; integers become floats.
      solver: :class:`GradientDescent`, :class:`Optax`, or your own :class:`Solver`.
      tol: bound of the gradient's infinity-norm. It is checked before the first step too.
      max_steps: the most steps, and the length of the history less one.

    Returns:
      A :class:`Solution`. Its status is

      - ``converged``: the gradient norm at ``params`` is at most tol. If the objective can tell the rounding error of
        its gradient (``gradient_error(params)``), that is at most tol too.
      - ``max_steps``: none of the others happened.
      - ``stalled``: for 100 steps no parameter moved by more than 8 units in the last place and neither value nor
        gradient norm was smaller than ever before; or the gradient norm is at most tol, but its rounding error is not.
      - ``diverged``: a step led to a value or gradient that is NaN or infinite; ``params`` are those before it.
      - ``not_finite``: value or gradient are NaN or infinite at ``init`` already.

    It works under ``jit`` and ``vmap``, over data, initial values and step sizes; runs that have ended wait for the
    others unchanged.

    Raises:
      TypeError: the objective is neither a function nor has ``value_and_gradient``.
      ValueError: max_steps is negative, the value is no real scalar, or a gradient's shape is not its parameter's.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1])
      >>> objective = xj.LogisticObjective(x, y, l2=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.GradientDescent())
      >>> str(solution.status), solution.params.weights.round(4), float(solution.gradient_norm) <= 1e-6
      ('converged', Array([0.35529998], dtype=float32), True)
    """
    state, problem = _start(objective, init, solver, tol, max_steps)
    return _solution(_advance(*problem, state, tol, max_steps, limit=max_steps), max_steps)


def iterate(
    objective: Any,
    init: Any,
    solver: Solver,
    *,
    tol: float | jax.Array = 1e-6,
    max_steps: int = 1000,
    chunk: int = 100,
) -> Iterator[Solution]:
    """:func:`minimize` in chunks: yields the solution so far after every ``chunk`` steps, and at the end.

    The same compiled loop runs, so that the last solution is that of ``minimize``, bit by bit; until then the status
    is ``running``. It returns to Python between chunks, for progress bars, interrupts and checkpoints.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> chunks = xj.iterate(lambda p: (p - 1) ** 2, jnp.zeros(()), xj.GradientDescent(0.25), chunk=8)
      >>> [(int(s.steps), str(s.status)) for s in chunks]
      [(8, 'running'), (16, 'running'), (21, 'converged')]
    """
    if chunk < 1:
        raise ValueError(f"iterate: chunk must be at least 1, got {chunk}")
    state, problem = _start(objective, init, solver, tol, max_steps)
    done = 0
    while True:
        done += chunk
        state = _advance(*problem, state, tol, max_steps, limit=min(done, max_steps))
        solution = _solution(state, max_steps)
        yield solution
        if not np.any(np.asarray(state.code) == codes.RUNNING):
            return


def _start(objective: Any, init: Any, solver: Any, tol: Any, max_steps: int) -> tuple[_State, tuple[Any, Any]]:
    if max_steps < 0:
        raise ValueError(f"minimize: max_steps must not be negative, got {max_steps}")
    init = jax.tree.map(_as_float, init)
    problem = _split((as_objective(objective), solver))
    return _begin(*problem, init, tol, max_steps), problem


# -- the compiled parts ------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 4))
def _begin(static: Any, data: Any, init: Any, tol: Any, max_steps: int) -> _State:
    objective, solver = _join(static, data)
    point = evaluate(objective, init)
    norm = largest_component(point.gradient)
    code = jnp.where(norm <= tol, codes.CONVERGED, codes.RUNNING if max_steps else codes.MAX_STEPS)
    code = jnp.where(_finite(point.value, norm), code, codes.NOT_FINITE).astype(jnp.int32)
    blank = _blank_history(max_steps)
    return _State(
        point=point,
        solver=solver.init(objective, point),
        step=jnp.zeros((), jnp.int32),
        code=code,
        norm=norm,
        best_value=point.value,
        best_norm=norm,
        idle=jnp.zeros((), jnp.int32),
        values=blank.astype(point.value.dtype).at[0, 0].set(point.value),
        norms=blank.astype(norm.dtype).at[0, 0].set(norm),
    )


@functools.partial(jax.jit, static_argnums=(0, 4))
def _advance(static: Any, data: Any, state: _State, tol: Any, max_steps: int, limit: Any) -> _State:
    """Steps up to number ``limit``, unless the run ends before.

    The history is kept in blocks: the inner loop writes into one block only and the outer loop puts it back. Under
    vmap a loop copies what it carries in every step, which for the whole history would take most of the time.
    """
    objective, solver = _join(static, data)
    size = state.values.shape[1]

    def running(state: _State) -> Any:
        return (state.code == codes.RUNNING) & (state.step < limit)

    def fill_block(state: _State) -> _State:
        block = (state.step + 1) // size
        values, norms = state.values, state.norms
        inner = state._replace(values=values[block], norms=norms[block])
        inner = jax.lax.while_loop(lambda s: running(s) & ((s.step + 1) // size == block), one_step, inner)
        here = (jnp.arange(values.shape[0]) == block)[:, None]
        return inner._replace(values=jnp.where(here, inner.values, values), norms=jnp.where(here, inner.norms, norms))

    def one_step(state: _State) -> _State:
        point, inside = solver.step(objective, state.point, state.solver)
        norm = largest_component(point.gradient)
        here = jnp.arange(size) == (state.step + 1) % size
        recorded: dict[str, Any] = {
            "values": jnp.where(here, point.value, state.values),
            "norms": jnp.where(here, norm, state.norms),
        }
        better = (point.value < state.best_value) | (norm < state.best_norm)
        idle = jnp.where(better | _moved(state.point.params, point.params), 0, state.idle + 1)
        code = jnp.where(idle >= _PATIENCE, codes.STALLED, state.code)
        code = jnp.where(state.step + 1 >= max_steps, codes.MAX_STEPS, code)
        code = jnp.where(norm <= tol, codes.CONVERGED, code)
        moved = _State(
            point=point,
            solver=inside,
            step=state.step + 1,
            code=code.astype(jnp.int32),
            norm=norm,
            best_value=jnp.minimum(state.best_value, point.value),
            best_norm=jnp.minimum(state.best_norm, norm),
            idle=idle,
            **recorded,
        )
        kept = state._replace(code=jnp.full_like(state.code, codes.DIVERGED), **recorded)
        return _where(_finite(point.value, norm), moved, kept)

    state = jax.lax.while_loop(running, fill_block, state)
    return state._replace(code=_honest(objective, state, tol))


def _honest(objective: Any, state: _State, tol: Any) -> Any:
    """The code; a gradient norm below tol is no convergence where its rounding error is above tol."""
    if not hasattr(objective, "gradient_error"):
        return state.code
    error = jax.lax.cond(
        state.code == codes.CONVERGED,
        lambda: largest_component(objective.gradient_error(state.point.params)).astype(state.norm.dtype),
        lambda: jnp.zeros_like(state.norm),
    )
    return jnp.where(error > tol, codes.STALLED, state.code).astype(jnp.int32)


def _moved(before: Any, after: Any) -> Any:
    """Whether a parameter moved by more than 8 units in its last place."""

    def moved(a: Any, b: Any) -> Any:
        return jnp.any(jnp.abs(b - a) > 8 * jnp.finfo(a.dtype).eps * jnp.abs(b))

    return jax.tree.reduce(lambda a, b: a | b, jax.tree.map(moved, before, after), False)


def _finite(value: Any, norm: Any) -> Any:
    return jnp.isfinite(value) & jnp.isfinite(norm)


def _where(condition: Any, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _blank_history(max_steps: int) -> Any:
    length = max_steps + 1
    size = math.isqrt(length - 1) + 1
    return jnp.full((-(-length // size), size), jnp.nan)


def _solution(state: _State, max_steps: int) -> Solution:
    value, norm = (h.reshape(*h.shape[:-2], -1)[..., : max_steps + 1] for h in (state.values, state.norms))
    return Solution(
        state.point.params, state.point.value, state.norm, state.step, Status(state.code), History(value, norm)
    )


def _as_float(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"minimize: init must be real, got dtype {array.dtype}")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))


# -- what is data and what is code ---------------------------------------------------------------------------------


def _split(tree: Any) -> tuple[Any, list[Any]]:
    """The numbers in a tree, which a compiled function takes as arguments, and all else, which it is compiled for."""
    leaves, structure = jax.tree.flatten(tree)
    is_data = [isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float)) for leaf in leaves]
    code = tuple(None if data else leaf for leaf, data in zip(leaves, is_data, strict=True))
    return (structure, code), [leaf for leaf, data in zip(leaves, is_data, strict=True) if data]


def _join(static: Any, data: list[Any]) -> Any:
    structure, code = static
    numbers = iter(data)
    return jax.tree.unflatten(structure, [next(numbers) if leaf is None else leaf for leaf in code])
