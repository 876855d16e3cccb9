"""The walk over the vocabulary: parts of arrays that are put in their places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xentjax.losses.linear import vocabulary


@pytest.mark.parametrize("start", [3, 4])
@pytest.mark.parametrize("adds", ["nowhere", "where blocks overlap", "everywhere"])
def test_columns_placed(adds, start):
    """By bits, as on a CPU, and plainly: the same."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((5, 12)), jnp.bfloat16)
    # What no block has been put in is 0, unless there is something everywhere.
    w = w if adds == "everywhere" else w.at[:, start - start % -4 :].set(0)
    part = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    config = (1, 4, adds, jnp.dtype(jnp.float32))
    by_bits, plainly = (f(config, start, w, part) for f in (vocabulary._placed_by_bits, vocabulary._placed))
    np.testing.assert_array_equal(by_bits, plainly)


@pytest.mark.parametrize("around", [lambda f: f, jax.jit], ids=["", "jit"])
def test_what_is_put_into_unwritten_arrays_is_not_mapped(around):
    def function(x):
        return x, vocabulary.unwritten((2,), jnp.float32).at[:].set(jnp.arange(2.0))

    _, found = jax.vmap(around(function), out_axes=(0, None))(jnp.ones(3))
    np.testing.assert_array_equal(found, [0, 1])
