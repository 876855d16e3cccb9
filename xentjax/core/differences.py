"""Finite differences in float64 that say how far they can be trusted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

#: The steps, relative to the direction; each is half of the one before.
STEPS = 2.0 ** -np.arange(2, 16)


class Slopes:
    """Derivatives of a scalar function along directions, an estimate of their errors, and how far they jump.

    Central differences for a row of halved steps, extrapolated by Richardson's scheme; the entry of the scheme that
    differs least from its neighbours is taken, and the difference is its error.  The jump is half the distance of
    the slopes to the two sides, 0 but for rounding where the function is smooth.

    Args:
      function: of a flat float64 array, and of others that stay as they are; scalar.
    """

    def __init__(self, function: Callable[..., Any]):
        def values(x: Any, directions: Any, others: Any) -> Any:
            along = lambda t: jax.vmap(lambda h: function(x + h * t, *others))(_offsets())
            return jax.lax.map(along, directions)

        self._values = jax.jit(values)

    def __call__(
        self, point: Any, directions: Any, noise: float, *others: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slopes, errors and jumps at a flat point along directions ``[m, n]``; ``noise`` is the rounding error of the
        function's value there."""
        values = np.asarray(self._values(jnp.asarray(point), jnp.asarray(directions), others), np.float64)
        count = len(STEPS)
        ahead, back, here = values[:, :count], values[:, count : 2 * count], values[:, -1:]
        with np.errstate(all="ignore"):
            best, error = _extrapolated(ahead, back, noise)
            bend = np.abs(ahead + back - 2 * here) / (2 * STEPS)
            middle = count // 2
            kink = np.abs(2 * bend[:, middle + 1] - bend[:, middle])
        return best, error, np.where(np.isfinite(kink), kink, np.inf)


def _extrapolated(ahead: np.ndarray, back: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Richardson's scheme over the row of steps: its best entry for each direction, and that entry's error."""
    table = [(ahead - back) / (2 * STEPS)]
    for order in range(1, 5):
        factor = 4.0**order
        table.append((factor * table[-1][:, 1:] - table[-1][:, :-1]) / (factor - 1))
    best, error = np.full(len(ahead), np.nan), np.full(len(ahead), np.inf)
    for lower, higher in itertools.pairwise(table):
        change = np.maximum(np.abs(higher - lower[:, 1:]), np.abs(higher - lower[:, :-1]))
        width = higher.shape[1]
        ends = np.maximum(np.abs(ahead), np.abs(back))[:, -width:]
        rounding = (noise + 2.0**-52 * ends) / STEPS[-width:]
        total = np.where(np.isfinite(change), change + rounding, np.inf)
        column, rows = np.argmin(total, axis=1), np.arange(len(ahead))
        better = total[rows, column] < error
        best = np.where(better, higher[rows, column], best)
        error = np.where(better, total[rows, column], error)
    return best, error


def _offsets() -> Any:
    return jnp.asarray(np.concatenate([STEPS, -STEPS, [0.0]]))
