"""Entropy of distributions that are given as logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.activations import softmax, softmax_tangent
from xentjax.care import anywhere
from xentjax.core import policy
from xentjax.core.domains import Domain, Logits
from xentjax.core.op import op
from xentjax.logit_rows import depth, depths, exponentials, finite, row_maximum, row_sum, rows_of
from xentjax.measures.entropy import DISTRIBUTION_OPTIONS


@op(
    wrt=("logits",),
    domain=Domain(logits=Logits("B K"), options=DISTRIBUTION_OPTIONS),
    group="entropy",
    formula="-Σ p log p,  p = softmax(z)",
    gradient="-p (log p + H)",
    source="sums of non-negative terms",
    fill={"logits": -jnp.inf},
    upcast=False,
    bounded=("logits",),
    underflow=200,
)
def entropy_from_logits(
    logits: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Entropy of the distribution softmax(z), from the logits z.

    .. math::

       H = \log S + D, \quad S = \sum_i e^{d_i}, \quad D = \sum_i p_i (-d_i), \quad d_i = z_i - \max z, \qquad
       \frac{\partial H}{\partial z_i} = p_i (-d_i - D)

    Both terms are non-negative, log S is log1p of the sum without the largest class, and the entropy of a prediction
    that is all but certain keeps its digits.

    Args:
      logits: real numbers with the classes along ``axis``; -inf is a class of probability zero.
      axis: the axis of the classes.
      where: True for the classes to keep, with the shape of the logits. A row without any has entropy and gradient 0.
      base: of the logarithm; nats by default, ``base=2`` for bits.
      keepdims: whether the reduced axis stays, with length 1.

    Returns:
      Entropies in the float dtype of the logits: NaN for a row with a NaN, two +inf, or nothing but -inf.

    Raises:
      ValueError: no such axis, no classes, a mask of another shape.

    >>> import jax, jax.numpy as jnp, xentjax as xj
    >>> print([f"{h:.4e}" for h in xj.entropy_from_logits(jnp.array([[0.0, 0.0], [80.0, 0.0]]))])
    ['6.9315e-01', '1.4619e-33']
    >>> print([f"{g:.4e}" for g in jax.grad(xj.entropy_from_logits)(jnp.array([80.0, 0.0]))])
    ['-1.4439e-33', '1.4439e-33']
    """
    z = jnp.asarray(logits)
    log_p = z - jax.nn.logsumexp(z, axis=axis, keepdims=True)
    p = jnp.exp(log_p)
    return -jnp.sum(jnp.where(p == 0, 0, p * log_p), axis=axis, keepdims=True)


@entropy_from_logits.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    return bound | checked_logits("entropy_from_logits", bound, "logits")


@entropy_from_logits.value
def _(logits: Any, *, axis: int) -> Any:
    rows = rows_of(logits, axis)

    def spread_term(z: Any, m: Any) -> Any:
        return jnp.exp(-depth(z, m)) * depth(z, m)

    spread = row_sum(spread_term, [logits], [finite(rows.maximum)], axis, apart=True)
    # A row with one +inf has a single class, and so nothing below the maximum.
    mean_depth = jax.lax.cond(
        anywhere(rows.maximum == jnp.inf),
        lambda rows, spread: jnp.where(rows.maximum == jnp.inf, 0, spread / rows.total),
        lambda rows, spread: spread / rows.total,
        *(rows, spread),
    )
    return jnp.expand_dims(rows.log_total + mean_depth, axis), (rows, mean_depth)


@entropy_from_logits.partial("logits")
def _(saved: Any, logits: Any, *, axis: int) -> Any:
    rows, mean_depth = saved
    p = exponentials(logits, rows.maximum, axis) * jnp.expand_dims(1 / rows.total, axis)
    return p * (depths(logits, rows.maximum, axis) - jnp.expand_dims(mean_depth, axis))


@entropy_from_logits.second
def _(tangents: Any, active: Any, logits: Any, *, axis: int) -> Any:
    # g = p∘s with s = -log p - H. Along v: dp = p∘(v - ⟨p, v⟩), ds = -(v - ⟨p, v⟩) - ⟨g, v⟩.
    p = softmax(logits, axis=axis)
    v = tangents["logits"].astype(p.dtype)
    below = depths(logits, row_maximum(logits, axis), axis)
    surprise = below - jnp.sum(p * below, axis=axis, keepdims=True)
    slope = jnp.sum(p * surprise * v, axis=axis, keepdims=True)
    return (softmax_tangent(p, v, axis) * (surprise - 1) - p * slope,)


def checked_logits(name: str, bound: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """The arguments, of one shape, with the axis; in 16 bits only where the result is: the dtype says how exact a
    divergence needs to be."""
    arrays = {n: bound[n] for n in arguments}
    policy.require_same_shape(name, **arrays)
    (axis,) = policy.require_axis(name, arguments[0], arrays[arguments[0]], bound["axis"])
    dtype = policy.result_dtype(arrays.values())
    wide = policy.compute_dtype(dtype)
    return {n: a if a.dtype == dtype else a.astype(wide) for n, a in arrays.items()} | {"axis": axis}
