"""Gradients that are rounded to bfloat16 by integer arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.widening import rounded_to_bfloat16, widened


def test_every_kind_of_number_is_rounded_as_jax_rounds_it() -> None:
    # Every high half of a float32, with low halves around the tie.
    high = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    low = np.uint32([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    numbers = (high | low).view(np.float32)
    got = np.asarray(jax.jit(rounded_to_bfloat16)(numbers).astype(jnp.float32))
    expected = np.asarray(jnp.asarray(numbers).astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(got, expected)
    is_zero = expected == 0
    np.testing.assert_array_equal(np.signbit(got[is_zero]), np.signbit(expected[is_zero]))


def test_it_is_linear_under_every_transformation() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.bfloat16)
    weights = jnp.arange(12.0).reshape(3, 4)

    def weighted(x: jax.Array) -> jax.Array:
        return jnp.sum(widened(x) * weights)

    gradient = jax.jit(jax.grad(weighted))(x)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, weights.astype(jnp.bfloat16))
    _, along = jax.jvp(widened, (x,), (x,))
    np.testing.assert_array_equal(along, x.astype(jnp.float32))
    by_row = jax.vmap(jax.grad(lambda row, w: jnp.sum(widened(row) * w)), in_axes=(0, 0))(x, weights)
    np.testing.assert_array_equal(by_row, gradient)
    # The transpose is linear too: its own transpose widens.
    narrow = jax.linear_transpose(widened, x)
    (back,) = jax.linear_transpose(lambda ct: narrow(ct)[0], weights)(x)
    assert back.dtype == jnp.float32
    np.testing.assert_array_equal(back, x.astype(jnp.float32))
    assert widened(x.astype(jnp.float16)).dtype == jnp.float32
    assert widened(weights) is weights
