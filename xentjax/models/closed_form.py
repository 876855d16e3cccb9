"""The derivatives of the logistic loss in closed form: gradient, Hessian and Hessian-vector product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.models import _rows, one_pass
from xentjax.models.logistic import LogisticParams, params_as_arrays
from xentjax.models.loss import check_arguments
from xentjax.models.sparse import as_features


class Arguments(NamedTuple):
    """The arguments of a loss in the dtype of computation."""

    params: LogisticParams
    data: one_pass.Data
    l2: Any


def logistic_value_and_gradient(
    params: LogisticParams,
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> tuple[jax.Array, LogisticParams]:
    """:func:`logistic_loss` and :func:`logistic_gradient` from one pass over the rows."""
    arguments, dtype = checked("logistic_value_and_gradient", params, x, y, l2, weights, offset)
    value, gradient = value_and_gradient(arguments)
    return value.astype(dtype), _cast(gradient, dtype)


def logistic_gradient(
    params: LogisticParams,
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
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
    arguments, dtype = checked("logistic_gradient", params, x, y, l2, weights, offset)
    return _cast(value_and_gradient(arguments)[1], dtype)


def logistic_hvp(
    params: LogisticParams,
    direction: LogisticParams,
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> LogisticParams:
    r"""The Hessian of :func:`logistic_loss` times a direction, in closed form and without the Hessian.

    .. math::
      H v = \bigl(X^T(p \circ u) + \lambda v_w,\ \textstyle\sum_i p_i u_i\bigr), \quad
      u = \hat y(1-\hat y) \circ (X v_w + v_b)

    and with K classes, row by row, :math:`u = P \circ (a - \langle P, a\rangle)` for :math:`a = X V_W + v_b`.

    Args:
      params: where the Hessian is taken.
      direction: v, of the structure and shapes of params.
      x, y, l2, weights, offset: as in :func:`logistic_loss`; y matters only where a label out of range makes it NaN.

    Returns:
      ``LogisticParams`` of the shapes of the parameters, in the promoted float dtype.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> params = xj.LogisticParams(jnp.array([0.0]), 0.0)
      >>> xj.logistic_hvp(params, params._replace(bias=1.0), jnp.array([[1.0], [3.0]]), jnp.array([0, 1]))
      LogisticParams(weights=Array([0.5], dtype=float32), bias=Array(0.25, dtype=float32))
    """
    arguments, dtype = checked("logistic_hvp", params, x, y, l2, weights, offset)
    direction = params_as_arrays("logistic_hvp", "direction", direction)
    for name, got, needed in zip(direction._fields, direction, arguments.params, strict=True):
        policy.require_shape("logistic_hvp", f"direction.{name}", got.shape, needed.shape, f"that of params.{name}")
    direction = LogisticParams(*(d.astype(p.dtype) for d, p in zip(direction, arguments.params, strict=True)))
    return _cast(hvp(arguments, direction), dtype)


def logistic_hessian(
    params: LogisticParams,
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
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
    arguments, dtype = checked("logistic_hessian", params, x, y, l2, weights, offset)
    return _cast(_by_parameter(arguments.params, value_gradient_hessian(arguments)[2]), dtype)


# -- the formulas ------------------------------------------------------------------------------------------------------


def value(a: Arguments) -> Any:
    return one_pass.mean_loss(a.params, a.data) + _rows.penalty(a.l2, a.params.weights)


def value_and_gradient(a: Arguments) -> tuple[Any, LogisticParams]:
    sums = one_pass.sums(a.params, a.data)
    return _penalized(a, sums)


def value_gradient_hessian(a: Arguments, dtype: Any = None, exact: Any = None) -> tuple[Any, LogisticParams, Any]:
    """Value, gradient and Hessian, a matrix in the order of the raveled parameters, its products in ``dtype`` unless
    ``exact`` is given and true."""
    sums = one_pass.sums(a.params, a.data, hessian=True, hessian_dtype=dtype, exact=exact)
    return *_penalized(a, sums), sums.hessian + jnp.diag(_penalty_curvature(a).ravel())


def hvp(a: Arguments, direction: LogisticParams) -> LogisticParams:
    return _with_pull(a, one_pass.product(a.params, direction, a.data), direction)


def linearized(a: Arguments) -> Callable[[LogisticParams], LogisticParams]:
    """direction -> :func:`hvp`, with what all directions share computed once and kept: a number for each logit."""
    curvature = one_pass.row_curvature(a.params, a.data)

    def product(direction: LogisticParams) -> LogisticParams:
        direction = _cast(direction, a.params.bias.dtype)
        return _with_pull(a, one_pass.product_of_curvature(curvature, direction, a.data), direction)

    return product


def hessian_diagonal(a: Arguments) -> Any:
    """The diagonal of the Hessian, in the order of the raveled parameters."""
    return (one_pass.diagonal(a.params, a.data) + _penalty_curvature(a)).ravel()


def hessian_blocks(a: Arguments, dtype: Any = None) -> Any:
    """The blocks ``[K, d + 1, d + 1]`` of the Hessian between parameters of the same class (two classes: K = 1)."""
    blocks, k = one_pass.diagonal_blocks(a.params, a.data, dtype), a.params.bias.size
    penalty = _penalty_curvature(a).reshape(-1, k).T
    return blocks + penalty[:, :, None] * jnp.eye(penalty.shape[1], dtype=penalty.dtype)


def _with_pull(a: Arguments, product: Any, direction: LogisticParams) -> LogisticParams:
    weights, bias = one_pass.untable(product)
    return LogisticParams(weights + _rows.pull(a.l2, direction.weights), bias)


def _penalty_curvature(a: Arguments) -> Any:
    """The second derivatives of the penalty, as a table."""
    weights = a.params.weights
    factors = jnp.broadcast_to(a.l2 if jnp.ndim(a.l2) == 0 or weights.ndim == 1 else a.l2[:, None], weights.shape)
    return one_pass.table(LogisticParams(factors, jnp.zeros_like(a.params.bias)))


def _penalized(a: Arguments, sums: one_pass.Sums) -> tuple[Any, LogisticParams]:
    weights, bias = one_pass.untable(sums.gradient)
    value = sums.loss + _rows.penalty(a.l2, a.params.weights)
    return value, LogisticParams(weights + _rows.pull(a.l2, a.params.weights), bias)


def _by_parameter(params: LogisticParams, matrix: Any) -> LogisticParams:
    """The matrix as what ``jax.hessian`` gives, a LogisticParams of LogisticParams."""
    cut, of = params.weights.size, (params.weights.shape, params.bias.shape)
    rows = (matrix[:cut], matrix[cut:])
    return LogisticParams(
        *(
            LogisticParams(
                *(part.reshape(own + other) for part, other in zip((r[:, :cut], r[:, cut:]), of, strict=True))
            )
            for r, own in zip(rows, of, strict=True)
        )
    )


def checked(
    function: str, params: Any, x: Any, y: Any, l2: Any, weights: Any, offset: Any, scaling: Any = None
) -> tuple[Arguments, Any]:
    """The arguments, checked, in the dtype of computation (features are widened in their blocks), and the dtype of the
    result."""
    params = params_as_arrays(function, "params", params)
    x, y, l2 = as_features(function, x), policy.as_array(function, "y", y), policy.as_array(function, "l2", l2)
    weights, offset = (
        None if v is None else policy.as_array(function, n, v) for n, v in (("weights", weights), ("offset", offset))
    )
    check_arguments(function, params, x, y, l2, weights, offset)
    dtype = policy.result_dtype((params, x, y))
    compute = policy.compute_dtype(dtype)
    params = LogisticParams(*(p.astype(compute) for p in params))
    data = one_pass.Data(x, y, None if weights is None else weights.astype(compute), offset, scaling)
    return Arguments(params, data, l2.astype(compute)), dtype


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
