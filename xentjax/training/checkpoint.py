"""Checkpoints: the state of a run in a file beside its folder, for a run that is killed to go on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Checkpoint:
    """The file with the state of one run, a pytree of arrays."""

    path: Path
    identity: Mapping[str, Any]
    """What the run is made from, in words and numbers: config, data, versions. To another run the state is refused."""

    def save(self, state: Any) -> None:
        """Write the state; the file changes at once, or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as temporary:
            save_file(named_leaves(state), temporary, metadata=self._metadata())

    def load(self, like: Any) -> Any:
        """The state that was saved, in the structure of ``like``; None where there is no such file.

        Raises:
          UserError: the file is of a run with another identity, or damaged.
        """
        if not self.path.exists():
            return None
        start_anew = "delete it to start anew, or choose another --out"
        try:
            with safe_open(self.path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}): {start_anew}") from error
        for key, value in self._metadata().items():
            if metadata.get(key) != value:
                raise UserError(f"{self.path}: is the checkpoint of a run with another {key}: {start_anew}")
        wanted = named_leaves(like)
        kinds = lambda leaves: {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        if kinds(arrays) != kinds(wanted):
            raise UserError(f"{self.path}: is damaged: {start_anew}")
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])

    def _metadata(self) -> dict[str, str]:
        return {key: json.dumps(value, sort_keys=True) for key, value in self.identity.items()}
