"""Compiled programs that are kept for other processes: when they are taken from there, and when they must not be."""

import functools
import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xentjax as xj
from xentjax.solvers import kept
from xentjax.solvers.compiled import separate
from xentjax.solvers.kept import KeptProgram, described

TRACED = []


def function(kind, x, factor):
    """What is kept here; each trace of it is counted."""
    TRACED.append(kind)
    gram = x.T @ x + factor * jnp.eye(x.shape[1], dtype=x.dtype)
    return {"root": jnp.linalg.cholesky(gram), kind: gram * 2}


X = np.arange(12.0).reshape(6, 2)
ROOT = np.linalg.cholesky(X.T @ X + np.eye(2))


@pytest.fixture
def folder(tmp_path):
    """The folder of programs, with JAX's cache inside ``tmp_path``."""
    jax.jit(lambda: 0)()  # whether JAX itself uses a cache is settled here, once: it does not
    before = {name: jax.config.values[name] for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_enable_compilation_cache", True)
    TRACED.clear()
    yield tmp_path / "xentjax-programs"
    for name, value in before.items():
        jax.config.update(name, value)


def another_process(kind="double", x=X, factor=1.0):
    """The result in what has compiled nothing yet, and whether it was traced."""
    before = len(TRACED)
    fresh = functools.wraps(function)(lambda *args: function(*args))  # JAX remembers what it has traced by the object
    found = KeptProgram(fresh, (0,))(kind, x, factor)
    np.testing.assert_allclose(found["root"], np.linalg.cholesky(x.T @ x + factor * np.eye(2)), rtol=1e-5)
    return found, len(TRACED) > before


def test_the_second_process_traces_nothing_and_gets_the_same_numbers(folder):
    (first, traced), (second, again) = another_process(), another_process()
    assert traced
    assert not again
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert first["root"].dtype == second["root"].dtype == jnp.float32
    assert len(list(folder.iterdir())) == 1


def test_other_arguments_are_other_programs(folder):
    another_process()
    others = [
        {"kind": "other"},
        {"x": X[:5]},
        {"x": X.astype(np.float32)},  # the same to JAX, but not to us
        {"x": jnp.asarray(X)},
        {"factor": np.float32(1)},
    ]
    for arguments in others:
        assert another_process(**arguments)[1], arguments
        assert not another_process(**arguments)[1], arguments
    assert not another_process(factor=2.0)[1]  # a number is data
    with jax.enable_x64(True):
        found, traced = another_process()
        assert traced
        assert found["root"].dtype == jnp.float64
    with jax.default_matmul_precision("float32"):
        assert another_process()[1]


def test_another_version_or_machine_is_another_program(folder, monkeypatch):
    another_process()
    told = kept._machine()
    for i in range(len(told)):
        monkeypatch.setattr(kept, "_machine", lambda i=i: (*told[:i], "another", *told[i + 1 :]))
        assert another_process()[1]
    assert jax.__version__ in told
    assert kept._processor() in told


def test_sources_that_have_changed_since_they_were_loaded_are_not_what_runs(folder, monkeypatch):
    monkeypatch.setattr(kept, "_IMPORTED", 0.0)
    kept._machine.cache_clear()
    assert another_process()[1]
    assert another_process()[1]
    assert not list(folder.iterdir())
    monkeypatch.undo()
    kept._machine.cache_clear()


def damaged(content):
    """What a file may have become."""
    yield b""
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content[:100] + bytes([content[100] ^ 1]) + content[101:]
    yield b"something else altogether"
    for rest in (b"", b"no pickle", b"\x80\x04]\x94.", b"\x80\x04K\x01K\x02K\x03\x87\x94."):
        yield kept._MARK + kept.hashlib.sha256(rest).digest() + rest


def test_what_is_damaged_or_foreign_is_made_anew(folder):
    another_process()
    (path,) = folder.iterdir()
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        assert another_process()[1]
        assert not another_process()[1]
    assert list(folder.iterdir()) == [path]


def test_what_does_not_run_here_is_made_anew(folder, monkeypatch):
    another_process()

    def fails(*args):
        raise jax.errors.JaxRuntimeError("NOT_FOUND: Function fusion not found")

    with monkeypatch.context() as patch:
        patch.setattr(kept, "read_program", lambda path: fails)
        assert another_process()[1]
    assert not another_process()[1]


def test_processes_that_write_at_the_same_time(folder):
    threads = [threading.Thread(target=another_process) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(folder.iterdir())) == 1  # nothing half-written is left
    assert not another_process()[1]


def test_the_folder_is_bounded(folder, monkeypatch):
    another_process()
    (path,) = folder.iterdir()
    os.utime(path, (0, 0))
    monkeypatch.setattr(kept, "_MOST_BYTES", int(2.5 * path.stat().st_size))
    another_process("second")
    assert not another_process()[1]  # used: now the newer one
    os.utime(path, (2**33, 2**33))
    another_process("the third")
    assert path.exists()
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size there")
def test_a_full_disk_keeps_nothing_half_written(folder):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        assert another_process()[1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners there")
def test_a_folder_that_others_can_write_to_is_not_used(folder):
    folder.mkdir()
    folder.chmod(0o777)
    kept._private.cache_clear()
    assert another_process()[1]
    assert another_process()[1]
    assert not list(folder.iterdir())
    kept._private.cache_clear()


def test_a_folder_that_cannot_be_made(folder):
    folder.write_text("a file")
    kept._private.cache_clear()
    assert another_process()[1]
    assert another_process()[1]
    kept._private.cache_clear()


def test_nothing_is_kept_where_the_cache_is_off_or_each_operation_is_looked_at(folder):
    jax.config.update("jax_enable_compilation_cache", False)
    another_process()
    jax.config.update("jax_enable_compilation_cache", True)
    with jax.debug_nans(True):
        another_process()
    with jax.disable_jit(True):
        another_process(x=jnp.asarray(X))
    assert not folder.exists() or not list(folder.iterdir())


def test_what_is_traced_or_on_another_device_is_left_to_jit(folder):
    program = KeptProgram(function, (0,))
    many = jax.vmap(lambda x: program("double", x, 1.0)["root"])(jnp.stack([X, X]))
    np.testing.assert_allclose(many[1], ROOT, rtol=1e-5)
    far = program("double", jax.device_put(X, jax.devices()[1]), 1.0)["root"]
    assert far.devices() == {jax.devices()[1]}
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("rows",))
    rows = jax.device_put(X, jax.NamedSharding(mesh, jax.P("rows")))
    np.testing.assert_allclose(program("double", rows, 1.0)["root"], ROOT, rtol=1e-5)
    assert not folder.exists() or not list(folder.iterdir())


def test_static_arguments_in_words():
    twice = lambda factor: lambda x: x * factor
    told = [
        separate((xj.Newton(), 1.0))[0],
        separate((xj.NewtonCG(), 1.0))[0],
        separate((xj.LBFGS(), 1.0))[0],
        separate((xj.Newton(), None))[0],
        separate((xj.LogisticParams(1.0, 2.0), "text"))[0],
        separate((xj.Optax(optax.sgd(0.1)),))[0],
        separate((xj.Optax(optax.sgd(0.2)),))[0],
        separate((xj.Optax(optax.sgd(0.1, momentum=0.9)),))[0],
        (True, 1, 1.0, "1", None),
        ("1, 2",),
        ("1", "2"),
        float("nan"),
    ]
    words = [described(value) for value in told]
    assert len(set(words)) == len(words)
    assert words[5] == described(separate((xj.Optax(optax.sgd(0.1)),))[0])
    for value in (twice(2), object(), np.ones(2), jnp.ones(2), functools.partial(max, 1), type("Own", (), {})):
        with pytest.raises(ValueError):
            described((value,))


def test_arrays_are_copied_without_a_program():
    for values in (
        X,
        X[::2, ::-1],
        np.arange(3),
        np.zeros((0, 4)),
        np.array(2.5),
        np.ones(5, bool),
        np.float16([1, 2]),
    ):
        copy = xj.core.policy.copied(values)
        expected = jnp.asarray(values)
        assert copy.dtype == expected.dtype
        assert copy.weak_type == expected.weak_type
        np.testing.assert_array_equal(copy, expected)
    large = np.ones(10**5, np.float32)
    copy = xj.core.policy.copied(large)
    large[:] = 2
    assert np.all(np.asarray(copy) == 1)
    assert xj.core.policy.copied(0.5).weak_type
