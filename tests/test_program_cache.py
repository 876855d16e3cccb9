"""Programs that are kept from one process to the next."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax
import numpy as np
from xentjax.sklearn import LogisticRegression
{before}
x = np.random.default_rng(0).standard_normal((40, 2))
LogisticRegression().fit(x, x[:, 0] > 0)
print(jax.config.jax_compilation_cache_dir)
"""


def run(tmp_path, before="", **settings):
    names = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {n: v for n, v in os.environ.items() if n not in names}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")} | settings
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # quick to compile
    command = [sys.executable, "-c", CODE.format(before=before)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the folder has another name there")
def test_an_estimator_keeps_its_programs_in_the_users_cache(tmp_path):
    folder = tmp_path / "cache" / "xentjax"
    kept = lambda: {path.name for path in folder.iterdir() if path.name.endswith("-cache")}
    assert run(tmp_path) == str(folder)
    first = kept()
    assert any("_solved" in name for name in first)
    run(tmp_path)
    assert kept() == first


def test_what_the_user_has_said_stays(tmp_path):
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false") == "None"
    own = str(tmp_path / "own")
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=own) == own
    (tmp_path / "file").write_text("")
    assert run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "file")) == "None"
