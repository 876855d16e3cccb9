"""The style of all figures: colours, axes, legends, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
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
