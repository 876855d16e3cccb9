"""Language models from the command line: run folders, and runs that are stopped or killed and go on."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from words import write_words

from benchmarks import language_report
from benchmarks.report import RESULTS
from xentjax import plots
from xentjax.cli import main
from xentjax.training.config_file import read_run
from xentjax.training.language.baselines import Counts, entropies
from xentjax.training.language.network import LanguageParams, Layer, losses
from xentjax.training.language.tokenized import tokenize

ROOT = Path(__file__).parents[1]
FILES = ["config.toml", "loss.png", "metrics.jsonl", "params.safetensors", "summary.json", "summary.txt",
         "vocabulary.json"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture
def call(capsys, tmp_path, monkeypatch, request):
    """Runs ``xentjax fit`` on the words in an empty folder; gives status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    write_words(tmp_path)
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "draw_language", lambda made, folder: None)

    def run(*arguments, steps=12):
        capsys.readouterr()
        status = main(["fit", "words.toml", "--set", f"stop.max_steps={steps}", *arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def pictures():
    """Asked for by the tests that look at the pictures."""


def bits(folder):
    """What must be the same for the same run."""
    return [(Path(folder) / name).read_bytes() for name in ("params.safetensors", "metrics.jsonl", "vocabulary.json")]


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


def test_a_run_is_whole_and_its_numbers_are_right(call, pictures, capsys):
    status, out, err = call()
    assert (status, err) == (0, "")
    folder = Path("runs/words")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert [path.name for path in Path("runs").iterdir()] == ["words"]
    told = summary(folder)
    assert (told["kind"], told["status"], told["steps"]) == ("language", "completed", 12)
    table = (folder / "summary.txt").read_text()
    assert out.startswith(table)
    assert "completed: all steps are made." in out

    # The cross-entropy of the held-out text again, from what the folder says, in one window.
    text = tokenize(read_run(folder / "config.toml"))
    pieces = json.loads((folder / "vocabulary.json").read_text())["pieces"]
    assert tuple(piece.encode("latin-1") for piece in pieces) == text.tokenizer.pieces
    arrays = load_file(folder / "params.safetensors")
    layer = Layer(*(arrays[f"layers.0.{name}"] for name in Layer._fields))
    params = LanguageParams(arrays["embedding"], arrays["bias"], (layer,), arrays["projection"])
    window = np.concatenate([np.full(3, 256, np.int32), text.test.tokens])
    nats = float(np.sum(np.asarray(losses(params, window[None]), np.float64)))
    assert told["parameters"] == sum(array.size for array in arrays.values())
    costs = told["held_out"]["model"]
    size = sum(map(len, text.test.texts))
    np.testing.assert_allclose(costs["bits_per_byte"], nats / math.log(2) / size, rtol=1e-5)
    np.testing.assert_allclose(costs["bits_per_token"], nats / math.log(2) / (len(text.test.tokens) - 1), rtol=1e-5)

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(13))
    assert rows[-1]["held_out_nats_per_token"] < rows[1]["held_out_nats_per_token"]

    assert main(["predict", "runs/words", "words.toml"]) == 2
    assert "is a language model of text, but a fit to a table is needed to predict" in capsys.readouterr().err


def test_ctrl_c_keeps_what_the_same_command_goes_on_from(call, monkeypatch):
    assert call("--out", "runs/whole")[0] == 0
    interrupt_at(monkeypatch, 5)
    status, out, err = call()
    assert status == 130
    assert "Stopped early; xentjax fit --resume runs/words goes on from step 5." in out
    assert (summary("runs/words")["status"], summary("runs/words")["steps"]) == ("interrupted", 5)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["whole", "words", "words.checkpoint"]
    err = call(steps=13)[2]
    another = "is the state of a run with another config.stop.max_steps: delete it"
    assert err.startswith(f"xentjax: runs/words.checkpoint: {another}")
    status, _, err = call("--set", "checkpoint.every_seconds=100")
    assert (status, err) == (0, "xentjax: runs/words: goes on from step 5\n")
    assert bits("runs/words") == bits("runs/whole")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["whole", "words"]


def interrupt_at(monkeypatch, step):
    """A Ctrl-C where so many steps are made, once."""
    from xentjax.training.language import language_model

    follow = language_model.follow

    def interrupted(states, see, keep):
        def seen(state):
            if int(state.step) == step:
                monkeypatch.setattr(language_model, "follow", follow)
                os.kill(os.getpid(), signal.SIGINT)
            see(state)

        return follow(states, seen, keep)

    monkeypatch.setattr(language_model, "follow", interrupted)


def test_in_float64(call):
    assert call("--set", "precision=float64")[0] == 0
    assert {str(array.dtype) for array in load_file("runs/words/params.safetensors").values()} == {"float64"}


def test_a_text_that_is_not_there_leaves_no_folder(call):
    status, out, err = call("--set", "text.path=elsewhere")
    assert (status, out) == (2, "")
    assert err == f"xentjax: text.path: {Path('elsewhere').resolve()} is not a folder\n"
    assert not Path("runs").exists()


def test_the_readme_compares_with_what_is_counted():
    """What stands beside the model in the README, where this Python has the same standard library."""
    config = read_run(ROOT / "configs" / "bytes_lm.toml")
    text = tokenize(config)
    counts = Counts.of(text.train.tokens, text.tokenizer.size)
    compared = False
    for path in language_report.result_files(RESULTS):
        told = json.loads(path.read_text())
        assert (told["steps"], told["vocabulary"]) == (config.stop.max_steps, config.vocabulary.size)
        assert told["held_out"]["model"]["bits_per_byte"] < told["held_out"]["bigram"]["bits_per_byte"]
        if told["digest"] == text.digest:
            compared = True
            for name, nats in {"unigram": counts.unigram_nats, "bigram": counts.bigram_nats}.items():
                bits = text.test.bits_per_byte(nats(text.test.tokens))
                assert told["held_out"][name]["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
            own = told["entropies_of_training_text"]
            assert [own[name]["bits_per_token"] for name in own] == pytest.approx(entropies(text.train.tokens))
    if not compared:
        pytest.skip("the results are of another Python's standard library")
