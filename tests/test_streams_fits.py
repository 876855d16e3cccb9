"""Fits and runs of tables in files beside those in memory: every solver, weights, classes, and what a run writes."""

import gc
import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import xentjax as xj
from benchmarks import stream, stream_report
from xentjax.models import streamed
from xentjax.solvers.lbfgs import LBFGS
from xentjax.solvers.newton import Newton
from xentjax.training.config import FitConfig
from xentjax.training.config_file import validate
from xentjax.training.errors import UserError
from xentjax.training.job import fit
from xentjax.training.many import fit_grid
from xentjax.training.regression import regress
from xentjax.training.regression_config import RegressionConfig

pytestmark = pytest.mark.usefixtures("compiled_fast")

#: More numbers than programs pad, several blocks of 512 KiB, and more chunks than one.
N, D = 20_000, 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of two blocks, so that there are many."""
    monkeypatch.setattr(streamed, "_CHUNK", 2**20)
    yield
    gc.collect()


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)).astype(np.float32)
    z = x @ rng.standard_normal(D) / 4
    return x, (rng.random(N) < 1 / (1 + np.exp(-z))).astype(np.int32)


@pytest.fixture
def table(data, tmp_path):
    """The data as a .npy of features and one of labels."""
    np.save(tmp_path / "x.npy", data[0])
    np.save(tmp_path / "y.npy", data[1])
    return tmp_path


def opened(folder, **options):
    return xj.open_rows(folder / "x.npy", "y.npy", cache=folder, **options)


def same_bits(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


FITS = {
    "newton": {"solver": "newton"},
    "newton, weights": {"solver": "newton", "weighted": True, "l2": 0.01, "class_weight": "balanced"},
    "newton, three classes": {"solver": "newton", "classes": 3},
    "newton, no intercept": {"solver": "newton", "fit_intercept": False},
    "lbfgs": {"solver": "lbfgs"},
    "lbfgs, three classes": {"solver": "lbfgs", "classes": 3, "l2": 0.1},
    "newton-cg": {"solver": "newton-cg", "inference": False},
    "proximal-newton": {"solver": "proximal-newton", "l1": 0.01},
    "proximal-gradient": {"solver": "proximal-gradient", "l1": 0.02},
}


@pytest.mark.parametrize("options", FITS.values(), ids=FITS)
def test_fits_are_those_in_memory(options, table, data):
    """Their sums go over the same blocks. Coefficients have the same bits, but for the bound of the curvature that a
    step of a proximal gradient has, which is rounded in another order; covariances those of sums of 20,000 terms, as a
    compiler may fuse the same arithmetic in another way."""
    options = dict(options)
    rng, (x, y) = np.random.default_rng(1), data
    if options.pop("weighted", False):
        options["weights"] = rng.integers(0, 3, N).astype(np.float32)
    if (k := options.pop("classes", 2)) > 2:
        y = (y + (rng.random(N) < 0.3)).astype(np.int32)
        np.save(table / "y.npy", y)
    rows = opened(table)
    assert len(rows.classes) == k
    found, expected = xj.fit_logistic(rows.x, rows.y, **options), xj.fit_logistic(x, y, **options)
    assert found.status == expected.status == "converged"
    if options["solver"] == "proximal-gradient":
        for a, b in zip(found.params, expected.params, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)  # ten times tol, over a curvature of a tenth or more
    else:
        same_bits((found.params, found.objective, found.steps), (expected.params, expected.objective, expected.steps))
    if found.covariance is not None:
        scale = np.abs(expected.covariance).max()
        for a, b in ((found.covariance, expected.covariance), (found.robust_covariance, expected.robust_covariance)):
            np.testing.assert_allclose(a, b, atol=1e-5 * scale)
    assert rows.x.source.rows_read > 2 * N


def test_a_path_is_that_in_memory(table, data):
    rows = opened(table)
    found, expected = (xj.fit_path(x, data[1], num_lambdas=5, folds=3) for x in (rows.x, data[0]))
    same_bits(found.params, expected.params)
    same_bits(found.test_loss, expected.test_loss)


def test_many_fits_say_what_to_do(table, data):
    with pytest.raises(ValueError, match="x is in a file, but many fits share rows in memory: fit one by one"):
        xj.fit_many(opened(table).x, data[1], weights=np.ones((2, N)))


def test_separated_classes_are_found(tmp_path, data):
    x, y = data
    np.save(tmp_path / "x.npy", np.column_stack([x, y]).astype(np.float32))
    np.save(tmp_path / "y.npy", y)
    rows = opened(tmp_path)
    apart, expected = (xj.fit_logistic(of, y) for of in (rows.x, np.column_stack([x, y]).astype(np.float32)))
    assert apart.status == expected.status == "separated"
    assert apart.message == expected.message


def test_solvers_with_a_subsample(table, data):
    """The rows of a subsample are read once, and are those in memory."""
    rows = opened(table)
    for solver in (Newton(subsample=8), LBFGS(subsample=8)):
        made = [
            xj.minimize(objective, objective.init(), solver, tol=1e-4, max_steps=50)
            for objective in (xj.LogisticObjective(rows.x, rows.y), xj.LogisticObjective(*data))
        ]
        assert made[0].status == "converged"
        for a, b in zip(made[0].params, made[1].params, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)  # tol over the smallest curvature, which is above 1/8


def test_wide_numbers_keep_their_digits_in_float32(tmp_path):
    """Of mean 1e6 and deviation 1: rounded as they are they would keep one digit."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 4)) + 1e6
    y = (x[:, 0] - 1e6 + rng.standard_normal(20_000) > 0).astype(int)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    rows = opened(tmp_path)
    assert rows.x.dtype == np.float32
    found, expected = xj.fit_logistic(rows.x, rows.y), xj.fit_logistic(x, y)
    for a, b in zip(found.params, expected.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(ValueError, match="open them with center=False"):
        xj.fit_logistic(rows.x, rows.y, fit_intercept=False)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rain(tmp_path):
    """A table of numbers, categories and weights."""
    rng = np.random.default_rng(0)
    wind = rng.choice(["north", "west", "east"], 3000)
    x = rng.standard_normal((3000, 2)) * [1, 20] + [0, 500]
    z = x[:, 0] + (x[:, 1] - 500) / 20 + (wind == "west")
    y = np.where(rng.random(3000) < 1 / (1 + np.exp(-z)), "yes", "no")
    path = tmp_path / "rain.parquet"
    columns = {"a": x[:, 0], "b": x[:, 1], "wind": wind, "s": rng.integers(0, 3, 3000), "y": y}
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def of_config(path, memory, **changes):
    data = {"path": str(path), "target": "y", "categorical": ["wind"], "weights": "s", "drop_first": True}
    return {"name": "rain", "data": {**data, "memory": memory, "cache": str(path.parent)}, **changes}


def test_a_regression_is_the_same_streamed(rain, monkeypatch):
    monkeypatch.setattr("xentjax.training.regression._OFTEN", 0.0)
    stages = []
    whole, stream = (
        regress(validate(of_config(rain, memory), RegressionConfig, "test"), stages.append)
        for memory in ("whole", "stream")
    )
    assert any("million rows/s" in stage.what and stage.total == 3000 for stage in stages)
    for a, b in zip(whole.fit.params, stream.fit.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    np.testing.assert_allclose(whole.deviations, stream.deviations, rtol=1e-9, atol=1)  # of equal rows, weighted or not
    for part in ("train", "test"):
        found, expected = getattr(stream, part).summary(), getattr(whole, part).summary()
        assert {**found, "examples": 0} == pytest.approx({**expected, "examples": 0}, rel=1e-9)
        np.testing.assert_array_equal(getattr(stream, part).confusion, getattr(whole, part).confusion)


def test_a_training_run_is_the_same_streamed(rain):
    changes = {"solver": {"name": "gradient_descent"}, "stop": {"max_steps": 20}, "precision": "float64"}
    whole, stream = (
        fit(validate(of_config(rain, memory, **changes), FitConfig, "test")) for memory in ("whole", "stream")
    )
    for a, b in zip(whole.model.params, stream.model.params, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8)
    assert stream.gradient_deviation < 1e-12
    assert whole.model.encoder.feature_names == stream.model.encoder.feature_names
    changes |= {"many": {"step_sizes": [0.1], "seeds": [0]}}
    with pytest.raises(UserError, match=r"many needs the examples in memory: data.memory = .whole. reads them"):
        fit_grid(validate(of_config(rain, "stream", **changes), FitConfig, "test"))


def test_the_benchmark_measures_and_tells(tmp_path):
    """Toy sizes; only the fit of the Parquet file runs, in a process of its own."""
    stream.make_table(tmp_path, 2000, 3)
    found = stream._process(tmp_path, "parquet", "newton", 1)
    assert found["status"] == "converged"
    row = stream._row(2000, 3, "newton", "parquet", found, dict(found), 0)
    assert row["difference"] == 0
    assert "GB/s" in stream.one_line(row)
    machine = {"name": "here", "platform": "cpu", "cores": 1, "copy_bytes_per_s": 1e9, "matmul_flop_per_s": {}}
    machine |= {"versions": {}, "python": "3", "commit": "0", "date": "2026-01-01"}
    device = tmp_path / "device"
    device.mkdir()
    (device / "stream.jsonl").write_text(json.dumps(machine) + "\n" + json.dumps(row) + "\n")
    assert "| newton | parquet |" in stream_report.sections(stream_report.result_files(tmp_path))


def test_skipped_rows_are_told(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{i % 7},{(i * 5 % 11) > 5:d}" for i in range(100)]
    path.write_text("a,y\n" + "\n".join([*lines, "x,1", "1"]) + "\n")
    for memory in ("whole", "stream"):
        data = {"path": str(path), "target": "y", "on_bad_rows": "skip", "memory": memory, "test_fraction": 0.0}
        made = regress(validate({"name": "t", "data": data}, RegressionConfig, "test"))
        assert "left out: 2 rows with something wrong" in made.text()
        assert made.summary()["skipped_rows"] == 2
        assert made.train.examples == 100
        json.dumps(made.summary()["skipped_rows"])
