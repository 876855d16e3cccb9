"""The commands: thin, each calls one job of the library, shows its progress and prints its result."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from _xentjax_main import INTERRUPTED, TERMINATED, leave, told
from xentjax.cli import report
from xentjax.cli.signals import Leaving, stopping_gently
from xentjax.core.check import check_records, checkable
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
from xentjax.training.run_state import RunState, clear_complete, config_to_resume, is_unfinished, run_state
from xentjax.training.steps import Stage, Terminated

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
        _say(str(error))
    except _UsageError as error:
        _say(" ".join(error.format_message().split()))
    except Leaving as leaving:
        if leaving.still_running:
            leave(leaving.number, None)
        _say(told(leaving.number))
        return 128 + leaving.number
    except KeyboardInterrupt:
        _say(told(signal.SIGINT))
        return INTERRUPTED
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"xentjax: this takes more memory than there is: {UserError(str(error))}", file=sys.stderr)
    return 2


@app.command()
def fit(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="TOML file that says what to fit, and how")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write (default: runs/<name of the config>)")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run folder if it exists")] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run that was to write this folder, by its config")
    ] = None,
    override: Set = None,
) -> int:
    """Fit a regression, or train a model, and write a run folder; Ctrl-C stops early and writes what there is.

    A training run that was stopped or killed goes on from its last checkpoint, by --resume or by the same command.
    Ends with status 1 where a training run diverges, or the coefficients of a regression are not those of a minimum.
    """
    settings, folder = _wanted(config, out, resume, override or [])
    clear_complete(folder)
    force = force or is_unfinished(folder)
    reserve(folder, force)
    with run_state(folder, settings, _say) as state:
        if resume is not None and not state.steps():
            _say(f"{folder}: had no checkpoint yet: starts from the beginning")
        train, shown, draw, show = _kind(settings, state)
        try:
            with shown(settings.name) as progress, stopping_gently(progress, train is not _regress) as tell:
                result = train(settings, tell)
                from xentjax import plots

                with whole_folder(folder, force) as temporary:
                    result.write(temporary)
                    getattr(plots, draw)(result, temporary)
                    if not result.interrupted:
                        state.finish(temporary)
        except Terminated:
            _say(f"{folder}: terminated{_how_to_go_on(folder, state)}")
            return TERMINATED
        if not result.interrupted:
            state.remove()
        show(result, folder)
        if result.interrupted:
            report.say(f"Stopped early{_how_to_go_on(folder, state)}.")
            return INTERRUPTED
    if result.failure is not None:
        _say(f"{settings.name}: {result.failure}")
        return 1
    return 0


def _wanted(config: Path | None, out: Path | None, resume: Path | None, overrides: Sequence[str]) -> tuple[Any, Path]:
    """The config of a run, and the folder that it writes."""
    if resume is None:
        if config is None:
            raise UserError("fit: needs CONFIG, the file that says what to fit, or --resume RUN")
        settings = read_run(config, overrides)
        return settings, out or Path("runs") / settings.name
    for given, name in ((config, str(config)), (out, f"--out {out}")):
        if given is not None:
            raise UserError(f"{name}: does not go with --resume, which goes on in {resume} by the config of that run")
    return read_run(config_to_resume(resume), overrides), resume


def _kind(settings: FitConfig | RegressionConfig | LanguageConfig, state: RunState) -> tuple[Any, Any, str, Any]:
    """What runs a config, shows its progress, draws its pictures (a name in ``plots``) and prints its result."""
    if isinstance(settings, RegressionConfig):
        state.require_none()
        return _regress, report.stages, "draw_regression", report.print_regression
    if isinstance(settings, LanguageConfig):
        return _with(train_language_model, state), report.stages, "draw_language", report.print_language
    if settings.many:
        return _with(fit_grid, state), report.training_progress, "draw_grid", report.print_grid
    return _with(run_fit, state), report.training_progress, "draw_run", report.print_fit


def _with(train: Callable[..., Any], state: RunState) -> Callable[..., Any]:
    return functools.partial(train, kept=state)


def _how_to_go_on(folder: Path, state: RunState) -> str:
    steps = state.steps()
    return f"; xentjax fit --resume {folder} goes on from step {steps[-1]}" if steps else ", with nothing to go on from"


def _say(text: str) -> None:
    print(f"xentjax: {text}", file=sys.stderr, flush=True)


def _regress(settings: RegressionConfig, tell: Callable[[Stage], None]) -> Regression:
    """The regression in a thread of its own, so that signals are heard while a compiled program runs."""
    outcome: Future[Regression] = Future()

    def work() -> None:
        try:
            outcome.set_result(regress(settings, tell))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return outcome.result()
    except Leaving as leaving:
        raise Leaving(leaving.number, still_running=not outcome.done()) from None


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a fit", show_default=False)],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Table with the features: a file or a folder", show_default=False)
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
