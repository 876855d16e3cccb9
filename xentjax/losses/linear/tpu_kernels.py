r"""Products x @ w with sums over their rows in one kernel, for TPUs from v5e on.

A tile of logits is in fast memory when its product is done.  What it leaves of each row is kept for each of 128 lanes,
which has every 128th column: entries are compared and added where they are, and the lanes become one in the end.
Logits reach slow memory only where they are asked for.

Columns of a partial tile hold anything, NaN too, and are masked before they are looked at.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.tpu as pltpu
import jax.numpy as jnp

from xentjax.core.linear_map import vary_like
from xentjax.losses.linear import parts
from xentjax.losses.linear.kernels import BYTES_OF_ROW
from xentjax.losses.linear.vocabulary import LANES, Arrays, Walk, product

#: Rows of x that are multiplied at once, and columns of w: few more than these are in registers.
_ROWS, _COLUMNS = 256, 1024
#: Rows come in so many, in 16 bits.
_SUBLANES = 16
#: So many times these rows are in fast memory at most, while all of w goes by: more leave a product that waits for
#: nothing on each TPU.
_TURNS = 8
#: Bytes of the rows of x there, and of the columns of w, of which the next ones are there, too: at least as many as
#: the fewest of them need.
_OF_X, _OF_W = _ROWS * BYTES_OF_ROW, LANES * BYTES_OF_ROW
#: Of fast memory, results and what does not fit registers included.
_LIMIT = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Tiles:
    """What is in fast memory at once: ``turns`` times ``rows`` of x, and ``columns`` of w."""

    rows: int
    turns: int
    columns: int

    @classmethod
    def of(cls, rows: int, depth: int, width: int, dtype: Any) -> Tiles:
        """Those of a problem: all rows in tiles of nearly the same size."""
        of_row = depth * jnp.dtype(dtype).itemsize
        at_once = min(_ROWS, _up(rows, _SUBLANES))
        turns = pl.cdiv(rows, at_once)
        turns = pl.cdiv(turns, pl.cdiv(turns, min(_TURNS, _OF_X // (at_once * of_row))))
        columns = min(_COLUMNS, _OF_W // of_row // LANES * LANES, _up(width, LANES))
        return cls(at_once, turns, columns)

    @property
    def all_rows(self) -> int:
        return self.rows * self.turns


def _up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def lane_statistics(
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
    """What each lane of the logits u = x w leaves: lane l of 128 has the columns l, l + 128, ...

    A kernel of :func:`xentjax.losses.linear.parts.rows`, with x in bfloat16 or float32, D a multiple of 128, N ≥ 1.
    """
    n, width = x.shape[0], w.shape[1 if layout == "dv" else 0]
    if layout == "dv" and width % LANES:
        # Stored by columns, as that takes less memory; by rows it would be a copy.
        w, layout = w.T, "vd"
    turned = layout == "vd"
    varying: Any = {"manual_axis_type": jax.typeof(x).manual_axis_type}  # type: ignore[attr-defined]
    of_row = jax.ShapeDtypeStruct((n, LANES), jnp.float32, **varying)
    outputs = dict.fromkeys(("maximum", "rest", "at", *["spread"] * spread), of_row)
    by_rows = pl.BlockSpec((tiles.all_rows, LANES), lambda i, j: (i, 0))
    places = dict.fromkeys(outputs, by_rows)
    if products:
        outputs["products"] = jax.ShapeDtypeStruct((n, width), jnp.float32, **varying)
        places["products"] = pl.BlockSpec((tiles.all_rows, tiles.columns), lambda i, j: (i, j))

    def body(bound: Any, label: Any, x: Any, w: Any, *refs: Any) -> None:
        into, u = dict(zip(outputs, refs, strict=False)), refs[-1]
        tile = pl.program_id(1)
        first_column = tile * tiles.columns
        lane = jax.lax.broadcasted_iota(jnp.int32, (tiles.rows, LANES), 1)

        @pl.when(tile == 0)
        def _() -> None:
            for name, start in {"maximum": -jnp.inf, "rest": -1.0, "at": 0.0, "spread": 0.0}.items():
                if name in into:
                    into[name][...] = jnp.full(into[name].shape, start, jnp.float32)

        def turn(i: Any, _: None) -> None:
            own = pl.ds(pl.multiple_of(i * tiles.rows, tiles.rows), tiles.rows)
            u[...] = product(x[own, :], w[...], 1, 1 if turned else 0)
            if products:
                into["products"][own, :] = u[...]

            @pl.when(first_column + tiles.columns > bound[0])
            def _() -> None:
                column = first_column + jax.lax.broadcasted_iota(jnp.int32, u.shape, 1)
                u[...] = jnp.where(column < bound[0], u[...], -jnp.inf)

            before, at = into["maximum"][own, :], into["at"][own, :]
            label_from_lane = label[own, :] - lane
            maximum = before
            for start in range(0, tiles.columns, LANES):
                part = u[:, start : start + LANES]
                at = jnp.where(label_from_lane == first_column + start, part, at)
                maximum = jnp.maximum(maximum, part)
            below, ties, falls = (jnp.zeros(maximum.shape, jnp.float32) for _ in range(3))
            for start in range(0, tiles.columns, LANES):
                part = u[:, start : start + LANES]
                is_maximum, fall = part == maximum, part - maximum
                below += jnp.where(is_maximum, 0.0, jnp.exp(fall))
                ties += jnp.where(is_maximum, 1.0, 0.0)
                if spread:
                    falls += jnp.where(is_maximum | (lane >= bound[0] - (first_column + start)), 0.0, -fall)
            rest, is_before = into["rest"][own, :], before == maximum
            earlier = jnp.where(is_before, rest + ties, (1 + rest) * jnp.exp(before - maximum) + (ties - 1))
            into["rest"][own, :] = earlier + below
            into["maximum"][own, :], into["at"][own, :] = maximum, at
            if spread:
                counted = jnp.minimum(_counted(bound[0], lane), tile * (tiles.columns // LANES))
                rise = counted.astype(jnp.float32) * (maximum - before)
                rise = jnp.where(is_before | (counted == 0), 0.0, rise)
                into["spread"][own, :] += rise + falls

        jax.lax.fori_loop(0, tiles.turns, turn, None)

    call = pl.pallas_call(
        body,
        grid=(pl.cdiv(n, tiles.all_rows), pl.cdiv(width, tiles.columns)),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((tiles.all_rows, 1), lambda i, j: (i, 0)),
            # The next rows are not there before all of w has gone by.
            pl.BlockSpec((tiles.all_rows, x.shape[1]), lambda i, j: (i, 0), pipeline_mode=pl.Buffered(1)),
            pl.BlockSpec((tiles.columns, x.shape[1]), lambda i, j: (j, 0))
            if turned
            else pl.BlockSpec((x.shape[1], tiles.columns), lambda i, j: (0, j)),
        ],
        out_specs=list(places.values()),
        out_shape=list(outputs.values()),
        scratch_shapes=[pltpu.VMEM((tiles.rows, tiles.columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_LIMIT),
        name="lane_statistics",
    )
    bound = vary_like(jnp.asarray(columns, jnp.int32)[None], x)
    # A TPU counts in 32 bits, whatever JAX does.
    with jax.enable_x64(False):
        found = dict(zip(outputs, call(bound, labels[:, None], x, w), strict=True))
    counted = _counted(columns, jnp.arange(LANES, dtype=jnp.int32))[:, None]
    return {name: value if name == "products" else value.T for name, value in found.items()} | {"counted": counted}


def _counted(columns: Any, lane: Any) -> Any:
    """How many of the first columns are in a lane."""
    return jax.lax.div(columns + (LANES - 1) - lane, jnp.int32(LANES))


def rows(walk: Walk, arrays: Arrays, heads: tuple[str, ...]) -> dict[str, Any]:
    """What a walk over all columns leaves of each row: the state in which
    :mod:`xentjax.losses.linear.statistics` merges blocks."""
    n, d = arrays["x"].shape
    tiles = Tiles.of(n, d, walk.width, arrays["x"].dtype)
    return parts.rows(walk, arrays, heads, lane_statistics, tiles)
