"""The data sets that come out of packages, by the name that a config's ``data.source`` gives.

A new one is an entry of ``SOURCES``; configs and their messages find it there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xentjax.training import flights

Array = np.ndarray[Any, Any]


class Source(NamedTuple):
    """Examples as a package has them."""

    columns: dict[str, Array]
    """By name: ``[n]`` float64, or ``[n]`` str for a column of categories."""
    labels: Array
    """``[n]`` int32, indices into ``classes``."""
    classes: tuple[str, ...]


def _of_scikit_learn(name: str) -> Source:
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    columns = {str(name): np.asarray(loaded.data[:, i], float) for i, name in enumerate(loaded.feature_names)}
    return Source(columns, np.asarray(loaded.target, np.int32), tuple(map(str, loaded.target_names)))


def _flights() -> Source:
    columns, late = flights.late_flights()
    return Source(columns, late, flights.CLASSES)


#: Functions that load them. One whose package is missing raises ``UserError`` with what to install.
SOURCES: dict[str, Callable[[], Source]] = {
    **{name: functools.partial(_of_scikit_learn, name) for name in ("digits", "breast_cancer", "iris", "wine")},
    "flights": _flights,
}
