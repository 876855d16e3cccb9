"""What a record's domain says about its arguments: where its edges are, and by what its inputs may move."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.domains import Logit, Logits, Probability, Real
from xentjax.core.op import Record


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Powers of two of both signs: a product with them does not round."""
    return rng.choice([-1.0, -0.5, 0.5, 1.0], shape)


def inward(record: Record, name: str, value: Any) -> Any:
    """1 or -1 where an argument lies on an edge of its domain and larger or smaller values lie inside."""
    kind = record.domain.kinds.get(name)
    if kind is None or isinstance(kind, Real) or not jnp.issubdtype(np.asarray(value).dtype, jnp.floating):
        return None
    if isinstance(kind, Logits):
        kink = (value == 0) if isinstance(kind, Logit) else False  # max(x, 0) and |x| have no slope there, sums do
        # -inf approached from above, +inf from below: what moves inside is the far end itself
        return np.where(np.isinf(value), np.sign(value), np.where(kink, 1, 0))
    upper = (value == 1) if isinstance(kind, Probability) else False
    return np.where(value == 0, 1, np.where(upper, -1, 0))


def moved(record: Record, name: str, value: Any, step: float, rng: np.random.Generator) -> Any:
    """The argument with every number moved by ``step`` parts of itself, up or down; of logits, of their differences
    from the largest one, as only these matter."""
    kind = record.domain.kinds.get(name)

    def one(v: Any) -> Any:
        centred = v
        if isinstance(kind, Logits) and not isinstance(kind, Logit) and np.ndim(v):
            finite = np.where(np.isfinite(v), v, -np.inf)
            centred = v - np.max(finite, axis=-1, keepdims=True, initial=-np.inf)
        up = rng.choice([-1.0, 1.0], np.shape(v))
        with np.errstate(all="ignore"):
            return np.where(np.isfinite(v) & np.isfinite(centred), v + step * up * centred, v)

    return jax.tree.map(one, value)
