"""How far a solution is from the minimum, by one function of plain float64 numpy for every method."""

from __future__ import annotations

import numpy as np

from benchmarks.data import Problem

#: The gradient's largest component at most, for a problem that counts as solved.
SOLVED = 1e-8


def gradient_norm(
    problem: Problem, weights: np.ndarray, bias: np.ndarray, examples: np.ndarray | None = None, l2: float | None = None
) -> float:
    r"""The infinity-norm of the gradient of the penalized mean loss; with an L1 penalty that of the least subgradient.

    For a weight :math:`w_j \ne 0` the component is :math:`|g_j + l_1\,\mathrm{sign}\,w_j|`, at 0 it is
    :math:`\max(|g_j| - l_1, 0)`, g being the gradient without it (the Karush-Kuhn-Tucker residual).

    Args:
      problem: data and penalties.
      weights, bias: of shapes ``[d], []`` or ``[d, K], [K]``.
      examples: weights of the examples, ``[n]``.
      l2: in the place of the problem's.
    """
    weights, bias = np.asarray(weights, np.float64), np.asarray(bias, np.float64)
    residual = _residual(problem.x @ weights + bias, problem.y)
    share = np.full(len(residual), 1 / len(residual)) if examples is None else examples / examples.sum()
    residual *= share if residual.ndim == 1 else share[:, None]
    gradient = problem.x.T @ residual + (problem.l2 if l2 is None else l2) * weights
    if problem.l1:
        at_zero = np.maximum(np.abs(gradient) - problem.l1, 0)
        gradient = np.where(weights == 0, at_zero, gradient + problem.l1 * np.sign(weights))
    norm = max(np.abs(gradient).max(initial=0), np.abs(residual.sum(axis=0)).max())
    # A comparison with NaN is false, and no solution is what it would seem.
    return float(norm) if np.isfinite(norm) else float("inf")


def _residual(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The prediction less the label, ``[n]`` or ``[n, K]``."""
    if z.ndim == 1:
        return (1 + np.tanh(z / 2)) / 2 - y
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p
