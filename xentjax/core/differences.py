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


def slopes(
    function: Callable[[Any], Any], point: Any, directions: Any, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives of a scalar function along each direction, an estimate of their errors, and how far they jump.

    Central differences for a row of halved steps, extrapolated by Richardson's scheme; the entry of the scheme that
    differs least from its neighbours is taken, and the difference is its error.  The jump is half the distance of
    the slopes to the two sides, 0 but for rounding where the function is smooth.

    Args:
      function: of a flat float64 array, scalar.
      point: the flat array.
      directions: [m, n].
      noise: the rounding error of the function's values at the point.
    """
    values = jax.jit(
        lambda x, d: jax.lax.map(lambda t: jax.vmap(lambda h: function(x + h * t))(_offsets()), d),
    )(jnp.asarray(point), jnp.asarray(directions))
    values = np.asarray(values, np.float64)
    count = len(STEPS)
    ahead, back, here = values[:, :count], values[:, count : 2 * count], values[:, -1:]
    with np.errstate(all="ignore"):
        table = [(ahead - back) / (2 * STEPS)]
        for order in range(1, 5):
            factor = 4.0**order
            table.append((factor * table[-1][:, 1:] - table[-1][:, :-1]) / (factor - 1))
        best, error = np.full(len(values), np.nan), np.full(len(values), np.inf)
        for lower, higher in itertools.pairwise(table):
            change = np.maximum(np.abs(higher - lower[:, 1:]), np.abs(higher - lower[:, :-1]))
            width = higher.shape[1]
            ends = np.maximum(np.abs(ahead), np.abs(back))[:, -width:]
            rounding = (noise + 2.0**-52 * ends) / STEPS[-width:]
            total = np.where(np.isfinite(change), change + rounding, np.inf)
            column = np.argmin(total, axis=1)
            rows = np.arange(len(values))
            better = total[rows, column] < error
            best = np.where(better, higher[rows, column], best)
            error = np.where(better, total[rows, column], error)
        bend = np.abs(ahead + back - 2 * here) / (2 * STEPS)
        middle = count // 2
        kink = np.abs(2 * bend[:, middle + 1] - bend[:, middle])
    return best, error, np.where(np.isfinite(kink), kink, np.inf)


def _offsets() -> Any:
    return jnp.asarray(np.concatenate([STEPS, -STEPS, [0.0]]))
