"""The commands: thin, each calls one job of the library, shows its progress and prints its result."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from _xentjax_main import INTERRUPTED, leave
from xentjax.cli import report
from xentjax.core.check import check_records, checkable
from xentjax.training.checkpoint import checkpoint_of
from xentjax.training.config import FitConfig, TutorialConfig
from xentjax.training.config_file import read_config, read_run
from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.job import fit as run_fit
from xentjax.training.language.language_model import train_language_model
from xentjax.training.language_config import LanguageConfig
from xentjax.training.many import fit_grid
from xentjax.training.predict import write_predictions
from xentjax.training.program_cache import keep_programs
from xentjax.training.regression import regress
from xentjax.training.regression_config import RegressionConfig
from xentjax.training.regression_result import Regression
from xentjax.training.run_folder import reserve, whole_folder
from xentjax.training.steps import Stage

app = typer.Typer(
    help="Cross-entropy for JAX: exact, with every derivative derived by hand and proved.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# A mistake on the command line itself; typer brings its own click, or uses the one that is installed.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the config: --set solver.step_size=0.5"),
]


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status. Every mistake of the user's is one line on stderr."""
    keep_programs()
    command = typer.main.get_command(app)
    try:
        with command.make_context("xentjax", list(arguments) or ["--help"]) as context:
            status = command.invoke(context)
        return status if isinstance(status, int) else 0
    except typer.Exit as done:
        return done.exit_code
    except UserError as error:
        print(f"xentjax: {error}", file=sys.stderr)
    except _UsageError as error:
        print(f"xentjax: {' '.join(error.format_message().split())}", file=sys.stderr)
    except _StillRunning:
        leave(signal.SIGINT, None)  # an ordinary end would take away what the thread works with
    except KeyboardInterrupt:
        print("xentjax: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"xentjax: this takes more memory than there is: {UserError(str(error))}", file=sys.stderr)
    return 2


@app.command()
def fit(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="TOML file that says what to fit, and how", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder to write (default: runs/<name of the config>)")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run folder if it exists")] = False,
    override: Set = None,
) -> int:
    """Fit a regression, or train a model, and write a run folder; Ctrl-C stops early and writes what there is.

    A language model that was stopped or killed goes on from where it was, by the same command. Ends with status 1 where
    a training run diverges, or the coefficients of a regression are not those of a minimum.
    """
    settings = read_run(config, override or [])
    folder = out or Path("runs") / settings.name
    reserve(folder, force)
    train, shown, draw, show = _kind(settings, folder)
    with shown(settings.name) as progress, _stopping_gently(progress) as tell:
        result = train(settings, tell)
        from xentjax import plots

        with whole_folder(folder, force) as temporary:
            result.write(temporary)
            getattr(plots, draw)(result, temporary)
    if isinstance(settings, LanguageConfig) and not result.interrupted:
        checkpoint_of(folder).unlink(missing_ok=True)
    show(result, folder)
    if result.interrupted:
        return INTERRUPTED
    if result.failure is not None:
        print(f"xentjax: {settings.name}: {result.failure}", file=sys.stderr)
        return 1
    return 0


def _kind(settings: FitConfig | RegressionConfig | LanguageConfig, folder: Path) -> tuple[Any, Any, str, Any]:
    """What runs a config, shows its progress, draws its pictures (a name in ``plots``) and prints its result."""
    if isinstance(settings, RegressionConfig):
        return _regress, report.stages, "draw_regression", report.print_regression
    if isinstance(settings, LanguageConfig):
        train = functools.partial(train_language_model, checkpoint=checkpoint_of(folder))
        return train, report.stages, "draw_language", report.print_language
    if settings.many:
        return fit_grid, report.training_progress, "draw_grid", report.print_grid
    return run_fit, report.training_progress, "draw_run", report.print_fit


class _StillRunning(KeyboardInterrupt):
    """A Ctrl-C while a thread computes, which cannot be stopped."""


def _regress(settings: RegressionConfig, tell: Callable[[Stage], None]) -> Regression:
    """The regression in a thread of its own, so that a second Ctrl-C is heard while a compiled program runs."""
    outcome: Future[Regression] = Future()

    def work() -> None:
        try:
            outcome.set_result(regress(settings, tell))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        if outcome.done():
            raise
        raise _StillRunning from None


@contextlib.contextmanager
def _stopping_gently(progress: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """The progress callback, made to end the run after a Ctrl-C: where it is called there is a whole number of steps.

    Compiling, evaluating and writing are not stopped by the first Ctrl-C, only by a second one.
    """
    asked = False

    def on_interrupt(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("xentjax: stopping, and what there is then is written (Ctrl-C again: nothing is)", file=sys.stderr)

    def tell(step: Any) -> None:
        progress(step)
        if asked:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield progress  # Python lets no other thread handle signals
        return
    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield tell
    finally:
        signal.signal(signal.SIGINT, previous)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a fit", show_default=False)],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="CSV or Parquet file with the features", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="CSV or Parquet file to write (default: CSV on stdout)")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists")] = False,
    delimiter: Annotated[str | None, typer.Option(help="Between the cells of DATA (default: as in training)")] = None,
) -> None:
    """Write the probability of each class, and the most probable one, for each row of DATA."""
    rows = write_predictions(run_folder, data, out, force=force, delimiter=delimiter)
    if out is not None:
        report.say(f"{rows} predictions in {out}")


@app.command()
def figures(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="TOML file with the models (default: configs/tutorial.toml, if it is there)"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the pictures to")] = Path("figures"),
    override: Set = None,
) -> None:
    """Draw the figures of the tutorial, each as PNG and SVG."""
    from xentjax.figures import draw_figures

    draw_figures(
        read_config(_tutorial(config), override or [], TutorialConfig), out, lambda path: report.say(str(path))
    )


def _tutorial(config: Path | None) -> Path | None:
    default = Path("configs/tutorial.toml")
    return config or (default if default.exists() else None)


@app.command()
def info() -> None:
    """Show devices, versions, and which extras are installed."""
    report.print_info()


@app.command()
def check(
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Check this function only (repeatable)")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Platform to check on: cpu, gpu or tpu")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> int:
    """Compare every hand-derived derivative with automatic differentiation; status 1 if one fails."""
    names = _records(only, list(checkable()))
    _require_device(device)
    with report.counting("checking", len(names)) as advance:
        table = check_records(names, device, on_rows=lambda rows: advance(rows[0].record if rows else ""))
    print(table.to_json() if as_json else table)
    return 0 if table.passed else 1


@app.command()
def accuracy(
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Measure this function only (repeatable)")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller inputs")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table")] = False,
) -> int:
    """Measure the worst error of every function in ULP, beside that of other libraries on the same inputs.

    Ends with status 1 where ours is beyond the accuracy contract.
    """
    from xentjax.accuracy import measurable, measure

    if as_json and markdown:
        raise UserError("--json --markdown: only one of them at a time")
    names = _records(only, list(measurable()))
    with report.counting("measuring", len(names)) as advance:
        table = measure(names, quick=quick, on_rows=lambda rows: advance(rows[0].record if rows else ""))
    print(table.to_json() if as_json else table.to_markdown() if markdown else table)
    return 0 if table.passed else 1


def _records(only: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    for name in only or []:
        if name not in known:
            raise UserError(f"--only {name}: no such function{did_you_mean(name, known)}")
    return list(only or known)


def _require_device(device: str | None) -> None:
    if device is not None:
        try:
            jax.devices(device)
        except RuntimeError as error:
            raise UserError(f"--device {device}: is not available here ({error})") from error
