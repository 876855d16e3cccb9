"""One pass over a table: what its columns hold, its labels and weights, and its features as rows in a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xentjax.training.categories import in_order
from xentjax.training.config import DataConfig
from xentjax.training.data import WORDS, Roles, labels_of, require_rows, weights_of
from xentjax.training.errors import UserError
from xentjax.training.streams.formats import NpyFile, mapped
from xentjax.training.streams.matrix import MatrixFile, MatrixWriter
from xentjax.training.table import TableFile, numbers, words

Array = np.ndarray[Any, Any]

#: What float32 holds exactly.
_NARROW = {pa.float32(), pa.float16(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.bool_()}


@dataclass(frozen=True)
class ScannedColumn:
    """A column of features: where it stands in the matrix, and what it holds."""

    name: str
    place: int
    categories: tuple[str, ...] | None
    """In their order; None for numbers."""
    order: Array | None
    """Which of them each number in the matrix stands for."""
    mean: float
    largest: float
    """The largest magnitude."""


@dataclass(frozen=True)
class Scanned:
    """A table after one pass."""

    table: TableFile
    columns: tuple[ScannedColumn, ...]
    matrix: MatrixFile
    """What was read, a row after the other: numbers, and numbers of categories."""
    labels: Array
    """Class indices, -1 for rows of the matrix that are left out."""
    classes: tuple[str, ...]
    weights: Array | None
    skipped: int
    """How many rows were left out, as something in them was wrong."""


def scan(config: DataConfig, table: TableFile) -> Scanned:
    """Read the table once, or raise UserError."""
    roles = Roles.of(config, table)
    found = _Pass(config, table, roles)
    matrix = found.in_place() or found.written(None if config.cache is None else Path(config.cache))
    n = matrix.shape[0]
    bad = np.concatenate(found.bad) if found.may_skip else None
    if (own := roles.own_labels()) is not None:
        kept = np.concatenate(found.kept)
        require_rows(roles, len(own), len(kept))
        codes = found.labels.encode(pa.array(own[kept]), 0, bad)
    else:
        codes = np.concatenate(found.label_codes)
    names, order = found.labels.names()
    labels, classes = labels_of(table, roles.target, names, order[codes], config.classes, bad)
    weights = None if roles.weights is None else np.concatenate(found.weights)
    skipped = found.skipped
    if bad is not None:
        labels = np.where(bad, np.int32(-1), labels)
        skipped += int(bad.sum())
    columns = [found.column(j, name, n) for j, name in enumerate(roles.features)]
    return Scanned(table, tuple(columns), matrix, labels, classes, weights, skipped)


class _Pass:
    """What a pass over the blocks of a table collects."""

    def __init__(self, config: DataConfig, table: TableFile, roles: Roles):
        self.table, self.roles = table, roles
        self.may_skip, self.skipped = config.on_bad_rows == "skip", 0
        self.labels = Coded(table, roles.target)
        self.categories = {name: Coded(table, name) for name in roles.features if name in config.categorical}
        self.places = list(range(len(roles.features)))
        self.label_codes: list[Array] = []
        self.weights: list[Array] = []
        self.bad: list[Array] = []
        """Of the rows in the matrix those that do not count."""
        self.kept: list[Array] = []
        """Of the rows in the table those in the matrix."""
        self.total, self.largest = np.zeros(len(roles.features)), np.zeros(len(roles.features))

    def column(self, j: int, name: str, n: int) -> ScannedColumn:
        mean, largest = float(self.total[j]) / max(n, 1), float(self.largest[j])
        if name not in self.categories:
            return ScannedColumn(name, self.places[j], None, None, mean, largest)
        found, order = self.categories[name].names()
        ordered = in_order(np.asarray(found))
        place = {category: i for i, category in enumerate(ordered)}
        order = np.asarray([place[category] for category in found], np.intp)[order]
        return ScannedColumn(name, self.places[j], tuple(ordered), order, mean, largest)

    # -- a matrix that stays where it is -------------------------------------------------------------------------------

    def in_place(self) -> MatrixFile | None:
        """The matrix of a ``.npy`` file, if its rows stand in it one after the other, as floats of this machine."""
        file = self.table.files[0]
        if len(self.table.files) > 1 or not isinstance(file, NpyFile) or self.categories:
            return None
        array: Any = mapped(file.path)
        if not (array.flags.c_contiguous and array.dtype in (np.float32, np.float64) and array.dtype.isnative):
            return None
        names = {name: j for j, name in enumerate(file.names)}
        self.places = [names[name] for name in self.roles.features]
        try:
            opened = io.FileIO(file.path)
        except OSError as error:
            raise UserError(f"{file.path}: cannot be read: {error.strerror or error}") from error
        matrix = MatrixFile(opened, file.path, array.offset, array.shape, array.dtype)
        for start, block in matrix.blocks():
            bad = np.zeros(len(block), bool) if self.may_skip else None
            self._see(block if self.places == list(range(block.shape[1])) else block[:, self.places], start, bad)
            column = lambda name, block=block: pa.chunked_array([np.ascontiguousarray(block[:, names[name]])])
            self._others(column, start, bad)
            self.bad.append(np.zeros(0, bool) if bad is None else bad)
            self.kept.append(np.ones(len(block), bool))
        if matrix.shape[0] == 0:
            raise UserError(f"{file.path}: has no rows")
        return matrix

    def _see(self, block: Array, start: int, bad: Array | None) -> None:
        """Moments of a block of numbers, and whether all of them are such."""
        with np.errstate(invalid="ignore", over="ignore"):
            total = block.sum(axis=0, dtype=float)
        if not np.isfinite(total).all():
            finite = np.isfinite(block)
            if bad is None:
                row, j = map(int, np.argwhere(~finite)[0])
                place = self.table.place(start + row, self.roles.features[j])
                raise UserError(f"{place}: is {block[row, j]}, but a feature must be finite")
            bad |= ~finite.all(axis=1)
            block = block[~bad]
            total = block.sum(axis=0, dtype=float)
        self.total += total
        if len(block):
            self.largest = np.maximum(self.largest, np.maximum(block.max(axis=0), -block.min(axis=0)))

    # -- a matrix that is written --------------------------------------------------------------------------------------

    def written(self, cache: Path | None) -> MatrixFile:
        """The columns of features, copied row by row to a file in a folder."""
        writer: MatrixWriter | None = None
        start = 0
        for block in self.table.blocks(self.roles.columns, self._skip if self.may_skip else None):
            if writer is None:
                types = {block.schema.field(name).type for name in self.roles.features if name not in self.categories}
                writer = MatrixWriter(cache, len(self.roles.features), "float32" if types <= _NARROW else "float64")
            bad = np.zeros(block.num_rows, bool) if self.may_skip else None
            rows = np.empty((block.num_rows, len(self.roles.features)), writer.dtype)
            for j, name in enumerate(self.roles.features):
                if name in self.categories:
                    rows[:, j] = self.categories[name].encode(block.column(name), start, bad)
                else:
                    rows[:, j] = numbers(self.table, name, block.column(name), WORDS, start, bad)
            self._others(block.column, start, bad)
            kept = np.ones(block.num_rows, bool) if bad is None else ~bad
            if bad is not None and bad.any():
                self.skipped += int(bad.sum())
                rows = rows[kept]
                self.label_codes[-1:] = [codes[kept] for codes in self.label_codes[-1:]]
                self.weights[-1:] = [weights[kept] for weights in self.weights[-1:]]
            self._see(rows, start, None)
            self.bad.append(np.zeros(len(rows), bool))
            self.kept.append(kept)
            writer.write(rows)
            start += block.num_rows
        assert writer is not None
        matrix = writer.done()
        if matrix.shape[0] == 0:
            raise UserError(f"{self.table.path}: something is wrong in each of its {self.skipped} rows")
        return matrix

    def _skip(self) -> None:
        self.skipped += 1

    def _others(self, column: Any, start: int, bad: Array | None) -> None:
        """Labels and weights of a block."""
        if self.roles.labels is None:
            self.label_codes.append(self.labels.encode(column(self.roles.target), start, bad))
        if self.roles.weights is not None:
            name = self.roles.weights
            self.weights.append(weights_of(self.table, name, column(name), start, bad))


class Coded:
    """Distinct values of a column, numbered as they come."""

    def __init__(self, table: TableFile, name: str):
        self.table, self.name = table, name
        self._values: dict[Any, int] = {}
        self._type: Any = None

    def encode(self, column: Any, first: int, bad: Array | None) -> Array:
        """The number of each row's value, int32; UserError at the first empty one, or it is bad and 0."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
        if column.null_count:
            empty = column.is_null().to_numpy(zero_copy_only=False)
            if bad is None:
                raise UserError(f"{self.table.place(first + int(np.argmax(empty)), self.name)}: is empty")
            bad |= empty
        self._type = column.type
        try:
            encoded = column.dictionary_encode()
        except pa.ArrowNotImplementedError as error:
            raise UserError(f"{self.table.path}, column {self.name!r}: holds {column.type}, not categories") from error
        known = [self._values.setdefault(value, len(self._values)) for value in encoded.dictionary.to_pylist()]
        indices = pc.fill_null(encoded.indices, 0).to_numpy()
        return np.asarray(known or [0], np.int32)[indices]

    def names(self) -> tuple[list[str], Array]:
        """The distinct values as text, and which of these each number stands for."""
        values = words(self.table, self.name, pa.array(list(self._values), self._type)).to_pylist()
        names = {value: i for i, value in enumerate(dict.fromkeys(values))}
        return list(names), np.asarray([names[value] for value in values] or [0], np.int32)


def blocks_of(scanned: Scanned, counted: Array) -> Iterator[Array]:
    """The columns of the features, of the rows that count, as float64."""
    places = [column.place for column in scanned.columns]
    for start, block in scanned.matrix.blocks():
        rows = block[counted[start : start + len(block)]][:, places].astype(float)
        if len(rows):
            yield rows
