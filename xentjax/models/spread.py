"""Rows spread over the devices of a mesh: each device sums over its own, and the sums are added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

#: The axis of a mesh that rows are split over.
ROWS = "data"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Spread:
    """A mesh along whose axis ``data`` rows are split into equal parts; along its other axes they are repeated.

    Args:
      mesh: its axes are the compiler's (``AxisType.Auto``).
    """

    mesh: Mesh

    @classmethod
    def over(cls, function: str, mesh: Any) -> Spread:
        """That of a user's mesh, whatever the types of its axes.

        Raises:
          TypeError: it is no mesh.
          ValueError: no axis of it is named ``data``.
        """
        mesh = automatic(function, mesh)
        if ROWS not in mesh.axis_names:
            raise ValueError(
                f"{function}: mesh has the axes {tuple(mesh.axis_names)}, but rows are split over one named {ROWS!r}: "
                f"jax.make_mesh(({mesh.size},), ({ROWS!r},))"
            )
        return cls(mesh)

    @property
    def parts(self) -> int:
        """How many parts the rows are split into."""
        return self.mesh.shape[ROWS]

    @property
    def by_rows(self) -> NamedSharding:
        """The sharding of arrays whose first axis is that of the rows."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    @property
    def repeated(self) -> NamedSharding:
        """The sharding of what every device has."""
        return NamedSharding(self.mesh, PartitionSpec())

    def equal_parts(self, n: int) -> int:
        """How many rows each part has of n rows, or of n that this process has, once it is filled up."""
        return max(int(self.largest_of_all([-(-n // self.own_parts)])[0]), 1)

    def count(self, n: int) -> int:
        """The number of rows of all processes, where this one has n."""
        return n if jax.process_count() == 1 else int(np.sum(multihost_utils.process_allgather(np.asarray(n))))

    def largest_of_all(self, numbers: Any) -> Any:
        """The largest of each number over the processes."""
        numbers = np.asarray(numbers)
        return numbers if jax.process_count() == 1 else np.max(multihost_utils.process_allgather(numbers), axis=0)

    def placed(self, rows: Any, each: int) -> jax.Array:
        """An array over the devices, so many rows in each part, with zeros behind those that are given.

        In a run of several processes each gives its own rows, which go to its own devices.
        """
        own = self.own_parts * each
        if isinstance(rows, jax.core.Tracer):
            padding = [(0, own - rows.shape[0])] + [(0, 0)] * (rows.ndim - 1)
            return self.constrained(jnp.pad(rows, padding))
        if rows.shape[0] < own:
            filled = np.zeros((own, *rows.shape[1:]), rows.dtype)
            filled[: rows.shape[0]] = rows
            rows = filled
        if jax.process_count() == 1:
            return jax.device_put(rows, self.by_rows)
        shape = (self.parts * each, *rows.shape[1:])
        return jax.make_array_from_process_local_data(self.by_rows, np.asarray(rows), shape)

    def places(self, n: int, each: int) -> np.ndarray:
        """Where the rows of all processes are in arrays with so many rows in each part: this process has n of them."""
        at = np.arange(n, dtype=np.int32)
        own = np.asarray(self._own, np.int32)[at // each] * each + at % each
        if jax.process_count() == 1:
            return own
        counts = np.asarray(multihost_utils.process_allgather(np.asarray(n)))
        padded = np.zeros(int(np.max(counts)), np.int32)
        padded[:n] = own
        rows: Any = multihost_utils.process_allgather(padded)
        return np.concatenate([row[:count] for row, count in zip(rows, counts, strict=True)])

    def constrained(self, rows: Any) -> Any:
        """Rows in a program, said to be split over the devices, which have to divide their number."""
        return jax.lax.with_sharding_constraint(rows, self.by_rows)

    def everywhere(self, tree: Any) -> Any:
        """Arrays, placed on every device, or said to be there where they are traced."""
        return jax.tree.map(self._everywhere, tree)

    def _everywhere(self, leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(leaf, self.repeated)
        if isinstance(leaf, jax.Array) and not (jax.process_count() > 1 and leaf.is_fully_addressable):
            return jax.device_put(leaf, self.repeated)
        # In several processes what is on the host, of which each has the same.
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            numbers = self._everywhere(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
        array = on_host(np.asarray(leaf))
        return jax.make_array_from_callback(array.shape, self.repeated, lambda index: array[index])

    @property
    def own_parts(self) -> int:
        """How many of the parts are on devices of this process."""
        return len(self._own)

    @property
    def _own(self) -> list[int]:
        """The numbers of the parts that are on devices of this process."""
        axis = self.mesh.axis_names.index(ROWS)
        return sorted({index[axis] for index, device in np.ndenumerate(self.mesh.devices) if _is_here(device)})

    def sum(self, of_part: Callable[[Any], Any], rows: Any) -> Any:
        """Σ of_part(part of the rows) over the parts: one reduction of all numbers of the tree."""
        return self._reduced(jax.lax.psum, of_part, rows)

    def largest(self, of_part: Callable[[Any], Any], rows: Any) -> Any:
        """The largest of each number of of_part(part of the rows) over the parts."""
        return self._reduced(jax.lax.pmax, of_part, rows)

    def each(self, of_part: Callable[[Any], Any], rows: Any) -> Any:
        """of_part(part of the rows), which gives something for each row."""
        return self._mapped(of_part, rows, PartitionSpec(ROWS))

    def _reduced(self, reduce: Any, of_part: Callable[[Any], Any], rows: Any) -> Any:
        def reduced(part: Any) -> Any:
            numbers, unravel = ravel_pytree(of_part(part))
            return unravel(reduce(numbers, ROWS))

        return self._mapped(reduced, rows, PartitionSpec())

    def _mapped(self, function: Callable[[Any], Any], rows: Any, results: PartitionSpec) -> Any:
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=PartitionSpec(ROWS), out_specs=results)
        return mapped(rows)


def automatic(function: str, mesh: Any) -> Mesh:
    """A mesh with its axes left to the compiler.

    Raises:
      TypeError: it is no mesh.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"{function}: mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def on_host(value: Any) -> Any:
    """An array of the dtype that JAX would give it, where the value is: not on one device that may lack the room."""
    if isinstance(value, jax.Array):
        return value
    array = np.asarray(value)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _is_here(device: Any) -> bool:
    return bool(device.process_index == jax.process_index())
