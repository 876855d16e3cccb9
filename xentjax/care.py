"""Care where it is needed, and only there: branches that few rows of a batch take.

A formula that is right almost everywhere is computed for the whole batch, on all threads; what it leaves is a
``lax.cond``, whose branch XLA:CPU runs on one thread. So a branch takes the rows that need it where they are few, and
goes through the batch in pieces where they are many, which keeps its memory small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.linear_map import vary_like, varying
from xentjax.core.policy import is_symbol


@jax.custom_batching.custom_vmap
def anywhere(needed: Any) -> Any:
    """Whether it is needed anywhere: the predicate of a ``lax.cond`` that stays one under ``vmap``, where one array of
    predicates would make XLA run both branches and select.

    Under a ``shard_map`` that leaves other axes of its mesh to the compiler it is the same on all devices: what the
    compiler sends between them in a branch would wait for ever for those that do not take it.
    """
    found, mesh = jnp.any(needed), jax.sharding.get_abstract_mesh()
    over = varying(found)
    if not over or all(mesh.shape[name] == 1 for name in mesh.auto_axes):
        return found
    return jax.lax.pmax(found.astype(jnp.int32), tuple(sorted(over))) > 0


@anywhere.def_vmap
def _(axis_size: int, in_batched: list[bool], needed: Any) -> tuple[Any, bool]:
    return anywhere(needed), False


#: A branch that is rarely taken goes through the rows in so many pieces: it needs so much less memory.
_PIECES = 16


def in_pieces(function: Callable[..., Any], *arrays: Any) -> Any:
    """The function of arrays that share their first axis, piece by piece along it; at once where they do not."""
    leaves = jax.tree.leaves(arrays)
    rows = {array.shape[:1] for array in leaves}
    length = leaves[0].shape[0] if leaves[0].ndim else 1
    if len(rows) > 1 or is_symbol(length) or length <= _PIECES:
        return function(*arrays)
    size = -(-length // _PIECES)

    def piece(start: Any) -> Any:
        def part(array: Any) -> Any:
            bits = jax.lax.dynamic_slice_in_dim(as_bits(array), start, size)
            return of_bits(bits, array.dtype)

        # Behind a barrier with the start, so that nothing is made of the whole arrays before the loop.
        whole, start = jax.lax.optimization_barrier((arrays, start))
        return function(*jax.tree.map(part, whole))

    # The last piece starts where it is whole, and overlaps the one before.
    done = jax.lax.map(piece, np.minimum(np.arange(0, length, size), length - size))

    def joined(pieces: Any) -> Any:
        return jnp.concatenate([pieces[:-1].reshape(-1, *pieces.shape[2:])[: length - size], pieces[-1]])

    return jax.tree.map(joined, done)


#: Rows that need care are few where they are at most _FEW of _SHARES, and one share is computed at a time; the next is
#: found among the rows in groups of so many. Of rows with less than _WIDE entries some always need care.
_SHARES, _FEW, _GROUP, _WIDE = 128, 32, 32, 16


def for_rows(
    needed: Any,
    found: Any,
    function: Callable[..., Any],
    arrays: Any,
    rows: Any,
    axis: int,
    *,
    whole: bool = False,
    subset: bool = True,
) -> Any:
    """What is found, numbers by row, with ``function(arrays, rows, axis)``, right for any row, where a row needs it.

    Where few rows do, only they are computed anew, and cost little. Where many do, all are, piece by piece unless they
    may be taken as a whole.

    Args:
      needed: which rows need it.
      found: arrays of that shape.
      function: of arrays and rows as they are, or of some rows, with the entries of each along the last axis.
      arrays: entries of the rows along ``axis``.
      rows: numbers for each row.
      axis: that of the entries.
      whole: whether the memory that all rows take at once does not matter.
      subset: whether there is a program for few rows, beside that for all: the function is compiled twice then.
    """
    length = needed.size
    width = jax.tree.leaves(arrays)[0].size // max(length, 1)
    size = -(-length // _SHARES)

    def all_rows(found: Any, arrays: Any, rows: Any) -> Any:
        along = functools.partial(function, axis=axis)
        return along(arrays, rows) if whole or axis == 0 else in_pieces(along, arrays, rows)

    def some_rows(found: Any, arrays: Any, rows: Any) -> Any:
        groups = jnp.pad(jnp.ravel(needed), (0, -length % _GROUP)).reshape(-1, _GROUP)
        counts = jnp.sum(groups, axis=1, dtype=jnp.int32)
        until = jnp.cumsum(counts)

        def chosen_for(share: Any) -> Any:
            """The rows of this share; past the last one that needs it: none, which is beyond the end."""
            rank = share * size + jnp.arange(size, dtype=jnp.int32)
            # The groups that end before each rank. (jnp.searchsorted fails under shard_map, jax 0.10.)
            ends = jnp.zeros_like(until, shape=size).at[jnp.maximum(until - share * size, 0)].add(1, mode="drop")
            group = jnp.cumsum(ends)
            before, bits = (a.at[group].get(mode="clip") for a in (until - counts, groups))
            inside = jnp.sum(jnp.cumsum(bits, axis=1) <= (rank - before)[:, None], axis=1, dtype=jnp.int32)
            return jnp.where(rank < until[-1], group * _GROUP + inside, length)

        def of(share: Any) -> Any:
            chosen = chosen_for(share)
            # Behind a barrier with the choice, so that nothing is made of the whole arrays before the loop.
            (entries, numbers), chosen = jax.lax.optimization_barrier(((arrays, rows), chosen))

            def part(array: Any, shape: tuple[int, ...]) -> Any:
                bits = as_bits(array)
                bits = jnp.moveaxis(bits, axis, -1) if len(shape) > 1 else bits
                return of_bits(bits.reshape(shape).at[chosen].get(mode="clip"), array.dtype)

            of_entries, of_numbers = (functools.partial(part, shape=s) for s in ((length, -1), (length,)))
            return chosen, function(jax.tree.map(of_entries, entries), jax.tree.map(of_numbers, numbers), axis=-1)

        def none(share: Any) -> Any:
            like = jax.tree.leaves((needed, arrays, rows))
            nothing = lambda a: vary_like(jnp.full(a.shape, length, a.dtype), *like)
            return jax.tree.map(nothing, jax.eval_shape(of, share))

        def done_of(share: Any) -> Any:
            return jax.lax.cond(anywhere(until[-1] > share * size), of, none, share)

        chosen, done = jax.lax.map(done_of, jnp.arange(_FEW, dtype=jnp.int32))

        def in_place(old: Any, new: Any) -> Any:
            return jnp.ravel(old).at[jnp.ravel(chosen)].set(jnp.ravel(new), mode="drop").reshape(old.shape)

        return jax.tree.map(in_place, found, done)

    def some(*operands: Any) -> Any:
        if not subset or is_symbol(length) or length < _SHARES or width < _WIDE:
            return all_rows(*operands)
        return jax.lax.cond(anywhere(jnp.sum(needed) > size * _FEW), all_rows, some_rows, *operands)

    return jax.lax.cond(anywhere(needed), some, lambda found, *_: found, found, arrays, rows)


def as_bits(array: Any) -> Any:
    """16-bit floats as integers: XLA:CPU slices no 16-bit floats, but would widen them all first and store them."""
    is_16_bit = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize == 2
    return jax.lax.bitcast_convert_type(array, jnp.uint16) if is_16_bit else array


def of_bits(array: Any, dtype: Any) -> Any:
    """The floats that ``as_bits`` has made ``array`` of."""
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)


def corrected(value: Any, needed: Any, careful: Callable[..., Any], *arrays: Any) -> Any:
    """The value, or ``careful(*arrays)`` if it is needed anywhere. The value is computed in any case: XLA:CPU does not
    divide the work of a branch among its threads."""

    def in_its_place(value: Any, *arrays: Any) -> Any:
        by_rows = jax.tree.leaves(value)[0].shape[:1] == arrays[0].shape[:1]
        return in_pieces(careful, *arrays) if by_rows else careful(*arrays)

    return jax.lax.cond(anywhere(needed), in_its_place, lambda value, *_: value, value, *arrays)
