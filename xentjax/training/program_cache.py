"""Compiled programs kept from one process to the next, in the user's cache folder."""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from typing import Any

import jax

from xentjax.solvers.kept import make_room

#: Programs that take less than this many seconds to compile are not worth a file.
_WORTH_KEEPING = 0.05


@functools.cache
def keep_programs() -> pathlib.Path | None:
    """From now on JAX keeps what it compiles, in a folder of this package; where, or None if nothing is kept by this.

    So does this package (:func:`xentjax.solvers.kept.kept`): its programs are neither traced nor compiled again. Of
    files that were not used for long no more than 256 MiB are left for each.

    Where the user has said which folder JAX uses (``JAX_COMPILATION_CACHE_DIR`` or ``jax_compilation_cache_dir``), or
    that it keeps nothing (``JAX_ENABLE_COMPILATION_CACHE=0``), it stays so.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return None
    folder = _cache_folder() / "xentjax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # what is in it is run
        make_room(folder)
    except OSError:  # a home that cannot be written to: nothing is kept, and nothing else is different
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
    return folder


def _cache_folder() -> pathlib.Path:
    """Where the system keeps what can be made again."""
    home = pathlib.Path.home()
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
