"""Statistics of two rows of logits a and b, for divergences of p = softmax(a) and q = softmax(b).

Near each other, a divergence is of second order in δ = a - b, measured from its mean: what δ loses by rounding, or a
sum by the signs of its terms, is all there is of it.  So the difference is taken with the part that its rounding
leaves, from that at the largest class of p (where one class dominates, all others are seen from it), and the sum is of
the non-negative p (e^u - 1 - u), u = ⟨p, δ⟩ - δ.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from xentjax.core.policy import up
from xentjax.logit_rows import Rows, apart, exponentials, finite, huge, row_max, row_sum
from xentjax.pairs import log_ratio


class LogitPair(NamedTuple):
    """Per row of two sets of logits a and b, with p = softmax(a), q = softmax(b) and δ = (a - b) - centre."""

    of_p: Rows
    of_q: Rows
    centre: Any  # a - b at the largest class of p, rounded,
    remainder: Any  # and what the rounding left
    mean: Any  # μ = Σ pδ
    shift: Any  # log(q/p) = shift - δ; NaN where p and q are far apart
    at_largest: Any  # the derivative by b at the largest class of p, where that class dominates; otherwise NaN


def near_pair(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> tuple[LogitPair, Any]:
    """The statistics of two rows of logits, and KL as log1p(Σ p (e^u - 1 - u)), NaN where e^u is beyond the format."""
    entries, (m_a, m_b) = [p_logits, q_logits], (finite(of_p.maximum), finite(of_q.maximum))
    limit = huge(m_a.dtype)
    # b at the largest class of a: any other class is far below it.
    q_at_largest = row_max(
        lambda a, b, m: jnp.minimum(up(b), limit) + jnp.minimum(up(a) - m, 0) * limit, entries, [m_a], axis
    )
    centre, remainder = _difference(m_a, q_at_largest)
    reachable = jnp.abs(centre) < jnp.inf
    centre = jnp.where(reachable, centre, m_a - m_b)
    gap = jnp.where(reachable, m_b - q_at_largest, jnp.inf)
    rows = [m_a, m_b, centre, remainder]

    def moment(a: Any, b: Any, m_a: Any, m_b: Any, centre: Any, remainder: Any) -> Any:
        e = jnp.exp(jnp.minimum(up(a) - m_a, 0))
        return jnp.where(up(a) == -jnp.inf, 0, e * _delta(a, b, centre, remainder))

    mean = row_sum(moment, *apart(entries, rows), axis) / of_p.total
    scale = jnp.exp(gap + mean)  # p e^u = q e^(gap + μ)
    rows += [mean, scale]
    if jnp.finfo(p_logits.dtype).bits > 16:
        rows += [_growth(mean + (jnp.log(of_q.total / of_p.total) + gap))]

    def surplus(
        a: Any, b: Any, m_a: Any, m_b: Any, centre: Any, remainder: Any, mean: Any, scale: Any, growth: Any = 0
    ) -> Any:
        e, other = (jnp.exp(jnp.minimum(up(z) - m, 0)) for z, m in ((a, m_a), (b, m_b)))
        u = mean - _delta(a, b, centre, remainder)
        far = other * scale - jnp.where(up(a) == -jnp.inf, 0, e * (1 + (1 + growth) * u))
        return jnp.where((u > _SERIES[0]) & (u < _SERIES[1]), e * (expm1_minus(u) - growth * u), far)

    value = _log1p(row_sum(surplus, *apart(entries, rows), axis) / of_p.total)
    value = jnp.where(scale < jnp.inf, value, jnp.where(mean == jnp.inf, mean, jnp.nan))
    value = jnp.where(jnp.isnan(of_p.total + of_q.total), jnp.nan, value)

    # Where one class of p dominates, q - p there is the difference of what p and q leave to the others, unless log(q/p)
    # is the smaller.
    outside_p = of_p.rest / of_p.total
    outside_q = jnp.where(gap == 0, of_q.rest, of_q.total - jnp.exp(-gap)) / of_q.total
    is_smaller = jnp.maximum(jnp.abs(mean), value) < outside_p
    at_largest = jnp.where((of_p.rest < 0.5) & ~is_smaller, outside_p - outside_q, jnp.nan)
    # Far apart, a log-ratio that is small would be a difference of larger numbers.
    shift = jnp.where(value < 1, mean - value, jnp.nan)
    return LogitPair(of_p, of_q, centre, remainder, mean, shift, at_largest), value


def far_pair(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> tuple[LogitPair, Any]:
    """What ``near_pair`` finds, with δ as the difference of two depths, each of them rounded, and KL as the sum of the
    non-negative q - p - p log(q/p): right where no class of p dominates and KL is at least ``far``; not finite where
    something is."""
    rows = [finite(of_p.maximum), finite(of_q.maximum)]
    ratio = of_p.total / of_q.total
    # q/p and log(q/p) from the same number: what that is rounded by has no effect, as Σ q = Σ p.
    shift, rest = log_ratio(ratio)

    def deviance(a: Any, b: Any, m_a: Any, m_b: Any, ratio: Any, shift: Any) -> Any:
        a, b = up(a) - m_a, up(b) - m_b
        return jnp.exp(b) * ratio - jnp.exp(a) * (1 + (shift - (a - b)))

    total = row_sum(deviance, *apart([p_logits, q_logits], [*rows, ratio, shift]), axis)
    value = total / of_p.total - rest
    none = jnp.full_like(value, jnp.nan)
    return LogitPair(of_p, of_q, rows[0] - rows[1], jnp.zeros_like(value), value + shift, none, none), value


def far(dtype: Any) -> float:
    """The divergence from which on ``far_pair`` is right."""
    return 0.25 if jnp.finfo(dtype).bits > 16 else 0.01


def _difference(a: Any, b: Any) -> tuple[Any, Any]:
    """a - b rounded, and what the rounding left, 0 where the difference is infinite; of numbers up to a quarter of the
    largest, so that nothing that follows from it overflows."""
    quarter = huge(a.dtype) / 4
    a, b = jnp.clip(a, -quarter, quarter), jnp.where(b == -jnp.inf, b, jnp.clip(b, -quarter, quarter))
    difference = a - b
    rounded = difference - a
    remainder = (a - (difference - rounded)) - (b + rounded)
    return difference, jnp.where(jnp.abs(difference) < jnp.inf, remainder, 0)


def _delta(a: Any, b: Any, centre: Any, remainder: Any) -> Any:
    """δ = (a - b) - centre with all its digits, however large the logits; 0 where both are -inf."""
    difference, rest = _difference(up(a), up(b))
    difference = jnp.where((up(a) == -jnp.inf) & (up(b) == -jnp.inf), centre, difference)
    return (difference - centre) + (rest - remainder)


def deltas(pair: LogitPair, p_logits: Any, q_logits: Any, axis: int) -> Any:
    centre, remainder = (jnp.expand_dims(row, axis) for row in (pair.centre, pair.remainder))
    return _delta(p_logits, q_logits, centre, remainder)


def probabilities(logits: Any, rows: Rows, axis: int) -> Any:
    return exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)


#: Between these u the series of e^u - 1 - u is used.
_SERIES = (-1, 3)


def expm1_minus(u: Any) -> Any:
    """e^u - 1 - u = u²/2! + u³/3! + ... without cancellation, for -1 < u < 3."""
    x = jnp.clip(u, *_SERIES)
    terms = 20 if x.dtype == jnp.float32 else 34
    return x * x * functools.reduce(lambda series, n: series * x + 1 / math.factorial(n), range(terms, 1, -1), 0 * x)


def _growth(divergence: Any) -> Any:
    """T = e^KL - 1, of a divergence that is only roughly known.

    Where u is measured from a mean that is off by w, Σ p u is w, and KL is log1p(T) - wT/(1 + T), which to first order
    is log1p of Σ p (e^u - 1 - u - Tu).
    """
    return jnp.expm1(jnp.clip(jnp.where(jnp.isnan(divergence), 0, divergence), 0, 60))


def _log1p(x: Any) -> Any:
    """log(1 + x), for 0.4 < x < 2.1 as that of a point near 1 + x and the rest: XLA's is off by 2.5 ULP there."""
    split = (x > 0.4) & (x < 2.1)
    point = jnp.where(split, jnp.where(x < 1.1, 1.5, 2.25), 1).astype(x.dtype)
    log_point = jnp.where(split, jnp.where(x < 1.1, np.log(1.5), np.log(2.25)), 0).astype(x.dtype)
    return jnp.log1p((x - (point - 1)) / point) + log_point
