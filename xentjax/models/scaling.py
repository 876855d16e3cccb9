"""Centring and scaling of features, and its exact undoing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.models import _rows
from xentjax.models.logistic import LogisticParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaling:
    r"""Features as :math:`(x_j - c_j)\,a_j`, so that columns of any mean and size make one and the same problem.

    Parameters :math:`(w', b')` of scaled features are :math:`w_j = a_j w'_j,\ b = b' - \sum_j c_j w_j` of the features
    as given: both have the same logits.

    Args:
      center: c ``[d]``.
      inverse: a ``[d]``, the inverse of each column's standard deviation; 0 for a column that does not vary, whose
        weight then is 0.
      origin: what has been taken off the features as given before they came here, ``[d]``; None for nothing.
    """

    center: jax.Array
    inverse: jax.Array
    origin: jax.Array | None = None

    def apply(self, x: Any) -> Any:
        return (x - self.center) * self.inverse

    def undo(self, params: LogisticParams) -> LogisticParams:
        """Parameters for the features as given, from those for scaled features."""
        weights = params.weights * self._factors(params)
        return LogisticParams(weights, params.bias - self._at_zero(weights))

    def redo(self, params: LogisticParams) -> LogisticParams:
        """Parameters for scaled features, from those for the features as given."""
        factors = self._factors(params)
        weights = jnp.where(factors == 0, 0, params.weights / jnp.where(factors == 0, 1, factors))
        return LogisticParams(weights, params.bias + self._at_zero(params.weights))

    def penalty(self, l2: Any) -> Any:
        """The factors of a quadratic penalty on the weights as given, in terms of the weights of scaled features."""
        return jnp.where(jnp.asarray(l2) == 0, 0, l2 * self.inverse**2)

    def _at_zero(self, weights: Any) -> Any:
        """By how much logits differ where the features as given are 0, from where the scaled ones are."""
        center = self.center if self.origin is None else self.center + self.origin
        return jnp.matmul(center, weights, precision=_rows.PRECISION)

    def _factors(self, params: LogisticParams) -> Any:
        return self.inverse.reshape((-1,) + (1,) * (params.weights.ndim - 1))
