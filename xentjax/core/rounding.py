"""How much of a JAX function's result is rounding error, and what a function is without its custom derivatives.

Both walk through the traced function (its jaxpr) and carry out each primitive operation themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from xentjax.core.interpreter import CALLS, RULES
from xentjax.core.rule import plain_formulas

#: Each operation is disturbed by this many units of its own rounding error.
AMPLIFIED = 16
#: Runs with other disturbances. Two errors that cancel in one run do not in others.
SAMPLES = 16

_SPARE = 1009

#: Operations that do not round: they move, choose or compare.
_EXACT = {
    "neg", "abs", "sign", "max", "min", "clamp", "select_n", "reshape", "broadcast_in_dim", "transpose", "squeeze",
    "expand_dims", "slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "concatenate", "pad", "rev",
    "copy", "copy_p", "stop_gradient", "reduce_max", "reduce_min", "sort", "split", "iota", "optimization_barrier",
    "floor", "ceil", "round", "stack",
}  # fmt: skip
#: Operations that add up products of their operands, or these, and of how many terms.
_SUMS: dict[str, Callable[[Any, Any], float]] = {
    "reduce_sum": lambda params, operands: math.prod(operands[0].shape[i] for i in params["axes"]),
    "cumsum": lambda params, operands: operands[0].shape[params["axis"]],
    "dot_general": lambda params, operands: math.prod(operands[0].shape[i] for i in params["dimension_numbers"][0][0]),
    "conv_general_dilated": lambda params, operands: (
        operands[1].size / operands[1].shape[params["dimension_numbers"].rhs_spec[0]]
    ),
    "scatter-add": lambda params, operands: (
        operands[2].size / max(operands[1].size // operands[1].shape[-1], 1) + operands[1].size // operands[1].shape[-1]
    ),
}
#: Functions that are not rounded correctly, and within how many half units compilers' libraries are.
_ELEMENTARY = {
    "exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
    "sinh", "cosh", "asinh", "acosh", "atanh", "pow", "erf", "erfc", "erf_inv", "lgamma", "digamma", "cbrt", "rsqrt",
}  # fmt: skip
_ELEMENTARY_UNITS = 4


class Rounding:
    """A function together with an estimate of the rounding error of every element of its results.

    Stochastic arithmetic: the function runs again with the result of every operation that rounds disturbed by some
    units of its rounding error, of random size and sign, in the dtypes that it computes in; the root mean square of the
    deviations, in proportion, is the estimate. What cancels inside the function shows in it; exact differences do not.

    A sum of n terms t_i rounds n times, each time by at most u of a partial sum, u being half a unit. Whatever the
    order, which is the compiler's, no partial sum is larger than P = (Σ|t_i| + |Σt_i|)/2, and n independent errors have
    together a root mean square of √n times one of them: sums, products of matrices among them, are disturbed by
    u·√n·P. A sum that cancels so has its own rounding error, not that of its result. Elementary functions are not
    rounded correctly: in 32 and 64 bits they are within some units, and disturbed by as many.

    The function is traced and compiled once, for arguments of the shapes and dtypes of those given.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, samples: int = SAMPLES, seed: int = 0):
        self._samples, self._seed = samples, seed
        closed = jax.make_jaxpr(function)(*arguments)
        self._size = _SPARE + max([1, *(v.aval.size for e in _equations(closed.jaxpr) for v in e.outvars)])

        def disturbed(table: Any, leaves: Any) -> Any:
            places = np.random.default_rng(seed)  # each operation reads the table of noise from a place of its own

            def disturb(equation: Any, operands: list[Any], value: Any) -> Any:
                if equation.primitive.name in _EXACT or not jnp.issubdtype(value.dtype, jnp.floating):
                    return value
                start = int(places.integers(0, _SPARE))
                noise = jax.lax.slice(table, (start,), (start + value.size,)).reshape(value.shape)
                unit = AMPLIFIED * float(jnp.finfo(value.dtype).eps) / 2
                size = _rounded_size(equation, operands, value)
                size = jnp.where(jnp.isfinite(size), size, 0)
                return value + (unit * noise.astype(value.dtype)).astype(value.dtype) * size

            return _run(closed, leaves, disturb)

        self._run = jax.jit(disturbed)

    def __call__(self, *arguments: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The leaves of the results, undisturbed, and their errors, in float64."""
        rng, leaves = np.random.default_rng(self._seed), jax.tree.leaves(arguments)
        plain = [np.asarray(v, np.float64) for v in self._run(np.zeros(self._size, np.float32), leaves)]
        errors = [np.zeros(p.shape) for p in plain]
        for _ in range(self._samples):
            moved = self._run(rng.uniform(-1, 1, self._size).astype(np.float32), leaves)
            for i, (p, m) in enumerate(zip(plain, moved, strict=True)):
                with np.errstate(all="ignore"):
                    change = np.abs(np.asarray(m, np.float64) - p) / AMPLIFIED
                    errors[i] += np.where(np.isfinite(change), change, 0) ** 2 / self._samples
        return plain, [np.sqrt(e) for e in errors]


def without_rules(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every ``custom_jvp`` and ``custom_vjp`` in it replaced by what it computes.

    Automatic differentiation of it differentiates the code of the value, whatever derivative was declared for it; of
    our own records it differentiates the textbook formula.
    """

    def plain(*arguments: Any) -> Any:
        with plain_formulas():
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        outputs = _run(closed, jax.tree.leaves(arguments), _unchanged)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return plain


def _rounded_size(equation: Any, operands: list[Any], value: Any) -> Any:
    """What the rounding errors of an operation's result are half units of: its own size, or √n·P."""
    name = equation.primitive.name
    if name in _ELEMENTARY and jnp.finfo(value.dtype).bits > 16:
        return _ELEMENTARY_UNITS * value
    if name not in _SUMS:
        return value
    terms = max(_SUMS[name](equation.params, operands), 1)
    sizes = [jnp.abs(v) if jnp.issubdtype(v.dtype, jnp.floating) else v for v in operands]
    largest = (_bind(equation, sizes, equation.params) + jnp.abs(value)) / 2
    size = jnp.asarray(math.sqrt(terms), value.dtype) * largest
    return jnp.where(jnp.isfinite(size), size, value)  # sizes may overflow where what they are of does not


def _unchanged(equation: Any, operands: list[Any], value: Any) -> Any:
    return value


def _bind(equation: Any, operands: list[Any], params: dict[str, Any]) -> Any:
    return equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        inner = _closed(equation.params.get("call_jaxpr", equation.params.get("jaxpr")))
        if equation.primitive.name in CALLS | RULES and inner is not None:
            yield from _equations(inner.jaxpr)


def _run(closed: Any, inputs: Sequence[Any], after: Callable[[Any, list[Any], Any], Any]) -> list[Any]:
    """The outputs of a closed jaxpr, each intermediate result passed through
    ``after(equation, operands, result)``."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return jnp.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    values.update(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        name, operands = equation.primitive.name, [read(atom) for atom in equation.invars]
        inner = _closed(equation.params.get("call_jaxpr", equation.params.get("jaxpr")))
        if name in CALLS | RULES and inner is not None:
            outputs = _run(inner, operands, after)
        else:
            params = {k: _rewritten(v) for k, v in equation.params.items()}
            bound = _bind(equation, operands, params)
            outputs = [
                after(equation, operands, v) for v in (bound if equation.primitive.multiple_results else [bound])
            ]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _closed(jaxpr: Any) -> Any:
    return ClosedJaxpr(jaxpr, ()) if hasattr(jaxpr, "eqns") and not hasattr(jaxpr, "consts") else jaxpr


def _rewritten(parameter: Any) -> Any:
    """The bodies of loops and branches, with their custom derivatives replaced."""
    if isinstance(parameter, ClosedJaxpr):
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in parameter.jaxpr.invars]
        return jax.make_jaxpr(lambda *a: _run(parameter, a, _unchanged))(*shapes)
    if isinstance(parameter, tuple) and parameter and isinstance(parameter[0], ClosedJaxpr):
        return tuple(map(_rewritten, parameter))
    return parameter
