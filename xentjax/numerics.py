"""Formulae without cancellation, shared by the records. All take and give float32 or float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
    return numbers < 8192 or (sums < 4 and numbers < 131072)


@jax.custom_batching.custom_vmap
def anywhere(needed: Any) -> Any:
    """Whether it is needed anywhere: the predicate of a ``lax.cond`` that stays one under ``vmap``, where one array of
    predicates would make XLA run both branches and select."""
    return jnp.any(needed)


@anywhere.def_vmap
def _(axis_size: int, in_batched: list[bool], needed: Any) -> tuple[Any, bool]:
    return anywhere(needed), False


#: A branch that is rarely taken goes through the rows in so many pieces: it needs so much less memory.
_PIECES = 16


def in_pieces(function: Callable[..., Any], *arrays: Any) -> Any:
    """The function of arrays that share their first axis, piece by piece along it; at once where they do not."""
    leaves = jax.tree.leaves(arrays)
    rows = {array.shape[:1] for array in leaves}
    if len(rows) > 1 or leaves[0].ndim == 0 or leaves[0].shape[0] <= _PIECES:
        return function(*arrays)
    length = leaves[0].shape[0]
    size = -(-length // _PIECES)

    def piece(start: Any) -> Any:
        def part(array: Any) -> Any:
            bits = jax.lax.dynamic_slice_in_dim(as_bits(array), start, size)
            return of_bits(bits, array.dtype)

        # Behind a barrier with the start, so that nothing is made of the whole arrays before the loop.
        whole, start = jax.lax.optimization_barrier((arrays, start))
        return function(*jax.tree.map(part, whole))

    # The last piece starts where it is whole, and overlaps the one before.
    done = jax.lax.map(piece, np.minimum(np.arange(0, length, size), length - size))

    def joined(pieces: Any) -> Any:
        return jnp.concatenate([pieces[:-1].reshape(-1, *pieces.shape[2:])[: length - size], pieces[-1]])

    return jax.tree.map(joined, done)


def for_rows(
    needed: Any, found: Any, function: Callable[..., Any], arrays: Any, rows: Any, axis: int, whole: bool = False
) -> Any:
    """What is found, numbers by row, with ``function(arrays, rows, axis)`` in its place if a row needs it.

    Where few rows do, only the blocks of rows that they are in are computed anew, and few rows cost little. Where many
    do, all are, piece by piece unless they may be taken as a ``whole``.
    """
    length = needed.size
    block = max(1, min(_BLOCK, length // _SHARES))
    padded = jnp.pad(jnp.ravel(needed), (0, -length % block))
    blocks = jnp.any(padded.reshape(-1, block), axis=1)
    size = -(-blocks.size // _SHARES)

    def all_rows(found: Any, arrays: Any, rows: Any) -> Any:
        along = functools.partial(function, axis=axis)
        return along(arrays, rows) if whole or axis == 0 else in_pieces(along, arrays, rows)

    def few_rows(found: Any, arrays: Any, rows: Any) -> Any:
        number = jnp.cumsum(blocks)
        order = jnp.searchsorted(number, jnp.arange(1, size * _FEW + 1))  # past the last one: their length
        order = (order[:, None] * block + jnp.arange(block)).reshape(_FEW, -1)

        def of(chosen: Any) -> Any:
            # Behind a barrier with the choice, so that nothing is made of the whole arrays before the loop.
            (entries, numbers), chosen = jax.lax.optimization_barrier(((arrays, rows), chosen))

            def part(array: Any, shape: tuple[int, ...]) -> Any:
                bits = as_bits(array)
                bits = jnp.moveaxis(bits, axis, -1) if len(shape) > 1 else bits
                return of_bits(bits.reshape(shape).at[chosen].get(mode="clip"), array.dtype)

            of_entries, of_numbers = (functools.partial(part, shape=s) for s in ((length, -1), (length,)))
            return function(jax.tree.map(of_entries, entries), jax.tree.map(of_numbers, numbers), axis=-1)

        def none(chosen: Any) -> Any:
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of, chosen))

        done = jax.lax.map(lambda chosen: jax.lax.cond(anywhere(chosen[0] < length), of, none, chosen), order)

        def in_place(old: Any, new: Any) -> Any:
            by_block = jnp.ravel(new.reshape(-1, block).at[number - 1].get(mode="clip"))
            return jnp.where(needed, by_block[:length].reshape(old.shape), old)

        return jax.tree.map(in_place, found, done)

    def some(*operands: Any) -> Any:
        if length < _SHARES or jax.tree.leaves(arrays)[0].size < _WIDE * length:
            return all_rows(*operands)
        return jax.lax.cond(anywhere(jnp.sum(blocks) > size * _FEW), all_rows, few_rows, *operands)

    return jax.lax.cond(anywhere(needed), some, lambda found, *_: found, found, arrays, rows)


#: Rows that need care are sought in blocks of so many; they are few where they are in at most _FEW of _SHARES of the
#: blocks, and one share is computed at a time. Of rows with less than _WIDE entries some always need care.
_BLOCK, _SHARES, _FEW, _WIDE = 16, 128, 32, 16


def as_bits(array: Any) -> Any:
    """16-bit floats as integers: XLA:CPU slices no 16-bit floats, but would widen them all first and store them."""
    is_narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize == 2
    return jax.lax.bitcast_convert_type(array, jnp.uint16) if is_narrow else array


def of_bits(array: Any, dtype: Any) -> Any:
    """The floats that ``as_bits`` has made ``array`` of."""
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)


def corrected(value: Any, needed: Any, careful: Callable[..., Any], *arrays: Any) -> Any:
    """The value, or ``careful(*arrays)`` if it is needed anywhere. The value is computed in any case: XLA:CPU does not
    divide the work of a branch among its threads."""

    def in_its_place(value: Any, *arrays: Any) -> Any:
        by_rows = jax.tree.leaves(value)[0].shape[:1] == arrays[0].shape[:1]
        return in_pieces(careful, *arrays) if by_rows else careful(*arrays)

    return jax.lax.cond(anywhere(needed), in_its_place, lambda value, *_: value, value, *arrays)


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
