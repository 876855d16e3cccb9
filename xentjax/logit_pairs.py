"""Statistics of two rows of logits a and b, for divergences of p = softmax(a) and q = softmax(b).

Near each other, a divergence is of second order in δ = a - b, measured from its mean: what δ loses by rounding, or a
sum by the signs of its terms, is all there is of it.  So the difference is taken with the part that its rounding
leaves, from that at the largest class of p (where one class dominates, all others are seen from it), and the sum is of
the non-negative p (e^u - 1 - u), u = ⟨p, δ⟩ - δ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from xentjax.core.policy import up
from xentjax.logit_rows import Rows, apart, exponentials, finite, huge, row_max, row_sum


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
    centre, remainder = exact_difference(m_a, q_at_largest)
    reachable = jnp.abs(centre) < jnp.inf
    centre = jnp.where(reachable, centre, m_a - m_b)
    rows = [m_a, m_b, centre, remainder]

    def moment(a: Any, b: Any, m_a: Any, m_b: Any, centre: Any, remainder: Any) -> Any:
        e = jnp.exp(jnp.minimum(up(a) - m_a, 0))
        return jnp.where(e == 0, 0, e * _delta(a, b, centre, remainder))

    mean = row_sum(moment, *apart(entries, rows), axis) / of_p.total
    # p e^u = q e^(depth + μ), where depth is that of b at the largest class of a.
    scale = jnp.exp(jnp.where(reachable, m_b - q_at_largest, jnp.inf) + mean)

    def surplus(a: Any, b: Any, m_a: Any, m_b: Any, centre: Any, remainder: Any, mean: Any, scale: Any) -> Any:
        e = jnp.exp(jnp.minimum(up(a) - m_a, 0))
        u = mean - _delta(a, b, centre, remainder)
        other = jnp.exp(jnp.minimum(up(b) - m_b, 0)) * scale
        far = jnp.where(
            u < _FAR, e * (jnp.exp(jnp.minimum(u, _FAR)) - 1 - u), other - jnp.where(e == 0, 0, e * (1 + u))
        )
        return jnp.where(jnp.abs(u) < 1, e * _expm1_minus(u), far)

    value = jnp.log1p(row_sum(surplus, *apart(entries, [*rows, mean, scale]), axis) / of_p.total)
    value = jnp.where(scale < jnp.inf, value, jnp.where(mean == jnp.inf, mean, jnp.nan))
    value = jnp.where(jnp.isnan(of_p.total + of_q.total), jnp.nan, value)

    # Where one class of p dominates, q - p there is the difference of what p and q leave to the others, unless log(q/p)
    # is the smaller.
    gap = m_b - q_at_largest
    outside_p = of_p.rest / of_p.total
    outside_q = jnp.where(gap == 0, of_q.rest, of_q.total - jnp.exp(-gap)) / of_q.total
    is_smaller = jnp.maximum(jnp.abs(mean), value) < outside_p
    at_largest = jnp.where((of_p.rest < 0.5) & ~is_smaller, outside_p - outside_q, jnp.nan)
    # Far apart, a log-ratio that is small would be a difference of larger numbers.
    shift = jnp.where(value < 1, mean - value, jnp.nan)
    return LogitPair(of_p, of_q, centre, remainder, mean, shift, at_largest), value


#: e^u is computed from u below it, and from the logits of q above, where it may leave the format.
_FAR = 20.0


def exact_difference(a: Any, b: Any) -> tuple[Any, Any]:
    """a - b rounded, and what the rounding left; 0 where the difference is beyond 1e30."""
    difference = a - b
    rounded = difference - a
    remainder = (a - (difference - rounded)) - (b + rounded)
    return difference, jnp.where(jnp.abs(difference) < 1e30, remainder, 0)


def _delta(a: Any, b: Any, centre: Any, remainder: Any) -> Any:
    """δ = (a - b) - centre with all its digits, however large the logits; 0 where both are -inf."""
    limit = huge(centre.dtype)
    difference, rest = exact_difference(jnp.clip(up(a), -limit / 4, limit / 4), jnp.clip(up(b), -limit, limit / 4))
    difference = jnp.where(up(b) == -jnp.inf, jnp.where(up(a) == -jnp.inf, centre, jnp.inf), difference)
    return (difference - centre) + (rest - remainder)


def deltas(pair: LogitPair, p_logits: Any, q_logits: Any, axis: int) -> Any:
    centre, remainder = (jnp.expand_dims(row, axis) for row in (pair.centre, pair.remainder))
    return _delta(p_logits, q_logits, centre, remainder)


def probabilities(logits: Any, rows: Rows, axis: int) -> Any:
    return exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)


def _expm1_minus(u: Any) -> Any:
    """e^u - 1 - u without cancellation: u²/2·(1 + u/3·(1 + u/4·(...))) for |u| < 1."""
    x = jnp.clip(u, -1, 1)
    series = jnp.ones_like(x)
    for n in range(11 if x.dtype == jnp.float32 else 19, 2, -1):
        series = 1 + series * x / n
    return x * x / 2 * series
