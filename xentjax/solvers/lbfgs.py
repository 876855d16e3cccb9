"""L-BFGS with a line search that works to the last digit, and a metric to start from."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.solvers.line_search import search, value_rounding
from xentjax.solvers.metric import Metric, metric_at, raveled, require_kind
from xentjax.solvers.newton import Newton
from xentjax.solvers.objective import Point, largest_component, select
from xentjax.solvers.subsample import optimum_of_few, require_stride, subsampled

#: Steps without a smaller gradient, where the value is flat to its last digit, after which rounding hides the rest.
_PATIENCE = 20


class Memory(NamedTuple):
    """The last steps s and changes y of the gradient, the newest last; 1/⟨s, y⟩ is 0 where there is none."""

    steps: Any
    changes: Any
    inverse: Any
    scale: Any  # γ: the inverse Hessian is first taken for γ M⁻¹


class LBFGSState(NamedTuple):
    """What a run hands on from step to step."""

    memory: Memory
    metric: Metric
    age: Any  # steps since the metric was taken
    direction: Any
    slope: Any  # ⟨gradient, direction⟩
    best: Point  # of the smallest gradient since the value has been flat
    waited: Any  # steps since then
    spent: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LBFGS:
    r"""L-BFGS: a quasi-Newton method that keeps the last steps in the place of a Hessian.

    With steps :math:`s_k` and changes of the gradient :math:`y_k` the inverse Hessian is that of the BFGS formula over
    the last ``memory`` pairs, from :math:`\gamma M^{-1}` on, where :math:`\gamma = \langle s, y\rangle / \langle y,
    M^{-1} y\rangle`. A pair without positive curvature is left out. Along the direction a line search looks for a
    point that fulfils the Wolfe conditions; where the value is flat to its last digit, it goes by slopes. Where it
    finds no better point, the memory is given up, and after that the run ends as stalled; it does so, too, when the
    value has been flat for 20 steps without a smaller gradient.

    Args:
      memory: the number of pairs.
      metric: M, what is taken of the Hessian at the initial parameters: ``"identity"`` for nothing, ``"diagonal"``,
        ``"blocks"`` (between parameters of one class), or ``"hessian"``. The middle two are the identity where the
        objective does not offer them (``hessian_diagonal``, ``hessian_blocks``).
      subsample: a stride: M is taken of every row of that many, at the optimum of these rows, which is also where the
        first step leads. The objective needs ``subsample(stride)``. None: of all rows, at the initial parameters.
      refresh: after so many steps M is taken again, of all rows, and the memory is given up. Far from the initial
        parameters their Hessian says little: a run that is not done by then is done soon after. (Under ``vmap`` M is
        computed at every step, and mostly not used.) None: never.

    Raises:
      ValueError: memory, subsample or refresh are below 1, or there is no metric of that name.

    Source: Liu and Nocedal, Math. Programming 45 (1989), 503-528; the line search is that of Hager and Zhang (2005).

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> objective = xj.LogisticObjective(jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1]), l2=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.LBFGS())
      >>> str(solution.status), f"{solution.params.weights[0]:.4f}"
      ('converged', '0.3553')
    """

    memory: int = dataclasses.field(default=10, metadata={"static": True})
    metric: str = dataclasses.field(default="diagonal", metadata={"static": True})
    subsample: int | None = dataclasses.field(default=None, metadata={"static": True})
    refresh: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        require_kind("LBFGS", self.metric)
        if self.memory < 1:
            raise ValueError(f"LBFGS: memory must be at least 1, got {self.memory}")
        require_stride("LBFGS", self.subsample)
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"LBFGS: refresh must be None or at least 1, got {self.refresh}")

    def init(self, objective: Any, point: Point) -> LBFGSState:
        gradient = raveled(point.gradient)
        size, dtype = gradient.size, gradient.dtype
        rows = jnp.zeros((self.memory, size), dtype)
        if self.subsample is None:
            center, metric = point.params, metric_at(objective, point.params, self.metric)
        else:
            few = subsampled("LBFGS", objective, self.subsample)
            whole = Newton("float32") if self.metric == "hessian" else dataclasses.replace(self, subsample=None)
            center = optimum_of_few(few, point.params, whole)
            metric = metric_at(few, center, self.metric)
        # Without a metric nothing is known of the scale: the first step has the length 1.
        length = jnp.linalg.norm(gradient)
        one = jnp.ones((), dtype)
        scale = 1 / jnp.where(length > 0, length, 1) if metric.scale is None else one
        memory = Memory(rows, rows, jnp.zeros(self.memory, dtype), scale)
        none = jnp.zeros((), jnp.int32)
        state = LBFGSState(memory, metric, none, gradient, jnp.zeros((), dtype), point, none, jnp.zeros((), bool))
        return _aimed(state, point, raveled(center) - raveled(point.params))

    def exhausted(self, state: LBFGSState) -> jax.Array:
        """Whether rounding hides what further steps could gain."""
        return state.spent

    def step(self, objective: Any, point: Point, state: LBFGSState) -> tuple[Point, LBFGSState]:
        new, found = search(objective, point, state.direction, state.slope, jnp.ones_like(state.slope))
        new = select(found, new, point)
        had_memory = jnp.any(state.memory.inverse > 0)
        memory = select(found, _remember(state, point, new), _forgotten(state.memory))

        flat = -state.slope < value_rounding(point)
        smaller = largest_component(new.gradient) < largest_component(state.best.gradient)
        best = select(smaller | ~flat, new, state.best)
        waited = jnp.where(smaller | ~flat, 0, state.waited + 1)
        spent = (~found & ~had_memory) | (waited >= _PATIENCE)
        new = select(spent & flat, best, new)
        state = state._replace(memory=memory, age=state.age + 1, best=best, waited=waited, spent=spent)
        state = state if self.refresh is None else self._refreshed(objective, new, state)
        return new, _aimed(state, new, jnp.zeros_like(state.direction))

    def _refreshed(self, objective: Any, point: Point, state: LBFGSState) -> LBFGSState:
        """The state with a metric of this point, if it is time for one."""
        due = state.age >= self.refresh
        metric = jax.lax.cond(due, lambda: metric_at(objective, point.params, self.metric), lambda: state.metric)
        blank = _forgotten(state.memory)._replace(scale=jnp.ones_like(state.memory.scale))
        memory, age = select(due, (blank, jnp.zeros_like(state.age)), (state.memory, state.age))
        return state._replace(metric=metric, memory=memory, age=age)


def _aimed(state: LBFGSState, point: Point, wanted: Any) -> LBFGSState:
    """The state with the next direction: the one wanted, if the value falls there, or that of the memory."""
    gradient = raveled(point.gradient)
    own = -_inverse_times(state.memory, state.metric, gradient)
    # What rounding has spoilt is given up for the gradient in the metric.
    own = jnp.where(jnp.vdot(gradient, own) < 0, own, -state.metric.solve(gradient))
    direction = jnp.where(jnp.vdot(gradient, wanted) < 0, wanted, own)
    return state._replace(direction=direction, slope=jnp.vdot(gradient, direction))


def _inverse_times(memory: Memory, metric: Metric, vector: Any) -> Any:
    """The BFGS formula of all pairs, in two loops over them. Where 1/⟨s, y⟩ is 0, a pair changes nothing."""

    def down(vector: Any, pair: Any) -> tuple[Any, Any]:
        step, change, inverse = pair
        share = inverse * jnp.vdot(step, vector)
        return vector - share * change, share

    def up(vector: Any, pair: Any) -> tuple[Any, None]:
        step, change, inverse, share = pair
        return vector + (share - inverse * jnp.vdot(change, vector)) * step, None

    pairs = memory.steps, memory.changes, memory.inverse
    vector, shares = jax.lax.scan(down, vector, pairs, reverse=True)
    return jax.lax.scan(up, memory.scale * metric.solve(vector), (*pairs, shares))[0]


def _remember(state: LBFGSState, before: Point, after: Point) -> Memory:
    """The memory with one pair more, and the oldest gone."""
    step = raveled(after.params) - raveled(before.params)
    change = raveled(after.gradient) - raveled(before.gradient)
    curvature = jnp.vdot(step, change)
    lengths = jnp.linalg.norm(step) * jnp.linalg.norm(change)
    good = curvature > jnp.finfo(step.dtype).eps * lengths
    safe = jnp.where(good, curvature, 1)
    memory = state.memory
    newer = Memory(
        _pushed(memory.steps, step),
        _pushed(memory.changes, change),
        _pushed(memory.inverse, 1 / safe),
        safe / jnp.where(good, jnp.vdot(change, state.metric.solve(change)), 1),
    )
    return select(good, newer, memory)


def _pushed(rows: Any, row: Any) -> Any:
    # Shifted, not written at an index: under vmap that would be a scatter.
    return jnp.concatenate([rows[1:], row[None]])


def _forgotten(memory: Memory) -> Memory:
    return memory._replace(inverse=jnp.zeros_like(memory.inverse))
