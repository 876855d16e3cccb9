"""Logistic and softmax regression: parameters and prediction."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from xentjax.activations import logistic, softmax, softmax_tangent
from xentjax.core import policy
from xentjax.core.domains import Domain, Kind, Logit
from xentjax.core.op import op
from xentjax.models import _rows


class LogisticParams(NamedTuple):
    """Weights and bias of a linear predictor: ``[d]`` and ``[]`` for two classes, ``[d, K]`` and ``[K]`` for K."""

    weights: Any
    bias: Any


class Parameters(Kind):
    """:class:`LogisticParams` for checks; ``shape`` is that of the weights (``"D"`` or ``"D K"``)."""

    named = LogisticParams

    def draw(self, situation: str, rng: np.random.Generator, sizes: Any, drawn: dict[str, Any]) -> LogisticParams:
        scale = {"tiny": 1e-3, "large": 10.0, "huge": 100.0}.get(situation, 1.0)
        shape = self.dims(sizes)
        return LogisticParams(rng.standard_normal(shape) * scale, np.asarray(rng.standard_normal(shape[1:]) * scale))


# -- prediction --------------------------------------------------------------------------------------------------------


def predict_logits(params: LogisticParams, x: ArrayLike) -> jax.Array:
    r"""The linear predictor :math:`z = xW + b`.

    Args:
      params: weights ``[d]`` and bias ``[]``, or weights ``[d, K]`` and bias ``[K]``.
      x: features ``[..., d]``.

    Returns:
      Logits ``[...]`` or ``[..., K]`` in the promoted float dtype; 16-bit inputs are computed in float32.

    Raises:
      TypeError: params are no ``LogisticParams``.
      ValueError: a shape does not fit; the error names the argument, its shape and the shape it needs.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> xj.predict_logits(xj.LogisticParams(jnp.array([1.0, -1.0]), 0.5), jnp.array([[2.0, 1.0]]))
      Array([1.5], dtype=float32)
    """
    params, x, dtype = _operands("predict_logits", params, x)
    return _rows.logits(params, x).astype(dtype)


def predict_proba(params: LogisticParams, x: ArrayLike) -> jax.Array:
    r"""Predicted probabilities: :math:`\hat y = \sigma(xw + b)`, or :math:`\operatorname{softmax}(xW + b)`.

    Args:
      params: as in :func:`predict_logits`.
      x: features ``[..., d]``.

    Returns:
      With two classes (weights ``[d]``) the probability of class 1, ``[...]``; otherwise the distribution over the
      classes, ``[..., K]``. The dtype is the promoted float dtype.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> xj.predict_proba(xj.LogisticParams(jnp.array([1.0]), 0.0), jnp.array([[0.0], [3.0]]))
      Array([0.5       , 0.95257413], dtype=float32)
    """
    params, x, dtype = _operands("predict_proba", params, x)
    z = _rows.logits(params, x)
    return (logistic(z) if params.weights.ndim == 1 else softmax(z)).astype(dtype)


def predict(params: LogisticParams, x: ArrayLike) -> jax.Array:
    """Predicted classes.

    Args:
      params: as in :func:`predict_logits`.
      x: features ``[..., d]``.

    Returns:
      int32 ``[...]``. Two classes: 1 where the logit is above 0 (a probability above one half), otherwise 0.
      K classes: the index of the largest logit, the lowest such index in a tie. A row whose logits have a NaN belongs
      to no class: -1.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> xj.predict(xj.LogisticParams(jnp.array([1.0]), 0.0), jnp.array([[-1.0], [0.0], [2.0], [jnp.nan]]))
      Array([ 0,  0,  1, -1], dtype=int32)
    """
    params, x, _ = _operands("predict", params, x)
    z = _rows.logits(params, x)
    if params.weights.ndim == 1:
        return jnp.where(jnp.isnan(z), -1, (z > 0).astype(jnp.int32))
    return jnp.where(jnp.any(jnp.isnan(z), axis=-1), -1, jnp.argmax(z, axis=-1).astype(jnp.int32))


# -- the textbook steps ------------------------------------------------------------------------------------------------


@op(
    wrt=("z",),
    domain=Domain(z=Logit("B")),
    group="prediction",
    formula="σ(z) (1 - σ(z))",
    gradient="-σ'(z) tanh(z/2)",
    source="σ' = σ(z)σ(-z) = e/(1+e)² with e = exp(-|z|)",
)
def logistic_derivative(z: ArrayLike) -> jax.Array:
    r"""The derivative of the logistic function.

    .. math:: \sigma'(z) = \sigma(z)\,(1 - \sigma(z)) = \frac{e}{(1+e)^2}, \quad e = e^{-|z|}

    Derivative, by hand: :math:`\sigma''(z) = \sigma'(z)\,(1 - 2\sigma(z)) = -\sigma'(z)\tanh(z/2)`.

    Args:
      z: real numbers of any shape.

    Returns:
      An array of the same shape and float dtype. It is 0 at :math:`\pm\infty`.

    Example:
      >>> import xentjax as xj
      >>> xj.logistic_derivative(0.0)
      Array(0.25, dtype=float32)
    """
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)  # type: ignore[operator]


@logistic_derivative.value
def _(z: Any) -> Any:
    e = jnp.exp(-jnp.abs(z))
    return e / ((1 + e) * (1 + e)), None


@logistic_derivative.partial("z")
def _(saved: None, z: Any) -> Any:
    e = jnp.exp(-jnp.abs(z))
    return -(e / ((1 + e) * (1 + e))) * jnp.tanh(z / 2)


def prediction_gradient(params: LogisticParams, x: ArrayLike) -> LogisticParams:
    r"""The gradient of each prediction with respect to the parameters, derived by hand.

    .. math::
      \frac{\partial\hat y}{\partial w} = \hat y(1-\hat y)\,x, \quad
      \frac{\partial\hat y}{\partial b} = \hat y(1-\hat y), \qquad
      \frac{\partial P_c}{\partial W_{jk}} = P_c(\delta_{ck} - P_k)\,x_j

    Args:
      params: as in :func:`predict_logits`.
      x: features ``[..., d]``.

    Returns:
      ``LogisticParams`` with weights ``[..., d]`` and bias ``[...]``, or with K classes ``[..., K, d, K]`` and
      ``[..., K, K]``, the prediction's axes first: the Jacobian of :func:`predict_proba`.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> xj.prediction_gradient(xj.LogisticParams(jnp.array([0.0, 0.0]), 0.0), jnp.array([2.0, 4.0])).weights
      Array([0.5, 1. ], dtype=float32)
    """
    params, x, dtype = _operands("prediction_gradient", params, x)
    z = _rows.logits(params, x)
    if params.weights.ndim == 1:
        slope = logistic_derivative(z)
        gradient = LogisticParams(slope[..., None] * x, slope)
    else:
        # Row c of diag(P) - P Pᵀ is the tangent of softmax along the unit vector c.
        p = softmax(z)[..., None, :]
        slope = softmax_tangent(p, jnp.eye(z.shape[-1], dtype=z.dtype), -1)
        gradient = LogisticParams(slope[..., :, None, :] * x[..., None, :, None], slope)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), gradient)


# -- arguments ---------------------------------------------------------------------------------------------------------


def _operands(function: str, params: LogisticParams, x: Any) -> tuple[LogisticParams, Any, Any]:
    """Parameters and features in the dtype of computation, and the dtype of the result."""
    params = params_as_arrays(function, "params", params)
    x = policy.as_array(function, "x", x)
    check_model(function, params, x)
    dtype = policy.result_dtype((params, x))
    compute = policy.compute_dtype(dtype)
    return LogisticParams(*(p.astype(compute) for p in params)), x.astype(compute), dtype


def params_as_arrays(function: str, name: str, params: Any) -> LogisticParams:
    """The parameters as arrays, or TypeError for anything but :class:`LogisticParams`."""
    _require_params(function, name, params)
    return LogisticParams(
        *(policy.as_array(function, f"{name}.{n}", v) for n, v in zip(params._fields, params, strict=True))
    )


def _require_params(function: str, name: str, params: Any) -> None:
    if not isinstance(params, LogisticParams):
        raise TypeError(f"{function}: {name} must be LogisticParams(weights, bias), got {type(params).__name__}")


def check_model(function: str, params: LogisticParams, x: Any) -> None:
    """Raise TypeError for anything but parameters, ValueError where their shapes and those of features do not fit."""
    _require_params(function, "params", params)
    weights, bias = params
    if weights.ndim not in (1, 2):
        raise ValueError(f"{function}: params.weights has shape {weights.shape}, but needs [d] or [d, K]")
    policy.require_shape(function, "params.bias", bias.shape, weights.shape[1:], "one for each column of the weights")
    if x.ndim < 1 or x.shape[-1] != weights.shape[0]:
        raise ValueError(
            f"{function}: x has shape {x.shape}, but needs [..., {weights.shape[0]}], a column for each weight"
        )
