r"""Statistics of rows of logits: the maximum m, S = Σ e^{z-m}, and rest = S - 1, all of it with every digit.

Where one class dominates, the digits of a loss are in rest, the sum over the *other* classes: S rounds it away.  So
S is taken first, in the form that compilers fuse (subtract, exp, sum: one read of the logits, nothing stored).
Where S >= 1.5, S - 1 is as good as rest.  Only if some row has S < 1.5, which also means that its maximum is not
tied, a second fused pass sums without the maximum.  The maximum is left out by arithmetic alone, because a select or
a compare inside the sum would make XLA:CPU store its operand: min(e^d, -d·huge) is 0 for d = 0 and e^d for d < 0.

A single +inf is the limit of a large logit: its class has probability one.  Two of them, a NaN, and a row of
nothing but -inf give NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.care import anywhere, as_bits, for_rows, of_bits
from xentjax.core.policy import up
from xentjax.numerics import total

#: Below this total one class holds more than two thirds of the probability.
DOMINATED = 1.5

#: Rows of at most so many classes are summed column by column; of fewer for class indices, whose one sum is fast row by
#: row already; of even fewer for pairs of rows, whose sums are long.
COLUMNWISE, COLUMNWISE_INDICES, COLUMNWISE_PAIRS = 64, 40, 16


class Rows(NamedTuple):
    """Per row: the maximum, S = Σ e^{z-max}, rest = S - 1 without cancellation, and the logarithm of S."""

    maximum: Any
    total: Any
    rest: Any
    log_total: Any


def huge(dtype: Any) -> Any:
    """The largest finite number of a dtype, as a scalar of that dtype."""
    return jnp.asarray(jnp.finfo(dtype).max, dtype)


# -- along the rows ----------------------------------------------------------------------------------------------------


class Reduction(NamedTuple):
    """How the terms of a row become one: two of them, and all along an axis."""

    combine: Callable[[Any, Any], Any]
    reduce: Callable[..., Any]


def along_rows(
    reduction: Reduction,
    term: Callable[..., Any],
    entries: Sequence[Any],
    rows: Sequence[Any],
    axis: int,
    *,
    apart: bool = False,
    columnwise: int = COLUMNWISE,
) -> Any:
    """The reduction of term(entry, ..., row value, ...) over the classes of each row.

    Over a few classes the terms are combined column by column, which a compiler fuses into one loop over the rows,
    where a reduction would start a loop of two or three steps for every row.  Otherwise it is one fused reduction.

    Args:
      reduction: as in :func:`row_sum` and :func:`row_max`.
      term: of one entry of each array and one number of each row.
      entries: arrays with the classes along ``axis``.
      rows: numbers for each row.
      axis: that of the classes.
      apart: whether the reduction's operands are behind a barrier. Two sums over the same widened or broadcast operand
        would share it, and XLA:CPU would store it, as large as the logits; set apart, each makes its own in its loop.
      columnwise: at most so many classes are combined so.
    """
    if is_columnwise(entries[0], axis, columnwise):
        terms = [term(*column, *rows) for column in zip(*(columns(array, axis) for array in entries), strict=True)]
        while len(terms) > 1:
            # In pairs: what one addition rounds off, few others add to.
            terms = [functools.reduce(reduction.combine, terms[i : i + 2]) for i in range(0, len(terms), 2)]
        return terms[0]
    if apart:
        entries, rows = jax.lax.optimization_barrier((entries, rows))
    return reduction.reduce(term(*entries, *(jnp.expand_dims(row, axis) for row in rows)), axis=axis)


def wide_sum(terms: Any, axis: int) -> Any:
    """Σ terms over the classes of each row, as one reduction."""
    summed = jnp.squeeze(total(terms, axis), axis)
    # Changes nothing, but keeps a division that follows out of the loop of the sum, which XLA:CPU would run at half
    # its speed.
    return jnp.where(jnp.isnan(summed), jnp.nan, summed)


row_sum = functools.partial(along_rows, Reduction(jnp.add, wide_sum))
row_max = functools.partial(along_rows, Reduction(jnp.maximum, jnp.max))


class Columns(tuple[Any, ...]):
    """The classes of logits one by one, each over all rows."""

    @property
    def dtype(self) -> Any:
        return self[0].dtype


def is_columnwise(logits: Any, axis: int, columnwise: int = COLUMNWISE) -> bool:
    return isinstance(logits, Columns) or width(logits, axis) <= columnwise


def width(logits: Any, axis: int) -> int:
    """The number of classes."""
    return len(logits) if isinstance(logits, Columns) else logits.shape[axis]


def columns(array: Any, axis: int) -> Columns:
    """The columns of an array, or those that are given: sums of the same ones read them once."""
    if isinstance(array, Columns):
        return array
    found = []
    for i in range(array.shape[axis]):
        if jnp.finfo(array.dtype).bits == 16:
            # Each from an array of its own: XLA:CPU stores what more than a few slices are taken from.
            array = jax.lax.optimization_barrier(array)
        bits = jax.lax.index_in_dim(as_bits(array), i, axis=axis, keepdims=False)
        found.append(of_bits(bits, array.dtype))
    return Columns(found)


def row_maximum(logits: Any, axis: int) -> Any:
    """The maximum of each row, in the dtype of computation."""
    return up(jnp.max(logits, axis=axis))


def at_labels(logits: Any, labels: Any, axis: int) -> Any:
    """The logit of each row's label, in the dtype of computation; of the nearest class where there is no such one."""
    sharding = jax.typeof(logits).sharding
    if sharding.spec[axis] is not None:
        # Split over an explicit axis of a mesh, along which nothing can be taken.
        classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis, out_sharding=sharding)
        is_own = classes == jnp.expand_dims(jnp.clip(labels, 0, logits.shape[axis] - 1), axis)
        return jnp.sum(jnp.where(is_own, up(logits), 0), axis=axis)
    taken = jnp.take_along_axis(logits, jnp.expand_dims(labels, axis), axis=axis, mode="clip")
    return up(jnp.squeeze(taken, axis))


# -- terms -------------------------------------------------------------------------------------------------------------


def finite(maximum: Any) -> Any:
    """The maximum with the largest finite number for +inf: e^{z-finite(max)} is then 0 for every finite logit. By an
    operation that XLA:CPU has in the loops of its sums: it may find the maximum and the sum in one."""
    return jnp.minimum(maximum, huge(maximum.dtype))


def exponential(z: Any, finite_maximum: Any) -> Any:
    """e^{z-max}, as it is summed first: +inf at a +inf."""
    return jnp.exp(up(z) - finite_maximum)


def depth(z: Any, finite_maximum: Any) -> Any:
    """max - z, at most the largest finite number, so that 0 times it is 0; -inf at a +inf."""
    return jnp.minimum(finite_maximum - up(z), huge(finite_maximum.dtype))


def exponentials(logits: Any, maximum: Any, axis: int) -> Any:
    """e^{z-max} for each entry, 1 at a +inf."""
    return jnp.minimum(exponential(logits, jnp.expand_dims(finite(maximum), axis)), 1)


def depths(logits: Any, maximum: Any, axis: int) -> Any:
    """max - z for each entry, 0 at the maximum whatever it is, at most the largest finite number."""
    return jnp.maximum(depth(logits, jnp.expand_dims(finite(maximum), axis)), 0)


def at_limit(logits: Any, rows: Rows, axis: int) -> tuple[Any, Rows]:
    """A row with one +inf as the limit that it stands for, a class of probability one: 0 there, -inf elsewhere."""
    is_limit = rows.maximum == jnp.inf
    point = jnp.where(logits == jnp.inf, jnp.zeros_like(logits), -jnp.inf)
    maximum = jnp.where(is_limit, 0, rows.maximum)
    return jnp.where(jnp.expand_dims(is_limit, axis), point, logits), rows._replace(maximum=maximum)


# -- sums of exponentials ----------------------------------------------------------------------------------------------


def is_dominated(total: Any) -> Any:
    """Rows whose sum needs care: one class dominates, or something in the row is not finite."""
    return ~((total >= DOMINATED) & (total < jnp.inf))


def plain_rows(logits: Any, axis: int, columnwise: int) -> Rows:
    """The statistics of each row; the arrays have the shape of the logits without ``axis``. Right where the row is not
    dominated."""
    if is_columnwise(logits, axis, columnwise):
        logits = columns(logits, axis)
        maximum = row_max(up, [logits], [], axis)
    else:
        maximum = row_maximum(logits, axis)
    total = row_sum(exponential, [logits], [finite(maximum)], axis, columnwise=0)
    return Rows(maximum, total, total - 1, jnp.log(total))


def rows_of(logits: Any, axis: int, *, of_subset: bool = False, columnwise: int = COLUMNWISE) -> Rows:
    """The statistics of each row, with care where it is needed, or of few rows that need it."""
    maximum = row_maximum(logits, axis)
    sums = _columnwise_sums if is_columnwise(logits, axis, columnwise) else _rowwise_sums
    on_cpu = functools.partial(sums, axis=axis, of_subset=of_subset)
    total, rest = jax.lax.platform_dependent(
        logits, maximum, cpu=on_cpu, default=functools.partial(_sums_at_once, axis=axis)
    )
    return Rows(maximum, total, rest, jnp.log1p(rest))


def _sums_at_once(logits: Any, maximum: Any, axis: int) -> tuple[Any, Any]:
    """S and rest with care for every row, and no branch: on a GPU a select in a sum costs nothing, the sums of one
    operand are one kernel, and a ``lax.cond`` would let the host wait and the logits be stored."""
    ties, below = _ties_and_below(logits, maximum, axis)
    rest = below + (ties - 1)
    has_none = (maximum == -jnp.inf) | ((maximum == jnp.inf) & (ties > 1))
    rest = jnp.where(has_none, jnp.nan, rest)
    return 1 + rest, rest


def _ties_and_below(logits: Any, maximum: Any, axis: int) -> tuple[Any, Any]:
    """How many entries of each row are its maximum, and the sum of e^{z-max} over the others."""
    ties = row_sum(lambda z, m: (up(z) == m).astype(m.dtype), [logits], [maximum], axis)
    below = row_sum(lambda z, m: jnp.where(up(z) == m, 0, jnp.exp(up(z) - m)), [logits], [maximum], axis)
    return ties, below


def _rowwise_sums(logits: Any, maximum: Any, axis: int, of_subset: bool) -> tuple[Any, Any]:
    total = row_sum(exponential, [logits], [finite(maximum)], axis, columnwise=0)

    def careful(logits: Any, row: tuple[Any, Any], axis: int) -> tuple[Any, Any]:
        def below(z: Any, finite_maximum: Any) -> Any:
            d = jnp.minimum(up(z) - finite_maximum, 0)
            return jnp.minimum(jnp.exp(d), d * -huge(d.dtype))

        maximum, total = row
        rest = row_sum(below, [logits], [finite(maximum)], axis, columnwise=0)
        # In XLA:CPU's loops of sums the minimum of a NaN and a number is the number; in the total the NaN has stayed.
        rest = jnp.where(jnp.isnan(total) | (_infinite_entries(logits, maximum, axis) > 1), jnp.nan, rest)
        dominated = is_dominated(total)
        return jnp.where(dominated, 1 + rest, total), jnp.where(dominated, rest, total - 1)

    if of_subset:
        return careful(logits, (maximum, total), axis)
    return for_rows(is_dominated(total), (total, total - 1), careful, logits, (maximum, total), axis, whole=True)


def _columnwise_sums(logits: Any, maximum: Any, axis: int, of_subset: bool) -> tuple[Any, Any]:
    """Among many rows of few classes some are always dominated: all are summed without their maximum, at once.

    What a ``cond`` gives is stored, one number a row; it would be computed anew for every entry of the gradient.
    """
    ties, below = _ties_and_below(logits, maximum, axis)

    def careful(rest: Any, logits: Any, maximum: Any) -> Any:
        infinite = _infinite_entries(logits, maximum, axis)
        rest = jnp.where(maximum == jnp.inf, 0, rest)
        return jnp.where((infinite > 1) | ~(maximum > -jnp.inf), jnp.nan, rest)

    operands = below + (ties - 1), logits, maximum
    if of_subset:
        rest = careful(*operands)
    else:
        needed = anywhere(~(jnp.abs(maximum) < jnp.inf))
        rest = jax.lax.cond(needed, careful, lambda rest, *_: rest, *operands)
    return 1 + rest, rest


def _infinite_entries(logits: Any, maximum: Any, axis: int) -> Any:
    """How many entries of each row are +inf: by arithmetic, and only if there are any."""

    def count(logits: Any) -> Any:
        # e^{z/2-huge} is inf for z = inf and 0 for every finite z.
        return row_sum(lambda z: jnp.minimum(jnp.exp(up(z) * 0.5 - huge(maximum.dtype)), 1), [logits], [], axis)

    return jax.lax.cond(anywhere(maximum == jnp.inf), count, lambda logits: jnp.zeros_like(maximum), logits)
