r"""Products x @ w with what follows them in one kernel, for NVIDIA GPUs of compute capability 9.0 (H100, H200).

The logits of a tile are in registers when its product is done.  One kernel leaves of them what the statistics of rows
are made of, a few numbers for each row and tile; the other leaves dlogits in 16 bits.  Logits reach memory only where
they are asked for.

Columns are masked by hand: those of a partial tile, and those that an earlier block of the vocabulary had.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from xentjax.core.linear_map import vary_like
from xentjax.logit_rows import finite
from xentjax.losses.linear import parts
from xentjax.losses.linear.gpu_tiles import Tile, Tiles, along_rows, columns_of, over_tiles, padded, store
from xentjax.losses.linear.vocabulary import Arrays, Block, Walk

#: Columns of a tile that are summed at once.
_PART = 32
#: Larger ones spill registers. Shared memory holds fewer stages where results go through it.
FOR_STATISTICS = Tiles(rows=64, columns=256)
FOR_PRODUCTS = Tiles(rows=64, columns=256, stages=3)
FOR_SPREAD = Tiles(rows=64, columns=192)
FOR_DLOGITS = Tiles(rows=128, columns=128, stages=3)


# -- what the kernels give ---------------------------------------------------------------------------------------------


def tile_statistics(
    x: Any,
    w: Any,
    labels: Any,
    columns: Any,
    *,
    layout: str,
    tiles: Tiles,
    spread: bool = False,
    products: bool = False,
) -> dict[str, Any]:
    """What each tile of columns of the logits u = x w leaves.

    A kernel of :func:`xentjax.losses.linear.parts.rows`, with x in 16 bits, N a multiple of 8, D and V of 64.
    """
    n, width = x.shape[0], w.shape[1 if layout == "dv" else 0]
    shape = tiles.rows, tiles.columns
    by_tile = jax.ShapeDtypeStruct((pl.cdiv(width, tiles.columns), padded(n, tiles)), jnp.float32)
    outputs = dict.fromkeys(("maximum", "rest", "at", *["spread"] * spread), by_tile)
    if products:
        outputs["products"] = jax.ShapeDtypeStruct((n, width), jnp.float32)

    def epilogue(tile: Tile, u: Any, bounds: Any, rows: dict[str, Any], into: dict[str, Any]) -> None:
        if products:
            store(tile, u, into["products"])
        is_partial = tile.first_column + tiles.columns > bounds[1]
        masked = lambda u: jnp.where(columns_of(shape, tile.first_column) < bounds[1], u, -jnp.inf)
        u = jax.lax.cond(is_partial, masked, lambda u: u, u)
        maximum = jnp.max(u, axis=1)

        def sums(u: Any, first_column: Any) -> dict[str, Any]:
            column, zero, one = columns_of(u.shape, first_column), jnp.zeros_like(u), jnp.ones_like(u)
            fall = u - along_rows(maximum, u.shape)
            is_maximum = u == along_rows(maximum, u.shape)
            terms = {"ties": jnp.where(is_maximum, one, zero), "below": jnp.where(is_maximum, zero, jnp.exp(fall))}
            if spread:
                terms["spread"] = jnp.where(column < bounds[1], jnp.where(is_maximum, zero, -fall), zero)
            terms["at"] = jnp.where(column == along_rows(rows["label"], u.shape), u, zero)
            return {name: jnp.sum(term, axis=1) for name, term in terms.items()}

        # In parts: what is computed of one is summed before the next, in fewer registers.
        parts = [sums(u[:, i : i + _PART], tile.first_column + i) for i in range(0, tiles.columns, _PART)]
        found = jax.tree.map(lambda *of_parts: functools.reduce(jnp.add, of_parts), *parts)
        found |= {"maximum": maximum, "rest": found.pop("below") + (found.pop("ties") - 1)}
        for name, value in found.items():
            place = into[name].at[tile.j, pl.ds(tile.first_row, tiles.rows)]
            plgpu.store(place, value, optimized=False)  # type: ignore[attr-defined]

    bounds = jnp.stack([jnp.int32(0), jnp.asarray(columns, jnp.int32)])
    staged = jnp.dtype(jnp.float32) if products else None
    found = over_tiles(epilogue, tiles, layout, width, bounds, x, w, {"label": labels}, outputs, staged)
    first_columns = jnp.arange(len(found["maximum"]), dtype=jnp.int32)[:, None] * tiles.columns
    counted = jnp.clip(columns - first_columns, 0, tiles.columns)
    of_rows = {name: value if name == "products" else value[:, :n] for name, value in found.items()}
    return of_rows | {"counted": counted}


def dlogits(
    x: Any,
    w: Any,
    start: Any,
    fresh: Any,
    rows: dict[str, Any],
    *,
    columns: int,
    layout: str,
    tiles: Tiles,
) -> Any:
    r"""The cotangents of the products of a block of columns, ``[N, columns]`` in the dtype of x.

    For the logits u = x w of the block, with p = e^{(u - m) - log S}: p·scale + shift, at the label p·scale_at + at +
    shift; 0 in columns that are not fresh, and in rows that are lost.

    Args:
      x, w, layout: as of :func:`xentjax.losses.linear.parts.rows`; N a multiple of 8, D and V of 64.
      start: the first column of the block, an int32, a multiple of 64.
      fresh: two int32: which columns of the block count, from the first up to the second, that not included.
      rows: numbers for each row, ``[N]``: ``maximum`` m and ``log_total`` log S; ``scale``; ``label``, a column of the
        block or -1, with ``scale_at`` and ``at``; ``shift`` and ``is_lost``, which may be missing.
      columns: of the block, a multiple of 64.
      tiles: their sizes.
    """
    given = {name: a.astype(jnp.int32) if a.dtype == bool else a for name, a in rows.items()}

    def epilogue(tile: Tile, u: Any, bounds: Any, row: dict[str, Any], into: dict[str, Any]) -> None:
        first, end = bounds[1], bounds[2]

        def cotangent(u: Any, first_column: Any) -> Any:
            along = {name: along_rows(value, u.shape) for name, value in row.items()}
            column = columns_of(u.shape, first_column)
            p = jnp.exp(jnp.minimum(u - along["maximum"], 0.0) - along["log_total"])
            g = jnp.where(column == along["label"], p * along["scale_at"] + along["at"], p * along["scale"])
            if "shift" in row:
                g = g + along["shift"]
            counts = (column >= first) & (column < end)
            if "is_lost" in row:
                counts = counts & (along["is_lost"] == 0)
            return jnp.where(counts, g, jnp.zeros(u.shape, jnp.float32))

        store(tile, u, into["dlogits"], cotangent)

    bounds = jnp.concatenate([jnp.asarray(start, jnp.int32)[None], jnp.asarray(fresh, jnp.int32)])
    outputs = {"dlogits": jax.ShapeDtypeStruct((x.shape[0], columns), x.dtype)}
    return over_tiles(epilogue, tiles, layout, columns, bounds, x, w, given, outputs, x.dtype)["dlogits"]


# -- in the walk over the vocabulary -----------------------------------------------------------------------------------


def rows(walk: Walk, arrays: Arrays, heads: tuple[str, ...]) -> dict[str, Any]:
    """What a walk over all columns leaves of each row: the state in which
    :mod:`xentjax.losses.linear.statistics` merges blocks."""
    tiles = FOR_PRODUCTS if "known" in heads else FOR_STATISTICS
    return parts.rows(walk, arrays, heads, tile_statistics, FOR_SPREAD if "uniform" in heads else tiles)


def cotangents_of_block(
    walk: Walk, arrays: Arrays, residuals: Mapping[str, Any], block: Block, cotangents: Mapping[str, Any]
) -> Any:
    """The dlogits of a block of columns, in 16 bits, from the cotangents of the sums of
    :mod:`xentjax.losses.linear.slopes`."""
    x, columns = arrays["x"], residuals.get("columns")
    fresh, none = parts.fresh_of(block, walk.block), jnp.zeros_like(residuals["maximum"])
    row = {"maximum": finite(residuals["maximum"]), "log_total": residuals["log_total"], "scale": cotangents["mean"]}
    row["label"] = parts.label_of(columns, block, fresh, x)
    row |= {"scale_at": none, "at": none}
    if columns is not None:
        row["scale_at"] = jnp.where(columns[:, 0] == residuals["dominant"], 0, cotangents["mean"])
        row["at"] = cotangents["at"][:, 0]
    if "uniform" in residuals:
        row["shift"] = cotangents["uniform"]
    if "is_lost" in residuals:
        row["is_lost"] = residuals["is_lost"]
    sizes: Any = {"columns": walk.block, "layout": walk.layout, "tiles": FOR_DLOGITS}
    return vary_like(dlogits(x, arrays["w"], block.start, jnp.stack(fresh), row, **sizes), x)
