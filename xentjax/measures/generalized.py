"""Entropies of an order: Rényi's and Tsallis', with Shannon's as the order 1."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from xentjax.core.domains import Domain, Mask, Probabilities
from xentjax.core.op import op
from xentjax.measures.entropy import Axis, entropy_gradient, entropy_sum
from xentjax.numerics import along, log1p, sum_along, xlogx
from xentjax.pairs import Pair, add, as_pair, log_ratio, multiply, negative, pair_sum, rounded, select

_DOMAIN = Domain(
    p=Probabilities("B K"),
    options=(
        {"alpha": 2.0},
        {"alpha": 0.5, "keepdims": True},
        {"alpha": 1.0, "where": Mask("B K")},
        {"alpha": 5.0, "axis": 0},
    ),
)


@op(
    wrt=("p",),
    domain=_DOMAIN,
    group="entropy",
    formula="log(Σ p^α) / (1-α)",
    gradient="α/(1-α) p^(α-1) / Σ p^α",
    source="Rényi 1961",
    fill={"p": 0.0},
)
def renyi_entropy(
    p: ArrayLike,
    alpha: float | ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Rényi entropy of order α.

    .. math:: H_\alpha(p) = \frac{1}{1 - \alpha} \log \sum_i p_i^\alpha, \qquad
       \frac{\partial H_\alpha}{\partial p_i} = \frac{\alpha}{1 - \alpha} \frac{p_i^{\alpha - 1}}{\sum_j p_j^\alpha}

    with the limits: the log of the number of non-zero entries at α = 0, Shannon's entropy at α = 1, -log max p at
    α = ∞ (where entries that tie for the maximum share the gradient).

    Args:
      p: non-negative numbers, a distribution along ``axis``. They are not renormalised.
      alpha: the order, a number ≥ 0; it has no derivative.
      axis: the axis, or axes, of the distribution; None for all.
      where: which entries exist, of p's shape. The others count as 0 and have gradient 0, whatever stands there.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axis with length 1.

    Returns:
      The entropy without ``axis``, in p's dtype (16-bit floats are computed in float32).

    Near α = 1 the sum is taken as 1 + (Σ p - 1) + Σ p·expm1((α-1) log p), so that nothing cancels. The formula is
    that for p as it is: where p does not sum to 1 exactly, log(Σ p)/(1-α) grows without bound as α goes to 1.
    Zero entries have gradient 0 for α > 1, +inf for 0 < α ≤ 1 and 0 for α = 0. A negative entry gives NaN.

    Raises:
      ValueError: for a negative or NaN alpha or one that is not a scalar, an axis that is missing or empty, a mask of
        another shape, or a base that is none. (A traced alpha below 0 gives NaN.)

    >>> renyi_entropy(jnp.array([0.5, 0.25, 0.25]), jnp.inf, base=2)
    Array(1., dtype=float32)
    """
    if isinstance(alpha, (int, float)) and alpha in (1, math.inf):
        if alpha == 1:
            return -jnp.sum(xlogx(p), axis=axis, keepdims=keepdims)
        return -jnp.log(jnp.max(jnp.asarray(p), axis=axis, keepdims=keepdims))
    return jnp.log(jnp.sum(_power(p, alpha), axis=axis, keepdims=keepdims)) / (1 - alpha)


@renyi_entropy.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    _require_order("renyi_entropy", bound["alpha"])
    return bound


@renyi_entropy.value
def _(p: Any, alpha: Any, *, axis: Any) -> Any:
    # With S = Σ p^α and G = S - 1:  log S is log1p(G) where G is small. Where S leaves the range the largest entry M is
    # taken out of it,  log S/(1-α) = -(log M + (log M + log Σ (p/M)^α)/(α-1)).
    order, excess_order = _order(alpha, p.dtype)
    info = jnp.finfo(p.dtype)
    logarithm = log_ratio(p)
    excess, power_sum = _excess(p, logarithm, excess_order, axis), _power_sum(p, logarithm, excess_order, axis)
    share_sum, largest = _share_sum(p, logarithm, order, axis)
    in_range = (power_sum > 4 * info.tiny) & (power_sum < info.max / 4)
    log_power_sum = jnp.where(jnp.abs(excess) < 0.5, log1p(excess), jnp.log(jnp.where(in_range, power_sum, 1)))
    b = excess_order[0]
    far = -(rounded(largest) + (rounded(largest) + jnp.log(share_sum)) / b)
    value = jnp.where(in_range & jnp.isfinite(b), -log_power_sum / b, far)
    shannon = entropy_sum(p, axis)
    return _for_order(b, shannon, value), (logarithm, share_sum, largest)


@renyi_entropy.partial("p")
def _(saved: Any, p: Any, alpha: Any, *, axis: Any) -> Any:
    b = _order(alpha, p.dtype)[1][0]
    gradient = jnp.where(p == 0, _gradient_at_zero(b), (-1 - 1 / b) * _renyi_weight(saved, p, alpha, axis))
    return _for_order(b, entropy_gradient(p), gradient)


@renyi_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, alpha: Any, *, axis: Any) -> Any:
    # With w = p^(α-1)/S the gradient is α/(1-α)·w, and dw_i = w_i ((α-1) t_i/p_i - α Σ_j w_j t_j).
    t = tangents["p"]
    order, excess_order = _order(alpha, p.dtype)
    b = excess_order[0]
    logarithm = log_ratio(p)
    saved = logarithm, *_share_sum(p, logarithm, order, axis)
    weight = jnp.where(p == 0, 0, _renyi_weight(saved, p, alpha, axis))
    total = sum_along(weight, t, axis=axis)
    own = jnp.where(weight == 0, 0, -order[0] * weight / p)
    general = along(own, t) + jnp.where(weight == 0, 0, (1 + 1 / b) * order[0] * weight) * total
    return (_for_order(b, -along(1 / p, t), general),)


@op(
    wrt=("p",),
    domain=_DOMAIN,
    group="entropy",
    formula="(1 - Σ p^α) / (α-1)",
    gradient="α/(1-α) p^(α-1)",
    source="Havrda & Charvát 1967; Tsallis 1988",
    fill={"p": 0.0},
)
def tsallis_entropy(
    p: ArrayLike,
    alpha: float | ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Tsallis entropy of order α.

    .. math:: S_\alpha(p) = \frac{1 - \sum_i p_i^\alpha}{\alpha - 1}, \qquad
       \frac{\partial S_\alpha}{\partial p_i} = \frac{\alpha}{1 - \alpha}\, p_i^{\alpha - 1}

    with the limits: the number of non-zero entries less 1 at α = 0, Shannon's entropy in nats at α = 1, 0 at α = ∞.

    Arguments, edges and errors are those of :func:`renyi_entropy`, but it has no logarithm to give a base to, and as
    there the formula is that for p as it is: (1 - Σ p)/(α-1) is part of it. No order makes it cancel: it is computed
    as -((Σ p - 1) + Σ p·expm1((α-1) log p))/(α-1).

    >>> tsallis_entropy(jnp.array([0.5, 0.25, 0.25]), 2)
    Array(0.625, dtype=float32)
    """
    if isinstance(alpha, (int, float)) and alpha in (1, math.inf):
        p = jnp.asarray(p)
        terms = -xlogx(p) if alpha == 1 else jnp.where(p > 1, -jnp.inf, 0 * p)
        return jnp.sum(terms, axis=axis, keepdims=keepdims)
    return (1 - jnp.sum(_power(p, alpha), axis=axis, keepdims=keepdims)) / (alpha - 1)


@tsallis_entropy.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    _require_order("tsallis_entropy", bound["alpha"])
    return bound


@tsallis_entropy.value
def _(p: Any, alpha: Any, *, axis: Any) -> Any:
    _, excess_order = _order(alpha, p.dtype)
    b, logarithm = excess_order[0], log_ratio(p)
    value = -_excess(p, logarithm, excess_order, axis) / b
    above = jnp.max(p, axis=axis, keepdims=True) > 1
    value = jnp.where(jnp.isinf(b), jnp.where(above, -jnp.inf, 0), value)
    return _for_order(b, entropy_sum(p, axis), value), logarithm


@tsallis_entropy.partial("p")
def _(logarithm: Any, p: Any, alpha: Any, *, axis: Any) -> Any:
    excess_order = _order(alpha, p.dtype)[1]
    b = excess_order[0]
    gradient = (-1 - 1 / b) * _exp(_times(excess_order, logarithm))
    gradient = jnp.where(p == 0, _gradient_at_zero(b), jnp.where(jnp.isinf(b) & (p == 1), -jnp.inf, gradient))
    return _for_order(b, entropy_gradient(p), gradient)


@tsallis_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, alpha: Any, *, axis: Any) -> Any:
    # d(α/(1-α) p^(α-1)) = -α p^(α-2) dp.
    order, excess_order = _order(alpha, p.dtype)
    power = _exp(_times(excess_order, log_ratio(p)))
    own = jnp.where(power == 0, 0, -order[0] * power / p)
    return (_for_order(excess_order[0], -along(1 / p, tangents["p"]), along(own, tangents["p"])),)


# -- powers of p -------------------------------------------------------------------------------------------------------


def _require_order(function: str, alpha: Any) -> None:
    if getattr(alpha, "shape", ()) != ():
        raise ValueError(f"{function}: alpha has shape {alpha.shape}, but needs (), a scalar")
    if isinstance(alpha, (int, float)) and not alpha >= 0:
        raise ValueError(f"{function}: alpha must be a number of at least 0, got {alpha}")


def _order(alpha: Any, dtype: Any) -> tuple[Pair, Pair]:
    """α and α - 1 as pairs: a Python number has more digits than float32, and near 1 the difference needs them."""

    def pair(number: float) -> Pair:
        high = jnp.asarray(number, dtype)
        low = number - float(dtype.type(number)) if math.isfinite(number) else 0.0
        return high, jnp.asarray(low, dtype)

    if isinstance(alpha, (int, float)):
        return pair(float(alpha)), pair(float(alpha) - 1)
    order = as_pair(jnp.where(alpha >= 0, alpha, jnp.nan).astype(dtype))
    return order, add(order, as_pair(jnp.full((), -1, dtype)))


def _for_order(b: Any, shannon: Any, general: Any) -> Any:
    """Shannon's where α - 1 is 0, otherwise the general one."""
    return jnp.where(b == 0, shannon, general)


def _gradient_at_zero(b: Any) -> Any:
    """What α/(1-α)·p^(α-1) tends to at p = 0: +inf below the order 1, 0 above it, and 0 at the order 0."""
    return jnp.where((b > -1) & (b < 0), jnp.inf, jnp.where(jnp.isnan(b), jnp.nan, 0))


def _power(p: Any, alpha: Any) -> Any:
    """p^α, with 0^0 = 0: the plain formula."""
    p = jnp.asarray(p)
    positive = p > 0
    return jnp.where(positive, jnp.where(positive, p, 1) ** alpha, jnp.where(p == 0, 0, jnp.nan))


def _times(order: Pair, logarithm: Pair) -> Pair:
    """order·log p as a pair; 0 where log p is 0, as the plain product where that is infinite."""
    plain = order[0] * logarithm[0]
    product = select(jnp.isfinite(plain), multiply(order, logarithm), as_pair(plain))
    return select(logarithm[0] == 0, as_pair(jnp.zeros_like(plain)), product)


def _exp(x: Pair) -> Any:
    """exp of a pair: e^high·(1 + low)."""
    value = jnp.exp(x[0])
    return jnp.where(jnp.isfinite(value), value + value * x[1], value)


def _expm1(x: Pair) -> Any:
    """exp - 1 of a pair."""
    value = jnp.expm1(x[0])
    return jnp.where(jnp.isfinite(value), value + (value + 1) * x[1], value)


def _excess(p: Any, logarithm: Pair, excess_order: Pair, axis: Any) -> Any:
    """Σ p^α - 1, with p^α = p + p·expm1((α-1) log p) where these two do not cancel: where p^(α-1) is close to 1.

    The sum of those p less 1 is exact.
    """
    exponent = _times(excess_order, logarithm)
    close = jnp.abs(exponent[0]) < 0.75
    powers = jnp.where(p == 0, 0, p * jnp.where(close, _expm1(exponent), _exp(exponent)))
    less_one = add(pair_sum(jnp.where(close, p, 0), axis), as_pair(jnp.full((), -1, p.dtype)))
    return rounded(add(less_one, pair_sum(powers, axis)))


def _power_sum(p: Any, logarithm: Pair, excess_order: Pair, axis: Any) -> Any:
    """Σ p^α = Σ p·p^(α-1)."""
    return rounded(pair_sum(jnp.where(p == 0, 0, p * _exp(_times(excess_order, logarithm))), axis))


def _share_sum(p: Any, logarithm: Pair, order: Pair, axis: Any) -> tuple[Any, Pair]:
    """Σ (p/M)^α, and log M, for the largest entry M."""
    largest = log_ratio(jnp.max(p, axis=axis, keepdims=True))
    shares = jnp.where(p == 0, 0, _exp(_times(order, add(logarithm, negative(largest)))))
    return rounded(pair_sum(shares, axis)), largest


def _renyi_weight(saved: Any, p: Any, alpha: Any, axis: Any) -> Any:
    """p^(α-1)/Σ p^α = (p/M)^(α-1) / (M Σ (p/M)^α) for the largest entry M: so it stays in the range."""
    logarithm, share_sum, largest = saved
    power = _exp(_times(_order(alpha, p.dtype)[1], add(logarithm, negative(largest))))
    return power / share_sum / jnp.max(p, axis=axis, keepdims=True)
