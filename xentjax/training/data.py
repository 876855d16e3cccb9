"""The examples of a run: read, split into training and test, and encoded as a matrix of features.

The encoder (means, scales, categories) is learnt from the training examples, except that the categories of a column
are all that the file has: one that only the test examples have is known, and its weight stays at 0 or its start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass as checked_dataclass

from xentjax.training.categories import as_number, in_order
from xentjax.training.config import DataConfig, Delimiter
from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.files import require_memory
from xentjax.training.sources import SOURCES
from xentjax.training.streams.formats import mapped
from xentjax.training.streams.svmlight import LABEL
from xentjax.training.table import TableFile, has, numbers, texts

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Examples:
    """Columns as they were read, and labels as indices into ``classes``."""

    columns: dict[str, Array]
    """A float64 array, or an array of str for a categorical column, of each feature."""
    labels: Array
    classes: tuple[str, ...]
    table: TableFile | None
    """The file that they come from, for errors that name a line; None for a data set out of a package."""
    weights: Array | None = None
    skipped: int = 0
    """How many rows were left out, as something in them was wrong."""
    first: int = 0
    """The number of the first row in the table."""

    def place(self, row: int, column: str) -> str:
        row += self.first
        return f"example {row + 1}, column {column!r}" if self.table is None else self.table.place(row, column)


def load_source(config: DataConfig) -> Examples:
    """The examples out of a package that the config names, or UserError."""
    assert config.source is not None
    examples = Examples(*SOURCES[config.source](), table=None)
    if config.features is None:
        return examples
    for name in config.features:
        if name not in examples.columns:
            hint = did_you_mean(name, list(examples.columns))
            raise UserError(f"data.features: {config.source} has no column {name!r}{hint or has(examples.columns)}")
    return dataclasses.replace(examples, columns={name: examples.columns[name] for name in config.features})


#: What is added where a column of features holds words.
WORDS = "; if its values are categories, list it in data.categorical"


@dataclass(frozen=True)
class Roles:
    """Which columns of a table a config asks for."""

    target: str
    features: list[str]
    weights: str | None
    labels: Path | None
    """A file with the labels alone, where the target is one."""

    @staticmethod
    def of(config: DataConfig, table: TableFile) -> Roles:
        target, labels = config.target or LABEL, None
        if target.endswith(".npy"):
            labels = (table.path if table.path.is_dir() else table.path.parent) / target
        others = [name for name in (None if labels else target, config.weights) if name is not None]
        features = config.features or [name for name in table.names if name not in others]
        table.require([*others, *features, *config.categorical])
        if not features:
            raise UserError(f"{table.path}: has no column but the target {target!r}")
        return Roles(target, features, config.weights, labels)

    @property
    def columns(self) -> list[str]:
        others = (None if self.labels else self.target, self.weights)
        return [*self.features, *(name for name in others if name is not None)]

    def own_labels(self) -> Array | None:
        """The labels in a file of their own."""
        if self.labels is None:
            return None
        labels = mapped(self.labels)
        if labels.ndim != 1:
            raise UserError(f"{self.labels}: holds an array of shape {labels.shape}, but labels need [n]")
        return np.array(labels, labels.dtype.newbyteorder("="))


def from_file(config: DataConfig, table: TableFile) -> Examples:
    """The examples in a table, all of them in memory, or UserError."""
    roles, skipped = Roles.of(config, table), []
    may_skip = config.on_bad_rows == "skip"
    columns: dict[str, Any] = table.read(roles.columns, (lambda: skipped.append(1)) if may_skip else None)
    n = len(next(iter(columns.values())))
    bad = np.zeros(n, bool) if may_skip else None
    if (own := roles.own_labels()) is not None:
        require_rows(roles, len(own), n)
        columns[roles.target] = pa.chunked_array([own])
    names, codes = np.unique(texts(table, roles.target, columns.pop(roles.target), bad=bad), return_inverse=True)
    weights = None
    if roles.weights is not None:
        weights = weights_of(table, roles.weights, columns.pop(roles.weights), bad=bad)
    categorical = set(config.categorical)
    read = {
        name: texts(table, name, column, bad=bad)
        if name in categorical
        else numbers(table, name, column, WORDS, bad=bad)
        for name, column in columns.items()
    }
    labels, classes = labels_of(table, roles.target, names.tolist(), codes, config.classes, bad)
    examples = Examples(read, labels, classes, table, weights, len(skipped))
    return examples if bad is None or not bad.any() else _without(examples, bad)


def _without(examples: Examples, bad: Array) -> Examples:
    return dataclasses.replace(
        examples,
        columns={name: values[~bad] for name, values in examples.columns.items()},
        labels=examples.labels[~bad],
        weights=None if examples.weights is None else examples.weights[~bad],
        skipped=examples.skipped + int(bad.sum()),
    )


def require_rows(roles: Roles, labels: int, rows: int) -> None:
    if labels != rows:
        raise UserError(f"{roles.labels}: holds {labels} labels, but there are {rows} rows of features")


def weights_of(table: TableFile, name: str, column: Any, first: int = 0, bad: Array | None = None) -> Array:
    """The column of weights, 0 or more; bad where they are not, or a UserError."""
    weights = numbers(table, name, column, first=first, bad=bad)
    negative = weights < 0
    if negative.any() and bad is None:
        row = int(np.argmax(negative))
        raise UserError(f"{table.place(first + row, name)}: is {weights[row]:g}, but a weight must be 0 or more")
    if bad is not None:
        bad |= negative
    return np.where(negative, 0, weights)


def labels_of(
    table: TableFile,
    target: str,
    names: Sequence[str],
    codes: Array,
    listed: Sequence[str] | None,
    bad: Array | None = None,
) -> tuple[Array, tuple[str, ...]]:
    """Class indices ``[n]``, and the classes: those listed, or those found, whole numbers in the order of numbers.

    Args:
      table, target: for errors.
      names: distinct labels.
      codes: which of them each row has, ``[n]``.
      listed: the classes, where the config says them.
      bad: where it is given, rows of a label that is no class become true in it, and are no UserError. Those that are
        true already have no label.
    """
    counts = np.bincount(codes if bad is None else codes[~bad], minlength=len(names))
    names = [str(name) for name in names]
    if listed is None:
        names, wrong = _classes(names, counts)
        why = "is not a class; labels are words, or whole numbers (list them in data.classes if this is right)"
        used = {name for name, is_wrong, count in zip(names, wrong, counts, strict=True) if count and not is_wrong}
        found = sorted(used, key=int) if all(map(_is_whole, used)) else sorted(used)
    else:
        found, wrong = list(listed), np.asarray([name not in listed for name in names])
        why = "is not in data.classes"
    if np.any(wrong & (counts > 0)):
        if bad is None:
            row = int(np.argmax(wrong[codes]))
            hint = did_you_mean(names[codes[row]], found) if listed is not None else ""
            raise UserError(f"{table.place(row, target)}: label {names[codes[row]]!r} {why}{hint}")
        bad |= wrong[codes]
    if len(found) < 2:
        label = f"{found[0]!r}" if found else "no class"
        raise UserError(
            f"{table.path}, column {target!r}: all {counts.sum()} labels are {label}, but two classes are needed"
        )
    place = {name: i for i, name in enumerate(found)}
    labels = np.asarray([place.get(name, 0) for name in names], np.int32)[codes]
    unused = np.bincount(labels if bad is None else labels[~bad], minlength=len(found)) == 0
    if np.any(unused):
        raise UserError(
            f"{table.path}, column {target!r}: no label is {found[int(np.argmax(unused))]!r} of data.classes"
        )
    return labels, tuple(found)


def _place_of(known: Array, names: Array) -> Array:
    """For each name the index at which it is known; of a name that is not, that of another."""
    order = np.argsort(known)
    return order[np.minimum(np.searchsorted(known, names, sorter=order), len(known) - 1)]


def _classes(names: Sequence[str], counts: Array) -> tuple[list[str], Array]:
    """Distinct labels, whole numbers written without a decimal point, and which of them are no classes.

    Labels are words, or whole numbers: a fraction, NaN, or a word among numbers is a mistake in the file.
    """
    values = np.asarray([as_number(name) for name in names])
    numeric = ~np.isnan(values)
    wrong = np.asarray([name.lower() in ("nan", "na", "null", "none", "") for name in names]) | np.isinf(values)
    if not np.any(numeric & (counts > 0)):
        return list(names), wrong
    numbers_win = counts[numeric].sum() >= counts[~numeric].sum()
    wrong |= (~numeric if numbers_win else numeric) | (numeric & (values != np.floor(values)))
    whole = numeric & np.isfinite(values) & ~wrong
    return [str(int(v)) if is_whole else name for name, v, is_whole in zip(names, values, whole, strict=True)], wrong


def _is_whole(name: str) -> bool:
    return float(as_number(name)).is_integer()


# -- splitting ---------------------------------------------------------------------------------------------------------


def split(examples: Any, test_fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on and to test on: of each class the same fraction, drawn by the seed.

    Each class keeps at least one example to train on. Rows that are left out, of label -1, are for neither.
    """
    labels = examples.labels
    known = np.flatnonzero(labels >= 0)
    if test_fraction == 0:
        return known, np.arange(0)
    generator = np.random.default_rng(seed)
    test = []
    for k in range(len(examples.classes)):
        rows = generator.permutation(np.flatnonzero(labels == k))
        test.append(rows[: min(round(test_fraction * len(rows)), len(rows) - 1)])
    rows = np.sort(np.concatenate(test))
    if len(rows) == 0:
        raise UserError(
            f"data.test_fraction {test_fraction} of {len(known)} examples leaves none to test on; 0 trains on all"
        )
    return np.setdiff1d(known, rows, assume_unique=True), rows


# -- encoding ----------------------------------------------------------------------------------------------------------


def _distinct(categories: tuple[str, ...]) -> tuple[str, ...]:
    if not categories or len(set(categories)) < len(categories):
        raise ValueError("must be distinct")
    return categories


def _named_apart(columns: tuple[Any, ...]) -> tuple[Any, ...]:
    if not columns or len({column.name for column in columns}) < len(columns):
        raise ValueError("must have distinct names")
    return columns


_CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@checked_dataclass(frozen=True, config=_CHECKED)
class NumericColumn:
    """A feature (value − mean)/scale."""

    name: str
    mean: float
    scale: PositiveFloat
    kind: Literal["numeric"] = "numeric"

    @property
    def features(self) -> list[str]:
        return [self.name]


@checked_dataclass(frozen=True, config=_CHECKED)
class CategoricalColumn:
    """As many features as there are categories: 1 for the one that is there, 0 for the others.

    With ``drop_first`` the first category has no feature.
    """

    name: str
    categories: Annotated[tuple[str, ...], AfterValidator(_distinct)]
    drop_first: bool = False
    kind: Literal["categorical"] = "categorical"

    @property
    def features(self) -> list[str]:
        return [f"{self.name}={category}" for category in self.categories[self.drop_first :]]


@checked_dataclass(frozen=True, config=_CHECKED)
class Encoder:
    """From columns to the matrix of features: what ``fit`` learnt and ``predict`` needs."""

    columns: Annotated[
        tuple[Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")], ...],
        AfterValidator(_named_apart),
    ]
    dtype: Literal["float32", "float64"]
    delimiter: Delimiter = ","
    """Of the CSV file that was trained on, and by default of those that are predicted for."""

    @staticmethod
    def learn(examples: Examples, rows: Array, config: DataConfig, dtype: Literal["float32", "float64"]) -> Encoder:
        columns: list[NumericColumn | CategoricalColumn] = []
        for name, values in examples.columns.items():
            if values.dtype.kind != "f":
                columns.append(CategoricalColumn(name, tuple(in_order(values)), config.drop_first))
            elif config.standardize:
                columns.append(NumericColumn(name, *_mean_and_scale(values[rows])))
            else:
                columns.append(NumericColumn(name, 0.0, 1.0))
        return Encoder(tuple(columns), dtype, config.delimiter)

    @property
    def feature_names(self) -> list[str]:
        """One for each column of the matrix."""
        return [name for column in self.columns for name in column.features]

    @property
    def of_categories(self) -> list[bool]:
        """For each column of the matrix whether it is 1 for a category and 0 for the others."""
        return [isinstance(column, CategoricalColumn) for column in self.columns for _ in column.features]

    def matrix(self, examples: Examples) -> Array:
        """The features ``[n, d]`` of all examples, or UserError for a category that was not there in training."""
        blocks = []
        rows, width = len(next(iter(examples.columns.values()))), len(self.of_categories)
        # It is split, and placed where it is computed with.
        needed = 3 * rows * width * np.dtype(self.dtype).itemsize
        require_memory(needed, f"{rows} examples of {width} features, as each category is one,")
        for column in self.columns:
            values = examples.columns[column.name]
            if isinstance(column, NumericColumn):
                blocks.append(self._scaled(examples, column, values)[:, None])
                continue
            known = np.asarray(column.categories)
            at = _place_of(known, values)
            if not np.all(seen := known[at] == values):
                row = int(np.argmin(seen))
                hint = did_you_mean(str(values[row]), column.categories)
                raise UserError(
                    f"{examples.place(row, column.name)}: category {str(values[row])!r} was not in training{hint}"
                )
            blocks.append((at[:, None] == np.arange(column.drop_first, len(known))).astype(self.dtype))
        return np.concatenate(blocks, axis=1)

    def _scaled(self, examples: Examples, column: NumericColumn, values: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = ((values - column.mean) / column.scale).astype(self.dtype)
        if not np.all(finite := np.isfinite(scaled)):
            row = int(np.argmin(finite))
            raise UserError(f"{examples.place(row, column.name)}: {values[row]!s} is too large for {self.dtype}")
        return scaled

    def read(self, table: TableFile) -> Examples:
        """The columns that the encoder needs, from a file that may have others too."""
        return self._decoded(table, table.read([column.name for column in self.columns]), 0)

    def blocks(self, table: TableFile) -> Iterator[Examples]:
        """The same, a block of rows at a time."""
        first = 0
        for block in table.blocks([column.name for column in self.columns]):
            yield self._decoded(table, {name: block.column(name) for name in block.column_names}, first)
            first += block.num_rows

    def _decoded(self, table: TableFile, columns: dict[str, Any], first: int) -> Examples:
        read: dict[str, Array] = {}
        for column in self.columns:
            decode: Any = numbers if isinstance(column, NumericColumn) else texts
            read[column.name] = decode(table, column.name, columns[column.name], first=first)
        return Examples(read, np.zeros(0, np.int32), (), table, first=first)


def _mean_and_scale(values: Array) -> tuple[float, float]:
    """Mean and standard deviation; a constant column has scale 1, so that it becomes 0.

    The spread is divided by its largest value first: the squares of 1e200 would overflow.
    """
    if np.all(values == values[0]):
        return float(values[0]), 1.0
    mean = float(np.sum(values / len(values)))
    largest = float(np.max(np.abs(values - mean)))
    return mean, float(np.std((values - mean) / largest) * largest)
