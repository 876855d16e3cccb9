"""Statistics of rows of logits from one walk over the vocabulary, and how those of two parts of it become one.

For each row the maximum m and rest, the sum of e^{u-m} without one largest entry: parts merge as

    rest = rest_a + (1 + rest_b) e^{m_b - m_a}  for m_a >= m_b,

a sum of positive terms, so that a confident prediction keeps its digits.  Whatever else is asked for goes along.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.core.linear_map import vary_like
from xentjax.logit_rows import COLUMNWISE_INDICES, Rows, depths, exponentials, huge, rows_of
from xentjax.losses.linear.kernels import devices_with
from xentjax.losses.linear.vocabulary import Arrays, Block, Walk, zeros

State = dict[str, Any]

#: Up to so many labels an example may be found by comparing columns with them, more by their places.
COMPARED = 4


def statistics_alone(walk: Walk, arrays: Arrays, heads: tuple[str, ...], top: int = 0) -> State:
    r"""Statistics of each row of logits u, by name, without a derivative.

    Args:
      walk: how the vocabulary is walked over.
      arrays: as :data:`xentjax.losses.linear.vocabulary.Arrays` says.
      heads: which of ``gap``, ``uniform``, ``depth``, ``teacher``, ``teacher_argmax``, ``argmax``, ``top`` and
        ``known`` are asked for; ``maximum`` and ``log_total`` are always there.
      top: how many classes ``"top"`` gives.

    Returns:
      ``maximum`` m ``[N]``, ``log_total`` :math:`\log\sum_j e^{u_j - m}` ``[N]``;
      ``gap`` :math:`-\log p` of each label ``[N, k]``, NaN where there is no such class;
      ``uniform`` :math:`\sum_j c_j (-\log p_j)` ``[N]``, c being 1 without class weights;
      ``depth`` :math:`\sum_j p_j (m - u_j)` ``[N]``, which is the entropy less ``log_total``;
      ``teacher`` :math:`\sum_j t_j c_j (-\log p_j)` and ``teacher_mass`` :math:`\sum_j t_j c_j`, for a teacher's
      distribution t, with its ``teacher_maximum`` and ``teacher_log_total``;
      ``argmax`` ``[N]`` and ``top`` ``[N, top]``, class indices, with their ``top_gap``, -log p; ``teacher_argmax``;
      ``known`` :math:`x w`, ``[N, V]``.
    """
    every = tuple(arrays.values())
    is_class: Any = arrays.get("is_class")
    arrays = {name: vary_like(array, *every) for name, array in arrays.items()}
    found: State = {}
    if {"teacher", "teacher_argmax"} & set(heads):
        of_teacher = _rows(walk, arrays, ("argmax",) if "teacher_argmax" in heads else (), 0, of="teacher_")
        found = {f"teacher_{name}": value for name, value in of_teacher.items()}
    found |= _rows(walk, {**arrays, **found}, heads, top)
    if "gap" in found:
        found["gap"] = jnp.where(is_class, found["gap"], jnp.nan)
    return found


def _rows(walk: Walk, arrays: Arrays, heads: tuple[str, ...], top: int, of: str = "") -> State:
    walked = functools.partial(_walked, walk, heads=heads, top=top, of=of)
    by_kernels = {} if of else _by_kernels(walk, arrays, heads)
    state = jax.lax.platform_dependent(arrays, **by_kernels, default=walked) if by_kernels else walked(arrays)
    if walk.axis_name is not None:
        state |= _across_devices(walk, arrays, state, heads, top)
    return _finished(walk, arrays, state, heads)


def _by_kernels(walk: Walk, arrays: Arrays, heads: tuple[str, ...]) -> dict[str, Callable[[Arrays], State]]:
    """What computes it on devices whose kernels do."""
    found: dict[str, Callable[[Arrays], State]] = {}
    devices = devices_with(walk, arrays)
    if "cuda" in devices:
        from xentjax.losses.linear import gpu_kernels

        found["cuda"] = functools.partial(gpu_kernels.rows, walk, heads=heads)
    if "tpu" in devices:
        from xentjax.losses.linear import tpu_kernels

        found["tpu"] = functools.partial(tpu_kernels.rows, walk, heads=heads)
    return found


def _walked(walk: Walk, arrays: Arrays, heads: tuple[str, ...], top: int, of: str) -> State:
    """What the columns of this device leave of each row."""

    def step(block: Block, state: State) -> State:
        products = walk.products_of(arrays, block, of)
        logits = walk.logits(arrays, block, products, of)
        rows = rows_of(logits, -1, columnwise=COLUMNWISE_INDICES)
        if "reference" in state:
            # Sums of logits are measured from the maximum of the first block that has a finite one.
            finite = jnp.where(jnp.abs(rows.maximum) < jnp.inf, rows.maximum, 0)
            state = {**state, "reference": jnp.where(state["maximum"] > -jnp.inf, state["reference"], finite)}
        part = _of_block(walk, arrays, block, logits, rows, state.get("reference"), heads, top)
        merged = _merged(state, part, heads, top)
        if "known" in heads:
            merged["known"] = products
            if walk.blocks > 1:
                place = (0, block.start)
                merged["known"] = jax.lax.dynamic_update_slice(state["known"], products, place)
        return merged

    return walk.over(arrays, step, _nothing(walk, arrays, heads, top))


# -- one block ---------------------------------------------------------------------------------------------------------


def _nothing(walk: Walk, arrays: Arrays, heads: tuple[str, ...], top: int) -> State:
    """The statistics of no columns."""
    n = arrays["x"].shape[0]
    none = zeros((n,), arrays)
    state = {"maximum": none - jnp.inf, "rest": none - 1}
    if "gap" in heads:
        state["at"] = zeros(arrays["labels"].shape, arrays)
    if "uniform" in heads:
        state |= {"reference": none, "uniform": none}
    if "depth" in heads:
        state["depth"] = none
    if "teacher" in heads:
        state |= {"reference": none, "teacher": none, "teacher_mass": none}
    if "argmax" in heads:
        state["argmax"] = zeros((n,), arrays, jnp.int32)
    if "top" in heads:
        state |= {"top_logits": zeros((n, top), arrays) - jnp.inf, "top": zeros((n, top), arrays, jnp.int32)}
    if "known" in heads:
        state["known"] = zeros((n, walk.width), arrays)
    return state


def _of_block(
    walk: Walk,
    arrays: Arrays,
    block: Block,
    logits: Any,
    rows: Rows,
    reference: Any,
    heads: tuple[str, ...],
    top: int,
) -> State:
    nothing = rows.maximum == -jnp.inf
    state = {"maximum": rows.maximum, "rest": jnp.where(nothing, 0, rows.rest)}
    weights = walk.entries_of(arrays["class_weights"], block)[None] if "class_weights" in arrays else None
    if "gap" in heads:
        state["at"] = at_labels(arrays["labels"], block, logits)
    if "uniform" in heads:
        kept = jnp.ones_like(logits[:1]) if weights is None else weights
        state["uniform"] = _spread(block.where_fresh(kept, 0), reference, logits)
    if "depth" in heads:
        terms = exponentials(logits, rows.maximum, -1) * depths(logits, rows.maximum, -1)
        state["depth"] = jnp.where(nothing | (rows.maximum == jnp.inf), 0, jnp.sum(terms, axis=-1))
    if "teacher" in heads:
        masses = teacher_probabilities(walk, arrays, block)
        masses = masses if weights is None else masses * weights
        state["teacher"] = _spread(masses, reference, logits)
        state["teacher_mass"] = jnp.sum(masses, axis=-1)
    if "argmax" in heads:
        state["argmax"] = block.first + jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if "top" in heads:
        # A class of probability zero comes before none, which is -inf until the end.
        own = jnp.maximum(logits, -huge(logits.dtype))
        own = block.where_fresh(own, -jnp.inf)
        values, indices = jax.lax.top_k(own, min(top, logits.shape[-1]))
        state |= {"top_logits": values, "top": block.first + indices.astype(jnp.int32)}
    return state


def at_labels(labels: Any, block: Block, entries: Any) -> Any:
    """The entries [N, block] of a block at the labels [N, k] that lie in it, and in no block before; otherwise 0."""

    def taken(labels: Any, entries: Any) -> Any:
        found = jnp.take_along_axis(entries, jnp.clip(labels - block.first, 0, entries.shape[1] - 1), axis=1)
        return jnp.where(_is_in(labels, block, entries), found, 0)

    if labels.shape[1] > COMPARED:
        return taken(labels, entries)
    # A TPU would write entries that are in its fast memory to the slow one, to take some.
    return jax.lax.platform_dependent(
        labels, entries, tpu=lambda labels, entries: compared_with(labels, block, entries), default=taken
    )


def compared_with(labels: Any, block: Block, entries: Any) -> Any:
    """The same for few labels of each row: sums over columns that are compared with them."""
    classes = block.first + jnp.arange(entries.shape[1], dtype=jnp.int32)[None]
    inside = jnp.where(_is_in(labels, block, entries), labels, -1)
    return jnp.stack([jnp.sum(jnp.where(classes == y[:, None], entries, 0), axis=1) for y in inside.T], axis=1)


def _is_in(labels: Any, block: Block, entries: Any) -> Any:
    return (labels >= block.new) & (labels < block.first + entries.shape[1])


def teacher_probabilities(walk: Walk, arrays: Arrays, block: Block) -> Any:
    """The teacher's distribution, in a block."""
    logits = walk.logits(arrays, block, walk.products_of(arrays, block, "teacher_"), "teacher_")
    return jnp.exp((logits - arrays["teacher_maximum"][:, None]) - arrays["teacher_log_total"][:, None])


def _spread(masses: Any, reference: Any, logits: Any) -> Any:
    """Σ_j a_j (r - u_j); what has no mass does not count, whatever its logit is."""
    return jnp.sum(jnp.where(masses == 0, 0, masses * (reference[:, None] - logits)), axis=-1)


# -- two parts become one ----------------------------------------------------------------------------------------------


def _merged(a: State, b: State, heads: tuple[str, ...], top: int) -> State:
    is_higher = b["maximum"] > a["maximum"]
    high, low = _ordered(is_higher, a["maximum"], b["maximum"])
    rest_high, rest_low = _ordered(is_higher, a["rest"], b["rest"])
    fall = jnp.where(high == low, 0, low - high)
    state = {"maximum": high, "rest": rest_high + (1 + rest_low) * jnp.exp(fall)}
    if "depth" in heads:
        depth_high, depth_low = _ordered(is_higher, a["depth"], b["depth"])
        state["depth"] = depth_high + _deepened(depth_low, rest_low, fall)
    if "reference" in a:
        state["reference"] = a["reference"]
    state |= {name: a[name] + b[name] for name in ("at", "uniform", "teacher", "teacher_mass") if name in a}
    if "argmax" in heads:
        state["argmax"] = jnp.where(is_higher, b["argmax"], a["argmax"])
    if "top" in heads:
        # Equal ones in the order of the vocabulary.
        logits, indices = (jnp.concatenate((a[n], b[n]), axis=-1) for n in _TOP)
        state |= _top_of(logits, indices, top)
    return state


def _ordered(is_higher: Any, a: Any, b: Any) -> tuple[Any, Any]:
    return jnp.where(is_higher, b, a), jnp.where(is_higher, a, b)


def _deepened(depth: Any, rest: Any, fall: Any) -> Any:
    """Σ e^{u-m} (m - u) as it is measured from a maximum that is higher by -fall."""
    return jnp.where(fall == -jnp.inf, 0, jnp.exp(fall) * (depth - fall * (1 + rest)))


_TOP = ("top_logits", "top")


def _top_of(logits: Any, indices: Any, top: int) -> State:
    values, places = jax.lax.top_k(logits, top)
    return {"top_logits": values, "top": jnp.take_along_axis(indices, places, axis=-1)}


def _across_devices(walk: Walk, arrays: Arrays, state: State, heads: tuple[str, ...], top: int) -> State:
    """The statistics of all devices' columns: O(N) numbers travel."""
    axis = walk.axis_name
    add = lambda a: jax.lax.psum(a, axis)
    highest = jax.lax.pmax(state["maximum"], axis)
    is_highest = state["maximum"] == highest
    place = jax.lax.axis_index(axis)
    holder = jax.lax.pmin(jnp.where(is_highest, place, walk.shards), axis)
    fall = jnp.where(is_highest, 0, state["maximum"] - highest)
    part = (1 + state["rest"]) * jnp.exp(fall)
    merged = {"maximum": highest, "rest": add(jnp.where(place == holder, state["rest"], part))}
    if "gap" in heads:
        merged["at"] = add(state["at"])
    if "depth" in heads:
        merged["depth"] = add(_deepened(state["depth"], state["rest"], fall))
    if "reference" in state:
        reference = jax.lax.pmax(state["reference"], axis)
        merged["reference"], rise = reference, reference - state["reference"]
        if "uniform" in heads:
            merged["uniform"] = add(state["uniform"] + rise * _own_mass(walk, arrays))
        if "teacher" in heads:
            merged["teacher_mass"] = add(state["teacher_mass"])
            merged["teacher"] = add(state["teacher"] + rise * state["teacher_mass"])
    if "argmax" in heads:
        beyond = jnp.iinfo(jnp.int32).max
        merged["argmax"] = jax.lax.pmin(jnp.where(is_highest, state["argmax"], beyond), axis)
    if "top" in heads:
        logits, indices = (jax.lax.all_gather(state[n], axis, axis=1, tiled=True) for n in _TOP)
        merged |= {n: jax.lax.pmax(a, axis) for n, a in _top_of(logits, indices, top).items()}
    return merged


def _own_mass(walk: Walk, arrays: Arrays) -> Any:
    """The sum of the class weights on this device; the number of its classes where there are none."""
    is_class = jnp.arange(walk.width) < walk.classes - arrays.get("offset", 0)
    ones = jnp.ones((), policy.compute_dtype(arrays["x"].dtype))
    return jnp.sum(jnp.where(is_class, arrays.get("class_weights", ones), 0))


def class_mass(walk: Walk, arrays: Arrays) -> Any:
    """Σ_j c_j over all classes: their number where there are no class weights."""
    if "class_weights" not in arrays:
        return walk.classes
    mass = _own_mass(walk, arrays)
    return mass if walk.axis_name is None else jax.lax.psum(mass, walk.axis_name)


# -- the end -----------------------------------------------------------------------------------------------------------


def _finished(walk: Walk, arrays: Arrays, state: State, heads: tuple[str, ...]) -> State:
    maximum, rest = state["maximum"], state["rest"]
    # One +inf is a class of probability one; two of them, and a row of nothing but -inf, have no distribution.
    rest = jnp.where((maximum == -jnp.inf) | ((maximum == jnp.inf) & (rest != 0)), jnp.nan, rest)
    log_total = jnp.log1p(rest)
    found = {"maximum": maximum, "log_total": log_total}
    if "gap" in heads:
        found["gap"] = _gap(maximum, log_total, state["at"])
    if "depth" in heads:
        found["depth"] = state["depth"] / (1 + rest)
    level = maximum + log_total - state["reference"] if "reference" in state else None
    if "uniform" in heads:
        found["uniform"] = _of_limit(maximum, state["uniform"] + class_mass(walk, arrays) * level)
    if "teacher" in heads:
        found["teacher"] = _of_limit(maximum, state["teacher"] + state["teacher_mass"] * level)
        found["teacher_mass"] = state["teacher_mass"]
    if "top" in heads:
        logits = state["top_logits"]
        found["top_gap"] = _gap(maximum, log_total, jnp.where(logits == -huge(logits.dtype), -jnp.inf, logits))
    return found | {n: state[n] for n in ("argmax", "top", "known") if n in heads}


def _gap(maximum: Any, log_total: Any, logits: Any) -> Any:
    """-log p of some logits of each row."""
    m = maximum[:, None]
    return log_total[:, None] - jnp.where(logits == m, 0, logits - m)


def _of_limit(maximum: Any, spread: Any) -> Any:
    """Infinite where one class has all of the probability and others have mass."""
    return jnp.where((maximum == jnp.inf) & jnp.isnan(spread), jnp.inf, spread)
