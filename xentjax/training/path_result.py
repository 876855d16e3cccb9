"""The result of a path of fits: parameters and certificates for each penalty, and the choice among them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.solvers.status import Status, entries
from xentjax.training.fit_summary import computed_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Folds:
    """The fits of a cross-validation, each to all folds but one: leading axes are the fold left out and λ.

    Attributes:
      params: coefficients and biases.
      gradient_norm, steps, status: as those of the path.
      test_loss: the mean cross-entropy of the fold left out, in nats.
      weights: ``[folds]``, the sum of the weights in each fold.
    """

    params: LogisticParams
    gradient_norm: jax.Array
    steps: jax.Array
    status: Status
    test_loss: jax.Array
    weights: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogisticPath:
    """Fits for many penalties; ``print(path.summary())`` is a table of it. A pytree.

    Attributes:
      lambdas: ``[L]``, from the largest to the smallest; all that follows has this leading axis.
      l1_ratio: the share α of the penalty that is L1.
      params: coefficients and biases of the fits to all rows, for the features as given.
      objective: the penalized mean loss in nats.
      train_loss: the mean loss without the penalty.
      gradient_norm: the largest component of the (smallest sub-)gradient, in units of standardized features.
      steps: of the solver, each with one pass over the rows.
      status: how each fit ended.
      folds: the fits of the cross-validation, or None.
    """

    lambdas: jax.Array
    l1_ratio: jax.Array
    params: LogisticParams
    objective: jax.Array
    train_loss: jax.Array
    gradient_norm: jax.Array
    steps: jax.Array
    status: Status
    folds: Folds | None

    def at(self, index: Any) -> LogisticParams:
        """The parameters of one fit: ``path.at(path.best)``."""
        return entries(self.params, index, np.shape(self.lambdas))

    @property
    def nonzero(self) -> jax.Array:
        """How many features have a weight that is not 0 (in any class), for each λ."""
        used = self.params.weights != 0
        return jnp.sum(used if used.ndim == self.lambdas.ndim + 1 else jnp.any(used, axis=-1), axis=-1)

    @property
    def test_loss(self) -> jax.Array:
        """``[folds, L]``, the mean cross-entropy of each fold, predicted by the fit to all others.

        Raises:
          ValueError: the path was fitted without cross-validation.
        """
        return self._folds.test_loss

    @property
    def mean_test_loss(self) -> jax.Array:
        """The mean cross-entropy of all rows, each predicted by a fit that has not seen it."""
        share = self._folds.weights / jnp.sum(self._folds.weights, axis=-1, keepdims=True)
        return jnp.sum(share[..., None] * self.test_loss, axis=-2)

    @property
    def test_loss_error(self) -> jax.Array:
        """The standard error of that mean, from how much the folds differ."""
        share = self._folds.weights / jnp.sum(self._folds.weights, axis=-1, keepdims=True)
        squares = (self.test_loss - self.mean_test_loss[..., None, :]) ** 2
        return jnp.sqrt(jnp.sum(share[..., None] * squares, axis=-2) / (share.shape[-1] - 1))

    @property
    def best(self) -> jax.Array:
        """The index of the λ of the smallest mean test loss."""
        return jnp.argmin(self.mean_test_loss, axis=-1)

    @property
    def best_1se(self) -> jax.Array:
        """The index of the largest λ whose mean test loss is within one standard error of the smallest."""
        best = self.best[..., None]
        limit = jnp.take_along_axis(self.mean_test_loss + self.test_loss_error, best, axis=-1)
        return jnp.argmax(self.mean_test_loss <= limit, axis=-1)

    @property
    def _folds(self) -> Folds:
        if self.folds is None:
            raise ValueError("the path has no cross-validation: ask for it with fit_path(..., folds=5)")
        return self.folds

    @property
    def message(self) -> str:
        """How the fits ended, each status with its count and what to do."""
        text = self.status.message
        return text if self.folds is None else f"{text}\nCross-validation: {self.folds.status.message}"

    def summary(self, rows: int = 20) -> str:
        """A table of the path: for each λ how many features have a weight, how well it fits, and how it ended.

        Args:
          rows: how many λ are shown at most, evenly chosen, besides the two choices.

        Raises:
          ValueError: it is not one path but many.
        """
        if np.ndim(self.lambdas) != 1:
            raise ValueError("summary: these are many paths: take one with jax.tree.map(lambda leaf: leaf[i], path)")
        marks: dict[int, str] = {}
        shown = set(np.unique(np.linspace(0, len(self.lambdas) - 1, max(rows, 1)).round().astype(int)).tolist())
        title = f"{'':>5}{'λ':>12}{'features':>10}{'loss':>12}"
        if self.folds is not None:
            marks = {int(self.best_1se): "largest within one standard error", int(self.best): "best"}
            title += f"{'test loss':>12}{'± error':>11}"
            mean, error = np.asarray(self.mean_test_loss), np.asarray(self.test_loss_error)
        kind = f"Path of {len(self.lambdas)} penalties, {float(self.l1_ratio):.0%} of each L1"
        kind += "" if self.folds is None else f", {len(self.folds.weights)} folds"
        lines = [kind, "=" * 80, f"{title}  status", "-" * 80]
        nonzero, loss = np.asarray(self.nonzero), np.asarray(self.train_loss)
        for i in sorted(shown | set(marks)):
            line = f"{i:>5}{float(self.lambdas[i]):>12.4g}{nonzero[i]:>10}{loss[i]:>12.6f}"
            if self.folds is not None:
                line += f"{mean[i]:>12.6f}{error[i]:>11.6f}"
            lines.append(f"{line}  {self._ending(i)}" + (f" ({marks[i]})" if i in marks else ""))
        lines += ["=" * 80, computed_in(str(self.objective.dtype))]
        if not self._all_converged():
            lines.append(self.message)
        return "\n".join(lines)

    def _ending(self, i: int) -> str:
        """The status of a fit, or of the first of its folds that did not converge."""
        if self.status[i] != "converged" or self.folds is None:
            return str(self.status[i])
        wrong = np.flatnonzero(np.asarray(self.folds.status[:, i] != "converged"))
        return f"fold {wrong[0]}: {self.folds.status[int(wrong[0]), i]}" if wrong.size else "converged"

    def _all_converged(self) -> bool:
        everywhere = [self.status] if self.folds is None else [self.status, self.folds.status]
        return all(bool(np.all(status == "converged")) for status in everywhere)
