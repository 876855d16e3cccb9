"""The figures of the tutorial: from the entropy of a coin to gradient descent on the cross-entropy.

Everything that is drawn is computed by the library's public functions, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import xentjax as xj
from xentjax.plots.style import BLUE, GREEN, INK, PALETTE, QUIET, VERMILION, bits_axis, legend_above, save, styled
from xentjax.training.config import ModelsConfig, TutorialConfig
from xentjax.training.errors import UserError
from xentjax.training.run_folder import whole_file

LOG2 = float(np.log(2))
#: One object: another equal one would be compiled again.
_LBFGS = xj.Optax(optax.lbfgs())
Array = np.ndarray[Any, Any]


def draw_figures(config: TutorialConfig, folder: Path, report: Callable[[Path], None] = lambda path: None) -> None:
    """Write every figure as PNG and SVG into ``folder``; ``report`` is told each path that has been written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    with jax.enable_x64(True):
        for name, draw in FIGURES.items():
            figure = draw(config)
            for ending in ("png", "svg"):
                with whole_file(folder / f"{name}.{ending}") as temporary:
                    save(figure, temporary)
                report(folder / f"{name}.{ending}")


# -- one model ---------------------------------------------------------------------------------------------------------


@styled
def binary_entropy_of_p(config: TutorialConfig) -> Figure:
    """A. The entropy of a binary variable against the probability of its first value."""
    figure, axes = _single()
    p = jnp.linspace(0, 1, 501)
    axes.plot(p, xj.binary_entropy(p), color=BLUE)
    _mark_maximum(axes, 0.5, "greatest at p = ½:\nlog 2 = 1 bit")
    axes.set(xlim=(0, 1), xlabel="probability p", ylabel="entropy H(p) [nats]")
    axes.set_title("The entropy of a binary variable")
    _entropy_scale(axes)
    return figure


@styled
def logistic_and_its_entropy(config: TutorialConfig) -> Figure:
    """B. The logistic function and the entropy of the distribution that it gives."""
    figure, top, bottom = _stacked()
    x = _over_x(config.models)
    top.plot(x, xj.logistic(x), color=BLUE)
    top.set(ylabel="σ(x) [probability]", ylim=(-0.02, 1.02))
    top.set_title("The logistic function as a distribution")
    bottom.plot(x, xj.binary_entropy_from_logits(x), color=VERMILION)
    bottom.set(xlabel="x", ylabel="entropy H(σ(x)) [nats]", xlim=config.models.x_range)
    _entropy_scale(bottom)
    for axes in (top, bottom):
        axes.axvline(0, color=QUIET, linestyle=":", linewidth=1.5)
    _note(top, "undecided at x = 0", (0, 0.9), left=config.models.x_range[1] > 0)
    return figure


# -- three models ------------------------------------------------------------------------------------------------------


@styled
def three_models(config: TutorialConfig) -> Figure:
    """C. Three logistic models, and the entropy of each over x."""
    figure, top, bottom = _stacked()
    models = config.models
    x = _over_x(models)
    for (intercept, slope), name, color in zip(_coefficients(models), _NAMES, PALETTE, strict=False):
        params = xj.LogisticParams(jnp.asarray([slope]), jnp.asarray(intercept))
        written = f"{name}: β = ({intercept:g}, {slope:g})".replace("-", "\N{MINUS SIGN}")
        top.plot(x, xj.predict_proba(params, x[:, None]), color=color, label=written)
        bottom.plot(x, xj.binary_entropy_from_logits(xj.predict_logits(params, x[:, None])), color=color)
        if slope and models.x_range[0] < (undecided := -intercept / slope) < models.x_range[1]:
            for axes in (top, bottom):
                axes.axvline(undecided, color=color, linestyle=":", linewidth=1.3)
    top.set_title("Three logistic models", pad=30)
    legend_above(top, columns=3)
    top.set(ylabel="ŷ(x) [probability]", ylim=(-0.02, 1.02))
    bottom.set(xlabel="x   (dotted: where a model is undecided, x = −β₀/β₁)", ylabel="entropy H(ŷ(x)) [nats]")
    bottom.set_xlim(*models.x_range)
    _entropy_scale(bottom)
    return figure


@styled
def cross_entropy_of_two(config: TutorialConfig) -> Figure:
    """D. The cross-entropy of two models over x, with the entropy of each; what lies above the first is the KL."""
    figure, axes = _single()
    x, first, second = _first_two(config.models)
    cross, own = xj.cross_entropy(first, second), xj.entropy(first)
    axes.plot(x, cross, color=INK, label="H(ŷ₁, ŷ₂)")
    axes.plot(x, own, color=BLUE, label="H(ŷ₁)")
    axes.plot(x, xj.entropy(second), color=VERMILION, linestyle="--", label="H(ŷ₂)")
    axes.fill_between(x, own, cross, color=BLUE, alpha=0.13, linewidth=0, label="KL(ŷ₁ ‖ ŷ₂)")
    axes.set_title("Cross-entropy is never below the entropy of the true model", pad=30)
    legend_above(axes)
    axes.set(
        xlim=config.models.x_range,
        xlabel="x",
        ylabel="entropy, cross-entropy [nats]",
        ylim=(0, 1.08 * max(float(cross.max()), LOG2)),
    )
    bits_axis(axes)
    return figure


@styled
def order_matters(config: TutorialConfig) -> Figure:
    """E. The cross-entropy of two models over x, and with the two exchanged."""
    figure, axes = _single()
    x, first, second = _first_two(config.models)
    forward, backward = xj.cross_entropy(first, second), xj.cross_entropy(second, first)
    axes.plot(x, forward, color=INK, label="H(ŷ₁, ŷ₂)")
    axes.plot(x, backward, color=GREEN, linestyle="--", label="H(ŷ₂, ŷ₁)")
    axes.set_title("The order matters: true distribution first, prediction second", pad=30)
    legend_above(axes)
    axes.set(xlim=config.models.x_range, xlabel="x", ylabel="cross-entropy [nats]")
    axes.set_ylim(0, 1.08 * max(float(forward.max()), float(backward.max()), LOG2))
    bits_axis(axes)
    return figure


# -- loss and descent --------------------------------------------------------------------------------------------------


@styled
def loss_surface(config: TutorialConfig) -> Figure:
    """F. The loss over intercept and slope of a one-feature data set, and the path of the first solver on it."""
    figure = Figure(figsize=(7.4, 5.4))
    axes = figure.subplots()
    objective = _objective(config)
    path, best = _path(config, objective), _minimum(objective)
    points = np.vstack([path, best])
    margin = 0.25 * np.ptp(points, axis=0).max() + 0.5
    (left, low), (right, high) = points.min(axis=0) - margin, points.max(axis=0) + margin
    intercepts, slopes = jnp.linspace(left, right, 161), jnp.linspace(low, high, 161)
    over_slopes = jax.vmap(lambda b0, b1: objective.value(_params(b0, b1)), (None, 0))
    values = np.asarray(jax.jit(jax.vmap(over_slopes, (0, None)))(intercepts, slopes)).T
    lowest, highest = float(objective.value(_params(*best))), float(values.max())
    levels = lowest + (highest - lowest) * np.linspace(0, 1, 22) ** 2
    filled = axes.contourf(intercepts, slopes, values, levels, cmap="YlGnBu_r")
    axes.contour(intercepts, slopes, values, levels, colors="white", linewidths=0.5, alpha=0.6)
    axes.grid(False)
    axes.plot(*path.T, color=VERMILION, marker="o", markersize=3.5, linewidth=1.6, label=config.solvers[0].label())
    axes.plot(*path[0], "o", color="white", markeredgecolor=VERMILION, markersize=9, markeredgewidth=2, label="start")
    axes.plot(*best, "*", color="white", markeredgecolor=INK, markersize=15, label="minimum")
    axes.set_title(f"{len(path) - 1} steps on the loss surface of {config.surface.examples} examples", pad=30)
    legend_above(axes, columns=3)
    axes.set(xlabel="intercept β₀", ylabel="slope β₁")
    bar = figure.colorbar(filled, ax=axes, label="loss L(β₀, β₁) [nats]", format="%.2f", ticks=levels[::3])
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@styled
def loss_against_step(config: TutorialConfig) -> Figure:
    """G. How far the loss is above its minimum after each step of each solver."""
    figure = Figure(figsize=(7.4, 5.2))
    axes = figure.subplots()
    objective = _objective(config)
    lowest = float(objective.value(_params(*_minimum(objective))))
    start = _params(*config.surface.start)
    for i, solver in enumerate(config.solvers):
        made = solver.build(config.stop.max_steps)
        solution = xj.minimize(objective, start, made, tol=config.stop.tol, max_steps=config.stop.max_steps)
        above = np.asarray(solution.history.value)[: int(solution.steps) + 1] - lowest
        above[above <= 1e-15] = np.nan
        style = "-" if i < len(PALETTE) else "--"
        axes.plot(
            above, color=PALETTE[i % len(PALETTE)], linestyle=style, marker="o", markersize=2.5, label=solver.label()
        )
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss above its minimum [nats]", xlim=(0, config.stop.max_steps))
    rows = -(-len(config.solvers) // 2)
    axes.set_title("Loss against step", pad=12 + 17 * rows)
    legend_above(axes, columns=2)
    return figure


FIGURES: dict[str, Callable[[TutorialConfig], Figure]] = {
    "a_binary_entropy": binary_entropy_of_p,
    "b_logistic_and_its_entropy": logistic_and_its_entropy,
    "c_three_models": three_models,
    "d_cross_entropy": cross_entropy_of_two,
    "e_order_matters": order_matters,
    "f_loss_surface": loss_surface,
    "g_loss_against_step": loss_against_step,
}

_NAMES = ("ŷ₁", "ŷ₂", "ŷ₃")


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.4))
    return figure, figure.subplots()


def _stacked() -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(7, 6))
    top, bottom = figure.subplots(2, 1, sharex=True)
    return figure, top, bottom


def _entropy_scale(axes: Axes) -> None:
    axes.set_ylim(0, 1.12 * LOG2)
    bits_axis(axes)


def _mark_maximum(axes: Axes, x: float, text: str) -> None:
    axes.plot([x, x, 0], [0, LOG2, LOG2], color=QUIET, linestyle=":", linewidth=1.5)
    axes.plot([x], [LOG2], "o", color=BLUE)
    axes.annotate(text, (x, LOG2), xytext=(10, -90), textcoords="offset points", ha="left", color=QUIET, fontsize=10)


def _note(axes: Axes, text: str, at: tuple[float, float], *, left: bool) -> None:
    shift, side = (-6, "right") if left else (6, "left")
    axes.annotate(text, at, xytext=(shift, 0), textcoords="offset points", ha=side, color=QUIET, fontsize=10)


def _over_x(models: ModelsConfig) -> jax.Array:
    low, high = models.x_range
    return jnp.linspace(low, high, 601)


def _coefficients(models: ModelsConfig) -> list[list[float]]:
    return [models.first, models.second, models.third]


def _first_two(models: ModelsConfig) -> tuple[Any, Any, Any]:
    """x, and over it the distributions (ŷ, 1 − ŷ) of the first two models."""
    x = _over_x(models)
    logits = [intercept + slope * x for intercept, slope in _coefficients(models)[:2]]
    first, second = (jnp.stack([xj.logistic(z), xj.logistic(-z)], axis=-1) for z in logits)
    return x, first, second


def _params(intercept: Any, slope: Any) -> xj.LogisticParams:
    return xj.LogisticParams(jnp.asarray(slope, float)[None], jnp.asarray(intercept, float))


def _objective(config: TutorialConfig) -> Any:
    """The mean cross-entropy of the data set: x standard normal, labels drawn from the true model."""
    generator = np.random.default_rng(config.surface.seed)
    x = generator.standard_normal(config.surface.examples)
    intercept, slope = config.surface.truth
    labels = generator.random(len(x)) < np.asarray(xj.logistic(jnp.asarray(intercept + slope * x)))
    return xj.LogisticObjective(jnp.asarray(x)[:, None], jnp.asarray(labels, int))


def _path(config: TutorialConfig, objective: Any) -> Array:
    """(β₀, β₁) before the first step and after each."""
    solver = config.solvers[0].build(config.stop.max_steps)
    start = _params(*config.surface.start)
    chunks = xj.iterate(objective, start, solver, tol=config.stop.tol, max_steps=config.stop.max_steps, chunk=1)
    return np.asarray([(float(s.params.bias), float(s.params.weights[0])) for s in chunks])


def _minimum(objective: Any) -> Array:
    solution = xj.minimize(objective, _params(0.0, 0.0), _LBFGS, tol=1e-10, max_steps=200)
    return np.asarray([float(solution.params.bias), float(solution.params.weights[0])])
