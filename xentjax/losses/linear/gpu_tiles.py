r"""The walk over the tiles of a matrix product, for NVIDIA GPUs of compute capability 9.0 (H100, H200).

A block of three warpgroups on each multiprocessor takes one tile after the other: one warpgroup copies tiles of x and w
into shared memory, steps ahead; two multiply them, each its own rows, added up in float32, and do with the product what
they are told, while the next tiles are copied.  What lies beyond the matrices is read as 0 and never written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

#: Warpgroups that multiply; one more copies.
_MULTIPLYING = 2
#: Registers for each thread of the warpgroup that copies, and of those that multiply: all of them, in eights.
_FEW_REGISTERS, _MANY_REGISTERS = 24, 240
#: Tiles of rows that are walked over together, so that tiles of w are read again while they are in the cache.
_TOGETHER = 16
#: Bytes of a row of a tile in shared memory, and rows of it, as the tensor cores read them.
_SWIZZLE, _ROWS = 128, 8
#: What blocks of columns begin at a multiple of: the columns of such a row, in 16 bits.
_COLUMNS = 64


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What a warpgroup multiplies: ``rows`` of x and ``columns`` of w, ``depth`` of them a step, ``stages`` steps of
    which are in shared memory."""

    rows: int
    columns: int
    depth: int = 64
    stages: int = 4

    @property
    def of_block(self) -> int:
        """Rows of all warpgroups."""
        return _MULTIPLYING * self.rows


@dataclasses.dataclass(frozen=True)
class Tile:
    """Of one warpgroup: the tile of columns j, the first of them, and the first row; what results are staged in."""

    j: Any
    first_column: Any
    first_row: Any
    warpgroup: Any
    sizes: Tiles
    staging: Any = None


def over_tiles(
    epilogue: Callable[..., None],
    tiles: Tiles,
    layout: str,
    columns: int,
    bounds: Any,
    x: Any,
    w: Any,
    by_row: dict[str, Any],
    outputs: dict[str, Any],
    staged: Any,
) -> dict[str, Any]:
    """What ``epilogue(tile, product, bounds, rows, outputs)`` leaves of each tile of x @ w, columns ``bounds[0]`` and
    further: rows are those of arrays ``[N]``; what is ``staged``, in that dtype, goes from shared memory to an
    output."""
    n, d = x.shape
    steps, stages = d // tiles.depth, tiles.stages
    grid = pl.cdiv(n, tiles.of_block), pl.cdiv(columns, tiles.columns)
    multiprocessors = _multiprocessors()

    def body(bounds: Any, x: Any, w: Any, *refs: Any, filled: Any, consumed: Any, **shared: Any) -> None:
        warpgroup = jax.lax.axis_index("warpgroup")
        of_x, of_w = shared.pop("of_x"), shared.pop("of_w")

        # In 32 bits, whatever JAX's are.
        slot_of = lambda turn: jax.lax.rem(turn, np.int32(stages))
        each_step = lambda turn: jax.lax.fori_loop(np.int32(0), np.int32(steps), turn, None)

        def each_tile(run: Callable[[Any, Any, Any], None]) -> None:
            @plgpu.nd_loop((grid[0] * grid[1],), collective_axes="block")
            def _(turn: Any) -> None:
                i, j = plgpu.planar_snake(turn.index[0], grid, 0, _TOGETHER)
                run(i, j, turn.local_index * steps)

        @pl.when(warpgroup == _MULTIPLYING)
        def _() -> None:
            plgpu.set_max_registers(_FEW_REGISTERS, action="decrease")
            start = pl.multiple_of(bounds[0], _COLUMNS)

            def copy(i: Any, j: Any, before: Any) -> None:
                def turn(step: Any, _: None) -> None:
                    slot = slot_of(before + step)
                    inner = pl.ds(step * tiles.depth, tiles.depth)
                    outer = pl.ds(start + j * tiles.columns, tiles.columns)
                    plgpu.barrier_wait(consumed.at[slot])
                    own = x.at[pl.ds(i * tiles.of_block, tiles.of_block), inner]
                    plgpu.copy_gmem_to_smem(own, of_x.at[slot], filled.at[slot])
                    own = w.at[inner, outer] if layout == "dv" else w.at[outer, inner]
                    plgpu.copy_gmem_to_smem(own, of_w.at[slot], filled.at[slot])

                each_step(turn)

            each_tile(copy)

        @pl.when(warpgroup < _MULTIPLYING)
        def _() -> None:
            plgpu.set_max_registers(_MANY_REGISTERS, action="increase")
            # All slots but one are free; each step frees that of the step before, the first step the last slot.
            for slot in range(stages - 1):
                plgpu.barrier_arrive(consumed.at[slot])
            own = pl.ds(warpgroup * tiles.rows, tiles.rows)

            def multiply(i: Any, j: Any, before: Any) -> None:
                def product(sums: Any) -> Any:
                    def turn(step: Any, _: None) -> None:
                        slot = slot_of(before + step)
                        plgpu.barrier_wait(filled.at[slot])
                        right = of_w.at[slot]
                        plgpu.wgmma(sums, of_x.at[slot, own], right if layout == "dv" else right.T)
                        plgpu.wgmma_wait(1)
                        plgpu.barrier_arrive(consumed.at[slot_of(before + step + (stages - 1))])

                    each_step(turn)
                    return sums[...]

                first_row = i * tiles.of_block + warpgroup * tiles.rows
                tile = Tile(j, j * tiles.columns, first_row, warpgroup, tiles, **shared)
                # Before the product, which they are here long before the end of.
                rows = {name: _of_rows(ref, tile) for name, ref in zip(by_row, refs[: len(by_row)], strict=True)}
                u = pl.run_scoped(product, plgpu.ACC((tiles.rows, tiles.columns), jnp.float32))
                epilogue(tile, u, bounds, rows, dict(zip(outputs, refs[len(by_row) :], strict=True)))

            each_tile(multiply)
            if staged is not None:
                plgpu.wait_smem_to_gmem(0)

    swizzled = lambda shape, dtype: plgpu.SMEM(
        shape,
        dtype,
        transforms=(plgpu.TilingTransform((_ROWS, _chunk(dtype))), plgpu.SwizzleTransform(_SWIZZLE)),
    )
    of_w = (tiles.depth, tiles.columns) if layout == "dv" else (tiles.columns, tiles.depth)
    scratch: dict[str, Any] = {
        "of_x": swizzled((stages, tiles.of_block, tiles.depth), x.dtype),
        "of_w": swizzled((stages, *of_w), w.dtype),
        "filled": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        "consumed": plgpu.Barrier(num_arrivals=_MULTIPLYING, num_barriers=stages),
    }
    if staged is not None:
        scratch["staging"] = swizzled((_MULTIPLYING, 2, tiles.rows, _chunk(staged)), staged)
    kernel = plgpu.kernel(
        body,
        out_type=list(outputs.values()),
        scratch_types=scratch,
        grid=(multiprocessors,),
        grid_names=("block",),
        num_threads=_MULTIPLYING + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )
    more = padded(n, tiles) - n
    return dict(zip(outputs, kernel(bounds, x, w, *(jnp.pad(a, (0, more)) for a in by_row.values())), strict=True))


def _multiprocessors() -> int:
    """As many blocks as run at once: of a GPU that is here or that is compiled for, otherwise of an H200."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None and device.num_cores:
        return int(device.num_cores)
    return int(jax.devices()[0].core_count) if jax.default_backend() == "gpu" else 132


def padded(n: int, tiles: Tiles) -> int:
    """The rows of whole tiles."""
    return pl.cdiv(n, tiles.of_block) * tiles.of_block


# -- within a tile -----------------------------------------------------------------------------------------------------


def _chunk(dtype: Any) -> int:
    """Columns that are as wide as a row of a tile in shared memory."""
    return _SWIZZLE // jnp.dtype(dtype).itemsize


def columns_of(shape: tuple[int, int], first: Any) -> Any:
    return plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA) + first


def along_rows(row: Any, shape: tuple[int, int]) -> Any:
    return jax.lax.broadcast_in_dim(row, shape, (0,))


def _of_rows(ref: Any, tile: Tile) -> Any:
    """A number for each row of a tile."""
    rows = ref.at[pl.ds(tile.first_row, tile.sizes.rows)]
    return plgpu.load(rows, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)  # type: ignore[call-arg]


def store(tile: Tile, u: Any, into: Any, function: Callable[[Any, Any], Any] | None = None) -> None:
    """``function(u, first column)`` of a tile to its place in memory, in turns: while one is copied, the next is
    computed."""
    rows, width = tile.sizes.rows, _chunk(into.dtype)
    for turn in range(tile.sizes.columns // width):
        part, first = u[:, turn * width : (turn + 1) * width], tile.first_column + turn * width
        part = part if function is None else function(part, first)
        place = tile.staging.at[tile.warpgroup, turn % 2]
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        place[...] = part.astype(into.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(place, into.at[pl.ds(tile.first_row, rows), pl.ds(first, width)])
