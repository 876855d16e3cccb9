"""Newton's method with a damped factorization and a line search that works to the last digit."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.objective import Point, evaluate_with_hessian, largest_component, select
from xentjax.solvers.subsample import optimum_of_few, require_stride, subsampled

#: What a step must gain of what the slope promises (Armijo), and how far the slope must fall where the value is flat.
_GAIN, _FLAT = 1e-4, 0.9

#: Tries of shorter and shorter steps at most, 1, 1/2, 1/8, 1/64, ... of a Newton step: 2^-120 of one is rounding, even
#: where predictions are so certain that there is hardly any curvature, and the step goes to 1e30.
_TRIES = 16

#: A step that makes the value smaller by no more than this share, and leaves more than this share of the gradient.
_NEAR, _LEFT = 0.01, 0.1


class Curvature(NamedTuple):
    """The Hessian at a point, in the order of the raveled parameters, and what Newton's method makes of it."""

    hessian: jax.Array
    direction: jax.Array
    slope: jax.Array  # ⟨gradient, direction⟩ = -λ², λ being the Newton decrement
    exact: jax.Array  # whether the Hessian's products have all digits
    spent: jax.Array  # whether the last line search found no better point


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Newton:
    r"""Newton's method, :math:`\beta \leftarrow \beta - t\,(\nabla^2 L)^{-1}\nabla L`.

    The Hessian comes with value and gradient (``objective.value_gradient_hessian``) where the objective has it, and
    from JAX where not. It is scaled to a unit diagonal and factorized by Cholesky; where that fails, a multiple of the
    identity is added until it succeeds, so that a singular Hessian is no obstacle. The step t is made shorter until the
    loss falls as it should; where the loss is flat to its last digit, until the slope along the step has fallen.

    Args:
      hessian_dtype: the dtype of the Hessian's products, a string such as ``"float32"``: half the time where gradients
        are float64, for steps that are a little longer or shorter. Where that shows, as it does where features nearly
        depend on each other, the Hessian has all digits from there on. By default it always has.
      subsample: a stride: the run begins at the optimum of every row of that many. The objective needs
        ``subsample(stride)``.

    Raises:
      ValueError: subsample is below 1.

    Source: Nocedal and Wright, Numerical Optimization (2006), sections 3.3 and 3.4; Hager and Zhang (2005) for the
    slope in the place of the value.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> objective = xj.LogisticObjective(jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1]), l2=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.Newton())
      >>> str(solution.status), int(solution.steps), f"{solution.params.weights[0]:.4f}"
      ('converged', 3, '0.3553')
    """

    hessian_dtype: str | None = dataclasses.field(default=None, metadata={"static": True})
    subsample: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        require_stride("Newton", self.subsample)

    def begin(self, objective: Any, params: Any) -> tuple[Point, Curvature]:
        if self.subsample is not None:
            few = subsampled("Newton", objective, self.subsample)
            center = optimum_of_few(few, params, dataclasses.replace(self, subsample=None))
            known = jnp.isfinite(largest_component(center))
            params = select(known, center, params)
        exact = jnp.asarray(self.hessian_dtype is None)
        point, hessian = evaluate_with_hessian(objective, params, self.hessian_dtype, exact)
        return point, self._curvature(point, hessian, exact)

    def init(self, objective: Any, point: Point) -> Curvature:
        return dataclasses.replace(self, subsample=None).begin(objective, point.params)[1]

    def exhausted(self, state: Curvature) -> jax.Array:
        """Whether rounding hides what further steps could gain."""
        return state.spent

    def step(self, objective: Any, point: Point, state: Curvature) -> tuple[Point, Curvature]:
        start, unravel = ravel_pytree(point.params)
        norm = largest_component(point.gradient)
        rounding = 16 * jnp.finfo(start.dtype).eps * jnp.abs(point.value)
        # What the whole step could gain is below the value's rounding: if it does not help, no part of it does.
        is_flat = -state.slope < rounding
        most = jnp.where(is_flat, 1, _TRIES)

        def try_step(search: Any) -> Any:
            length, *_, tries = search
            # Where no length helps, the Hessian is taken again with all digits, and nothing moves.
            in_vain = tries == most
            length, exact = jnp.where(in_vain, 0, length), state.exact | in_vain
            new, hessian = evaluate_with_hessian(
                objective, unravel(start + length * state.direction), self.hessian_dtype, exact
            )
            slope = jnp.vdot(ravel_pytree(new.gradient)[0], state.direction)
            gained = new.value <= point.value + _GAIN * length * state.slope
            level = (new.value <= point.value + rounding) & (jnp.abs(slope) <= _FLAT * jnp.abs(state.slope))
            better = largest_component(new.gradient) < norm
            accepted = jnp.where(is_flat, better, gained | level) & ~in_vain
            return length / 2 ** (tries + 1), new, hessian, accepted, tries + 1

        def unsuccessful(search: Any) -> Any:
            *_, accepted, tries = search
            return ~accepted & (tries < most + ~state.exact)

        one, none = jnp.ones((), start.dtype), jnp.zeros((), jnp.int32)
        search = (one, point, state.hessian, jnp.zeros((), bool), none)
        _, new, hessian, accepted, tries = jax.lax.while_loop(unsuccessful, try_step, search)
        taken = accepted | (tries > most)
        new, hessian = select(taken, (new, hessian), (point, state.hessian))
        # Near the minimum a whole step of Newton's leaves far less of the gradient.
        is_near = point.value - new.value <= _NEAR * jnp.abs(point.value)
        slow = is_near & (largest_component(new.gradient) > _LEFT * norm)
        curvature = self._curvature(new, hessian, state.exact | (tries > most) | slow)
        return new, curvature._replace(spent=~taken)

    def _curvature(self, point: Point, hessian: jax.Array, exact: jax.Array) -> Curvature:
        gradient = ravel_pytree(point.gradient)[0]
        unit: Any = jnp.finfo(gradient.dtype).eps
        unit = jnp.where(exact, unit, jnp.finfo(self.hessian_dtype or gradient.dtype).eps)
        direction = -solve_positive(hessian, gradient, unit)
        return Curvature(hessian, direction, jnp.vdot(gradient, direction), exact, jnp.zeros((), bool))


def solve_positive(matrix: Any, right: Any, unit: Any = None) -> Any:
    """The solution of a symmetric system that is positive semi-definite but for the rounding of its entries."""
    return solve_factored(damped_factor(matrix, unit), right)


def solve_factored(factored: tuple[Any, Any], right: Any) -> Any:
    """The solution for what :func:`damped_factor` gave."""
    scale, factor = factored
    scale = scale if right.ndim == 1 else scale[:, None]
    return jax.scipy.linalg.cho_solve((factor, True), right * scale) * scale


def damped_factor(matrix: Any, unit: Any = None) -> tuple[Any, Any]:
    """s and L with L Lᵀ = s A s + μI: s makes the diagonal 1 (0 stays 0 and gets 1), μ is the least that works, from
    four times the ``unit`` of the entries' rounding (by default that of their dtype) on."""
    size = matrix.shape[0]
    diagonal = jnp.diagonal(matrix)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    scaled = matrix * scale * scale[:, None] + jnp.diag(jnp.where(diagonal > 0, 0, 1).astype(matrix.dtype))
    least = jnp.asarray(4 * (jnp.finfo(matrix.dtype).eps if unit is None else unit), matrix.dtype)

    def factorize(state: Any) -> Any:
        damping, _ = state
        return 100 * damping, jnp.linalg.cholesky(scaled + damping * jnp.eye(size, dtype=matrix.dtype))

    # What is not finite will not become so: a bound ends the search.
    failed = lambda state: jnp.any(jnp.isnan(state[1])) & (state[0] < 100)
    return scale, jax.lax.while_loop(failed, factorize, (least, jnp.full_like(scaled, jnp.nan)))[1]
