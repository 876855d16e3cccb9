"""Whether the numbers are right on this device, and stay the same: before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import digits
from benchmarks.linear import methods
from benchmarks.linear.problems import Shape, draw
from benchmarks.linear.truth import errors, pick_in_jax, truth

#: Vocabularies that no block divides, and ones of many blocks, the last of them for kernels too, with partial tiles.
CASES = (
    (Shape(289, 63, 127), "bfloat16"),
    (Shape(1024, 520, 2049), "float32"),
    (Shape(1024, 520, 2049), "bfloat16"),
    (Shape(4096, 1024, 50257), "bfloat16"),
    (Shape(1008, 1024, 50304), "bfloat16"),
)
TINY_CASES = ((Shape(29, 13, 127), "bfloat16"), (Shape(33, 16, 301), "float32"))

RUNS, TINY_RUNS = 20, 3

#: Errors may be as many times those of logits that are stored, and one rounding of the dtype.
TIMES = 2.0


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
    """For each case and each of our methods: its errors, those of the dense formula, and whether that will do.

    ``moving`` is the largest difference in any number between the first run and later ones, on the same arguments:
    anything but 0 is a race.
    """
    for shape, dtype in TINY_CASES if tiny else CASES:
        arguments = draw(shape, dtype)
        true = truth(*arguments)
        found = {
            method.name: method
            for method in (*methods.methods(dtype, in_stages=True), *methods.by_kernels(shape, dtype))
            if (method.is_ours and method.name != "xentjax") or method.name == "optax"
        }
        dense = found.pop("optax")
        placed = tuple(map(jnp.asarray, arguments))
        allowed = errors(pick_in_jax("dv", true)(_compiled(dense, placed)(*placed)), true)
        for name, method in found.items():
            try:
                run = _compiled(method, placed)
                first = jax.block_until_ready(run(*placed))
            except Exception as error:
                if not method.may_fail:
                    raise
                yield {"kind": "skipped", "name": f"{shape} {dtype}, {name}", "why": f"{type(error).__name__}: {error}"}
                continue
            wrong = errors(pick_in_jax("dv", true)(first), true)
            most = {key: TIMES * error + float(jnp.finfo(dtype).eps) for key, error in allowed.items()}
            moving = max(_difference(first, run(*placed)) for _ in range(TINY_RUNS if tiny else RUNS))
            row = {"kind": "check", "name": f"{shape} {dtype}, {name}", "moving": moving}
            row["passed"] = moving == 0 and all(wrong[key] <= most[key] for key in most)
            yield row | {
                "errors": {key: digits(error) for key, error in wrong.items()},
                "errors_of_dense": {key: digits(error) for key, error in allowed.items()},
            }


def _compiled(method: methods.Method, placed: tuple[Any, ...]) -> Any:
    return jax.jit(methods.MODES["value_and_grad"](method.loss)).lower(*placed).compile()


@jax.jit
def _largest(one: Any, other: Any) -> jax.Array:
    """The largest difference of two results; equal NaN differ."""
    widest = lambda a, b: jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))
    return jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(widest, one, other))))


def _difference(one: Any, other: Any) -> float:
    return float(_largest(one, other))
