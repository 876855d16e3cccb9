r"""Arithmetic with twice the digits, and the logarithm of a ratio in it.

A measure is a sum of terms that may cancel: the entropy of a table that does not sum to one, the divergence of two
distributions that are almost equal. Rounding each term once is then already too much, so the terms and their sum are
carried as a *pair*: an unevaluated sum ``(high, low)`` of two floats, with ``low`` below the last digit of ``high``.
Sums and products of two floats are exact as pairs (Dekker 1971), without a wider type.

All functions take and give float32 or float64. They compute values: derivatives are the business of the records.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary float format, log 2 as three floats of it, and how many terms the series of artanh takes: for a float,
    and for a pair, of which the first ``pair_terms`` are pairs themselves.

    The first part of log 2 has so few digits that its product with an exponent is exact.
    """

    integer: Any
    digits: int
    low_digits: int
    terms: int
    pair_terms: int
    all_terms: int
    log_two: float
    log_two_rest: float
    log_two_last: float

    @property
    def bias(self) -> int:
        return 127 if self.digits == 23 else 1023

    @property
    def small(self) -> float:
        """Below it a number may be lifted without leaving the range; above it no digit of a sum is subnormal."""
        return 2.0 ** (self.digits + 4 - self.bias)


FORMATS = {
    jnp.dtype(jnp.float32): Format(
        np.int32, 23, 12, 5, 3, 9, 0.693359375, -0.00021219444170128554, 1.6465949582897082e-12
    ),
    jnp.dtype(jnp.float64): Format(
        np.int64, 52, 27, 11, 9, 20, 0.6931471803691238, 1.9082149292705877e-10, 1.1612227229362532e-26
    ),
}


# -- pairs -------------------------------------------------------------------------------------------------------------


def two_sum(a: Any, b: Any) -> Pair:
    """a + b exactly (Dekker).

    The larger of the two is selected, instead of Knuth's branchless form, because XLA rewrites (a + c) - c to a where
    c is a constant, and an argument that a caller closes over is one.
    """
    swap = jnp.abs(a) < jnp.abs(b)
    return _settled(jnp.where(swap, b, a), jnp.where(swap, a, b))


def two_product(a: Any, b: Any) -> Pair:
    """a·b exactly (Dekker), for finite factors.

    The factors are cut into halves by their bits. All four products of halves are exact, so it makes no difference
    whether the compiler contracts a multiplication and an addition to one instruction.
    """
    a_top, b_top = _top_half(a), _top_half(b)
    a_low, b_low = a - a_top, b - b_top
    high, first = _settled(a_top * b_top, a_top * b_low)
    high, second = _settled(high, a_low * b_top)
    return _settled(high, (first + second) + a_low * b_low)


def add(x: Pair, y: Pair) -> Pair:
    """The sum of two pairs; of infinite ones as of floats."""
    high, low = two_sum(x[0], y[0])
    return _settled(high, jnp.where(jnp.isfinite(high), low + (x[1] + y[1]), 0))


def multiply(x: Pair, y: Pair) -> Pair:
    """The product of two finite pairs."""
    high, low = two_product(x[0], y[0])
    return _settled(high, low + (x[0] * y[1] + x[1] * y[0]))


def divide(x: Pair, y: Pair) -> Pair:
    """The quotient of two finite pairs: one division, corrected by what it leaves."""
    high = x[0] / y[0]
    product, error = two_product(high, y[0])
    return _settled(high, (((x[0] - product) - error) + (x[1] - high * y[1])) / y[0])


def negative(x: Pair) -> Pair:
    """-x."""
    return -x[0], -x[1]


def select(condition: Any, x: Pair, y: Pair) -> Pair:
    """x where the condition holds, otherwise y."""
    return jnp.where(condition, x[0], y[0]), jnp.where(condition, x[1], y[1])


def as_pair(x: Any) -> Pair:
    """A float, or a pair, as a pair."""
    return x if isinstance(x, tuple) else (x, jnp.zeros_like(x))


def rounded(x: Pair) -> Any:
    """The pair as one float; where the high part is not finite, it alone."""
    return jnp.where(jnp.isfinite(x[0]), x[0] + x[1], x[0])


def weighted(weight: Any, x: Pair) -> Pair:
    """weight·x, with 0·anything = 0, and ±inf or NaN as the plain product gives them."""
    plain = weight * x[0]
    product = select(jnp.isfinite(plain), multiply(as_pair(weight), x), as_pair(plain))
    return select(weight == 0, as_pair(jnp.zeros_like(plain)), product)


def pair_sum(terms: Any, axis: Any) -> Pair:
    """The sum of floats or of pairs over the axes (None: all), which are kept with length 1.

    Every term is cut at one place, the last digit of a power of two σ that exceeds twice Σ|terms|: (x + σ) - σ is a
    multiple of it. Such multiples add up without any rounding, in whatever order a compiler chooses; the rest of the
    terms is so small that its rounding is far below the last digit of the sum (Rump, Ogita & Oishi 2008). These are
    sums without a carry, so they are vectorised.
    """
    high, low = as_pair(terms)
    total = jnp.sum(high, axis=axis, keepdims=True)
    unit = _power_above(jnp.sum(jnp.abs(high), axis=axis, keepdims=True))
    # The compiler computes the terms once for each sum. The maximum, which changes nothing, keeps it from contracting
    # a product and the addition that cuts it in one of them only, which would cut them in two ways.
    high = jnp.maximum(high, -jnp.finfo(high.dtype).max)
    top = (high + unit) - unit
    low = jnp.sum((high - top) + low, axis=axis, keepdims=True)
    top = jnp.sum(top, axis=axis, keepdims=True)
    exact = jnp.isfinite(total) & jnp.isfinite(top)
    top, low = _settled(top, low)
    return jnp.where(exact, top, total), jnp.where(exact, low, 0)


def _power_above(size: Any) -> Any:
    """A power of two above twice a positive number (at most the largest one)."""
    form = FORMATS[size.dtype]
    exponent = jax.lax.bitcast_convert_type(size, form.integer) >> form.digits
    return jax.lax.bitcast_convert_type(jnp.minimum(exponent + 2, 2 * form.bias) << form.digits, size.dtype)


def _settled(high: Any, low: Any) -> Pair:
    """high + low exactly, for |high| ≥ |low|: the low part ends up below the last digit of the high one."""
    total = high + low
    return total, low - (total - high)


def _top_half(x: Any) -> Any:
    """The float with the lower half of its digits cut off."""
    form = FORMATS[x.dtype]
    bits = jax.lax.bitcast_convert_type(x, form.integer)
    return jax.lax.bitcast_convert_type(bits & form.integer(-(1 << form.low_digits)), x.dtype)


# -- powers of two -----------------------------------------------------------------------------------------------------


def scaled(x: Pair, exponent: Any) -> Pair:
    """x·2^exponent for integer exponents of any size, of an x of the size of one."""
    form = FORMATS[x[0].dtype]
    exponent = jnp.clip(exponent, 2 - 2 * form.bias, 2 * form.bias).astype(form.integer)
    for shift in (exponent >> 1, (exponent + 1) >> 1):
        factor = jax.lax.bitcast_convert_type((shift + form.bias) << form.digits, x[0].dtype)
        x = x[0] * factor, x[1] * factor
    return x


def lifted(x: Any) -> Any:
    """x·2^(digits + 3), which is a normal number for a subnormal x, too."""
    form = FORMATS[x.dtype]
    bits = jax.lax.bitcast_convert_type(x, form.integer)
    of_bits = bits.astype(x.dtype) * 2.0 ** (4 - form.bias)
    return jnp.where((bits >> form.digits) == 0, of_bits, x * 2.0 ** (form.digits + 3))


def mantissa_and_exponent(x: Any) -> tuple[Any, Any]:
    """x = m·2^k with 1 ≤ m < 2, for a positive finite x.

    It is read from the bits, because arithmetic on the CPU flushes subnormal numbers to zero.
    """
    form = FORMATS[x.dtype]
    bits = jax.lax.bitcast_convert_type(x, form.integer)
    subnormal = (bits >> form.digits) == 0
    bits = jnp.where(subnormal, jax.lax.bitcast_convert_type(bits.astype(x.dtype), form.integer), bits)
    exponent = (bits >> form.digits) - form.bias - jnp.where(subnormal, form.bias - 1 + form.digits, 0)
    mantissa = (bits & form.integer((1 << form.digits) - 1)) | form.integer(form.bias << form.digits)
    return jax.lax.bitcast_convert_type(mantissa, x.dtype), exponent.astype(jnp.int32)


def is_positive_and_finite(x: Any) -> Any:
    """From the bits, so that a subnormal number counts as positive."""
    bits = jax.lax.bitcast_convert_type(x, FORMATS[x.dtype].integer)
    return (bits > 0) & jnp.isfinite(x)


def largest_of(x: Any, axis: Any) -> Any:
    """The maximum of non-negative numbers by their bits, which the CPU tells apart where all are subnormal, too."""
    bits = jax.lax.bitcast_convert_type(x, FORMATS[x.dtype].integer)
    return jax.lax.bitcast_convert_type(jnp.max(bits, axis=axis, keepdims=True), x.dtype)


# -- logarithms --------------------------------------------------------------------------------------------------------


def log_parts(a: Any, b: Any, shift: Any = 0) -> tuple[Any, Any]:
    r"""log(a / (b·2^shift)), for non-negative floats or pairs, as two floats: k·log 2 but for its last digits, and the
    rest, which is no larger than 0.35. Where the logarithm is infinite or none, the first is it, and the rest is 0.

    With a = m_a·2^i and b·2^shift = m_b·2^(i - k), the exponents chosen such that m_a/m_b lies in [√½, √2],

        log(a/b) = k·log 2 + 2 artanh s = k·log 2 + 2s + 2s(s²/3 + s⁴/5 + ...),   s = (m_a - m_b)/(m_a + m_b),

    in which the difference is exact: nothing cancels where a is close to b, and no ratio can overflow.
    """
    (a, m_a, a_low, i), (b, m_b, b_low, j) = _with_mantissa(a), _with_mantissa(b)
    form = FORMATS[m_a.dtype]
    factor, extra = _towards(m_a, m_b)
    k = (i - j - shift + extra).astype(m_a.dtype)
    two_s = ((m_a * factor - m_b) + (a_low * factor - b_low)) / (0.5 * (m_a * factor + m_b))
    rest = two_s + (two_s * artanh_series(0.25 * (two_s * two_s), form.terms) + k * form.log_two_rest)
    proper, limit = _limit(a, b)
    return jnp.where(proper, k * form.log_two, limit), jnp.where(proper, rest, 0)


def log_ratio(a: Any, b: Any = None) -> Pair:
    """log(a/b), or log a, as a pair: with all digits of k·log 2, and those of a float of the rest."""
    high, low = _settled(*log_parts(a, jnp.ones_like(a) if b is None else b))
    return high, jnp.where(jnp.isfinite(high), low, 0)


def full_log_ratio(a: Any, b: Any = None) -> Pair:
    """log(a/b), or log a, with twice the digits: the series of :func:`log_parts` in pairs, up to the terms of which a
    float has all the digits that the sum needs."""
    b = jnp.ones_like(a) if b is None else b
    (m_a, i), (m_b, j) = mantissa_and_exponent(a), mantissa_and_exponent(b)
    form = FORMATS[m_a.dtype]
    factor, extra = _towards(m_a, m_b)
    k, m_a = (i - j + extra).astype(m_a.dtype), m_a * factor
    s = divide(as_pair(m_a - m_b), two_sum(m_a, m_b))
    square = multiply(s, s)
    series = as_pair(artanh_series(square[0], form.all_terms, form.pair_terms + 1))
    for n in range(form.pair_terms, 0, -1):
        share = Fraction(1, 2 * n + 1)
        high = m_a.dtype.type(share)
        low = m_a.dtype.type(share - Fraction(float(high)))
        series = multiply(add(series, (jnp.full_like(m_a, high), jnp.full_like(m_a, low))), square)
        # Each term uses the one before many times over: a compiler that fused them all would copy it as often.
        series = jax.lax.optimization_barrier(series)
    two_s = 2 * s[0], 2 * s[1]
    rest = add(two_s, multiply(two_s, series))
    product, error = two_product(k, jnp.full_like(k, form.log_two_rest))
    high, low = add(as_pair(k * form.log_two), add((product, error + k * form.log_two_last), rest))
    proper, limit = _limit(a, b)
    return jnp.where(proper, high, limit), jnp.where(proper, low, 0)


def artanh_series(square: Any, terms: int, first: int = 1) -> Any:
    """artanh(s)/s - 1 = s²/3 + s⁴/5 + ..., or what begins with the term s^2n/(2n + 1), over s^(2n - 2)."""
    series = jnp.zeros_like(square)
    for n in range(terms, first - 1, -1):
        series = (series + 1 / (2 * n + 1)) * square
    return series


def _towards(m_a: Any, m_b: Any) -> tuple[Any, Any]:
    """The power of two that brings m_a/m_b, of mantissas, into [√½, √2], and its exponent with the other sign."""
    high, low = m_a > np.sqrt(2) * m_b, m_b > np.sqrt(2) * m_a
    factor = jnp.where(high, 0.5, jnp.where(low, 2, 1)).astype(m_a.dtype)
    return factor, jnp.where(high, 1, jnp.where(low, -1, 0))


def _limit(a: Any, b: Any) -> tuple[Any, Any]:
    """Whether both are positive and finite, and what log(a/b) is where they are not."""
    proper = is_positive_and_finite(a) & is_positive_and_finite(b)
    limit = jnp.where(a > b, jnp.inf, jnp.where(a < b, -jnp.inf, jnp.nan))
    return proper, jnp.where((a >= 0) & (b >= 0), limit, jnp.nan)


def _with_mantissa(x: Any) -> tuple[Any, Any, Any, Any]:
    """The float x, or the high part of the pair x, and (m, low, k) of x = (m + low)·2^k."""
    if not isinstance(x, tuple):
        mantissa, exponent = mantissa_and_exponent(x)
        return x, mantissa, 0, exponent
    mantissa, exponent = mantissa_and_exponent(x[0])
    form = FORMATS[x[0].dtype]
    bits = (form.bias - jnp.maximum(exponent, 1 - form.bias)).astype(form.integer) << form.digits
    return x[0], mantissa, x[1] * jax.lax.bitcast_convert_type(bits, x[0].dtype), exponent
