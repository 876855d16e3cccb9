"""A table in a file as what fits take: features that are streamed, labels, weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from xentjax.models.streamed import StreamedRows
from xentjax.training.config import DataConfig
from xentjax.training.config_file import validate
from xentjax.training.data import CategoricalColumn
from xentjax.training.errors import UserError
from xentjax.training.streams.encode import encoded, learn
from xentjax.training.streams.matrix import MatrixFile
from xentjax.training.streams.scan import Scanned, scan
from xentjax.training.table import open_table

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of a table: what :func:`open_rows` gives. As a context it closes the file at its end."""

    x: StreamedRows
    """The features ``[n, d]``, in the file."""
    y: Array
    """Class indices ``[n]``, int32, in memory."""
    weights: Array | None
    """``[n]``, in memory; None where all rows count once."""
    names: tuple[str, ...]
    """Of the features."""
    classes: tuple[str, ...]
    skipped: int
    """How many rows were left out, as something in them was wrong."""

    def close(self) -> None:
        source: Any = self.x.source
        source.close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_rows(
    path: str | os.PathLike[str],
    target: str | None = None,
    *,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    weights: str | None = None,
    drop_first: bool = False,
    delimiter: str = ",",
    on_bad_rows: Literal["error", "skip"] = "error",
    dtype: Literal["float32", "float64"] | None = None,
    center: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> Rows:
    """Open a table that need not fit into memory: the rows of its features are read a chunk at a time when needed.

    One pass over the table finds classes, categories, and what is wrong with it. Features that stand in their file as
    they are computed with (a ``.npy`` of float32 or float64 in C order, all of its columns) are read there; others are
    written to a temporary file once, of ``n d`` numbers, which is gone when nobody holds the rows any more.

    ``fit_logistic(rows.x, rows.y, weights=rows.weights)`` and all solvers of :func:`minimize` on a
    :class:`LogisticObjective` take them; their sums go over the same blocks as in memory, in the same order.

    Args:
      path: a CSV, Parquet, Arrow (Feather), ``.npy`` or svmlight file, or a folder of such with the same columns.
        Columns of ``.npy`` are x0, x1, ...
      target: the column of labels, words or whole numbers; of ``.npy`` also another such file beside it. Not for
        svmlight.
      features: columns to learn from; by default all others.
      categorical: those of them that become one column of 0 and 1 for each category, but for the first one if
        ``drop_first``.
      classes: the labels in their order; by default those found, sorted.
      weights: the column of the rows' weights, 0 or more, which count repetitions.
      drop_first: see ``categorical``.
      delimiter: between the cells of CSV.
      on_bad_rows: what becomes of a row with a cell that is empty, no number or infinite, with a label that is no
        class, a negative weight or a wrong number of cells: ``"error"``, or ``"skip"``, which counts them.
      dtype: of the features; by default float32 for what it holds, and JAX's default float for all else.
      center: whether float32 features that have 64 bits in the file are rounded less the mean of their column, so that
        they keep their digits; a fit makes it good. Without an intercept it cannot.
      cache: the folder of the temporary file; by default ``TMPDIR`` or ``/var/tmp``.

    Raises:
      ValueError: something is wrong with the table (the error names file, row or line, and column) or the arguments.

    Example:
      >>> import numpy as np, os, tempfile, xentjax as xj
      >>> path = os.path.join(tempfile.mkdtemp(), "table.npy")
      >>> np.save(path, np.array([[-2.0, 0], [-1.0, 1], [1.0, 0], [2.0, 1]], np.float32))
      >>> with xj.open_rows(path, "x1") as rows:
      ...     fit = xj.fit_logistic(rows.x, rows.y)
      >>> rows.names, rows.classes, f"{fit.params.weights[0]:.2f}"
      (('x0',), ('0', '1'), '0.42')
    """
    given = {
        "path": os.fspath(path),
        "target": target,
        "features": None if features is None else list(features),
        "categorical": list(categorical),
        "classes": None if classes is None else [str(name) for name in classes],
        "weights": weights,
        "drop_first": drop_first,
        "delimiter": delimiter,
        "on_bad_rows": on_bad_rows,
        "cache": None if cache is None else os.fspath(cache),
    }
    try:
        config = validate(given, DataConfig, "open_rows")
        scanned = scan(config, open_table(os.fspath(path), delimiter))
        return _rows(config, scanned, dtype, center)
    except UserError as error:
        raise ValueError(str(error)) from error


def _rows(config: DataConfig, scanned: Scanned, wanted: Any, center: bool) -> Rows:
    read: Any = scanned.matrix.dtype
    dtype: Any = wanted or ("float32" if read == np.float32 else jnp.result_type(float).name)
    options: dict[str, Any] = {"drop_first": config.drop_first, "delimiter": config.delimiter, "standardize": False}
    encoder = learn(scanned, np.ones(0, bool), dtype, **options)
    origin = None
    if center and read == np.float64 and dtype == "float32":
        means = [
            [0.0] * len(column.features) if isinstance(column, CategoricalColumn) else [read.mean]
            for column, read in zip(encoder.columns, scanned.columns, strict=True)
        ]
        origin = np.asarray([mean for of_column in means for mean in of_column], np.float32)
    matrix: MatrixFile = encoded(scanned, encoder, None if config.cache is None else Path(config.cache), origin)
    labels, weights = labels_and_weights(scanned)
    names, classes = tuple(encoder.feature_names), scanned.classes
    return Rows(StreamedRows.of(matrix), labels, weights, names, classes, scanned.skipped)


def labels_and_weights(scanned: Scanned) -> tuple[Array, Array | None]:
    """Class indices, 0 for rows that are left out, and weights, 0 for these; None where all rows count once."""
    left_out, weights = scanned.labels < 0, scanned.weights
    if left_out.any():
        weights = np.where(left_out, 0, np.ones(len(left_out), np.float32) if weights is None else weights)
    return np.maximum(scanned.labels, 0), weights
