"""Accelerated proximal gradient descent, for objectives with an L1 penalty and any number of parameters."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.solvers.objective import Point, evaluate
from xentjax.solvers.penalty import l1_factors, soft_threshold

#: By how much a bound of the curvature that proved too small grows, and how far it may fall again in each step.
_GROWTH, _DECAY = 2.0, 0.9

#: Growths at most in one step: beyond 2^100 the step is rounding.
_GROWTHS = 100


class Momentum(NamedTuple):
    """What one step hands to the next."""

    before: Any  # the parameters before the last step
    weight: jax.Array  # t of the sequence of Nesterov's weights
    bound: jax.Array  # of the gradient's Lipschitz constant, as far as it is known


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProximalGradient:
    r"""Proximal gradient descent with momentum (FISTA) that restarts, for a smooth function f with an L1 penalty.

    .. math::
      z = \beta_k + \tfrac{t_{k-1} - 1}{t_k}(\beta_k - \beta_{k-1}), \qquad
      \beta_{k+1} = S_{\eta\lambda}(z - \eta\nabla f(z)), \qquad S_\tau(v) = \operatorname{sign}(v)\max(|v| - \tau, 0)

    The momentum is dropped where it points away from the step, :math:`\langle z - \beta_{k+1}, \beta_{k+1} -
    \beta_k\rangle > 0`. A step takes two evaluations, at z and at the new parameters; memory is that of a few copies
    of the parameters. Without a penalty it is Nesterov's accelerated gradient descent.

    Args:
      step_size: η, a number or an array of shape ``[]``. By default 1/L with the objective's bound L of the gradient's
        Lipschitz constant. Where the objective has none, L is found on the way: it doubles until
        :math:`\langle \nabla f(\beta_{k+1}) - \nabla f(z), \beta_{k+1} - z\rangle \le \tfrac{L}{2}\|\beta_{k+1} -
        z\|^2`, which needs no differences of values and so works to the last digit.

    Source: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009), 183-202; O'Donoghue and Candès, Found. Comput. Math. 15
    (2015), 715-732.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> target = jnp.array([3.0, 0.5, -2.0])
      >>> objective = xj.Objective(lambda p: jnp.sum((p - target) ** 2) / 2, l1=1.0)
      >>> xj.minimize(objective, jnp.zeros(3), xj.ProximalGradient()).params.round(4)
      Array([ 2.,  0., -1.], dtype=float32)
    """

    step_size: Any = None
    handles_l1: ClassVar[bool] = True

    def init(self, objective: Any, point: Point) -> Momentum:
        dtype = point.value.dtype
        known = self._known_bound(objective)
        bound = jnp.ones((), dtype) if known is None else known.astype(dtype)
        return Momentum(point.params, jnp.ones((), dtype), bound)

    def _known_bound(self, objective: Any) -> jax.Array | None:
        if self.step_size is not None:
            return 1 / jnp.asarray(self.step_size)
        return objective.lipschitz() if hasattr(objective, "lipschitz") else None

    def step(self, objective: Any, point: Point, state: Momentum) -> tuple[Point, Momentum]:
        weight = (1 + jnp.sqrt(1 + 4 * state.weight**2)) / 2
        share = (state.weight - 1) / weight
        ahead = jax.tree.map(lambda p, b: p + share.astype(p.dtype) * (p - b), point.params, state.before)
        there = evaluate(objective, ahead)
        factors = l1_factors(objective, point.params)

        def moved(bound: Any) -> Any:
            smooth = jax.tree.map(lambda z, g: z - g / bound.astype(z.dtype), ahead, there.gradient)
            if factors is None:
                return smooth
            return jax.tree.map(lambda v, f: soft_threshold(v, f / bound.astype(v.dtype)), smooth, factors)

        if self.step_size is not None or self._has_bound(objective):
            new, bound = evaluate(objective, moved(state.bound)), state.bound
        else:
            new, bound = self._searched(objective, there, moved, state.bound)
        against = _inner(_difference(ahead, new.params), _difference(new.params, point.params)) > 0
        weight = jnp.where(against, 1, weight)
        return new, Momentum(point.params, weight, bound)

    def _has_bound(self, objective: Any) -> bool:
        return hasattr(objective, "lipschitz") and jax.eval_shape(objective.lipschitz) is not None

    def _searched(self, objective: Any, there: Point, moved: Any, bound: Any) -> tuple[Point, Any]:
        """The new point, and the bound of the curvature on the way to it."""

        def grown(search: Any) -> Any:
            _, bound, tries = search
            return evaluate(objective, moved(bound * _GROWTH)), bound * _GROWTH, tries + 1

        def too_long(search: Any) -> Any:
            new, bound, tries = search
            change = _difference(new.params, there.params)
            turned = _inner(_difference(new.gradient, there.gradient), change)
            return ~(turned <= bound / 2 * _inner(change, change)) & (tries < _GROWTHS)

        first = bound * _DECAY
        search = evaluate(objective, moved(first)), first, jnp.zeros((), jnp.int32)
        new, bound, _ = jax.lax.while_loop(too_long, grown, search)
        return new, bound


def _difference(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def _inner(a: Any, b: Any) -> Any:
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
