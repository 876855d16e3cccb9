"""The plot of linear.jsonl: time over memory."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.linear.methods import PRODUCTS
from benchmarks.linear.reading import Row, methods


def plot(rows: Sequence[Row], folder: pathlib.Path) -> None:
    """``linear.png``: of every method that states its memory, time of value and gradients over temporary memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["mode"] == "value_and_grad"]
    across = min(4, max(1, len(rows)))
    down = max(1, -(-len(rows) // across))
    figure, axes = pyplot.subplots(
        down, across, figsize=(3.2 * across, 2.6 * down + 0.8), squeeze=False, layout="constrained"
    )
    names = list(dict.fromkeys(name for row in rows for name, method in methods(row).items() if "temp_bytes" in method))
    for axis, row in zip(axes.flat, rows, strict=False):
        _draw(axis, row, names)
    for axis in list(axes.flat)[len(rows) :]:
        axis.set_axis_off()
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize=7)
    figure.savefig(folder / "linear.png", dpi=110)
    pyplot.close(figure)


def _draw(axis: Any, row: Row, names: list[str]) -> None:
    found = methods(row)
    style: Callable[[str], str] = lambda name: "o" if name.startswith("xentjax") else "s"
    for place, name in enumerate(names):
        if "temp_bytes" in found.get(name, {}):
            at = max(found[name]["temp_bytes"] / 2**20, 0.01), found[name]["run_s"] * 1e3
            axis.plot(*at, style(name), color=f"C{place % 10}", label=name, alpha=0.8)
    products = row["implementations"].get(PRODUCTS, {})
    if "run_s" in products:
        axis.axhline(products["run_s"] * 1e3, color="0.6", linestyle="--", label=PRODUCTS)
    axis.set_title(f"{', '.join(f'{size:,}' for size in row['sizes'].values())}\n{row['dtype']}", fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("temporary memory, MiB", fontsize=8)
    axis.set_ylabel("value and gradients, ms", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
