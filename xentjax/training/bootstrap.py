"""The bootstrap of a regression: fits to rows drawn with replacement, and what their coefficients say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.training.fit_many import fit_many
from xentjax.training.fit_summary import Labels, stacked

Array = np.ndarray[Any, Any]

#: Of one call of the program: multiply-adds (a second on a laptop, so that progress and Ctrl-C come through), bytes of
#: weights, and fits.
_WORK, _BYTES, _FITS = 1e10, 2**27, 250

#: Steps of a fit, for an estimate of its work.
_STEPS = 8


@dataclass(frozen=True)
class Bootstrap:
    """The fits to resamples; parameters are those of the fits that were solved, with a leading axis.

    A resample may lack what the data have: its classes are separated, or a column is constant, so that its
    coefficients are infinite or not determined. Such fits are left out, and ``ends`` counts them.
    """

    params: LogisticParams
    ends: dict[str, int]
    """How many of the fits ended with each status."""
    asked: int
    """How many resamples were asked for; fewer are there after an interrupt."""
    level: float

    @property
    def made(self) -> int:
        return sum(self.ends.values())

    @property
    def used(self) -> int:
        return len(self.params.weights)

    @property
    def std_err(self) -> LogisticParams:
        """The standard deviation of each parameter over the resamples; NaN for fewer than two."""
        return self._of(lambda values: np.std(values, axis=0, ddof=1))

    @property
    def interval(self) -> tuple[LogisticParams, LogisticParams]:
        """The ends of percentile intervals: the quantiles (1 ∓ level)/2 of each parameter; NaN for fewer than two.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
        """
        at = lambda share: self._of(lambda values: np.quantile(values, share, axis=0))
        return at((1 - self.level) / 2), at((1 + self.level) / 2)

    def _of(self, statistic: Callable[[Array], Any]) -> LogisticParams:
        nothing = lambda values: np.full(values.shape[1:], np.nan)
        return LogisticParams(*(statistic(values) if self.used > 1 else nothing(values) for values in self.params))

    @property
    def message(self) -> str:
        """What is to be said of fits that were not solved; empty where all were."""
        left_out = self.made - self.used
        if not left_out:
            return ""
        how = ", ".join(f"{n} {name}" for name, n in self.ends.items() if name not in _SOLVED)
        return (
            f"{left_out} of {self.made} resamples are left out ({how}): their coefficients are infinite or not "
            "determined, so that the intervals are too narrow. Add l2, or leave out features that few rows tell of"
        )

    def summary(self, params: LogisticParams, names: Sequence[str], classes: Sequence[str]) -> str:
        """A table of the parameters that the data gave, with errors and intervals from the resamples."""
        labels = Labels.of(names)
        table, errors = stacked(params), stacked(self.std_err)
        low, high = map(stacked, self.interval)
        level = f"[{100 * self.level:g}%"
        title = f"{'coefficient':>12}{'std err':>11}{level:>12}{'interval]':>12}"
        lines = [f"Bootstrap, percentile intervals of {self.used} resamples", "=" * (labels.width + 62)]
        lines += [" " * labels.width + title]
        is_reference = ~(table.any(axis=0) | errors.any(axis=0))
        formats = (">12.5g", ">11.4g", ">12.4g", ">12.4g")
        lines += labels.rows((table, errors, low, high), formats, classes, is_reference)
        lines.append("=" * (labels.width + 62))
        return "\n".join([*lines, self.message] if self.message else lines)


#: Statuses of fits whose parameters are those of the minimum.
_SOLVED = ("converged", "precision_limited")


def bootstrap(
    x: Array,
    y: Array,
    *,
    resamples: int,
    level: float,
    seed: int,
    class_weight: Any,
    num_classes: int | None,
    progress: Callable[[int, int], object],
    **options: Any,
) -> Bootstrap:
    """Fit to ``resamples`` samples of n rows, each drawn with replacement from the n rows of x ``[n, d]``, y ``[n]``.

    Args:
      level: of the intervals.
      seed: of the drawing.
      class_weight: as in :func:`fit_logistic`; ``"balanced"`` is balanced anew in each resample.
      num_classes: K, None for two classes.
      progress: told how many fits are done, and of how many; a KeyboardInterrupt out of it ends the run with those.
      options: of :func:`fit_many`.
    """
    n, k = len(y), num_classes or 2
    work = _STEPS * n * (x.shape[1] + 1) ** 2 * (num_classes or 1) ** 2
    most = int(np.clip(min(_WORK / work, _BYTES / (n * x.dtype.itemsize)), 1, _FITS))
    each = math.ceil(resamples / math.ceil(resamples / most))
    # Another stream than those of the split and of the folds, which have the same seed.
    generator = np.random.default_rng([seed, 2])
    x, y = jnp.asarray(x), jnp.asarray(y)
    labels, parts, names = np.asarray(y), [], []
    try:
        for done in range(0, resamples, each):
            progress(done, resamples)
            counts = np.stack([np.bincount(generator.integers(0, n, n), minlength=n) for _ in range(each)])
            weights = (counts * _factors(class_weight, counts, labels, k)).astype(x.dtype)
            fits = fit_many(x, y, weights=weights, num_classes=num_classes, inference=False, **options)
            kept = min(each, resamples - done)
            parts.append(jax.tree.map(lambda leaf, kept=kept: np.asarray(leaf)[:kept], fits.params))
            names.append(fits.status.names[:kept])
        progress(resamples, resamples)
    except KeyboardInterrupt:
        pass
    every = np.concatenate(names) if names else np.zeros(0, str)
    found, counts = np.unique(every, return_counts=True)
    shape = (0, x.shape[1], *((k,) if num_classes else ()))
    nothing = LogisticParams(np.zeros(shape, x.dtype), np.zeros((0, *shape[2:]), x.dtype))
    params = jax.tree.map(lambda *leaves: np.concatenate(leaves), nothing, *parts)
    solved = np.isin(every, _SOLVED)
    params = jax.tree.map(lambda leaf: leaf[solved], params)
    return Bootstrap(params, dict(zip(found.tolist(), counts.tolist(), strict=True)), resamples, level)


def _factors(class_weight: Any, counts: Array, labels: Array, k: int) -> Any:
    """The factor of each row's weight in each resample, ``[resamples, n]`` or what broadcasts to it."""
    if class_weight is None:
        return 1
    if class_weight == "balanced":
        of_classes = counts @ np.eye(k, dtype=int)[labels]
        factors = counts.sum(axis=1, keepdims=True) / (k * np.maximum(of_classes, 1))
        return factors[:, labels]
    return np.array([class_weight.get(c, 1.0) for c in range(k)])[labels]
