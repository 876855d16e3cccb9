"""Checkpoints: the arrays of a pytree in a folder that orbax writes, with the SHA-256 of each of its files.

A checkpoint is a folder with ``arrays/``, which is orbax's, ``about.json``, and ``SHA256SUMS``, which is written last
and in the form of ``sha256sum``. It appears whole, by a renaming; what happens to its files later is found by the sums,
for which orbax has nothing. Nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.training.errors import UserError

Array = np.ndarray[Any, Any]

#: The file with the sums, and what is said of the checkpoint.
SUMS, ABOUT = "SHA256SUMS", "about.json"
_ARRAYS = "arrays"
#: Bytes that the small files of a checkpoint take, with blocks of 4 KiB each.
_BESIDE = 2**17


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by where they are in it: ``layers.0.gate``.

    Example:
      >>> sorted(named_leaves({"a": [1.0, 2.0], "b": 3.0}))
      ['a.0', 'a.1', 'b']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def write_checkpoint(folder: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Write the arrays of a pytree (of JAX or NumPy, random keys too) and what is to be said of them.

    The folder appears whole or not at all, in the place of one of its name.

    Raises:
      UserError: it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        # An array without elements, which orbax refuses, is known by its shape alone.
        arrays = {name: _plain(leaf) for name, leaf in named_leaves(tree).items() if np.size(leaf)}
        _require_room(temporary / "room", sum(array.nbytes for array in arrays.values()))
        with _orbax() as (orbax, checkpointer):
            checkpointer.save((temporary / _ARRAYS).absolute(), args=orbax.args.PyTreeSave(arrays))
        (temporary / ABOUT).write_text(json.dumps(about, sort_keys=True, indent=1) + "\n", encoding="utf-8")
        sums = "".join(f"{digest}  {name}\n" for name, digest in _sums(temporary).items())
        with (temporary / SUMS).open("w", encoding="utf-8") as file:
            file.write(sums)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (OSError, ValueError, RuntimeError) as error:  # orbax tells of a full disk by any of them
        raise UserError(f"{folder}: cannot be written: {_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None where they are those that were written."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        found = _sums(folder)
    except (OSError, UnicodeDecodeError) as error:
        return f"{SUMS} cannot be read: {_reason(error)}"
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if wanted.get(name) != found[name]:
            return f"{name} is not what was written"
    return None if {ABOUT} < wanted.keys() else f"{SUMS} is not what was written"


def read_about(folder: Path) -> Any:
    """What is said of the arrays of a checkpoint that is not damaged."""
    return json.loads((folder / ABOUT).read_bytes())


def read_checkpoint(folder: Path, like: Any) -> Any:
    """The pytree of a checkpoint that is not damaged, in the structure of ``like``.

    An array that is JAX's in ``like`` is so again, of that shape and placed as that is. One of NumPy's without elements
    stands for any.

    Raises:
      UserError: it has other arrays: another version of this package has written it.
    """
    wanted = named_leaves(like)
    with _orbax() as (orbax, checkpointer):
        try:
            stored = checkpointer.metadata((folder / _ARRAYS).absolute()).item_metadata
            names = set(stored.keys())
            how = {name: _how(orbax, leaf) if (leaf := wanted.get(name)) is not None else None for name in names}
            if names - wanted.keys() or any(np.size(wanted[name]) for name in wanted.keys() - names):
                raise ValueError("its arrays have other names")
            found = checkpointer.restore((folder / _ARRAYS).absolute(), args=orbax.args.PyTreeRestore(restore_args=how))
            leaves = [_alike(leaf, found.get(name)) for name, leaf in wanted.items()]
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"{folder}: is not a checkpoint of this run: {_reason(error)}") from error
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _require_room(path: Path, size: int) -> None:
    """OSError where there is no room for so many bytes of arrays and for what orbax says of them.

    Where orbax itself finds the disk full, its threads print that beside the error that it raises.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size + _BESIDE)
        path.unlink()


def _plain(leaf: Any) -> Any:
    """An array that orbax knows: of a random key its numbers."""
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.asarray(leaf, order="C")


def _how(orbax: Any, leaf: Any) -> Any:
    """How an array is read: onto the devices over which the one in its place is spread, or as NumPy's."""
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        return orbax.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)
    return orbax.RestoreArgs(restore_type=np.ndarray)


def _alike(like: Any, found: Any) -> Any:
    if found is None:
        return like
    if isinstance(like, jax.Array) and _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(like))
    if not like.size and isinstance(like, np.ndarray):
        return found
    if found.dtype != like.dtype or (isinstance(like, jax.Array) and found.shape != like.shape):
        raise ValueError(f"{found.dtype}{list(found.shape)} in the place of {like.dtype}{list(like.shape)}")
    return jnp.asarray(found) if isinstance(like, jax.Array) else found


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name below the folder, but for that with the sums."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != SUMS:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _reason(error: Exception) -> str:
    """The system's word for what went wrong, or the line of a long message that says it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for text in map(os.strerror, (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EDQUOT)):
        if text in str(error):
            return text
    return str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any]]:
    """Orbax, which takes a while to load, and what writes and reads with it, without its messages."""
    import orbax.checkpoint

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler()) as checkpointer:
            yield orbax.checkpoint, checkpointer
    finally:
        log.setLevel(level)
