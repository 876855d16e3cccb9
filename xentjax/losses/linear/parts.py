"""What kernels leave of parts of each row of logits, in the walk over the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from xentjax.core.linear_map import vary_like
from xentjax.losses.linear.vocabulary import Arrays, Block, Walk


def rows(
    walk: Walk, arrays: Arrays, heads: tuple[str, ...], kernel: Callable[..., dict[str, Any]], tiles: Any
) -> dict[str, Any]:
    """What a walk over all columns leaves of each row: the state in which
    :mod:`xentjax.losses.linear.statistics` merges blocks.

    Args:
      walk, arrays, heads: as of the statistics.
      kernel: ``kernel(x, w, labels, columns, layout=, tiles=, spread=, products=)`` of x ``[N, D]``; w ``[D, V]``, or
        ``[V, D]`` with the layout ``"vd"``; labels ``[N]``, int32, columns of w that count, -1 where there is none;
        columns, an int32: only so many of the first columns count. For T parts of these it gives, ``[T, N]`` each:
        ``maximum``, -inf where none of them is in the part; ``rest``, the sum of e^{u-maximum} without one largest
        entry; ``at``, the logit of the label, 0 in parts that it is not in; where they are asked for ``spread``, the
        sum of maximum - u, and ``products``, u ``[N, V]`` in float32; and ``counted`` ``[T, 1]``, how many of the
        columns are in each part.
      tiles: their sizes.
    """
    x = arrays["x"]

    def whole(block: Block, _: None) -> dict[str, Any]:
        fresh = fresh_of(block, walk.width)
        label = label_of(arrays.get("labels"), block, fresh, x)
        asked = {"spread": "uniform" in heads, "products": "known" in heads}
        return _merged(kernel(x, arrays["w"], label, fresh[1], layout=walk.layout, tiles=tiles, **asked))

    found = dataclasses.replace(walk, block=walk.width).over(arrays, whole, None)
    state = {"maximum": found["maximum"], "rest": found["rest"]}
    if "gap" in heads:
        state["at"] = found["at"][:, None]
    if "uniform" in heads:
        is_finite = jnp.abs(found["maximum"]) < jnp.inf
        state |= {"reference": jnp.where(is_finite, found["maximum"], 0), "uniform": found["spread"]}
    if "known" in heads:
        state["known"] = found["products"]
    return {name: vary_like(value, x) for name, value in state.items()}


def _merged(of_parts: dict[str, Any]) -> dict[str, Any]:
    """The statistics of whole rows; ``spread`` is then the sum of m - u."""
    maximum, counted = of_parts["maximum"], of_parts["counted"]
    highest = jnp.max(maximum, axis=0)
    place = jnp.arange(len(maximum), dtype=jnp.int32)[:, None]
    is_holder = place == jnp.argmax(maximum, axis=0)
    fall = jnp.where(maximum == highest, 0, maximum - highest)
    rest = jnp.sum(jnp.where(is_holder, of_parts["rest"], (1 + of_parts["rest"]) * jnp.exp(fall)), axis=0)
    found = {"maximum": highest, "rest": rest, "at": jnp.sum(of_parts["at"], axis=0)}
    if "spread" in of_parts:
        found["spread"] = jnp.sum(of_parts["spread"] - jnp.where(counted == 0, 0, counted * fall), axis=0)
    return found | {n: v for n, v in of_parts.items() if n == "products"}


def fresh_of(block: Block, size: int) -> tuple[Any, Any]:
    """The columns of a block that no block before had and that are classes: from the first up to the second."""
    if block.fresh is None:
        return jnp.int32(0), jnp.int32(size)
    first = jnp.argmax(block.fresh).astype(jnp.int32)
    return first, first + jnp.sum(block.fresh, dtype=jnp.int32)


def label_of(labels: Any, block: Block, fresh: tuple[Any, Any], x: Any) -> Any:
    """The column of each row's label, -1 where that is not fresh."""
    if labels is None:
        return vary_like(jnp.full(x.shape[0], -1, jnp.int32), x)
    label = labels[:, 0].astype(jnp.int32) - block.first
    return jnp.where((label >= fresh[0]) & (label < fresh[1]), label, -1)
