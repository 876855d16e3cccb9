"""How good a fitted model's predictions are: cross-entropy, accuracy, entropies, divergence, calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.activations import logistic
from xentjax.losses.sigmoid import sigmoid_cross_entropy
from xentjax.losses.softmax import softmax_cross_entropy
from xentjax.measures.counts import entropy_of_counts
from xentjax.measures.divergence import kl_divergence
from xentjax.measures.entropy import binary_entropy_from_logits
from xentjax.measures.logits import entropy_from_logits
from xentjax.models.logistic import LogisticParams, predict_logits, predict_proba
from xentjax.models.streamed import StreamedRows
from xentjax.solvers.kept import kept

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Calibration:
    r"""Predictions sorted into bins of equal width by their confidence, the probability of the predicted class.

    ``error`` is the expected calibration error, :math:`\sum_b (n_b/n)\,|\mathrm{accuracy}_b - \mathrm{confidence}_b|`.

    Source: Naeini, Cooper and Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
    """

    edges: Array
    count: Array
    confidence: Array
    """Mean confidence of the predictions in each bin, NaN in an empty one."""
    accuracy: Array
    error: float


#: Bins of calibrations, and numbers of a block of rows.
_BINS, _CELLS = 15, 2**21


def calibration(confidence: Array, correct: Array, bins: int = _BINS) -> Calibration:
    """The calibration of predictions with their confidences ``[n]`` and whether each was right ``[n]``.

    Example:
      >>> import numpy as np
      >>> result = calibration(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]), bins=2)
      >>> round(result.error, 3), result.count
      (0.0, array([0, 4]))
      >>> round(calibration(np.array([0.9, 0.3]), np.array([False, True]), bins=2).error, 3)
      0.8
    """
    return _calibration(_binned(confidence, correct, np.ones(len(confidence)), bins))


def _binned(confidence: Array, correct: Array, weights: Array, bins: int) -> Array:
    """For each bin the sums of weights, of confidences, and of what was right, ``[bins, 3]``."""
    # A model whose numbers are not finite predicts NaN: the lowest confidence.
    at = np.clip(np.ceil(np.nan_to_num(np.asarray(confidence, float)) * bins).astype(int) - 1, 0, bins - 1)
    columns = weights, weights * confidence, weights * correct
    return np.stack([np.bincount(at, column, bins) for column in columns], axis=1)


def _calibration(binned: Array) -> Calibration:
    count = binned[:, 0]
    with np.errstate(invalid="ignore"):
        mean, accuracy = binned[:, 1] / count, binned[:, 2] / count
    error = float(np.sum(np.where(count > 0, count / max(count.sum(), 1) * np.abs(accuracy - mean), 0)))
    counts = count.astype(int) if np.array_equal(count, np.round(count)) else count
    return Calibration(np.linspace(0, 1, len(binned) + 1), counts, mean, accuracy, error)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on a set of examples. Cross-entropy, entropies and divergence are in nats; ``confusion``, the calibration
    and all means count each example as often as its weight says.

    ``divergence`` is the Kullback-Leibler divergence of the mean prediction from the frequencies of the classes. (For
    a single example, whose label is certain, the divergence is the cross-entropy itself.)
    """

    examples: int
    cross_entropy: float
    accuracy: float
    entropy_of_labels: float
    entropy_of_predictions: float
    divergence: float
    calibration: Calibration
    confusion: Array

    def summary(self) -> dict[str, float]:
        """The numbers, with cross-entropy and entropies in bits too."""
        return {
            "examples": self.examples,
            "cross_entropy_nats": self.cross_entropy,
            "cross_entropy_bits": self.cross_entropy / np.log(2),
            "accuracy": self.accuracy,
            "entropy_of_labels_nats": self.entropy_of_labels,
            "entropy_of_labels_bits": self.entropy_of_labels / np.log(2),
            "entropy_of_predictions_nats": self.entropy_of_predictions,
            "entropy_of_predictions_bits": self.entropy_of_predictions / np.log(2),
            "kl_divergence_nats": self.divergence,
            "kl_divergence_bits": self.divergence / np.log(2),
            "expected_calibration_error": self.calibration.error,
        }


def evaluations(params: LogisticParams, parts: Sequence[Any], num_classes: int) -> list[Evaluation]:
    """Evaluate a model on parts of the examples, each of features ``[n, d]``, in memory or streamed, class indices
    ``[n]``, and weights ``[n]`` or None.

    They are taken a block of rows at a time, and one program predicts for all blocks: what takes time is to compile it.
    """
    size = min(max(_CELLS // max(parts[0].x.shape[1], num_classes), 1), max(len(part.y) for part in parts))
    return [_evaluation(params, part, num_classes, size) for part in parts]


def _evaluation(params: LogisticParams, part: Any, num_classes: int, size: int) -> Evaluation:
    """The sums over blocks of ``size`` rows, each counted as often as its weight says."""
    examples, total, sums = 0, 0.0, np.zeros(3)
    prediction, confusion = np.zeros(num_classes), np.zeros((num_classes, num_classes))
    bins = np.zeros((_BINS, 3))
    for start in range(0, len(part.y), size):
        rows = slice(start, min(start + size, len(part.y)))
        labels, weights = part.y[rows], np.ones(rows.stop - start) if part.weights is None else part.weights[rows]
        if not weights.any():
            continue
        predictions = _predictions(params, _rows(part.x, start, size), np.pad(labels, (0, size - len(labels))))
        # What is in rows that do not count may be no number.
        there = np.flatnonzero(weights)
        loss, entropies, probabilities = (np.asarray(column, float)[there] for column in predictions)
        labels, weights = labels[there], weights[there].astype(float)
        predicted = np.argmax(probabilities, axis=1)
        correct = predicted == labels
        examples, total = examples + len(there), total + weights.sum()
        sums += [weights @ loss, weights @ correct, weights @ entropies]
        prediction += weights @ probabilities
        np.add.at(confusion, (labels, predicted), weights)
        bins += _binned(probabilities[np.arange(len(labels)), predicted], correct, weights, _BINS)
    with jax.enable_x64(True):
        entropy, divergence = _of_frequencies(confusion.sum(axis=1), prediction / prediction.sum())
    cross_entropy, accuracy, of_predictions = (sums / total).tolist()
    whole = part.weights is None or np.array_equal(confusion, np.round(confusion))
    return Evaluation(
        examples=examples,
        cross_entropy=cross_entropy,
        accuracy=accuracy,
        entropy_of_labels=float(entropy),
        entropy_of_predictions=of_predictions,
        divergence=max(float(divergence), 0.0),  # a mean that sums to 1 but for rounding can be as far below
        calibration=_calibration(bins),
        confusion=confusion.astype(int) if whole else confusion,
    )


def _rows(x: Any, start: int, size: int) -> Any:
    """So many rows from number ``start`` on; behind the last ones anything."""
    n = x.shape[0]
    if not isinstance(x, StreamedRows):
        rows = np.asarray(x[start : start + size])
        return np.pad(rows, ((0, size - len(rows)), (0, 0)))
    room: Array = np.zeros((size, x.shape[1]), x.dtype)
    source: Any = x.source
    source.read(start, room[: min(size, n - start)])
    return room


@kept()
def _of_frequencies(counts: Any, mean_prediction: Any) -> tuple[Any, Any]:
    """The entropy of the labels, and the divergence of the mean prediction from their frequencies."""
    return entropy_of_counts(counts), kl_divergence(counts / jnp.sum(counts), mean_prediction)


@kept()
def _predictions(params: LogisticParams, x: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Loss and entropy of each prediction, and the probability of each class."""
    logits = predict_logits(params, x)
    probabilities = class_probabilities(params, x)
    if logits.ndim == 1:
        loss = sigmoid_cross_entropy(logits, labels.astype(logits.dtype))
        return loss, binary_entropy_from_logits(logits), probabilities
    return softmax_cross_entropy(logits, labels), entropy_from_logits(logits), probabilities


def class_probabilities(params: LogisticParams, x: Any) -> jax.Array:
    """The probability of each class ``[n, K]``, for a binary model too: σ(−z) and σ(z)."""
    if params.weights.ndim == 1:
        logits = predict_logits(params, x)
        return jnp.stack([logistic(-logits), logistic(logits)], axis=-1)
    return predict_proba(params, x)
