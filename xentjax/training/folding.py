"""The parts that the rows of a cross-validation are dealt to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import policy
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective


def dealt(objective: LogisticObjective, folds: Any, seed: int) -> tuple[jax.Array, int]:
    """The part of each row, int32 ``[n]``, and how many parts there are; 0 of them for no cross-validation.

    Args:
      folds: how many, or the part of each row ``[n]``, or None.
      seed: of the dealing, where the number is given.

    Raises:
      ValueError: fewer parts than two or more than rows, not a part for each row, or a part below 0.
      TypeError: folds or seed are no whole numbers, or traced.
    """
    n = objective.x.shape[0]
    if folds is None:
        return jnp.zeros(n, jnp.int32), 0
    if np.ndim(folds) == 0 and not isinstance(folds, jax.core.Tracer):
        number = policy.whole_number("fit_path", "folds", folds)
        if not 2 <= number <= n:
            raise ValueError(f"fit_path: folds must be from 2 to {n}, the number of rows, got {number}")
        label = jnp.asarray(objective.y if objective.y.ndim == 1 else jnp.argmax(objective.y, axis=1))
        seed = policy.whole_number("fit_path", "seed", seed)
        if not 0 <= seed < 2**32:
            raise ValueError(f"fit_path: seed must be from 0 to 2**32 - 1, got {seed}")
        # Rows in random order, those of a class together, are dealt like cards.
        shuffled = jax.random.permutation(jax.random.key(seed), n)
        order = shuffled[jnp.argsort(label[shuffled], stable=True)]
        return jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32) % number), number
    if isinstance(folds, jax.core.Tracer):
        raise TypeError("fit_path: folds must not be traced: how many there are is part of the program")
    part = np.asarray(folds)
    policy.require_shape("fit_path", "folds", part.shape, (n,), "the part of each row")
    if not np.issubdtype(part.dtype, np.integer) or part.min() < 0:
        raise ValueError(f"fit_path: folds must be whole numbers from 0, got {part.dtype} from {part.min()}")
    return jnp.asarray(part, jnp.int32), int(part.max()) + 1


def require_fair(objective: LogisticObjective, shapes: LogisticParams, part: Any, parts: int) -> None:
    """ValueError for a fold without rows that count, and for one that holds all rows of a class."""
    if parts == 0 or any(isinstance(v, jax.core.Tracer) for v in (objective.y, objective.weights, part)):
        return
    y, part = np.asarray(objective.y), np.asarray(part)
    counts = np.ones(len(y), bool) if objective.weights is None else np.asarray(objective.weights) > 0
    if y.ndim == 2:
        of_class = y > 0
    elif shapes.bias.ndim:
        of_class = y[:, None] == np.arange(shapes.bias.size)
    else:
        of_class = np.stack([y < 1, y > 0], axis=1)
    for fold in range(parts):
        if not np.any(counts & (part == fold)):
            raise ValueError(f"fit_path: fold {fold} has no row that counts")
        there = of_class[counts & (part != fold)].any(axis=0)
        if objective.fit_intercept and not there.all():
            raise ValueError(
                f"fit_path: all rows of class {int(np.argmin(there))} are in fold {fold}: the fit to the other folds "
                "has no finite optimum. Take fewer folds, or deal the rows yourself"
            )
