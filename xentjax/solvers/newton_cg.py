"""Newton's method by conjugate gradients in a trust region: no Hessian, only its products with directions."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.conjugate_gradients import conjugate_gradients
from xentjax.solvers.line_search import search, value_rounding
from xentjax.solvers.metric import Metric, metric_at, raveled, require_kind
from xentjax.solvers.objective import Point, linearized, select

#: The next radius, in lengths of the last step, where that was shorter than this share of what was tried, or went to
#: the border.
_ROOM, _SHORT = 2.0, 0.9

#: The first radius, in lengths of the gradient in the metric.
_FIRST_RADIUS = 10.0

#: Which share of the gradient conjugate gradients may leave, at most and at least.
_LOOSE, _TIGHT = 0.3, 1e-3


class Region(NamedTuple):
    """What a run hands on from step to step."""

    metric: Metric
    radius: Any  # in the metric
    left: Any  # which share of the gradient conjugate gradients may leave
    spent: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewtonCG:
    r"""Newton's method in a trust region, its systems solved by conjugate gradients.

    Each step minimizes the parabola :math:`\langle g, p\rangle + \tfrac12\langle p, Hp\rangle` over
    :math:`\|p\|_M \le \Delta` as far as it pays: until the residual is a share :math:`\eta` of the gradient, until the
    border, or along the first direction of negative curvature to the border (Steihaug). :math:`\eta` is at most 0.3,
    and what the last step left of the gradient where that is less, so that convergence is faster than linear. Where the
    value is flat to its last digits, what a step gains is told from the slopes at both ends. It is for many parameters:
    products with the Hessian come from ``objective.linearized(params)`` or ``objective.hvp(params, direction)``, and
    from JAX where it has neither.

    Args:
      metric: M, which preconditions the conjugate gradients, what is taken of the Hessian at the initial parameters:
        ``"identity"`` for nothing, ``"diagonal"``, ``"blocks"`` (between parameters of one class), or ``"hessian"``.
        The middle two are the identity where the objective does not offer them (``hessian_diagonal``,
        ``hessian_blocks``).

    Raises:
      ValueError: there is no metric of that name.

    Source: Steihaug, SIAM J. Numer. Anal. 20 (1983), 626-637; Nocedal and Wright, Numerical Optimization (2006),
    chapters 4 and 7.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> objective = xj.LogisticObjective(jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1]), l2=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.NewtonCG())
      >>> str(solution.status), f"{solution.params.weights[0]:.4f}"
      ('converged', '0.3553')
    """

    metric: str = dataclasses.field(default="diagonal", metadata={"static": True})

    def __post_init__(self) -> None:
        require_kind("NewtonCG", self.metric)

    def init(self, objective: Any, point: Point) -> Region:
        metric = metric_at(objective, point.params, self.metric)
        length = _norm(metric, raveled(point.gradient))
        return Region(metric, _FIRST_RADIUS * length, jnp.full_like(length, _LOOSE), jnp.zeros((), bool))

    def exhausted(self, state: Region) -> jax.Array:
        """Whether rounding hides what further steps could gain."""
        return state.spent

    def step(self, objective: Any, point: Point, state: Region) -> tuple[Point, Region]:
        origin, unravel = ravel_pytree(point.params)
        gradient, metric = raveled(point.gradient), state.metric
        product = linearized(objective, point.params)
        made = conjugate_gradients(
            lambda v: raveled(product(unravel(v))), -gradient, metric.solve, tol=state.left, radius=state.radius
        )
        step, slope = made.solution, jnp.vdot(gradient, made.solution)
        new, found = search(objective, point, step, slope, jnp.ones_like(slope))
        before, after = _norm(metric, gradient), _norm(metric, raveled(new.gradient))
        # Where what the step could gain is below the value's rounding, it must make the gradient smaller.
        taken = found & ((made.decrease >= value_rounding(point)) | (after < before))

        size = jnp.vdot(step, step)
        share = jnp.vdot(raveled(new.params) - origin, step) / jnp.where(size > 0, size, 1)
        # The parabola holds as far as the search went; at the border of what was tried it may hold farther.
        reached = _ROOM * share * made.length
        radius = jnp.where(
            share < _SHORT, reached, jnp.where(made.at_border, jnp.maximum(reached, state.radius), state.radius)
        )
        left = jnp.clip(after / jnp.where(before > 0, before, 1), _TIGHT, _LOOSE)
        kept = select(taken, new, point)
        return kept, Region(metric, radius, left, ~taken)


def _norm(metric: Metric, gradient: Any) -> Any:
    """The length of a gradient in the inverse metric."""
    return jnp.sqrt(jnp.vdot(gradient, metric.solve(gradient)))
