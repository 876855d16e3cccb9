"""The driver of all solvers: one compiled loop with a stopping rule, a named status and a history."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xentjax.solvers import checks
from xentjax.solvers import status as codes
from xentjax.solvers.compiled import join, separate, types_in
from xentjax.solvers.kept import kept
from xentjax.solvers.objective import Point, as_objective, evaluate, largest_component, residual, select
from xentjax.solvers.penalty import require_ability
from xentjax.solvers.status import Status

#: Steps that neither move the parameters by more than rounding nor better anything, after which a run has stalled.
_PATIENCE = 100


class Solver(Protocol):
    """A frozen dataclass, registered as a pytree, that makes steps; the driver does the rest.

    Its numbers are data: under the compiled loop they are traced, and one can ``vmap`` over them. What decides on the
    program itself, such as a choice between two rules or the length of a memory, is a string, a bool, or a field with
    ``metadata={"static": True}``, which alone stays itself under the user's own ``jit`` too.
    """

    def init(self, objective: Any, point: Point) -> Any:
        """The solver's own state before the first step."""
        ...

    def step(self, objective: Any, point: Point, state: Any) -> tuple[Point, Any]:
        """The next point, with value and gradient there, and the next state, of the shapes and dtypes of the last.

        A solver that evaluates more than value and gradient may have ``begin(objective, params) -> (point, state)`` in
        the place of ``init``. One that knows when rounding hides what it could gain says so by
        ``exhausted(state) -> bool``: the run then has stalled. One for objectives with an L1 penalty has
        ``handles_l1 = True``: the point's value is with the penalty, its gradient that of the smooth part.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """Value and gradient norm of every step.

    In a :func:`minimize` both have the fixed length ``max_steps + 1``, and entry 0 belongs to the initial parameters.
    What comes after the last step is NaN. A run that diverged has one entry more than steps: what it stopped at.
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


class State(NamedTuple):
    """A run between two steps: all that :func:`advance` needs to go on."""

    point: Point
    solver: Any
    step: Any
    code: Any
    norm: Any
    best_value: Any
    best_norm: Any
    idle: Any  # steps since the last progress


def minimize(
    objective: Any,
    init: Any,
    solver: Solver,
    *,
    tol: float | jax.Array = 1e-6,
    max_steps: int = 1000,
    mesh: Mesh | None = None,
) -> Solution:
    r"""Minimize an objective until no component of its gradient exceeds ``tol``.

    An objective with an L1 penalty (``l1_factors(params)``) has a smallest subgradient in the gradient's place: the
    distance of each component from what the kink of the penalty allows.

    Args:
      objective: a function ``f(params) -> scalar`` (automatic gradient), an :class:`Objective`, or anything with
        ``value_and_gradient(params)``, as :class:`LogisticObjective`. Arrays in an objective that is a pytree are
        data: other data of the same shape do not compile again.
      init: initial parameters, a pytree of arrays; integers become floats.
      solver: :class:`Newton`, :class:`NewtonCG`, :class:`LBFGS`, :class:`GradientDescent`, :class:`Optax`, or your own
        :class:`Solver`; for an objective with an L1 penalty :class:`ProximalNewton` or :class:`ProximalGradient`.
      tol: bound of the gradient's infinity-norm, 0 or more. It is checked before the first step too.
      max_steps: the most steps, and the length of the history less one.
      mesh: devices to run on. The objective has to have ``on(mesh)``, which gives it with its data split over them;
        parameters are on every device. (One whose arrays are placed on a mesh already needs none.)

    Returns:
      A :class:`Solution`. Its status is

      - ``converged``: the gradient norm at ``params`` is at most tol. If the objective can tell the rounding error of
        its gradient (``gradient_error(params)``), that is at most tol too.
      - ``max_steps``: none of the others happened.
      - ``stalled``: for 100 steps no parameter moved by more than 8 units in the last place and neither value nor
        gradient norm was smaller than ever before; or the solver is exhausted; or the gradient norm is at most tol, but
        its rounding error is not.
      - ``diverged``: a step led to a value or gradient that is NaN or infinite; ``params`` are those before it.
      - ``not_finite``: value or gradient are NaN or infinite at ``init`` already.

    It works under ``jit`` and ``vmap``, over data, initial values and step sizes; runs that have ended wait for the
    others unchanged.

    Raises:
      TypeError: the objective is neither a function nor has ``value_and_gradient``, or for a mesh no ``on``; the solver
        has no ``init`` and ``step``, or a step returns another shape or dtype than it was given; max_steps is no whole
        number, tol no number.
      ValueError: the objective has an L1 penalty, and the solver cannot minimize such; max_steps is negative or above
        2**24, tol is negative or NaN, the value is no real scalar, or a gradient's shape is not its parameter's.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1])
      >>> objective = xj.LogisticObjective(x, y, l2=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.GradientDescent())
      >>> str(solution.status), solution.params.weights.round(4), float(solution.gradient_norm) <= 1e-6
      ('converged', Array([0.35529998], dtype=float32), True)
    """
    objective, init = _placed(objective, init, mesh)
    init, max_steps, problem = _checked(objective, init, solver, tol, max_steps)
    return _whole(*problem, init, tol, max_steps)


def iterate(
    objective: Any,
    init: Any,
    solver: Solver,
    *,
    tol: float | jax.Array = 1e-6,
    max_steps: int = 1000,
    chunk: int = 100,
    mesh: Mesh | None = None,
) -> Iterator[Solution]:
    """:func:`minimize` in chunks: yields the solution at ``init``, and then after every ``chunk`` steps.

    The last solution is that of ``minimize``, bit by bit; until then the status is ``running``. Only the history is
    that of the chunk: an entry for each of its steps, and NaN up to the length ``chunk``. It returns to Python between
    chunks, for progress bars, interrupts and checkpoints.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> chunks = xj.iterate(lambda p: (p - 1) ** 2, jnp.zeros(()), xj.GradientDescent(0.25), chunk=8)
      >>> [(int(s.steps), str(s.status), s.history.value.shape) for s in chunks]
      [(0, 'running', (1,)), (8, 'running', (8,)), (16, 'running', (8,)), (21, 'converged', (8,))]
    """
    objective, init = _placed(objective, init, mesh)
    found = iterate_states(objective, init, solver, tol=tol, max_steps=max_steps, chunk=chunk)
    return (solution(state, history) for state, history in found)


def iterate_states(
    objective: Any,
    init: Any,
    solver: Solver,
    *,
    tol: float | jax.Array = 1e-6,
    max_steps: int = 1000,
    chunk: int = 100,
    most: int | None = None,
    go_on: Callable[[State], State] = lambda state: state,
) -> Iterator[tuple[State, History]]:
    """What :func:`iterate` is made of: the states, which hold all that the steps after them depend on.

    Args:
      most: states come after so many steps, ``chunk`` or fewer. The program is that of ``chunk`` whatever it is.
      go_on: is given the state at ``init``, and returns the one to start from: another state of the same problem, for
        a run that goes on where it was.
    """
    if chunk < 1:
        raise ValueError(f"iterate: chunk must be at least 1, got {chunk}")
    init, max_steps, problem = _checked(objective, init, solver, tol, max_steps, most=2**31 - 1)
    state = go_on(_start(*problem, init, tol, max_steps))
    most = chunk if most is None else min(most, chunk)
    return in_chunks(state, lambda s: _advance(*problem, s, tol, max_steps, most, chunk))


def in_chunks(state: State, go_on: Callable[[State], tuple[State, History]]) -> Iterator[tuple[State, History]]:
    """A state of :func:`start` or a later one, with its own entry of the history, and what each call of ``go_on`` makes
    of it, until no run is running.

    With ``start`` and ``advance`` under ``vmap`` the state is that of many runs.
    """
    one = lambda value: jax.device_put(np.asarray(value)[..., None])
    history = History(one(state.point.value), one(state.norm))
    while True:
        yield state, history
        if not np.any(np.asarray(state.code) == codes.RUNNING):
            return
        state, history = go_on(state)


def solution(state: State, history: History) -> Solution:
    """Where a run stands."""
    return Solution(state.point.params, state.point.value, state.norm, state.step, Status(state.code), history)


# -- one chunk after the other: what jit, vmap and a loop in Python are put around -------------------------------------


def start(objective: Any, init: Any, solver: Solver, *, tol: Any, max_steps: Any) -> State:
    """The state before the first step. Arguments as in :func:`minimize`; every one may be traced."""
    objective = as_objective(objective)
    return _settled(objective, opening(objective, init, solver, tol=tol), tol, max_steps)


def opening(objective: Any, init: Any, solver: Solver, *, tol: Any) -> State:
    """:func:`start`, but for the doubt whether a gradient that seems small is more than rounding.

    Here and in :func:`run_steps` the tolerance may be a function of the point.
    """
    require_ability(solver, objective, init)
    if hasattr(solver, "begin"):
        return opening_at(objective, *solver.begin(objective, init), tol=tol)
    point = evaluate(objective, init)
    return opening_at(objective, point, solver.init(objective, point), tol=tol)


def opening_at(objective: Any, point: Point, inside: Any, *, tol: Any) -> State:
    """:func:`opening` at a point that is known already, with the solver's own state there."""
    norm = largest_component(residual(objective, point))
    code = jnp.where(norm <= _limit(tol, point), codes.CONVERGED, codes.RUNNING)
    code = jnp.where(_finite(point.value, norm), code, codes.NOT_FINITE).astype(jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return State(point, inside, zero, code, norm, point.value, norm, zero)


def advance(
    objective: Any, solver: Solver, state: State, *, tol: Any, max_steps: Any, chunk: int, most: Any = None
) -> tuple[State, History]:
    """At most ``chunk`` steps from a state, and their history, which has that length; none from one that has ended.

    ``most``, which may be traced, is a number of steps below ``chunk``: the program does not depend on it. Under
    ``vmap`` all runs that are still running have made the same number of steps.
    """
    objective = as_objective(objective)
    until = max_steps if most is None else jnp.minimum(max_steps, state.step + most)
    state, history = run_steps(objective, solver, state, tol, until, chunk)
    return _settled(objective, state, tol, max_steps), history


def run_steps(
    objective: Any, solver: Solver, state: State, tol: Any, max_steps: Any, chunk: int, history: History | None = None
) -> tuple[State, History]:
    """:func:`advance`, but for what becomes of a run at its end. A ``history`` from step 0 on is continued."""
    first = state.step if history is None else jnp.zeros_like(state.step)
    last = jnp.minimum(first + chunk, max_steps)

    def running(run: tuple[State, History]) -> Any:
        return (run[0].code == codes.RUNNING) & (run[0].step < last)

    def one_step(run: tuple[State, History]) -> tuple[State, History]:
        state, history = run
        made = solver.step(objective, state.point, state.solver)
        checks.require_alike(solver, (state.point, state.solver), made)
        point, inside = made
        norm = largest_component(residual(objective, point))
        # By comparison: under vmap an indexed update would be a scatter.
        here = jnp.arange(chunk, dtype=jnp.int32) == state.step - first
        history = History(jnp.where(here, point.value, history.value), jnp.where(here, norm, history.gradient_norm))
        better = (point.value < state.best_value) | (norm < state.best_norm)
        idle = jnp.where(better | _moved(state.point.params, point.params), 0, state.idle + 1)
        spent = idle >= _PATIENCE
        if hasattr(solver, "exhausted"):
            spent = spent | solver.exhausted(inside)
        code = jnp.where(spent, codes.STALLED, state.code)
        code = jnp.where(norm <= _limit(tol, point), codes.CONVERGED, code)
        moved = State(
            point=point,
            solver=inside,
            step=state.step + 1,
            code=code.astype(jnp.int32),
            norm=norm,
            best_value=jnp.minimum(state.best_value, point.value),
            best_norm=jnp.minimum(state.best_norm, norm),
            idle=idle,
        )
        kept = state._replace(code=jnp.full_like(state.code, codes.DIVERGED))
        return select(_finite(point.value, norm), moved, kept), history

    return jax.lax.while_loop(running, one_step, (state, blank_history(state, chunk) if history is None else history))


def blank_history(state: State, length: int) -> History:
    """The history of so many steps that have not been made."""
    return History(jnp.full(length, jnp.nan, state.point.value.dtype), jnp.full(length, jnp.nan, state.norm.dtype))


def _limit(tol: Any, point: Point) -> Any:
    return tol(point) if callable(tol) else tol


def _settled(objective: Any, state: State, tol: Any, max_steps: Any) -> State:
    """The state with the code of a run that may go no further, and of one that only seems to have converged.

    A gradient norm below tol is no convergence where its rounding error is above tol.
    """
    code = jnp.where((state.code == codes.RUNNING) & (state.step >= max_steps), codes.MAX_STEPS, state.code)
    if hasattr(objective, "gradient_error"):
        error = jax.lax.cond(
            code == codes.CONVERGED,
            lambda: largest_component(objective.gradient_error(state.point.params)).astype(state.norm.dtype),
            lambda: jnp.zeros_like(state.norm),
        )
        code = jnp.where(error > tol, codes.STALLED, code)
    return state._replace(code=code.astype(jnp.int32))


# -- compiled ----------------------------------------------------------------------------------------------------------


@kept(0)
def _start(static: Any, data: Any, init: Any, tol: Any, max_steps: Any) -> State:
    objective, solver = join(static[0], data)
    return start(objective, init, solver, tol=tol, max_steps=max_steps)


@kept(0, 6)
def _advance(
    static: Any, data: Any, state: State, tol: Any, max_steps: Any, most: Any, chunk: int
) -> tuple[State, History]:
    objective, solver = join(static[0], data)
    return advance(objective, solver, state, tol=tol, max_steps=max_steps, chunk=chunk, most=most)


@kept(0, 4)
def _whole(static: Any, data: Any, init: Any, tol: Any, max_steps: int) -> Solution:
    """The run as a scan over chunks. A single loop would carry the whole history: under vmap a loop copies what it
    carries in every step, which would take most of the time."""
    objective, solver = join(static[0], data)
    state = opening(objective, init, solver, tol=tol)
    chunk = math.isqrt(max_steps) + 1
    first = state.point.value, state.norm
    state, chunks = jax.lax.scan(
        lambda s, _: run_steps(objective, solver, s, tol, max_steps, chunk), state, length=-(-max_steps // chunk)
    )
    state = _settled(objective, state, tol, max_steps)
    columns = zip(first, (chunks.value, chunks.gradient_norm), strict=True)
    value, norm = (jnp.append(a, b.reshape(-1)[:max_steps]) for a, b in columns)
    return solution(state, History(value, norm))


def _placed(objective: Any, init: Any, mesh: Mesh | None) -> tuple[Any, Any]:
    """The objective with its data, and initial parameters, on the devices of a mesh."""
    if mesh is None:
        return objective, init
    if not hasattr(objective, "on"):
        raise TypeError(
            "minimize: mesh needs an objective with on(mesh), as LogisticObjective has, "
            f"got {type(objective).__name__}: place its arrays on the mesh by jax.device_put, and leave mesh out"
        )
    # A mesh's axes are the compiler's unless another type is given.
    everywhere = NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec())
    return objective.on(mesh), jax.device_put(init, everywhere)


def _checked(
    objective: Any, init: Any, solver: Any, tol: Any, max_steps: Any, most: int = checks.MOST_STEPS
) -> tuple[Any, int, tuple[Any, Any]]:
    """Initial parameters as floats, the number of steps, and the problem as what is compiled and what is data."""
    steps = checks.number_of_steps(max_steps, most=most)
    checks.require_tolerance(tol)
    checks.require_solver(solver)
    init = jax.tree.map(_as_float, init)
    static, data = separate((as_objective(objective), solver))
    return init, steps, ((static, types_in(jax.tree.structure(init))), data)


def _moved(before: Any, after: Any) -> Any:
    """Whether a parameter moved by more than 8 units in its last place."""

    def moved(a: Any, b: Any) -> Any:
        return jnp.any(jnp.abs(b - a) > 8 * jnp.finfo(a.dtype).eps * jnp.abs(b))

    return jax.tree.reduce(lambda a, b: a | b, jax.tree.map(moved, before, after), False)


def _finite(value: Any, norm: Any) -> Any:
    return jnp.isfinite(value) & jnp.isfinite(norm)


def _as_float(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"minimize: init must be real, got dtype {array.dtype}")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.result_type(float))
