"""Checkpoints: the state of a run in a file beside its folder, for a run that is killed to go on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xentjax.training.errors import UserError
from xentjax.training.run_folder import whole_file

Array = np.ndarray[Any, Any]


def checkpoint_of(folder: Path) -> Path:
    """Where the checkpoint of a run is, which will write this folder."""
    return folder.with_name(f"{folder.name}.checkpoint")


def named_leaves(tree: Any) -> dict[str, Array]:
    """The arrays of a pytree by where they are in it: ``layers.0.gate``.

    Example:
      >>> sorted(named_leaves({"a": [1.0, 2.0], "b": 3.0}))
      ['a.0', 'a.1', 'b']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {name(path): np.asarray(leaf, order="C") for path, leaf in leaves}


def save_checkpoint(path: Path, state: Any, identity: Mapping[str, Any]) -> None:
    """Write a pytree of arrays; the file changes at once, or not at all.

    Args:
      identity: what the run is made from: config, data, versions, in words or numbers. To another run the state is
        refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in identity.items()}
    with whole_file(path) as temporary:
        save_file(named_leaves(state), temporary, metadata=metadata)


def load_checkpoint(path: Path, like: Any, identity: Mapping[str, Any]) -> Any:
    """The state that was saved, in the structure of ``like``; None where there is no such file.

    Raises:
      UserError: the file is of a run with another identity, or damaged.
    """
    if not path.exists():
        return None
    start_anew = "delete it to start anew, or choose another --out"
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            for key, value in identity.items():
                if metadata.get(key) != json.dumps(value, sort_keys=True):
                    raise UserError(f"{path}: is the checkpoint of a run with another {key}: {start_anew}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}): {start_anew}") from error
    wanted = named_leaves(like)
    kinds = lambda leaves: {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    if kinds(arrays) != kinds(wanted):
        raise UserError(f"{path}: is damaged: {start_anew}")
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
