"""The vocabulary split over a mesh axis from outside of ``shard_map``: under ``jax.jit``, with a mesh set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from xentjax.core.arguments import is_static
from xentjax.losses.linear.arguments import LAYOUTS, NAME
from xentjax.losses.linear.labels import Teacher


def is_mapped(axis_name: Any) -> bool:
    """Whether the axis is one that a ``shard_map`` around the call splits arrays over."""
    try:
        jax.lax.axis_size(axis_name)
    except (NameError, ValueError):  # a number is taken for an axis of an array
        return False
    return True


def over_mesh(function: Callable[[dict[str, Any]], Any], bound: dict[str, Any]) -> Any:
    """``function(bound)`` with what has the vocabulary along an axis split over ``axis_name`` of the mesh that is set;
    the other axes of the mesh stay the compiler's. Where the devices do not divide the classes, zeros are added.

    Raises:
      ValueError: where no such mesh is set; where the mesh has explicit axes, and an array is split over another one.
    """
    axis_name = bound["axis_name"]
    mesh = jax.sharding.get_abstract_mesh()
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"{NAME}: axis_name is {axis_name!r}, which is no axis here: call it under jax.shard_map over that axis, "
            f"or with a mesh that has it, `with jax.set_mesh(mesh):` (the mesh that is set has {list(mesh.axis_names)})"
        )
    axis = 1 - LAYOUTS.index(bound["w_layout"])
    width = bound["w"].shape[axis]
    columns = -width % mesh.shape[axis_name]
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
    if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis_name] == AxisType.Explicit:
        # There the map takes no array that is split otherwise.
        _refuse_other_axes(axis_name, arrays)
        arrays = jax.tree.map(jax.reshard, arrays, specs)
    of_devices = jax.shard_map(
        lambda arrays: function({**options, **arrays}),
        axis_names={axis_name},
        in_specs=(specs,),
        out_specs=PartitionSpec(),
    )
    return of_devices(arrays)


def _refuse_other_axes(axis_name: Any, arrays: dict[str, Any]) -> None:
    for name, array in arrays.items():
        for leaf in jax.tree.leaves(array):
            for axes in jax.typeof(leaf).sharding.spec:
                if axes not in (None, axis_name, (axis_name,)):
                    raise ValueError(
                        f"{NAME}: {name} is split over {axes!r}, an explicit axis of the mesh, but axis_name "
                        f"{axis_name!r} goes with axes that the compiler splits over: make the mesh with "
                        "axis_types=(jax.sharding.AxisType.Auto, ...)"
                    )
