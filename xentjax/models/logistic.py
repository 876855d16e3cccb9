"""Logistic and softmax regression: parameters, prediction, and the penalized average cross-entropy."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from xentjax.activations import logistic, softmax, softmax_tangent
from xentjax.core import policy
from xentjax.core.domains import BinaryLabels, Domain, Kind, Labels, Logit, Probabilities, Probability, Real
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


# -- the loss ----------------------------------------------------------------------------------------------------------


@op(
    wrt=("params", "x", "y", "l2", "weights", "offset"),
    domain=Domain(
        params=Parameters("D"),
        x=Real("B D"),
        y=Probability("B"),
        options=(
            {"l2": 0.1},
            {"l2": Probability("D"), "y": BinaryLabels("B"), "weights": Probabilities("B"), "offset": Real("B")},
            {"params": Parameters("D K"), "y": Labels("B"), "l2": Probability("D")},
            {
                "params": Parameters("D K"),
                "y": Probabilities("B K"),
                "weights": Probabilities("B"),
                "offset": Real("B K"),
            },
        ),
    ),
    group="losses",
    formula="-Σ s (y log ŷ + (1-y) log(1-ŷ)) / Σ s + l2/2 ‖w‖²",
    gradient="Xᵀ(s∘(ŷ - y)) / Σ s + l2 w",
    source="the factor ŷ(1-ŷ) of the logistic function cancels that of the logarithm",
    axes=lambda options: None,
    own=("weights",),
)
def logistic_loss(
    params: LogisticParams,
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> jax.Array:
    r"""The average cross-entropy of a logistic or softmax regression, with a quadratic penalty on the weights.

    .. math::
      L = -\frac{1}{\sum_i s_i} \sum_i s_i \bigl[y_i\log\hat y_i + (1-y_i)\log(1-\hat y_i)\bigr]
          + \frac{\lambda}{2}\|w\|^2, \quad \hat y_i = \sigma(x_i w + b + o_i)

    and with K classes :math:`-\sum_c Y_{ic}\log P_{ic}` in the brackets,
    :math:`P = \operatorname{softmax}(XW + b + O)`.

    Gradient, by hand, with :math:`r = \hat y - y` (or :math:`P - Y`) and :math:`p_i = s_i/\sum s`:

    .. math::
      \frac{\partial L}{\partial w} = X^T(p \circ r) + \lambda w, \quad
      \frac{\partial L}{\partial b} = \sum_i p_i r_i, \quad
      \frac{\partial L}{\partial x_i} = p_i r_i w^T, \quad
      \frac{\partial L}{\partial s_i} = \frac{\ell_i - \bar\ell}{\sum s}, \quad
      \frac{\partial L}{\partial y_i} = -p_i z_i, \quad
      \frac{\partial L}{\partial o_i} = p_i r_i, \quad
      \frac{\partial L}{\partial \lambda} = \tfrac12\|w\|^2

    (for a target distribution :math:`\partial L/\partial Y_{ic} = -p_i \log P_{ic}`).

    Args:
      params: ``LogisticParams``: weights ``[d]`` and bias ``[]``, or weights ``[d, K]`` and bias ``[K]``.
      x: features ``[n, d]``.
      y: two classes: ``[n]``, 0 and 1 or probabilities of class 1. K classes: class indices ``[n]`` (integers), or
        target distributions ``[n, K]`` (floats), which are not renormalized.
      l2: the penalty's factor λ, or one for each feature ``[d]``. The bias is not penalized.
      weights: example weights s ``[n]``, by default all 1.
      offset: known parts o of the logits, ``[n]`` or ``[n, K]``.

    Returns:
      The loss in nats, a scalar of the promoted float dtype; 16-bit inputs are computed in float32.

    The derivative with respect to a weight is a difference of losses, and as exact as these: where all losses are
    nearly the same it has fewer digits.

    Rows of weight 0 count as if they were not there, with NaN in them too. If no row counts, the average is 0.
    A label out of range makes loss and gradient NaN.

    Raises:
      ValueError: a shape does not fit; the error names the argument, its shape and the shape it needs.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), sections 4.3.2 to 4.3.4.

    Example:
      >>> import jax, jax.numpy as jnp, xentjax as xj
      >>> x, y = jnp.array([[1.0], [-1.0]]), jnp.array([1, 0])
      >>> params = xj.LogisticParams(jnp.zeros(1), jnp.zeros(()))
      >>> xj.logistic_loss(params, x, y)
      Array(0.6931472, dtype=float32)
      >>> jax.grad(xj.logistic_loss)(params, x, y)
      LogisticParams(weights=Array([-0.5], dtype=float32), bias=Array(0., dtype=float32))
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else jnp.asarray(weights)
    # A row of weight 0 may hold anything: what is not finite there does not count.
    keep = jnp.asarray(weights != 0)[:, None]
    x = jnp.where(keep | jnp.isfinite(x), x, 0)
    z = jnp.matmul(x, params.weights) + params.bias
    if offset is not None:
        offset = jnp.asarray(offset)
        there = keep[:, 0] if offset.ndim == 1 else keep
        z = z + jnp.where(there | jnp.isfinite(offset), offset, 0)
    target = _targets(y, z)
    if z.ndim == 1:
        target = jnp.where(keep[:, 0] | jnp.isfinite(target), target, 0)
        loss = -(target * jax.nn.log_sigmoid(z) + (1 - target) * jax.nn.log_sigmoid(-z))
    else:
        target = jnp.where(keep | jnp.isfinite(target), target, 0)
        loss = -jnp.sum(target * jax.nn.log_softmax(z), axis=1)
    of_features = params.weights**2 if params.weights.ndim == 1 else jnp.sum(params.weights**2, axis=1)
    return jnp.sum(weights * loss) / jnp.sum(weights) + jnp.sum(l2 / 2 * of_features)


@logistic_loss.prepare
def _(bound: dict[str, Any], keep: None) -> dict[str, Any]:
    bound["l2"] = policy.as_array("logistic_loss", "l2", bound["l2"])
    check_arguments("logistic_loss", *bound.values())
    return bound


@logistic_loss.value
def _(params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    rows = _rows.row_terms(params, x, y, weights, offset)
    return rows.mean + _rows.penalty(l2, params.weights), rows


@logistic_loss.partial("params")
def _(rows: _rows.RowTerms, params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    w, b = _rows.back(rows.share, rows.residual, rows.x)
    return LogisticParams(w + _rows.pull(l2, params.weights), b)


@logistic_loss.partial("x")
def _(rows: _rows.RowTerms, params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    return _rows.outer(_rows.scale(rows.share, rows.residual), params.weights)


@logistic_loss.partial("y")
def _(rows: _rows.RowTerms, params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    return _rows.scale(rows.share, rows.by_target)


@logistic_loss.partial("l2")
def _(rows: _rows.RowTerms, params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    squares = params.weights**2
    if l2.ndim == 0:
        return jnp.sum(squares) / 2
    return (squares if squares.ndim == 1 else jnp.sum(squares, axis=1)) / 2


@logistic_loss.partial("weights")
def _(rows: _rows.RowTerms, params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    difference = policy.from_mean(rows.loss, rows.share)
    return jnp.where(rows.total == 0, 0, difference / _rows.one_for_zero(rows.total))


@logistic_loss.partial("offset")
def _(rows: _rows.RowTerms, params: Any, x: Any, y: Any, *, l2: Any, weights: Any, offset: Any) -> Any:
    return _rows.scale(rows.share, rows.residual)


def _targets(y: Any, z: Any) -> Any:
    """Labels as probabilities of class 1, or as distributions; NaN where they are out of range."""
    if y.ndim == z.ndim:
        y = policy.as_float(y, z.dtype)
        return jnp.where((y >= 0) & (y <= 1 if y.ndim == 1 else True), y, jnp.nan)
    y = policy.class_indices(y, z.shape[1])[:, None]
    is_class = jnp.arange(z.shape[1], dtype=y.dtype) == y
    return jnp.where((y >= 0) & (y < z.shape[1]), is_class.astype(z.dtype), jnp.nan)


# -- arguments ---------------------------------------------------------------------------------------------------------


def _operands(function: str, params: LogisticParams, x: Any) -> tuple[LogisticParams, Any, Any]:
    """Parameters and features in the dtype of computation, and the dtype of the result."""
    params = params_as_arrays(function, "params", params)
    x = policy.as_array(function, "x", x)
    _check_model(function, params, x)
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


def _check_model(function: str, params: LogisticParams, x: Any) -> None:
    _require_params(function, "params", params)
    weights, bias = params
    if weights.ndim not in (1, 2):
        raise ValueError(f"{function}: params.weights has shape {weights.shape}, but needs [d] or [d, K]")
    policy.require_shape(function, "params.bias", bias.shape, weights.shape[1:], "one for each column of the weights")
    if x.ndim < 1 or x.shape[-1] != weights.shape[0]:
        raise ValueError(
            f"{function}: x has shape {x.shape}, but needs [..., {weights.shape[0]}], a column for each weight"
        )


def check_arguments(
    function: str, params: LogisticParams, x: Any, y: Any, l2: Any, weights: Any, offset: Any = None
) -> None:
    """Raise ValueError where the shapes of a loss's arguments do not fit together."""
    _check_model(function, params, x)
    if x.ndim != 2:
        raise ValueError(f"{function}: x has shape {x.shape}, but needs [n, {params.weights.shape[0]}]")
    n, classes = x.shape[0], params.weights.shape[1:]
    of = "the rows of x and the classes of the weights" if classes else "the rows of x"
    if classes and jnp.issubdtype(y.dtype, jnp.integer):
        policy.require_shape(function, "y", y.shape, (n,), "a class index for each row of x")
    else:
        policy.require_shape(function, "y", y.shape, (n, *classes), of)
    if l2.shape not in ((), x.shape[1:]):
        raise ValueError(f"{function}: l2 has shape {l2.shape}, but needs () or {x.shape[1:]}, one for each feature")
    if weights is not None:
        policy.require_shape(function, "weights", weights.shape, (n,), "one weight for each row of x")
    if offset is not None:
        policy.require_shape(function, "offset", offset.shape, (n, *classes), of)
