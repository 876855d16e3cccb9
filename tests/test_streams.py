"""Tables in files: what is streamed gives the bits that it gives in memory, and every mistake names its place."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import xentjax as xj
from xentjax.models import streamed
from xentjax.solvers.kept import described
from xentjax.training.config import DataConfig
from xentjax.training.errors import UserError
from xentjax.training.prepared import load_examples
from xentjax.training.streams.matrix import MatrixWriter

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("compiled_fast")

#: Rows whose 16 columns of float32 are more than programs pad, several blocks of 512 KiB, and more chunks.
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


def told(function, *args, **options):
    with pytest.raises(ValueError) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- sums and solvers --------------------------------------------------------------------------------------------------


def test_value_gradient_hessian_and_products_are_those_in_memory_bit_by_bit(table, data):
    x, y = data
    weights = np.random.default_rng(1).integers(0, 3, N).astype(np.float32)
    offset = np.random.default_rng(2).standard_normal(N).astype(np.float32)
    params = xj.LogisticParams(np.full(D, 0.1, np.float32), np.float32(-0.2))

    @jax.jit
    def everything(objective):
        product = objective.linearized(params)(params)
        few = objective.subsample(8)
        return (
            objective.value_gradient_hessian(params),
            product,
            objective.hvp(params, params),
            objective.hessian_diagonal(params),
            objective.hessian_blocks(params),
            objective.gradient_error(params),
            few.value_and_gradient(params),
        )

    rows = opened(table)
    of_file = xj.LogisticObjective(rows.x, y, 0.1, weights, offset)
    in_memory = xj.LogisticObjective(x, y, 0.1, weights, offset)
    same_bits(everything(of_file), everything(in_memory))
    # Those that go another way in memory, to rounding: 20,000 terms of size 1 in sums of pairs.
    np.testing.assert_allclose(of_file.value(params), in_memory.value(params), rtol=1e-5)
    np.testing.assert_allclose(of_file.lipschitz(), in_memory.lipschitz(), rtol=1e-5)


def test_programs_are_shared_by_files_of_one_shape_and_read_the_right_one(table, data):
    x, y = data
    other = table / "other"
    other.mkdir()
    np.save(other / "x.npy", x[::-1].copy())
    np.save(other / "y.npy", y)
    evaluate = jax.jit(lambda objective, params: objective.value_and_gradient(params)[0])
    first, second = opened(table), opened(other)
    params = xj.LogisticParams(np.ones(D, np.float32), np.float32(0))
    values = [float(evaluate(xj.LogisticObjective(rows.x, y), params)) for rows in (first, second)]
    expected = [float(evaluate(xj.LogisticObjective(of, y), params)) for of in (x, x[::-1].copy())]
    assert values == expected
    assert evaluate._cache_size() == 2  # one of rows in a file, one of arrays


def test_programs_that_read_a_file_stay_in_their_process(table):
    """They call what another process does not have."""
    with pytest.raises(ValueError):
        described(jax.tree.structure(xj.LogisticObjective(opened(table).x, np.zeros(N))))
    described(jax.tree.structure(xj.LogisticObjective(np.zeros((N, D)), np.zeros(N))))


def test_where_rows_cannot_be_written_in_place_they_are_copied(table, data, monkeypatch):
    """As on an accelerator."""
    rows = opened(table)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    read = jax.jit(lambda x, at: (x.block(at, 5), x.take(at + np.arange(0, 90, 30))))
    block, few = read(rows.x, 7)
    np.testing.assert_array_equal(block, data[0][7:12])
    np.testing.assert_array_equal(few, data[0][[7, 37, 67]])


def test_minibatches_take_rows_in_the_order_of_memory(table, data):
    import optax

    init = xj.LogisticParams(np.zeros(D, np.float32), np.float32(0))
    train = lambda x: xj.train_minibatch(xj.logistic_loss, init, (x, data[1]), optax.sgd(0.1), epochs=1, batch_size=500)
    rows = opened(table)
    found, expected = train(rows.x), train(data[0])
    same_bits((found.params, found.history), (expected.params, expected.history))


# -- files of every kind -----------------------------------------------------------------------------------------------


def write(folder, kind, columns):
    """The columns as a file or a folder of this kind, and its target."""
    made = pa.table(columns)
    path = folder / f"table.{kind}"
    match kind:
        case "parquet":
            pyarrow.parquet.write_table(made, path, row_group_size=300)
        case "folder":
            path.mkdir()
            for i in range(3):
                pyarrow.parquet.write_table(made.slice(400 * i, 400), path / f"{i}.parquet")
        case "csv":
            pyarrow.csv.write_csv(made, path)
        case "arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
                writer.write_table(made, max_chunksize=200)
        case "npy":
            np.save(path, np.column_stack(list(columns.values())))
            return path, f"x{len(columns) - 1}"
        case "fortran.npy":
            np.save(path, np.asfortranarray(np.column_stack(list(columns.values()))))
            return path, f"x{len(columns) - 1}"
        case "svmlight":
            from sklearn.datasets import dump_svmlight_file

            *features, target = columns.values()
            dump_svmlight_file(
                np.column_stack(features),
                target,
                str(path),
                zero_based=False,
                comment="made",
                query_id=target.astype(int),
            )
            return path, None
    return path, "y"


@pytest.mark.parametrize("kind", ["parquet", "folder", "csv", "arrow", "npy", "fortran.npy", "svmlight"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kind_of_file_gives_the_numbers_that_are_in_it(kind, dtype, tmp_path):
    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((1200, 3)), 3).astype(dtype)  # as text has them
    x[rng.random(x.shape) < 0.2] = 0
    y = rng.integers(0, 3, 1200)
    path, target = write(tmp_path, kind, {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y.astype(dtype)})
    rows = xj.open_rows(path, target, dtype=dtype, center=False, cache=tmp_path)
    assert rows.x.shape == (1200, 3)
    assert rows.classes == ("0", "1", "2")
    np.testing.assert_array_equal(rows.y, y)
    read = np.empty((1200, 3), dtype)
    rows.x.source.read(0, read)
    np.testing.assert_array_equal(read, x)
    part = np.empty((2, 3), dtype)
    rows.x.source.take(np.array([1199, 7]), part)
    np.testing.assert_array_equal(part, x[[1199, 7]])
    assert not [p for p in tmp_path.iterdir() if p != path]  # what is written has no name


def test_columns_weights_and_categories(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"v": rng.standard_normal(500), "wind": rng.choice(["west", "east", "no"], 500)}
    columns |= {"s": rng.integers(0, 4, 500), "y": rng.choice(["rain", "dry"], 500), "unused": ["x"] * 500}
    path, _ = write(tmp_path, "csv", columns)
    options = {"features": ["v", "wind"], "categorical": ["wind"], "weights": "s", "drop_first": True}
    rows = xj.open_rows(path, "y", **options, dtype="float32", center=False, cache=tmp_path)
    assert rows.names == ("v", "wind=no", "wind=west")
    assert rows.classes == ("dry", "rain")
    np.testing.assert_array_equal(rows.weights, columns["s"])
    read = np.empty((500, 3), np.float32)
    rows.x.source.read(0, read)
    expected = [columns["v"], columns["wind"] == "no", columns["wind"] == "west"]
    np.testing.assert_array_equal(read, np.column_stack(expected).astype(np.float32))


# -- rows in which something is wrong ----------------------------------------------------------------------------------

BAD = {
    "a cell that is no number": ("1,2,0\nx,2,1\n3,4,1\n", "line 3, column 'a': 'x' is not a number"),
    "an empty cell": ("1,2,0\n1,,1\n3,4,1\n", "line 3, column 'b': is empty"),
    "an infinite cell": ("1,2,0\n1,inf,1\n3,4,1\n", "line 3, column 'b': is inf, but a feature must be finite"),
    "too few cells": ("1,2,0\n1,1\n3,4,1\n", "line 3: has 2 cells, but the header names 3 columns"),
    "no label": ("1,2,0\n1,2,\n3,4,1\n", "line 3, column 'y': is empty"),
    "a label that is no class": ("1,2,0\n1,2,one\n3,4,1\n", "line 3, column 'y': label 'one' is not a class"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_bad_rows_of_csv_are_named_or_left_out(text, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + text)
    assert told(xj.open_rows, path, "y").startswith(f"{path}, {message}")
    rows = xj.open_rows(path, "y", on_bad_rows="skip")
    assert rows.skipped == 1
    counts = np.ones(len(rows.y), bool) if rows.weights is None else rows.weights != 0
    np.testing.assert_array_equal(rows.y[counts], [0, 1])
    read = np.empty(rows.x.shape, rows.x.dtype)
    rows.x.source.read(0, read)
    origin = 0 if rows.x.source.origin is None else rows.x.source.origin
    np.testing.assert_array_equal((read + origin)[counts], [[1, 2], [3, 4]])
    # In memory the same rows are left out.
    whole = load_examples(DataConfig(path=str(path), target="y", on_bad_rows="skip", memory="whole"))
    assert whole.skipped == 1
    np.testing.assert_array_equal(whole.columns["a"], [1, 3])


@pytest.mark.parametrize("kind", ["parquet", "arrow", "npy"])
def test_bad_rows_of_other_files_are_named_or_left_out(kind, tmp_path):
    x = np.arange(20.0).reshape(10, 2)
    x[6, 1] = np.nan
    path, target = write(tmp_path, kind, {"a": x[:, 0], "b": x[:, 1], "y": np.arange(10.0) % 2})
    column = "x1" if kind == "npy" else "b"
    where = f"{path}, row 7, column {column!r}: is "
    assert told(xj.open_rows, path, target).startswith(where)
    rows = xj.open_rows(path, target, on_bad_rows="skip", cache=tmp_path)
    assert rows.skipped == 1
    kept = np.delete(np.arange(10), 6)
    fit, expected = (
        xj.fit_logistic(rows.x, rows.y, weights=rows.weights, l2=0.1),
        xj.fit_logistic(x[kept], kept % 2, l2=0.1),
    )
    np.testing.assert_allclose(fit.params.weights, expected.params.weights, atol=1e-4)
    assert fit.num_observations == 9


def test_bad_lines_of_svmlight_are_named_or_left_out(tmp_path):
    path = tmp_path / "t.svm"
    path.write_text("1 1:0.5 3:2 # a comment\n\n0 qid:3 2:1\n1 2:1 2:x\n0 1:3\n")
    assert told(xj.open_rows, path).startswith(f"{path}, line 4: is no label")
    rows = xj.open_rows(path, on_bad_rows="skip", center=False)
    assert (rows.names, rows.skipped, rows.y.tolist()) == (("1", "2", "3"), 1, [1, 0, 0])
    read = np.empty((3, 3), rows.x.dtype)
    rows.x.source.read(0, read)
    np.testing.assert_array_equal(read, [[0.5, 0, 2], [0, 1, 0], [3, 0, 0]])


def test_weights_below_0_and_labels_beyond_the_classes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,s,y\n1,1,u\n2,-1,v\n3,1,w\n4,1,v\n")
    message = told(xj.open_rows, path, "y", weights="s")
    assert message == f"{path}, line 3, column 's': is -1, but a weight must be 0 or more"
    message = told(xj.open_rows, path, "y", features=["a"], classes=["u", "v"])
    assert message == f"{path}, line 4, column 'y': label 'w' is not in data.classes"
    rows = xj.open_rows(path, "y", weights="s", classes=["u", "v"], on_bad_rows="skip")
    assert rows.skipped == 2
    np.testing.assert_array_equal(rows.y[rows.weights != 0], [0, 1])


MISTAKES = {
    "no file": ({}, lambda p: p / "none.npy", "y", "no such file"),
    "no such column": ({}, lambda p: p / "x.npy", "x99", "has no column 'x99'"),
    "labels of another table": ({}, lambda p: p / "x.npy", "short.npy", "holds 3 labels, but there are 20000 rows"),
    "no numbers": ({}, lambda p: p / "words.npy", "x0", "not numbers"),
    "an option": ({"on_bad_rows": "ignore"}, lambda p: p / "x.npy", "y.npy", "on_bad_rows must be 'error' or 'skip'"),
    "an empty folder": ({}, lambda p: p / "empty", "y", "is a folder without a file"),
}


@pytest.mark.parametrize(("options", "path", "target", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(options, path, target, message, table):
    np.save(table / "short.npy", np.zeros(3))
    np.save(table / "words.npy", np.array([["a"]]))
    (table / "empty").mkdir()
    assert message in told(xj.open_rows, path(table), target, **options)


def test_a_file_that_shrinks_while_it_is_read(table):
    rows = opened(table)
    with open(table / "x.npy", "r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    with pytest.raises(UserError, match="ends early: it has become shorter"):
        xj.fit_logistic(rows.x, rows.y)


def test_rows_that_are_closed_or_gone(table):
    rows = opened(table)
    rows.close()
    with pytest.raises(UserError, match="cannot be read"):
        xj.fit_logistic(rows.x, rows.y)
    leaves, structure = jax.tree.flatten(opened(table).x)
    gc.collect()
    with pytest.raises(Exception, match="no longer open"):
        jax.block_until_ready(jax.jit(lambda x: x.block(0, 2))(jax.tree.unflatten(structure, leaves)))


def test_no_room_for_what_is_written(tmp_path, monkeypatch):
    writer = MatrixWriter(tmp_path, 2, np.float32)

    class Full:
        def write(self, _):
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(UserError, match=r"No space left on device; features .* cache names another folder"):
        writer.write(np.zeros((3, 2)))


# -- runs --------------------------------------------------------------------------------------------------------------


def test_large_files_are_streamed_unless_told_otherwise(table, monkeypatch):
    from xentjax.training import prepared

    config = DataConfig(path=str(table / "x.npy"), target="y.npy")
    assert type(load_examples(config)).__name__ == "Examples"
    monkeypatch.setattr(prepared, "_LARGE", 1)
    assert type(load_examples(config)).__name__ == "Scanned"


MEMORY = """
import re, sys, jax, numpy as np, xentjax as xj
jax.jit(lambda x: x + 1)(1.0)
rows = xj.open_rows(sys.argv[1], "y.npy")
value = jax.jit(lambda o, p: o.value_and_gradient(p))
params = xj.LogisticParams(np.zeros(rows.x.shape[1], np.float32), np.float32(0))
peak = lambda: int(re.findall(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[0]) // 1024
few = xj.LogisticObjective(rows.x, rows.y)
before = peak()
for _ in range(3):
    jax.block_until_ready(value(few, params))
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak of memory on Linux alone")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """200 MB of features: to open them and three passes take less than a third of that."""
    n, d = 500_000, 100
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (n, d))
    x[:] = np.random.default_rng(0).standard_normal(d).astype(np.float32)
    del x
    np.save(tmp_path / "y.npy", np.arange(n) % 2)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "x.npy")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    before, after = map(int, done.stdout.split())
    assert after - before < 64, done.stdout
