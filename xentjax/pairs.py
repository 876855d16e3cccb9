r"""Arithmetic with twice the digits, and the logarithm of a ratio in it.

A measure is a sum of terms that may cancel: the entropy of a table that does not sum to one, the divergence of two
distributions that are almost equal. Rounding each term once is then already too much, so the terms and their sum are
carried as a *pair*: an unevaluated sum ``(high, low)`` of two floats, with ``low`` below the last digit of ``high``.
Sums and products of two floats are exact as pairs (Dekker 1971), which gives about 46 bits in float32 and
95 in float64, without a wider type.

All functions take and give float32 or float64. They compute values: derivatives are the business of the records.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[Any, Any]

LOG_TWO = Fraction("0.6931471805599453094172321214581765680755001343602552541206800094933936219697")


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary float format, and how many terms the series of artanh takes (the first of them as pairs)."""

    integer: Any
    digits: int
    low_digits: int
    pair_terms: int
    terms: int

    @property
    def bias(self) -> int:
        return 127 if self.digits == 23 else 1023


FORMATS = {
    jnp.dtype(jnp.float32): Format(np.int32, digits=23, low_digits=12, pair_terms=3, terms=8),
    jnp.dtype(jnp.float64): Format(np.int64, digits=52, low_digits=27, pair_terms=6, terms=18),
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
    return _settled(jnp.where(exact, top, total), jnp.where(exact, low, 0))


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


def _constant(value: Fraction, dtype: Any) -> Pair:
    """An exact number as a pair of NumPy scalars."""
    kind = np.dtype(dtype).type
    high = kind(float(value))
    return high, kind(float(value - Fraction(float(high))))


# -- powers of two -----------------------------------------------------------------------------------------------------


def scaled(x: Pair, exponent: Any) -> Pair:
    """x·2^exponent for integer exponents of any size."""
    form = FORMATS[x[0].dtype]
    exponent = jnp.clip(exponent, -4 * form.bias, 4 * form.bias).astype(form.integer)
    for shift in (exponent >> 2, (exponent + 1) >> 2, (exponent + 2) >> 2, (exponent + 3) >> 2):
        factor = jax.lax.bitcast_convert_type((shift + form.bias) << form.digits, x[0].dtype)
        x = x[0] * factor, x[1] * factor
    return x


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


def pair_mantissa_and_exponent(x: Pair) -> tuple[Pair, Any]:
    """x = m·2^k as pairs, with the high part of m from 1 to 2, for a positive finite x."""
    mantissa, exponent = mantissa_and_exponent(x[0])
    return (mantissa, scaled((x[1], x[1]), -exponent)[0]), exponent


def is_positive_and_finite(x: Any) -> Any:
    """From the bits, so that a subnormal number counts as positive."""
    bits = jax.lax.bitcast_convert_type(x, FORMATS[x.dtype].integer)
    return (bits > 0) & jnp.isfinite(x)


def log_two_times(k: Any, dtype: Any) -> Pair:
    """k·log 2 for integers k."""
    return multiply(as_pair(jnp.asarray(k, dtype)), _constant(LOG_TWO, dtype))


# -- logarithms --------------------------------------------------------------------------------------------------------


class _Reduced(NamedTuple):
    """a = m_a·2^i and b·2^shift = m_b·2^(i - k) with m_a/m_b in [√½, √2], and the series of their logarithm."""

    m_a: Pair
    m_b: Pair
    i: Any
    k: Any
    s: Pair
    rest: Pair

    def logarithm(self) -> Pair:
        exponents = log_two_times(self.k, self.s[0].dtype)
        return add(exponents, add((2 * self.s[0], 2 * self.s[1]), self.rest))


def log_ratio(a: Any, b: Any = None, shift: Any = 0) -> Pair:
    r"""log(a / (b·2^shift)) as a pair, for non-negative floats or pairs; log a where only a is given.

    With a = m_a·2^i and b·2^shift = m_b·2^(i - k), the exponents chosen such that m_a/m_b lies in [√½, √2],

        log(a/b) = k·log 2 + 2 artanh s = k·log 2 + 2s + 2(s³/3 + s⁵/5 + ...),   s = (m_a - m_b)/(m_a + m_b),

    in which the difference is exact: nothing cancels where a is close to b, and no ratio can overflow.
    """
    a = as_pair(a)
    b = as_pair(jnp.ones_like(a[0]) if b is None else b)
    proper, reduced = _reduce(a, b, shift)
    plain = jnp.log(a[0]) - jnp.log(b[0])
    return select(proper, reduced.logarithm(), as_pair(plain))


def deviance_pair(a: Any, b: Any, shift: Any = 0) -> Pair:
    """The deviance of a and b·2^shift as a pair."""
    a, b = as_pair(a), as_pair(b)
    proper, reduced = _reduce(a, b, shift)
    difference = add(reduced.m_a, negative(reduced.m_b))
    near = scaled(add(multiply(difference, reduced.s), multiply(reduced.m_a, reduced.rest)), reduced.i)
    c = scaled(b, shift)
    far = add(weighted(a[0], reduced.logarithm()), add(c, negative(a)))
    plain = jnp.where(a[0] == 0, jnp.where(b[0] >= 0, c[0], jnp.nan), a[0] * (jnp.log(a[0]) - jnp.log(b[0])))
    return select(proper, select(reduced.k == 0, near, far), as_pair(plain))


def _reduce(a: Pair, b: Pair, shift: Any) -> tuple[Any, _Reduced]:
    """Where a and b are positive and finite, and the parts of log(a/b) there."""
    proper = is_positive_and_finite(a[0]) & is_positive_and_finite(b[0])
    m_a, i = pair_mantissa_and_exponent(select(proper, a, as_pair(jnp.ones_like(a[0]))))
    m_b, j = pair_mantissa_and_exponent(select(proper, b, as_pair(jnp.ones_like(b[0]))))
    high, low = m_a[0] > np.sqrt(2) * m_b[0], m_a[0] < np.sqrt(0.5) * m_b[0]
    factor = jnp.where(high, 0.5, jnp.where(low, 2, 1)).astype(m_a[0].dtype)
    m_a = m_a[0] * factor, m_a[1] * factor
    i = i + jnp.where(high, 1, jnp.where(low, -1, 0))
    s = divide(add(m_a, negative(m_b)), add(m_a, m_b))
    square = multiply(s, s)
    rest = multiply((2 * s[0], 2 * s[1]), multiply(square, _series(square)))
    return proper, _Reduced(m_a, m_b, i, i - j - shift, s, rest)


def _series(x: Pair) -> Pair:
    """1/3 + x/5 + x²/7 + ...; the later the term, the less it needs the low part."""
    form, dtype = FORMATS[x[0].dtype], x[0].dtype
    coefficients = [Fraction(1, 2 * n + 3) for n in range(form.terms)]
    tail = jnp.zeros_like(x[0])
    for c in reversed(coefficients[form.pair_terms :]):
        tail = tail * x[0] + _constant(c, dtype)[0]
    total = as_pair(tail)
    for c in reversed(coefficients[: form.pair_terms]):
        total = add(_constant(c, dtype), multiply(total, x))
    return total
