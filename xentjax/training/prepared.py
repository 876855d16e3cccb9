"""From examples to what is fitted: training and test parts, and initial parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.models.streamed import StreamedRows
from xentjax.training.config import DataConfig, ExamplesConfig
from xentjax.training.data import Encoder, Examples, from_file, load_source, split
from xentjax.training.errors import UserError
from xentjax.training.streams.encode import encoded, learn
from xentjax.training.streams.rows import labels_and_weights
from xentjax.training.streams.scan import Scanned, scan
from xentjax.training.table import open_table

Array = np.ndarray[Any, Any]

#: Bytes of files from which on features are streamed where the config leaves it open.
_LARGE = 2**29


class Part(NamedTuple):
    """Examples to train or to test on: those with a weight other than 0; without weights all of them, once each."""

    x: Any
    """``[n, d]``, in memory or streamed."""
    y: Array
    weights: Array | None


@dataclass(frozen=True)
class Prepared:
    """Training and test examples, and how they were encoded."""

    encoder: Encoder
    classes: tuple[str, ...]
    train: Part
    test: Part | None
    rows: Array
    """Of the training part, which ones of all examples its rows are."""
    skipped: int = 0
    """How many rows of the table were left out, as something in them was wrong."""

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays: runs on the same are on the same data."""
        found = hashlib.sha256(repr((self.encoder, self.classes)).encode())
        for part in self.parts:
            for array in (*_blocks(part.x), part.y, part.weights):
                if array is not None:
                    found.update(f"{array.dtype} {array.shape}\n".encode())
                    found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @property
    def x(self) -> Any:
        """The features to train on."""
        return self.train.x

    @property
    def y(self) -> Array:
        return self.train.y

    @property
    def parts(self) -> list[Part]:
        """The training examples, and the test examples if there are any."""
        return [self.train] if self.test is None else [self.train, self.test]

    @property
    def num_classes(self) -> int | None:
        """The K of the objective: None for a binary model."""
        return None if len(self.classes) == 2 else len(self.classes)

    @property
    def streamed(self) -> bool:
        return isinstance(self.train.x, StreamedRows)


def load_examples(config: DataConfig) -> Examples | Scanned:
    """Read the examples that the config names, or what a pass over them tells where they are streamed; or UserError."""
    if config.path is None:
        return load_source(config)
    table = open_table(config.path, config.delimiter)
    streamed = config.memory == "stream" or (config.memory == "auto" and table.bytes >= _LARGE)
    return scan(config, table) if streamed else from_file(config, table)


def split_and_encode(examples: Examples | Scanned, config: ExamplesConfig, seed: int) -> Prepared:
    """Split the examples by the seed, and encode them by what the training examples say."""
    labels, classes = examples.labels, examples.classes
    train, test = split(examples, config.data.test_fraction, seed)
    if isinstance(examples, Scanned):
        return _streamed(examples, config, train, test)
    encoder = Encoder.learn(examples, train, config.data, config.precision)
    matrix, weights = encoder.matrix(examples), examples.weights
    part = lambda rows: Part(matrix[rows], labels[rows], None if weights is None else weights[rows])
    return Prepared(encoder, classes, part(train), part(test) if len(test) else None, train, examples.skipped)


def _streamed(scanned: Scanned, config: ExamplesConfig, train: Array, test: Array) -> Prepared:
    """Both parts are all rows, those of the other one with weight 0."""
    data = config.data
    labels, weights = labels_and_weights(scanned)
    trains = np.zeros(len(labels), bool)
    trains[train] = True
    options: dict[str, Any] = {"standardize": data.standardize, "drop_first": data.drop_first}
    encoder = learn(scanned, trains, config.precision, delimiter=data.delimiter, **options)
    x = StreamedRows.of(encoded(scanned, encoder, None if data.cache is None else Path(data.cache)))
    every = np.arange(len(labels))
    if not len(test):
        return Prepared(encoder, scanned.classes, Part(x, labels, weights), None, every, scanned.skipped)
    weights = np.ones(len(labels), np.float32) if weights is None else weights
    parts = [Part(x, labels, np.where(here, weights, 0)) for here in (trains, ~trains)]
    return Prepared(encoder, scanned.classes, parts[0], parts[1], every, scanned.skipped)


def _blocks(x: Any) -> Iterator[Array]:
    """Features a block of rows at a time, where they are streamed."""
    if not isinstance(x, StreamedRows):
        yield x
        return
    source: Any = x.source
    for _, block in source.blocks():
        yield block


def require_in_memory(prepared: Prepared, what: str) -> None:
    """UserError where the examples are streamed, for what needs all of them at once."""
    if prepared.streamed:
        raise UserError(f'{what} needs the examples in memory: data.memory = "whole" reads them')


def initial_params(data: Prepared, scale: float, seed: int) -> LogisticParams:
    """Weights from the normal distribution with this standard deviation, and bias 0."""
    classes = () if data.num_classes is None else (data.num_classes,)
    x = data.train.x
    # Another stream than that of the split, which has the same seed.
    weights = np.random.default_rng([seed, 1]).standard_normal((x.shape[1], *classes)) * scale
    return jax.device_put(LogisticParams(weights.astype(x.dtype), np.zeros(classes, x.dtype)))
