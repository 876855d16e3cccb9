"""The loss of a logistic or softmax regression: the penalized average cross-entropy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.core.domains import BinaryLabels, Domain, Labels, Probabilities, Probability, Real
from xentjax.core.op import op
from xentjax.models import _rows
from xentjax.models.logistic import LogisticParams, Parameters, check_model


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


def check_arguments(
    function: str, params: LogisticParams, x: Any, y: Any, l2: Any, weights: Any, offset: Any = None
) -> None:
    """Raise ValueError where the shapes of a loss's arguments do not fit together."""
    check_model(function, params, x)
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
