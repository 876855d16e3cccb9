"""Sums over rows of logits: those of every device are the same."""

import jax.numpy as jnp
import numpy as np
import pytest

from xentjax import logit_rows

INF, NAN = np.inf, np.nan
ROWS = [[0, 1, 2, 3], [90, 0, 0, -INF], [5, 5, -INF, -INF], [INF, 0, 1, -INF], [INF, INF, 0, 0], [-INF] * 4]
ROWS += [[NAN, 0, 1, 2], [1e30, -1e30, 0, 0], [-INF, -INF, -3, -INF], [0, -20, -30, -40]]


@pytest.mark.parametrize("width", [4, 400])
def test_sums_at_once(width):
    """What sums rows without a branch, elsewhere than on a CPU, gives what is summed there."""
    logits = np.full((len(ROWS), width), -INF, np.float32)
    logits[:, :4] = ROWS
    logits[0, 4:] = 1
    maximum = jnp.max(logits, axis=-1)
    got = logit_rows._sums_at_once(jnp.asarray(logits), maximum, -1)
    expected = logit_rows.rows_of(jnp.asarray(logits), -1)
    np.testing.assert_allclose(got[0], expected.total, rtol=2**-21)
    np.testing.assert_allclose(got[1], expected.rest, rtol=2**-21)
