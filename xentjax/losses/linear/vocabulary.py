"""The walk over the vocabulary: logits of one block of columns after the other, none of which is stored.

A vocabulary whose size the blocks do not divide has a last block that reaches back into the one before it; a mask
leaves out the columns that were there already, so that the matrix is never padded or copied.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout as Strides
from jax.experimental.layout import with_layout_constraint

from xentjax.activations import soft_cap
from xentjax.care import as_bits, of_bits
from xentjax.core import policy
from xentjax.core.linear_map import linear_map, vary_like
from xentjax.core.widening import narrowed, rounded_to_bfloat16

#: A TPU stores rows of so many entries, or of a multiple, as rows; others as columns, where that takes less memory.
LANES = 128

#: Blocks of fewer columns than this take other products on a CPU: xᵀ @ g as gᵀ @ x, of half of D at most, and x as it
#: is, which is stored transposed for larger ones.
FEW_COLUMNS = 256

#: Arrays by name: x [N, D], w [D, V] or [V, D], bias [V], class_weights [V], softcap [], temperature [], of the teacher
#: teacher_x, teacher_w, teacher_bias, teacher_softcap; labels [N, k] and is_class [N, k], whether they are any class;
#: is_left_out [N], and is_lost [N], which of those have no finite logits; offset [], the first class on this device;
#: known [N, V], the products x @ w.
Arrays = Mapping[str, Any]
Layout = Literal["dv", "vd"]
Kernels = Literal["xla", "mosaic"]


class Block(NamedTuple):
    """Some columns of the vocabulary.

    Attributes:
      start: the first of them on this device.
      first: its class.
      new: the first class that no block before had.
      fresh: which of them are classes that no block before had; None for all.
    """

    start: Any
    first: Any
    new: Any
    fresh: Any

    def where_fresh(self, entries: Any, otherwise: Any) -> Any:
        """Entries of the block, ``[block]`` or ``[N, block]``, and something else in columns that are not fresh."""
        if self.fresh is None:
            return entries
        return jnp.where(jnp.expand_dims(self.fresh, tuple(range(entries.ndim - 1))), entries, otherwise)


@dataclasses.dataclass(frozen=True)
class Walk:
    """How a vocabulary is walked over; part of the keys of JAX's caches.

    Attributes:
      width: the columns of w on this device.
      classes: the columns of w that are classes, on all devices; the others are padding.
      block: columns at a time.
      layout: ``"dv"`` or ``"vd"``: which axis of w the vocabulary is along.
      axis_name: the mesh axis that the vocabulary is split over, or None.
      shards: over how many devices.
      kernels: what computes on a GPU or a TPU; ``"mosaic"``: kernels, of which :mod:`xentjax.losses.linear.kernels`
        tells.
    """

    width: int
    classes: int
    block: int
    layout: Layout = "dv"
    axis_name: Any = None
    shards: int = 1
    kernels: Kernels = "xla"

    @property
    def axis(self) -> int:
        """The axis of w that the vocabulary is along."""
        return 1 if self.layout == "dv" else 0

    @property
    def is_padded(self) -> bool:
        """Whether w has columns that are no classes."""
        return self.classes < self.width * self.shards

    @property
    def is_even(self) -> bool:
        """Whether no two blocks have a column in common."""
        return self.width % self.block == 0

    @property
    def blocks(self) -> int:
        return -(-self.width // self.block)

    def over(self, arrays: Arrays, step: Callable[[Block, Any], Any], carry: Any) -> Any:
        """``step(block, carry) -> carry`` for each block in turn. What is a sum starts as :func:`zeros`."""
        if self.blocks == 1:
            return step(self._block(arrays, 0), carry)
        # Differentiated in reverse, each step is computed again rather than stored.
        step = jax.checkpoint(step)
        return jax.lax.fori_loop(0, self.blocks, lambda j, carry: step(self._block(arrays, j), carry), carry)

    def _block(self, arrays: Arrays, j: Any) -> Block:
        start = jnp.minimum(j * self.block, self.width - self.block)
        columns = start + jnp.arange(self.block, dtype=jnp.int32)
        fresh = None if self.is_even else columns >= j * self.block
        offset = arrays.get("offset", 0)
        if self.is_padded:
            is_class = columns + offset < self.classes
            fresh = is_class if fresh is None else fresh & is_class
        return Block(start, start + offset, j * self.block + offset, fresh)

    # -- blocks of arrays ----------------------------------------------------------------------------------------------

    def columns_of(self, w: Any, block: Block) -> Any:
        """The columns of a block of w, in w's layout; 0 for padding, whatever that holds."""
        part = self._part_of(w, block)
        if not self.is_padded:
            return part
        # Not all that is not fresh: products of a block are also stored.
        is_class = block.first + jnp.arange(self.block, dtype=jnp.int32) < self.classes
        return jnp.where(jnp.expand_dims(is_class, 1 - self.axis), part, 0)

    def _part_of(self, w: Any, block: Block) -> Any:
        if self.blocks == 1:
            return w

        if jnp.finfo(w.dtype).bits > 16:
            return jax.lax.dynamic_slice_in_dim(w, block.start, self.block, axis=self.axis)
        return linear_map(_taken_16_bit, _put_back, (self.axis, self.block, w.shape), block.start, w)

    def entries_of(self, vector: Any, block: Block) -> Any:
        """The entries of a block of a vector over the vocabulary; 0 for a column that is not fresh."""
        part = vector if self.blocks == 1 else jax.lax.dynamic_slice_in_dim(vector, block.start, self.block)
        return block.where_fresh(part, 0)

    def to_fill(self, array: Any, arrays: Arrays) -> Any:
        """Zeros like an array over the vocabulary, which the parts of all blocks will be put in with ``to_zeros``;
        where no two blocks have a column in common nothing is written first."""
        fill = unwritten if self.is_even else jnp.zeros
        return vary_like(fill(array.shape, array.dtype), arrays["x"])

    def add_columns(self, w: Any, part: Any, block: Block, *, to_zeros: bool) -> Any:
        """w with the columns of a block added in their place; the part has zeros where columns are not fresh.

        ``to_zeros`` says that what is fresh is still 0 in w: then nothing is read but where blocks overlap."""
        if self.blocks == 1:
            return part.astype(w.dtype) if to_zeros else w + part
        adds = "everywhere" if not to_zeros else "nowhere" if self.is_even else "where blocks overlap"
        config = (self.axis, self.block, adds, part.dtype)
        if jnp.finfo(w.dtype).bits > 16:
            return _placed(config, block.start, w, part)
        return linear_map(_placed_16_bit, _taken, config, block.start, (w, part))

    def add_entries(self, vector: Any, part: Any, block: Block, *, to_zeros: bool) -> Any:
        """The same for a vector over the vocabulary."""
        return dataclasses.replace(self, layout="vd").add_columns(vector, part, block, to_zeros=to_zeros)

    # -- products ------------------------------------------------------------------------------------------------------

    def products(self, x: Any, w: Any) -> Any:
        """x @ w, [N, block], of a block of w."""
        return product(x, w, 1, 1 - self.axis)

    def back_to_x(self, g: Any, w: Any) -> Any:
        """g @ wᵀ, [N, D]."""
        return product(g, w, 1, self.axis)

    def back_to_w(self, x_transposed: Any, g: Any, into: Any = None) -> Any:
        """xᵀ @ g, or its transpose in the layout ``"vd"``; rounded to the dtype ``into``, if that is given."""
        by_columns = self.layout == "dv"

        def plainly(x_transposed: Any, g: Any) -> Any:
            return product(x_transposed, g, 1, 0, into) if by_columns else product(g, x_transposed, 0, 1, into)

        def on_cpu(x_transposed: Any, g: Any) -> Any:
            # Whichever way around is faster, and set apart where it is turned: XLA:CPU would turn the operands instead,
            # and lacks some such products in 16 bits.
            few = self.block < FEW_COLUMNS and 2 * self.block <= x_transposed.shape[0]
            back = product(g, x_transposed, 0, 1) if few else product(x_transposed, g, 1, 0)
            back = back if into is None else narrowed(back, into)
            return jax.lax.optimization_barrier(back).T if few == by_columns else back

        def on_tpu(x_transposed: Any, g: Any) -> Any:
            # A product is the other way around where it may be; here w is not, and all of it would be copied.
            found = plainly(x_transposed, g)
            return with_layout_constraint(found, Strides((0, 1))) if by_columns and self.width % LANES == 0 else found

        return jax.lax.platform_dependent(x_transposed, g, cpu=on_cpu, tpu=on_tpu, default=plainly)

    # -- logits --------------------------------------------------------------------------------------------------------

    def products_of(self, arrays: Arrays, block: Block, of: str = "") -> Any:
        """x @ w of a block; ``of`` is ``"teacher_"`` for the teacher's."""
        w = self.columns_of(arrays[f"{of}w"], block)
        is_known = "known" in arrays and not of
        products = self._known(arrays, w, block) if is_known else self.products(arrays[f"{of}x"], w)
        return jnp.where(arrays["is_lost"][:, None], 0, products) if "is_lost" in arrays else products

    def _known(self, arrays: Arrays, w: Any, block: Block) -> Any:
        """The products, which have been stored: their derivative is that of what they are."""

        @jax.custom_jvp
        def known(products: Any, x: Any, w: Any) -> Any:
            return products

        @known.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            (products, x, w), (_, dx, dw) = primals, tangents
            return known(products, x, w), self.products(dx, w) + self.products(x, dw)

        stored = arrays["known"]
        if self.blocks > 1:
            stored = jax.lax.dynamic_slice_in_dim(stored, block.start, self.block, axis=1)
        return known(stored, arrays["x"], w)

    def shaping(self, arrays: Arrays, block: Block, of: str = "") -> Callable[[Any, dict[str, Any]], Any]:
        """From x @ w + bias and the numbers of :func:`shapers` to the logits: the cap, the temperature, -inf for what
        is not fresh."""

        def shaped(z: Any, numbers: dict[str, Any]) -> Any:
            if (cap := numbers.get(f"{of}softcap")) is not None:
                z = soft_cap(z, jnp.broadcast_to(cap, z.shape))
            if "temperature" in numbers:
                z = z / numbers["temperature"]
            return block.where_fresh(z, -jnp.inf)

        return shaped

    def with_bias(self, arrays: Arrays, block: Block, products: Any, of: str = "") -> Any:
        """x @ w + bias."""
        bias = arrays.get(f"{of}bias")
        return products if bias is None else products + self.entries_of(bias, block)[None]

    def logits(self, arrays: Arrays, block: Block, products: Any, of: str = "") -> Any:
        """The logits of a block, from its products."""
        return self.shaping(arrays, block, of)(self.with_bias(arrays, block, products, of), shapers(arrays, of))


def _taken_16_bit(config: tuple[int, int, tuple[int, ...]], start: Any, w: Any) -> Any:
    """A part of a 16-bit array along an axis: linear, so that tangents are taken as it is."""
    axis, size, _ = config

    def plainly(w: Any, start: Any) -> Any:
        return jax.lax.dynamic_slice_in_dim(w, start, size, axis=axis)

    def behind_a_barrier(w: Any, start: Any) -> Any:
        return plainly(*jax.lax.optimization_barrier((w, start)))

    # XLA:CPU would widen all of a 16-bit matrix before the loop; on a GPU, products read rows where they are.
    return jax.lax.platform_dependent(w, start, cpu=behind_a_barrier, default=plainly)


def _put_back(config: tuple[int, int, tuple[int, ...]], start: Any, part: Any) -> Any:
    """The transpose: zeros but for the part."""
    axis, _, shape = config
    return jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, part.dtype), part, start, axis=axis)


#: Of a part that is put into an array: along which axis, its size, where it is added to what is there, its dtype.
Place = tuple[int, int, str, Any]
_ROUNDED = (jnp.float32, jnp.bfloat16)


def _placed(config: Place, start: Any, w: Any, part: Any) -> Any:
    """An array with a part of it replaced, or added to."""
    axis, size, adds, _ = config
    if adds != "nowhere":
        part = part + jax.lax.dynamic_slice_in_dim(w, start, size, axis=axis).astype(part.dtype)
    return jax.lax.dynamic_update_slice_in_dim(w, part.astype(w.dtype), start, axis=axis)


def _placed_16_bit(config: Place, start: Any, arguments: tuple[Any, Any]) -> Any:
    """The same for 16-bit arrays: by bits on a CPU, as XLA:CPU would widen all of the array otherwise."""
    by_bits, plainly = (functools.partial(f, config) for f in (_placed_by_bits, _placed))
    return jax.lax.platform_dependent(start, *arguments, cpu=by_bits, default=plainly)


def _placed_by_bits(config: Place, start: Any, w: Any, part: Any) -> Any:
    axis, size, adds, _ = config

    def added(w: Any, part: Any) -> Any:
        old = jax.lax.dynamic_slice_in_dim(as_bits(w), start, size, axis=axis)
        return part + of_bits(old, w.dtype).astype(part.dtype)

    if adds == "where blocks overlap":
        # A branch, which is done reading before anything is written: else XLA:CPU would copy all of w for each block.
        part = jax.lax.cond(start % size != 0, added, lambda w, part: part, w, part)
    elif adds == "everywhere":
        part = added(w, part)
    narrow = rounded_to_bfloat16(part) if (part.dtype, w.dtype) == _ROUNDED else part.astype(w.dtype)
    return of_bits(jax.lax.dynamic_update_slice_in_dim(as_bits(w), as_bits(narrow), start, axis=axis), w.dtype)


def _taken(config: Place, start: Any, cotangent: Any) -> tuple[Any, Any]:
    """The transpose: the cotangents of the array and of the part."""
    axis, size, adds, dtype = config
    part = jax.lax.dynamic_slice_in_dim(cotangent, start, size, axis=axis)
    rest = cotangent
    if adds == "nowhere":
        rest = jax.lax.dynamic_update_slice_in_dim(cotangent, jnp.zeros_like(part), start, axis=axis)
    return rest, part.astype(dtype)


#: Numbers that shape logits, the student's and the teacher's.
SHAPERS = ("softcap", "teacher_softcap", "temperature")


def shapers(arrays: Arrays, of: str = "") -> dict[str, Any]:
    """The numbers that shape logits."""
    return {n: arrays[n] for n in (f"{of}softcap", "temperature") if n in arrays}


def unwritten(shape: tuple[int, ...], dtype: Any) -> Any:
    """``jax.lax.empty``, which jax 0.10 has mapped by each ``vmap`` around it, with all that is put there."""
    return linear_map(_empty, _empty, (tuple(shape), jnp.dtype(dtype)), (), ())


def _empty(config: tuple[tuple[int, ...], Any], _: tuple[()], __: tuple[()]) -> Any:
    return jax.lax.empty(*config)


def zeros(shape: tuple[int, ...], arrays: Arrays, dtype: Any = None) -> Any:
    """Zeros to add to: in x's dtype of computation unless another is given, varying over the mesh as the arrays do."""
    x = arrays["x"]
    return vary_like(jnp.zeros(shape, policy.compute_dtype(x.dtype) if dtype is None else dtype), x)


def product(a: Any, b: Any, axis_a: int, axis_b: int, into: Any = None) -> Any:
    """The matrix product along two axes, added in float32 at least: 16-bit operands as they are, others in full."""
    dtype = policy.result_dtype((a, b))
    narrow = jnp.finfo(dtype).bits == 16
    return jax.lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((axis_a,), (axis_b,)), ((), ())),
        precision=None if narrow else jax.lax.Precision.HIGHEST,
        preferred_element_type=policy.compute_dtype(dtype) if into is None else into,
    )


def rounded_product(a: Any, b: Any, axis_a: int, axis_b: int, into: Any) -> Any:
    """The same, rounded to the dtype ``into``: by the product itself, so that nothing is stored in float32, but on a
    CPU, where some versions' products of 16-bit results add up in 16 bits, too."""

    def on_cpu(a: Any, b: Any) -> Any:
        return narrowed(product(a, b, axis_a, axis_b), into)

    def by_itself(a: Any, b: Any) -> Any:
        return product(a, b, axis_a, axis_b, into)

    return jax.lax.platform_dependent(a, b, cpu=on_cpu, default=by_itself)
