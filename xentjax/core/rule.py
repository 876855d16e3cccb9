"""The derivative rule of a record, and how to trace its plain formula in its place.

For the value v(a) and its gradients g_i = ∂v/∂a_i the rule is dv = Σ_i ⟨g_i, da_i⟩ over the arguments that move, and
dg_i = Σ_j ∂g_i/∂a_j da_j.  It calls the same function for the values, so it differentiates again by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xentjax.core.widening import widened

#: Whether records are traced as their plain formulas, in this thread. It is part of the key of JAX's caches: what is
#: traced so is not found by an ordinary call of the same function, nor the other way round.
PLAIN = jax.make_user_context(default_value=False)


def plain_formulas() -> AbstractContextManager[None]:
    """While it is open every record is traced as its textbook formula: what its derivatives are compared with."""
    return PLAIN(True)  # type: ignore[no-any-return]


def with_derivative_rule(record: Any) -> Callable[..., Any]:
    """Value and gradients of a record as one function of arrays, ``f(caller, options, active, arrays)``, with one
    linear tangent rule; ``caller`` is the record that the user called, which may continue as this one."""

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
    def core(caller: Any, options: Any, active: tuple[str, ...], arrays: dict[str, Any]) -> Any:
        return record._value_and_partials(options, active, arrays)

    def rule(caller: Any, options: Any, active: tuple[str, ...], primals: Any, tangents: Any) -> Any:
        (arrays,), (arrays_dot,) = primals, tangents
        moving = {n: _instantiate(t) for n, t in arrays_dot.items() if _moves(t)}
        for name in moving:
            if name not in record._partials:
                raise TypeError(_no_derivative(caller, record, name))
        needed = (*active, *(n for n in moving if n not in active))
        value, partials = core(caller, options, needed, arrays)
        partial = dict(zip(needed, partials, strict=True))
        bound = {**dict(options), **{n: v for n, v in arrays.items() if n not in record.inputs}}
        bound = {n: v for n, v in bound.items() if n not in ("where", "keep")}
        terms = [record._contract(n, partial[n], t, value, bound) for n, t in moving.items()]
        value_dot = sum(terms[1:], terms[0])
        partials_dot = record._tangents_of_partials(options, active, arrays, moving)
        return (value, partials[: len(active)]), (value_dot, partials_dot)

    core.defjvp(rule, symbolic_zeros=True)
    return core


def _no_derivative(caller: Any, record: Any, name: str) -> str:
    if name in record.wrt:
        return (
            f"{record.name}: {name!r} is in wrt, but has no partial: register one with @{record.name}.partial({name!r})"
        )
    if name in caller.wrt:
        return f"{caller.name}: {name!r} is in wrt, but {record.name}, which it continues as, has no derivative by it"
    return (
        f"{caller.name} has no derivative with respect to {name!r} (only to {', '.join(caller.wrt) or 'none'}); "
        "pass a constant, or stop its gradient with jax.lax.stop_gradient"
    )


def product(partial: Any, tangent: Any) -> Any:
    return partial * widened(tangent)


def along(partial: Any, tangent: Any) -> Any:
    """partial * tangent, with ±inf * 0 = 0. Infinity is a product of two numbers, so that this is linear too."""
    largest = jnp.asarray(jnp.finfo(partial.dtype).max, partial.dtype)
    return jnp.clip(partial, -largest, largest) * widened(tangent) * jnp.where(jnp.isinf(partial), largest, 1)


def _moves(tangent: Any) -> bool:
    leaves = jax.tree.leaves(tangent, is_leaf=lambda t: isinstance(t, SymbolicZero))
    return any(not isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0 for t in leaves)


def _instantiate(tangent: Any) -> Any:
    def one(t: Any) -> Any:
        if isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0:
            return jnp.zeros(t.shape, t.dtype)
        return np.zeros(t.shape, jax.dtypes.float0) if isinstance(t, SymbolicZero) else t

    return jax.tree.map(one, tangent, is_leaf=lambda t: isinstance(t, SymbolicZero))
