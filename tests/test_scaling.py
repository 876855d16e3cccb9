"""Centring and scaling of features, beside numpy in extended precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xentjax.models import one_pass
from xentjax.models.one_pass import scaling_of

pytestmark = pytest.mark.usefixtures("compiled_fast", "strict_dtypes")


@pytest.mark.parametrize("weighted", [False, True])
def test_scaling_of_columns_of_any_size_is_that_of_longdouble(weighted):
    """Over several blocks, the last of which overlaps the one before; rows of weight 0 hold NaN."""
    rng = np.random.default_rng(0)
    n = 9000
    x = rng.normal(size=(n, 4)) * [1.0, 1e-3, 1e200, 1e-200] + [1e6, 0.0, 0.0, 0.0]
    x = np.column_stack([x, np.full(n, 3.3)])
    weights = rng.integers(0, 3, n).astype(float) if weighted else None
    share = np.ones(n, np.longdouble) if weights is None else weights.astype(np.longdouble)
    share /= share.sum()
    center = share @ x
    deviation = np.sqrt(share @ (x - center) ** 2)
    if weighted:
        x[weights == 0] = np.nan
    with jax.enable_x64(True):
        found = jax.jit(scaling_of)(jnp.asarray(x), None if weights is None else jnp.asarray(weights))
    at, inverse = np.asarray(found.center), np.asarray(found.inverse)
    # n terms, each rounded once: n·ε/2 of their size at most, a deviation's being its column's own.
    bound = n * np.finfo(float).eps
    np.testing.assert_array_less(np.abs(at - center)[:4], bound * (np.abs(center) * 1e-3 + deviation)[:4])
    np.testing.assert_allclose(inverse[:4] * deviation[:4].astype(float), 1, rtol=bound)
    np.testing.assert_allclose(at[4], 3.3, rtol=1e-15)
    assert inverse[4] == 0.0


@pytest.mark.parametrize("weighted", [False, True])
def test_scaling_of_ordinary_columns_takes_one_pass(weighted, monkeypatch):
    """Sorted columns of 0 and 1, of which the first block has one value, too."""
    rng = np.random.default_rng(1)
    n = 40_000
    x = np.column_stack(
        [rng.normal(3, 2, n), np.arange(n) < 39_000, np.arange(n) > 39_000, rng.standard_t(3, n) - 20.0]
    )
    weights = rng.integers(0, 3, n).astype(float) if weighted else np.ones(n)
    share = weights / weights.sum()
    center = share @ x
    deviation = np.sqrt(share @ (x - center) ** 2)
    monkeypatch.setattr(one_pass, "_careful_inverse", lambda center, *_, **__: jnp.full_like(center, jnp.nan))
    with jax.enable_x64(True):
        found = scaling_of(jnp.asarray(x), jnp.asarray(weights) if weighted else None)
    np.testing.assert_allclose(found.center, center, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(found.inverse) * deviation, 1, rtol=1e-10)
