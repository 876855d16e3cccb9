"""Checkpoints and what is beside them: the same bits back, damage found, and one process at a time."""

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xentjax.training import checkpoint, lock, run_state
from xentjax.training.checkpoint import damage, read_about, read_checkpoint, write_checkpoint
from xentjax.training.config import FitConfig
from xentjax.training.config_file import read_config, validate
from xentjax.training.errors import UserError
from xentjax.training.run_state import RunState, config_to_resume, state_of

STATE = {"w": jnp.arange(6.0).reshape(2, 3), "step": np.asarray(3)}


def told(function, *arguments):
    """The message of the mistake that a call ends with."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# -- one checkpoint ----------------------------------------------------------------------------------------------------


def test_every_bit_comes_back(tmp_path):
    params = {"weights": jnp.asarray([1e-45, -0.0, jnp.nan, jnp.inf], jnp.float32), "bias": jnp.zeros((), jnp.bfloat16)}
    tree = {
        "params": params,
        "optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(1, 0, 9))).init(
            params
        ),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "minus zero": np.full(5, -0.0),
        "history": np.arange(7.0),
        "none": (np.zeros((0, 3), np.float16), jnp.zeros((2, 0)), None),
        "flags": np.asarray([True, False]),
        "scalar": np.asarray(2**40),
    }
    write_checkpoint(tmp_path / "7", tree, {"step": 7})
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    assert damage(tmp_path / "7") is None
    assert read_about(tmp_path / "7") == {"step": 7}
    like = tree | {"history": np.zeros(0)}
    found = read_checkpoint(tmp_path / "7", like)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)
        if isinstance(one, jax.Array):
            assert one.sharding == other.sharding
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_arrays_come_back_onto_the_devices_that_they_are_spread_over(tmp_path):
    mesh = jax.make_mesh((4, 2), ("data", "vocab"))
    spread = jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, PartitionSpec("data", "vocab")))
    write_checkpoint(tmp_path / "0", {"x": spread}, {})
    found = read_checkpoint(tmp_path / "0", {"x": jax.device_put(jnp.zeros((8, 8)), spread.sharding)})["x"]
    assert found.sharding == spread.sharding
    np.testing.assert_array_equal(found, spread)


def test_each_file_is_watched(tmp_path):
    folder = tmp_path / "0"
    write_checkpoint(folder, STATE, {"step": 0})
    generator = random.Random(0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        path.unlink()
        assert name in damage(folder)
        for change in (content[: len(content) // 2], content + b"\0", _flipped(content, generator)):
            path.write_bytes(change)
            assert damage(folder) is not None, name
        path.write_bytes(content)
        assert damage(folder) is None
    (folder / "arrays" / "more").write_bytes(b"x")
    assert damage(folder) == "arrays/more is not what was written"
    (folder / "SHA256SUMS").write_text("")
    assert damage(folder) is not None
    shutil.rmtree(folder)
    assert damage(folder) == "SHA256SUMS cannot be read: No such file or directory"


def _flipped(content, generator):
    changed = bytearray(content)
    changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def test_arrays_of_another_run_are_refused(tmp_path):
    write_checkpoint(tmp_path / "0", STATE, {})
    for like in (STATE | {"more": np.ones(2)}, {"w": STATE["w"]}, STATE | {"w": jnp.zeros((2, 2))}):
        assert "0: is not a checkpoint of this run" in told(read_checkpoint, tmp_path / "0", like)
    assert "float16" in told(read_checkpoint, tmp_path / "0", STATE | {"w": jnp.zeros((2, 3), jnp.float16)})


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE: x; No space left on device")]
)
def test_what_cannot_be_written_leaves_what_there_was(tmp_path, monkeypatch, error):
    write_checkpoint(tmp_path / "0", STATE, {})
    before = everything(tmp_path)

    def full(folder):
        raise error

    monkeypatch.setattr(checkpoint, "_sums", full)
    for name in ("0", "1"):
        message = f"{tmp_path / name}: cannot be written: No space left on device"
        assert told(write_checkpoint, tmp_path / name, STATE, {}) == message
        assert everything(tmp_path) == before


# -- the state of a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def begin(tmp_path):
    """A function that begins a run in an empty folder with these keys of ``[checkpoint]``."""

    def run(say=lambda text: None, **keys):
        raw = {"name": "x", "data": {"source": "iris"}, "solver": {"name": "gradient_descent"}, "checkpoint": keys}
        return RunState(tmp_path / "runs" / "x", validate(raw, FitConfig, "x"), say)

    return run


def states(state, *steps):
    for step in steps:
        state.see(step, lambda step=step: STATE | {"step": np.asarray(step)})


WHAT = {"config": {"seed": 0, "stop": {"tol": 1.0}}, "data": "abc"}


def test_the_last_ones_are_kept_and_the_last_is_restored(begin, tmp_path):
    said = []
    state = begin(every_steps=10, every_seconds=1000, keep=3)
    assert state.restored(lambda: WHAT, STATE) is None
    states(state, 0, 5, 9, 12, 19, 25, 30, 31, 49)
    assert state.steps() == [25, 30, 49]
    state.see(49, lambda: STATE, stopped=True)  # it is there already
    state.see(51, lambda: STATE | {"step": np.asarray(51)}, stopped=True)
    assert state.steps() == [30, 49, 51]
    state.close()
    assert sorted(path.name for path in state.path.iterdir()) == ["30", "49", "51", "config.toml", "latest"]
    assert read_config(config_to_resume(state.run)).checkpoint.keep == 3
    again = begin(said.append)
    assert int(again.restored(lambda: WHAT, STATE)["step"]) == 51
    assert said == [f"{state.run}: goes on from step 51"]
    again.remove()
    again.close()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_by_seconds(begin, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_state.time, "monotonic", lambda: clock[0])
    state = begin()
    state.restored(lambda: WHAT, STATE)
    for seconds, steps in ((29, []), (1, [2]), (29, [2]), (1.5, [2, 4])):
        clock[0] += seconds
        states(state, (state.steps() or [0])[-1] + (2 if steps != state.steps() else 1))
        assert state.steps() == steps


def test_the_one_before_is_taken(begin):
    said = []
    state = begin(every_steps=1, keep=3)
    state.restored(lambda: WHAT, STATE)
    states(state, 1, 2, 3)
    state.close()
    (state.path / "3" / "arrays" / "_METADATA").write_bytes(b"")
    again = begin(said.append, every_steps=1, keep=3)
    assert int(again.restored(lambda: WHAT, STATE)["step"]) == 2
    damaged = "the checkpoint is damaged (arrays/_METADATA is not what was written): looking for one before it"
    assert said == [f"{state.path / '3'}: {damaged}", f"{state.run}: goes on from step 2"]
    states(again, 3)  # in the place of the damaged one
    again.close()
    shutil.rmtree(state.path / "3")
    said.clear()
    again = begin(said.append)
    assert int(again.restored(lambda: WHAT, STATE)["step"]) == 2
    assert said[0] == f"{state.path / '3'}: the last checkpoint is missing: looking for one before it"
    again.close()
    for step in (1, 2):
        (state.path / str(step) / "about.json").write_text("{}")
    again = begin()
    before = everything(state.path)
    message = f"{state.path}: none of the checkpoints is whole: delete it to start anew"
    assert told(again.restored, lambda: WHAT, STATE) == message
    assert everything(state.path) == before
    again.close()


def test_what_a_killed_process_has_left_is_cleared(begin):
    state = begin(every_steps=1)
    state.restored(lambda: WHAT, STATE)
    states(state, 1)
    (state.path / ".2" / "arrays").mkdir(parents=True)
    (state.path / ".latest").write_text("2")
    os.close(state._lock._file)  # as the system does for a process that is no more
    again = begin()
    assert sorted(path.name for path in again.path.iterdir()) == ["1", "config.toml", "latest", "lock"]
    again.close()


def test_another_run_is_refused(begin):
    state = begin(every_steps=1)
    state.restored(lambda: WHAT, STATE)
    states(state, 1)
    state.close()
    for other, key in (
        (WHAT | {"data": "abd"}, "data"),
        (WHAT | {"config": {"seed": 0, "stop": {"tol": 2.0}}}, "config.stop.tol"),
        (WHAT | {"device": "gpu"}, "device"),
    ):
        again = begin()
        message = told(again.restored, lambda other=other: other, STATE)
        again.close()
        anew = "delete it to start anew, or choose another --out"
        assert message == f"{state.path}: is the state of a run with another {key}: {anew}"
    again = begin()
    assert again.restored(lambda: dict(reversed(WHAT.items())), STATE) is not None
    again.close()


def test_one_process_at_a_time(begin, monkeypatch):
    state = begin(every_steps=1)
    assert json.loads((state.path / "lock").read_text())["process"] == os.getpid()
    before = everything(state.path)
    message = told(begin)
    assert message.startswith(f"{state.run}: process {os.getpid()} of ")
    assert message.endswith(": wait for its end, or choose another --out")
    assert everything(state.path) == before
    (state.path / "lock").write_text("{")
    assert "another process works on it" in told(begin)
    state.close()
    assert not state.path.exists()
    begin().close()
    monkeypatch.setattr(lock, "fcntl", None)
    said = []
    begin(said.append).close()
    assert said == [f"{state.path}: cannot be locked here: take care that no other process works on {state.run}"]
    assert not state.path.exists()


def test_a_state_that_is_removed_while_the_run_goes_on(begin):
    state = begin(every_steps=1)
    state.restored(lambda: WHAT, STATE)
    states(state, 1)
    shutil.rmtree(state.path)
    assert "was removed while the run went on" in told(states, state, 2)
    other = begin(every_steps=1)
    assert "was removed while the run went on" in told(states, state, 3)
    state.close()
    assert other._lock.is_held
    assert not other._lock.is_lost
    other.close()


def test_what_there_is_to_go_on_with(begin, tmp_path):
    run = tmp_path / "runs" / "x"
    assert told(config_to_resume, run) == f"{run}: there is no such run, and no x.checkpoint beside it"
    state = begin(every_steps=1)
    assert config_to_resume(run) == state.path / "config.toml"
    run.mkdir()
    (run / "summary.json").write_text('{"status": "converged"}')
    state.finish(run)
    os.close(state._lock._file)  # killed at the very end
    assert told(config_to_resume, run) == f"{run}: is complete (converged): there is nothing to go on with"
    assert not state_of(run).exists()
    assert told(config_to_resume, run) == f"{run}: is complete (converged): there is nothing to go on with"
    (run / "summary.json").write_text('{"status": "interrupted"}')
    assert "was stopped, but has no checkpoint" in told(config_to_resume, run)
    state_of(run).mkdir()
    assert "has no config.toml: start the run by its config" in told(config_to_resume, run)


def test_the_names_of_a_state_are_those_of_its_fields():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Inner:
        mean: float

    assert list(checkpoint.named_leaves({"a": [1, Inner(2.0)], "b": (3,)})) == ["a.0", "a.1.mean", "b.0"]


def test_nothing_is_pickled(tmp_path):
    write_checkpoint(tmp_path / "0", STATE, {})
    assert not any(b"\x80\x04" in path.read_bytes()[:2] for path in Path(tmp_path).rglob("*") if path.is_file())
    assert "pickle" not in Path(checkpoint.__file__).read_text().replace("is pickled", "")
