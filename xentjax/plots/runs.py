"""Pictures of training runs, one or a grid of them, and of the predictions of any model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from xentjax.plots.style import (
    BLUE,
    INK,
    QUIET,
    SKY,
    VERMILION,
    bits_axis,
    legend_above,
    plain_log_ticks,
    save,
    step_axis,
    styled,
)
from xentjax.training.evaluation import Calibration
from xentjax.training.job import Fitted
from xentjax.training.many import Grid
from xentjax.training.regression_result import Regression

Array = np.ndarray[Any, Any]


def draw_run(fitted: Fitted, folder: Path) -> None:
    """The three pictures of a run: ``loss.png``, ``confusion.png`` and ``reliability.png``, on the test examples."""
    name = fitted.config.name
    entropy = fitted.train.entropy_of_labels
    loss = loss_curve(fitted.steps, fitted.value, fitted.gradient_norm, title=name, entropy_of_labels=entropy)
    save(loss, folder / "loss.png")
    draw_predictions(fitted, folder)


def draw_predictions(run: Fitted | Regression, folder: Path) -> None:
    shown, part = (run.train, "training") if run.test is None else (run.test, "test")
    title = f"{run.config.name}: {shown.examples} {part} examples"
    save(confusion_matrix(shown.confusion, run.model.classes, title=title), folder / "confusion.png")
    save(reliability_diagram(shown.calibration, title=title), folder / "reliability.png")


def draw_grid(grid: Grid, folder: Path) -> None:
    """The picture of a grid of runs: ``grid.png``."""
    train, test = grid.cross_entropy(grid.train), grid.cross_entropy(grid.test) if grid.test else None
    title = f"{grid.config.name}: {grid.steps.size} fits"
    step_sizes = grid.many.step_sizes
    names = [f"{s:g} (diverged)" if "diverged" in grid.ends(i) else f"{s:g}" for i, s in enumerate(step_sizes)]
    save(grid_of_fits(step_sizes, names, grid.history, train, test, title=title), folder / "grid.png")


# -- one run -----------------------------------------------------------------------------------------------------------


@styled
def loss_curve(steps: Array, loss: Array, gradient_norm: Array, *, title: str, entropy_of_labels: float) -> Figure:
    """The objective in nats and the largest gradient component against the step.

    The dotted line is the entropy of the labels: what a model that only knows how frequent the classes are would reach.
    """
    figure = Figure(figsize=(7, 6))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    marker = "o" if len(steps) < 30 else None
    top.plot(steps, loss, color=BLUE, marker=marker, markersize=4)
    top.axhline(entropy_of_labels, color=QUIET, linestyle=":", linewidth=1.5)
    top.annotate(
        "entropy of the labels", (1, entropy_of_labels), xycoords=("axes fraction", "data"), xytext=(-2, 4),
        textcoords="offset points", ha="right", color=QUIET, fontsize=10,
    )  # fmt: skip
    top.set_title(title)
    top.set_ylabel("training objective [nats]")
    top.set_ylim(0, 1.08 * max(entropy_of_labels, float(np.max(loss, initial=0, where=np.isfinite(loss)))))
    bits_axis(top)
    bottom.plot(steps, gradient_norm, color=VERMILION, marker=marker, markersize=4)
    positive = gradient_norm[np.isfinite(gradient_norm) & (gradient_norm > 0)]
    if len(positive):
        bottom.set_yscale("log")
    bottom.set_ylabel("largest gradient\ncomponent [nats]")
    bottom.set_xlabel("step")
    step_axis(bottom, steps)
    return figure


@styled
def confusion_matrix(counts: Array, classes: Sequence[str], *, title: str) -> Figure:
    """How often each true class (row) was predicted as each class (column), coloured by the share of its row."""
    k = len(classes)
    side = min(max(4.2, 1.8 + 0.52 * k), 14)
    figure = Figure(figsize=(side + 0.9, side))
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if k <= 30:
        slanted = max(map(len, classes)) > 3 and k > 4
        axes.set_xticks(range(k), classes, rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axes.set_yticks(range(k), classes)
        for i, j in np.argwhere(counts > 0):
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else INK)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class").outline.set_visible(False)  # type: ignore[operator]
    return figure


@styled
def reliability_diagram(calibration: Calibration, *, title: str) -> Figure:
    """Accuracy against confidence in each bin of confidence, over how many predictions fall in it.

    A calibrated model lies on the diagonal. Bins without a prediction are left out.
    """
    figure = Figure(figsize=(6, 6.4))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    count, confidence, accuracy = calibration.count, calibration.confidence, calibration.accuracy
    used = count > 0
    middle, width = (calibration.edges[:-1] + calibration.edges[1:]) / 2, 0.92 * np.diff(calibration.edges)
    top.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1.2, label="calibrated")
    top.bar(middle[used], accuracy[used], width[used], color=SKY, alpha=0.45, label="accuracy")
    dots = {"color": BLUE, "markersize": 6, "clip_on": False, "zorder": 3}
    top.plot(confidence[used], accuracy[used], "o", **dots, label="accuracy at mean confidence")
    top.set_title(f"{title}, ECE {100 * calibration.error:.2f} %", pad=30)
    legend_above(top, columns=3, fontsize=10)
    top.set_ylabel("accuracy")
    top.set_xlim(0, 1)
    top.set_ylim(0, 1)
    bottom.bar(middle, count, width, color=QUIET, alpha=0.7)
    bottom.set_ylabel("predictions")
    bottom.set_xlabel("confidence: probability of the predicted class")
    bottom.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    return figure


# -- a grid of runs ----------------------------------------------------------------------------------------------------


@styled
def grid_of_fits(
    step_sizes: Sequence[float],
    names: Sequence[str],
    loss: Array,
    train_loss: Array,
    test_loss: Array | None,
    *,
    title: str,
) -> Figure:
    """Loss against step for each step size, and the final cross-entropies against the step size.

    ``loss`` is ``[step sizes, seeds, steps]``, the final ones ``[step sizes, seeds]``; ``names`` are for the legend.
    The line is the median of the seeds, the band reaches from the lowest to the highest. Fits that overshoot are cut
    off at five times the initial loss, so that the others can be seen.
    """
    steps = np.arange(loss.shape[-1])
    highest = 5 * float(np.median(loss[..., 0]))
    figure = Figure(figsize=(10.5, 4.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    shades = matplotlib.colormaps["viridis"](np.linspace(0.02, 0.88, len(step_sizes)))
    for shade, name, curves in zip(shades, names, loss, strict=True):
        left.plot(steps, np.median(curves, axis=0), color=shade, label=name)
        left.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=shade, alpha=0.2, linewidth=0)
    step_axis(left, steps)
    left.set_xlabel("step")
    left.set_ylabel("training objective [nats]")
    left.set_title(f"{title}, by step size", pad=30)
    legend_above(left, columns=7, fontsize=10)
    parts = {"training": train_loss} if test_loss is None else {"training": train_loss, "test": test_loss}
    for color, (name, values) in zip((BLUE, VERMILION), parts.items(), strict=False):
        median = np.median(values, axis=1)
        seen = np.where(median <= highest, median, np.nan)
        right.plot(step_sizes, seen, color=color, marker="o", label=name)
        low, high = (np.where(median <= highest, end, np.nan) for end in (values.min(axis=1), values.max(axis=1)))
        right.fill_between(step_sizes, low, high, color=color, alpha=0.18, linewidth=0)
    beyond = [s for i, s in enumerate(step_sizes) if np.median(train_loss[i]) > highest]
    if beyond:
        right.plot(beyond, [highest] * len(beyond), "^", color=QUIET, markersize=9, clip_on=False, label="above")
    for axes, shown in ((left, loss), (right, np.stack(list(parts.values())))):
        drawn = shown[np.isfinite(shown) & (shown > 0)]
        if len(drawn):  # matplotlib cannot draw a logarithmic axis without a positive number
            axes.set_yscale("log")
            axes.set_ylim(drawn.min() / 1.15, np.fmin(drawn.max() * 1.15, highest))
            plain_log_ticks(axes.yaxis)
    right.set_xscale("log")
    right.minorticks_off()
    right.set_xticks(step_sizes, [f"{step_size:g}" for step_size in step_sizes])
    right.set_xlabel("step size")
    right.set_ylabel("cross-entropy at the end [nats]")
    legend_above(right, columns=3)
    return figure
