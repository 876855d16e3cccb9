"""The vocabulary split over a mesh axis from outside of ``shard_map``: under ``jax.jit``, with a mesh set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xentjax.core.arguments import is_static
from xentjax.losses.linear.arguments import NAME, vocabulary_axis
from xentjax.losses.linear.labels import Teacher


def is_mapped(axis_name: Any) -> bool:
    """Whether the axis is one that a ``shard_map`` around the call splits arrays over."""
    try:
        jax.lax.axis_size(axis_name)
    except (NameError, ValueError):  # a number is taken for an axis of an array
        return False
    return True


def by_compiler(function: Callable[[dict[str, Any]], Any], bound: dict[str, Any]) -> Any:
    """``function(bound)`` with the axes of a mesh that arrays are split over explicitly left to the compiler: what is
    split stays so, and results are split over the examples as x is. The axis that w's vocabulary is split over is the
    ``axis_name`` where none is given."""
    arrays = {n: v for n, v in bound.items() if not is_static(v)}
    shardings = jax.tree.map(lambda a: jax.typeof(a).sharding, arrays)
    meshes = [jax.sharding.get_abstract_mesh(), *(sharding.mesh for sharding in jax.tree.leaves(shardings))]
    mesh = next((mesh for mesh in meshes if not mesh.empty), None)
    if mesh is None or not mesh.explicit_axes:
        return function(bound)
    automatic = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))
    axis_name = bound["axis_name"]
    if axis_name is None and bound["w"].ndim == 2:
        axis_name = shardings["w"].spec[vocabulary_axis(bound)]
    with jax.sharding.use_abstract_mesh(automatic):
        arrays = jax.tree.map(lambda a: jax.reshard(a, PartitionSpec()), arrays)
        found = function({**bound, **arrays, "axis_name": axis_name})
    of_examples = shardings["x"].spec[:-1]

    def split(found: Any) -> Any:
        spec = (*of_examples, *[None] * found.ndim)[: found.ndim] if found.ndim >= len(of_examples) else ()
        return jax.reshard(found, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(split, found)


def over_mesh(function: Callable[[dict[str, Any]], Any], bound: dict[str, Any]) -> Any:
    """``function(bound)`` with what has the vocabulary along an axis split over ``axis_name`` of the mesh that is set;
    the other axes of the mesh stay the compiler's. Where the devices do not divide the classes, zeros are added, in a
    copy.

    Raises:
      ValueError: where no such mesh is set.
    """
    axis_name = bound["axis_name"]
    mesh = jax.sharding.get_abstract_mesh()
    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not set(axes) <= set(mesh.axis_names):
        raise ValueError(
            f"{NAME}: axis_name is {axis_name!r}, which is no axis here: call it under jax.shard_map over that axis, "
            f"or with a mesh that has it, `with jax.set_mesh(mesh):` (the mesh that is set has {list(mesh.axis_names)})"
        )
    axis = vocabulary_axis(bound)
    width = bound["w"].shape[axis]
    columns = -width % math.prod(mesh.shape[name] for name in axes)
    of_w = PartitionSpec(*(axis_name if i == axis else None for i in range(2)))
    along = {"w": (of_w, axis), "bias": (PartitionSpec(axis_name), 0), "class_weights": (PartitionSpec(axis_name), 0)}

    def padded(name: str, array: Any) -> Any:
        if array is None or name not in along or columns == 0:
            return array
        return jnp.pad(array, [(0, columns if i == along[name][1] else 0) for i in range(array.ndim)])

    def spec(name: str) -> Any:
        return along[name][0] if name in along else PartitionSpec()

    arrays = {n: padded(n, v) for n, v in bound.items() if not is_static(v)}
    specs = {n: spec(n) for n in arrays}
    if isinstance(labels := arrays.get("labels"), Teacher):
        arrays["labels"] = Teacher(*(padded(n, v) for n, v in labels._asdict().items()))
        specs["labels"] = Teacher(*(None if v is None else spec(n) for n, v in labels._asdict().items()))
    options = {n: v for n, v in bound.items() if n not in arrays}
    if columns and options["num_classes"] is None:
        options["num_classes"] = width
    of_devices = jax.shard_map(
        lambda arrays: function({**options, **arrays}),
        axis_names=set(axes),
        in_specs=(specs,),
        out_specs=PartitionSpec(),
    )
    return of_devices(arrays)
