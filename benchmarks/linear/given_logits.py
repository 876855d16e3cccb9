"""Softmax cross-entropy on logits that are there already: a matter of memory alone.

With s bytes a number the loss reads s·N·V bytes; with its gradient by the logits it writes as many.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import xentjax as xj
from benchmarks.harness import Task, jax_implementation

#: Tokens and classes.
SIZES, TINY_SIZES = (8192, 131072), (64, 512)


def task(mode: str, tiny: bool, dtype: str = "bfloat16") -> Task:
    """The mean loss, or that and its gradient, ours beside optax's; logits are standard normal."""
    n, v = TINY_SIZES if tiny else SIZES
    logits = jax.random.normal(jax.random.key(0), (n, v), jnp.dtype(dtype))
    labels = jax.random.randint(jax.random.key(1), (n,), 0, v)
    ours = lambda logits, labels: xj.softmax_cross_entropy(logits, labels, reduction="mean")
    theirs = lambda logits, labels: optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    mean: Any = (lambda loss: loss) if mode == "value" else jax.value_and_grad
    implementations = (
        jax_implementation("xentjax", mean(ours)),
        jax_implementation("optax", mean(theirs), may_fail=True),
    )
    read = logits.nbytes + labels.nbytes
    return Task(
        labels={"suite": "given logits", "mode": mode, "dtype": dtype, "sizes": {"N": n, "V": v}},
        arguments=(logits, labels),
        implementations=implementations,
        moved=lambda result: read + (0 if mode == "value" else logits.nbytes),
    )
