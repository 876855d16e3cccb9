"""Entropies of an order: Rényi's and Tsallis', with Shannon's as the order 1."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from xentjax.care import anywhere, corrected
from xentjax.core.domains import Domain, Mask, Probabilities
from xentjax.core.op import op
from xentjax.core.rule import along
from xentjax.measures.entropy import Axis, entropy_gradient, entropy_sum
from xentjax.numerics import log, sum_along, xlogx
from xentjax.pairs import (
    FORMATS,
    Pair,
    add,
    as_pair,
    full_log_ratio,
    is_positive_and_finite,
    log_ratio,
    mantissa_and_exponent,
    multiply,
    pair_sum,
    rounded,
    scaled,
    select,
    two_sum,
)

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
def renyi_value(p: Any, alpha: Any, *, axis: Any) -> Any:
    # With S = Σ p^α and G = S - 1:  log S is log(1 + G), of the pair, where G is small.
    order, excess_order = _order(alpha, p.dtype)
    b, info = excess_order[0], jnp.finfo(p.dtype)
    power = _power_less_one(p, alpha)
    power_sum, excess = _power_sum(p, power, alpha, axis)
    entries = p.size / max(power_sum.size, 1)
    in_range = (power_sum > entries * info.tiny / info.eps) & (power_sum < info.max / 4) & jnp.isfinite(b)
    # p^(α-1) may be too small for the format where it is not over S.
    lost = (power < info.tiny) & (entries * power_sum < 1) & is_positive_and_finite(p)
    whole = two_sum(jnp.ones_like(excess), excess)
    log_power_sum = jnp.where(_is_close_to_one(power_sum), log(whole), jnp.log(jnp.where(in_range, power_sum, 1)))

    def by_shares(p: Any, value: Any, power: Any, power_sum: Any) -> Any:
        # Where S leaves the range the largest entry M is taken out of it, and out of p^(α-1):
        # log S/(1-α) = -(log M + (log M + log Σ (p/M)^α)/(α-1)).
        largest = jnp.max(p, axis=axis, keepdims=True)
        below = full_log_ratio(p, largest + jnp.zeros_like(p))
        share_sum = rounded(pair_sum(jnp.where(p == 0, 0, _exp(_times(order, below))), axis))
        far = -(log(largest) + (log(largest) + jnp.log(share_sum)) / b)
        share, exponent = _exp_parts(_times(excess_order, below))
        mantissa, unit = mantissa_and_exponent(largest)
        return jnp.where(in_range, value, far), _joined(share, exponent - unit), share_sum * mantissa

    value, power, divisor = jax.lax.cond(
        anywhere(lost | ~in_range),
        *(by_shares, lambda p, *others: others),
        *(p, -log_power_sum / b, power, power_sum),
    )
    return _for_order(b, entropy_sum(p, log(p), axis), value), (power, divisor)


@renyi_entropy.partial("p")
def _(saved: Any, p: Any, alpha: Any, *, axis: Any) -> Any:
    power, divisor = saved  # p^(α-1)/S is their quotient; α/(1-α) = -1 - 1/(α-1)
    b = _order(alpha, p.dtype)[1][0]
    gradient = jnp.where(p == 0, _gradient_at_zero(b), (-1 - 1 / b) * (power / divisor))
    return _for_order(b, entropy_gradient(log(p), p), gradient)


@renyi_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, alpha: Any, *, axis: Any) -> Any:
    # With w = p^(α-1)/S and the share u = p^α/S the gradient is α/(1-α)·w, and
    # dw_i = (α-1) p_i^(α-2)/S (1 - α/(α-1) u_i) t_i - α w_i Σ_{j≠i} w_j t_j,  with 1 - α/(α-1) u = (1-u) - u/(α-1).
    t, order, b = tangents["p"], _order(alpha, p.dtype)[0][0], _order(alpha, p.dtype)[1][0]
    _, (power, divisor) = renyi_value(p, alpha, axis=axis)
    weight, whole = jnp.where(p == 0, 0, power / divisor), jnp.where(p == 0, 0, p * power)
    curvature = _less_one_more(power, p, b)
    own = jnp.where(curvature == 0, 0, -order * curvature / divisor) * ((divisor - whole) - whole / b) / divisor
    other = jnp.where(weight == 0, 0, (1 + 1 / b) * order * weight)
    return (_for_order(b, -along(1 / p, t), along(own, t) + other * (sum_along(weight, t, axis=axis) - weight * t)),)


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
    b, power = _order(alpha, p.dtype)[1][0], _power_less_one(p, alpha)
    _, excess = _power_sum(p, power, alpha, axis)
    above = jnp.max(p, axis=axis, keepdims=True) > 1
    value = jnp.where(jnp.isinf(b), jnp.where(above, -jnp.inf, 0), -excess / b)
    return _for_order(b, entropy_sum(p, log(p), axis), value), power


@tsallis_entropy.partial("p")
def _(power: Any, p: Any, alpha: Any, *, axis: Any) -> Any:
    b = _order(alpha, p.dtype)[1][0]
    gradient = (-1 - 1 / b) * power
    gradient = jnp.where(p == 0, _gradient_at_zero(b), jnp.where(jnp.isinf(b) & (p == 1), -jnp.inf, gradient))
    return _for_order(b, entropy_gradient(log(p), p), gradient)


@tsallis_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, alpha: Any, *, axis: Any) -> Any:
    # d(α/(1-α) p^(α-1)) = -α p^(α-2) dp.
    t, order, b = tangents["p"], _order(alpha, p.dtype)[0][0], _order(alpha, p.dtype)[1][0]
    own = -order * _less_one_more(_power_less_one(p, alpha), p, b)
    return (_for_order(b, -along(1 / p, t), along(own, t)),)


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


def _exp_parts(x: Pair) -> tuple[Any, Any]:
    """exp of a pair as m·2^k, with m close to 1 unless k is beyond all formats' exponents."""
    form = FORMATS[x[0].dtype]
    k = jnp.round(jnp.clip(x[0] * np.log2(np.e).astype(x[0].dtype), -4000, 4000))
    rest = ((x[0] - k * form.log_two) - k * form.log_two_rest) + x[1]
    return jnp.exp(rest), jnp.where(jnp.isnan(k), 0, k).astype(jnp.int32)


def _joined(mantissa: Any, exponent: Any) -> Any:
    """m·2^k."""
    return scaled((mantissa, jnp.zeros_like(mantissa)), exponent)[0]


def _exp(x: Pair) -> Any:
    """exp of a pair."""
    return _joined(*_exp_parts(x))


def _expm1(x: Pair) -> Any:
    """exp - 1 of a pair."""
    value = jnp.expm1(x[0])
    return jnp.where(jnp.isfinite(value), value + (value + 1) * x[1], value)


def _log(p: Any, alpha: Any) -> Pair:
    """log p as a pair. A power multiplies what it lacks, which a power over their sum can show from the order 3 on."""
    is_low = isinstance(alpha, (int, float)) and abs(alpha - 1) <= 2
    return log_ratio(p) if is_low else full_log_ratio(p)


def _power_less_one(p: Any, alpha: Any) -> Any:
    """p^(α-1)."""
    if isinstance(alpha, (int, float)) and alpha == 2:
        return p
    return _exp(_times(_order(alpha, p.dtype)[1], _log(p, alpha)))


def _less_one_more(power: Any, p: Any, b: Any) -> Any:
    """p^(α-2) from p^(α-1): at p = 0 it is 1 at the order 2, and infinite between the orders 1 and 2."""
    at_zero = jnp.where(b == 1, 1, jnp.where((b > 0) & (b < 1), jnp.inf, 0))
    return jnp.where(p == 0, at_zero, power / p)


def _is_close_to_one(power_sum: Any) -> Any:
    return (power_sum > 0.5) & (power_sum < 2)


def _power_sum(p: Any, power: Any, alpha: Any, axis: Any) -> tuple[Any, Any]:
    """S = Σ p^α, and S - 1.

    If some sum is close to 1, S - 1 is taken apart: p^α is p + p·expm1((α-1) log p) where p^(α-1) is close to 1, and
    the sum of those p less 1 is exact.
    """

    def apart(p: Any, power: Any) -> Any:
        exponent = _times(_order(alpha, p.dtype)[1], _log(p, alpha))
        close = jnp.abs(exponent[0]) < 0.75
        terms = jnp.where(p == 0, 0, p * jnp.where(close, _expm1(exponent), power))
        less_one = add(pair_sum(jnp.where(close, p, 0), axis), as_pair(jnp.full((), -1, p.dtype)))
        return rounded(add(less_one, pair_sum(terms, axis)))

    power_sum = rounded(pair_sum(jnp.where(p == 0, 0, p * power), axis))
    return power_sum, corrected(power_sum - 1, _is_close_to_one(power_sum), apart, p, power)
