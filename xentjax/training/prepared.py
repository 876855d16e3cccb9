"""From examples to what is fitted: training and test arrays, and initial parameters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.training.config import ExamplesConfig
from xentjax.training.data import Encoder, Examples, split

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prepared:
    """Training and test examples as arrays, and how they were encoded."""

    encoder: Encoder
    classes: tuple[str, ...]
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    rows: Array
    """Of the training examples, which ones of all examples they are."""

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays: runs on the same are on the same data."""
        found = hashlib.sha256(repr((self.encoder, self.classes)).encode())
        for array in (self.x, self.y, self.x_test, self.y_test):
            found.update(f"{array.dtype} {array.shape}\n".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @property
    def parts(self) -> list[tuple[Array, Array]]:
        """The training examples, and the test examples if there are any."""
        parts = [(self.x, self.y), (self.x_test, self.y_test)]
        return parts if len(self.y_test) else parts[:1]

    @property
    def num_classes(self) -> int | None:
        """The K of the objective: None for a binary model."""
        return None if len(self.classes) == 2 else len(self.classes)


def split_and_encode(examples: Examples, config: ExamplesConfig, seed: int) -> Prepared:
    """Split the examples by the seed, and encode them by what the training examples say."""
    train, test = split(examples, config.data.test_fraction, seed)
    encoder = Encoder.learn(examples, train, config.data, config.precision)
    matrix = encoder.matrix(examples)
    labels = examples.labels
    return Prepared(encoder, examples.classes, matrix[train], labels[train], matrix[test], labels[test], train)


def initial_params(data: Prepared, scale: float, seed: int) -> LogisticParams:
    """Weights from the normal distribution with this standard deviation, and bias 0."""
    classes = () if data.num_classes is None else (data.num_classes,)
    # Another stream than that of the split, which has the same seed.
    weights = np.random.default_rng([seed, 1]).standard_normal((data.x.shape[1], *classes)) * scale
    return jax.device_put(LogisticParams(weights.astype(data.x.dtype), np.zeros(classes, data.x.dtype)))
