"""Sizes that programs are compiled for: small problems of like size share one, padded with what does not count."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.sparse import SparseRows
from xentjax.models.streamed import StreamedRows
from xentjax.training.fit_result import LogisticFit

#: Features of more elements than this take longer to solve for than a shared program could save.
SMALL = 2**16


def bucket(size: int, least: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... (powers of two, and the numbers halfway) that is at least both.

    Example:
      >>> [bucket(size, least=4) for size in (0, 4, 5, 7, 9, 97, 129)]
      [4, 4, 6, 8, 12, 128, 192]
    """
    size = max(size, least)
    power = 1 << (size - 1).bit_length()
    halfway = power // 4 * 3
    return halfway if halfway >= size else power


def padded(objective: LogisticObjective, dtype: Any) -> LogisticObjective:
    """The same problem with rows of weight 0 and columns of zeros; itself where it is not small, traced, or in a file.

    A row of weight 0 is as if it were not there. A column of zeros gets the weight 0, and takes nothing from others.
    The weights are of the given dtype. Rows that are spread over devices stay as they are.
    """
    known = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(objective))
    if isinstance(objective.x, StreamedRows) or objective.spread is not None or not known:
        return objective
    n, d = objective.x.shape
    rows, columns = bucket(n, least=32), bucket(d, least=4)
    setting = jax.config.jax_default_device  # type: ignore[attr-defined]
    if rows * columns > SMALL or jax.tree.leaves(objective.x)[0].devices() != _devices(setting):
        return objective
    weights = np.ones(n, dtype) if objective.weights is None else objective.weights
    of_columns = lambda values: values if values is None or np.ndim(values) == 0 else _extended(values, columns)
    return dataclasses.replace(
        objective,
        x=_extended_features(objective.x, rows, columns),
        y=_extended(objective.y, rows),
        l2=of_columns(objective.l2),
        l1=of_columns(objective.l1),
        weights=_extended(weights, rows),
        offset=None if objective.offset is None else _extended(objective.offset, rows),
        scaling=jax.tree.map(of_columns, objective.scaling),
    )


@functools.cache
def _devices(setting: Any) -> Any:
    """Where JAX places what is placed nowhere, with this setting of its default device."""
    return jax.device_put(0).devices()


def _extended_features(x: Any, rows: int, columns: int) -> Any:
    if not isinstance(x, SparseRows):
        return _extended(x, rows, columns)
    return x.extended(rows, columns, bucket(x.entries.size, least=64))


def padded_params(params: LogisticParams, columns: int) -> LogisticParams:
    """Parameters of a problem for the same with more columns."""
    return LogisticParams(_extended(params.weights, columns), params.bias)


def without_padding(fit: LogisticFit, columns: int, steps: int) -> LogisticFit:
    """The fit of a problem from that of the same with more columns, and a history of so many steps."""
    padded, each = fit.params.weights.shape[0], fit.params.bias.size
    kept = np.r_[: columns * each, padded * each : (padded + 1) * each]
    of_kept = lambda matrix: None if matrix is None else matrix[np.ix_(kept, kept)]
    longer = {
        "weights": fit.params.weights,
        "direction": fit.direction.weights,
        "dependent": fit.dependent,
        "history": fit.history,
        "covariances": (fit.covariance, fit.robust_covariance),
    }
    # Cut by NumPy, as JAX would compile a program for each shape; what has its shape already stays where it is.
    longer = jax.device_get(longer)
    cut = {name: longer[name][:columns] for name in ("weights", "direction", "dependent")}
    cut["history"] = jax.tree.map(lambda values: values[:steps], longer["history"])
    cut["covariances"] = tuple(map(of_kept, longer["covariances"]))
    cut = jax.device_put(cut)
    return dataclasses.replace(
        fit,
        params=fit.params._replace(weights=cut["weights"]),
        history=cut["history"],
        direction=fit.direction._replace(weights=cut["direction"]),
        dependent=cut["dependent"],
        covariance=cut["covariances"][0],
        robust_covariance=cut["covariances"][1],
    )


def _extended(values: Any, *sizes: int) -> Any:
    """The array with zeros behind it on its first axes. By NumPy: JAX would compile a program for each shape."""
    values = np.asarray(values)
    longer = np.zeros((*sizes, *values.shape[len(sizes) :]), values.dtype)
    longer[tuple(map(slice, values.shape))] = values
    return longer
