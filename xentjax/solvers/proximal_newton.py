"""Newton's method for objectives with an L1 penalty: coordinate descent and Cholesky on the quadratic model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.newton import damped_factor, solve_factored, solve_positive
from xentjax.solvers.objective import Point, evaluate_with_hessian, largest_component, residual, select
from xentjax.solvers.penalty import absolute, l1_factors, smallest_subgradient, soft_threshold

#: What a step must gain of what its model promises (Armijo).
_GAIN = 1e-4

#: Halvings of a step at most: 2^-40 of a step that helps nowhere is rounding.
_HALVINGS = 40

#: The model is minimized until what is left of its subgradient is this share of the objective's, or so many times.
_INEXACT, _ROUNDS = 1e-2, 100

#: So many units in the last place go on the diagonal of a Hessian of fewer digits: where columns depend on others, its
#: rounding may leave the model without a minimum.
_DAMPING = 64

#: So many parameters make one sweep over them for each factorization: that takes p³, the sweep p².
_SWEPT = 64


class ProximalCurvature(NamedTuple):
    """The Hessian of the smooth part at a point, in the order of the raveled parameters."""

    hessian: jax.Array
    spent: jax.Array  # whether the last line search found no better point


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProximalNewton:
    r"""Newton's method for a smooth function f with an L1 penalty.

    Each step minimizes the quadratic model of f with the penalty as it is,

    .. math::
      \min_\beta\ \langle g, \beta - \beta_k\rangle + \tfrac12 (\beta - \beta_k)^T H (\beta - \beta_k)
      + \sum_j \lambda_j |\beta_j|,

    and goes toward the minimum as far as the objective falls as it should. The model is minimized by turns: sweeps of
    coordinate descent find which parameters are 0; Cholesky's solution for all others, where those that would
    change their sign become 0, makes the rest exact. Both let the model fall, so that no choice of zeros and signs
    comes back, and the right one ends it. Zeros of the result are exact.

    Without a penalty it is :class:`Newton`. The Hessian is a matrix of all parameters, p².

    Args:
      hessian_dtype: the dtype of the Hessian's products, as in :class:`Newton`.

    Source: Lee, Sun and Saunders, SIAM J. Optim. 24 (2014), 1420-1443; Friedman, Hastie and Tibshirani, J. Stat.
    Softw. 33 (2010) for coordinate descent.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> x = jnp.array([[-2.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [2.0, 1.0]])
      >>> objective = xj.LogisticObjective(x, jnp.array([0, 1, 0, 1]), l1=0.1)
      >>> solution = xj.minimize(objective, objective.init(), xj.ProximalNewton())
      >>> str(solution.status), (solution.params.weights == 0).tolist()
      ('converged', [False, True])
    """

    hessian_dtype: str | None = dataclasses.field(default=None, metadata={"static": True})
    handles_l1: ClassVar[bool] = True

    @property
    def _unit(self) -> float | None:
        """The unit of the rounding of the Hessian's entries; None for that of their dtype."""
        return None if self.hessian_dtype is None else float(jnp.finfo(self.hessian_dtype).eps)

    def init(self, objective: Any, point: Point) -> ProximalCurvature:
        return self.at(evaluate_with_hessian(objective, point.params, self.hessian_dtype)[1])

    def at(self, hessian: jax.Array) -> ProximalCurvature:
        """The state at a point whose Hessian is known, or nearly so."""
        return ProximalCurvature(hessian, jnp.zeros((), bool))

    def exhausted(self, state: ProximalCurvature) -> jax.Array:
        """Whether rounding hides what further steps could gain."""
        return state.spent

    def step(self, objective: Any, point: Point, state: ProximalCurvature) -> tuple[Point, ProximalCurvature]:
        start, unravel = ravel_pytree(point.params)
        gradient = ravel_pytree(point.gradient)[0]
        factors = flat_factors(objective, point.params)
        norm = largest_component(residual(objective, point))
        if l1_factors(objective, point.params) is None:
            direction = -solve_positive(state.hessian, gradient, self._unit)
        else:
            hessian = state.hessian
            if self._unit is not None:
                hessian = hessian + jnp.diag(_DAMPING * self._unit * jnp.diagonal(hessian))
            model = _Model(hessian, gradient, factors, start)
            direction = _minimum(model, _INEXACT * norm, self._unit) - start
        # How much the objective would fall if it were linear but for its kinks: at least directionᵀ H direction.
        slope = jnp.vdot(gradient, direction) + absolute(factors, start + direction) - absolute(factors, start)
        rounding = 16 * jnp.finfo(start.dtype).eps * jnp.abs(point.value)
        # What the whole step could gain is below the value's rounding: if it does not help, no part of it does.
        is_flat = -slope < rounding

        def try_step(search: Any) -> Any:
            length, *_, tries = search
            params = unravel(start + length * direction)
            new, hessian = evaluate_with_hessian(objective, params, self.hessian_dtype)
            gained = new.value <= point.value + _GAIN * length * slope
            better = largest_component(residual(objective, new)) < norm
            level = (new.value <= point.value + rounding) & better
            return length / 2, new, hessian, jnp.where(is_flat, better, gained | level), tries + 1

        def unsuccessful(search: Any) -> Any:
            *_, accepted, tries = search
            return ~accepted & (tries < jnp.where(is_flat, 1, _HALVINGS))

        one, none = jnp.ones((), start.dtype), jnp.zeros((), jnp.int32)
        search = (one, point, state.hessian, jnp.zeros((), bool), none)
        _, new, hessian, accepted, _ = jax.lax.while_loop(unsuccessful, try_step, search)
        kept = select(accepted, (new, hessian), (point, state.hessian))
        return kept[0], ProximalCurvature(kept[1], ~accepted)


def flat_factors(objective: Any, params: Any) -> jax.Array:
    """The factors of the L1 penalty in the order of the raveled parameters, 0 without one."""
    factors = l1_factors(objective, params)
    return ravel_pytree(jax.tree.map(jnp.zeros_like, params) if factors is None else factors)[0]


def support(params: jax.Array, factors: jax.Array) -> jax.Array:
    """Which parameters move smoothly: those that are not 0, or not penalized."""
    return (params != 0) | (factors == 0)


def on_support(matrix: jax.Array, moves: jax.Array) -> jax.Array:
    """The matrix with the rows and columns of the other parameters replaced by those of the identity."""
    return jnp.where(moves[:, None] & moves, matrix, jnp.eye(matrix.shape[0], dtype=matrix.dtype))


# -- the quadratic model -----------------------------------------------------------------------------------------------


class _Model(NamedTuple):
    hessian: jax.Array
    gradient: jax.Array  # at ``start``
    factors: jax.Array
    start: jax.Array

    def slope(self, params: jax.Array) -> jax.Array:
        moved = jnp.matmul(self.hessian, params - self.start, precision=jax.lax.Precision.HIGHEST)
        return self.gradient + moved

    def distance(self, params: jax.Array, slope: jax.Array) -> jax.Array:
        return largest_component(smallest_subgradient(slope, params, self.factors))


def _minimum(model: _Model, tol: Any, unit: Any) -> jax.Array:
    """Where the model is least, but for ``tol`` in its smallest subgradient."""
    size = model.start.size

    def unfinished(state: Any) -> Any:
        *_, distance, rounds = state
        return (distance > tol) & (rounds < _ROUNDS)

    def one_round(state: Any) -> Any:
        params, slope, _, rounds = state
        params, slope = _swept(model, params, slope, max(size // _SWEPT, 1))
        params, slope = _solved_on_support(model, params, slope, unit)
        return params, slope, model.distance(params, slope), rounds + 1

    first = model.start, model.gradient, model.distance(model.start, model.gradient), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, one_round, first)[0]


def _swept(model: _Model, params: Any, slope: Any, sweeps: int) -> tuple[Any, Any]:
    """Parameters and slope after each parameter in turn has been moved to where the model is least along it."""
    size = params.size
    diagonal = jnp.diagonal(model.hessian)

    def move(i: Any, state: Any) -> Any:
        params, slope = state
        j = i % size
        curved = diagonal[j] > 0
        curvature = jnp.where(curved, diagonal[j], 1)
        least = soft_threshold(curvature * params[j] - slope[j], model.factors[j]) / curvature
        change = jnp.where(curved, least - params[j], 0)
        # The new value itself and not the sum: a zero is exact.
        params = params.at[j].set(jnp.where(curved, least, params[j]))
        return params, slope + change * model.hessian[j]

    return jax.lax.fori_loop(0, sweeps * size, move, (params, slope))


def _solved_on_support(model: _Model, params: Any, slope: Any, unit: Any) -> tuple[Any, Any]:
    """The least point of the model for parameters that are not 0, but for those that become 0 on the way there.

    It ends with a step that no parameter cuts short. To go on with a sweep after each cut would let parameters that
    are to be 0 enter and leave by turns, and the others hardly move.
    """

    def step(state: Any) -> Any:
        params, slope, _, steps = state
        params, is_cut = _toward_least(model, params, slope, unit)
        return params, model.slope(params), is_cut, steps + 1

    first = params, slope, jnp.ones((), bool), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda state: state[2] & (state[3] <= params.size), step, first)[:2]


def _toward_least(model: _Model, params: Any, slope: Any, unit: Any) -> tuple[Any, Any]:
    """The parameters after a step toward that point, cut where the first becomes 0; and whether it was cut."""
    moves = support(params, model.factors)
    pull = jnp.where(moves, slope + model.factors * jnp.sign(params), 0)
    change = -solve_factored(damped_factor(on_support(model.hessian, moves), unit), pull)
    change = jnp.where(moves, change, 0)
    crosses = moves & (model.factors > 0) & (params * (params + change) <= 0)
    reach = jnp.where(crosses, -params / jnp.where(crosses, change, 1), jnp.inf)
    nearest = jnp.min(reach, initial=jnp.inf)
    stops = crosses & (reach <= nearest)
    return jnp.where(stops, 0, params + jnp.minimum(nearest, 1) * change), nearest < 1
