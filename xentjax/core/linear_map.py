"""A linear function of some arguments, given others, with a transpose that is written by hand.

JAX transposes a loop into a loop that keeps what every step has computed, and adds to all of a gradient once for each
step.  Here the transpose is whatever its author says: a loop that computes again, and writes each part of a gradient
in its place once.  Unlike ``jax.custom_derivatives.linear_call`` it may be batched, and its derivative with respect to
the other arguments (its residuals) is that of its code: forward mode, reverse mode and all that is made of them come
from the one pair of functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

if TYPE_CHECKING:
    from jax.extend.core import Primitive

#: ``f(config, residuals, arguments)``, linear in the last.
Linear = Callable[[Any, Any, Any], Any]


def linear_map(forward: Linear, backward: Linear, config: Hashable, residuals: Any, arguments: Any) -> Any:
    """``forward(config, residuals, arguments)``, which is transposed as ``backward(config, residuals, cotangents)``.

    Args:
      forward: linear in its arguments. A function at the top of a module, as it is part of the keys of JAX's caches.
      backward: its transpose: of cotangents, a tree like the outputs, to a tree like the arguments. The same holds.
      config: what both know before anything is traced.
      residuals: a tree of arrays. Both functions may be differentiated with respect to the floats.
      arguments: a tree of float arrays.

    Returns:
      A tree of float arrays.
    """
    every = jax.tree.leaves((residuals, arguments))
    residuals, arguments = jax.tree.map(lambda a: vary_like(a, *every), (residuals, arguments))
    of_residuals, residuals_tree = jax.tree.flatten(residuals)
    of_arguments, arguments_tree = jax.tree.flatten(arguments)
    shapes = jax.eval_shape(functools.partial(forward, config), residuals, arguments)
    pair = _Pair(forward, backward, config, residuals_tree, arguments_tree, jax.tree.structure(shapes))
    return jax.tree.unflatten(pair.outputs, _primitive().bind(*of_residuals, *of_arguments, pair=pair))


def vary_like(array: Any, *others: Any, but: str | None = None) -> Any:
    """The array, said to vary over each mesh axis of a ``shard_map`` that one of the others varies over, but one."""
    missing = frozenset().union(*map(varying, others)) - varying(array) - {but}
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def varying(array: Any) -> frozenset[str]:
    """The axes of a ``shard_map``'s mesh along which an array may differ between devices."""
    kind: Any = jax.typeof(array)
    return frozenset(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two functions, each the other's transpose, and the trees of what they take and give.

    Attributes:
      mapped: for each ``vmap`` around them, the innermost first, which residuals it maps, along axis 0. It maps all
        that is linear, along axis 0 too.
    """

    forward: Linear
    backward: Linear
    config: Hashable
    residuals: Any
    arguments: Any
    outputs: Any
    mapped: tuple[tuple[bool, ...], ...] = ()

    @property
    def transposed(self) -> _Pair:
        return dataclasses.replace(
            self, forward=self.backward, backward=self.forward, arguments=self.outputs, outputs=self.arguments
        )

    def __call__(self, *leaves: Any) -> tuple[Any, ...]:
        def function(*leaves: Any) -> tuple[Any, ...]:
            n = self.residuals.num_leaves
            residuals = jax.tree.unflatten(self.residuals, leaves[:n])
            result = self.forward(self.config, residuals, jax.tree.unflatten(self.arguments, leaves[n:]))
            if jax.tree.structure(result) != self.outputs:
                raise TypeError(f"linear_map: {self.forward} gives {jax.tree.structure(result)}, not {self.outputs}")
            return tuple(jax.tree.leaves(result))

        for residuals in self.mapped:
            axes = (*(0 if is_mapped else None for is_mapped in residuals), *(0,) * self.arguments.num_leaves)
            function = jax.vmap(function, in_axes=axes)
        return function(*leaves)


@functools.lru_cache(maxsize=256)
def _compiled(pair: _Pair) -> Callable[..., Any]:
    return jax.jit(pair)


@functools.cache
def _primitive() -> Primitive:
    """Made when first used, as jax.extend takes long to import."""
    from jax.extend.core import Primitive

    primitive = Primitive("linear_map")
    primitive.multiple_results = True
    primitive.def_impl(lambda *leaves, pair: _compiled(pair)(*leaves))
    primitive.def_abstract_eval(lambda *avals, pair: jax.make_jaxpr(pair)(*avals).out_avals)
    mlir.register_lowering(primitive, mlir.lower_fun(lambda *leaves, pair: pair(*leaves), multiple_results=True))
    ad.primitive_jvps[primitive] = _jvp
    ad.primitive_transposes[primitive] = _transpose
    batching.fancy_primitive_batchers[primitive] = _batch
    return primitive


def _jvp(leaves: Any, tangents: Any, *, pair: _Pair) -> tuple[Any, Any]:
    outputs = _primitive().bind(*leaves, pair=pair)
    n, moving = pair.residuals.num_leaves, [i for i, tangent in enumerate(tangents) if _is_nonzero(tangent)]
    if not moving:
        return outputs, [jnp.zeros_like(output) for output in outputs]
    if moving[0] >= n:
        return outputs, _primitive().bind(*leaves[:n], *map(ad.instantiate_zeros, tangents[n:]), pair=pair)

    # Arguments that move along with residuals are differentiated with them: one loop, which adds up one tangent.
    def of_moving(*values: Any) -> Any:
        return pair(*{**dict(enumerate(leaves)), **dict(zip(moving, values, strict=True))}.values())

    return outputs, jax.jvp(of_moving, [leaves[i] for i in moving], [tangents[i] for i in moving])[1]


def _is_nonzero(tangent: Any) -> bool:
    return type(tangent) is not ad.Zero


def _transpose(cotangents: Any, *leaves: Any, pair: _Pair) -> list[Any]:
    n = pair.residuals.num_leaves
    if not any(map(_is_nonzero, cotangents)):
        return [None] * len(leaves)
    given = map(ad.instantiate_zeros, cotangents)
    found = _primitive().bind(*leaves[:n], *given, pair=pair.transposed)
    needed = map(ad.is_undefined_primal, leaves[n:])
    return [None] * n + [cotangent if is_needed else None for cotangent, is_needed in zip(found, needed, strict=True)]


def _batch(axis: Any, leaves: Any, dims: Any, *, pair: _Pair) -> tuple[Any, list[int | None]]:
    if all(dim is None for dim in dims):
        outputs = _primitive().bind(*leaves, pair=pair)
        return outputs, [None] * len(outputs)
    n = pair.residuals.num_leaves
    moved = [leaf if dim is None else jnp.moveaxis(leaf, dim, 0) for leaf, dim in zip(leaves, dims, strict=True)]
    linear = zip(moved[n:], dims[n:], strict=True)
    moved[n:] = [leaf if dim is not None else jnp.broadcast_to(leaf, (axis.size, *leaf.shape)) for leaf, dim in linear]
    mapped = (*pair.mapped, tuple(dim is not None for dim in dims[:n]))
    outputs = _primitive().bind(*moved, pair=dataclasses.replace(pair, mapped=mapped))
    return outputs, [0] * len(outputs)
