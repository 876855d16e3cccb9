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
    """

    center: jax.Array
    inverse: jax.Array

    @classmethod
    def of(cls, x: Any, weights: Any = None, *, centered: bool = True) -> Scaling:
        """Weighted mean and standard deviation of each column, over the rows that have a weight.

        Not ``centered``, which a model without intercept needs, it is 0 and the root of the mean square.
        """
        share = _rows.shares(weights)
        counted = lambda rows: rows if weights is None else _rows.only(weights != 0, rows)
        x = counted(x)
        average = (lambda rows: jnp.mean(rows, axis=0)) if share is None else (lambda rows: share @ rows)
        mean = lambda function: average(counted(function(x)))
        there = lambda rows: rows if weights is None else jnp.where((weights != 0)[:, None], rows, -jnp.inf)
        largest = lambda function: jnp.max(there(function(x)), axis=0, initial=-jnp.inf)
        return cls.of_columns(mean, largest, jnp.zeros(x.shape[1], x.dtype), centered=centered)

    @classmethod
    def of_columns(cls, mean: Any, largest: Any, zeros: Any, *, centered: bool) -> Scaling:
        """The same from ``mean(f)`` and ``largest(f)`` of f(rows) over all rows, for each column; ``zeros`` are one
        for each."""
        center = mean(lambda rows: rows) if centered else zeros
        # The largest distance first: squares of 1e200 overflow, those of 1e-200 underflow.
        above, below = largest(lambda rows: rows - center), largest(lambda rows: center - rows)
        reach = jnp.maximum(jnp.maximum(above, below), 0)
        safe = jnp.where(reach == 0, 1, reach)
        deviation = jnp.sqrt(mean(lambda rows: ((rows - center) / safe) ** 2)) * safe
        # The mean of equal numbers is rounded, so that their distance from it may be anything; their range is not.
        rounding = 8 * jnp.finfo(zeros.dtype).eps * jnp.abs(center)
        varies = above + below > rounding if centered else reach > 0
        return cls(center, jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0))

    def apply(self, x: Any) -> Any:
        return (x - self.center) * self.inverse

    def undo(self, params: LogisticParams) -> LogisticParams:
        """Parameters for the features as given, from those for scaled features."""
        weights = params.weights * self._factors(params)
        return LogisticParams(weights, params.bias - jnp.matmul(self.center, weights, precision=_rows.PRECISION))

    def redo(self, params: LogisticParams) -> LogisticParams:
        """Parameters for scaled features, from those for the features as given."""
        factors = self._factors(params)
        weights = jnp.where(factors == 0, 0, params.weights / jnp.where(factors == 0, 1, factors))
        bias = params.bias + jnp.matmul(self.center, params.weights, precision=_rows.PRECISION)
        return LogisticParams(weights, bias)

    def penalty(self, l2: Any) -> Any:
        """The factors of a quadratic penalty on the weights as given, in terms of the weights of scaled features."""
        return l2 * self.inverse**2

    def _factors(self, params: LogisticParams) -> Any:
        return self.inverse.reshape((-1,) + (1,) * (params.weights.ndim - 1))
