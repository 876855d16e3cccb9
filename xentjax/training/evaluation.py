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


def calibration(confidence: Array, correct: Array, bins: int = 15) -> Calibration:
    """The calibration of predictions with their confidences ``[n]`` and whether each was right ``[n]``.

    Example:
      >>> import numpy as np
      >>> result = calibration(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]), bins=2)
      >>> round(result.error, 3), result.count
      (0.0, array([0, 4]))
      >>> round(calibration(np.array([0.9, 0.3]), np.array([False, True]), bins=2).error, 3)
      0.8
    """
    edges = np.linspace(0, 1, bins + 1)
    # A model whose numbers are not finite predicts NaN: the lowest confidence.
    at = np.clip(np.ceil(np.nan_to_num(np.asarray(confidence, float)) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(at, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(at, confidence, bins) / count
        accuracy = np.bincount(at, correct, bins) / count
    error = float(np.sum(np.where(count > 0, count / max(len(at), 1) * np.abs(accuracy - mean), 0)))
    return Calibration(edges, count, mean, accuracy, error)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on a set of examples. Cross-entropy, entropies and divergence are in nats.

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


def evaluations(params: LogisticParams, parts: Sequence[tuple[Array, Array]], num_classes: int) -> list[Evaluation]:
    """Evaluate a model on parts of the examples, each of features ``[n, d]`` and class indices ``[n]``.

    One program predicts for all of them: what takes time is to compile it.
    """
    labels = np.concatenate([part[1] for part in parts])
    predictions = _predictions(params, np.concatenate([part[0] for part in parts]), labels)
    ends = np.cumsum([len(part[1]) for part in parts])[:-1]
    loss, entropies, probabilities = (np.split(np.asarray(column, float), ends) for column in predictions)
    of_parts = zip(loss, entropies, probabilities, np.split(labels, ends), strict=True)
    return [_evaluation(*part, num_classes) for part in of_parts]


def _evaluation(loss: Array, entropies: Array, probabilities: Array, labels: Array, num_classes: int) -> Evaluation:
    predicted = np.argmax(probabilities, axis=1)
    counts = np.bincount(labels, minlength=num_classes).astype(float)
    mean_prediction = probabilities.mean(axis=0) / probabilities.mean(axis=0).sum()
    with jax.enable_x64(True):
        entropy, divergence = _of_frequencies(counts, mean_prediction)
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    correct = predicted == labels
    return Evaluation(
        examples=len(labels),
        cross_entropy=float(np.mean(loss)),
        accuracy=float(np.mean(correct)),
        entropy_of_labels=float(entropy),
        entropy_of_predictions=float(np.mean(entropies)),
        divergence=max(float(divergence), 0.0),  # a mean that sums to 1 but for rounding can be as far below
        calibration=calibration(probabilities[np.arange(len(labels)), predicted], correct),
        confusion=confusion,
    )


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
