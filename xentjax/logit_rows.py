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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.core.policy import up

#: Below this total one class holds more than two thirds of the probability.
DOMINATED = 1.5

#: Rows of at most so many classes are summed column by column.
NARROW = 3


class Rows(NamedTuple):
    """Per row: the maximum, S = Σ e^{z-max}, rest = S - 1 without cancellation, and the logarithm of S."""

    maximum: Any
    total: Any
    rest: Any
    log_total: Any


def huge(dtype: Any) -> Any:
    """The largest finite number of a dtype, as a scalar of that dtype."""
    return jnp.asarray(jnp.finfo(dtype).max, dtype)


def row_sum(terms: Any, axis: int) -> Any:
    """The sum along ``axis``: over a few classes as additions of columns, which a compiler fuses into one loop over
    the rows, where a reduction would start a loop of two or three steps for every row."""
    if terms.shape[axis] > NARROW:
        return jnp.sum(terms, axis=axis)
    return functools.reduce(jnp.add, _columns(terms, axis))


def row_maximum(logits: Any, axis: int) -> Any:
    """The maximum of each row, in the dtype of computation."""
    if logits.shape[axis] > NARROW:
        return up(jnp.max(logits, axis=axis))
    return functools.reduce(jnp.maximum, _columns(up(logits), axis))


def row_minimum(logits: Any, axis: int) -> Any:
    """The minimum of each row, in the dtype of computation."""
    return -row_maximum(-logits, axis)


def at_labels(logits: Any, labels: Any, axis: int) -> Any:
    """The logit of each row's label, in the dtype of computation; of the nearest class where there is no such one."""
    if logits.shape[axis] > NARROW:
        taken = jnp.take_along_axis(logits, jnp.expand_dims(labels, axis), axis=axis, mode="clip")
        return up(jnp.squeeze(taken, axis))
    first, *others = _columns(up(logits), axis)
    return functools.reduce(lambda z, i: jnp.where(labels >= i + 1, others[i], z), range(len(others)), first)


def _columns(array: Any, axis: int) -> list[Any]:
    return [jax.lax.index_in_dim(array, i, axis, keepdims=False) for i in range(array.shape[axis])]


def finite(maximum: Any) -> Any:
    """The maximum with the largest finite number for +inf: e^{z-finite(max)} is then 0 for every finite logit."""
    return jnp.where(maximum == jnp.inf, huge(maximum.dtype), maximum)


def deviations(logits: Any, maximum: Any, axis: int) -> Any:
    """z - max in fused form: wrong (+inf, and not -inf) in rows with a +inf, which the careful branches redo."""
    return up(logits) - jnp.expand_dims(finite(maximum), axis)


def apart(*arrays: Any) -> Any:
    """The arrays behind a barrier. Two sums over the same widened or broadcast operand would share it, and XLA:CPU
    would store it, as large as the logits; set apart, each sum makes its own in its loop."""
    arrays = jax.lax.optimization_barrier(arrays)
    return arrays if len(arrays) > 1 else arrays[0]


def depths(logits: Any, maximum: Any, axis: int) -> Any:
    """max - z in fused form, at most the largest finite number, so that 0 times it is 0; -inf at a +inf.

    Its operands are set apart from those of the sum of exponentials.
    """
    logits, maximum = apart(logits, finite(maximum))
    return jnp.minimum(jnp.expand_dims(maximum, axis) - up(logits), huge(maximum.dtype))


def exact_deviations(logits: Any, maximum: Any, axis: int) -> Any:
    """z - max, 0 at the maximum whatever it is."""
    logits, maximum = up(logits), jnp.expand_dims(maximum, axis)
    return jnp.where(logits == maximum, 0, logits - maximum)


def exponentials(logits: Any, maximum: Any, axis: int) -> Any:
    """e^{z-max} for each entry, 1 at a +inf."""
    return jnp.minimum(jnp.exp(deviations(logits, maximum, axis)), 1)


def is_dominated(total: Any) -> Any:
    """Rows whose sum needs care: one class dominates, or something in the row is not finite."""
    return ~((total >= DOMINATED) & (total < jnp.inf))


def rows_of(logits: Any, axis: int) -> Rows:
    """The statistics of each row; the arrays have the shape of the logits without ``axis``."""
    maximum = row_maximum(logits, axis)
    total = row_sum(jnp.exp(deviations(logits, maximum, axis)), axis)

    def plain(logits: Any, maximum: Any, total: Any) -> tuple[Any, Any]:
        return total, total - 1

    def careful(logits: Any, maximum: Any, total: Any) -> tuple[Any, Any]:
        dominated = is_dominated(total)
        rest = sum_without_maximum(logits, maximum, axis)
        return jnp.where(dominated, 1 + rest, total), jnp.where(dominated, rest, total - 1)

    total, rest = with_care(is_dominated(total), careful, plain, logits, maximum, total, axis=axis)
    return Rows(maximum, total, rest, jnp.log1p(rest))


def with_care(needed: Any, careful: Any, plain: Any, logits: Any, *others: Any, axis: int) -> Any:
    """``careful`` if some row needs it, otherwise ``plain``. Rows of few classes are treated with care at once: among
    many of them some always need it."""
    if logits.shape[axis] <= NARROW:
        return careful(logits, *others)
    return jax.lax.cond(jnp.any(needed), careful, plain, logits, *others)


def sum_without_maximum(logits: Any, maximum: Any, axis: int) -> Any:
    """Σ e^{z-max} over the entries below the maximum; NaN where two entries are +inf."""
    d = jnp.minimum(deviations(logits, maximum, axis), 0)
    rest = row_sum(jnp.minimum(jnp.exp(d), d * -huge(d.dtype)), axis)

    infinite = mass_at_infinity(jnp.ones((), rest.dtype), logits, maximum, axis)
    return jnp.where(infinite > 1, jnp.nan, rest)


def mass_at_infinity(masses: Any, logits: Any, maximum: Any, axis: int) -> Any:
    """Σ masses over the entries that are +inf: by arithmetic, and only if there are any."""

    def total(masses: Any, logits: Any) -> Any:
        # e^{z/2-huge} is inf for z = inf and 0 for every finite z.
        return row_sum(up(masses) * jnp.minimum(jnp.exp(up(logits) * 0.5 - huge(maximum.dtype)), 1), axis)

    return jax.lax.cond(
        jnp.any(maximum == jnp.inf), total, lambda masses, logits: jnp.zeros_like(maximum), masses, logits
    )
