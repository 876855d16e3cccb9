"""An upper bound of the largest eigenvalue of the products of a matrix's columns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from xentjax.models import _rows

#: Beyond this size the Gram matrix is not formed.
_GRAM_LIMIT = 2048


def largest_eigenvalue_bound(x: Any) -> Any:
    r"""An upper bound of the largest eigenvalue of :math:`A = X^T X`, for X ``[n, d]``.

    :math:`(\operatorname{tr} A^k)^{1/k}` with k = 128, at most 6% too large for 1000 columns. Where neither side of X
    is at most 2048, the smaller of A's trace and :math:`\max_j (|X|^T|X| v)_j / v_j` for a positive v.

    Source: Collatz, Math. Z. 48 (1942), 221-226, for the second.
    """
    return _trace_bound(x) if min(x.shape) <= _GRAM_LIMIT else _matrix_free_bound(x)


def _trace_bound(x: Any) -> Any:
    """(tr Aᵏ)^(1/k) for A = xᵀx and k = 128, by squaring: at least the largest eigenvalue, since A has none below 0."""
    x = x.T if x.shape[0] < x.shape[1] else x
    return bound_of_products(jnp.matmul(x.T, x, precision=_rows.PRECISION))


def bound_of_products(a: Any) -> Any:
    """:func:`largest_eigenvalue_bound` of a matrix whose products A = xᵀx are known."""
    log_scale = jnp.zeros((), a.dtype)
    power = 1
    for _ in range(7):
        trace = jnp.trace(a)
        a = a / jnp.where(trace == 0, 1, trace)
        log_scale = log_scale + jnp.log(jnp.where(trace == 0, 1, trace)) / power
        a = jnp.matmul(a, a, precision=_rows.PRECISION)
        power *= 2
    return jnp.exp(log_scale + jnp.log(jnp.trace(a)) / power)


def _matrix_free_bound(x: Any) -> Any:
    """max_j (|x|ᵀ|x| v)_j / v_j for positive v (Collatz and Wielandt) after some power steps, or the trace."""
    size = jnp.abs(x)

    def step(_: Any, v: Any) -> Any:
        v = _product(size, v)
        return v / jnp.max(v) + 1e-6

    v = jax.lax.fori_loop(0, 10, step, jnp.ones(x.shape[1], x.dtype))
    return jnp.minimum(jnp.sum(x * x), jnp.max(_product(size, v) / v))


def _product(x: Any, v: Any) -> Any:
    return jnp.matmul(jnp.matmul(x, v, precision=_rows.PRECISION), x, precision=_rows.PRECISION)
