"""How much of a JAX function's result is rounding error, and what a function is without its custom derivatives.

Both walk through the traced function (its jaxpr) and carry out each primitive operation themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from xentjax.core.rule import plain_formulas

#: Each operation is disturbed by this many units of its own rounding error.
AMPLIFIED = 16

_SPARE = 1009

#: Operations that do not round: they move, choose or compare.
_EXACT = {
    "neg", "abs", "sign", "max", "min", "clamp", "select_n", "reshape", "broadcast_in_dim", "transpose", "squeeze",
    "expand_dims", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "concatenate", "pad", "rev",
    "copy", "copy_p", "stop_gradient", "reduce_max", "reduce_min", "sort", "split", "iota", "optimization_barrier",
    "floor", "ceil", "round", "stack",
}  # fmt: skip
_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
_RULES = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


class Rounding:
    """A function together with an estimate of the rounding error of every element of its results.

    Stochastic arithmetic: the function runs again with the result of every operation that rounds disturbed by some
    units of its rounding error, of random sign, in the dtypes that it computes in; the largest deviation of a few
    runs, in proportion, is the estimate. What cancels inside the function shows in it; exact differences do not.
    The function is traced and compiled once, for arguments of the shapes and dtypes of those given.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, samples: int = 4, seed: int = 0):
        self._samples, self._seed = samples, seed
        closed = jax.make_jaxpr(function)(*arguments)
        self._size = _SPARE + max([1, *(v.aval.size for e in _equations(closed.jaxpr) for v in e.outvars)])

        def disturbed(table: Any, leaves: Any) -> Any:
            places = np.random.default_rng(seed)  # each operation reads the table of noise from a place of its own

            def disturb(name: str, value: Any) -> Any:
                if name in _EXACT or not jnp.issubdtype(value.dtype, jnp.floating):
                    return value
                start = int(places.integers(0, _SPARE))
                noise = jax.lax.slice(table, (start,), (start + value.size,)).reshape(value.shape)
                unit = AMPLIFIED * float(jnp.finfo(value.dtype).eps) / 2
                return value * (1 + unit * noise.astype(value.dtype)).astype(value.dtype)

            return _run(closed, leaves, disturb)

        self._run = jax.jit(disturbed)

    def __call__(self, *arguments: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The leaves of the results, undisturbed, and their errors, in float64."""
        rng, leaves = np.random.default_rng(self._seed), jax.tree.leaves(arguments)
        plain = [np.asarray(v, np.float64) for v in self._run(np.zeros(self._size, np.float32), leaves)]
        errors = [np.zeros(p.shape) for p in plain]
        for _ in range(self._samples):
            table = rng.uniform(0.5, 1, self._size) * rng.choice([-1.0, 1.0], self._size)
            moved = self._run(table.astype(np.float32), leaves)
            for i, (p, m) in enumerate(zip(plain, moved, strict=True)):
                with np.errstate(all="ignore"):
                    change = np.abs(np.asarray(m, np.float64) - p) / AMPLIFIED
                errors[i] = np.maximum(errors[i], np.where(np.isfinite(change), change, 0))
        return plain, errors


def without_rules(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every ``custom_jvp`` and ``custom_vjp`` in it replaced by what it computes.

    Automatic differentiation of it differentiates the code of the value, whatever derivative was declared for it; of
    our own records it differentiates the textbook formula.
    """

    def plain(*arguments: Any) -> Any:
        with plain_formulas():
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _run(closed, jax.tree.leaves(arguments), lambda name, value: value)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return plain


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        inner = _closed(equation.params.get("call_jaxpr", equation.params.get("jaxpr")))
        if equation.primitive.name in _CALLS | _RULES and inner is not None:
            yield from _equations(inner.jaxpr)


def _run(closed: Any, inputs: Sequence[Any], after: Callable[[str, Any], Any]) -> list[Any]:
    """The outputs of a closed jaxpr, each intermediate result passed through ``after(primitive, result)``."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return jnp.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    values.update(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, [read(atom) for atom in equation.invars]
        inner = _closed(equation.params.get("call_jaxpr", equation.params.get("jaxpr")))
        if name in _CALLS | _RULES and inner is not None:
            outputs = _run(inner, operands, after)
        else:
            params = {k: _rewritten(v) for k, v in equation.params.items()}
            bound = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))
            outputs = [after(name, v) for v in (bound if equation.primitive.multiple_results else [bound])]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _closed(jaxpr: Any) -> Any:
    return ClosedJaxpr(jaxpr, ()) if hasattr(jaxpr, "eqns") and not hasattr(jaxpr, "consts") else jaxpr


def _rewritten(parameter: Any) -> Any:
    """The bodies of loops and branches, with their custom derivatives replaced."""
    if isinstance(parameter, ClosedJaxpr):
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in parameter.jaxpr.invars]
        return jax.make_jaxpr(lambda *a: _run(parameter, a, lambda name, value: value))(*shapes)
    if isinstance(parameter, tuple) and parameter and isinstance(parameter[0], ClosedJaxpr):
        return tuple(map(_rewritten, parameter))
    return parameter
