"""The derivatives of the logistic loss in closed form: gradient, Hessian and Hessian-vector product."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from xentjax.core import policy
from xentjax.models import _rows
from xentjax.models.logistic import LogisticParams, check_arguments, params_as_arrays


class _Arguments(NamedTuple):
    params: LogisticParams
    x: Any
    y: Any
    l2: Any
    weights: Any


def logistic_value_and_gradient(
    params: LogisticParams, x: ArrayLike, y: ArrayLike, *, l2: ArrayLike = 0.0, weights: ArrayLike | None = None
) -> tuple[jax.Array, LogisticParams]:
    """:func:`logistic_loss` and :func:`logistic_gradient` from one pass over the rows."""
    arguments, dtype = checked("logistic_value_and_gradient", params, x, y, l2, weights)
    value, gradient = _value_and_gradient(arguments)
    return value.astype(dtype), _cast(gradient, dtype)


def logistic_gradient(
    params: LogisticParams, x: ArrayLike, y: ArrayLike, *, l2: ArrayLike = 0.0, weights: ArrayLike | None = None
) -> LogisticParams:
    r"""The gradient of :func:`logistic_loss` with respect to the parameters, in closed form.

    .. math::
      \nabla_w L = X^T(p \circ (\hat y - y)) + \lambda w, \quad
      \frac{\partial L}{\partial b} = \sum_i p_i(\hat y_i - y_i), \quad p_i = \frac{s_i}{\sum s}

    In the chain rule the factor :math:`\hat y(1-\hat y)` of :math:`\sigma'` cancels that of the logarithm. With K
    classes :math:`\nabla_W L = X^T(p \circ (P - Y)) + \lambda W`.

    Args and errors: those of :func:`logistic_loss`.

    Returns:
      ``LogisticParams`` of the shapes of the parameters, in the promoted float dtype.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> params = xj.LogisticParams(jnp.array([0.0]), 0.0)
      >>> xj.logistic_gradient(params, jnp.array([[1.0], [3.0]]), jnp.array([1, 1]))
      LogisticParams(weights=Array([-1.], dtype=float32), bias=Array(-0.5, dtype=float32))
    """
    arguments, dtype = checked("logistic_gradient", params, x, y, l2, weights)
    return _cast(_value_and_gradient(arguments)[1], dtype)


def logistic_hvp(
    params: LogisticParams,
    direction: LogisticParams,
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
) -> LogisticParams:
    r"""The Hessian of :func:`logistic_loss` times a direction, in closed form and without the Hessian.

    .. math::
      H v = \bigl(X^T(p \circ u) + \lambda v_w,\ \textstyle\sum_i p_i u_i\bigr), \quad
      u = \hat y(1-\hat y) \circ (X v_w + v_b)

    and with K classes, row by row, :math:`u = P \circ (a - \langle P, a\rangle)` for :math:`a = X V_W + v_b`.

    Args:
      params: where the Hessian is taken.
      direction: v, of the structure and shapes of params.
      x, y, l2, weights: as in :func:`logistic_loss`; y matters only where a label out of range makes it NaN.

    Returns:
      ``LogisticParams`` of the shapes of the parameters, in the promoted float dtype.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> params = xj.LogisticParams(jnp.array([0.0]), 0.0)
      >>> xj.logistic_hvp(params, params._replace(bias=1.0), jnp.array([[1.0], [3.0]]), jnp.array([0, 1]))
      LogisticParams(weights=Array([0.5], dtype=float32), bias=Array(0.25, dtype=float32))
    """
    arguments, dtype = checked("logistic_hvp", params, x, y, l2, weights)
    direction = params_as_arrays("logistic_hvp", "direction", direction)
    for name, got, needed in zip(direction._fields, direction, arguments.params, strict=True):
        policy.require_shape("logistic_hvp", f"direction.{name}", got.shape, needed.shape, f"that of params.{name}")
    direction = LogisticParams(*(d.astype(p.dtype) for d, p in zip(direction, arguments.params, strict=True)))
    return _cast(_hvp(arguments, direction), dtype)


def logistic_hessian(
    params: LogisticParams, x: ArrayLike, y: ArrayLike, *, l2: ArrayLike = 0.0, weights: ArrayLike | None = None
) -> LogisticParams:
    r"""The Hessian of :func:`logistic_loss` with respect to the parameters, in closed form.

    .. math::
      \nabla^2_{ww} L = X^T \operatorname{diag}(p \circ \hat y(1-\hat y))\, X + \lambda I, \quad
      \nabla^2_{wb} L = X^T (p \circ \hat y(1-\hat y)), \quad
      \nabla^2_{bb} L = \textstyle\sum_i p_i \hat y_i(1-\hat y_i)

    and with K classes :math:`\nabla^2_{W_{jc} W_{kd}} L = \sum_i p_i X_{ij} X_{ik} P_{ic}(\delta_{cd} - P_{id})`
    :math:`+\, \lambda\,\delta_{jk}\delta_{cd}`. It is positive semi-definite: the loss is convex.

    Args and errors: those of :func:`logistic_loss`; y matters only where a label out of range makes the Hessian NaN.

    Returns:
      What ``jax.hessian`` gives: a ``LogisticParams`` of ``LogisticParams``, ``hessian.weights.bias`` being the block
      of shape ``[*weights.shape, *bias.shape]``.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> params = xj.LogisticParams(jnp.array([0.0]), 0.0)
      >>> xj.logistic_hessian(params, jnp.array([[1.0], [3.0]]), jnp.array([0, 1])).weights.weights
      Array([[1.25]], dtype=float32)
    """
    arguments, dtype = checked("logistic_hessian", params, x, y, l2, weights)
    hessian = _binary_hessian(arguments) if arguments.params.weights.ndim == 1 else _multiclass_hessian(arguments)
    return _cast(hessian, dtype)


# -- the formulas ------------------------------------------------------------------------------------------------------


def _value_and_gradient(a: _Arguments) -> tuple[Any, LogisticParams]:
    rows = _rows.row_terms(a.params, a.x, a.y, a.weights)
    weights, bias = _rows.back(rows.share, rows.residual, rows.x)
    value = rows.mean + a.l2 / 2 * jnp.sum(a.params.weights**2)
    return value, LogisticParams(weights + a.l2 * a.params.weights, bias)


def _hvp(a: _Arguments, direction: LogisticParams) -> LogisticParams:
    rows = _rows.row_terms(a.params, a.x, a.y, a.weights)
    moved = _rows.curved(rows.logits, rows.y, _rows.logits(direction, rows.x))
    weights, bias = _rows.back(rows.share, moved, rows.x)
    return LogisticParams(weights + a.l2 * direction.weights, bias)


def _binary_hessian(a: _Arguments) -> LogisticParams:
    rows = _rows.row_terms(a.params, a.x, a.y, a.weights)
    x = rows.x
    curvature = _rows.scale(rows.share, _rows.curved(rows.logits, rows.y, jnp.ones_like(rows.logits)))
    both = jnp.matmul((x * curvature[:, None]).T, x, precision=_rows.PRECISION)
    cross = jnp.matmul(curvature, x, precision=_rows.PRECISION)
    both = both + a.l2 * jnp.eye(x.shape[1], dtype=both.dtype)
    return LogisticParams(LogisticParams(both, cross), LogisticParams(cross, jnp.sum(curvature)))


def _multiclass_hessian(a: _Arguments) -> LogisticParams:
    rows = _rows.row_terms(a.params, a.x, a.y, a.weights)
    x, z = rows.x, rows.logits
    (d, k) = x.shape[1], z.shape[1]

    def of_class(unit: Any) -> tuple[Any, Any]:
        """Row c of each diag(P) - P Pᵀ, [n, k]; with X, at the cost of n k d numbers at a time and not n k k d."""
        curvature = _rows.scale(rows.share, _rows.curved(z, rows.y, jnp.broadcast_to(unit, z.shape)))
        return curvature, _products(x, curvature)

    curvature, both = jax.lax.map(of_class, jnp.eye(k, dtype=z.dtype))  # [k, n, k] and [k, d, k, d]
    both = jnp.transpose(both, (1, 0, 3, 2))
    identity = jnp.eye(d * k, dtype=both.dtype).reshape(d, k, d, k)
    cross = jnp.einsum("nj,cnk->jck", x, curvature, precision=_rows.PRECISION)
    return LogisticParams(
        LogisticParams(both + a.l2 * identity, cross),
        LogisticParams(jnp.transpose(cross, (1, 0, 2)), jnp.sum(curvature, axis=1)),
    )


def _products(x: Any, curvature: Any) -> Any:
    """Σ_i x_ij c_id x_ik as [j, d, k]."""
    weighted = (x[:, None, :] * curvature[:, :, None]).reshape(x.shape[0], -1)
    return jnp.matmul(x.T, weighted, precision=_rows.PRECISION).reshape(x.shape[1], curvature.shape[1], x.shape[1])


def checked(function: str, params: Any, x: Any, y: Any, l2: Any, weights: Any) -> tuple[_Arguments, Any]:
    """The arguments, checked, in the dtype of computation, and the dtype of the result."""
    params = params_as_arrays(function, "params", params)
    x, y, l2 = (policy.as_array(function, n, v) for n, v in (("x", x), ("y", y), ("l2", l2)))
    weights = None if weights is None else policy.as_array(function, "weights", weights)
    check_arguments(function, params, x, y, l2, weights)
    dtype = policy.result_dtype((params, x, y))
    compute = policy.compute_dtype(dtype)
    params = LogisticParams(*(p.astype(compute) for p in params))
    y = y.astype(compute) if policy.is_float(y) else y
    weights = None if weights is None else weights.astype(compute)
    return _Arguments(params, x.astype(compute), y, l2.astype(compute), weights), dtype


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
