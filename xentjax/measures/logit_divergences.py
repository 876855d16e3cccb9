"""Kullback-Leibler and Jensen-Shannon divergences of distributions that are given as logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from xentjax.activations import centred, logistic, softmax, softmax_tangent
from xentjax.care import for_rows
from xentjax.core.domains import Domain, Logits
from xentjax.core.op import op
from xentjax.core.policy import up
from xentjax.logit_pairs import (
    UNIT,
    LogitPair,
    columnwise_if_far,
    deviations,
    expm1_minus,
    far_divergence,
    far_divergence_in_one_loop,
    far_pair,
    has_one_loop,
    is_far,
    log_ratios,
    near_pair,
    probabilities,
    ranges,
)
from xentjax.logit_rows import (
    COLUMNWISE_PAIRS,
    Rows,
    at_limit,
    finite,
    huge,
    is_columnwise,
    plain_rows,
    row_max,
    row_sum,
    rows_of,
)
from xentjax.measures.entropy import DISTRIBUTION_OPTIONS
from xentjax.measures.logits import checked_logits
from xentjax.numerics import midpoint_series
from xentjax.pairs import artanh_series

# -- Kullback-Leibler --------------------------------------------------------------------------------------------------


@op(
    wrt=("p_logits", "q_logits"),
    domain=Domain(p_logits=Logits("B K"), q_logits=Logits("B K"), options=DISTRIBUTION_OPTIONS),
    group="pairs",
    formula="Σ p log(p/q),  p = softmax(a), q = softmax(b)",
    gradient="p (log(p/q) - KL);  q - p",
    source="log1p(Σ p (e^u - 1 - u)) for distributions that are near",
    fill={"p_logits": -jnp.inf, "q_logits": -jnp.inf},
    upcast=False,
    bounded=("p_logits", "q_logits"),
)
def kl_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Kullback-Leibler divergence of softmax(b) from softmax(a), from the logits a and b.

    .. math::

       \mathrm{KL}(p \| q) = \sum_i p_i \log \frac{p_i}{q_i}, \qquad
       \frac{\partial}{\partial a_i} = p_i (\delta_i - \mu), \quad \frac{\partial}{\partial b_i} = q_i - p_i, \qquad
       \delta = a - b, \quad \mu = \sum_i p_i \delta_i

    For distributions that are near, with u = μ - δ, KL = log1p(Σ p(e^u - 1 - u)) and q - p = p(e^{u - KL} - 1): sums
    of non-negative terms, exact down to KL = 0 for equal logits.

    Args:
      p_logits: a, of the true distribution, with the classes along ``axis``; -inf is a class of probability zero.
      q_logits: b, of the prediction, of the same shape.
      axis: the axis of the classes.
      where: True for the classes to keep, with the shape of the logits. A row without any has value and gradient 0.
      base: of the logarithm; nats by default, ``base=2`` for bits.
      keepdims: whether the reduced axis stays, with length 1.

    Returns:
      Divergences in the promoted float dtype: +inf where a class has p > 0 and q = 0 by -inf, NaN for a row with a
      NaN or nothing but -inf.

    Raises:
      ValueError: shapes that differ, no such axis, no classes.

    >>> import jax.numpy as jnp, xentjax as xj
    >>> a = jnp.array([0.0, 0.0, 0.0])
    >>> print(f"{xj.kl_divergence_from_logits(a, a + jnp.array([1e-4, 0.0, 0.0])):.4e}")
    1.1111e-09
    """
    log_p = jax.nn.log_softmax(jnp.asarray(p_logits), axis=axis)
    log_q = jax.nn.log_softmax(jnp.asarray(q_logits), axis=axis)
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p == 0, 0, p * (log_p - log_q)), axis=axis, keepdims=True)


@kl_divergence_from_logits.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    return bound | checked_logits("kl_divergence_from_logits", bound, "p_logits", "q_logits")


@kl_divergence_from_logits.value
def _(p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    value, pair = _found((p_logits, q_logits), far_divergence, axis)
    return jnp.expand_dims(value, axis), pair


@kl_divergence_from_logits.alone
def _(p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    def far(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> Any:
        # Elsewhere the one loop would be several, with arrays as large as the logits stored between them.
        return jax.lax.platform_dependent(
            *(p_logits, q_logits, of_p, of_q),
            cpu=lambda p_logits, q_logits, *_: far_divergence_in_one_loop(p_logits, q_logits, axis),
            default=functools.partial(far_divergence, axis=axis),
        )

    value, _ = _found((p_logits, q_logits), far if has_one_loop(p_logits, axis) else far_divergence, axis)
    return jnp.expand_dims(value, axis)


def _found(logits: tuple[Any, Any], far: Callable[..., Any], axis: int) -> tuple[Any, LogitPair]:
    """KL with the statistics of the rows: the far one, as given, with care where that is not right, and anew where
    neither is finite."""

    def careful(logits: tuple[Any, Any], rows: tuple[()], axis: int) -> tuple[Any, LogitPair]:
        pair, value = near_pair(*logits, *_rows_of_some(logits, axis), axis)
        return value, pair

    if is_columnwise(logits[0], axis, COLUMNWISE_PAIRS):
        # Among many rows of few classes some are always near.
        of_p, of_q = (rows_of(z, axis) for z in logits)
        pair, value = near_pair(*logits, of_p, of_q, axis)
    else:
        of_p, of_q = (plain_rows(z, axis, columnwise_if_far(logits[0].dtype)) for z in logits)
        value = far(*logits, of_p, of_q, axis)
        found = value, far_pair(value, of_p, of_q)
        value, pair = for_rows(~is_far(value, logits[0].dtype), found, careful, logits, (), axis)

    def extreme(logits: tuple[Any, Any], value: Any, axis: int) -> Any:
        return jnp.where(jnp.isfinite(value), value, _of_extremes(logits, axis))

    return for_rows(~jnp.isfinite(value), value, extreme, logits, value, axis, subset=False), pair


def _rows_of_some(logits: tuple[Any, Any], axis: int) -> tuple[Rows, Rows]:
    of_p, of_q = (rows_of(z, axis, of_subset=True, columnwise=COLUMNWISE_PAIRS) for z in logits)
    return of_p, of_q


def _of_extremes(logits: tuple[Any, Any], axis: int) -> Any:
    """KL of rows with infinities, or whose e^KL is beyond the format: Σ p log(p/q) as it stands, as nothing cancels in
    a KL that is large, nor in that of a p that is a single class."""
    (p_logits, of_p), (q_logits, of_q) = map(at_limit, logits, _rows_of_some(logits, axis), (axis, axis))

    def is_impossible(a: Any, b: Any) -> Any:
        return jnp.where((up(a) > -jnp.inf) & (up(b) == -jnp.inf), 1.0, 0.0)

    def information(a: Any, b: Any, m_a: Any, m_b: Any, log_scale: Any, share: Any) -> Any:
        # In units, in which it is finite.
        depth_a, depth_b = up(a) / UNIT - m_a / UNIT, up(b) / UNIT - m_b / UNIT
        log_ratio = (depth_a - depth_b) + log_scale / UNIT
        return jnp.where(up(a) == -jnp.inf, 0, jnp.exp(depth_a * UNIT) * share * log_ratio)

    entries = [p_logits, q_logits]
    rows = [of_p.maximum, of_q.maximum, of_q.log_total - of_p.log_total, 1 / of_p.total]
    value = UNIT * row_sum(information, entries, rows, axis, apart=True, columnwise=COLUMNWISE_PAIRS)
    value = jnp.where(
        row_max(is_impossible, entries, [], axis, apart=True, columnwise=COLUMNWISE_PAIRS) > 0, jnp.inf, value
    )
    return jnp.where(jnp.isnan(of_p.total + of_q.total), jnp.nan, value)


@kl_divergence_from_logits.partial("p_logits")
def _(pair: LogitPair, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p = probabilities(p_logits, pair.of_p, axis)
    return jnp.where(p == 0, 0, p * deviations(pair, p_logits, q_logits, axis))


@kl_divergence_from_logits.partial("q_logits")
def _(pair: LogitPair, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # Apart from the other derivative, or p would be stored for both.
    (p_logits, q_logits), pair = jax.lax.optimization_barrier(((p_logits, q_logits), pair))
    p, q = probabilities(p_logits, pair.of_p, axis), probabilities(q_logits, pair.of_q, axis)
    log_ratio = log_ratios(pair, p_logits, q_logits, axis)
    reach = ranges(p_logits.dtype).slope
    near = p * (log_ratio + expm1_minus(log_ratio, (-reach, reach), p_logits.dtype))
    slope = jnp.where(jnp.abs(log_ratio) < reach, near, q - p)
    at_largest = jnp.expand_dims(pair.at_largest, axis)
    is_largest = up(p_logits) == jnp.expand_dims(pair.of_p.maximum, axis)
    return jnp.where(is_largest & (at_largest == at_largest), at_largest, slope)


@kl_divergence_from_logits.second
def _(tangents: Any, active: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # ∂a = p∘c with c = δ - μ moves by dp∘c + p∘(dδ - ⟨p, dδ⟩) - p⟨dp, c⟩, and ∂b = q - p by dq - dp.
    pair, _ = near_pair(p_logits, q_logits, rows_of(p_logits, axis), rows_of(q_logits, axis), axis)
    p, q = softmax(p_logits, axis=axis), softmax(q_logits, axis=axis)
    a_dot, b_dot = (tangents.get(n, jnp.zeros_like(p)).astype(p.dtype) for n in ("p_logits", "q_logits"))
    deviation = jnp.where(p == 0, 0, deviations(pair, p_logits, q_logits, axis))
    p_dot, q_dot = softmax_tangent(p, a_dot, axis), softmax_tangent(q, b_dot, axis)
    moved = jnp.sum(p_dot * deviation, axis=axis, keepdims=True)
    along = {
        "p_logits": p_dot * deviation - p * moved + softmax_tangent(p, a_dot - b_dot, axis),
        "q_logits": q_dot - p_dot,
    }
    return tuple(along[n] for n in active)


# -- Jensen-Shannon ----------------------------------------------------------------------------------------------------


@op(
    wrt=("p_logits", "q_logits"),
    domain=Domain(p_logits=Logits("B K"), q_logits=Logits("B K"), options=DISTRIBUTION_OPTIONS),
    group="pairs",
    formula="(KL(p‖m) + KL(q‖m)) / 2,  m = (p + q) / 2",
    gradient="p (l - ⟨p, l⟩) / 2,  l = log(p/m)",
    source="even series in (q - p)/(q + p)",
    fill={"p_logits": -jnp.inf, "q_logits": -jnp.inf},
    upcast=False,
    bounded=("p_logits", "q_logits"),
)
def js_divergence_from_logits(
    p_logits: ArrayLike,
    q_logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Jensen-Shannon divergence (not its root) of softmax(a) and softmax(b), from the logits a and b.

    .. math::

       \mathrm{JS} = \tfrac12 \mathrm{KL}(p \| m) + \tfrac12 \mathrm{KL}(q \| m), \quad m = \tfrac{p + q}{2}, \qquad
       \frac{\partial}{\partial a} = \tfrac12\, p \circ (l - \langle p, l \rangle), \quad l = \log \frac{p}{m}

    With r = (q - p)/(q + p) = tanh(log(q/p)/2) each class adds m·((1+r)log(1+r) + (1-r)log(1-r))/2, an even series in
    r, and log(q/p) comes from the logits: exact down to 0 for equal logits. Symmetric, and at most log 2.

    Args:
      p_logits: a, with the classes along ``axis``; -inf is a class of probability zero.
      q_logits: b, of the same shape.
      axis: the axis of the classes.
      where: True for the classes to keep, with the shape of the logits. A row without any has value and gradient 0.
      base: of the logarithm; nats by default, ``base=2`` for bits.
      keepdims: whether the reduced axis stays, with length 1.

    Returns:
      Divergences in the promoted float dtype; NaN for a row with a NaN or nothing but -inf.

    Raises:
      ValueError: shapes that differ, no such axis, no classes.

    >>> import jax.numpy as jnp, xentjax as xj
    >>> print(f"{xj.js_divergence_from_logits(jnp.array([0.0, 0.0]), jnp.array([1e-4, 0.0])):.4e}")
    3.1250e-10
    """
    p, q = (jax.nn.softmax(jnp.asarray(z), axis=axis) for z in (p_logits, q_logits))
    m = (p + q) / 2

    def divergence(x: Any) -> Any:
        ratio = jnp.where(x == 0, 1, x) / jnp.where(m == 0, 1, m)
        return jnp.sum(jnp.where(x == 0, 0, x * jnp.log(ratio)), axis=axis, keepdims=True)

    return (divergence(p) + divergence(q)) / 2


@js_divergence_from_logits.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    return bound | checked_logits("js_divergence_from_logits", bound, "p_logits", "q_logits")


@js_divergence_from_logits.value
def _(p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p_logits, of_p = at_limit(p_logits, rows_of(p_logits, axis), axis)
    q_logits, of_q = at_limit(q_logits, rows_of(q_logits, axis), axis)
    p, q = probabilities(p_logits, of_p, axis), probabilities(q_logits, of_q, axis)
    log_ratio, are_far = _log_ratio(p_logits, q_logits, of_p, of_q, axis)
    value = jnp.sum(_midpoint_terms(p, q, log_ratio), axis=axis, keepdims=True)
    return value, (p, q, log_ratio, are_far)


@js_divergence_from_logits.partial("p_logits")
def _(saved: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p, _, log_ratio, are_far = saved
    return softmax_tangent(p, _level(p, log_ratio, are_far, axis), axis) / 2


@js_divergence_from_logits.partial("q_logits")
def _(saved: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    _, q, log_ratio, are_far = saved
    return softmax_tangent(q, _level(q, -log_ratio, are_far, axis), axis) / 2


@js_divergence_from_logits.second
def _(tangents: Any, active: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # ∂a = p∘(l - ⟨p, l⟩)/2 moves by half of dp∘(l - ⟨p, l⟩) - p⟨dp, l - ⟨p, l⟩⟩ + p∘(dl - ⟨p, dl⟩), with λ = log(q/p),
    # l = log 2 - log(1 + e^λ) and dl = -σ(λ)dλ.
    p_logits, of_p = at_limit(p_logits, rows_of(p_logits, axis), axis)
    q_logits, of_q = at_limit(q_logits, rows_of(q_logits, axis), axis)
    p, q = probabilities(p_logits, of_p, axis), probabilities(q_logits, of_q, axis)
    log_ratio, are_far = _log_ratio(p_logits, q_logits, of_p, of_q, axis)
    a_dot, b_dot = (tangents.get(n, jnp.zeros_like(p)).astype(p.dtype) for n in ("p_logits", "q_logits"))
    log_ratio_dot = centred(q, b_dot, axis) - centred(p, a_dot, axis)

    def slope_dot(x: Any, logit_dot: Any, log_ratio: Any, log_ratio_dot: Any) -> Any:
        level = centred(x, _level(x, log_ratio, are_far, axis), axis)
        level_dot = jnp.where(x == 0, 0, -logistic(log_ratio)) * log_ratio_dot
        x_dot = softmax_tangent(x, logit_dot, axis)
        moved = jnp.sum(x_dot * level, axis=axis, keepdims=True)
        return (x_dot * level - x * moved + softmax_tangent(x, level_dot, axis)) / 2

    along = {
        "p_logits": lambda: slope_dot(p, a_dot, log_ratio, log_ratio_dot),
        "q_logits": lambda: slope_dot(q, b_dot, -log_ratio, -log_ratio_dot),
    }
    return tuple(along[n]() for n in active)


def _log_ratio(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> tuple[Any, Any]:
    """log(q/p) for each class, ±inf where one of the two is 0 by a logit of -inf, and 0 where both are; and which rows
    are far apart."""
    pair, _ = near_pair(p_logits, q_logits, of_p, of_q, axis)
    near = log_ratios(pair, p_logits, q_logits, axis)
    limit = huge(near.dtype) / 8

    def log_probability(logits: Any, rows: Rows) -> Any:
        maximum, log_total = (jnp.expand_dims(row, axis) for row in (finite(rows.maximum), rows.log_total))
        return jnp.where(up(logits) == -jnp.inf, -jnp.inf, jnp.clip(up(logits) - maximum, -limit, 0) - log_total)

    log_p, log_q = log_probability(p_logits, of_p), log_probability(q_logits, of_q)
    far = jnp.where((log_p == -jnp.inf) & (log_q == -jnp.inf), 0, log_q - log_p)
    return jnp.where(jnp.isfinite(near), near, far), jnp.isnan(jnp.expand_dims(pair.shift, axis))


def _level(p: Any, log_ratio: Any, are_far: Any, axis: int) -> Any:
    """log(p/m), up to a constant that its deviations from the mean do not see: far apart most of it would be log 2."""
    softplus = jnp.maximum(log_ratio, 0) + jnp.log1p(jnp.exp(-jnp.abs(log_ratio)))
    level = jnp.where(p == 0, 0, jnp.where(are_far, -softplus, _log_of_share(log_ratio)))
    # Measured from its mean as far as that is known: what the mean is rounded by can be seen in the deviations.
    return level - jnp.sum(p * level, axis=axis, keepdims=True)


def _log_of_share(log_ratio: Any) -> Any:
    """log(p/m), m = (p + q)/2, from λ = log(q/p): log 2 - log(1 + e^λ), which is 2 artanh s, s = (p - m)/(p + m),
    where that is at most 1/3."""
    x = jnp.expm1(jnp.minimum(log_ratio, 1))
    s = x / (x + 4)
    near = -2 * (s + s * artanh_series(s * s, 8 if s.dtype == jnp.float32 else 17))
    far = np.log(2).astype(s.dtype) - log_ratio - jnp.log1p(jnp.exp(-jnp.maximum(log_ratio, 1)))
    return jnp.where(log_ratio < 1, near, far)


def _midpoint_terms(p: Any, q: Any, log_ratio: Any) -> Any:
    r"""(p log(p/m) + q log(q/m))/2 = m/2·((1+r)log(1+r) + (1-r)log(1-r)), m = (p + q)/2, r = tanh(λ/2), λ = log(q/p).

    Where r is small, the series Σ_n r^{2n}/(2n(2n-1)) in place of half the bracket.
    """
    r = jnp.tanh(log_ratio / 2)
    series = midpoint_series(jnp.minimum(r * r, 0.25), 12 if r.dtype == jnp.float32 else 27)
    shares = ((p, log_ratio), (q, -log_ratio))
    far = sum(jnp.where(x == 0, 0, x / 2 * _log_of_share(ratio)) for x, ratio in shares)
    return jnp.where(jnp.abs(r) < 0.5, (p + q) / 2 * series, far)
