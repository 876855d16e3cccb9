"""Sums over the rows of a logistic regression, block by block: loss, gradient, Hessian in one pass over the features.

A block of rows stays in a processor's cache while all that is asked for is made of it, and no array of n rows is
stored beside the data: not the scaled features, not the curvature times the features. Two classes have logits
``[n]``, K classes ``[n, K]``. Gradients and Hessians here are those of the *table* of parameters, the weights with the
bias as one more row: ``[d + 1]`` or ``[d + 1, K]``, a Hessian ``[(d + 1) K, (d + 1) K]`` in the order of its elements.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.activations import softmax
from xentjax.core import policy
from xentjax.core.linear_map import vary_like
from xentjax.models import _rows
from xentjax.models.logistic import LogisticParams, logistic_derivative
from xentjax.models.scaling import Scaling
from xentjax.models.sparse import SparseRows
from xentjax.models.spread import Spread
from xentjax.models.streamed import StreamedRows
from xentjax.models.strided import StridedRows

#: Bytes of features in a block: it stays in the cache of one core. On an accelerator a block fills the device.
_CACHED, _LARGE = 2**19, 2**27


class Data(NamedTuple):
    """The rows of a problem. ``weights`` are those of the examples, ``scaling`` is applied to each block.

    In the place of the labels y may stand any other array of n rows that a function of blocks needs. Features that are
    ``shared`` are finite, in rows of weight 0 too, and those of many problems under one ``vmap``. Shares are weights
    over ``total``, where that is known already. Rows that are ``spread`` are those of many devices.
    """

    x: Any
    y: Any
    weights: Any = None
    offset: Any = None
    scaling: Scaling | None = None
    shared: bool = False
    total: Any = None
    spread: Spread | None = None


class Block(NamedTuple):
    """Some rows: features with a column of ones, labels, shares s / Σs (0 for what does not count), logits.

    ``outer`` are the products of all pairs of features ``[rows, (d + 1)²]``, where they are shared by many problems.
    """

    x: Any
    y: Any
    share: Any
    z: Any
    outer: Any = None


class Sums(NamedTuple):
    """The mean loss, and its first and second derivatives by the table of parameters; None for what is not asked."""

    loss: Any
    gradient: Any
    hessian: Any = None


def table(params: LogisticParams) -> Any:
    """The weights, with the bias as the last row."""
    return jnp.concatenate([params.weights, params.bias[None]])


def untable(rows: Any) -> LogisticParams:
    return LogisticParams(rows[:-1], rows[-1])


def sums(
    params: LogisticParams, data: Data, *, hessian: bool = False, hessian_dtype: Any = None, exact: Any = None
) -> Sums:
    """The mean loss with its gradient and, where it is asked for, its Hessian, as :func:`curvature` makes it."""

    def of_block(block: Block) -> Sums:
        loss, residual, _ = _rows.slopes(block.z, block.y)
        gradient = back(block, residual)
        # Curvature does not depend on the label; out of range it is NaN as the loss is.
        known = block._replace(share=jnp.where(jnp.isnan(loss), jnp.nan, block.share))
        second = curvature(known, hessian_dtype or block.x.dtype, exact) if hessian else None
        return Sums(jnp.sum(block.share * loss), gradient, second)

    found = over_blocks(of_block, params, data)
    return found._replace(hessian=whole(found.hessian, params)) if hessian else found


def mean_loss(params: LogisticParams, data: Data) -> Any:
    """The mean loss alone; 0 for rows without weight."""
    return over_blocks(lambda block: jnp.sum(block.share * _rows.losses(block.z, block.y)), params, data)


def product(params: LogisticParams, direction: LogisticParams, data: Data) -> Any:
    """The Hessian of the mean loss times a direction, as a table."""

    def of_block(block: Block) -> Any:
        return back(block, _rows.curved(block.z, block.y, _matmul(block.x, table(direction))))

    return over_blocks(of_block, params, data)


def row_curvature(params: LogisticParams, data: Data) -> Any:
    """What products with the Hessian need of each row: ŷ(1-ŷ) ``[n]``, or P times the sum of its targets ``[n, K]``."""

    def of_block(block: Block) -> Any:
        if block.z.ndim == 1:
            return logistic_derivative(block.z)
        p = softmax(block.z)
        return p if block.y.ndim == 1 else p * jnp.sum(block.y, axis=1, keepdims=True)

    return each_row(of_block, params, data)


def product_of_curvature(curvature: Any, direction: LogisticParams, data: Data) -> Any:
    """:func:`product` from the :func:`row_curvature` where the Hessian is taken: two products of matrices, no more."""

    def of_block(block: Block) -> Any:
        change, q = block.z, block.y
        if change.ndim > 1:
            total = jnp.sum(q, axis=1, keepdims=True)
            change = change - jnp.sum(q * change, axis=1, keepdims=True) / _rows.one_for_zero(total)
        return back(block, q * change)

    return over_blocks(of_block, direction, data._replace(y=curvature, offset=None))


def diagonal_blocks(params: LogisticParams, data: Data, dtype: Any = None) -> Any:
    """The Hessian of the mean loss between the parameters of one class, ``[K, d + 1, d + 1]`` (two classes: K = 1)."""

    def of_block(block: Block) -> Any:
        if block.z.ndim == 1:
            return curvature(block, dtype or block.x.dtype)[None]
        x, columns = (a.astype(dtype or a.dtype) for a in (block.x, block.x.T))
        own = (block.share[:, None] * _own_curvature(block)).astype(x.dtype)
        # Class by class: all of them at once would be an array of n d K numbers.
        return jax.lax.map(lambda of_class: _matmul(columns * of_class, x), own.T).astype(block.x.dtype)

    return over_blocks(of_block, params, data)


def diagonal(params: LogisticParams, data: Data) -> Any:
    """The diagonal of the Hessian of the mean loss, as a table."""

    def of_block(block: Block) -> Any:
        own = logistic_derivative(block.z) if block.z.ndim == 1 else _own_curvature(block)
        return back(block._replace(x=block.x * block.x), own)

    return over_blocks(of_block, params, data)


def over_blocks(
    function: Callable[[Block], Any],
    params: LogisticParams,
    data: Data,
    *,
    largest: bool = False,
    first: int | None = None,
) -> Any:
    """Σ function(block) over all rows, for a function whose sums over the rows add up.

    Args:
      function: of a block, to a tree of arrays.
      params: those that the blocks' logits are made with.
      data: the rows.
      largest: the largest of each number in the place of the sum, for functions of which that is right.
      first: only so many rows, the first ones of each device.
    """
    data = data._replace(total=total_of(data))
    if data.spread is not None:
        reduced = data.spread.largest if largest else data.spread.sum
        of_part = lambda rows: over_blocks(function, params, _part(data, rows), largest=largest, first=first)
        return reduced(of_part, _each(data))
    if first is not None:
        data = _slice(data, 0, min(first, data.x.shape[0]))
    n = data.x.shape[0]
    size, made = _blocks(function, params, data)
    if n <= size:
        return made(_slice(data, 0, n), jnp.ones(n, bool))

    def add(i: Any, start: Any, rows: Data, sums: Any) -> Any:
        # The last block ends with the last row, and leaves out what the one before it has counted.
        here = made(rows, start + jnp.arange(size, dtype=jnp.int32) >= i * size)
        return jax.tree.map(jnp.maximum if largest else jnp.add, sums, here)

    head = _slice(data, 0, size)
    if largest:
        return _each_block(add, 1, data, size, made(head, jnp.ones(size, bool)))
    shapes = jax.eval_shape(made, head, jax.ShapeDtypeStruct((size,), bool))
    every = jax.tree.leaves(_each(data))
    zeros = jax.tree.map(lambda leaf: vary_like(jnp.zeros(leaf.shape, leaf.dtype), *every), shapes)
    return _each_block(add, 0, data, size, zeros)


def each_row(function: Callable[[Block], Any], params: LogisticParams, data: Data) -> Any:
    """function(block) of all rows, for a function that gives something for each row."""
    data = data._replace(total=total_of(data))
    if data.spread is not None:
        return data.spread.each(lambda rows: each_row(function, params, _part(data, rows)), _each(data))
    n = data.x.shape[0]
    size, made = _blocks(function, params, data)
    if n <= size:
        return made(_slice(data, 0, n), jnp.ones(n, bool))
    every = jnp.ones(size, bool)

    def put(_: Any, start: Any, rows: Data, found: Any) -> Any:
        return jax.lax.dynamic_update_slice_in_dim(found, made(rows, every), start, 0)

    shape = jax.eval_shape(made, _slice(data, 0, size), jax.ShapeDtypeStruct((size,), bool))
    blank = vary_like(jnp.zeros((n, *shape.shape[1:]), shape.dtype), *jax.tree.leaves(_each(data)))
    return _each_block(put, 0, data, size, blank)


class _Chunk(NamedTuple):
    """Some of the rows of streamed features, from number ``start`` on."""

    rows: Any
    start: Any


def _each_block(step: Callable[..., Any], first: int, data: Data, size: int, carried: Any) -> Any:
    """carried = step(i, start, rows, carried) for each block of so many rows, from number i = ``first`` on.

    The last block ends with the last row. Of streamed features a chunk of blocks is read at a time: the blocks, and so
    their sums, are those of features in memory.
    """
    n = data.x.shape[0]
    count = -(-n // size)

    def of_block(x: Any, i: Any, carried: Any) -> Any:
        start = jnp.minimum(i * size, n - size)
        return step(i, start, _slice(data._replace(x=x), start, size), carried)

    if not isinstance(data.x, StreamedRows):
        return jax.lax.fori_loop(first, count, functools.partial(of_block, data.x), carried)
    chunks = -(-count // max(data.x.at_once // size, 1))
    each = -(-count // chunks)
    rows = min(each * size, n)

    def of_chunk(c: Any, carried: Any) -> Any:
        start = jnp.minimum(c * each * size, n - rows)
        chunk = _Chunk(data.x.block(start, rows), start)
        ends = jnp.maximum(c * each, first), jnp.minimum((c + 1) * each, count)
        return jax.lax.fori_loop(*ends, functools.partial(of_block, chunk), carried)

    return jax.lax.fori_loop(0, -(-count // each), of_chunk, carried)


def total_of(data: Data) -> Any:
    """What weights are divided by to be shares, Σs or n."""
    if data.total is not None:
        return data.total
    return max(data.x.shape[0], 1) if data.weights is None else _rows.total(data.weights)


def _each(data: Data) -> tuple[Any, Any, Any, Any]:
    """The arrays that have something for each row."""
    return data.x, data.y, data.weights, data.offset


def _part(data: Data, rows: tuple[Any, Any, Any, Any]) -> Data:
    """The rows that one device has of those that are spread."""
    x, y, weights, offset = rows
    return data._replace(x=_of_device(x), y=y, weights=weights, offset=offset, spread=None)


def _of_device(x: Any) -> Any:
    """Features that are made of parts, of which there is one here."""
    return dataclasses.replace(x, parts=1) if isinstance(x, SparseRows | StridedRows) else x


def scaling_of(
    x: Any, weights: Any = None, dtype: Any = None, *, centered: bool = True, spread: Spread | None = None
) -> Scaling:
    """Weighted mean and standard deviation of each column, over the rows that have a weight.

    Not ``centered``, which a model without intercept needs, they are 0 and the root of the mean square.
    """
    dtype = x.dtype if dtype is None else dtype
    n, d = x.shape
    nothing = LogisticParams(jnp.zeros(d, dtype), jnp.zeros((), dtype))
    data = Data(x, jnp.zeros(n, dtype), weights, spread=spread)
    data = data._replace(total=total_of(data))  # once for all passes

    def mean(block: Block, rows: Any) -> Any:
        return _matmul(block.share, rows if weights is None else _counted(block, rows))

    # From a point in their midst, so that the mean of numbers that are close to each other keeps its digits.
    near = jnp.zeros(d, dtype)
    if centered:
        head = x.block if isinstance(x, SparseRows) else block_rows(d, dtype)
        sums = lambda block: (mean(block, block.x[:, :-1]), jnp.sum(block.share))
        near, share = over_blocks(sums, nothing, data, first=head)
        near = near / _rows.one_for_zero(share)

    def moments(block: Block) -> Any:
        rows = block.x[:, :-1] - near
        return mean(block, rows), mean(block, rows * rows)

    shift, second = over_blocks(moments, nothing, data)
    shift = shift if centered else jnp.zeros_like(shift)
    center, variance = near + shift, second - shift * shift
    # Where that subtraction cancels most digits, the variance is no number, or squares underflowed: with care.
    numbers = jnp.finfo(dtype)
    is_safe = (variance >= 1e-4 * second) & jnp.isfinite(second) & (second > numbers.tiny / numbers.eps)
    inverse = jax.lax.cond(
        jnp.all(is_safe),
        lambda: jax.lax.rsqrt(variance),
        lambda: _careful_inverse(center, nothing, data, mean, centered=centered),
    )
    return Scaling(center, inverse)


def largest_magnitudes(data: Data) -> Any:
    """The largest magnitude of each column, as it is scaled, over the rows that have a weight."""
    d, dtype = data.x.shape[1], policy.compute_dtype(policy.result_dtype((data.x,)))
    nothing = LogisticParams(jnp.zeros(d, dtype), jnp.zeros((), dtype))
    of_block = lambda block: jnp.max(jnp.abs(block.x[:, :-1]), axis=0, initial=0)
    return over_blocks(of_block, nothing, data, largest=True)


def _careful_inverse(center: Any, nothing: LogisticParams, data: Data, mean: Any, *, centered: bool) -> Any:
    """The inverse deviations from the centre, 0 for columns that do not vary, of numbers of any size."""

    def range_of(block: Block) -> Any:
        rows, there = block.x[:, :-1], (block.share != 0)[:, None]
        return tuple(jnp.max(jnp.where(there, side, -jnp.inf), axis=0, initial=-jnp.inf) for side in (-rows, rows))

    below, high = over_blocks(range_of, nothing, data, largest=True)
    low = -below
    # The largest distance first: squares of 1e200 overflow, those of 1e-200 underflow.
    largest = jnp.maximum(high - center, center - low)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    of_block = lambda block: mean(block, ((block.x[:, :-1] - center) / safe) ** 2)
    deviation = jnp.sqrt(over_blocks(of_block, nothing, data)) * safe
    # The mean of equal numbers is rounded, so that their distance from it may be anything; their range is not.
    rounding = 8 * jnp.finfo(center.dtype).eps * jnp.abs(center)
    varies = high - low > rounding if centered else largest > 0
    return jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0)


def _counted(block: Block, rows: Any) -> Any:
    return _rows.only(block.share != 0, rows)


def _slice(data: Data, start: Any, size: int) -> Data:
    cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size)
    y, weights, offset = jax.tree.map(cut, (data.y, data.weights, data.offset))
    return data._replace(x=_rows_of(data.x, start, size), y=y, weights=weights, offset=offset)


def _rows_of(x: Any, start: Any, size: int) -> Any:
    if isinstance(x, SparseRows):
        return x.dense(start)
    if isinstance(x, _Chunk):
        return jax.lax.dynamic_slice_in_dim(x.rows, start - x.start, size)
    return (
        x.block(start, size)
        if isinstance(x, StreamedRows | StridedRows)
        else jax.lax.dynamic_slice_in_dim(x, start, size)
    )


def _blocks(function: Callable[[Block], Any], params: LogisticParams, data: Data) -> tuple[int, Callable[..., Any]]:
    """The number of rows in a block, and the function of some rows of the data and of which of them count."""
    n, d = data.x.shape
    coefficients, total = table(params), data.total

    def made(rows: Data, counts: Any) -> Any:
        x = policy.up(rows.x).astype(coefficients.dtype)
        y = rows.y.astype(x.dtype) if policy.is_float(rows.y) else rows.y
        if rows.weights is None:
            share = jnp.where(counts, jnp.asarray(1 / total, x.dtype), 0)
        else:
            share = jnp.where(counts, rows.weights.astype(x.dtype) / total, 0)
        x = x if rows.scaling is None else rows.scaling.apply(x)
        x = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
        offset = rows.offset
        if rows.weights is not None:  # what has no weight is not there, whatever it holds
            there = rows.weights != 0
            x, y = x if data.shared else _rows.only(there, x), _rows.only(there, y)
            offset = None if offset is None else _rows.only(there, offset)
        z = _matmul(x, coefficients)
        z = z if offset is None else z + offset.astype(z.dtype)
        outer = (x[:, :, None] * x[:, None, :]).reshape(x.shape[0], -1) if data.shared else None
        return function(Block(x, y, share, z, outer))

    return data.x.block if isinstance(data.x, SparseRows) else _even(n, block_rows(d, coefficients.dtype)), made


def _even(n: int, most: int) -> int:
    """How many rows a block has where n rows make the fewest blocks of at most so many, and these overlap the least."""
    count = max(-(-n // most), 1)
    return min(-(-n // count // 16) * 16, most)


def back(block: Block, residual: Any) -> Any:
    """Σ p_i r_i x_i as a table. For a vector r it is r X: XLA:CPU takes five times as long for the literal Xᵀr."""
    return transposed(block, _rows.scale(block.share, residual))


def transposed(block: Block, rows: Any) -> Any:
    """Σ r_i x_i as a table."""
    return _matmul(rows, block.x) if rows.ndim == 1 else _matmul(block.x.T, rows)


def spread(block: Block, curvature: Any) -> Any:
    """Σ A_i ⊗ x_i x_iᵀ for a number A of each row, or for a matrix ``[K, K]``."""
    if curvature.ndim == 1 and block.outer is not None:
        return _matmul(curvature, block.outer).reshape(block.x.shape[1], -1)
    if curvature.ndim == 1:
        return _matmul((block.x * curvature[:, None]).T, block.x)
    (rows, width), k = block.x.shape, curvature.shape[1]
    weighted = (block.x[:, :, None, None] * curvature[:, None]).reshape(rows, width * k * k)
    return _matmul(weighted.T, block.x).reshape(width, k, k, width).swapaxes(2, 3).reshape(width * k, width * k)


def without_bias(hessian: Any, weights: int) -> Any:
    """Hessians ``[..., p, p]`` in which only so many weights are parameters: the bias has that of a unit parabola."""
    free = jnp.arange(hessian.shape[-1]) < weights
    return jnp.where(free[:, None] & free, hessian, jnp.eye(free.size, dtype=hessian.dtype))


def curvature(block: Block, dtype: Any, exact: Any = None) -> Any:
    """The Hessian of a block's loss, its products in ``dtype``, or, if ``exact`` is given and true, in that of the
    features. For K classes it is that between the parameters of each pair of classes, ``[K (K + 1) / 2, d + 1, d + 1]``
    """
    if exact is not None and jnp.dtype(dtype) != block.x.dtype:
        return jax.lax.cond(exact, lambda: curvature(block, block.x.dtype), lambda: curvature(block, dtype))
    if block.z.ndim == 1:
        factors = (block.share * logistic_derivative(block.z)).astype(dtype)
        return spread(block._replace(x=block.x.astype(dtype)), factors).astype(block.x.dtype)
    return _multiclass_curvature(block, dtype)


def _multiclass_curvature(block: Block, dtype: Any) -> Any:
    """Σ_i p_i T_i P_c(δ_ce - P_e) x_i x_iᵀ for all classes c ≤ e, T being the sum of a row's targets."""
    p = softmax(block.z)
    first, second = np.triu_indices(p.shape[1])
    factors = jnp.where(first == second, _own_variance(p)[:, first], -p[:, first] * p[:, second])
    factors = factors * jnp.reshape(block.share * _total(block), (-1, 1))
    x, columns = (a.astype(dtype) for a in (block.x, block.x.T))
    # Pair by pair: all of them at once would leave the cache.
    of_pair = (lambda factor: _matmul(columns * factor, x)) if block.outer is None else functools.partial(spread, block)
    return jax.lax.map(of_pair, factors.T.astype(dtype)).astype(block.x.dtype)


def whole(curvature: Any, params: LogisticParams) -> Any:
    """The matrix over all parameters from what :func:`curvature` makes."""
    if params.bias.ndim == 0:
        return curvature
    k = params.bias.size
    first, second = np.triu_indices(k)
    number = np.zeros((k, k), np.int32)
    number[first, second] = number[second, first] = np.arange(first.size)
    size = k * curvature.shape[-1]
    return curvature[number].transpose(2, 0, 3, 1).reshape(size, size)


def _own_curvature(block: Block) -> Any:
    """T P_c(1 - P_c), the second derivative of each row's loss by each of its logits."""
    total = _total(block)
    return jnp.reshape(total, (-1, 1)) * _own_variance(softmax(block.z))


def _own_variance(p: Any) -> Any:
    """P_c(1 - P_c) as P_c Σ_{k≠c} P_k."""
    return p * _matmul(p, 1 - jnp.eye(p.shape[1], dtype=p.dtype))


def _total(block: Block) -> Any:
    """The sum of each row's targets."""
    return jnp.ones((), block.x.dtype) if block.y.ndim == 1 else jnp.sum(block.y, axis=1)


def block_rows(d: int, dtype: Any) -> int:
    """How many rows of d features a block has."""
    wanted = _CACHED if jax.default_backend() == "cpu" else _LARGE
    return max(wanted // ((d + 1) * jnp.dtype(dtype).itemsize) // 16 * 16, 64)


def _matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, precision=_rows.PRECISION)
