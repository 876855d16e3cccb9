"""The picture of a language model: how many bits a byte costs while it learns, and by other means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from xentjax.plots.style import BLUE, QUIET, SKY, VERMILION, save, styled
from xentjax.training.language.language_result import LanguageRun

Array = np.ndarray[Any, Any]


def draw_language(made: LanguageRun, folder: Path) -> None:
    """The picture of a run: ``loss.png``, in bits per byte beside what other means need for the held-out text."""
    train, test, held_out = made.text.train, made.text.test, made.held_out()
    curve = bits_curve(
        np.asarray([train.bits_per_byte(nats * train.predicted) for nats in made.losses]),
        made.look_steps,
        np.asarray([test.bits_per_byte(nats * test.predicted) for nats in made.looks]),
        held_out["model"]["bits_per_byte"],
        {name: held_out[name]["bits_per_byte"] for name in ("unigram", "bigram", "xz")},
        title=made.config.name,
    )
    save(curve, folder / "loss.png")


@styled
def bits_curve(
    batches: Array, look_steps: Array, looks: Array, end: Any, others: Mapping[str, Any], *, title: str
) -> Figure:
    """Bits per byte against the step: of each batch with a mean over 1 % of the steps, of a part of the held-out text,
    and of all of it at the end, with lines for what others need for that."""
    figure = Figure(figsize=(7, 4.6))
    axes = figure.subplots()
    steps = np.arange(len(batches))
    axes.plot(steps, batches, color=SKY, linewidth=0.8, alpha=0.5)
    several = max(len(batches) // 100, 1)
    whole = len(batches) // several * several
    mean = batches[:whole].reshape(-1, several).mean(axis=1)
    axes.plot(several * (np.arange(len(mean)) + 0.5), mean, color=BLUE, label="batches")
    axes.plot(look_steps, looks, color=VERMILION, marker="o", markersize=4, label="held out, a part")
    axes.plot([len(batches)], [end], "*", color=VERMILION, markersize=12, clip_on=False, label="held out, all")
    for name, bits in others.items():
        axes.axhline(bits, color=QUIET, linestyle=":", linewidth=1.5)
        axes.annotate(
            name, (1, bits), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
            ha="right", color=QUIET, fontsize=10,
        )  # fmt: skip
    finite = [value for value in (*mean, *looks, end, *others.values()) if np.isfinite(value)]
    axes.set_ylim(0.9 * min(finite), 1.05 * max(finite))
    axes.set_xlim(0, max(len(batches), 1))
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return figure
