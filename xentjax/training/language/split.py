"""A language model over the devices of a mesh: windows along one axis, the vocabulary along the other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xentjax.models.spread import ROWS
from xentjax.training.devices import VOCABULARY

if TYPE_CHECKING:
    from xentjax.training.language.network import LanguageParams


@dataclass(frozen=True)
class Split:
    """What is split over which axis of a mesh; without a mesh everything is left where it is."""

    mesh: Mesh | None = None

    def params(self, params: LanguageParams) -> LanguageParams:
        """Parameters with the embedding and the head split by tokens; those of the layers are on every device."""
        if self.mesh is None:
            return params
        of_layers = params._replace(embedding=None, bias=None)
        placed = jax.tree.map(lambda leaf: self._placed(leaf, PartitionSpec()), of_layers)
        by_tokens = PartitionSpec(VOCABULARY)
        embedding, bias = (self._placed(leaf, by_tokens) for leaf in (params.embedding, params.bias))
        return placed._replace(embedding=embedding, bias=bias)

    def windows(self, windows: Any) -> Any:
        """Windows ``[B, T]`` in a program, split along their first axis."""
        return windows if self.mesh is None else self._placed(windows, PartitionSpec(ROWS))

    @property
    def head(self) -> dict[str, Any]:
        """Options of :func:`linear_cross_entropy`."""
        return {} if self.mesh is None or self.mesh.shape[VOCABULARY] == 1 else {"axis_name": VOCABULARY}

    def set(self) -> Any:
        """A context in which the mesh is set, as the head's loss needs it."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _placed(self, leaf: Any, spec: PartitionSpec) -> Any:
        assert self.mesh is not None
        sharding = NamedSharding(self.mesh, spec)
        if isinstance(leaf, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(leaf, sharding)
        return jax.device_put(leaf, sharding)


#: No mesh.
ON_ONE_DEVICE = Split()
