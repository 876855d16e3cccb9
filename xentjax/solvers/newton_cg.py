"""Newton's method by conjugate gradients in a trust region: no Hessian, only its products with directions."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.conjugate_gradients import conjugate_gradients
from xentjax.solvers.line_search import value_rounding
from xentjax.solvers.metric import metric_at, raveled, require_kind
from xentjax.solvers.objective import Point, evaluate, linearized

#: A step is taken where the loss falls by this share of what its parabola says; the region shrinks below the second
#: share, and grows above the third.
_TAKEN, _POOR, _GOOD = 1e-4, 0.25, 0.75

#: The first radius, in lengths of the gradient in the metric.
_FIRST_RADIUS = 10.0

#: A region this small beside the parameters holds only what rounding makes of them.
_SHRUNK = 0.25


class Region(NamedTuple):
    """What a run hands on from step to step."""

    radius: Any  # in the metric; 0 before the first step
    forcing: Any  # the share of the gradient that conjugate gradients may leave
    rejected: Any  # steps in a row that were not taken
    spent: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NewtonCG:
    r"""Newton's method in a trust region, its systems solved by conjugate gradients.

    Each step minimizes the parabola :math:`\langle g, p\rangle + \tfrac12\langle p, Hp\rangle` over :math:`\|p\|_M \le
    \Delta` as far as it pays: until the residual is a share :math:`\eta` of the gradient, until the border, or along
    the first direction of negative curvature to the border (Steihaug). Near the minimum :math:`\eta` falls with the
    square of the gradient, so that few steps are needed to the last digits. Where the value is flat to its last digit,
    what a step gains is told from the slopes at both ends. It is for many parameters: products with the Hessian come
    from ``objective.linearized(params)`` or ``objective.hvp(params, direction)``, and from JAX where it has neither.

    Args:
      metric: M, which preconditions the conjugate gradients, of the Hessian at each point: ``"identity"``,
        ``"diagonal"``, ``"blocks"`` (between parameters of one class), or ``"hessian"``. The middle two are the
        identity where the objective does not offer them (``hessian_diagonal``, ``hessian_blocks``).

    Raises:
      ValueError: there is no metric of that name.

    Source: Steihaug, SIAM J. Numer. Anal. 20 (1983), 626-637; Eisenstat and Walker, SIAM J. Sci. Comput. 17 (1996),
    16-32, for the residual; Nocedal and Wright, Numerical Optimization (2006), chapters 4 and 7.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> objective = xj.LogisticObjective(jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1]), l2=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.NewtonCG())
      >>> str(solution.status), solution.params.weights.round(4)
      ('converged', Array([0.3553], dtype=float32))
    """

    metric: str = dataclasses.field(default="diagonal", metadata={"static": True})

    def __post_init__(self) -> None:
        require_kind("NewtonCG", self.metric)

    def init(self, objective: Any, point: Point) -> Region:
        zero = jnp.zeros_like(ravel_pytree(point.params)[0], shape=())
        return Region(zero, zero + 0.1, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def exhausted(self, state: Region) -> jax.Array:
        """Whether rounding hides what further steps could gain."""
        return state.spent

    def step(self, objective: Any, point: Point, state: Region) -> tuple[Point, Region]:
        origin, unravel = ravel_pytree(point.params)
        gradient = raveled(point.gradient)
        metric = metric_at(objective, point.params, self.metric)
        product = linearized(objective, point.params)
        before = jnp.sqrt(jnp.vdot(gradient, metric.solve(gradient)))
        radius = jnp.where(state.radius > 0, state.radius, _FIRST_RADIUS * before)
        made = conjugate_gradients(
            lambda v: raveled(product(unravel(v))), -gradient, metric.solve, tol=state.forcing, radius=radius
        )
        new = evaluate(objective, unravel(origin + made.solution))

        rounding = value_rounding(point)
        end = raveled(new.gradient)
        after = jnp.sqrt(jnp.vdot(end, metric.solve(end)))
        flat = made.decrease < rounding
        # The mean of the slopes at both ends: right for a parabola, and it has digits where values have none.
        by_slopes = -jnp.vdot(gradient + end, made.solution) / 2
        by_values = point.value - new.value
        gained = jnp.where(made.decrease < 1e3 * rounding, by_slopes, by_values)
        ratio = gained / jnp.where(made.decrease > 0, made.decrease, 1)
        finite = jnp.isfinite(new.value) & jnp.isfinite(after)
        taken = finite & jnp.where(flat, after < before, (made.decrease > 0) & (ratio > _TAKEN))

        length = made.length
        ratio = jnp.where(finite, ratio, 0)
        smaller, larger = length / 4, jnp.where(made.at_border, 4 * radius, radius)
        next_radius = jnp.where(ratio < _POOR, smaller, jnp.where(ratio > _GOOD, larger, radius))
        # Eisenstat and Walker's second choice.
        forcing = jnp.clip(0.9 * (after / jnp.where(before > 0, before, 1)) ** 2, 1e-6, 0.5)
        forcing = jnp.maximum(forcing, jnp.where(0.9 * state.forcing**2 > 0.1, 0.9 * state.forcing**2, 0))
        # A step that moves nothing was made of rounding.
        moves = jnp.any(origin + made.solution != origin)
        spent = ~taken & (flat | ~moves)
        kept = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, point)
        rejected = jnp.where(taken, 0, state.rejected + 1)
        return kept, Region(next_radius, jnp.where(taken, forcing, state.forcing), rejected, spent)
