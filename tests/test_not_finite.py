"""A NaN that goes in comes out, also of batches so large that XLA:CPU has loops of its own for their sums.

In those loops the minimum and the maximum of a NaN and a number are the number.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj
from xentjax.core.op import Record, ops

pytestmark = pytest.mark.usefixtures("compiled_fast")

ROWS, CLASSES = 8192, 128

PUBLIC = [record for record in ops() if record.public]


@pytest.mark.parametrize("record", PUBLIC, ids=lambda r: r.name)
def test_one_nan_in_a_large_argument_is_not_lost(record: Record) -> None:
    axes = " ".join(kind.shape for kind in record.domain.kinds.values()).split()
    # The last axes of a joint table are as large as its classes.
    sizes = {"B": 64, "K": 32, "J": 32} if "J" in axes else {"B": ROWS, "K": CLASSES}
    case = record.domain.case(np.random.default_rng(0), "unit", record.domain.options[0], D=5, **sizes)
    arrays = {n: v for n, v in case.cast(np.dtype("float32")).items() if n in case.arrays}

    @jax.jit
    def value_and_sum(arrays: Any) -> Any:
        value = record.function(**arrays, **case.options)
        return value, jnp.sum(value)

    assert not np.any(np.isnan(value_and_sum(arrays)[1]))
    leaves, tree = jax.tree.flatten(arrays)
    for i, leaf in enumerate(leaves):
        if not np.issubdtype(leaf.dtype, np.floating):
            continue
        with_nan = np.array(leaf)
        with_nan[(0,) * with_nan.ndim] = np.nan
        value, total = value_and_sum(tree.unflatten([*leaves[:i], with_nan, *leaves[i + 1 :]]))
        assert np.any(np.isnan(value))
        assert np.isnan(total)


OF_LOGITS = {
    "integer labels": lambda z, other: xj.softmax_cross_entropy(z, jnp.zeros(z.shape[0], jnp.int32)),
    "soft labels": lambda z, other: xj.softmax_cross_entropy(z, jax.nn.softmax(other)),
    "entropy": lambda z, other: xj.entropy_from_logits(z),
    "KL of p": xj.kl_divergence_from_logits,
    "KL of q": lambda z, other: xj.kl_divergence_from_logits(other, z),
}


@pytest.mark.parametrize("classes", [20, CLASSES])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_rows_that_are_no_distributions_are_nan_among_many(name: str, classes: int) -> None:
    logits, other = np.random.default_rng(0).normal(0, 2, (2, ROWS, classes)).astype(np.float32)
    logits[3, 1], logits[20], logits[25, :2] = np.nan, -np.inf, np.inf
    function = OF_LOGITS[name]
    value = jax.jit(function)(logits, other)
    with_slope, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda z, o: function(z[None], o[None])[0])))(logits, other)
    for got in (value, with_slope, jnp.sum(slope, axis=1)):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(got)), [3, 20, 25])
