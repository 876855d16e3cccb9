"""Runs that are stopped, killed or harmed go on and end with the same bits; what goes wrong is one clear line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.survival import faults, results
from benchmarks.survival.kills import PARTS, kill_row
from benchmarks.survival.runs import Place
from xentjax import plots
from xentjax.cli import main
from xentjax.training import job, many, steps
from xentjax.training.config_file import read_config
from xentjax.training.run_state import run_state

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

pytestmark = pytest.mark.usefixtures("compiled_fast")

#: Beside a quick fit of gradient descent: what makes it another kind of run.
KINDS = {
    "gd": (),
    "float64": ("precision=float64", "model.init_scale=0.1"),
    "lbfgs": ("solver={name='optax', transformation='lbfgs'}",),
    "adam": ("solver={name='optax', transformation='adam', learning_rate=0.1, schedule={name='cosine'}, clip_norm=1}",),
    "minibatch": ("batches={size=9, epochs=3}", "solver={name='optax', transformation='adam', learning_rate=0.1}"),
    "grid": ("many={step_sizes=[0.05, 0.2, 1e3], seeds=[0, 3]}", "solver={name='gradient_descent'}"),
}


class Stopped(Exception):
    """In the place of a process that ends."""


def config_of(kind, *overrides):
    quick = ("data.source=iris", "stop.max_steps=40", "stop.tol=1e-4", "checkpoint.every_steps=4")
    return read_config(CONFIGS / "digits.toml", [*quick, *KINDS[kind], *overrides])


@pytest.mark.parametrize(
    "kind",
    ["minibatch", "grid", *(pytest.param(k, marks=pytest.mark.thorough) for k in ("gd", "float64", "lbfgs", "adam"))],
)
def test_a_run_goes_on_from_each_checkpoint_with_the_same_bits(kind, tmp_path):
    config = config_of(kind)
    run = many.fit_grid if kind == "grid" else job.fit
    whole = run(config)
    told = []
    for stop in (3, 4):
        seen = 0

        def progress(_, stop=stop):
            nonlocal seen
            seen += 1
            if seen == stop:
                raise Stopped

        # As it is after a kill: what was written last is there, and the run goes on from it, to be killed again.
        with run_state(tmp_path / "x", config, told.append) as state, contextlib.suppress(Stopped):
            run(config, progress, state)
    with run_state(tmp_path / "x", config, told.append) as state:
        again = run(config, kept=state)
    assert len(told) == 2
    assert_same(again, whole)


def assert_same(one, other):
    assert np.array_equal(one.status.names, other.status.names)
    names = ("steps", "value", "gradient_norm", *(("history",) if hasattr(one, "history") else ()))
    params = (
        one.model.params if hasattr(one, "model") else one.params,
        (other.model.params if hasattr(other, "model") else other.params),
    )
    for a, b in [
        *zip(*map(jax.tree.leaves, params), strict=True),
        *((getattr(one, n), getattr(other, n)) for n in names),
    ]:
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("kind", ["gd", "minibatch"])
def test_a_run_that_is_stopped_is_whole_where_it_stands_and_goes_on(kind, tmp_path):
    config = config_of(kind)
    seen = []

    def progress(step):
        seen.append(step)
        if step.step >= 20:
            raise KeyboardInterrupt

    with run_state(tmp_path / "x", config, lambda text: None) as state:
        made = job.fit(config, progress, state)
        assert state.steps()[-1] == made.steps[-1] == seen[-1].step
    assert made.status == "interrupted"
    assert (np.diff(made.steps) > 0).all()
    x, y = (made.train.examples, made.value[-1])
    assert np.isfinite(y)
    assert x == 120
    with run_state(tmp_path / "x", config, lambda text: None) as state:
        assert_same(job.fit(config, kept=state), job.fit(config))


# -- a loss that is not finite -----------------------------------------------------------------------------------------


def table(folder, rows):
    folder.mkdir(exist_ok=True)
    lines = ["a,b,y", *(f"{a!r},{b!r},{y}" for a, b, y in rows)]
    (folder / "table.csv").write_text("\n\n".join(lines) + "\n")  # a blank line between any two
    return [f"data={{path='{folder / 'table.csv'}', target='y', standardize=false, test_fraction=0.0}}"]


ROWS = [(0.1 * i, (-1.0) ** i, ("no", "yes")[i % 3 == 0]) for i in range(24)]


@pytest.mark.parametrize("batches", [(), ("batches={size=4, epochs=6}",), ("batches={size=4, epochs=6}", "seed=3")])
def test_the_example_that_makes_a_loss_infinite_is_named(tmp_path, batches):
    """Two rows of opposite classes whose logits are beyond all numbers once a step has moved their weight: the step
    goes by the larger one, and the other one's loss is infinite. Of their batches it is the second one that is named,
    where that has the other row; else, after the epoch, the row itself."""
    rows = [*ROWS]
    rows[5], rows[17] = (3e38, 1.0, "yes"), (1e38, 1.0, "no")
    overrides = [*table(tmp_path, rows), "solver={name='gradient_descent', step_size=1e-30}", "stop.tol=0", *batches]
    config = read_config(CONFIGS / "breast_cancer.toml", overrides)
    made = job.fit(config)
    assert made.status in ("diverged", "not_finite")
    blame = made.blame
    larger, smaller = (1 + 2 * (row + 1) for row in (5, 17))
    assert blame["why"] == "a loss that is not finite"
    assert {larger, smaller} & set(blame["rows"]) if "batch" in blame else blame["rows"] == [smaller]
    assert blame["file"] == str(tmp_path / "table.csv")
    assert blame["counted_in"] == "lines"
    if "batch" in blame:
        assert len(blame["rows"]) == 4
        assert blame["step"] == 6 * blame["epoch"] + blame["batch"]
    assert np.isfinite(made.model.params.weights).all()
    assert np.isfinite(made.value).all()
    text = made.failure
    assert f"step {blame['step']}" in text
    assert "lines" in text
    assert "not_finite.json says where they are" in text


def test_steps_that_are_too_large_are_blamed_in_the_run_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "draw_run", lambda fitted, folder: None)
    set_ = ("--set", "data.source=iris", "--set", "solver={name='optax', transformation='sgd', learning_rate=1e38}")
    batches = ("--set", "batches={size=30, epochs=50}")
    assert main(["fit", str(CONFIGS / "digits.toml"), *set_, *batches]) == 1
    told = json.loads(Path("runs/digits/not_finite.json").read_text())
    summary = json.loads(Path("runs/digits/summary.json").read_text())
    assert summary["status"] == "diverged"
    assert (told["epoch"], told["step"], told["examples"]) == (0, told["batch"], 30)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"step {told['step']}, batch {told['batch']} of epoch 0 brings" in err
    metrics = [json.loads(line) for line in Path("runs/digits/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [0]
    assert summary["objective_nats"] == metrics[0]["value"]


# -- the command line --------------------------------------------------------------------------------------------------


def test_what_does_not_go_with_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("x.toml", "--resume", "runs/x"), "x.toml: does not go with --resume, which goes on in runs/x by the config"),
        (("--resume", "runs/x", "--out", "y"), "--out y: does not go with --resume"),
        (("--resume", "runs/x"), "runs/x: there is no such run, and no x.checkpoint beside it"),
    ):
        assert main(["fit", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"xentjax: {message}")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_regression_does_not_take_the_place_of_a_training_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with run_state(Path("runs/x"), config_of("gd"), lambda text: None) as state:
        state.restored(dict, {"a": np.ones(1)})
        state.see(7, lambda: {"a": np.ones(1)}, stopped=True)
    Path("x.toml").write_text('[data]\nsource = "iris"\n')
    assert main(["fit", "x.toml"]) == 2
    assert capsys.readouterr().err.startswith(
        "xentjax: runs/x.checkpoint: is the state of a training run, which this is"
    )
    assert state.steps() == [7]


def test_a_second_sigterm_leaves_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steps, "_CHUNK_WORK", 150 * 4 * 3 * 10)
    load = job.load_examples

    def twice(config):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return load(config)

    monkeypatch.setattr(job, "load_examples", twice)
    assert main(["fit", str(CONFIGS / "digits.toml"), "--set", "data.source=iris"]) == 143
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("xentjax: SIGTERM: stopping after the steps under way")
    assert err[1:] == ["xentjax: terminated"]
    assert list(tmp_path.iterdir()) == []


def test_sigterm_while_the_library_loads_is_one_line(tmp_path):
    (tmp_path / "jax.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('loaded')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    code = "import sys, _xentjax_main; sys.exit(_xentjax_main.main())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "xentjax: terminated\n")


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_run_is_terminated_locked_and_goes_on(tmp_path):
    """What a cluster does: SIGTERM, and the same command again; meanwhile nobody else gets in."""
    place = Place.make(tmp_path)
    run = place.start("minibatch.toml", "--out", "run")
    while len(place.steps("run")) < 2 and run.process.poll() is None:
        time.sleep(0.01)
    os.kill(run.process.pid, signal.SIGSTOP)
    second = place.run("minibatch.toml", "--out", "run", told="second")
    assert second.is_a_clear_error
    assert f"run: process {run.process.pid} of " in second.told
    os.kill(run.process.pid, signal.SIGCONT)
    run.process.terminate()
    began = time.monotonic()
    assert run.process.wait() == 143
    assert time.monotonic() - began < 20
    assert run.told.endswith(f"xentjax fit --resume run goes on from step {place.steps('run')[-1]}\n")
    assert not (tmp_path / "run").exists()
    again = place.run("--resume", "run")
    assert (again.status, again.told.count("\n")) == (0, 1)
    assert sorted(path.name for path in tmp_path.glob("*run*")) == ["run"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", faults.FAULTS)
def test_a_fault(name, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "_BITS", 50)
    found = faults.FAULTS[name][1](faults.Bench(tmp_path, seed=1, times=1))
    assert found.wrong == []
    assert found.tried >= 1


@pytest.mark.thorough
@pytest.mark.parametrize("part", PARTS)
def test_kills(part):
    row = kill_row(part, count=8, minutes=2, seed=2, say=lambda text: None)
    assert row["wrong"] == []
    assert row["tried"] >= 1


def test_results_replace_those_of_the_same_fault(tmp_path):
    row = {"fault": "x", "tried": 3, "failed": 0, "outcome": "well", "command": "y"}
    assert results.write([row, row | {"fault": "z", "failed": 1}], tmp_path) == 1
    assert results.write([row | {"tried": 4}], tmp_path) == 0
    (path,) = results.result_files(tmp_path)
    assert [(found["fault"], found["tried"]) for found in results.load(path)] == [("x", 4), ("z", 3)]
    assert "| x | 4 | 0 | well | `y` |" in results.sections([path])


def test_signals_are_left_alone_in_other_threads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "draw_run", lambda fitted, folder: None)
    found = []
    quick = ("--set", "data.source=iris", "--set", "stop.max_steps=3")
    thread = threading.Thread(target=lambda: found.append(main(["fit", str(CONFIGS / "digits.toml"), *quick])))
    thread.start()
    thread.join()
    assert found == [0]
