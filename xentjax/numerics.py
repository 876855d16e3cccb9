"""Formulae without cancellation, shared by the records. All take and give float32 or float64."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from xentjax.care import corrected
from xentjax.core.policy import is_symbol
from xentjax.core.rule import along
from xentjax.pairs import (
    FORMATS,
    artanh_series,
    is_positive_and_finite,
    lifted,
    log_parts,
    pair_sum,
    rounded,
    two_product,
    two_sum,
)

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
    """log x of a float or a pair, of subnormal numbers too, which the CPU's arithmetic takes for zero."""
    return log_quotient(x, jnp.ones_like(x[0] if isinstance(x, tuple) else x))


def log_quotient(a: Any, b: Any, shift: Any = 0) -> Any:
    """log(a/(b·2^shift)) for non-negative floats or pairs, subnormal ones too: no ratio leaves the range, and no digit
    is lost where it is close to 1."""
    exponents, rest = log_parts(a, b, shift)
    return exponents + rest


def quotient(a: Any, b: Any) -> Any:
    """a/b of non-negative numbers, subnormal ones too; the largest number where it overflows, so that it is infinite
    only at b = 0.

    Both are lifted where one is small: where the other one leaves the range by that, so does the quotient.
    """
    small, largest = jnp.minimum(a, b) < FORMATS[b.dtype].small, float(jnp.finfo(a.dtype).max)
    ratio = jnp.where(small, lifted(a), a) / jnp.where(small, lifted(b), b)
    return jnp.where(is_positive_and_finite(b) & jnp.isfinite(a), jnp.clip(ratio, -largest, largest), ratio)


def log_of_middle(a: Any, b: Any) -> tuple[Any, Any]:
    """log(a/m) and log(b/m) for the middle m = (a + b)/2 of two non-negative numbers, which are lifted where both are
    so small that the middle would lose digits."""
    form = FORMATS[a.dtype]

    def of_lifted(a: Any, b: Any) -> tuple[Any, Any]:
        small = jnp.maximum(a, b) < form.small
        middle = two_sum(*(0.5 * jnp.where(small, lifted(x), x) for x in (a, b)))
        shift = jnp.where(small, -(form.digits + 3), 0)
        return log_quotient(a, middle, shift), log_quotient(b, middle, shift)

    positive = is_positive_and_finite(a) | is_positive_and_finite(b)
    middle = two_sum(0.5 * a, 0.5 * b)
    needed = positive & (jnp.maximum(a, b) < form.small)
    return corrected((log_quotient(a, middle), log_quotient(b, middle)), needed, of_lifted, a, b)


def log_e_times(p: Any, q: Any, logarithm: Any) -> Any:
    """log(e·p/q) = log(p/q) + 1, from log(p/q), without cancellation where e·p is close to q.

    There it is 2 artanh s with s = (p - q/e)/(p + q/e), and q/e exact to twice the digits.
    """
    inverse_e = np.exp(np.longdouble(-1))
    first = p.dtype.type(inverse_e)
    high, low = two_product(q, jnp.full_like(p, first))
    # The maximum, which changes nothing, keeps the compiler from joining what is subtracted where q is a constant.
    difference = jnp.maximum(p - high, -jnp.finfo(p.dtype).max)
    s = (difference - (low + q * p.dtype.type(inverse_e - first))) / (p + high)
    return jnp.where(jnp.abs(s) < 0.125, 2 * s + 2 * s * artanh_series(s * s, FORMATS[p.dtype].terms), logarithm + 1)


# -- sums --------------------------------------------------------------------------------------------------------------


def total(terms: Any, axis: Any) -> Any:
    """Σ terms over the axes (None: all), which are kept with length 1, for terms of one sign."""
    plain = jnp.sum(terms, axis=axis, keepdims=True)
    return rounded(pair_sum(terms, axis)) if is_small(terms.size, plain.size) else plain


def is_small(numbers: int, sums: int) -> bool:
    """Whether so many numbers in so few sums are added with twice the digits. XLA adds larger arrays in blocks; these,
    one by one or nearly so: where the terms are equal each addition rounds the same way, and a single row of 32,000
    was wrong by 16 units of the last digit."""
    return not is_symbol(numbers) and (numbers < 8192 or (sums < 4 and numbers < 131072))


# -- almost equal numbers ----------------------------------------------------------------------------------------------


#: float dtype -> how many terms the series of the deviance and of the midpoint deviance take.
_SERIES_TERMS = {jnp.dtype(jnp.float32): (11, 21), jnp.dtype(jnp.float64): (25, 50)}


def deviance(a: Any, b: Any, logarithm: Any, b_low: Any = 0) -> Any:
    r"""a·log(a/b) - a + b, given the logarithm: never negative, and of second order in a - b.

    For a close to b, with s = (a - b)/(a + b), it is (a - b)·s + 2a·(s³/3 + s⁵/5 + ...), where the first term
    dominates (Loader 2000). It is b where a = 0, +inf where a > 0 and b = 0, and NaN where one is negative.
    ``b_low`` is what b lacks as a float.
    """
    difference, middle = (a - b) - b_low, 0.5 * a + 0.5 * b
    close = jnp.abs(difference) <= middle
    s = jnp.where(close, 0.5 * difference / jnp.where(middle == 0, 1, middle), 0)
    near = s * (difference + a * (2 * artanh_series(s * s, _SERIES_TERMS[a.dtype][0])))
    far = jnp.where(a == 0, b, a * logarithm - difference)
    return jnp.where((a < 0) | (b < 0), jnp.nan, jnp.where(close, near, far))


def midpoint_series(square: Any, terms: int) -> Any:
    """½·((1 + v) log(1 + v) + (1 - v) log(1 - v)) = v²/2 + v⁴/12 + ... + v^2n/(2n(2n - 1)) + ..., from v²."""
    series = jnp.zeros_like(square)
    for n in range(terms, 0, -1):
        series = (series + 1 / (2 * n * (2 * n - 1))) * square
    return series


def midpoint_deviance(a: Any, b: Any, of_a: Any, of_b: Any) -> Any:
    r"""½·a·log(a/m) + ½·b·log(b/m) with m = (a + b)/2, given the logarithms: never negative, and of second order in
    a - b.

    With v = (a - b)/(a + b) it is m·(v²/2 + v⁴/12 + ... + v^2n/(2n(2n - 1)) + ...), a sum of positive terms.
    """
    m, half_difference = 0.5 * a + 0.5 * b, 0.5 * a - 0.5 * b
    close = jnp.abs(half_difference) <= 0.75 * m
    v = jnp.where(close, half_difference / jnp.where(m == 0, 1, m), 0)
    series = midpoint_series(v * v, _SERIES_TERMS[a.dtype][1])
    far = [jnp.where(x == 0, 0, 0.5 * x * log) for x, log in ((a, of_a), (b, of_b))]
    return jnp.where((a < 0) | (b < 0), jnp.nan, jnp.where(close, m * series, far[0] + far[1]))


# -- infinite derivatives ----------------------------------------------------------------------------------------------


def sum_along(derivative: Any, tangent: Any, axis: Any) -> Any:
    """Σ derivative·tangent over the axes, which are kept with length 1."""
    return jnp.sum(along(derivative, tangent), axis=axis, keepdims=True)
