"""Scalar formulae without cancellation, shared by the records. All take and give float32 or float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.pairs import FORMATS, LOG_TWO, is_positive_and_finite, mantissa_and_exponent, pair_sum, rounded

# -- plain formulae: the oracle's --------------------------------------------------------------------------------------


def xlogx(x: Any) -> Any:
    """x·log x, with 0·log 0 = 0; NaN for negative x."""
    return xlogy(x, x)


def xlogy(x: Any, y: Any) -> Any:
    """x·log y, with 0·log y = 0; NaN for negative x or y."""
    none = (x == 0) & (y >= 0)
    return jnp.where(none, 0, jnp.where(x < 0, jnp.nan, x) * jnp.log(jnp.where(none, 1, y)))


# -- the whole range ---------------------------------------------------------------------------------------------------


def log(x: Any) -> Any:
    """log x, of subnormal numbers too, which the CPU's arithmetic takes for zero."""
    form = FORMATS[x.dtype]
    bits = jax.lax.bitcast_convert_type(x, form.integer)
    subnormal = (bits > 0) & ((bits >> form.digits) == 0)
    logarithm = jnp.log(jnp.where(subnormal, bits.astype(x.dtype), x))
    smallest = float(LOG_TWO) * (1 - form.bias - form.digits)
    return jnp.where(subnormal, logarithm + smallest, logarithm)


def quotient(a: Any, b: Any) -> Any:
    """a/b, by subnormal numbers too; the largest number where it overflows, so that it is infinite only at b = 0."""
    form = FORMATS[b.dtype]
    bits = jax.lax.bitcast_convert_type(b, form.integer)
    subnormal = (bits > 0) & ((bits >> form.digits) == 0)
    ratio = a / jnp.where(subnormal, bits.astype(b.dtype), b)
    power = form.bias - 1 + form.digits
    ratio = jnp.where(subnormal, ratio * 2.0 ** (power // 2) * 2.0 ** (power - power // 2), ratio)
    largest = float(jnp.finfo(a.dtype).max)
    return jnp.where(is_positive_and_finite(b) & jnp.isfinite(a), jnp.clip(ratio, -largest, largest), ratio)


def log_quotient(a: Any, b: Any) -> Any:
    """log(a/b) for non-negative a and b, subnormal ones too: no ratio leaves the range.

    It is k·log 2 + log(m_a/m_b) of a = m_a·2^i and b = m_b·2^j, with the ratio from √½ to √2 so that the two do not
    cancel. Where a is close to b it has the digits of the ratio, not those of the difference.
    """
    proper = is_positive_and_finite(a) & is_positive_and_finite(b)
    (m_a, i), (m_b, j) = mantissa_and_exponent(a), mantissa_and_exponent(b)
    ratio = m_a / m_b
    high, low = ratio > np.sqrt(2), ratio < np.sqrt(0.5)
    ratio = ratio * jnp.where(high, 0.5, jnp.where(low, 2, 1)).astype(a.dtype)
    k = jnp.where(proper, i - j + jnp.where(high, 1, jnp.where(low, -1, 0)), 0).astype(a.dtype)
    # The first part of log 2 has so few digits that its product with k is exact.
    first = 0.693359375
    return k * first + (jnp.log(jnp.where(proper, ratio, a / b)) + k * (float(LOG_TWO) - first))


def log1p(x: Any) -> Any:
    """log(1 + x). From -½ to -¼ XLA's own has no more than half of its digits in float64, and 1 + x has them all."""
    return jnp.where((x > -0.5) & (x < -0.25), jnp.log(1 + x), jnp.log1p(x))


# -- sums --------------------------------------------------------------------------------------------------------------

#: Arrays of fewer numbers are summed one by one by XLA, each rounding the same way where the terms are equal: in a row
#: of a thousand that is ten units of the last digit. Larger ones are summed in blocks.
_ONE_BY_ONE = 8192


def total(terms: Any, axis: Any) -> Any:
    """Σ terms over the axes (None: all), which are kept with length 1, for terms of one sign."""
    if terms.size < _ONE_BY_ONE:
        return rounded(pair_sum(terms, axis))
    return jnp.sum(terms, axis=axis, keepdims=True)


# -- almost equal numbers ----------------------------------------------------------------------------------------------


#: float dtype -> how many terms the series of the deviance and of the midpoint deviance take.
_SERIES_TERMS = {jnp.dtype(jnp.float32): (11, 21), jnp.dtype(jnp.float64): (25, 50)}


def deviance(a: Any, b: Any) -> Any:
    r"""a·log(a/b) - a + b: never negative, and of second order in a - b.

    For a close to b, with s = (a - b)/(a + b), it is (a - b)·s + 2a·(s³/3 + s⁵/5 + ...), where the first term
    dominates (Loader 2000). It is b where a = 0, +inf where a > 0 and b = 0, and NaN where one is negative.
    """
    difference, middle = a - b, 0.5 * a + 0.5 * b
    close = jnp.abs(difference) <= middle
    s = jnp.where(close, 0.5 * difference / jnp.where(middle == 0, 1, middle), 0)
    series = jnp.zeros_like(s)
    for n in range(_SERIES_TERMS[a.dtype][0], 0, -1):
        series = (series + 1 / (2 * n + 1)) * (s * s)
    near = s * (difference + a * (2 * series))
    far = jnp.where(a == 0, b, a * log_quotient(a, b) - difference)
    return jnp.where((a < 0) | (b < 0), jnp.nan, jnp.where(close, near, far))


def midpoint_deviance(a: Any, b: Any) -> Any:
    r"""½·a·log(a/m) + ½·b·log(b/m) with m = (a + b)/2: never negative, and of second order in a - b.

    With v = (a - b)/(a + b) it is m·(v²/2 + v⁴/12 + ... + v^2n/(2n(2n - 1)) + ...), a sum of positive terms.
    """
    m, half_difference = 0.5 * a + 0.5 * b, 0.5 * a - 0.5 * b
    close = jnp.abs(half_difference) <= 0.75 * m
    v = jnp.where(close, half_difference / jnp.where(m == 0, 1, m), 0)
    series = jnp.zeros_like(v)
    for n in range(_SERIES_TERMS[a.dtype][1], 0, -1):
        series = (series + 1 / (2 * n * (2 * n - 1))) * (v * v)
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    far = 0.5 * high * jnp.log(high / m) + jnp.where(low == 0, 0, 0.5 * low * log_quotient(low, m))
    return jnp.where((a < 0) | (b < 0), jnp.nan, jnp.where(close, m * series, far))


# -- infinite derivatives ----------------------------------------------------------------------------------------------


def along(derivative: Any, tangent: Any) -> Any:
    """derivative·tangent, where an infinite derivative times 0 is 0; it is linear in the tangent.

    ±inf is applied as two factors, the largest number and the largest number again, so that 0 stays 0 and any other
    tangent gives ±inf, in forward and in reverse mode.
    """
    largest = float(jnp.finfo(derivative.dtype).max)
    again = jnp.where(jnp.isinf(derivative), largest, 1).astype(derivative.dtype)
    return tangent * jnp.clip(derivative, -largest, largest) * again


def sum_along(derivative: Any, tangent: Any, axis: Any) -> Any:
    """Σ derivative·tangent over the axes, which are kept with length 1."""
    return jnp.sum(along(derivative, tangent), axis=axis, keepdims=True)
