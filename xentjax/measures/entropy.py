"""Entropy: of distributions, of models' outputs, of counts and of labels."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from xentjax.core.domains import Counts, Domain, Labels, Logit, Mask, Probabilities, Probability
from xentjax.core.op import op
from xentjax.core.policy import class_indices
from xentjax.numerics import (
    Pair,
    add,
    along,
    as_pair,
    divide,
    log,
    log_quotient,
    log_ratio,
    negative,
    pair_sum,
    rounded,
    sum_along,
    weighted,
    xlogx,
)

_MEASURE_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"axis": 0},
    {"base": 2},
    {"keepdims": True},
    {"where": Mask("B K")},
)
Axis = int | tuple[int, ...] | None


# -- of a distribution -------------------------------------------------------------------------------------------------


@op(
    wrt=("p",),
    domain=Domain(p=Probabilities("B K"), options=_MEASURE_OPTIONS),
    group="entropy",
    formula="-Σ p log p",
    gradient="-log p - 1",
    source="Shannon 1948",
    fill={"p": 0.0},
)
def entropy(
    p: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None, base: float | None = None, keepdims: bool = False
) -> jax.Array:
    r"""Entropy of a distribution.

    .. math:: H(p) = -\sum_i p_i \log p_i, \qquad \frac{\partial H}{\partial p_i} = -\log p_i - 1

    Args:
      p: non-negative numbers, a distribution along ``axis``. They are not renormalised.
      axis: the axis, or axes, of the distribution; None for all.
      where: which entries exist, of p's shape. The others count as 0 and have gradient 0, whatever stands there.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axis with length 1.

    Returns:
      The entropy without ``axis``, in p's dtype (16-bit floats are computed in float32).

    0·log 0 = 0, where the gradient is +inf. A negative entry gives NaN. Where nothing is left by the mask it is 0.

    Raises:
      ValueError: for an axis that p lacks or along which it is empty, a mask of another shape, or a base that is none.

    The terms are summed as pairs of floats; entries above 1, whose terms have the other sign, are logarithms in pairs.

    >>> entropy(jnp.array([0.5, 0.25, 0.25]), base=2)
    Array(1.5, dtype=float32)
    """
    return -jnp.sum(xlogx(p), axis=axis, keepdims=keepdims)


def entropy_pair(p: Any, axis: Any) -> Pair:
    """-Σ p log p as a pair: terms of one sign where no p is above 1, otherwise with all digits of the logarithms."""
    return jax.lax.cond(
        jnp.any(p > 1),
        lambda p: pair_sum(weighted(p, negative(log_ratio(p))), axis),
        lambda p: pair_sum(jnp.where(p == 0, 0, p * -log(p)), axis),
        p,
    )


def entropy_gradient(p: Any) -> Any:
    """-log p - 1 = -log(e·p), which is -log1p(e·(p - 1/e)) without cancellation where p is close to 1/e.

    1/e is taken as a float and a remainder. They are not subtracted one after the other: XLA would add them first.
    """
    kind = p.dtype.type
    inverse_e = kind(np.exp(-1.0))
    remainder = np.exp(np.longdouble(-1)) - inverse_e
    excess = (p - inverse_e) * kind(np.e) - kind(remainder * np.e)
    return jnp.where(jnp.abs(excess) < 0.5, -jnp.log1p(excess), -log(p) - 1)


@entropy.value
def _(p: Any, *, axis: Any) -> Any:
    return rounded(entropy_pair(p, axis)), None


@entropy.partial("p")
def _(saved: None, p: Any, *, axis: Any) -> Any:
    return entropy_gradient(p)


entropy.pushforward("p")(sum_along)


@entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, *, axis: Any) -> Any:
    return (-along(1 / p, tangents["p"]),)


@op(
    wrt=("p",),
    domain=Domain(p=Probabilities("B K"), options=({}, {"axis": 0}, {"keepdims": True}, {"where": Mask("B K")})),
    group="entropy",
    formula="exp(-Σ p log p)",
    gradient="exp(H) (-log p - 1)",
    source="Jelinek et al. 1977",
    fill={"p": 0.0},
)
def perplexity(p: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None, keepdims: bool = False) -> jax.Array:
    r"""Perplexity of a distribution: the number of equally likely classes of the same entropy.

    .. math:: e^{H(p)}, \qquad \frac{\partial}{\partial p_i} e^{H(p)} = e^{H(p)} (-\log p_i - 1)

    Arguments, edges and errors are those of :func:`entropy`; it does not depend on a base. Where nothing is left by
    the mask it is 0. The entropy enters the exponential as a pair of floats, so that its rounding is not magnified.

    >>> perplexity(jnp.full(8, 0.125)).round(4)
    Array(8., dtype=float32)
    """
    return jnp.exp(-jnp.sum(xlogx(p), axis=axis, keepdims=keepdims))


@perplexity.value
def _(p: Any, *, axis: Any) -> Any:
    high, low = pair_sum(weighted(p, negative(log_ratio(p))), axis)
    value = jnp.exp(high)
    value = jnp.where(jnp.isfinite(value), value + value * low, value)
    return value, value


@perplexity.partial("p")
def _(value: Any, p: Any, *, axis: Any) -> Any:
    return value * entropy_gradient(p)


perplexity.pushforward("p")(sum_along)


@perplexity.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, *, axis: Any) -> Any:
    # With u = -log p - 1 and v = exp(H):  d(v u_i) = v (u_i ⟨u, t⟩ - t_i/p_i).
    t, u = tangents["p"], entropy_gradient(p)
    value = jnp.exp(-jnp.sum(xlogx(p), axis=axis, keepdims=True))
    return (value * (along(u, sum_along(u, t, axis=axis)) - along(1 / p, t)),)


# -- of a binary variable ----------------------------------------------------------------------------------------------


@op(
    wrt=("p",),
    domain=Domain(p=Probability("B"), options=({}, {"base": 2}, {"where": Mask("B")})),
    group="entropy",
    formula="-p log p - (1-p) log(1-p)",
    gradient="log((1-p)/p)",
    source="Shannon 1948",
    fill={"p": 0.0},
)
def binary_entropy(p: ArrayLike, *, where: ArrayLike | None = None, base: float | None = None) -> jax.Array:
    r"""Entropy of a binary variable whose one value has probability p, elementwise.

    .. math:: H(p) = -p \log p - (1 - p) \log(1 - p), \qquad H'(p) = \log\frac{1 - p}{p}, \qquad
       H''(p) = -\frac{1}{p (1 - p)}

    Args:
      p: probabilities, of any shape.
      where: which of them exist, of p's shape. The others have value 0 and gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.

    Returns:
      An array of p's shape and dtype (16-bit floats are computed in float32).

    0 at 0 and 1, where the gradient is +inf and -inf; NaN outside [0, 1].

    Raises:
      ValueError: for a mask of another shape, or a base that is none.

    >>> binary_entropy(jnp.array([0.0, 0.5, 1.0]), base=2)
    Array([0., 1., 0.], dtype=float32)
    """
    return -xlogx(p) - xlogx(1 - jnp.asarray(p))


@binary_entropy.value
def _(p: Any) -> Any:
    # 1 - p is exact for p ≥ ½; log1p(-p) needs no exact 1 - p. Both terms are non-negative.
    inside = (p >= 0) & (p <= 1)
    first = jnp.where(p == 0, 0, -p * log(p))
    second = jnp.where(p == 1, 0, -(1 - p) * jnp.log1p(-p))
    return jnp.where(inside, first + second, jnp.nan), None


@binary_entropy.partial("p")
def _(saved: None, p: Any) -> Any:
    # log((1-p)/p) = log1p((1-2p)/p), in which 1 - 2p is exact for p in [¼, ¾], where the two logarithms would cancel.
    near = jnp.abs(p - 0.5) <= 0.25
    middle = jnp.log1p((1 - 2 * p) / jnp.where(near, p, 0.5))
    return jnp.where(near, middle, jnp.log1p(-p) - log(p))


binary_entropy.pushforward("p")(along)


@binary_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any) -> Any:
    return (-along(1 / (p * (1 - p)), tangents["p"]),)


@op(
    wrt=("logit",),
    domain=Domain(logit=Logit("B"), options=({}, {"base": 2}, {"where": Mask("B")})),
    group="entropy",
    formula="H(σ(x))",
    gradient="-x σ(x) σ(-x)",
    source="Shannon 1948, of the logistic function",
    fill={"logit": 0.0},
)
def binary_entropy_from_logits(
    logit: ArrayLike, *, where: ArrayLike | None = None, base: float | None = None
) -> jax.Array:
    r"""Entropy of a binary variable whose probability is σ(x), from the logit x, elementwise.

    With :math:`a = |x|`, :math:`e = e^{-a}` and :math:`q = e/(1+e) = \sigma(-a)`:

    .. math:: H = \log(1 + e) + a q, \qquad H'(x) = -x\,\sigma(x)\,\sigma(-x), \qquad
       H''(x) = \sigma(x)\,\sigma(-x)\,(x \tanh(x/2) - 1)

    Args:
      logit: real numbers, of any shape.
      where: which of them exist, of the logits' shape. The others have value 0 and gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.

    Returns:
      An array of the logits' shape and dtype (16-bit floats are computed in float32).

    Both terms are non-negative, so that a confident model's entropy keeps its digits. At ±inf value and all
    derivatives are 0.

    Raises:
      ValueError: for a mask of another shape, or a base that is none.

    >>> binary_entropy_from_logits(jnp.array([0.0, jnp.inf]), base=2)
    Array([1., 0.], dtype=float32)
    """
    p, q = jax.nn.sigmoid(jnp.asarray(logit)), jax.nn.sigmoid(-jnp.asarray(logit))
    return -xlogx(p) - xlogx(q)


@binary_entropy_from_logits.value
def _(logit: Any) -> Any:
    a = jnp.abs(logit)
    e = jnp.exp(-a)
    return jnp.log1p(e) + jnp.where(e == 0, 0, a * (e / (1 + e))), e


@binary_entropy_from_logits.partial("logit")
def _(e: Any, logit: Any) -> Any:
    return jnp.where(e == 0, 0, -logit * (e / ((1 + e) * (1 + e))))


@binary_entropy_from_logits.second
def _(tangents: dict[str, Any], active: tuple[str, ...], logit: Any) -> Any:
    a = jnp.abs(logit)
    e = jnp.exp(-a)
    curvature = e / ((1 + e) * (1 + e)) * (a * ((1 - e) / (1 + e)) - 1)
    return (tangents["logit"] * jnp.where(e == 0, 0, curvature),)


# -- of counts and labels ----------------------------------------------------------------------------------------------


@op(
    wrt=("counts",),
    domain=Domain(counts=Counts("B K"), options=(*_MEASURE_OPTIONS, {"correction": "miller-madow"})),
    group="entropy",
    formula="Σ (n/N) log(N/n)",
    gradient="(log(N/n) - H) / N",
    source="Shannon 1948; Miller 1955",
    fill={"counts": 0.0},
)
def entropy_of_counts(
    counts: ArrayLike,
    correction: Literal["miller-madow"] | None = None,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Entropy of the relative frequencies of counts.

    .. math:: H = \sum_c \frac{n_c}{N} \log \frac{N}{n_c}, \quad N = \sum_c n_c, \qquad
       \frac{\partial H}{\partial n_c} = \frac{1}{N} \left(\log\frac{N}{n_c} - H\right)

    Args:
      counts: how often each class occurred, along ``axis``: integers or floats (weighted counts), non-negative.
      correction: ``"miller-madow"`` adds (m - 1)/(2N) nats, where m classes occurred: the first-order term of the bias
        of the plain estimate, which is on average too small.
      axis: the axis, or axes, of the classes; None for all.
      where: which entries exist, of the shape of the counts. The others count as 0 and have gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axis with length 1.

    Returns:
      The entropy without ``axis``; of integers in the default float dtype, otherwise in the dtype of the counts.

    A class that did not occur contributes 0, with gradient +inf. Without any count (N = 0), and with a negative one,
    the entropy is NaN; where nothing is left by the mask it is 0.

    Raises:
      ValueError: for another correction, an axis that is missing or empty, a mask of another shape, or a base that is
        none.

    >>> entropy_of_counts(jnp.array([2, 1, 1]), base=2)
    Array(1.5, dtype=float32)
    """
    total = jnp.sum(counts, axis=axis, keepdims=True)
    value = -jnp.sum(xlogx(counts / total), axis=axis, keepdims=keepdims)
    if correction is not None:
        occurred = jnp.sum(jnp.asarray(counts) > 0, axis=axis, keepdims=keepdims)
        value = value + (occurred - 1) / (2 * jnp.sum(counts, axis=axis, keepdims=keepdims))
    return value


@entropy_of_counts.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    correction = bound["correction"]
    if correction not in (None, "miller-madow"):
        raise ValueError(f"entropy_of_counts: correction must be None or 'miller-madow', got {correction!r}")
    return bound


def _miller_madow(counts: Any, total: Any, correction: str | None, axis: Any) -> Any:
    """(m - 1)/(2N), or 0 without a correction."""
    if correction is None:
        return jnp.zeros_like(total)
    return (jnp.sum(counts > 0, axis=axis, keepdims=True) - 1) / (2 * total)


def _plain_entropy_of_counts(counts: Any, axis: Any) -> tuple[Pair, Pair, Pair]:
    """H, log(N/n) and N as pairs."""
    total = pair_sum(counts, axis)
    surprise = log_ratio(total, counts)
    return divide(pair_sum(weighted(counts, surprise), axis), total), surprise, total


@entropy_of_counts.value
def _(counts: Any, correction: Any, *, axis: Any) -> Any:
    plain, surprise, total = _plain_entropy_of_counts(counts, axis)
    bias = _miller_madow(counts, total[0], correction, axis)
    return rounded(add(plain, as_pair(bias))), (total[0], surprise, plain, bias)


@entropy_of_counts.partial("counts")
def _(saved: Any, counts: Any, correction: Any, *, axis: Any) -> Any:
    # H = S/N with S = Σ n log(N/n) and ∂S/∂n_c = log(N/n_c).
    total, surprise, plain, bias = saved
    return (rounded(add(surprise, negative(plain))) - bias) / total


entropy_of_counts.pushforward("counts")(sum_along)


@entropy_of_counts.second
def _(tangents: dict[str, Any], active: tuple[str, ...], counts: Any, correction: Any, *, axis: Any) -> Any:
    # g_c = (l_c - E)/N with l_c = log(N/n_c), E = H + the bias:  dl_c = T/N - t_c/n_c,  dE = ⟨g, t⟩.
    t = tangents["counts"]
    total = jnp.sum(counts, axis=axis, keepdims=True)
    surprise = log_quotient(total + jnp.zeros_like(counts), counts)
    plain = jnp.sum(jnp.where(counts == 0, 0, counts * surprise), axis=axis, keepdims=True) / total
    bias = _miller_madow(counts, total, correction, axis)
    g = (surprise - plain - bias) / total
    moved, value_dot = jnp.sum(t, axis=axis, keepdims=True), sum_along(g, t, axis=axis)
    return ((moved / total - along(1 / counts, t) - value_dot - along(g, moved)) / total,)


@op(
    wrt=(),
    domain=Domain(
        labels=Labels("B K", classes="J"),
        options=({"num_classes": 3}, {"num_classes": 3, "axis": 0}, {"num_classes": 3, "where": Mask("B K")}),
    ),
    group="entropy",
    formula="-Σ_c p_c log p_c, p_c = N_c/N",
    gradient="none: labels are integers",
    source="Shannon 1948",
    fill={"labels": -2},
)
def entropy_of_labels(
    labels: ArrayLike,
    num_classes: int,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Entropy of the relative frequencies of integer labels.

    .. math:: H = -\sum_c p_c \log p_c, \qquad p_c = N_c / N

    Args:
      labels: class indices, the sequence along ``axis``.
      num_classes: how many classes there are.
      axis: the axis, or axes, of the sequence; None for all.
      where: which labels exist, of their shape. The others are not counted.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axis with length 1.

    Returns:
      The entropy without ``axis``, in the default float dtype.

    NaN for a sequence with a label outside [0, num_classes); 0 where nothing is left by the mask. Labels are integers:
    there is no derivative.

    Raises:
      TypeError: for labels that are not integers.
      ValueError: for num_classes < 1, an axis that is missing or empty, a mask of another shape, a base that is none.

    >>> entropy_of_labels(jnp.array([0, 1, 0, 1]), num_classes=2, base=2)
    Array(1., dtype=float32)
    """
    labels = jnp.asarray(labels)
    axes = tuple(range(labels.ndim)) if axis is None else axis
    counts = [jnp.sum(labels == c, axis=axes, keepdims=True) for c in range(num_classes)]
    total = jnp.sum(jnp.stack(counts), axis=0)
    value = -sum(xlogx(n / total) for n in counts)
    return value if keepdims else jnp.squeeze(value, axes)


#: What a label outside the classes becomes, and what a masked one is (``fill`` above).
_BAD, _MASKED = -1, -2


@entropy_of_labels.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    labels, num_classes = bound["labels"], bound["num_classes"]
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"entropy_of_labels: labels must be integers, got dtype {labels.dtype}")
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"entropy_of_labels: num_classes must be a positive integer, got {num_classes!r}")
    indices = class_indices(labels, num_classes)
    return bound | {"labels": jnp.where((indices >= 0) & (indices < num_classes), indices, _BAD)}


@entropy_of_labels.value
def _(labels: Any, num_classes: int, *, axis: Any) -> Any:
    axes = range(labels.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    summed = tuple(one % labels.ndim for one in axes)
    kept = tuple(one for one in range(labels.ndim) if one not in summed)
    shape = tuple(1 if one in summed else size for one, size in enumerate(labels.shape))
    sequences = jnp.transpose(labels, (*kept, *summed)).reshape(math.prod(shape), -1) - _MASKED
    rows = jnp.arange(sequences.shape[0])[:, None]
    counts = jnp.zeros((sequences.shape[0], num_classes - _MASKED), jnp.int32).at[rows, sequences].add(1)
    occurred = counts[:, -_MASKED:].astype(jnp.result_type(float))
    value = rounded(_plain_entropy_of_counts(occurred, -1)[0])
    return jnp.where(counts[:, _BAD - _MASKED : _BAD - _MASKED + 1] > 0, jnp.nan, value).reshape(shape), None
