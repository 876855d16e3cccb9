"""What the driver demands of its arguments and of a solver's steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core import policy

#: The most steps of a run that keeps a history of all of them, 256 MiB of it in float64.
MOST_STEPS = 2**24


def number_of_steps(max_steps: Any, function: str = "minimize", most: int = MOST_STEPS) -> int:
    steps = policy.whole_number(function, "max_steps", max_steps)
    if not 0 <= steps < 2**31:
        raise ValueError(f"{function}: max_steps must not be negative, nor 2**31 or more, got {steps}")
    if steps > most:
        raise ValueError(f"{function}: max_steps must be at most {most}, as the history has all of them, got {steps}")
    return steps


def require_tolerance(tol: Any, function: str = "minimize") -> None:
    try:
        kind = jax.typeof(tol)
    except TypeError as error:
        raise TypeError(f"{function}: tol must be a number, got {tol!r}") from error
    if kind.shape != () or not (jnp.issubdtype(kind.dtype, jnp.floating) or jnp.issubdtype(kind.dtype, jnp.integer)):
        raise TypeError(f"{function}: tol must be one real number, got shape {kind.shape} and dtype {kind.dtype}")
    if not isinstance(tol, jax.core.Tracer) and not tol >= 0:
        raise ValueError(f"{function}: tol must be 0 or more, got {tol}")


def require_solver(solver: Any, function: str = "minimize") -> None:
    if isinstance(solver, type):
        raise TypeError(
            f"{function}: solver is the class {solver.__name__}, but needs to be an object: {solver.__name__}()"
        )
    if hasattr(solver, "update") and not hasattr(solver, "step"):
        raise TypeError(f"{function}: solver is a {type(solver).__name__} of optax: pass Optax(transformation)")
    name = type(solver).__name__
    if dataclasses.is_dataclass(solver) and jax.tree.leaves(solver) == [solver]:
        numbers = (getattr(solver, field.name) for field in dataclasses.fields(solver))
        if any(isinstance(n, jax.core.Tracer) for n in jax.tree.leaves(list(numbers))):
            raise TypeError(
                f"{function}: {name} holds traced numbers (it is made under vmap or jit), but is no pytree: put "
                f"@jax.tree_util.register_dataclass above its @dataclass"
            )
    if not (hasattr(solver, "init") and hasattr(solver, "step")):
        raise TypeError(
            f"{function}: solver must have init(objective, point) and step(objective, point, state), "
            f"got {type(solver).__name__}"
        )


def require_alike(solver: Any, before: Any, after: Any) -> None:
    """Raise TypeError where a step returns another structure, shape or dtype than it was given."""
    name = type(solver).__name__
    structures: Any = [jax.tree.structure(before), jax.tree.structure(after)]
    if structures[0] != structures[1]:
        raise TypeError(
            f"{name}.step must return the next point and the next state, of the structure {structures[0]}, "
            f"but returned {structures[1]}"
        )
    places, _ = jax.tree.flatten_with_path(dict(zip(("point", "state"), before, strict=True)))
    for (path, old), new in zip(places, jax.tree.leaves(after), strict=True):
        had, got = jax.typeof(old), jax.typeof(new)
        # A number of Python's in the state takes the dtype of what it becomes.
        if had.shape != got.shape or (had.dtype != got.dtype and not had.weak_type):
            raise TypeError(
                f"{name}.step changed {jax.tree_util.keystr(path, simple=True, separator='.')} from "
                f"{had.str_short()} to {got.str_short()}: it must keep shapes and dtypes; cast with .astype"
            )
