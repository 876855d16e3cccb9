"""What the commands show: progress on stderr, tables on stdout."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

import xentjax as xj
from xentjax.cli import extras
from xentjax.training.evaluation import Evaluation
from xentjax.training.job import Fitted
from xentjax.training.language.language_result import LanguageRun
from xentjax.training.machine import Cost
from xentjax.training.many import Grid
from xentjax.training.regression_result import Regression
from xentjax.training.steps import Progress as Step
from xentjax.training.steps import Stage


def say(text: str) -> None:
    """Print a text. Names in it come from files: what a terminal would obey becomes a sign that stands for it."""
    shown = "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
    Console(highlight=False, soft_wrap=True, markup=False).print(shown)


# -- progress ----------------------------------------------------------------------------------------------------------


@contextmanager
def training_progress(name: str) -> Iterator[Callable[[Step], None]]:
    """A bar with the step, the loss and the gradient norm (in a grid of fits the best one's, and how many have not
    ended); nothing where stderr is no terminal."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss [cyan]{task.fields[loss]}[/] nats"),
        TextColumn("gradient [magenta]{task.fields[norm]}[/]{task.fields[fits]}"),
        TimeElapsedColumn(),
    )
    with _shown(*columns) as bar:
        task = bar.add_task(name, total=None, loss="...", norm="...", fits="")

        def advance(step: Step) -> None:
            value, norm = f"{step.value:.6f}", f"{step.gradient_norm:.1e}"
            fits = f"  {step.running} of {step.fits} fits running" if step.fits > 1 else ""
            bar.update(task, total=step.total_steps, completed=step.step, loss=value, norm=norm, fits=fits)

        yield advance


@contextmanager
def stages(name: str) -> Iterator[Callable[[Stage], None]]:
    """A line that says what a run is at, with a bar that moves where it can be told how much is done."""
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[what]}"))
    with _shown(*columns, TaskProgressColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(name, total=None, what="...")

        def advance(stage: Stage) -> None:
            count = "" if stage.total is None else f" {stage.done}/{stage.total}"
            bar.update(task, total=stage.total, completed=stage.done, what=stage.what + count)

        yield advance


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar that moves by one whenever the callback is told what is done."""
    columns = (TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with _shown(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda name: bar.update(task, advance=1, description=name)


def _shown(*columns: object) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)  # type: ignore[arg-type]


# -- results -----------------------------------------------------------------------------------------------------------


def print_fit(fitted: Fitted, folder: Path) -> None:
    """The table at the end of a fit: the model on training and test examples, then how it was found."""
    _print(_evaluations(fitted.config.name, fitted.train, fitted.test))
    facts = _facts()
    precision = fitted.config.precision
    facts.add_row("status", str(fitted.status))
    facts.add_row("steps", str(fitted.steps[-1]))
    facts.add_row("objective", f"{_number(fitted.value[-1])} nats, with l2 = {fitted.config.model.l2:g}")
    facts.add_row("largest gradient component", _number(fitted.gradient_norm[-1]))
    if fitted.skipped:
        facts.add_row("rows left out, as something in them is wrong", str(fitted.skipped))
    facts.add_row("hand-derived − automatic gradient", f"at most {_number(fitted.gradient_deviation)} ({precision})")
    _print_facts(facts, fitted.cost, folder)
    _print(f"[dim]{fitted.status}: {fitted.status.message}.[/]")
    _print_note(fitted.train)


def print_regression(made: Regression, folder: Path) -> None:
    """The tables of a regression, then the model on training and test examples, and how long it took."""
    say(f"{made.text()}\n")
    _print(_evaluations(made.config.name, made.train, made.test))
    facts = _facts()
    facts.add_row("precision", made.config.precision)
    _print_facts(facts, made.cost, folder)
    if made.interrupted:
        _print(f"[dim]{made.status}: {made.status.message}.[/]")
    _print_note(made.train)


def print_language(made: LanguageRun, folder: Path) -> None:
    """What held-out text costs, the beginning of a file as the model writes it, and how long it took."""
    say(f"{made.table()}\n")
    if made.sample:
        lines = "\n".join(f"  │ {line}" for line in made.sample.strip("\n").split("\n"))
        say(f"The model begins a file:\n{lines}\n")
    _print_facts(_facts(), made.cost, folder)
    _print(f"[dim]{made.status}: {made.message}.[/]")


def _evaluations(name: str, train: Evaluation, test: Evaluation | None) -> Table:
    """How good the predictions are for training examples, and for test examples if there are any."""
    parts = {"training": train} if test is None else {"training": train, "test": test}
    table = _table(name)
    table.add_column("")
    for name in parts:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[Evaluation], str]]] = [
        ("examples", lambda e: str(e.examples)),
        ("cross-entropy \\[nats]", lambda e: _number(e.cross_entropy)),
        ("cross-entropy \\[bits]", lambda e: _number(e.cross_entropy / np.log(2))),
        ("accuracy", lambda e: f"{100 * e.accuracy:.2f} %"),
        ("entropy of the labels \\[nats]", lambda e: _number(e.entropy_of_labels)),
        ("mean entropy of the predictions \\[nats]", lambda e: _number(e.entropy_of_predictions)),
        ("KL(class frequencies ‖ mean prediction) \\[nats]", lambda e: _number(e.divergence)),
        ("expected calibration error", lambda e: f"{100 * e.calibration.error:.2f} %"),
    ]
    for name, show in rows:
        table.add_row(name, *(show(part) for part in parts.values()))
    return table


def _print_note(train: Evaluation) -> None:
    note = "The calibration error is the mean difference between confidence (the probability of the predicted class) "
    _print(f"[dim]{note}and accuracy, over {len(train.calibration.count)} bins of confidence.[/]")


def print_grid(grid: Grid, folder: Path) -> None:
    """The table at the end of a grid: one row for each step size, medians over the seeds."""
    seeds = len(grid.many.seeds)
    table = _table(f"{grid.config.name}: {grid.steps.size} fits in one program, medians of {seeds} seeds")
    headers = ["step size", "ended", "steps", "training \\[nats]"]
    if grid.test:
        headers += ["test \\[nats]", "test accuracy (lowest, highest)"]
    for header in headers:
        table.add_column(header, justify="right")
    train, test = grid.cross_entropy(grid.train), grid.cross_entropy(grid.test) if grid.test else None
    for i, step_size in enumerate(grid.many.step_sizes):
        cells = [
            f"{step_size:g}",
            ", ".join(f"{count} {name}" for name, count in grid.ends(i).items()),
            f"{np.median(grid.steps[i]):.0f}",
            _number(np.median(train[i])),
        ]
        if test is not None:
            accuracy = [100 * one.accuracy for one in grid.test[i]]
            spread = f"({min(accuracy):.2f}, {max(accuracy):.2f})"
            cells += [_number(np.median(test[i])), f"{np.median(accuracy):.2f} % {spread}"]
        table.add_row(*cells)
    _print(table)
    _print_facts(_facts(), grid.cost, folder, f" for all {grid.steps.size} fits")


def print_info() -> None:
    """Devices, versions, and extras."""
    facts = _facts()
    facts.add_row("xentjax", xj.__version__)
    facts.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in ("jax", "jaxlib", "optax", "numpy"):
        facts.add_row(name, metadata.version(name))
    devices = jax.devices()
    facts.add_row("backend", jax.default_backend())
    facts.add_row("devices", "\n".join(f"{device.id}: {device.device_kind}" for device in devices))
    facts.add_row("cpu cores", str(os.cpu_count()))
    wide = jnp.result_type(float) == jnp.float64
    facts.add_row("float64 (x64)", "on" if wide else 'off; precision = "float64" in a config turns it on')
    for extra, needed in extras().items():
        missing = [name for name in needed if _installed(name) is None]
        found = ", ".join(f"{name} {_installed(name)}" for name in needed)
        facts.add_row(f"extra {extra}", f"not installed: needs {', '.join(missing)}" if missing else found)
    _print(facts)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )


def _facts() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0))


def _print_facts(facts: Table, cost: Cost, folder: Path, of: str = "") -> None:
    """Facts of a run, then what it cost and where it is."""
    facts.add_row("compile time", _seconds(cost.compile_seconds))
    facts.add_row("run time", _seconds(cost.run_seconds) + of)
    facts.add_row("device", cost.device)
    facts.add_row("run folder", str(folder))
    _print(facts)


def _print(what: Table | str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(what)


def _number(value: float) -> str:
    return f"{value:.6f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
