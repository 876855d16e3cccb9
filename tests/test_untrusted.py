"""Files that come from others: each is read, or refused in one line, whatever it is and whatever stands in it."""

import io
import json
import os
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from xentjax.cli import app, main
from xentjax.losses.linear import measured
from xentjax.models.logistic import LogisticParams
from xentjax.solvers import kept
from xentjax.training import files, run_folder
from xentjax.training.config import DataConfig
from xentjax.training.config_file import read_run, to_toml, validate
from xentjax.training.data import CategoricalColumn, Encoder, NumericColumn
from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.language.corpus import read_corpus
from xentjax.training.language.tokenizer import Tokenizer
from xentjax.training.language_config import TextConfig
from xentjax.training.predict import write_predictions
from xentjax.training.prepared import load_examples
from xentjax.training.regression_config import RegressionConfig
from xentjax.training.run_folder import Model, read_model
from xentjax.training.table import open_table

linux = pytest.mark.skipif(sys.platform != "linux", reason="such files are not there")

PIPE = "is a pipe or a device: copy what comes out of it to a file first"


def told(job, *args, **kwargs):
    """The one line of the UserError that the job raises."""
    with pytest.raises(UserError) as caught:
        job(*args, **kwargs)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_an_error_is_one_line_that_no_terminal_obeys_and_no_longer_than_can_be_read():
    assert str(UserError("a\nb\x1b[2J\x00\udcff")) == "a b\\x1b[2J\\x00\\udcff"
    line = str(UserError("start " + "x" * 10**6 + " end"))
    assert len(line) < 1100
    assert line.startswith("start ")
    assert line.endswith(" end")


def test_hints_take_no_time_for_a_million_names():
    assert did_you_mean("colum", ["column"]) == "; did you mean column?"
    assert did_you_mean("colum", [f"column{i}" for i in range(10**6)]) == ""
    assert did_you_mean("a" * 10**6, ["a" * 10**6 + "b"]) == ""
    assert did_you_mean("colum", ["a" * 10**6, "column"]) == "; did you mean column?"


# -- what is no file ---------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("read", [read_run, open_table, lambda path: files.contents(path, 100)])
def test_pipes_devices_and_links_in_circles(tmp_path, read):
    path = tmp_path / "file"
    os.mkfifo(path)
    assert told(read, path) == f"{path}: {PIPE}"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert told(read, path) == f"{path}: {PIPE}"
    path.unlink()
    path.symlink_to(path)
    assert told(read, path).startswith(f"{path}: cannot be read: ")
    assert told(read, tmp_path / "a\0b").endswith("null byte") or "null" in told(read, tmp_path / "a\0b")


@linux
def test_a_file_that_is_larger_than_what_is_read_is_not_read(tmp_path):
    path = tmp_path / "large.toml"
    path.touch()
    os.truncate(path, 2**40)
    assert told(read_run, path) == f"{path}: has {2**40} bytes, but at most {2**22} are read"
    assert told(open_table, path).startswith(f"{path}, line 1: has more than ")


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 10_000 + "]" * 10_000, "is not valid TOML: arrays or tables are more than 32 deep"),
        ("a = " + "[" * 40 + "]" * 40, "is not valid TOML: arrays or tables are more than 32 deep"),
        ("a." * 100_000 + "b = 1", "is not valid TOML: a key has more than 32 parts"),
        ('"a\\"" . ' * 100_000 + "b = 1", "is not valid TOML: a key has more than 32 parts"),
        ("[" + "a." * 40 + "b]", "is not valid TOML: a key has more than 32 parts"),
        ("x = {" + "a." * 40 + "b = 1}", "is not valid TOML: a key has more than 32 parts"),
        ("seed = " + "9" * 5000, "is not valid TOML: Exceeds the limit"),
        ("seed = 0x" + "f" * 5000, "is not valid TOML: an integer needs more than 64 bits"),
        ("seed = 9223372036854775808", "is not valid TOML: an integer needs more than 64 bits"),
        ("data = {path = 'a\\u0000b'}", "data is missing"),
    ],
)
def test_configs_that_are_deep_or_endless(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text.replace("'a\\u0000b'", '"a\\u0000b"'))
    if message == "data is missing":
        assert told(read_run, path).startswith(f"{path}: data.path cannot be found: ")
    else:
        assert told(read_run, path).startswith(f"{path}: {message}")


def test_settings_that_are_deep_or_endless(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[data]\nsource = "iris"\n')
    assert "must be a valid integer" in told(read_run, path, ["seed=" + "[" * 10_000])
    assert "must be a valid integer" in told(read_run, path, ["seed=" + "9" * 10_000])
    assert told(read_run, path, ["data.path=a\0b"]).startswith("--set data.path=a\\x00b: cannot be found: ")


def test_lists_that_are_long_are_compared_at_once():
    names = [f"feature {i}" for i in range(100_000)]
    assert DataConfig(path="a", target="y", features=names, categorical=names).features == names
    with pytest.raises(ValueError, match="lists 'feature 7' twice in features"):
        DataConfig(path="a", target="y", features=[*names, "feature 7"])


def test_names_of_classes_with_any_sign_survive_being_written():
    raw = {
        "name": "a",
        "data": {"path": "/a\x7f\\\"'\té", "target": "y"},
        "model": {"class_weight": {"two words": 1.0, 'a "b"': 2.0, "": 0.5, "a.b": 3.0, "\x7f\n": 1.5}},
    }
    config = validate(raw, RegressionConfig, "given")
    again = tomllib.loads(to_toml(config.model_dump(exclude_none=True)))
    assert validate(again, RegressionConfig, "again") == config


@pytest.mark.parametrize("name", [".", "..", "../a", "/a", "a/b", "a\0b", "a\n", "", "~", "a\\b", "a b"])
def test_the_name_of_a_run_is_no_path(tmp_path, name):
    path = tmp_path / "a.toml"
    path.write_text(f'name = {json.dumps(name)}\n[data]\nsource = "iris"\n')
    assert "name must be made of letters, digits and . _ + -" in told(read_run, path)


# -- tables ------------------------------------------------------------------------------------------------------------


def examples(path, **options):
    return load_examples(DataConfig(path=str(path), target="y", **options))


def parquet(path, columns, **options):
    pyarrow.parquet.write_table(pa.table(columns), path, **options)
    return path


def test_tables_of_many_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{i}" for i in range(200_000)) + "\n")
    assert told(open_table, path) == f"{path}: has 200000 columns, but at most 100000 are read"
    names = [f"c{i}" for i in range(50_000)]
    path.write_text(",".join([*names, "c7"]) + "\n")
    assert told(open_table, path) == f"{path}: has two columns named 'c7'"
    path.write_text(",".join([*names, "y"]) + "\n" + "1," * 50_000 + "a\n" + "2," * 50_000 + "b\n")
    assert len(examples(path).columns) == 50_000


def test_cells_that_hide_lines_have_a_place_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'x,y\n1,a\n"2,a\n3,b\n')
    assert told(examples, path).startswith(str(path))


def test_words_that_are_long_take_no_more_memory_than_there_is(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "1,a\n" * 3000 + "2," + "b" * 100_000 + "\n")
    monkeypatch.setattr(files, "_free_bytes", lambda: 2**30)
    line = told(examples, path)
    assert (
        line == f"{path}, column 'y': its words of up to 100000 letters would take 2.2 GiB of memory, but 1.0 are free"
    )


def test_categories_take_no_more_memory_than_there_is(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(20_000)))
    config = DataConfig(path=str(path), target="y", categorical=["x"])
    found = load_examples(config)
    encoder = Encoder.learn(found, np.arange(20_000), config, "float32")
    monkeypatch.setattr(files, "_free_bytes", lambda: 2**30)
    line = told(encoder.matrix, found)
    assert (
        line
        == "20000 examples of 20000 features, as each category is one, would take 4.5 GiB of memory, but 1.0 are free"
    )


def test_rows_that_repeat_take_no_more_memory_than_there_is(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", {"x": np.ones(10**6), "y": pa.array(["a" * 1000, "b"] * 500_000)})
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(files, "_free_bytes", lambda: 10**7)
    assert re.match(rf"{re.escape(str(path))}: another \d+ rows would take 0\.0 GiB of memory", told(examples, path))
    monkeypatch.setattr(files, "_free_bytes", lambda: 10**8)
    assert told(examples, path).startswith(f"{path}, column 'y': its words of up to 1000 bytes would take 0.9 GiB")


def test_floats_that_are_labels(tmp_path):
    column = lambda values, kind=None: {"x": [1.0, 2.0], "y": pa.array(values, kind)}
    assert examples(parquet(tmp_path / "a", column([1.0, 3.0]))).classes == ("1", "3")
    large = examples(parquet(tmp_path / "b", column([1e300, 1e301])))
    assert [float(name) for name in large.classes] == [1e300, 1e301]
    assert examples(parquet(tmp_path / "c", column(np.array([1, 2], np.float16), pa.float16()))).classes == ("1", "2")


def test_words_of_a_parquet_file_are_read_as_numbers_with_a_dictionary_or_without(tmp_path):
    for words in (pa.array(["1", " 2.5"]), pa.array(["1", " 2.5"]).dictionary_encode()):
        found = examples(parquet(tmp_path / "a", {"x": words, "y": ["a", "b"]}))
        np.testing.assert_array_equal(found.columns["x"], [1, 2.5])
    path = parquet(tmp_path / "a", {"x": pa.array([[1], [2]]), "y": ["a", "b"]})
    assert told(examples, path).startswith(f"{path}, column 'x': holds list<")


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder with a model of two classes."""
    folder = tmp_path / "run"
    folder.mkdir()
    columns = (NumericColumn("x", 0.0, 1.0), CategoricalColumn("c", ("a", "b")))
    Model(Encoder(columns, "float32"), ("no", "yes"), LogisticParams(np.ones(3, np.float32), np.float32(0))).write(
        folder
    )
    (folder / "summary.json").write_text('{"kind": "fit"}')
    return folder


def test_a_model_is_read_as_it_was_written(run):
    model = read_model(run)
    np.testing.assert_array_equal(model.params.weights, np.ones(3, np.float32))
    assert model.params.bias == 0


@linux
@pytest.mark.parametrize("name", ["model.json", "params.safetensors"])
def test_no_link_leads_out_of_a_run_folder(run, name):
    elsewhere = run.parent / "elsewhere"
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    assert told(read_model, run) == f"{run / name}: is a link that leads out of the run folder"
    (run / name).unlink()
    elsewhere.rename(run / "inside")
    (run / name).symlink_to("inside")
    read_model(run)


@linux
@pytest.mark.parametrize("name", ["model.json", "params.safetensors"])
def test_a_model_that_is_a_pipe_or_has_no_end(run, name):
    path = run / name
    path.unlink()
    os.mkfifo(path)
    assert told(read_model, run) == f"{path}: {PIPE}"
    path.unlink()
    path.touch()
    os.truncate(path, 2**40)
    assert str(path) in told(read_model, run) or str(run) in told(read_model, run)


def test_parameters_of_another_kind_or_size_are_not_loaded(run):
    path = run / "params.safetensors"
    header = {
        "weights": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
        "bias": {"dtype": "BF16", "shape": [], "data_offsets": [6, 8]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert "must hold finite numbers of float32" in told(read_model, run)
    save_file({"weights": np.zeros((2**20, 3), np.float32), "bias": np.zeros((), np.float32)}, path)
    assert told(read_model, run) == f"{run}: params.safetensors and model.json are not of one model"
    save_file({"weights": np.zeros(3), "bias": np.zeros(())}, path)
    assert "must hold finite numbers of float32" in told(read_model, run)


def test_a_summary_that_is_deep(run):
    (run / "model.json").unlink()
    (run / "summary.json").write_text("[" * 100_000)
    assert told(read_model, run).startswith(f"{run / 'summary.json'}: cannot be read: ")


# -- where files may be written ----------------------------------------------------------------------------------------

OPENED: list[str] = []
WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}


def watch(event, arguments):
    if event == "open" or event in WRITING:
        OPENED.extend(os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike))


@pytest.fixture
def opened():
    """Every path that is opened, made, moved or removed."""
    if watch not in HOOKED:
        HOOKED.append(watch)
        sys.addaudithook(watch)
    OPENED.clear()
    return OPENED


HOOKED: list[object] = []


def test_what_names_in_files_say_is_no_path(tmp_path, monkeypatch, opened):
    """Columns, classes and categories called as paths out of the folder: a fit and its predictions touch none."""
    monkeypatch.chdir(tmp_path)
    evil = ["../../evil", "/evil", "evil/..", "..\\evil", "evil\0", "~/evil", "%2e%2e/evil"]
    rows = [{"../evil": i, "/tmp/evil": evil[i % 7], "y": ("../../../evil", "/etc/evil")[i % 3 > 1]} for i in range(42)]
    parquet(Path("data.parquet"), pa.Table.from_pylist(rows))
    Path("safe.toml").write_text(
        '[data]\npath = "data.parquet"\ntarget = "y"\ncategorical = ["/tmp/evil"]\n[model]\nl2 = 0.1\n'
    )
    assert main(["fit", "safe.toml"]) == 0
    assert main(["predict", "runs/safe", "data.parquet", "--out", "out.csv"]) == 0
    assert opened
    assert not [path for path in opened if "evil" in path]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "data.parquet", "safe.toml", "out.csv"}
    assert all(path.parent == tmp_path / "runs/safe" for path in (tmp_path / "runs/safe").rglob("*"))


def test_what_was_left_half_written_is_removed_and_no_link_is_followed(tmp_path):
    kept_folder = tmp_path / "precious"
    kept_folder.mkdir()
    (kept_folder / "file").write_text("precious")
    left = tmp_path / f"{run_folder._prefix('out').replace(f'-{os.getpid()}-', '-4194304999-')}abc"
    left.symlink_to(kept_folder)
    with run_folder.whole_folder(tmp_path / "out", force=False) as temporary:
        (temporary / "summary.json").write_text("{}")
    assert (kept_folder / "file").read_text() == "precious"


# -- text --------------------------------------------------------------------------------------------------------------


@linux
def test_names_of_files_need_be_no_text_and_what_is_too_much_is_not_read(tmp_path):
    (tmp_path / "a.py").write_text("the cat\n" * 20)
    (tmp_path / "b.py").write_text("the hat\n" * 20)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py")).write_text("the end\n" * 20)
    (tmp_path / "large.py").touch()
    os.truncate(tmp_path / "large.py", 2**40)
    os.mkfifo(tmp_path / "pipe.py")
    corpus = read_corpus(TextConfig(path=str(tmp_path), max_bytes=10_000), seed=0)
    assert len(corpus.train) + len(corpus.test) == 3
    assert corpus.left_out == 1


def test_a_piece_without_end_is_spelled_in_time():
    """Letters alone are one piece, however many: a text of them is no worse than another."""
    long = [b"a" * size for size in range(2, 400)] + [b"ab" * 10**5]
    tokenizer = Tokenizer.learn([b" ".join(long)] * 2, size=300)
    assert max(map(len, tokenizer.pieces)) <= 128
    text = b"a" * 10**5 + b"b" + b"ba" * 10**5
    assert tokenizer.decode(tokenizer.encode(text)) == text


# -- programs and tables of our own ------------------------------------------------------------------------------------


@linux
def test_a_program_that_another_could_have_put_there_is_not_run(tmp_path):
    import jax

    path = tmp_path / "program"
    kept.write_program(path, jax.jit(lambda x: x + 1).lower(1.0).compile())
    assert kept.read_program(path)(1.0) == 2
    (tmp_path / "link").symlink_to(path)
    assert kept.read_program(tmp_path / "link") is None
    os.link(path, tmp_path / "second name")
    assert kept.read_program(path) is None
    (tmp_path / "second name").unlink()
    path.chmod(0o620)
    assert kept.read_program(path) is None
    path.chmod(0o600)
    assert kept.read_program(path) is not None
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
        assert kept.read_program(path) is None
    os.mkfifo(tmp_path / "pipe")
    assert kept.read_program(tmp_path / "pipe") is None
    assert kept.read_program(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", "[{}]", "[" * 100_000, '[{"device": 1}]', "\xff", '[{"n": -1}]'],
)
def test_a_table_of_blocks_that_is_none(tmp_path, text):
    path = tmp_path / "blocks.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"blocks\.json: (is no table of blocks|entry 0 )"):
        measured.read(path)
    assert measured.read(measured.TABLE) == []


# -- the command line --------------------------------------------------------------------------------------------------


def test_too_little_memory_is_one_line(capsys, monkeypatch):
    def fails(*args):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(app, "read_run", fails)
    assert main(["fit", "a.toml"]) == 2
    assert capsys.readouterr().err == "xentjax: this takes more memory than there is: Unable to allocate 7 TiB\n"


def test_names_in_tables_are_shown_without_what_a_terminal_obeys(capsys):
    from xentjax.cli import report

    report.say("a\x1b[2Jb\nc")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[2Jb\nc\n"


def test_predictions_for_what_is_no_table(run, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert told(write_predictions, run, tmp_path / "empty", None) == f"{tmp_path / 'empty'}: is empty"
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"x": [1.0]}), file)
    (tmp_path / "cut").write_bytes(file.getvalue()[:-5])
    assert told(write_predictions, run, tmp_path / "cut", None).startswith(f"{tmp_path / 'cut'}: is not a Parquet file")
    assert load_file(run / "params.safetensors")["weights"].shape == (3,)
