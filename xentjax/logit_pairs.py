"""Statistics of two rows of logits a and b, for divergences of p = softmax(a) and q = softmax(b).

Near each other, a divergence is of second order in δ = a - b, measured from its mean: what δ loses by rounding, or a
sum by the signs of its terms, is all there is of it.  So the difference is taken with the part that its rounding
leaves, from that at the largest class of p (where one class dominates, all others are seen from it), and the sum is of
the non-negative p (e^u - 1 - u), u = ⟨p, δ⟩ - δ.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.policy import is_symbol, up
from xentjax.logit_rows import (
    COLUMNWISE_PAIRS,
    DOMINATED,
    Rows,
    columns,
    exponentials,
    finite,
    huge,
    is_columnwise,
    is_dominated,
    row_max,
    row_sum,
    wide_sum,
    width,
)
from xentjax.pairs import log_ratio

#: Differences of logits are kept in units of so much: those of any finite numbers are finite then, and theirs too.
UNIT = 4


class LogitPair(NamedTuple):
    """Per row of two sets of logits a and b, with p = softmax(a), q = softmax(b) and δ = (a - b) - centre."""

    of_p: Rows
    of_q: Rows
    centre: Any  # a - b at the largest class of p, in units, rounded,
    remainder: Any  # and what the rounding left
    mean: Any  # μ = Σ pδ, in units
    shift: Any  # log(q/p) = shift - δ; NaN where p and q are far apart
    at_largest: Any  # the derivative by b at the largest class of p, where that class dominates; otherwise NaN


def near_pair(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> tuple[LogitPair, Any]:
    """The statistics of two rows of logits, and KL as log1p(Σ p (e^u - 1 - u)), NaN where e^u is beyond the format or a
    logit is +inf."""
    pinned = _pinned(p_logits, q_logits, finite(of_p.maximum), finite(of_q.maximum), axis)
    mean = _moment(p_logits, q_logits, pinned, jnp.zeros_like(of_p.total), of_p.total, axis)
    if is_columnwise(p_logits, axis, COLUMNWISE_PAIRS):
        value = _of_few_classes(p_logits, q_logits, axis)
    else:
        value = _divergence(p_logits, q_logits, pinned, mean, of_p.total, axis)
        is_limit = jnp.maximum(of_p.maximum, of_q.maximum) == jnp.inf
        value = jnp.where(jnp.isnan(of_p.total + of_q.total) | is_limit, jnp.nan, value)

    # Where one class of p dominates, q - p there is the difference of what p and q leave to the others, unless log(q/p)
    # is the smaller.
    outside_p = of_p.rest / of_p.total
    outside_q = jnp.where(pinned.gap == 0, of_q.rest, of_q.total - jnp.exp(-pinned.gap)) / of_q.total
    is_smaller = jnp.maximum(jnp.abs(mean * UNIT), value) < outside_p
    at_largest = jnp.where((of_p.rest < 0.5) & ~is_smaller, outside_p - outside_q, jnp.nan)
    # Far apart, a log-ratio that is small would be a difference of larger numbers.
    shift = jnp.where(value < 1, mean * UNIT - value, jnp.nan)
    return LogitPair(of_p, of_q, pinned.centre, pinned.remainder, mean, shift, at_largest), value


class _Pinned(NamedTuple):
    """Where two rows are held against each other: at the largest class of p."""

    m_a: Any
    m_b: Any
    centre: Any
    remainder: Any
    gap: Any  # what b there is below its maximum


def _pinned(p_logits: Any, q_logits: Any, m_a: Any, m_b: Any, axis: int) -> _Pinned:
    limit = huge(m_a.dtype)
    # b at the largest class of a: any other class is far below it.
    q_at_largest = row_max(
        lambda a, b, m: jnp.minimum(up(b), limit) + jnp.minimum(up(a) - m, 0) * limit,
        [p_logits, q_logits],
        [m_a],
        axis,
        columnwise=COLUMNWISE_PAIRS,
    )
    centre, remainder = _difference(m_a, q_at_largest)
    reachable = jnp.abs(centre) < jnp.inf
    centre = jnp.where(reachable, centre, m_a / UNIT - m_b / UNIT)
    return _Pinned(m_a, m_b, centre, remainder, jnp.where(reachable, m_b - q_at_largest, jnp.inf))


def _share(z: Any, maximum: Any) -> Any:
    return jnp.exp(jnp.minimum(up(z) - maximum, 0))


def _moment(p_logits: Any, q_logits: Any, pinned: _Pinned, origin: Any, total: Any, axis: int) -> Any:
    """Σ p (δ - origin), in units."""
    # So small a part of each term that their sum is finite.
    part = 2.0 ** -width(p_logits, axis).bit_length()

    def term(a: Any, b: Any, m_a: Any, centre: Any, remainder: Any, origin: Any) -> Any:
        above = (_delta(a, b, centre, remainder) - origin) * part
        return jnp.where(up(a) == -jnp.inf, 0, _share(a, m_a) * above)

    rows = [pinned.m_a, pinned.centre, pinned.remainder, origin]
    summed = row_sum(term, [p_logits, q_logits], rows, axis, apart=True, columnwise=COLUMNWISE_PAIRS)
    return summed / total / part


def _divergence(p_logits: Any, q_logits: Any, pinned: _Pinned, mean: Any, total: Any, axis: int) -> Any:
    """KL = log1p(T - wT) with T = Σ p (e^u - 1 - u), where the mean from which u is measured is off by w = Σ p u; NaN
    where that is beyond the format."""
    scale = jnp.exp(pinned.gap + mean * UNIT)  # p e^u = q e^(gap + μ)
    low, high = reach = ranges(p_logits.dtype).series

    def term(a: Any, b: Any, m_a: Any, m_b: Any, centre: Any, remainder: Any, mean: Any, scale: Any) -> Any:
        e, other = _share(a, m_a), _share(b, m_b)
        u = (mean - _delta(a, b, centre, remainder)) * UNIT
        far = other * scale - jnp.where(up(a) == -jnp.inf, 0, e * (1 + u))
        return jnp.where((u > low) & (u < high), e * expm1_minus(u, reach, a.dtype), far)

    rows = [pinned.m_a, pinned.m_b, pinned.centre, pinned.remainder, mean, scale]
    surplus = row_sum(term, [p_logits, q_logits], rows, axis, apart=True, columnwise=COLUMNWISE_PAIRS) / total
    if jnp.finfo(p_logits.dtype).bits > 16:
        surplus *= 1 + _moment(p_logits, q_logits, pinned, mean, total, axis) * UNIT
    value = _log1p(surplus)
    return jnp.where((scale < jnp.inf) & (value < jnp.inf), value, jnp.where(mean == jnp.inf, mean, jnp.nan))


def _of_few_classes(p_logits: Any, q_logits: Any, axis: int) -> Any:
    """KL of rows that are summed column by column: two loops over the rows, between which one number a row is stored,
    and all else is found anew. Not finite where something in the row is not."""

    def found(p_logits: Any, q_logits: Any) -> tuple[Any, Any, _Pinned, Any]:
        a, b = columns(p_logits, axis), columns(q_logits, axis)
        m_a, m_b = row_max(up, [a], [], axis), row_max(up, [b], [], axis)
        return a, b, _pinned(a, b, m_a, m_b, axis), row_sum(_share, [a], [m_a], axis)

    a, b, pinned, total = found(p_logits, q_logits)
    mean = _moment(a, b, pinned, jnp.zeros_like(total), total, axis)
    p_logits, q_logits, mean = jax.lax.optimization_barrier((p_logits, q_logits, mean))
    a, b, pinned, total = found(p_logits, q_logits)
    return _divergence(a, b, pinned, mean, total, axis)


def far_divergence(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> Any:
    """KL as the sum of the non-negative q - p - p log(q/p), the logarithms seen from max a, from differences of depths
    that are rounded; NaN where a class of p dominates."""
    columnwise = columnwise_if_far(p_logits.dtype)
    if is_columnwise(p_logits, axis, columnwise):
        # A loop of its own: otherwise each column's depth would be stored for it.
        p_logits, q_logits, of_p, of_q = jax.lax.optimization_barrier((p_logits, q_logits, of_p, of_q))
    ratio = of_p.total / of_q.total
    # q/p and log(q/p) from the same number: what that is rounded by has no effect.
    shift, rest = log_ratio(ratio)

    def deviance(a: Any, b: Any, m_a: Any, m_b: Any, ratio: Any, shift: Any) -> Any:
        # Of a class of p that is excluded the share is 0, times a finite number.
        a, b = jnp.maximum(up(a) - m_a, -huge(m_a.dtype)), up(b) - m_b
        return jnp.exp(b) * ratio - jnp.exp(a) * (1 + (shift - (a - b)))

    rows = [finite(of_p.maximum), finite(of_q.maximum), ratio, shift]
    value = row_sum(deviance, [p_logits, q_logits], rows, axis, apart=True, columnwise=columnwise) / of_p.total - rest
    return jnp.where(is_dominated(of_p.total), jnp.nan, value)


def columnwise_if_far(dtype: Any) -> int:
    """Far divergences of rows of at most so many classes are summed column by column."""
    return 40 if jnp.finfo(dtype).bits == 16 else 22


def has_one_loop(logits: Any, axis: int) -> bool:
    """Whether XLA:CPU makes one loop of several sums over the rows, one after the other: it does of so many rows."""
    if is_columnwise(logits, axis, columnwise_if_far(logits.dtype)):
        return False
    rows = logits.size // logits.shape[axis]
    return (is_symbol(rows) or rows >= 4096) and logits.dtype != jnp.float16


def far_divergence_in_one_loop(p_logits: Any, q_logits: Any, axis: int) -> Any:
    """``far_divergence`` in one loop over the rows, of only such operations as it may have.

    By what log(Σ e^a/Σ e^b) is rounded, q is too, and to first order KL does not change, as Σ q = Σ p.
    """

    limit = huge(up(p_logits).dtype)

    def below_maximum(z: Any) -> Any:
        return up(z) - jnp.minimum(up(jnp.max(z, axis=axis, keepdims=True)), limit)

    a, b = below_maximum(p_logits), below_maximum(q_logits)
    total_p, total_q = (jnp.sum(jnp.exp(x), axis=axis, keepdims=True) for x in (a, b))
    # Of a class of p that is excluded the share is 0, times a finite number. A NaN is in the total, but not in this.
    a = jnp.maximum(a, -limit)
    log_q = b + jnp.log(total_p / total_q)
    # No digit of it is changed; NaN, by an operation that the loop may have, where a class dominates.
    share = 1 / total_p + 0 * jnp.log(total_p - DOMINATED)
    return wide_sum((jnp.exp(log_q) - jnp.exp(a) * (1 + (log_q - a))) * share, axis)


def is_far(value: Any, dtype: Any) -> Any:
    """Where a far divergence is right: it is large enough, and no class of q is excluded or depth beyond the format."""
    return (value >= ranges(dtype).far) & (value < 1e30)


def far_pair(value: Any, of_p: Rows, of_q: Rows) -> LogitPair:
    """The statistics of two rows of logits where KL is far."""
    mean = (value + jnp.log(of_p.total / of_q.total)) / UNIT
    centre = of_p.maximum / UNIT - of_q.maximum / UNIT
    none = jnp.full_like(value, jnp.nan)
    return LogitPair(of_p, of_q, centre, jnp.zeros_like(value), mean, none, none)


class Ranges(NamedTuple):
    """Where each form of a divergence has the digits that its results need."""

    far: float  # from this divergence on, differences of depths will do
    series: tuple[float, float]  # between these u the series of e^u - 1 - u is summed,
    slope: float  # and below this |log(q/p)| that of q - p


def ranges(dtype: Any) -> Ranges:
    return Ranges(0.25, (-1, 3), 1) if jnp.finfo(dtype).bits > 16 else Ranges(0.01, (-0.5, 1), 0.125)


def _difference(a: Any, b: Any) -> tuple[Any, Any]:
    """a - b in units, rounded, and what the rounding left, 0 where the difference is infinite, as it is for b = -inf;
    other infinities count as the largest number."""
    largest = huge(a.dtype) / UNIT
    a, b = a / UNIT, b / UNIT
    a, b = jnp.clip(a, -largest, largest), jnp.where(b == -jnp.inf, b, jnp.clip(b, -largest, largest))
    difference = a - b
    rounded = difference - a
    remainder = (a - (difference - rounded)) - (b + rounded)
    return difference, jnp.where(jnp.abs(difference) < jnp.inf, remainder, 0)


def _delta(a: Any, b: Any, centre: Any, remainder: Any) -> Any:
    """δ = (a - b) - centre in units, with all its digits, however large the logits; 0 where both are -inf."""
    difference, rest = _difference(up(a), up(b))
    difference = jnp.where((up(a) == -jnp.inf) & (up(b) == -jnp.inf), centre, difference)
    return (difference - centre) + (rest - remainder)


def deviations(pair: LogitPair, p_logits: Any, q_logits: Any, axis: int) -> Any:
    """δ - μ for each class."""
    centre, remainder, mean = (jnp.expand_dims(row, axis) for row in (pair.centre, pair.remainder, pair.mean))
    return (_delta(p_logits, q_logits, centre, remainder) - mean) * UNIT


def log_ratios(pair: LogitPair, p_logits: Any, q_logits: Any, axis: int) -> Any:
    """log(q/p) for each class; NaN where p and q are far apart."""
    centre, remainder, shift = (jnp.expand_dims(row, axis) for row in (pair.centre, pair.remainder, pair.shift))
    return shift - _delta(p_logits, q_logits, centre, remainder) * UNIT


def probabilities(logits: Any, rows: Rows, axis: int) -> Any:
    return exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)


def expm1_minus(u: Any, reach: tuple[float, float], dtype: Any) -> Any:
    """e^u - 1 - u = u²/2! + u³/3! + ... without cancellation, for u within reach, for results of that dtype."""
    x = jnp.clip(u, *reach)
    # What is left out is at most a small part of what is rounded off.
    small = 2.0**-20 if jnp.finfo(dtype).bits == 16 else float(jnp.finfo(dtype).eps) / 8
    largest = max(map(abs, reach))
    terms = next(n for n in itertools.count(1) if 2 * largest**n < small * math.factorial(n + 2))
    shares = (1 / math.factorial(n) for n in range(terms + 1, 1, -1))
    return x * x * functools.reduce(lambda series, share: series * x + share, shares, 0 * x)


def _log1p(x: Any) -> Any:
    """log(1 + x), for 0.4 < x < 2.1 as that of a point near 1 + x and the rest: XLA's is off by 2.5 ULP there."""
    split = (x > 0.4) & (x < 2.1)
    point = jnp.where(split, jnp.where(x < 1.1, 1.5, 2.25), 1).astype(x.dtype)
    log_point = jnp.where(split, jnp.where(x < 1.1, np.log(1.5), np.log(2.25)), 0).astype(x.dtype)
    return jnp.log1p((x - (point - 1)) / point) + log_point
