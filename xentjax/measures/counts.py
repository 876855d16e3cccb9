"""Entropy of what was observed: of counts and of labels."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core.domains import Counts, Domain, Labels, Mask
from xentjax.core.op import op
from xentjax.core.policy import class_indices
from xentjax.core.rule import along
from xentjax.measures.entropy import DISTRIBUTION_OPTIONS, Axis
from xentjax.numerics import log_quotient, sum_along, total, xlogx
from xentjax.pairs import is_positive_and_finite, largest_of, mantissa_and_exponent, scaled, two_sum

# -- of a distribution -------------------------------------------------------------------------------------------------


@op(
    wrt=("counts",),
    domain=Domain(counts=Counts("B K"), options=(*DISTRIBUTION_OPTIONS, {"correction": "miller-madow"})),
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


def _miller_madow(counts: Any, number: tuple[Any, Any], correction: str | None, axis: Any) -> Any:
    """(m - 1)/(2N), or 0 without a correction."""
    if correction is None:
        return jnp.zeros_like(number[0])
    occurred = jnp.sum(is_positive_and_finite(counts), axis=axis, keepdims=True)
    return _over(0.5 * (occurred - 1).astype(number[0].dtype), number)


def _surprise(counts: Any, axis: Any) -> tuple[tuple[Any, Any], Any, Any, Any]:
    """N, log(N/M) for the largest count M, λ_c = log(M/n_c), and h = Σ n λ / N, with which H = log(N/M) + h.

    The gradient is a difference of λ_c and h, which are smaller than log(N/n_c) and H. N is a number and the exponent
    of the power of two that it is times: the counts are measured by the power of two that is close to M, so that no sum
    leaves the range. Of log(N/M) = log(1 + (N - M)/M) the sum is that of all the other counts.
    """
    largest = largest_of(counts, axis)
    below = log_quotient(largest + jnp.zeros_like(counts), counts)
    (mantissa, exponent), (largest, unit) = mantissa_and_exponent(counts), mantissa_and_exponent(largest)
    counts, _ = scaled((mantissa, jnp.zeros_like(mantissa)), exponent - unit)
    others = total(jnp.where(below > 0, counts, 0), axis)
    ties = jnp.sum(below == 0, axis=axis, keepdims=True, dtype=counts.dtype)
    others = others + jnp.maximum(ties - 1, 0) * largest
    number = others + largest
    above = log_quotient(two_sum(largest, others), largest)
    mean = total(jnp.where(counts == 0, 0, counts * below), axis) / number
    return (number, unit), above, below, mean


def _over(x: Any, number: tuple[Any, Any]) -> Any:
    """x/N."""
    quotient, _ = scaled((x / number[0], jnp.zeros_like(x)), -number[1])
    return quotient


@entropy_of_counts.value
def _(counts: Any, correction: Any, *, axis: Any) -> Any:
    number, above, below, mean = _surprise(counts, axis)
    bias = _miller_madow(counts, number, correction, axis)
    return above + mean + bias, (number, below, mean + bias)


@entropy_of_counts.partial("counts")
def _(saved: Any, counts: Any, correction: Any, *, axis: Any) -> Any:
    # H = S/N with S = Σ n log(N/n) and ∂S/∂n_c = log(N/n_c).
    number, below, mean = saved
    return _over(below - mean, number)


@entropy_of_counts.second
def _(tangents: dict[str, Any], active: tuple[str, ...], counts: Any, correction: Any, *, axis: Any) -> Any:
    # g_c = (l_c - E)/N with l_c = log(N/n_c), E = H + the bias:  dl_c = T/N - t_c/n_c,  dE = ⟨g, t⟩.
    t = tangents["counts"]
    number, _, below, mean = _surprise(counts, axis)
    g = _over(below - mean - _miller_madow(counts, number, correction, axis), number)
    moved, value_dot = jnp.sum(t, axis=axis, keepdims=True), sum_along(g, t, axis=axis)
    return (_over(_over(moved, number) - along(1 / counts, t) - value_dot - along(g, moved), number),)


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
    _, above, _, mean = _surprise(occurred, -1)
    value = above + mean
    return jnp.where(counts[:, _BAD - _MASKED : _BAD - _MASKED + 1] > 0, jnp.nan, value).reshape(shape), None
