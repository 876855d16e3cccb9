"""Threads that compute at once get the numbers that each gets alone, bit for bit; their caches stay whole."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj
from xentjax.core.check import check_records
from xentjax.sklearn import LogisticRegression
from xentjax.solvers import room

pytestmark = pytest.mark.usefixtures("compiled_fast")

ROOT = Path(__file__).parents[1]
THREADS = 8
#: No run takes as long: a thread that is not done by then waits for another one that waits for it.
SECONDS = 280


def data(seed, n=40, d=3, classes=2):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = np.argmax(x[:, :1] * np.arange(classes) + rng.gumbel(size=(n, classes)), axis=1)
    y[:classes] = np.arange(classes)
    return x, y


def fitted(seed):
    x, y = data(seed, classes=2 + seed % 2)
    fit = xj.fit_logistic(x, y, l2=0.1)
    return fit.params, fit.covariance, fit.objective, fit.status.code


def fitted_many(seed):
    x, y = data(seed)
    weights = np.random.default_rng(seed).integers(1, 4, (3, len(y)))
    many = xj.fit_many(x, y, weights=weights, l2=0.1)
    return many.params, many.objective


def fused(seed):
    rng = np.random.default_rng(seed)
    x, w = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, 5), (5, 600)))
    labels = jnp.asarray(rng.integers(0, 600, 8))
    loss = lambda x, w: xj.linear_cross_entropy(x, w, labels, label_smoothing=0.1, reduction="mean")
    return jax.value_and_grad(loss, (0, 1))(x, w)


def losses(seed):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.standard_normal((6, 4)))
    labels = jnp.asarray(rng.integers(0, 4, 6))
    loss = lambda z: jnp.sum(xj.softmax_cross_entropy(z, labels, z_loss=1e-3))
    return jax.value_and_grad(loss)(logits), xj.entropy_from_logits(logits)


def checked(seed):
    z = jnp.asarray(np.random.default_rng(seed).standard_normal(3))
    report = xj.check_gradient(lambda z: jnp.sum(xj.entropy_from_logits(z)), z)
    wrong = xj.check_gradient(lambda z: jnp.sum(jnp.sin(z)), z, gradient=lambda z: -jnp.cos(z))
    return report.passed, report.max_ulp, wrong.passed


def estimated(seed):
    x, y = data(seed)
    model = LogisticRegression(C=10.0).fit(x, np.where(y, "yes", "no"))
    return model.coef_, model.intercept_, model.predict_proba(x)


JOBS = (fitted, fitted_many, fused, losses, checked, estimated)


def everything(seed):
    """What a thread computes: four jobs, of data of its own and in an order of its own, every other one in float64.

    Two threads and more come to each program before it is compiled.
    """
    found = {}
    with jax.enable_x64(seed % 2 == 1):
        for i in range(4):
            job = JOBS[(seed + i) % len(JOBS)]
            found[job.__name__] = jax.tree.map(np.asarray, job(seed))
    return found


def in_threads(jobs):
    """The results of functions that start at the same moment."""
    results, start = [None] * len(jobs), threading.Barrier(len(jobs))

    def work(i):
        start.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
        assert not thread.is_alive(), "a thread hangs"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


def test_numbers_are_those_of_each_thread_alone_bit_for_bit():
    """Where nothing is compiled yet, and where all is."""
    jax.clear_caches()
    together = in_threads([lambda seed=seed: everything(seed) for seed in range(THREADS)])
    again = in_threads([lambda seed=seed: everything(seed) for seed in range(THREADS)])
    for seed in range(THREADS):
        alone = everything(seed)
        assert_same(together[seed], alone)
        assert_same(again[seed], alone)
        if "checked" in alone:
            assert alone["checked"][0]
            assert not alone["checked"][2]
        if "fitted" in alone:
            assert alone["fitted"][0].weights.dtype == (np.float64 if seed % 2 else np.float32)


def test_a_check_changes_nothing_that_other_threads_see():
    """Neither the filters of warnings nor the digits of mpmath, which are of the whole process."""
    import mpmath

    before, digits = list(warnings.filters), mpmath.mp.dps
    seen = in_threads([lambda: checked(1), lambda: checked(2), lambda: warnings.filters == before])
    assert seen[2]
    assert warnings.filters == before
    tables = in_threads([lambda: check_records(only="logistic"), lambda: check_records(only="binary_entropy")])
    assert all(table.passed for table in tables)
    assert mpmath.mp.dps == digits


def test_programs_may_be_forgotten_while_other_threads_run_them(monkeypatch):
    monkeypatch.setattr(room, "most_mappings", lambda: 0)
    monkeypatch.setattr(room, "_FEWEST", 1)
    for seed, found in enumerate(
        in_threads([lambda seed=seed: jax.tree.map(np.asarray, fitted(seed)) for seed in (0, 1, 0, 1)])
    ):
        assert_same(found, jax.tree.map(np.asarray, fitted(seed % 2)))


CODE = """
import sys
import jax, numpy as np
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_disable_most_optimizations", True)
import xentjax as xj
rng = np.random.default_rng(0)
x, y = rng.standard_normal((50, 3)), rng.integers(0, 2, 50)
print(xj.fit_logistic(x, y, l2=0.1).params.weights.tobytes().hex())
"""


def test_processes_that_write_one_entry_of_the_cache_at_once(tmp_path):
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    start = lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    found = set()
    for _ in range(2):  # writing, then reading
        processes = [start(), start()]
        found |= {process.communicate(timeout=SECONDS)[0] for process in processes}
        assert all(process.returncode == 0 for process in processes)
    assert len(found) == 1
    names = [path.name for path in (tmp_path / "xentjax-programs").iterdir()]
    assert names
    assert not [name for name in names if name.startswith("tmp")], "a file was left half-written"
