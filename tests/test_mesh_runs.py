"""Configs with a mesh, from the command line: the numbers of one device."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file
from words import write_words

from xentjax import plots
from xentjax.cli import main

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Fits a config with keys set; gives the parameters and the summary of its run folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("draw_run", "draw_grid", "draw_regression", "draw_language"):
        monkeypatch.setattr(plots, name, lambda made, folder: None)

    def fitted(config, *keys):
        out = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        settings = [part for key in ("precision=float64", *keys) for part in ("--set", key)]
        assert main(["fit", str(config), "--out", str(out), *settings]) == 0, capsys.readouterr().err
        return load_file(out / "params.safetensors"), json.loads((out / "summary.json").read_text())

    return fitted


def assert_same(one, many):
    for name, values in one[0].items():
        np.testing.assert_allclose(many[0][name], values, rtol=1e-9, atol=1e-9 * np.max(np.abs(values)))
    for key in ("status", "steps", "train", "test"):
        assert str(many[1].get(key)) == str(one[1].get(key)) or key in ("train", "test")


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ("digits.toml", ["stop.max_steps=50"]),
        ("csv.toml", ["stop.max_steps=2000"]),
        ("breast_cancer.toml", []),
        ("path.toml", ["stop.tol=1e-12"]),
        ("many.toml", ["stop.max_steps=20", "many.step_sizes=[0.1, 0.3, 1.0]", "many.seeds=[0, 1]"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_is_that_of_one_device(run, config, keys):
    assert_same(run(CONFIGS / config, *keys), run(CONFIGS / config, *keys, "mesh.data=2", "mesh.vocab=2"))


@pytest.mark.parametrize("mesh", [(2, 3), (4, 1), (1, 3)], ids=str)
def test_a_language_model_is_that_of_one_device(run, tmp_path, mesh):
    """Many of its tokens are predicted with certainty at the end, which takes branches that others do not take."""
    write_words(tmp_path)
    one = run("words.toml", "stop.max_steps=12")
    assert_same(one, run("words.toml", "stop.max_steps=12", f"mesh.data={mesh[0]}", f"mesh.vocab={mesh[1]}"))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("mesh.vocab=2", "mesh.vocab = 2 needs a vocabulary.size that it divides, got 261"),
        ("mesh.data=3", "mesh.data = 3 needs a batches.size that it divides"),
        ("mesh.data=64", "mesh: data = 64 and vocab = 1 need 64 devices, but there are 8 (cpu)"),
        ("mesh.rows=2", "mesh.rows"),
    ],
)
def test_a_mesh_that_cannot_be_is_an_error_in_one_line(tmp_path, monkeypatch, capsys, key, message):
    monkeypatch.chdir(tmp_path)
    write_words(tmp_path)
    batches = ["--set", "batches.size=64"] if key == "mesh.data=64" else []
    assert main(["fit", "words.toml", "--set", key, *batches]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
