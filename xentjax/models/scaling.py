"""Centring and scaling of features, and its exact undoing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.models import _rows
from xentjax.models.logistic import LogisticParams

#: Bytes of features in a block: it stays in the cache of one core. On an accelerator a block fills the device.
_CACHED, _LARGE = 2**19, 2**27


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
        share = jnp.full(x.shape[0], 1 / max(x.shape[0], 1), x.dtype) if share is None else share

        # A row that counts: the mean of what is left of equal numbers is 0, and of close ones it has all digits.
        near = x[0] if weights is None else x[jnp.argmax(weights != 0)]
        of_block = lambda rows, share: (_sum(share, rows - near), jnp.min(rows, axis=0), jnp.max(rows, axis=0))
        sums, low, high = _over_blocks(of_block, (jnp.add, jnp.minimum, jnp.maximum), x, weights, share, near)
        center = near + sums if centered else jnp.zeros_like(sums)
        # The largest distance first: squares of 1e200 overflow, those of 1e-200 underflow.
        largest = jnp.maximum(high - center, center - low)
        safe = jnp.where(largest > 0, largest, 1)
        of_block = lambda rows, share: (_sum(share, ((rows - center) / safe) ** 2),)
        squares = _over_blocks(of_block, (jnp.add,), x, weights, share, near)[0]
        deviation = jnp.sqrt(squares) * safe
        # The mean of equal numbers is rounded: what is left of such a column is no variation.
        varies = deviation > 8 * jnp.finfo(x.dtype).eps * jnp.abs(center)
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


def _over_blocks(function: Any, combine: Any, x: Any, weights: Any, share: Any, near: Any) -> Any:
    """function(rows, shares), a tuple, of all rows that have a weight, block by block: nothing of n rows is stored.

    In the place of a row without weight stands ``near``, one that has a weight, with the share 0.
    """
    n, d = x.shape
    wanted = _CACHED if jax.default_backend() == "cpu" else _LARGE
    size = max(wanted // (max(d, 1) * x.dtype.itemsize) // 16 * 16, 64)

    def made(start: Any, fresh: Any) -> Any:
        cut = lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, min(size, n))
        rows, shares = cut(x), jnp.where(fresh, cut(share), 0)
        if weights is None:
            return function(rows, shares)
        keep = cut(weights) != 0
        return function(jnp.where(keep[:, None], rows, near), shares)

    def add(i: Any, sums: Any) -> Any:
        # The last block ends with the last row, and leaves out what the one before it has counted.
        start = jnp.minimum(i * size, n - size)
        fresh = start + jnp.arange(size, dtype=jnp.int32) >= i * size
        return tuple(join(a, b) for join, a, b in zip(combine, sums, made(start, fresh), strict=True))

    first = made(0, jnp.ones(min(size, n), bool))
    return first if n <= size else jax.lax.fori_loop(1, -(-n // size), add, first)


def _sum(share: Any, rows: Any) -> Any:
    return jnp.matmul(share, rows, precision=_rows.PRECISION)
