"""Covariances of the estimates of a logistic regression, in the user's units and parametrization, and p-values."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from xentjax.models import _rows, one_pass
from xentjax.models.logistic import LogisticParams
from xentjax.models.scaling import Scaling


class Covariances(NamedTuple):
    """Of the raveled parameters: from the model, and robust against its misspecification (HC0)."""

    model: Any
    robust: Any
    degrees: Any  # effective number of parameters, tr(A⁻¹F)


def in_user_units(params: LogisticParams, scaling: Scaling, free: Any) -> LogisticParams:
    """Parameters of the features as given; of the many that give K classes the same probabilities, one.

    Where nothing is penalized the parameters are relative to class 0, whose own are 0. Otherwise those that no penalty
    holds (``free``, and the bias) sum to 0 over the classes, as the penalized ones do.
    """
    weights, bias = scaling.undo(params)
    if bias.ndim == 0:
        return LogisticParams(weights, bias)
    centered = jnp.where(free[:, None], weights - jnp.mean(weights, axis=1, keepdims=True), weights)
    nothing_held, first = jnp.all(free), jnp.arange(bias.size) == 0
    # A compiler may round the difference of equal products to anything small: class 0 has none.
    from_first = jnp.where(first, 0, weights - weights[:, :1]), jnp.where(first, 0, bias - bias[0])
    return LogisticParams(
        jnp.where(nothing_held, from_first[0], centered), jnp.where(nothing_held, from_first[1], bias - jnp.mean(bias))
    )


def covariances(
    params: LogisticParams, inverse: Any, involved: Any, data: one_pass.Data, free: Any, fit_intercept: bool
) -> Covariances:
    r"""Model and robust covariance of the estimates.

    With A the Hessian of the penalized sum of losses, F that of the losses alone and :math:`u_i` the gradient of row
    i's loss

    .. math::
      A^{-1} F A^{-1}, \qquad A^{-1}\Bigl(\sum_i s_i u_i u_i^T\Bigr) A^{-1}

    Without a penalty the first is :math:`F^{-1}`, the inverse information. The weights s count repetitions: a row of
    weight 2 is two rows. With a penalty both are the variance of the estimate for this penalty, and say nothing of the
    bias that it brings.

    Args:
      params: of scaled features.
      inverse: of the Hessian of the mean penalized loss there.
      involved: parameters that are not determined: their covariances are NaN.
      data: rows, with their scaling.
      free: features without penalty.
      fit_intercept: whether the bias is a parameter.

    Source: Gray, JASA 87 (1992), 942-951 for the penalized model; White, Econometrica 50 (1982), 1-25.
    """

    def of_block(block: one_pass.Block) -> Any:
        _, residual, _ = _rows.slopes(block.z, block.y)
        if block.outer is not None and residual.ndim == 1:
            return one_pass.curvature(block, block.x.dtype), one_pass.spread(block, block.share * residual**2)
        scores = residual[:, None] * block.x if residual.ndim == 1 else block.x[:, :, None] * residual[:, None, :]
        scores = scores.reshape(block.x.shape[0], -1)
        meat = jnp.matmul((scores * block.share[:, None]).T, scores, precision=_rows.PRECISION)
        return one_pass.curvature(block, block.x.dtype), meat

    information, meat = one_pass.over_blocks(of_block, params, data)
    information = one_pass.whole(information, params)
    n = data.x.shape[0] if data.weights is None else jnp.sum(data.weights)
    if not fit_intercept:
        moves = jnp.arange(information.shape[0]) < params.weights.size
        information, meat = (jnp.where(moves[:, None] & moves, m, 0) for m in (information, meat))
    bread = jnp.matmul(inverse, information, precision=_rows.PRECISION)
    between = jnp.matmul(bread, inverse, precision=_rows.PRECISION) / n
    robust = jnp.matmul(jnp.matmul(inverse, meat, precision=_rows.PRECISION), inverse, precision=_rows.PRECISION) / n
    unknown = involved[:, None] | involved
    model, robust = (
        jnp.where(unknown, jnp.nan, _in_user_units(params, matrix, data.scaling, free)) for matrix in (between, robust)
    )
    return Covariances(model, robust, jnp.trace(bread))


def two_sided(z: Any) -> jax.Array:
    r"""The probability of a normal number at least as far from 0 as z, :math:`\operatorname{erfc}(|z|/\sqrt2)`."""
    return jax.scipy.special.erfc(jnp.abs(z) / np.sqrt(2))


def chi_squared_tail(statistic: Any, degrees: Any) -> jax.Array:
    r"""The probability of a χ² of so many degrees of freedom k above the statistic s: :math:`Q(k/2, s/2)`."""
    return jax.scipy.special.gammaincc(jnp.asarray(degrees, statistic.dtype) / 2, statistic / 2)


def _in_user_units(params: LogisticParams, matrix: Any, scaling: Scaling | None, free: Any) -> Any:
    """T C Tᵀ for the linear map T from the parameters of scaled features to the user's."""
    assert scaling is not None
    _, unravel = ravel_pytree(params)
    convert = jax.vmap(lambda flat: ravel_pytree(in_user_units(unravel(flat), scaling, free))[0])
    return convert(convert(matrix).T).T
