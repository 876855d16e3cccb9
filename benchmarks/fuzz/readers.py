"""Every reader of files: what it reads, what good files are, and how they are spoiled.

A reader of another format is one more entry of :data:`READERS`.
"""

from __future__ import annotations

import functools
import io
import os
import pathlib
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

from benchmarks.fuzz import written
from benchmarks.fuzz.changes import Files, changed, one_of_them
from benchmarks.fuzz.watch import USER_ERROR
from xentjax.losses.linear import measured
from xentjax.models.logistic import LogisticParams
from xentjax.solvers import kept
from xentjax.training.config import TutorialConfig
from xentjax.training.config_file import read_config, read_run, to_toml, validate
from xentjax.training.data import CategoricalColumn, Encoder, NumericColumn
from xentjax.training.language.tokenized import tokenize
from xentjax.training.language_config import LanguageConfig
from xentjax.training.predict import write_predictions
from xentjax.training.prepared import load_examples, split_and_encode
from xentjax.training.run_folder import Model

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


class Reader(NamedTuple):
    """What takes files in a folder: reads them, or refuses them with an exception of its own in one line."""

    read: Callable[[pathlib.Path], object]
    good: Callable[[], Mapping[str, bytes]]
    """Files that are read, by their paths."""
    spoiled: Callable[[Mapping[str, bytes]], st.SearchStrategy[Files]]
    """What is tried: files of which most are not good."""
    refusals: tuple[type[Exception], ...] = USER_ERROR


# -- configs -----------------------------------------------------------------------------------------------------------


_RUNS = ("digits", "breast_cancer", "csv", "many", "path", "bootstrap", "bytes_lm")


def _config(name: str) -> bytes:
    return (CONFIGS / name).read_bytes()


def _read_run(folder: pathlib.Path) -> None:
    """A config of any kind of run, which after it is written is the same."""
    config = read_run(folder / "config.toml")
    again = tomllib.loads(to_toml(config.model_dump(exclude_none=True)))
    assert validate(again, type(config), "again") == config, "a config is another one after it was written"


def _read_tutorial(folder: pathlib.Path) -> None:
    read_config(folder / "config.toml", kind=TutorialConfig)


def _read_overridden(folder: pathlib.Path) -> None:
    """What may stand behind ``--set``, which has no NUL."""
    words = (folder / "set").read_bytes().split(b"\0")
    read_run(CONFIGS / "digits.toml", [os.fsdecode(word) for word in words])


_SET = (b"solver.step_size=0.25\0seed=1", b"many={step_sizes=[0.1, 1], seeds=[3]}", b"name = other", b"data.path=a.csv")


# -- tables ------------------------------------------------------------------------------------------------------------

_OF_A_TABLE = b"""
[data]
path = "table"
target = "y"
categorical = ["colour"]
"""
_CSV = b"size,colour,y\n1.5,red,yes\n2,blue,no\n-3e2,red,no\n4,green,yes\n5,blue,yes\n6,red,no\n"


def _read_table(folder: pathlib.Path) -> None:
    """A table up to its encoding as features."""
    config = read_run(folder / "config.toml")
    data = split_and_encode(load_examples(config.data), config, config.seed)  # type: ignore[union-attr,arg-type]
    for part in data.parts:
        assert np.all(np.isfinite(part.x)), "a feature that is no number has come through"
        assert len(data.classes) > part.y.max(), "a label without a class"


def _parquet() -> bytes:
    columns = {"size": [1.5, 2.0, -3e2, 4.0, 5.0, 6.0], "colour": ["red", "blue"] * 3, "y": [0, 1, 1, 0, 0, 1]}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


# -- models ------------------------------------------------------------------------------------------------------------


def _model() -> dict[str, bytes]:
    """The files of a run folder that predicting needs, and a table to predict for."""
    columns = (NumericColumn("size", 1.0, 2.0), CategoricalColumn("colour", ("blue", "green", "red")))
    generator = np.random.default_rng(0)
    params = LogisticParams(generator.standard_normal((4, 3)).astype(np.float32), np.zeros(3, np.float32))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        Model(Encoder(columns, "float32"), ("no", "perhaps", "yes"), params).write(folder)
        files = {f"run/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return {**files, "run/summary.json": b'{"kind": "fit"}', "table": _CSV}


def _predict(folder: pathlib.Path) -> None:
    """Probabilities for each row, which sum to 1."""
    rows = write_predictions(folder / "run", folder / "table", folder / "out.parquet")
    found = pyarrow.parquet.read_table(folder / "out.parquet")
    sums = sum(found.column(name).to_numpy() for name in found.column_names if name.startswith("p_"))
    assert found.num_rows == rows, "rows were lost"
    assert np.allclose(sums, 1, rtol=1e-5), "probabilities do not sum to 1"


def _spoiled_model(good: Mapping[str, bytes]) -> st.SearchStrategy[Files]:
    contents = {
        "run/model.json": written.documents([good["run/model.json"]]),
        "run/summary.json": written.documents([good["run/summary.json"]]),
        "run/params.safetensors": written.tensors([good["run/params.safetensors"]]),
        "table": written.csv_tables([good["table"]]),
    }
    return one_of_them(good, contents)


# -- text --------------------------------------------------------------------------------------------------------------

_OF_A_TEXT = b"""
[text]
path = "text"
suffix = ""
max_bytes = 1000000
test_fraction = 0.3
[vocabulary]
size = 260
[solver]
name = "optax"
transformation = "adam"
learning_rate = 0.01
[batches]
size = 2
length = 8
[stop]
max_steps = 3
"""
_TEXT = {
    "text/a.py": b"def the(cat, hat):\n    return the.end of the day\n",
    "text/deep/down/b.py": b"the cat and the hat, and the end\n" * 3,
    "text/\udcff\udc80.py": b"the name of this file is no text, and the words the and end and cat are\n",
}


def _read_text(folder: pathlib.Path) -> None:
    """Text in tokens, which are the text."""
    config = read_run(folder / "config.toml")
    assert isinstance(config, LanguageConfig)
    text = tokenize(config)
    for part in (text.train, text.test):
        assert text.tokenizer.decode(part.tokens) == b"".join(part.texts), "the tokens are not the text"


def _spoiled_text(good: Mapping[str, bytes]) -> st.SearchStrategy[Files]:
    texts = {name: changed([content]) for name, content in good.items() if name.startswith("text/")}
    return one_of_them(good, texts)


# -- tables and programs of our own ------------------------------------------------------------------------------------

_BLOCKS = (
    b'[{"device": "cpu", "dtype": "float32", "n": 8, "d": 4, "v": 100, "strategy": "recompute", "block": 50, '
    b'"chunk": null, "milliseconds": 1.5, "kernels": "xla"}]'
)


def _program() -> bytes:
    """A compiled program as it is kept."""
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name, "program")
        kept.write_program(path, jax.jit(lambda x: x + 1).lower(1.0).compile())
        return path.read_bytes()


def _read_program(folder: pathlib.Path) -> None:
    """A kept program, which is there or not: nothing is refused, it is made anew."""
    path = folder / "program"
    program = kept.read_program(path)
    if program is not None:
        assert path.read_bytes() == _program_once(), "what is damaged was taken for a program"
        assert float(program(1.0)) == 2


_program_once = functools.cache(_program)


READERS: dict[str, Reader] = {
    "config": Reader(
        _read_run,
        lambda: {"config.toml": _config("digits.toml")},
        lambda good: one_of_them(good, {"config.toml": written.configs([_config(f"{n}.toml") for n in _RUNS])}),
    ),
    "config of figures": Reader(
        _read_tutorial,
        lambda: {"config.toml": _config("tutorial.toml")},
        lambda good: one_of_them(good, {"config.toml": written.configs([*good.values()])}),
    ),
    "--set": Reader(
        _read_overridden,
        lambda: {"set": _SET[0]},
        lambda good: st.one_of(changed(_SET), written.settings()).map(lambda text: {"set": text}),
    ),
    "CSV": Reader(
        _read_table,
        lambda: {"config.toml": _OF_A_TABLE, "table": _CSV},
        lambda good: one_of_them(good, {"table": written.csv_tables([_CSV])}),
    ),
    "Parquet": Reader(
        _read_table,
        lambda: {"config.toml": _OF_A_TABLE, "table": _parquet()},
        lambda good: one_of_them(good, {"table": written.parquet_tables([good["table"]])}),
    ),
    "model and predictions": Reader(_predict, _model, _spoiled_model),
    "text": Reader(_read_text, lambda: {"config.toml": _OF_A_TEXT, **_TEXT}, _spoiled_text),
    "table of blocks": Reader(
        lambda folder: measured.read(folder / "blocks.json"),
        lambda: {"blocks.json": _BLOCKS},
        lambda good: one_of_them(good, {"blocks.json": written.documents([_BLOCKS])}),
        (ValueError, OSError),
    ),
    "kept program": Reader(
        _read_program,
        lambda: {"program": _program_once()},
        lambda good: one_of_them(good, {"program": changed([good["program"]])}),
    ),
}
