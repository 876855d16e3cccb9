"""Fits along a path of penalties, with cross-validation: one program, each fit certified."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from xentjax.core import policy
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling
from xentjax.solvers.compiled import join, separate
from xentjax.training.fit import checked_objective
from xentjax.training.solution import null_model, null_point


def lambda_max(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    class_weight: str | Mapping[int, float] | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    num_classes: int | None = None,
) -> jax.Array:
    r"""The smallest factor of an L1 penalty for which all weights of the fit are 0.

    .. math::
      \lambda_{\max} = \max_j \Bigl|\frac{1}{\sum_i s_i}\sum_i s_i\,x_{ij}\,(\hat y_i - y_i)\Bigr|

    with the predictions of the model without features.

    Args and errors: those of :func:`fit_logistic`.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1])
      >>> xj.lambda_max(x, y), xj.fit_logistic(x, y, l1=xj.lambda_max(x, y)).params.weights
      (Array(0.25, dtype=float32), Array([0.], dtype=float32))
    """
    options = (weights, class_weight, offset, fit_intercept, num_classes)
    static, data = separate(checked_objective(x, y, 0.0, 0.0, *options))
    return _lambda_max(static, data)


@functools.partial(jax.jit, static_argnums=0)
def _lambda_max(static: Any, data: Any) -> jax.Array:
    objective, shapes = join(static, data)
    inner = in_scaled_units(objective, shapes)
    null, _ = null_point(inner, null_model(inner, shapes)[0])
    slope = inner.value_and_gradient(null)[1].weights
    inverse = inner.scaling.inverse.reshape((-1,) + (1,) * (slope.ndim - 1))
    in_units = jnp.where(inverse == 0, 0, jnp.abs(slope) / jnp.where(inverse == 0, 1, inverse))
    # A little more: the fit's own gradient is rounded otherwise.
    return jnp.max(in_units, initial=0) * (1 + 8 * jnp.finfo(slope.dtype).eps)


def in_scaled_units(objective: LogisticObjective, shapes: LogisticParams) -> LogisticObjective:
    """The same problem for standardized features."""
    dtype = shapes.bias.dtype
    weights = None if objective.weights is None else objective.weights.astype(dtype)
    x = policy.up(objective.x).astype(dtype)
    scaling = Scaling.of(x, weights, centered=objective.fit_intercept)
    return dataclasses.replace(objective, scaling=scaling, weights=weights)
