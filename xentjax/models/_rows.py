"""The rows of a logistic regression: logits, losses, residuals and curvature, by the losses' own records.

Two classes have logits ``[n]``, K classes ``[n, K]``; every function here handles both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.losses.sigmoid import sigmoid_cross_entropy
from xentjax.losses.softmax import softmax_cross_entropy

#: Tensor cores would round the factors of a product to fewer digits than the dtype has.
PRECISION = jax.lax.Precision.HIGHEST


class RowTerms(NamedTuple):
    """Everything per row, with zeros in the rows left out, and the weighted mean loss."""

    x: Any
    y: Any
    logits: Any
    loss: Any
    residual: Any  # ŷ - y or P - Y
    by_target: Any  # ∂loss/∂y: -z or -log P; None for class indices
    share: Any  # s / Σs; None stands for 1/n
    total: Any  # Σs
    mean: Any


def logits(params: Any, x: Any) -> Any:
    products = jnp.matmul(x, params.weights, precision=PRECISION)
    return products + jnp.broadcast_to(params.bias, products.shape)


def row_terms(params: Any, x: Any, y: Any, weights: Any, offset: Any = None) -> RowTerms:
    """Logits, loss and residual of every row, and the mean loss."""
    share = shares(weights)
    if weights is not None:
        # A row of weight 0 stays where it is finite: the derivative with respect to its weight is made of it.
        finite = _is_finite(x) & _is_finite(y)
        keep = (weights != 0) | (finite if offset is None else finite & _is_finite(offset))
        x, y, offset = only(keep, x), only(keep, y), None if offset is None else only(keep, offset)
    z = logits(params, x)
    z = z if offset is None else z + offset
    loss, residual, by_target = slopes(z, y)
    total = jnp.asarray(x.shape[0], z.dtype) if weights is None else jnp.sum(weights)
    return RowTerms(x, y, z, loss, residual, by_target, share, total, jnp.sum(scale(share, loss)))


def slopes(z: Any, y: Any) -> tuple[Any, Any, Any]:
    """The loss of each row with its derivatives, ŷ - y by the logits and -z or -log P by the targets."""
    if policy.is_float(y) and y.ndim == 2:
        y = jnp.where(y >= 0, y, jnp.nan)
    if policy.is_float(y):
        loss, pull = jax.vjp(losses, z, y)
        return loss, *pull(jnp.ones_like(loss))
    loss, pull = jax.vjp(lambda z: losses(z, y), z)
    return loss, *pull(jnp.ones_like(loss)), None


def losses(z: Any, y: Any) -> Any:
    """The cross-entropy of each row; NaN where a label is out of range."""
    return sigmoid_cross_entropy(z, y) if z.ndim == 1 else softmax_cross_entropy(z, y)


def curved(z: Any, y: Any, direction: Any) -> Any:
    """The residual's tangent along a direction v of the logits: ŷ(1-ŷ)v, or P∘(v - ⟨P, v⟩) times the targets' sum."""
    return jax.jvp(lambda z: slopes(z, y)[1], (z,), (direction,))[1]


def shares(weights: Any) -> Any:
    """s / Σs (0 where the sum is 0); None stands for 1/n."""
    if weights is None:
        return None
    of_all = jnp.sum(weights)
    return jnp.where(of_all == 0, 0, weights / one_for_zero(of_all))


def total(weights: Any) -> Any:
    """What weights are divided by to be shares: their sum, 1 in the place of 0."""
    return one_for_zero(jnp.sum(weights))


def only(keep: Any, rows: Any) -> Any:
    """The rows that are kept, and zeros in the others, whatever stands there."""
    return jnp.where(keep if rows.ndim == 1 else keep[:, None], rows, 0)


def penalty(l2: Any, weights: Any) -> Any:
    """½ Σ_j λ_j w_j², with one factor or one for each feature."""
    return jnp.sum(pull(l2, weights) * weights) / 2


def pull(l2: Any, weights: Any) -> Any:
    """The penalty's gradient, λ_j w_j."""
    return (l2 if jnp.ndim(l2) == 0 or weights.ndim == 1 else l2[:, None]) * weights


def scale(share: Any, rows: Any) -> Any:
    """p_i times row i."""
    if share is None:
        return rows / max(rows.shape[0], 1)
    return share.reshape((-1,) + (1,) * (rows.ndim - 1)) * rows


def back(share: Any, residual: Any, x: Any) -> tuple[Any, Any]:
    """Xᵀ(p∘r) and Σ p r. For a vector r it is r X: XLA:CPU takes five times as long for the literal Xᵀr."""
    r = scale(share, residual)
    product = (r, x) if r.ndim == 1 else (x.T, r)
    return jnp.matmul(*product, precision=PRECISION), jnp.sum(r, axis=0)


def outer(residual: Any, weights: Any) -> Any:
    """r wᵀ, row by row: how the loss depends on the features."""
    if residual.ndim == 1:
        return residual[:, None] * weights
    return jnp.matmul(residual, weights.T, precision=PRECISION)


def one_for_zero(total: Any) -> Any:
    return jnp.where(total == 0, 1, total)


def _is_finite(rows: Any) -> Any:
    """Which rows are finite: 0 times them sums to 0. (One fused pass; compares take XLA:CPU twice as long.)"""
    return (rows * 0 if rows.ndim == 1 else jnp.sum(rows * 0, axis=1)) == 0
