"""Pictures of runs (loss curve, confusion matrix, calibration, grid of fits, path of penalties, coefficients), and the
style of all figures.

Every function returns a matplotlib figure and touches no global state: no pyplot, no backend, no window. :func:`save`
writes it, the same bytes for the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from xentjax.training.evaluation import Calibration
from xentjax.training.fit_result import stacked
from xentjax.training.job import Fitted
from xentjax.training.many import Grid
from xentjax.training.path_result import LogisticPath
from xentjax.training.regression import Regression
from xentjax.training.regression_config import InferenceConfig

Array = np.ndarray[Any, Any]
P = ParamSpec("P")

#: Told apart by people who do not see all colours too (Okabe and Ito 2008), and used in this order.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, QUIET = "#222222", "#767676"

_STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "svg.hashsalt": "xentjax",
}


def _settings() -> Any:
    return {**dict(matplotlib.rcParamsDefault.items()), **_STYLE}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of this library, whatever matplotlib is set to otherwise."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_settings()):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, path: str | Path) -> None:
    """Write the figure in the format that the path's ending names, without a date in it."""
    path = Path(path)
    metadata: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}}.get(path.suffix, {})
    with matplotlib.rc_context(_settings()):
        figure.savefig(path, metadata=metadata)


def bits_axis(axes: Axes) -> None:
    """A second scale on the right, in bits, for an axis in nats."""
    right = axes.secondary_yaxis("right", functions=(lambda nats: nats / np.log(2), lambda bits: bits * np.log(2)))
    right.spines["right"].set_visible(True)
    right.set_ylabel("[bits]")


def step_axis(axes: Axes, steps: Array) -> None:
    """Many steps on a logarithmic scale that begins with 0, since most happens in the first ones; few on a linear one,
    and those of epochs, between whose ends nothing is known."""
    if steps[-1] > 100 and steps[1] == 1:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(0, steps[-1])
        axes.xaxis.set_major_formatter(_plain_number)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)


def plain_log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, ..., written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(_plain_number)
    axis.set_minor_formatter(NullFormatter())


_plain_number = FuncFormatter(lambda value, _: f"{value:g}")


def legend_above(axes: Axes, columns: int = 4, **options: Any) -> None:
    """The legend in a row above the axes, where there is no data."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.4, **options
    )


def draw_run(fitted: Fitted, folder: Path) -> None:
    """The three pictures of a run: ``loss.png``, ``confusion.png`` and ``reliability.png``, on the test examples."""
    name = fitted.config.name
    entropy = fitted.train.entropy_of_labels
    loss = loss_curve(fitted.steps, fitted.value, fitted.gradient_norm, title=name, entropy_of_labels=entropy)
    save(loss, folder / "loss.png")
    _draw_predictions(fitted, folder)


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
    _draw_predictions(made, folder)


def _draw_predictions(run: Fitted | Regression, folder: Path) -> None:
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
