"""Entropy and divergences of distributions that are given as logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from xentjax.activations import softmax, softmax_tangent
from xentjax.core import policy
from xentjax.core.domains import Domain, Logits, Mask
from xentjax.core.op import op
from xentjax.logit_rows import (
    Rows,
    apart,
    depth,
    depths,
    exponentials,
    finite,
    huge,
    is_dominated,
    row_maximum,
    row_sum,
    rows_of,
)

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
        jnp.any(rows.maximum == jnp.inf),
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
    fits = {n: policy.is_float(a) and policy.up(a).dtype == dtype for n, a in arrays.items()}
    return {n: a if fits[n] else a.astype(dtype) for n, a in arrays.items()} | {"axis": axis}


# -- Kullback-Leibler --------------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    """Per row of two sets of logits a and b, with p = softmax(a), q = softmax(b) and δ = (a - b) - centre."""

    of_p: Rows
    of_q: Rows
    centre: Any
    mean: Any  # μ = Σ pδ
    shift: Any  # log(q_i/p_i) = shift - δ_i, exact where the row is near; NaN where it is not
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
    limit = huge(of_p.total.dtype)

    def moment_term(a: Any, b: Any, m_a: Any, m_b: Any) -> Any:
        return jnp.exp(-depth(a, m_a)) * (depth(b, m_b) - depth(a, m_a))

    moment = row_sum(moment_term, *apart([p_logits, q_logits], [finite(of_p.maximum), finite(of_q.maximum)]), axis)
    mean = moment / of_p.total
    ratio = jnp.log(of_q.total / of_p.total)
    value = mean + ratio
    # What is a small difference of large terms, or has met an infinity, is done again with care.
    distant = (value > 0.2 * (jnp.abs(mean) + jnp.abs(ratio))) & (jnp.abs(moment) < limit / 1e6)
    near = ~distant | is_dominated(of_p.total)

    def plain(p_logits: Any, q_logits: Any) -> tuple[Any, _Pair]:
        none = jnp.full_like(value, jnp.nan) + value * 0
        centre = finite(of_p.maximum) - finite(of_q.maximum)
        return value, _Pair(of_p, of_q, centre, mean, none, none)

    def careful(p_logits: Any, q_logits: Any) -> tuple[Any, _Pair]:
        return _careful_pair(p_logits, q_logits, of_p, of_q, axis)

    value, pair = jax.lax.cond(jnp.any(near), careful, plain, p_logits, q_logits)
    return jnp.expand_dims(value, axis), pair


def _careful_pair(p_logits: Any, q_logits: Any, of_p: Rows, of_q: Rows, axis: int) -> tuple[Any, _Pair]:
    """Value and statistics by the formula for near distributions, by the plain one where a ratio is beyond it."""
    a, b = policy.up(p_logits), policy.up(q_logits)
    p, q = _probabilities(p_logits, of_p, axis), _probabilities(q_logits, of_q, axis)
    largest = jnp.expand_dims(jnp.argmax(a, axis=axis), axis)
    centre = jnp.take_along_axis(a, largest, axis) - jnp.take_along_axis(b, largest, axis)
    shared = (a > -jnp.inf) & (b > -jnp.inf)
    delta = jnp.where(shared, a - b - centre, 0)
    delta = jnp.where(delta == delta, delta, jnp.where(a == b, 0, jnp.nan))
    mean = jnp.sum(p * delta, axis=axis, keepdims=True)
    u = jnp.where(shared, mean - delta, 0)
    excess = jnp.log1p(jnp.sum(p * _expm1_minus(u), axis=axis, keepdims=True))
    # q's mass on classes that p has not: the rest of q is normalised without it.
    outside = jnp.sum(jnp.where((a == -jnp.inf) & (b > -jnp.inf), q, 0), axis=axis, keepdims=True)
    excess = excess - jnp.log1p(-outside)
    usable = (jnp.max(jnp.abs(u), axis=axis, keepdims=True) < 60) & (outside < 0.9) & (jnp.abs(centre) < jnp.inf)

    log_ratio = jnp.expand_dims(jnp.log(of_q.total / of_p.total), axis)
    top = jnp.expand_dims(finite(of_p.maximum) - finite(of_q.maximum), axis)
    surplus = jnp.where(p > 0, jnp.where(shared, (a - b) - top, jnp.inf), 0)
    plain = jnp.sum(jnp.where(p > 0, p * surplus, 0), axis=axis, keepdims=True) + log_ratio
    value = jnp.where(usable, excess, plain)
    value = jnp.where(jnp.any((p > 0) & (b == -jnp.inf), axis=axis, keepdims=True), jnp.inf, value)
    invalid = jnp.isnan(jnp.expand_dims(of_p.total + of_q.total, axis))
    value = jnp.where(invalid, jnp.nan, value)

    usable = usable & (value < jnp.inf)
    shift = jnp.where(usable, mean - excess, jnp.nan)
    slopes = jnp.where(shared & usable, p * jnp.expm1(shift - delta), q - p)
    others = -jnp.sum(jnp.where(a == jnp.expand_dims(of_p.maximum, axis), 0, slopes), axis=axis, keepdims=True)
    near_top = jnp.expand_dims(of_p.rest, axis) < 0.5
    at_largest = jnp.where(near_top, others, jnp.nan)
    centre = jnp.where(jnp.abs(centre) < jnp.inf, centre, top)
    mean = jnp.where(jnp.abs(mean) < jnp.inf, mean, jnp.sum(p * jnp.where(p > 0, surplus, 0), axis, keepdims=True))
    rows = (jnp.squeeze(r, axis) for r in (centre, mean, shift, at_largest))
    return jnp.squeeze(value, axis), _Pair(of_p, of_q, *rows)


@kl_divergence_from_logits.partial("p_logits")
def _(pair: _Pair, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p = _probabilities(p_logits, pair.of_p, axis)
    return p * (_delta(pair, p_logits, q_logits, axis) - jnp.expand_dims(pair.mean, axis))


@kl_divergence_from_logits.partial("q_logits")
def _(pair: _Pair, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p, q = _probabilities(p_logits, pair.of_p, axis), _probabilities(q_logits, pair.of_q, axis)
    shift = jnp.expand_dims(pair.shift, axis)
    log_ratio = shift - _delta(pair, p_logits, q_logits, axis)
    slope = jnp.where((shift == shift) & (p > 0) & (q > 0), p * jnp.expm1(log_ratio), q - p)
    at_largest = jnp.expand_dims(pair.at_largest, axis)
    is_largest = policy.up(p_logits) == jnp.expand_dims(pair.of_p.maximum, axis)
    return jnp.where(is_largest & (at_largest == at_largest), at_largest, slope)


@kl_divergence_from_logits.second
def _(tangents: Any, active: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # ∂a = p∘(δ - μ) moves by dp∘(δ - μ) + p∘(dδ - dμ), ∂b = q - p by dq - dp; dμ = ⟨dp, δ⟩ + ⟨p, dδ⟩.
    p, q = softmax(p_logits, axis=axis), softmax(q_logits, axis=axis)
    a_dot, b_dot = (tangents.get(n, jnp.zeros_like(p)).astype(p.dtype) for n in ("p_logits", "q_logits"))
    delta = depths(q_logits, row_maximum(q_logits, axis), axis) - depths(p_logits, row_maximum(p_logits, axis), axis)
    centred = delta - jnp.sum(p * delta, axis=axis, keepdims=True)
    p_dot, q_dot = softmax_tangent(p, a_dot, axis), softmax_tangent(q, b_dot, axis)
    delta_dot = a_dot - b_dot
    mean_dot = jnp.sum(p_dot * centred + p * delta_dot, axis=axis, keepdims=True)
    along = {"p_logits": p_dot * centred + p * (delta_dot - mean_dot), "q_logits": q_dot - p_dot}
    return tuple(along[n] for n in active)


def _probabilities(logits: Any, rows: Rows, axis: int) -> Any:
    return exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)


def _delta(pair: _Pair, p_logits: Any, q_logits: Any, axis: int) -> Any:
    """(a - b) - centre with finite stand-ins for infinities, whose factor p is 0."""
    limit = huge(pair.mean.dtype) / 4
    a, b = (jnp.clip(policy.up(z), -limit, limit) for z in (p_logits, q_logits))
    return (a - b) - jnp.expand_dims(pair.centre, axis)


def _expm1_minus(u: Any) -> Any:
    """e^u - 1 - u without cancellation: u²/2·(1 + u/3·(1 + u/4·(...))) for |u| < 1/2."""
    small = jnp.abs(u) < 0.5
    x = jnp.where(small, u, 0)
    series = jnp.ones_like(x)
    for n in range(15, 2, -1):
        series = 1 + series * x / n
    capped = jnp.clip(u, -200, 80)
    return jnp.where(small, x * x / 2 * series, jnp.expm1(capped) - capped)


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
    _, pair = _careful_pair(p_logits, q_logits, of_p, of_q, axis)
    p, q = _probabilities(p_logits, of_p, axis), _probabilities(q_logits, of_q, axis)
    shift = jnp.expand_dims(pair.shift, axis)
    ratio = jnp.tanh((shift - _delta(pair, p_logits, q_logits, axis)) / 2)
    total = p + q
    plain = jnp.where(total == 0, 0, (q - p) / jnp.where(total == 0, 1, total))
    ratio = jnp.where((shift == shift) & (p > 0) & (q > 0), ratio, plain)
    value = jnp.sum(total / 4 * _even_entropy(ratio), axis=axis, keepdims=True)
    return value, (p, q, ratio)


@js_divergence_from_logits.partial("p_logits")
def _(saved: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p, q, ratio = saved
    return _js_slope(p, q, -ratio, axis)


@js_divergence_from_logits.partial("q_logits")
def _(saved: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    p, q, ratio = saved
    return _js_slope(q, p, ratio, axis)


@js_divergence_from_logits.second
def _(tangents: Any, active: Any, p_logits: Any, q_logits: Any, *, axis: int) -> Any:
    # l = log(p/m) = log 2 - softplus(log q - log p) moves by -σ(log q - log p)·(dlog q - dlog p).
    p, q = softmax(p_logits, axis=axis), softmax(q_logits, axis=axis)
    limit = huge(p.dtype) / 4
    safe = [jnp.clip(policy.up(z), -limit, limit) for z in (p_logits, q_logits)]
    log_p, log_q = (jax.nn.log_softmax(z, axis=axis) for z in safe)
    a_dot, b_dot = (tangents.get(n, jnp.zeros_like(p)).astype(p.dtype) for n in ("p_logits", "q_logits"))
    a_mean, b_mean = jnp.sum(p * a_dot, axis=axis, keepdims=True), jnp.sum(q * b_dot, axis=axis, keepdims=True)
    log_ratio, log_ratio_dot = log_q - log_p, (b_dot - b_mean) - (a_dot - a_mean)

    def slope_dot(x: Any, x_dot: Any, log_ratio: Any, log_ratio_dot: Any) -> Any:
        level = jnp.where(x == 0, 0, jnp.log(jnp.asarray(2, x.dtype)) - jax.nn.softplus(log_ratio))
        level_dot = -jax.nn.sigmoid(log_ratio) * log_ratio_dot
        mean = jnp.sum(x * level, axis=axis, keepdims=True)
        mean_dot = jnp.sum(x_dot * (level - mean) + x * level_dot, axis=axis, keepdims=True)
        return (x_dot * (level - mean) + x * (level_dot - mean_dot)) / 2

    along = {
        "p_logits": lambda: slope_dot(p, softmax_tangent(p, a_dot, axis), log_ratio, log_ratio_dot),
        "q_logits": lambda: slope_dot(q, softmax_tangent(q, b_dot, axis), -log_ratio, -log_ratio_dot),
    }
    return tuple(along[n]() for n in active)


def _js_slope(x: Any, other: Any, ratio: Any, axis: int) -> Any:
    """x∘(l - ⟨x, l⟩)/2 with l = log(2x/(x + other)) = log1p(ratio), 0 where x is 0."""
    total = jnp.where(x == 0, 1, x + other)
    far = jnp.log(jnp.where(x == 0, 1, 2 * x / total))
    near = jnp.log1p(jnp.where(jnp.abs(ratio) < 0.5, ratio, 0))
    return softmax_tangent(x, jnp.where(jnp.abs(ratio) < 0.5, near, far), axis) / 2


def _even_entropy(r: Any) -> Any:
    """(1+r)log(1+r) + (1-r)log(1-r) = Σ_n r^{2n}/(n(2n-1)), by the series for |r| < 0.3."""
    small = jnp.abs(r) < 0.3
    x = jnp.where(small, r, 0)
    square = x * x
    series = jnp.zeros_like(x)
    for n in range(16, 0, -1):
        series = series * square + 1 / (n * (2 * n - 1))
    inside = jnp.abs(r) < 1
    y = jnp.where(inside & ~small, r, 0)
    far = (1 + y) * jnp.log1p(y) + (1 - y) * jnp.log1p(-y)
    return jnp.where(small, series * square, jnp.where(inside, far, jnp.where(r == r, 2 * jnp.log(2.0), r)))
