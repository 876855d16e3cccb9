"""The rows of a logistic regression: logits, losses, residuals and slopes, each with its own exact formula.

Two classes have logits ``[n]``, K classes ``[n, K]``; every function here handles both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.core import policy

#: Tensor cores would round the factors of a product to fewer digits than the dtype has.
PRECISION = jax.lax.Precision.HIGHEST


class Rows(NamedTuple):
    """Everything per row, and the weighted mean loss."""

    logits: Any
    loss: Any
    residual: Any  # ŷ - y or P - Y
    keep: Any  # which rows are kept: those with a weight or without NaN; None stands for all
    share: Any  # s / Σs; None stands for 1/n
    total: Any  # Σs
    mean: Any


def logits(params: Any, x: Any) -> Any:
    return jnp.matmul(x, params.weights, precision=PRECISION) + params.bias


def sigmoid(z: Any) -> Any:
    e = jnp.exp(-jnp.abs(z))
    return jnp.where(z >= 0, 1, e) / (1 + e)


def sigmoid_slope(z: Any) -> Any:
    e = jnp.exp(-jnp.abs(z))
    return e / ((1 + e) * (1 + e))


def softmax(z: Any) -> Any:
    return jax.nn.softmax(z, axis=-1)


def softmax_slope(z: Any) -> Any:
    """diag(P) - P Pᵀ; its diagonal as P_c Σ_{k≠c} P_k, which does not cancel."""
    p = softmax(z)
    same = jnp.eye(z.shape[-1], dtype=bool)
    outside = jnp.sum(jnp.where(same, 0, p[..., None, :]), axis=-1)
    return jnp.where(same, (p * outside)[..., None, :], -p[..., :, None] * p[..., None, :])


def evaluate(params: Any, x: Any, y: Any, weights: Any) -> Rows:
    """Logits, loss and residual of every row, zeros in those that are not kept, and the mean loss."""
    z = logits(params, x)
    loss, residual = _binary(z, y) if z.ndim == 1 else _multiclass(z, y)
    if weights is None:
        total = jnp.asarray(x.shape[0], z.dtype)
        mean = jnp.sum(loss) / max(x.shape[0], 1)
        return Rows(z, loss, residual, None, None, total, mean)
    share, keep = shares(weights)
    # A row of weight 0 stays where it is finite: the derivatives with respect to its weight are made of it.
    finite = jnp.isfinite(z if z.ndim == 1 else jnp.sum(z, axis=1)) & jnp.isfinite(loss)
    keep = keep | finite
    loss = only(keep, loss)
    return Rows(only(keep, z), loss, only(keep, residual), keep, share, jnp.sum(weights), jnp.sum(share * loss))


def shares(weights: Any) -> tuple[Any, Any]:
    """s / Σs (0 where the sum is 0), and which rows have a weight; None stands for 1/n and for all."""
    if weights is None:
        return None, None
    total = jnp.sum(weights)
    return jnp.where(total == 0, 0, weights / one_for_zero(total)), weights != 0


def only(keep: Any, rows: Any) -> Any:
    """The rows that are kept, and zeros in the others, whatever stands there."""
    return rows if keep is None else jnp.where(keep if rows.ndim == 1 else keep[:, None], rows, 0)


def scale(share: Any, rows: Any) -> Any:
    """p_i times row i."""
    if share is None:
        return rows / max(rows.shape[0], 1)
    return (share if rows.ndim == 1 else share[:, None]) * rows


def back(share: Any, residual: Any, x: Any) -> tuple[Any, Any]:
    """Xᵀ(p∘r) and Σ p r."""
    r = scale(share, residual)
    return times(r, x), jnp.sum(r, axis=0)


def times(r: Any, x: Any) -> Any:
    """Xᵀr. For a vector it is written as r X: XLA:CPU takes five times as long for the literal Xᵀr."""
    return jnp.matmul(r, x, precision=PRECISION) if r.ndim == 1 else jnp.matmul(x.T, r, precision=PRECISION)


def outer(residual: Any, weights: Any) -> Any:
    """r wᵀ, row by row: how the loss depends on the features."""
    if residual.ndim == 1:
        return residual[:, None] * weights
    return jnp.matmul(residual, weights.T, precision=PRECISION)


def target_gradient(z: Any) -> Any:
    """∂loss/∂y: -z for a probability, -log P for a distribution."""
    if z.ndim == 1:
        return -z
    d = z - jnp.max(z, axis=-1, keepdims=True)
    # log Σ e^d without the largest term, which is 1: where it dominates, log P of it is all in the rest.
    largest = jnp.arange(z.shape[-1]) == jnp.argmax(z, axis=-1)[..., None]
    return jnp.log1p(jnp.sum(jnp.where(largest, 0, jnp.exp(d)), axis=-1, keepdims=True)) - d


def target_gradient_tangent(z: Any, direction: Any) -> Any:
    """The tangent of ∂loss/∂y: -v, or ⟨P, v⟩ - v."""
    if z.ndim == 1:
        return -direction
    return jnp.sum(softmax(z) * direction, axis=-1, keepdims=True) - direction


def target_tangent(z: Any, direction: Any) -> Any:
    """The residual's tangent where the targets move: -dy, or P Σdy - dy."""
    return -direction if z.ndim == 1 else softmax(z) * mass(direction) - direction


def mass(targets: Any) -> Any:
    """The sum of each row of targets, which for a distribution is 1; None for a probability."""
    return None if targets.ndim == 1 else jnp.sum(targets, axis=-1, keepdims=True)


def slope_product(z: Any, direction: Any, mass: Any = None) -> Any:
    """The residual's tangent along a direction v of the logits: ŷ(1-ŷ)v, or P∘(v - ⟨P, v⟩) times the targets' mass."""
    if z.ndim == 1:
        return sigmoid_slope(z) * direction
    p = softmax(z)
    product = p * (direction - jnp.sum(p * direction, axis=-1, keepdims=True))
    return product if mass is None else mass * product


def nan_where_invalid(rows: Rows, values: Any) -> Any:
    """The values of each row, NaN where its residual is (a label out of range)."""
    bad = jnp.isnan(rows.residual if rows.residual.ndim == 1 else jnp.sum(rows.residual, axis=1))
    return jnp.where(bad.reshape((-1,) + (1,) * (values.ndim - 1)), jnp.nan, values)


def one_for_zero(total: Any) -> Any:
    return jnp.where(total == 0, 1, total)


def targets(y: Any, z: Any) -> Any:
    """Labels as probabilities of class 1, or as distributions; NaN where they are out of range."""
    if y.ndim == z.ndim:
        return jnp.where((y >= 0) & (y <= 1), y, jnp.nan) if y.ndim == 1 else jnp.where(y >= 0, y, jnp.nan)
    y = policy.class_indices(y, z.shape[1])[:, None]
    return jnp.where((y >= 0) & (y < z.shape[1]), jnp.arange(z.shape[1]) == y, jnp.nan)


# -- losses ------------------------------------------------------------------------------------------------------------


def _binary(z: Any, y: Any) -> tuple[Any, Any]:
    """With a = |z|, e = exp(-a), q = e/(1+e) and s the target of the unlikelier class, loss = s a + log1p(e)."""
    t = targets(y, z).astype(z.dtype)
    a = jnp.abs(z)
    e = jnp.exp(-a)
    s = jnp.where(z >= 0, 1 - t, t)
    loss = jnp.where(s == 0, 0, s * a) + jnp.log1p(e)
    residual = jnp.where(z >= 0, 1, -1) * (s - e / (1 + e))
    return loss, residual


def _multiclass(z: Any, y: Any) -> tuple[Any, Any]:
    d = z - jnp.max(z, axis=1, keepdims=True)
    e = jnp.exp(d)
    total = jnp.sum(e, axis=1, keepdims=True)
    if y.ndim == 1:
        y = policy.class_indices(y, z.shape[1])
        own = jnp.arange(z.shape[1]) == y[:, None]
        rest = jnp.sum(jnp.where(own, 0, e), axis=1, keepdims=True)
        d_own = jnp.sum(jnp.where(own, d, 0), axis=1, keepdims=True)
        loss = jnp.where(d_own == 0, jnp.log1p(rest), jnp.log(total) - d_own)
        valid = ((y >= 0) & (y < z.shape[1]))[:, None]
        residual = jnp.where(own, -rest, e) / total
        return jnp.where(valid, loss, jnp.nan)[:, 0], jnp.where(valid, residual, jnp.nan)
    y = targets(y, z)
    mass = jnp.sum(y, axis=1, keepdims=True)
    top = jnp.arange(z.shape[1]) == jnp.argmax(z, axis=1)[:, None]
    rest = jnp.sum(jnp.where(top, 0, e), axis=1, keepdims=True)
    loss = jnp.sum(jnp.where(y == 0, 0, -y * d), axis=1, keepdims=True) + mass * jnp.log1p(rest)
    others = jnp.sum(jnp.where(top, 0, y), axis=1, keepdims=True)
    residual = jnp.where(top, others - mass * rest / total, mass * e / total - y)
    return loss[:, 0], residual
