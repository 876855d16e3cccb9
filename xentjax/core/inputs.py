"""What a record's domain says about its arguments: where its edges are, and by what its inputs may move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.closed_forms import ClosedForms
from xentjax.core.domains import Logit, Logits, Probability, Real
from xentjax.core.record import Record

#: By how much numbers move, relatively, and in how many patterns of signs.
STEP = 2.0**-20
PATTERNS = 8


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Powers of two of both signs: a product with them does not round."""
    return rng.choice([-1.0, -0.5, 0.5, 1.0], shape)


def inward(record: Record | ClosedForms, name: str, value: Any) -> Any:
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


def moved(record: Record | ClosedForms, name: str, value: Any, step: float, rng: np.random.Generator) -> Any:
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


def edges(record: Record | ClosedForms, arrays: dict[str, Any]) -> dict[str, Any] | None:
    """For each argument where it lies on an edge, as :func:`inward` says; None where nothing does."""
    found = {n: jax.tree.map(lambda v, n=n: inward(record, n, v), a) for n, a in arrays.items()}
    return found if any(e is not None and np.any(e) for e in jax.tree.leaves(found)) else None


def largest_moves(
    record: Record | ClosedForms, run: Callable[..., Any], base: Any, moving: dict[str, Any], factors: Any
) -> Any:
    """How far each of the results ``base`` moves, at most, in parts, when every number moves by one part.

    ``run(moving, factors)`` gives the results. The patterns of signs come in pairs in which the arguments move with and
    against each other: what depends on their difference moves in one of them.
    """
    largest = jax.tree.map(np.zeros_like, base)
    for pattern in range(PATTERNS):
        rng = np.random.default_rng(pattern // 2)
        steps = {n: -STEP if pattern % 2 and i % 2 else STEP for i, n in enumerate(moving)}
        shifted = {n: moved(record, n, v, steps[n], rng) for n, v in moving.items()}
        factored = jax.tree.map(lambda v, rng=rng: v * (1 + STEP * rng.choice([-1.0, 1.0], np.shape(v))), factors)
        found = run(shifted, factored)
        with np.errstate(all="ignore"):
            largest = jax.tree.map(lambda m, a, b: np.fmax(m, np.abs(a - b) / STEP), largest, found, base)
    return largest
