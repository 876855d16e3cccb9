"""Pictures of regressions: path of penalties, and coefficients with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xentjax.plots.runs import draw_predictions
from xentjax.plots.style import BLUE, GREEN, PALETTE, QUIET, VERMILION, bits_axis, legend_above, save, styled
from xentjax.training.fit_summary import stacked
from xentjax.training.path_result import LogisticPath
from xentjax.training.regression_config import InferenceConfig
from xentjax.training.regression_result import Regression

Array = np.ndarray[Any, Any]


def draw_regression(made: Regression, folder: Path) -> None:
    """The pictures of a regression: ``coefficients.png``, ``confusion.png``, ``reliability.png``, and of a path
    ``path.png``."""
    name, scale = made.config.name, made.deviations[:, None]
    if made.path is not None:
        with made.in_precision():
            save(regularization_path(made.path, title=name, names=made.names), folder / "path.png")
    intervals = {}
    if made.fit.covariance is not None:
        wanted = made.config.inference or InferenceConfig()
        what = f"{'robust ' if wanted.robust else ''}Wald {100 * wanted.level:g} %"
        intervals[what] = made.fit.confidence_interval(wanted.level, robust=wanted.robust)
    if made.bootstrap is not None and made.bootstrap.used > 1:
        what = f"bootstrap {100 * made.bootstrap.level:g} %, {made.bootstrap.used} resamples"
        intervals[what] = made.bootstrap.interval
    coefficients = coefficient_intervals(
        stacked(made.fit.params)[:-1] * scale,
        {what: (stacked(low)[:-1] * scale, stacked(high)[:-1] * scale) for what, (low, high) in intervals.items()},
        made.names,
        made.model.classes,
        per="one standard deviation more" + (", or for the category" if any(made.model.encoder.of_categories) else ""),
        title=name,
    )
    save(coefficients, folder / "coefficients.png")
    draw_predictions(made, folder)


# -- a path of penalties -----------------------------------------------------------------------------------------------


@styled
def regularization_path(path: LogisticPath, *, title: str, names: Sequence[str] | None = None) -> Figure:
    """Coefficients against the penalty λ, and below them the cross-validated loss with both choices of λ.

    Of K classes each coefficient is a line. The features whose coefficients are largest, six at most, have colours and
    names, the others are grey: largest at the λ within one error of the best or, without cross-validation, at the end.
    Error bars are one standard error.

    Raises:
      ValueError: there is not a name for each feature.
    """
    lambdas, weights = np.asarray(path.lambdas), np.asarray(path.params.weights)
    names = [f"x{j}" for j in range(weights.shape[1])] if names is None else list(names)
    if len(names) != weights.shape[1]:
        raise ValueError(f"regularization_path: got {len(names)} names for {weights.shape[1]} features")
    weights = weights.reshape(len(lambdas), len(names), -1)
    tested = path.folds is not None
    figure = Figure(figsize=(7.5, 8 if tested else 4.8))
    all_axes = figure.subplots(2 if tested else 1, 1, sharex=True, squeeze=False)[:, 0]
    top = all_axes[0]
    shown = int(path.best_1se) if tested else -1
    largest = np.argsort(-np.abs(weights[shown]).max(axis=1), kind="stable")[: len(PALETTE)]
    for j in np.setdiff1d(np.arange(len(names)), largest):
        top.plot(lambdas, weights[:, j], color="#BBBBBB", linewidth=1)
    for color, j in zip(PALETTE, largest, strict=False):
        top.plot(lambdas, weights[:, j], color=color, linewidth=1.6, label=[names[j], *[None] * (weights.shape[2] - 1)])
    top.set_title(title, pad=30 if len(largest) <= 3 else 46)
    legend_above(top, columns=3, fontsize=10)
    top.set_ylabel("coefficient")
    if tested:
        _draw_test_loss(path, all_axes[1])
        for axes in all_axes:
            for index, color in ((int(path.best), VERMILION), (int(path.best_1se), GREEN)):
                axes.axvline(lambdas[index], color=color, linestyle="--", linewidth=1.2, zorder=1)
    all_axes[-1].set_xscale("log")
    all_axes[-1].set_xlabel("penalty λ (on the right the weakest)")
    all_axes[-1].invert_xaxis()
    return figure


def _draw_test_loss(path: LogisticPath, axes: Axes) -> None:
    lambdas, mean, error = (np.asarray(a) for a in (path.lambdas, path.mean_test_loss, path.test_loss_error))
    axes.errorbar(
        lambdas, mean, error, color=BLUE, ecolor="#9CC7E3", elinewidth=1, linewidth=1.6, label="mean ± standard error"
    )
    chosen = ((int(path.best), VERMILION, "best"), (int(path.best_1se), GREEN, "within one error"))
    for index, color, what in chosen:
        axes.plot(lambdas[index], mean[index], "o", color=color, zorder=3, label=f"{what}: λ = {lambdas[index]:.3g}")
    axes.set_ylabel("cross-validated loss [nats]")
    # What a fit that overfits loses is no reason to hide all others.
    shown = mean <= max(2 * mean.min(), mean[0] * 1.05)
    axes.set_ylim(0, 1.05 * float(np.max((mean + error)[shown])))
    bits_axis(axes)
    legend_above(axes, columns=3, fontsize=10)


# -- coefficients ------------------------------------------------------------------------------------------------------


@styled
def coefficient_intervals(
    coefficients: Array,
    intervals: Mapping[str, tuple[Array, Array]],
    names: Sequence[str],
    classes: Sequence[str],
    *,
    per: str,
    title: str,
) -> Figure:
    """Coefficients ``[d, K]`` as dots and intervals of them, each ``[d, K]`` twice, as lines: a panel for each class.

    ``per`` says for what change of a feature they are. Features and classes whose coefficients are all 0 are left out,
    and beyond 60 features those whose coefficients are smallest, beyond 12 classes the last.
    """
    size = np.abs(coefficients).max(axis=1)
    shown = np.sort(np.argsort(-size, kind="stable")[: int(np.clip(np.sum(size > 0), 1, 60))])
    of_classes = [c for c in range(coefficients.shape[1]) if coefficients[:, c].any()][:12] or [0]
    columns = min(len(of_classes), 4)
    rows = -(-len(of_classes) // columns)
    height = 1.7 + (0.36 if len(intervals) > 1 else 0.27) * len(shown)
    figure = Figure(figsize=(7.5 if columns == 1 else 2.4 + 3 * columns, rows * height))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    place = np.arange(len(shown))
    for axes, c in zip(panels, of_classes, strict=False):
        axes.axvline(0, color=QUIET, linewidth=1)
        for i, (color, (what, (low, high))) in enumerate(zip((BLUE, VERMILION), intervals.items(), strict=False)):
            at = place + 0.32 * (i - (len(intervals) - 1) / 2)
            axes.hlines(at, low[shown, c], high[shown, c], color=color, linewidth=2.2, label=what)
            axes.plot(coefficients[shown, c], at, "o", color=color, markersize=4.5)
        if not intervals:
            axes.plot(coefficients[shown, c], place, "o", color=BLUE, markersize=5)
        axes.grid(False, axis="y")
        axes.set_yticks(place, [names[j] for j in shown])
        axes.tick_params(axis="y", length=0)
        axes.set_title(classes[c] if len(of_classes) > 1 else "")
    panels[0].set_ylim(len(shown) - 0.4, -0.6)
    for axes in panels[len(of_classes) :]:
        axes.remove()
    what = "the largest" if len(shown) == 60 else "the others are 0"
    title += ": coefficients" + (
        "" if len(shown) == len(names) else f" of {len(shown)} features of {len(names)}, {what}"
    )
    odds = f"log-odds of {classes[1]}" if coefficients.shape[1] == 1 else "logit of the class"
    if len(of_classes) == 1:
        panels[0].set_title(title, pad=30 if intervals else None)
    else:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    if intervals and len(of_classes) == 1:
        legend_above(panels[0], columns=2, fontsize=10)
    elif intervals:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=10)
    figure.supxlabel(f"change of the {odds} for {per}", fontsize=11)
    return figure
