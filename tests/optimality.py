"""How far parameters are from the minimum of a penalized logistic loss, in plain float64 numpy."""

from __future__ import annotations

import numpy as np


def unmet(params, x, y, l1=0.0, l2=0.0, weights=None):
    """The largest component of the smallest subgradient."""
    w, b = np.asarray(params.weights, float), np.asarray(params.bias, float)
    s = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    r = (probabilities(w, b, x) - (y if w.ndim == 1 else np.eye(w.shape[1])[y])).T * (s / s.sum())
    r = r.T
    g = x.T @ r + l2 * w
    kinks = np.where(w != 0, np.abs(g + l1 * np.sign(w)), np.maximum(np.abs(g) - l1, 0))
    return max(kinks.max(), np.abs(r.sum(0)).max())


def probabilities(w, b, x):
    z = x @ w + b
    if w.ndim == 1:
        return 1 / (1 + np.exp(-z))
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def mean_loss(params, x, y, weights=None):
    """The weighted mean cross-entropy, without a penalty."""
    w, b = np.asarray(params.weights, float), np.asarray(params.bias, float)
    p = probabilities(w, b, x)
    losses = -np.log(np.where(y == 1, p, 1 - p)) if w.ndim == 1 else -np.log(p[np.arange(len(y)), y])
    return np.average(losses, weights=weights)
