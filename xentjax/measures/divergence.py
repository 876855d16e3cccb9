"""Pairs of distributions: cross-entropy and the divergences made from it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.care import corrected
from xentjax.core.domains import Domain, Probabilities
from xentjax.core.op import op
from xentjax.core.policy import require_same_shape
from xentjax.core.rule import along
from xentjax.measures.entropy import DISTRIBUTION_OPTIONS, Axis
from xentjax.numerics import (
    deviance,
    log,
    log_e_times,
    log_of_middle,
    log_quotient,
    midpoint_deviance,
    quotient,
    total,
    xlogy,
)
from xentjax.pairs import add, as_pair, full_log_ratio, negative, pair_sum, rounded, two_sum, weighted

_DOMAIN = Domain(
    p=Probabilities("B K"),
    q=Probabilities("B K"),
    options=DISTRIBUTION_OPTIONS,
)


@op(
    wrt=("p", "q"),
    domain=_DOMAIN,
    group="pairs",
    formula="-Σ p log q",
    gradient="p: -log q;  q: -p/q",
    source="Kerridge 1961",
    fill={"p": 0.0, "q": 1.0},
)
def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Cross-entropy of a prediction q under the true distribution p.

    .. math:: H(p, q) = -\sum_i p_i \log q_i, \qquad \frac{\partial H}{\partial p_i} = -\log q_i, \qquad
       \frac{\partial H}{\partial q_i} = -\frac{p_i}{q_i}

    Args:
      p: the true distribution, along ``axis``: non-negative numbers, not renormalised.
      q: the predicted distribution, of p's shape.
      axis: the axis, or axes, of the distributions; None for all.
      where: which entries exist, of p's shape. The others contribute 0 and have gradient 0, whatever stands there.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axis with length 1.

    Returns:
      The cross-entropy without ``axis``, in the promoted dtype of p and q (16-bit floats are computed in float32).

    An entry with p = 0 contributes 0, whatever q is, and has gradient 0 with respect to q. Where p > 0 and q = 0 the
    cross-entropy is +inf. A negative entry gives NaN. Where nothing is left by the mask it is 0.

    Raises:
      ValueError: for shapes that differ, an axis that is missing or empty, a mask of another shape, or a base that is
        none.

    >>> cross_entropy(jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5]), base=2)
    Array(1.75, dtype=float32)
    """
    return -jnp.sum(xlogy(p, q), axis=axis, keepdims=keepdims)


@cross_entropy.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    require_same_shape("cross_entropy", p=bound["p"], q=bound["q"])
    return bound


@cross_entropy.value
def _(p: Any, q: Any, *, axis: Any) -> Any:
    # The terms have one sign where no q is above 1; otherwise they may cancel, and are pairs of floats.
    logarithm, p = log(q), _refuse_negative(p, q)

    def of_pairs(p: Any, q: Any) -> Any:
        return rounded(pair_sum(weighted(p, negative(full_log_ratio(q))), axis))

    value = total(jnp.where(p == 0, 0, p * -logarithm), axis)
    return corrected(value, jnp.max(q, initial=0) > 1, of_pairs, p, q), logarithm


@cross_entropy.partial("p")
def _(logarithm: Any, p: Any, q: Any, *, axis: Any) -> Any:
    return 0 - logarithm


@cross_entropy.partial("q")
def _(saved: Any, p: Any, q: Any, *, axis: Any) -> Any:
    return -_ratio(p, q)


@cross_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, q: Any, *, axis: Any) -> Any:
    gradient_dot = {"p": -along(1 / q, tangents["q"]) if "q" in tangents else jnp.zeros_like(p)}
    gradient_dot["q"] = _tangent_of_minus_ratio(tangents, p, q)
    return tuple(gradient_dot[name] for name in active)


def _refuse_negative(p: Any, q: Any) -> Any:
    """p, with NaN where an entry of the two is negative."""
    return jnp.where((p < 0) | (q < 0), jnp.nan, p)


def _zero_where_neither_is(logarithm: Any, p: Any, q: Any) -> Any:
    """A function of log(p/q), and 0 where both are 0; two subnormal numbers, which the CPU takes for 0, have one."""
    return jnp.where((p == 0) & (q == 0) & jnp.isnan(logarithm), 0, logarithm)


def _ratio(p: Any, q: Any) -> Any:
    """p/q, and 0 where p = 0: a class that does not occur asks nothing of the prediction."""
    ratio = quotient(p, q)
    return jnp.where((p == 0) & jnp.isnan(ratio), 0, ratio)


def _tangent_of_minus_ratio(tangents: dict[str, Any], p: Any, q: Any) -> Any:
    """The tangent of -p/q:  -dp/q + p dq/q²; its second part is 0 where p = 0."""
    moved = jnp.zeros_like(p)
    if "p" in tangents:
        moved = moved - along(jnp.where((p == 0) & (q == 0), 0, 1 / q), tangents["p"])
    if "q" in tangents:
        moved = moved + along(jnp.where(p == 0, 0, quotient(quotient(p, q), q)), tangents["q"])
    return moved


@op(
    wrt=("p", "q"),
    domain=_DOMAIN,
    group="pairs",
    formula="Σ p log(p/q)",
    gradient="p: log(p/q) + 1;  q: -p/q",
    source="Kullback & Leibler 1951; Loader 2000",
    fill={"p": 0.0, "q": 0.0},
)
def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Kullback-Leibler divergence of a prediction q from the true distribution p.

    .. math:: \mathrm{KL}(p\|q) = \sum_i p_i \log\frac{p_i}{q_i}, \qquad
       \frac{\partial}{\partial p_i} = \log\frac{p_i}{q_i} + 1, \qquad \frac{\partial}{\partial q_i} = -\frac{p_i}{q_i}

    Arguments, result, masks and errors are those of :func:`cross_entropy`; neither argument is renormalised.

    It is exactly 0 for equal arguments, and keeps its digits for almost equal ones: it is computed as the sum of the
    deviances p log(p/q) - p + q, which are of second order in p - q and non-negative, plus the exact Σ (p - q). Where
    these two cancel (distributions that do not sum to one), all terms are taken with twice the digits.

    An entry with p = 0 contributes 0; its gradient is 0 with respect to q, and with respect to p it is -inf, or 0
    where q = 0 too. Where p > 0 and q = 0 the divergence is +inf. A negative entry gives NaN.

    >>> kl_divergence(jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5]), base=2)
    Array(0.25, dtype=float32)
    """
    return jnp.sum(xlogy(p, p) - xlogy(p, q), axis=axis, keepdims=keepdims)


@kl_divergence.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    require_same_shape("kl_divergence", p=bound["p"], q=bound["q"])
    return bound


@kl_divergence.value
def _(p: Any, q: Any, *, axis: Any) -> Any:
    logarithm = log_quotient(p, q)
    deviances = total(deviance(p, q, logarithm), axis)
    value = deviances + jnp.sum(p - q, axis=axis, keepdims=True)

    def careful(p: Any, q: Any, deviances: Any) -> Any:
        value = rounded(add(as_pair(deviances), pair_sum(two_sum(p, -q), axis)))
        return corrected(value, ~(jnp.abs(value) >= 0.5 * deviances), of_pairs, p, q)

    def of_pairs(p: Any, q: Any) -> Any:
        return rounded(pair_sum(weighted(_refuse_negative(p, q), full_log_ratio(p, q)), axis))

    # Where the value is not small beside Σ |p - q| the rounding of Σ (p - q) is far below its last digit.
    small = ~(value >= 0.5 * jnp.sum(jnp.abs(p - q), axis=axis, keepdims=True))
    return corrected(value, small, careful, p, q, deviances), logarithm


@kl_divergence.partial("p")
def _(logarithm: Any, p: Any, q: Any, *, axis: Any) -> Any:
    return _zero_where_neither_is(log_e_times(p, q, logarithm), p, q)


@kl_divergence.partial("q")
def _(saved: Any, p: Any, q: Any, *, axis: Any) -> Any:
    return -_ratio(p, q)


@kl_divergence.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, q: Any, *, axis: Any) -> Any:
    moved = jnp.zeros_like(p)
    if "p" in tangents:
        moved = moved + along(1 / p, tangents["p"])
    if "q" in tangents:
        moved = moved - along(1 / q, tangents["q"])
    gradient_dot = {"p": jnp.where((p == 0) & (q == 0), 0, moved)}
    gradient_dot["q"] = _tangent_of_minus_ratio(tangents, p, q)
    return tuple(gradient_dot[name] for name in active)


@op(
    wrt=("p", "q"),
    domain=_DOMAIN,
    group="pairs",
    formula="½ KL(p‖m) + ½ KL(q‖m), m = (p+q)/2",
    gradient="p: ½ log(p/m);  q: ½ log(q/m)",
    source="Lin 1991",
    fill={"p": 0.0, "q": 0.0},
)
def js_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Jensen-Shannon divergence of two distributions (the divergence, not its root).

    With the mixture m = (p + q)/2:

    .. math:: \mathrm{JS}(p, q) = \tfrac12 \mathrm{KL}(p\|m) + \tfrac12 \mathrm{KL}(q\|m), \qquad
       \frac{\partial}{\partial p_i} = \tfrac12 \log\frac{p_i}{m_i}, \qquad
       \frac{\partial}{\partial q_i} = \tfrac12 \log\frac{q_i}{m_i}

    Arguments, result, masks and errors are those of :func:`cross_entropy`; neither argument is renormalised.

    It is symmetric, at most log 2 for distributions, and exactly 0 for equal arguments. With v = (p - q)/(p + q) each
    entry contributes ½m·((1+v) log(1+v) + (1-v) log(1-v)), an even series in v with positive terms, so nothing cancels
    for almost equal arguments. Where both are 0 the entry contributes 0 with gradient 0; where only one is, the
    gradient with respect to it is -inf. A negative entry gives NaN.

    >>> js_divergence(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), base=2)
    Array(1., dtype=float32)
    """
    m = (jnp.asarray(p) + q) / 2
    return jnp.sum(xlogy(p, p) + xlogy(q, q) - 2 * xlogy(m, m), axis=axis, keepdims=keepdims) / 2


@js_divergence.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    require_same_shape("js_divergence", p=bound["p"], q=bound["q"])
    return bound


@js_divergence.value
def _(p: Any, q: Any, *, axis: Any) -> Any:
    of_p, of_q = log_of_middle(p, q)
    return total(midpoint_deviance(p, q, of_p, of_q), axis), (of_p, of_q)


@js_divergence.partial("p")
def _(saved: Any, p: Any, q: Any, *, axis: Any) -> Any:
    return _zero_where_neither_is(0.5 * saved[0], p, q)


@js_divergence.partial("q")
def _(saved: Any, p: Any, q: Any, *, axis: Any) -> Any:
    return _zero_where_neither_is(0.5 * saved[1], p, q)


@js_divergence.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, q: Any, *, axis: Any) -> Any:
    gradient_dot = {"p": _tangent_of_share(tangents, p, q, "p", "q"), "q": _tangent_of_share(tangents, q, p, "q", "p")}
    return tuple(gradient_dot[name] for name in active)


def _tangent_of_share(tangents: dict[str, Any], a: Any, b: Any, name: str, other: str) -> Any:
    """The tangent of ½ log(2a/(a + b)):  ½ (b da - a db) / (a (a + b))."""
    moved, half_inverse = jnp.zeros_like(a), 0.5 / (a + b)
    if name in tangents:
        moved = moved + along(b / a * half_inverse, tangents[name])
    if other in tangents:
        moved = moved - along(half_inverse, tangents[other])
    return jnp.where((a == 0) & (b == 0), 0, moved)
