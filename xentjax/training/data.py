"""The examples of a run: read, split into training and test, and encoded as a matrix of features.

The encoder (means, scales, categories) is learnt from the training examples, except that the categories of a column
are all that the file has: one that only the test examples have is known, and its weight stays at 0 or its start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass as checked_dataclass

from xentjax.training.categories import as_number, in_order
from xentjax.training.config import DataConfig, Delimiter
from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.files import require_memory
from xentjax.training.sources import SOURCES
from xentjax.training.table import TableFile, has, numbers, open_table, texts

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

    def place(self, row: int, column: str) -> str:
        return f"example {row + 1}, column {column!r}" if self.table is None else self.table.place(row, column)


def load_examples(config: DataConfig) -> Examples:
    """Read the examples that the config names, or raise UserError."""
    if config.path is not None:
        return _from_file(config, open_table(config.path, config.delimiter))
    assert config.source is not None
    examples = Examples(*SOURCES[config.source](), table=None)
    if config.features is None:
        return examples
    for name in config.features:
        if name not in examples.columns:
            hint = did_you_mean(name, list(examples.columns))
            raise UserError(f"data.features: {config.source} has no column {name!r}{hint or has(examples.columns)}")
    return dataclasses.replace(examples, columns={name: examples.columns[name] for name in config.features})


def _from_file(config: DataConfig, table: TableFile) -> Examples:
    assert config.target is not None
    features = config.features or [name for name in table.names if name != config.target]
    table.require([config.target, *features, *config.categorical])
    if not features:
        raise UserError(f"{table.path}: has no column but the target {config.target!r}")
    columns = table.read([*features, config.target])
    target = texts(table, config.target, columns.pop(config.target))
    labels, classes = _labels(table, config.target, target, config.classes)
    hint, categorical = "; if its values are categories, list it in data.categorical", set(config.categorical)
    read = {
        name: texts(table, name, column) if name in categorical else numbers(table, name, column, hint)
        for name, column in columns.items()
    }
    return Examples(read, labels, classes, table)


def _labels(table: TableFile, target: str, names: Array, listed: Sequence[str] | None) -> tuple[Array, tuple[str, ...]]:
    """Class indices, and the classes: those listed, or those found, whole numbers in the order of numbers."""
    if listed is None:
        names, found = _classes(table, target, names)
    else:
        found = list(listed)
    if len(found) < 2:
        raise UserError(
            f"{table.path}, column {target!r}: all {len(names)} labels are {found[0]!r}, but two classes are needed"
        )
    labels = _place_of(np.asarray(found), names).astype(np.int32)
    wrong = np.asarray(found)[labels] != names
    if np.any(wrong):
        row = int(np.argmax(wrong))
        hint = did_you_mean(str(names[row]), found)
        raise UserError(f"{table.place(row, target)}: label {str(names[row])!r} is not in data.classes{hint}")
    unused = np.bincount(labels, minlength=len(found)) == 0
    if np.any(unused):
        raise UserError(
            f"{table.path}, column {target!r}: no label is {found[int(np.argmax(unused))]!r} of data.classes"
        )
    return labels, tuple(found)


def _place_of(known: Array, names: Array) -> Array:
    """For each name the index at which it is known; of a name that is not, that of another."""
    order = np.argsort(known)
    return order[np.minimum(np.searchsorted(known, names, sorter=order), len(known) - 1)]


def _classes(table: TableFile, target: str, names: Array) -> tuple[Array, list[str]]:
    """The labels, whole numbers written without a decimal point, and those that are distinct, in order.

    Labels are words, or whole numbers: a fraction, NaN, or a word among numbers is a mistake in the file.
    """
    distinct, inverse = np.unique(names, return_inverse=True)
    values = np.asarray([as_number(name) for name in distinct])
    numeric = ~np.isnan(values)
    suspicious = np.asarray([name.lower() in ("nan", "na", "null", "none", "") for name in distinct]) | np.isinf(values)
    if np.any(numeric):
        counts = np.bincount(inverse)
        numbers_win = counts[numeric].sum() >= counts[~numeric].sum()
        suspicious |= (~numeric if numbers_win else numeric) | (numeric & (values != np.floor(values)))
    if np.any(suspicious):
        row = int(np.argmax(suspicious[inverse]))
        why = "is not a class; labels are words, or whole numbers (list them in data.classes if this is right)"
        raise UserError(f"{table.place(row, target)}: label {str(names[row])!r} {why}")
    if not np.any(numeric):
        return names, [str(name) for name in distinct]
    whole = np.asarray([str(int(value)) for value in values])
    return whole[inverse], sorted(set(whole.tolist()), key=int)


# -- splitting ---------------------------------------------------------------------------------------------------------


def split(examples: Examples, test_fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on and to test on: of each class the same fraction, drawn by the seed.

    Each class keeps at least one example to train on.
    """
    if test_fraction == 0:
        return np.arange(len(examples.labels)), np.arange(0)
    generator = np.random.default_rng(seed)
    test = []
    for k in range(len(examples.classes)):
        rows = generator.permutation(np.flatnonzero(examples.labels == k))
        test.append(rows[: min(round(test_fraction * len(rows)), len(rows) - 1)])
    rows = np.sort(np.concatenate(test))
    if len(rows) == 0:
        total = len(examples.labels)
        raise UserError(
            f"data.test_fraction {test_fraction} of {total} examples leaves none to test on; 0 trains on all"
        )
    return np.setdiff1d(np.arange(len(examples.labels)), rows), rows


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
        columns = table.read([column.name for column in self.columns])
        read = {
            c.name: (numbers if isinstance(c, NumericColumn) else texts)(table, c.name, columns[c.name])
            for c in self.columns
        }
        return Examples(read, np.zeros(0, np.int32), (), table)


def _mean_and_scale(values: Array) -> tuple[float, float]:
    """Mean and standard deviation; a constant column has scale 1, so that it becomes 0.

    The spread is divided by its largest value first: the squares of 1e200 would overflow.
    """
    if np.all(values == values[0]):
        return float(values[0]), 1.0
    mean = float(np.sum(values / len(values)))
    largest = float(np.max(np.abs(values - mean)))
    return mean, float(np.std((values - mean) / largest) * largest)
