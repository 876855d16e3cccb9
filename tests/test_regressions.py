"""Regressions from the command line: what a run folder says is right, and a killed run leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.csv
import pytest
from optimality import unmet
from safetensors.numpy import load_file

import xentjax as xj
from benchmarks.data import flights
from xentjax import plots
from xentjax.cli import main
from xentjax.training import regression
from xentjax.training.bootstrap import bootstrap
from xentjax.training.config_file import read_run
from xentjax.training.data import Encoder
from xentjax.training.prepared import load_examples, split_and_encode

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
FILES = {"coefficients.png", "config.toml", "confusion.png", "metrics.jsonl", "model.json", "params.safetensors",
         "reliability.png", "summary.json", "summary.txt"}  # fmt: skip

pytestmark = pytest.mark.usefixtures("compiled_fast")

RAIN = f"""
[data]
path = "{CONFIGS / "data" / "rain.csv"}"
target = "rain_tomorrow"
features = ["pressure_hpa", "humidity_percent", "wind"]
categorical = ["wind"]
drop_first = true
"""


@pytest.fixture
def call(capsys, tmp_path, monkeypatch, request):
    """Runs ``xentjax fit`` on the rain, with a few keys more, in an empty folder; gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    Path("rain.toml").write_text(RAIN)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "draw_regression", lambda made, folder: None)

    def run(*overrides, config="rain.toml", out="runs/rain"):
        capsys.readouterr()
        keys = [part for override in overrides for part in ("--set", override)]
        status = main(["fit", str(config), "--out", out, *keys])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def pictures():
    """Asked for by the tests that look at the pictures."""


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def encoded(folder):
    """The training data of a run again."""
    config = read_run(Path(folder) / "config.toml")
    return split_and_encode(load_examples(config.data), config, config.seed)


def params(folder):
    return xj.LogisticParams(**load_file(Path(folder) / "params.safetensors"))


def newton(x, y, weights=None):
    """Coefficients with the intercept last, and their covariance and HC0 covariance, in plain numpy."""
    x = np.column_stack([x, np.ones(len(x))])
    centre, scale = np.append(x[:, :-1].mean(0), 0), np.append(x[:, :-1].std(0), 1)
    z = (x - centre) / scale
    weights = np.ones(len(x)) if weights is None else weights
    b = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-z @ b))
        h = z.T @ (z * (weights * p * (1 - p))[:, None])
        b -= np.linalg.solve(h, z.T @ (weights * (p - y)))
    back = np.diag(1 / scale)
    back[-1] -= centre / scale
    inverse = np.linalg.inv(h)
    meat = z.T @ (z * (weights * (p - y) ** 2)[:, None])
    return back @ b, back @ inverse @ back.T, back @ inverse @ meat @ inverse @ back.T


# -- one fit -----------------------------------------------------------------------------------------------------------


def test_a_fit_with_inference_is_right_and_predicts(call, pictures, capsys):
    status, out, err = call("inference={robust=true, level=0.9}")
    assert (status, err) == (0, "")
    folder = Path("runs/rain")
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in Path("runs").iterdir()] == ["rain"]
    data = encoded(folder)
    b, _, robust = newton(data.x, data.y)
    errors = np.sqrt(np.diag(robust))
    rows = summary(folder)["coefficients"]
    assert [row["feature"] for row in rows] == [
        "pressure_hpa", "humidity_percent", "wind=north", "wind=south", "wind=west", None,
    ]  # fmt: skip
    assert {row["class"] for row in rows} == {"yes"}
    np.testing.assert_allclose([row["coefficient"] for row in rows], b, rtol=1e-9)
    np.testing.assert_allclose([row["std_err"] for row in rows], errors, rtol=1e-7)
    reach = 1.6448536269514722 * errors
    np.testing.assert_allclose([row["low"] for row in rows], b - reach, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose([row["high"] for row in rows], b + reach, rtol=1e-7, atol=1e-9)
    assert summary(folder)["status"] == "converged"
    table = (folder / "summary.txt").read_text()
    assert out.startswith(table)
    for said in ("yes against no", "wind=south", "robust err", "[90%", "likelihood ratio against the null model"):
        assert said in table
    for said in ("training", "test", "accuracy", "run folder"):
        assert said in out
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(1, summary(folder)["steps"] + 2))
    assert steps[-1]["gradient_norm"] == summary(folder)["gradient_norm"] < 1e-8

    assert main(["predict", str(folder), str(CONFIGS / "data" / "rain.csv"), "--out", "p.parquet"]) == 0
    table = pyarrow.csv.read_csv(CONFIGS / "data" / "rain.csv").to_pydict()
    features = [table["pressure_hpa"], table["humidity_percent"]]
    features += [np.asarray(table["wind"]) == wind for wind in ("north", "south", "west")]
    expected = 1 / (1 + np.exp(-np.stack(features, axis=1) @ b[:-1] - b[-1]))
    np.testing.assert_allclose(pyarrow.parquet.read_table("p.parquet")["p_yes"].to_numpy(), expected, rtol=1e-6)
    assert call(config="runs/rain/config.toml", out="again")[0] == 0
    assert Path("again/params.safetensors").read_bytes() == (folder / "params.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["auto", "newton", "lbfgs", "newton-cg", "proximal-newton", "proximal-gradient"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_every_solver_finds_the_same(call, name, precision):
    penalty = 0.02 if name.startswith("proximal") else 0.0
    keys = [f"solver.name={name}", f"model={{l2=0.01, l1={penalty}}}", f"precision={precision}"]
    status, out, _ = call(*keys)
    assert status == 0
    assert summary("runs/rain")["status"] == "converged"
    assert name == "auto" or summary("runs/rain")["solver"] == name
    data = encoded("runs/rain")
    # The bound of the gradient is that of standardized features, and the largest deviation here is 13.
    tol = 13 * (1e-8 if precision == "float64" else 1e-4)
    assert unmet(params("runs/rain"), data.x.astype(float), data.y, penalty, 0.01) <= tol
    assert ("std err" in out) == (penalty == 0)


def test_three_classes_with_names_and_weights(call):
    config = '[data]\nsource = "iris"\ntest_fraction = 0\n[model]\nl2 = 0.01\n[model.class_weight]\nsetosa = 3.0\n'
    Path("iris.toml").write_text(config)
    status, out, _ = call(config="iris.toml")
    assert status == 0
    for said in ("setosa\n", "versicolor\n", "petal width (cm)", "observations                             250"):
        assert said in out
    data = encoded("runs/rain")
    assert unmet(params("runs/rain"), data.x, data.y, 0, 0.01, np.where(data.y == 0, 3, 1)) <= 1e-7
    assert len(summary("runs/rain")["coefficients"]) == 15
    status, _, err = call("model.class_weight={setoso=2}", config="iris.toml", out="other")
    assert (status, err) == (2, "xentjax: model.class_weight: 'setoso' is not a class; did you mean setosa?\n")
    status, _, err = call("model.class_weight={setosa=0}", config="iris.toml", out="other")
    assert status == 2
    assert err.startswith("xentjax: fit_logistic: class 0 has no row with a weight above 0 in y")
    assert not Path("other").exists()


def test_a_fit_without_a_minimum_or_with_many_says_what_to_do(call, pictures):
    assert call("data.drop_first=false", out="many")[0] == 0
    assert summary("many")["status"] == "rank_deficient"
    assert "Columns that depend on others: wind=west" in summary("many")["message"]
    assert "data.drop_first = true leaves out" in Path("many/summary.txt").read_text()
    Path("apart.csv").write_text("size,age,y\n" + "".join(f"{i},{i % 3},{'uv'[i > 9]}\n" for i in range(20)))
    Path("apart.toml").write_text('[data]\npath = "apart.csv"\ntarget = "y"\ntest_fraction = 0\n')
    status, out, err = call(config="apart.toml", out="none")
    assert status == 1
    assert err == f"xentjax: apart: separated: {summary('none')['message']}\n"
    assert "separated: " in out
    assert "Separated completely by columns size" in out
    assert summary("none")["coefficients"][0]["std_err"] is None


def test_a_fit_that_is_not_solved_is_written_and_ends_with_status_1(call):
    status, _, err = call("stop.max_steps=1")
    assert status == 1
    assert err.startswith(
        "xentjax: rain: max_steps: stopped after max_steps with a gradient above tol: raise max_steps"
    )
    assert summary("runs/rain")["status"] == "max_steps"
    assert call("stop.tol=0", out="exact")[0] == 0
    assert summary("exact")["status"] == "precision_limited"


# -- a path ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "l1_ratio"), [("1se", 1.0), ("min", 0.5)])
def test_a_path_chooses_by_its_rule_and_certifies_the_choice(call, pictures, rule, l1_ratio):
    keys = f"path={{num_lambdas=12, folds=3, smallest=0.001, rule='{rule}', l1_ratio={l1_ratio}}}"
    status, out, _ = call("data.standardize=true", keys)
    assert status == 0
    folder = Path("runs/rain")
    assert {path.name for path in folder.iterdir()} == FILES | {"path.jsonl", "path.png", "path.safetensors"}
    rows = [json.loads(line) for line in (folder / "path.jsonl").read_text().splitlines()]
    mean, error = (np.array([row[key] for row in rows]) for key in ("cross_validated_nats", "error"))
    best = int(np.argmin(mean))
    expected = best if rule == "min" else int(np.argmax(mean <= mean[best] + error[best]))
    path = summary(folder)["path"]
    assert (path["chosen"], path["rule"], path["ended"]) == (expected, rule, {"converged": 48})
    factor = rows[expected]["lambda"]
    assert factor == path["lambda"]
    data = encoded(folder)
    assert unmet(params(folder), data.x, data.y, factor * l1_ratio, factor * (1 - l1_ratio)) <= 1e-8
    arrays = load_file(folder / "path.safetensors")
    np.testing.assert_array_equal(arrays["lambdas"], [row["lambda"] for row in rows])
    for factor_i, weights, bias in zip(arrays["lambdas"], arrays["weights"], arrays["bias"], strict=True):
        one = xj.LogisticParams(weights, bias)
        assert unmet(one, data.x, data.y, factor_i * l1_ratio, factor_i * (1 - l1_ratio)) <= 1e-8
    assert f"λ = {factor:.6g} is taken" in out
    assert f"Path of 12 penalties, {l1_ratio:.0%} of each L1, 3 folds" in out
    assert main(["predict", str(folder), str(CONFIGS / "data" / "rain.csv"), "--out", "p.csv"]) == 0


def test_what_the_library_finds_wrong_is_one_line(call):
    Path("few.csv").write_text("a,y\n1,u\n2,u\n3,u\n2.5,v\n")
    Path("few.toml").write_text('[data]\npath = "few.csv"\ntarget = "y"\ntest_fraction = 0\n')
    status, _, err = call("path.folds=2", config="few.toml")
    assert status == 2
    assert err.startswith("xentjax: fit_path: all rows of class 1 are in fold ")
    assert not Path("runs").exists()


# -- a bootstrap -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_intervals_of_a_bootstrap_are_those_of_the_same_resamples(call, pictures, class_weight):
    more = [f"model.class_weight={class_weight}"] if class_weight else []
    status, out, _ = call("bootstrap={resamples=30, level=0.8}", "seed=7", *more)
    assert status == 0
    assert {path.name for path in Path("runs/rain").iterdir()} == FILES | {"bootstrap.safetensors"}
    assert "percentile intervals of 30 resamples" in out
    data = encoded("runs/rain")
    generator, n = np.random.default_rng([7, 2]), len(data.y)
    fits = []
    for _ in range(30):
        counts = np.bincount(generator.integers(0, n, n), minlength=n)
        share = np.array([counts[data.y == c].sum() for c in (0, 1)])
        fits.append(newton(data.x, data.y, counts * (n / (2 * share))[data.y] if class_weight else counts)[0])
    rows = summary("runs/rain")["coefficients"]
    for key, expected in (
        ("bootstrap_low", np.quantile(fits, 0.1, axis=0)),
        ("bootstrap_high", np.quantile(fits, 0.9, axis=0)),
        ("bootstrap_std_err", np.std(fits, axis=0, ddof=1)),
    ):
        np.testing.assert_allclose([row[key] for row in rows], expected, rtol=1e-7, atol=1e-9)
    stored = load_file("runs/rain/bootstrap.safetensors")
    np.testing.assert_allclose(stored["weights"], np.asarray(fits)[:, :-1], rtol=1e-7, atol=1e-9)


def test_resamples_without_a_solution_are_left_out_and_told():
    x, y = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]), np.array([0, 0, 1, 0, 1, 1])
    with jax.enable_x64(True):
        made = bootstrap(
            x, y, resamples=40, level=0.9, seed=0, class_weight=None, num_classes=None, progress=lambda *_: None
        )
    assert made.made == sum(made.ends.values()) == 40
    assert 0 < made.used == made.ends["converged"] < 40
    assert f"{40 - made.used} of 40 resamples are left out" in made.message
    assert f"{made.ends['separated']} separated" in made.message
    assert np.all(np.abs(made.params.weights) < 10)
    table = made.summary(xj.LogisticParams(np.ones(1), np.zeros(())), ["size"], ["u", "v"])
    assert made.message in table


# -- Ctrl-C, and worse -------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_bootstrap_with_the_resamples_that_there_are(call, pictures, monkeypatch):
    monkeypatch.setattr("xentjax.training.bootstrap._FITS", 10)
    run = regression.regress

    def interrupted(config, progress):
        def tell(stage):
            if (stage.what, stage.done) == ("bootstrap", 20):
                raise KeyboardInterrupt
            progress(stage)

        return run(config, tell)

    monkeypatch.setattr("xentjax.cli.app.regress", interrupted)
    status, out, _ = call("bootstrap.resamples=50")
    assert status == 130
    assert "percentile intervals of 20 resamples" in out
    assert "interrupted" in out
    assert summary("runs/rain")["status"] == "interrupted"
    assert summary("runs/rain")["bootstrap"]["resamples"] == 20


def test_ctrl_c_before_the_fit_leaves_nothing_and_after_it_all(call, monkeypatch):
    fit, load = regression.fit_logistic, regression.load_examples

    def interrupt(result):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # the fit is made in another thread than that which hears of it
        return result

    monkeypatch.setattr(regression, "load_examples", lambda config: interrupt(load(config)))
    status, _, err = call()
    assert (status, err.splitlines()[-1]) == (130, "xentjax: interrupted")
    assert not Path("runs").exists()
    monkeypatch.setattr(regression, "load_examples", load)
    monkeypatch.setattr(regression, "fit_logistic", lambda *args, **options: interrupt(fit(*args, **options)))
    assert call()[0] == 0
    assert summary("runs/rain")["status"] == "converged"


def in_a_process(code, folder):
    """A process that fits the rain after the code; it prints a line where the fit begins."""
    start = f"""
        import sys, time
        from xentjax.cli import main
        from xentjax.training import regression
        {code}
        sys.exit(main(["fit", "rain.toml", "--out", "runs/rain"]))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(start)]
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


ENDLESS = "regression.fit_logistic = lambda *args, **options: (print('fitting', flush=True), time.sleep(60))"


def test_a_second_ctrl_c_ends_a_fit_at_once(call, tmp_path):
    process = in_a_process(ENDLESS, tmp_path)
    assert process.stdout.readline() == "fitting\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "xentjax: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["rain.toml"]


@pytest.mark.parametrize("moment", ["in the fit", "in writing"])
def test_what_a_killed_run_leaves_is_in_no_ones_way(call, tmp_path, moment):
    writing = "regression.Regression.text = lambda self: (print('fitting', flush=True), time.sleep(60))"
    process = in_a_process(ENDLESS if moment == "in the fit" else writing, tmp_path)
    assert process.stdout.readline() == "fitting\n"
    process.kill()
    process.communicate(timeout=20)
    assert not Path("runs/rain").exists()
    assert call()[0] == 0
    assert [path.name for path in Path("runs").iterdir()] == ["rain"]
    assert summary("runs/rain")["status"] == "converged"


# -- flights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bootstrap", "path", "flights"])
def test_the_readme_shows_what_a_config_prints(call, name):
    text = (ROOT / "README.md").read_text()
    shown = re.search(rf"^\$ xentjax fit configs/{name}\.toml\n(.*?)^(?:\$|```)", text, re.MULTILINE | re.DOTALL)
    assert shown is not None
    lines = [line.rstrip() for line in shown[1].splitlines() if line.rstrip() not in ("", "...")]
    assert len(lines) >= 3
    status, out, _ = call(config=CONFIGS / f"{name}.toml")
    assert status == 0
    printed = [line.rstrip() for line in out.splitlines()]
    assert [line for line in lines if line not in printed] == []


def test_the_flights_are_those_of_the_benchmark():
    config = read_run(CONFIGS / "flights.toml")
    examples = load_examples(config.data)
    encoder = Encoder.learn(examples, np.arange(len(examples.labels)), config.data, config.precision)
    x, y = flights()
    assert x.shape == (327_346, 54)
    np.testing.assert_array_equal(encoder.matrix(examples), x)
    np.testing.assert_array_equal(examples.labels, y)
    assert config.model.l2 == pytest.approx(1 / len(x), rel=1e-7)


def test_flights_in_float32_are_those_of_float64():
    """Raw features of sizes from 1 to 5000; the carriers, the months, ... of a row each sum to 1.

    In float32 scikit-learn's L-BFGS and Newton solvers are off by 0.5 here, of a largest weight of 9.7.
    """
    x, y = flights()
    with jax.enable_x64(True):
        exact = xj.fit_logistic(x, y, l2=1 / len(x), inference=False)
    rough = xj.fit_logistic(jnp.asarray(x, jnp.float32), y, l2=1 / len(x), inference=False)
    assert exact.status == "converged"
    assert rough.status == "converged"
    assert rough.params.weights.dtype == np.float32
    # In units of the features' deviations, which the gradient is told in too.
    weights, wanted = (np.asarray(fit.params.weights, np.float64) * x.std(axis=0) for fit in (rough, exact))
    assert np.max(np.abs(weights - wanted)) < 1e-4 * np.max(np.abs(wanted))
