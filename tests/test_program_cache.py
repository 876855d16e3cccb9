"""Programs that are kept from one process to the next."""

import os
import subprocess
import sys

import pytest

linux = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the folder has another name there")

CODE = """
import collections
import jax
import numpy as np
import xentjax as xj
from xentjax.sklearn import LogisticRegression
events = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.update([name.rsplit("/", 1)[1]]))
{before}
rng = np.random.default_rng(0)
x = rng.standard_normal((40, 2))
model = LogisticRegression().fit(x, x[:, 0] + rng.standard_normal(40) > 0)
print(jax.config.jax_compilation_cache_dir)
{after}
print(model.coef_.tobytes().hex(), model.result_.status)
print(*(events[name + "_duration"] for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")))
"""

#: Beside the estimator: fits of two and of three classes, with all that has a program of its own.
MORE = """
y = np.arange(40) % 3
weighted = {"class_weight": "balanced", "weights": np.ones(40)}
for options in ({}, {"l2": 0.1, "solver": "newton-cg"}, {"l1": 0.1}, weighted):
    print(xj.fit_logistic(x, y, **options).params.weights)
separated = xj.fit_logistic(np.column_stack([x, x[:, 0] > 0]), x[:, 0] > 0)
print(separated.status, separated.direction.weights)
"""


def environment(tmp_path, **settings):
    names = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    found = {n: v for n, v in os.environ.items() if n not in names}
    found |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")} | settings
    return found | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # quick to compile


def start(tmp_path, before="", after="", **settings):
    command = [sys.executable, "-c", CODE.format(before=before, after=after)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(tmp_path, **settings), stdout=pipe, stderr=pipe, text=True)


def told(process):
    """What a process printed, in lines."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out.splitlines()


def run(tmp_path, **options):
    return told(start(tmp_path, **options))


NOTHING_COMPILED = "0 0 0"


@linux
def test_the_second_process_traces_and_compiles_nothing(tmp_path):
    folder = tmp_path / "cache" / "xentjax"
    kept = lambda: {path.name for path in (folder / "xentjax-programs").iterdir()}
    first = run(tmp_path, after=MORE)
    assert first[0] == str(folder)
    files = kept()
    assert {name.split("-")[0] for name in files} == {"solved", "explained", "with_covariances"}
    second = run(tmp_path, after=MORE)
    assert second[:-1] == first[:-1]
    assert second[-1] == NOTHING_COMPILED != first[-1]
    assert kept() == files


@linux
def test_other_sizes_in_the_same_bucket_and_processes_at_the_same_time(tmp_path):
    first, another = [told(process) for process in (start(tmp_path), start(tmp_path))]
    second = run(tmp_path)
    assert second[-1] == NOTHING_COMPILED
    assert second[1] == first[1] == another[1]
    assert run(tmp_path, after="LogisticRegression().fit(x[:35], x[:35, 0] > 0.1)")[-1] == NOTHING_COMPILED


def test_what_the_user_has_said_stays(tmp_path):
    off = run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert off[0] == "None"
    assert off[-1] != NOTHING_COMPILED
    assert not list(tmp_path.rglob("*solved*"))
    own = tmp_path / "own"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))[0] == str(own)
    assert list((own / "xentjax-programs").iterdir())
    (tmp_path / "file").write_text("")
    assert run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file"))[0] == "None"
