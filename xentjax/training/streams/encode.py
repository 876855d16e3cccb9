"""The features of a scanned table as an encoder makes them: where they stand, or written to another file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xentjax.training.data import CategoricalColumn, Encoder, NumericColumn
from xentjax.training.errors import UserError
from xentjax.training.streams.matrix import MatrixFile, MatrixWriter
from xentjax.training.streams.scan import Scanned, blocks_of

Array = np.ndarray[Any, Any]


def learn(
    scanned: Scanned,
    counted: Array,
    dtype: Literal["float32", "float64"],
    *,
    standardize: bool,
    drop_first: bool,
    delimiter: str,
) -> Encoder:
    """The encoder of :meth:`Encoder.learn`, from the rows that count, ``[n]``."""
    means, scales = [0.0] * len(scanned.columns), [1.0] * len(scanned.columns)
    if standardize:
        means, scales = moments(scanned, counted)
    columns: list[Any] = []
    for column, mean, scale in zip(scanned.columns, means, scales, strict=True):
        if column.categories is None:
            columns.append(NumericColumn(column.name, float(mean), float(scale)))
        else:
            columns.append(CategoricalColumn(column.name, column.categories, drop_first))
    return Encoder(tuple(columns), dtype, delimiter)


def moments(scanned: Scanned, counted: Array) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each column over the rows that count; 1 for a column that does not vary."""
    rows, size = max(int(counted.sum()), 1), len(scanned.columns)
    low, high, mean, squares = np.full(size, np.inf), np.full(size, -np.inf), np.zeros(size), np.zeros(size)
    for block in blocks_of(scanned, counted):
        mean += (block / rows).sum(axis=0)
        low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
    varies = low < high
    # The largest distance first: the squares of 1e200 would overflow.
    largest = np.where(varies, np.maximum(high - mean, mean - low), 1)
    for block in blocks_of(scanned, counted):
        squares += (((block - mean) / largest) ** 2).sum(axis=0)
    return np.where(varies, mean, low).tolist(), np.where(varies, np.sqrt(squares / rows) * largest, 1).tolist()


def encoded(scanned: Scanned, encoder: Encoder, cache: Path | None, origin: Array | None = None) -> MatrixFile:
    """The features ``[n, d]`` less the origin ``[d]``."""
    matrix = scanned.matrix
    plain = all(isinstance(c, NumericColumn) and (c.mean, c.scale) == (0, 1) for c in encoder.columns)
    in_order = [column.place for column in scanned.columns] == list(range(matrix.shape[1]))
    if plain and in_order and origin is None and matrix.dtype == encoder.dtype:
        return matrix
    _require_range(scanned, encoder)
    writer = MatrixWriter(cache, len(encoder.feature_names), encoder.dtype)
    for _, block in matrix.blocks():
        writer.write(_features(scanned, encoder, block, origin))
    return writer.done(origin)


def _features(scanned: Scanned, encoder: Encoder, block: Array, origin: Array | None) -> Array:
    features = np.zeros((len(block), len(encoder.feature_names)))
    at = 0
    with np.errstate(all="ignore"):  # rows that do not count may hold anything
        for column, read in zip(encoder.columns, scanned.columns, strict=True):
            values = block[:, read.place]
            if isinstance(column, NumericColumn):
                features[:, at] = (values.astype(float) - column.mean) / column.scale
            else:
                assert read.order is not None
                codes = read.order[values.astype(np.intp)] - column.drop_first
                there = np.flatnonzero(codes >= 0)
                features[there, at + codes[there]] = 1
            at += len(column.features)
        return (features if origin is None else features - origin).astype(encoder.dtype)


def _require_range(scanned: Scanned, encoder: Encoder) -> None:
    """UserError where a number is too large for the dtype."""
    most = float(np.finfo(encoder.dtype).max)
    for column, read in zip(encoder.columns, scanned.columns, strict=True):
        if isinstance(column, NumericColumn) and (read.largest + abs(column.mean)) / column.scale > most:
            place = f"{scanned.table.path}, column {column.name!r}"
            raise UserError(f"{place}: {read.largest:g} is too large for {encoder.dtype}")
