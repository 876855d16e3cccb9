"""The optimum of some of a problem's rows, as a start for all of them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.minimize import opening, run_steps

#: Steps to it at most: it is a start and no more.
_STEPS = 20


def require_stride(solver: str, stride: int | None) -> None:
    if stride is not None and stride < 1:
        raise ValueError(f"{solver}: subsample must be None or at least 1, got {stride}")


def subsampled(solver: str, objective: Any, stride: int) -> Any:
    """The objective on every ``stride``-th row."""
    if not hasattr(objective, "subsample"):
        raise ValueError(
            f"{solver}: subsample={stride} needs an objective with subsample(stride), got {type(objective).__name__}"
        )
    return objective.subsample(stride)


def optimum_of_few(few: Any, params: Any, solver: Any) -> Any:
    """The parameters that are best for few rows, as exactly as these can tell."""
    count, size = jnp.shape(few.x)[0], ravel_pytree(params)[0].size
    tol = 1e-2 * (size / max(count, 1)) ** 0.5
    state = opening(few, params, solver, tol=tol)
    return run_steps(few, solver, state, tol, _STEPS, _STEPS)[0].point.params
