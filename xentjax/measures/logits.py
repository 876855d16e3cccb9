"""Entropy and divergences of distributions that are given as logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from xentjax.activations import centred, logistic, softmax, softmax_tangent
from xentjax.core import policy
from xentjax.core.domains import Domain, Logits, Mask
from xentjax.core.op import op
from xentjax.core.policy import up
from xentjax.logit_rows import (
    Rows,
    apart,
    depth,
    depths,
    exponentials,
    finite,
    huge,
    is_dominated,
    row_max,
    row_maximum,
    row_sum,
    rows_of,
)
from xentjax.numerics import anywhere
from xentjax.pairs import artanh_series

_MEASURE_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"axis": 0, "base": 2, "keepdims": True, "where": Mask("B K")},
)


@op(
    wrt=("logits",),
    domain=Domain(logits=Logits("B K"), options=_MEASURE_OPTIONS),
    group="entropy",
    formula="-Σ p log p,  p = softmax(z)",
    gradient="-p (log p + H)",
    source="sums of non-negative terms",
    fill={"logits": -jnp.inf},
    upcast=False,
    bounded=("logits",),
)
def entropy_from_logits(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Entropy of the distribution softmax(z), from the logits z.

    .. math::

       H = \log S + D, \quad S = \sum_i e^{d_i}, \quad D = \sum_i p_i (-d_i), \quad d_i = z_i - \max z, \qquad
       \frac{\partial H}{\partial z_i} = p_i (-d_i - D)

    Both terms are non-negative, log S is log1p of the sum without the largest class, and the entropy of a prediction
    that is all but certain keeps its digits.

    Args:
      logits: real numbers with the classes along ``axis``; -inf is a class of probability zero.
      axis: the axis of the classes.
      where: True for the classes to keep, with the shape of the logits. A row without any has entropy and gradient 0.
      base: of the logarithm; nats by default, ``base=2`` for bits.
      keepdims: whether the reduced axis stays, with length 1.

    Returns:
      Entropies in the float dtype of the logits: NaN for a row with a NaN, two +inf, or nothing but -inf.

    Raises:
      ValueError: no such axis, no classes, a mask of another shape.

    >>> import jax, jax.numpy as jnp, xentjax as xj
    >>> print([f"{h:.4e}" for h in xj.entropy_from_logits(jnp.array([[0.0, 0.0], [80.0, 0.0]]))])
    ['6.9315e-01', '1.4619e-33']
    >>> print([f"{g:.4e}" for g in jax.grad(xj.entropy_from_logits)(jnp.array([80.0, 0.0]))])
    ['-1.4439e-33', '1.4439e-33']
    """
    z = jnp.asarray(logits)
    log_p = z - jax.nn.logsumexp(z, axis=axis, keepdims=True)
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p == 0, 0, p * log_p), axis=axis, keepdims=True)


@entropy_from_logits.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    return bound | _checked("entropy_from_logits", bound, "logits")


@entropy_from_logits.value
def _(logits: Any, *, axis: int) -> Any:
    rows = rows_of(logits, axis)

    def spread_term(z: Any, m: Any) -> Any:
        return jnp.exp(-depth(z, m)) * depth(z, m)

    spread = row_sum(spread_term, *apart([logits], [finite(rows.maximum)]), axis)
    # A row with one +inf has a single class, and so nothing below the maximum.
    mean_depth = jax.lax.cond(
        anywhere(rows.maximum == jnp.inf),
        lambda rows, spread: jnp.where(rows.maximum == jnp.inf, 0, spread / rows.total),
        lambda rows, spread: spread / rows.total,
        *(rows, spread),
    )
    return jnp.expand_dims(rows.log_total + mean_depth, axis), (rows, mean_depth)


@entropy_from_logits.partial("logits")
def _(saved: Any, logits: Any, *, axis: int) -> Any:
    rows, mean_depth = saved
    p = exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)
    return p * (depths(logits, rows.maximum, axis) - jnp.expand_dims(mean_depth, axis))


@entropy_from_logits.second
def _(tangents: Any, active: Any, logits: Any, *, axis: int) -> Any:
    # g = p∘s with s = -log p - H. Along v: dp = p∘(v - ⟨p, v⟩), ds = -(v - ⟨p, v⟩) - ⟨g, v⟩.
    p = softmax(logits, axis=axis)
    v = tangents["logits"].astype(p.dtype)
    below = depths(logits, row_maximum(logits, axis), axis)
    surprise = below - jnp.sum(p * below, axis=axis, keepdims=True)
    slope = jnp.sum(p * surprise * v, axis=axis, keepdims=True)
    return (softmax_tangent(p, v, axis) * (surprise - 1) - p * slope,)


def _checked(name: str, bound: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """The arguments in dtypes that can be computed with together, of one shape, with at least one class."""
    arrays = {n: bound[n] for n in arguments}
    policy.require_same_shape(name, **arrays)
    shape = arrays[arguments[0]].shape
    (axis,) = policy.require_axis(name, arguments[0], arrays[arguments[0]], bound["axis"])
    if shape[axis] == 0:
        raise ValueError(f"{name}: {arguments[0]} has shape {shape}, but needs at least one class along axis {axis}")
    dtype = policy.compute_dtype(policy.result_dtype(arrays.values()))
    fits = {n: policy.is_float(a) and up(a).dtype == dtype for n, a in arrays.items()}
    return {n: a if fits[n] else a.astype(dtype) for n, a in arrays.items()} | {"axis": axis}


# -- Kullback-Leibler --------------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Per row of two sets of logits a and b, with p = softmax(a), q = softmax(b) and δ = (a - b) - centre."""

    of_p: Rows
    of_q: Rows
    centre: Any  # a - b at the largest class of p, rounded,
    remainder: Any  # and what the rounding left
    mean: Any  # μ = Σ pδ
    shift: Any  # log(q/p) = shift - δ; NaN where p and q are far apart
    at_largest: Any  # the derivative by b at the largest class of p, where that class dominates; otherwise NaN


@op(
    wrt=("p_logits", "q_logits"),
    domain=Domain(p_logits=Logits("B K"), q_logits=Logits("B K"), options=_MEASURE_OPTIONS),
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
    return bound | _checked("kl_divergence_from_logits", bound, "p_logits", "q_logits")


@kl_divergence_from_logits.value
def _(p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    of_p, of_q = rows_of(p_logits, axis), rows_of(q_logits, axis)
    entries, rows = [p_logits, q_logits], [finite(of_p.maximum), finite(of_q.maximum)]

    def moment(a: Any, b: Any, m_a: Any, m_b: Any) -> Any:
        e = jnp.exp(up(a) - m_a)
        return e * (m_b - up(b)) - e * depth(a, m_a)

    mean = row_sum(moment, *apart(entries, rows), axis) / of_p.total
    ratio = jnp.log(of_q.total / of_p.total)
    value = mean + ratio
    # What is a small difference of large terms, or has met an infinity, is done again with care.
    distant = (value > 0.2 * (jnp.abs(mean) + jnp.abs(ratio))) & (value < jnp.inf)
    near = ~distant | is_dominated(of_p.total)

    def plain(p_logits: Any, q_logits: Any, value: Any, mean: Any) -> tuple[Any, _Pair]:
        none = jnp.full_like(value, jnp.nan)
        return value, _Pair(of_p, of_q, rows[0] - rows[1], jnp.zeros_like(value), mean, none, none)

    def careful(p_logits: Any, q_logits: Any, value: Any, mean: Any) -> tuple[Any, _Pair]:
        pair, exact = _near_pair(p_logits, q_logits, of_p, of_q, axis)
        return jnp.where(near & (exact == exact), exact, value), pair

    value, pair = jax.lax.cond(anywhere(near), careful, plain, p_logits, q_logits, value, mean)
    return jnp.expand_dims(value, axis), pair


def _near_pair(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> tuple[_Pair, Any]:
    """The statistics of two rows of logits, and KL as log1p(Σ p (e^u - 1 - u)), NaN where e^u is beyond the format."""
    entries, (m_a, m_b) = [p_logits, q_logits], (finite(of_p.maximum), finite(of_q.maximum))
    limit = huge(m_a.dtype)
    # b at the largest class of a: any other class is far below it.
    q_at_largest = row_max(
        lambda a, b, m: jnp.minimum(up(b), limit) + jnp.minimum(up(a) - m, 0) * limit, entries, [m_a], axis
    )
    centre, remainder = _exact_difference(m_a, q_at_largest)
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

    # Where one class of p dominates, q - p there is the difference of what p and q leave to the others.
    gap = m_b - q_at_largest
    outside_q = jnp.where(gap == 0, of_q.rest, of_q.total - jnp.exp(-gap)) / of_q.total
    at_largest = jnp.where(of_p.rest < 0.5, of_p.rest / of_p.total - outside_q, jnp.nan)
    # Far apart, a log-ratio that is small would be a difference of larger numbers.
    shift = jnp.where(value < 1, mean - value, jnp.nan)
    return _Pair(of_p, of_q, centre, remainder, mean, shift, at_largest), value


@kl_divergence_from_logits.partial("p_logits")
def _(pair: _Pair, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p = _probabilities(p_logits, pair.of_p, axis)
    return jnp.where(p == 0, 0, p * (_deltas(pair, p_logits, q_logits, axis) - jnp.expand_dims(pair.mean, axis)))


@kl_divergence_from_logits.partial("q_logits")
def _(pair: _Pair, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p, q = _probabilities(p_logits, pair.of_p, axis), _probabilities(q_logits, pair.of_q, axis)
    log_ratio = jnp.expand_dims(pair.shift, axis) - _deltas(pair, p_logits, q_logits, axis)
    slope = jnp.where(jnp.abs(log_ratio) < 1, p * jnp.expm1(log_ratio), q - p)
    at_largest = jnp.expand_dims(pair.at_largest, axis)
    is_largest = up(p_logits) == jnp.expand_dims(pair.of_p.maximum, axis)
    return jnp.where(is_largest & (at_largest == at_largest), at_largest, slope)


@kl_divergence_from_logits.second
def _(tangents: Any, active: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # ∂a = p∘c with c = δ - μ moves by dp∘c + p∘(dδ - ⟨p, dδ⟩) - p⟨dp, c⟩, and ∂b = q - p by dq - dp.
    pair, _ = _near_pair(p_logits, q_logits, rows_of(p_logits, axis), rows_of(q_logits, axis), axis)
    p, q = softmax(p_logits, axis=axis), softmax(q_logits, axis=axis)
    a_dot, b_dot = (tangents.get(n, jnp.zeros_like(p)).astype(p.dtype) for n in ("p_logits", "q_logits"))
    centred = _deltas(pair, p_logits, q_logits, axis) - jnp.expand_dims(pair.mean, axis)
    centred = jnp.where(p == 0, 0, centred)
    p_dot, q_dot = softmax_tangent(p, a_dot, axis), softmax_tangent(q, b_dot, axis)
    moved = jnp.sum(p_dot * centred, axis=axis, keepdims=True)
    along = {
        "p_logits": p_dot * centred - p * moved + softmax_tangent(p, a_dot - b_dot, axis),
        "q_logits": q_dot - p_dot,
    }
    return tuple(along[n] for n in active)


#: e^u is computed from u below it, and from the logits of q above, where it may leave the format.
_FAR = 20.0


def _exact_difference(a: Any, b: Any) -> tuple[Any, Any]:
    """a - b rounded, and what the rounding left; 0 where the difference is beyond 1e30."""
    difference = a - b
    rounded = difference - a
    remainder = (a - (difference - rounded)) - (b + rounded)
    return difference, jnp.where(jnp.abs(difference) < 1e30, remainder, 0)


def _delta(a: Any, b: Any, centre: Any, remainder: Any) -> Any:
    """δ = (a - b) - centre with all its digits, however large the logits; 0 where both are -inf."""
    limit = huge(centre.dtype)
    difference, rest = _exact_difference(jnp.clip(up(a), -limit / 4, limit / 4), jnp.clip(up(b), -limit, limit / 4))
    difference = jnp.where(up(b) == -jnp.inf, jnp.where(up(a) == -jnp.inf, centre, jnp.inf), difference)
    return (difference - centre) + (rest - remainder)


def _deltas(pair: _Pair, p_logits: Any, q_logits: Any, axis: int) -> Any:
    centre, remainder = (jnp.expand_dims(row, axis) for row in (pair.centre, pair.remainder))
    return _delta(p_logits, q_logits, centre, remainder)


def _probabilities(logits: Any, rows: Rows, axis: int) -> Any:
    return exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)


def _expm1_minus(u: Any) -> Any:
    """e^u - 1 - u without cancellation: u²/2·(1 + u/3·(1 + u/4·(...))) for |u| < 1."""
    x = jnp.clip(u, -1, 1)
    series = jnp.ones_like(x)
    for n in range(11 if x.dtype == jnp.float32 else 19, 2, -1):
        series = 1 + series * x / n
    return x * x / 2 * series


# -- Jensen-Shannon ----------------------------------------------------------------------------------------------------


@op(
    wrt=("p_logits", "q_logits"),
    domain=Domain(p_logits=Logits("B K"), q_logits=Logits("B K"), options=_MEASURE_OPTIONS),
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
    return bound | _checked("js_divergence_from_logits", bound, "p_logits", "q_logits")


@js_divergence_from_logits.value
def _(p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    of_p, of_q = rows_of(p_logits, axis), rows_of(q_logits, axis)
    p, q = _probabilities(p_logits, of_p, axis), _probabilities(q_logits, of_q, axis)
    log_ratio, are_far = _log_ratio(p_logits, q_logits, of_p, of_q, axis)
    value = jnp.sum(_midpoint_terms(p, q, log_ratio), axis=axis, keepdims=True)
    return value, (p, q, log_ratio, are_far)


@js_divergence_from_logits.partial("p_logits")
def _(saved: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p, _, log_ratio, are_far = saved
    return softmax_tangent(p, _level(p, log_ratio, are_far), axis) / 2


@js_divergence_from_logits.partial("q_logits")
def _(saved: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    _, q, log_ratio, are_far = saved
    return softmax_tangent(q, _level(q, -log_ratio, are_far), axis) / 2


@js_divergence_from_logits.second
def _(tangents: Any, active: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # ∂a = p∘(l - ⟨p, l⟩)/2 moves by half of dp∘(l - ⟨p, l⟩) - p⟨dp, l - ⟨p, l⟩⟩ + p∘(dl - ⟨p, dl⟩), with λ = log(q/p),
    # l = log 2 - log(1 + e^λ) and dl = -σ(λ)dλ.
    of_p, of_q = rows_of(p_logits, axis), rows_of(q_logits, axis)
    p, q = _probabilities(p_logits, of_p, axis), _probabilities(q_logits, of_q, axis)
    log_ratio, are_far = _log_ratio(p_logits, q_logits, of_p, of_q, axis)
    a_dot, b_dot = (tangents.get(n, jnp.zeros_like(p)).astype(p.dtype) for n in ("p_logits", "q_logits"))
    log_ratio_dot = centred(q, b_dot, axis) - centred(p, a_dot, axis)

    def slope_dot(x: Any, logit_dot: Any, log_ratio: Any, log_ratio_dot: Any) -> Any:
        level = centred(x, _level(x, log_ratio, are_far), axis)
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
    pair, _ = _near_pair(p_logits, q_logits, of_p, of_q, axis)
    near = jnp.expand_dims(pair.shift, axis) - _deltas(pair, p_logits, q_logits, axis)
    limit = huge(near.dtype) / 8

    def log_probability(logits: Any, rows: Rows) -> Any:
        maximum, log_total = (jnp.expand_dims(row, axis) for row in (finite(rows.maximum), rows.log_total))
        return jnp.where(up(logits) == -jnp.inf, -jnp.inf, jnp.clip(up(logits) - maximum, -limit, 0) - log_total)

    log_p, log_q = log_probability(p_logits, of_p), log_probability(q_logits, of_q)
    far = jnp.where((log_p == -jnp.inf) & (log_q == -jnp.inf), 0, log_q - log_p)
    return jnp.where(jnp.isfinite(near), near, far), jnp.isnan(jnp.expand_dims(pair.shift, axis))


def _level(p: Any, log_ratio: Any, are_far: Any) -> Any:
    """log(p/m), up to a constant that its deviations from the mean do not see: far apart most of it would be log 2."""
    softplus = jnp.maximum(log_ratio, 0) + jnp.log1p(jnp.exp(-jnp.abs(log_ratio)))
    return jnp.where(p == 0, 0, jnp.where(are_far, -softplus, _log_of_share(log_ratio)))


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

    Where r is small, the series Σ_n r^{2n}/(n(2n-1)) in place of the bracket.
    """
    r = jnp.tanh(log_ratio / 2)
    square = jnp.minimum(r * r, 0.25)
    series = jnp.zeros_like(square)
    for n in range(12 if square.dtype == jnp.float32 else 27, 0, -1):
        series = series * square + 1 / (n * (2 * n - 1))
    shares = ((p, log_ratio), (q, -log_ratio))
    far = sum(jnp.where(x == 0, 0, x / 2 * _log_of_share(ratio)) for x, ratio in shares)
    return jnp.where(jnp.abs(r) < 0.5, (p + q) / 4 * (series * square), far)
