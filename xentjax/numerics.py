"""Scalar formulae without cancellation, shared by the records. All take and give float32 or float64."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def xlogx(x: Any) -> Any:
    """x·log x, with 0·log 0 = 0."""
    positive = x > 0
    safe = jnp.where(positive, x, 1)
    return jnp.where(positive, safe * jnp.log(safe), jnp.where(x == 0, 0, jnp.nan))
