"""From logits to probabilities: the logistic function, softmax, the normalised hyperbolic tangent, and the soft cap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core.domains import Domain, Logit, Logits, Mask
from xentjax.core.op import op
from xentjax.logit_rows import exponentials, rows_of


@op(
    wrt=("z",),
    domain=Domain(z=Logit("B")),
    group="prediction",
    formula="1 / (1 + e^{-z})",
    gradient="σ(z) σ(-z)",
    source="elementary",
    bounded=("z",),
)
def logistic(z: ArrayLike) -> jax.Array:
    r"""The logistic function, the probability that a logit stands for.

    .. math:: \sigma(z) = \frac{1}{1 + e^{-z}}, \qquad \sigma'(z) = \sigma(z)\,\sigma(-z)

    With e = e^{-|z|} both are quotients of sums of positive terms, 1/(1+e) or e/(1+e) and e/(1+e)², so that no digit
    is lost on either tail.

    Args:
      z: logits, of any shape.

    Returns:
      Probabilities with the shape and float dtype of z; exactly 0 and 1 at -inf and +inf, NaN for NaN.

    >>> import jax, xentjax as xj
    >>> print(f"{xj.logistic(-80.0):.4e} {jax.grad(xj.logistic)(40.0):.4e}")
    1.8049e-35 4.2484e-18
    """
    return 1 / (1 + jnp.exp(-jnp.asarray(z)))


@logistic.value
def _(z: Any) -> Any:
    e = jnp.exp(-jnp.abs(z))
    return jnp.where(z >= 0, 1, e) / (1 + e), e


@logistic.partial("z")
def _(e: Any, z: Any) -> Any:
    return e / ((1 + e) * (1 + e))


@logistic.second
def _(tangents: Any, active: Any, z: Any) -> Any:
    # σ'' = σ'·(σ(-z) - σ(z)), and σ(-z) - σ(z) = -tanh(z/2).
    e = jnp.exp(-jnp.abs(z))
    return (-tangents["z"] * e / ((1 + e) * (1 + e)) * jnp.tanh(z / 2),)


@op(
    wrt=("z",),
    domain=Domain(z=Logit("B")),
    group="prediction",
    formula="(1 + tanh z) / 2 = σ(2z)",
    gradient="2 σ(2z) σ(-2z)",
    source="elementary",
    bounded=("z",),
)
def normalized_tanh(z: ArrayLike) -> jax.Array:
    r"""The hyperbolic tangent normalised to the unit interval.

    .. math:: \frac{1 + \tanh z}{2} = \sigma(2z), \qquad \frac{d}{dz} = 2\,\sigma(2z)\,\sigma(-2z)

    Args:
      z: numbers of any shape.

    Returns:
      Probabilities with the shape and float dtype of z. (1 + tanh z)/2 itself is 0 from z = -9 on in float32; this
      keeps every digit down to the smallest number.

    >>> import xentjax as xj
    >>> print(f"{xj.normalized_tanh(-20.0):.4e}")
    4.2484e-18
    """
    return (1 + jnp.tanh(jnp.asarray(z))) / 2


@normalized_tanh.value
def _(z: Any) -> Any:
    e = jnp.exp(-2 * jnp.abs(z))
    return jnp.where(z >= 0, 1, e) / (1 + e), e


@normalized_tanh.partial("z")
def _(e: Any, z: Any) -> Any:
    return 2 * e / ((1 + e) * (1 + e))


@normalized_tanh.second
def _(tangents: Any, active: Any, z: Any) -> Any:
    e = jnp.exp(-2 * jnp.abs(z))
    return (-4 * tangents["z"] * e / ((1 + e) * (1 + e)) * jnp.tanh(z),)


@op(
    wrt=("logits",),
    domain=Domain(logits=Logits("B K"), options=({}, {"axis": 0, "where": Mask("B K")})),
    group="prediction",
    formula="e^{z_i} / Σ_j e^{z_j}",
    gradient="p∘(v - ⟨p, v⟩) along v",
    source="elementary",
    fill={"logits": -jnp.inf},
    axes=lambda options: (),
    upcast=False,
    bounded=("logits",),
)
def softmax(logits: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    r"""The distribution that logits stand for.

    .. math:: p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}, \qquad \mathrm{d}p = p \circ (v - \langle p, v\rangle)

    Along a tangent v; the derivative is taken with v measured from its entry at the largest logit, which changes
    nothing in exact arithmetic and keeps the digits of 1 - p where one class dominates.

    Args:
      logits: real numbers, classes along ``axis``. -inf is a class of probability zero; a single +inf has all of it.
      axis: the axis of the classes.
      where: True for the classes to keep, with the shape of the logits; the others have probability and derivative 0.

    Returns:
      Probabilities with the shape and float dtype of the logits. NaN for a row with a NaN, two +inf, or only -inf.

    >>> import jax.numpy as jnp, xentjax as xj
    >>> print([f"{p:.4e}" for p in xj.softmax(jnp.array([0.0, 0.0, -80.0]))])
    ['5.0000e-01', '5.0000e-01', '9.0243e-36']
    """
    return jax.nn.softmax(jnp.asarray(logits), axis=axis)


@softmax.value
def _(logits: Any, *, axis: int) -> Any:
    rows = rows_of(logits, axis)
    e = exponentials(logits, rows.maximum, axis)
    p = e * jnp.expand_dims(1 / rows.total, axis)
    return p, p


@softmax.partial("logits")
def _(p: Any, logits: Any, *, axis: int) -> Any:
    return p


@softmax.pushforward("logits")
def _(p: Any, tangent: Any, *, axis: int) -> Any:
    return softmax_tangent(p, tangent, axis)


@softmax.second
def _(tangents: Any, active: Any, logits: Any, *, axis: int) -> Any:
    return (softmax_tangent(softmax(logits, axis=axis), tangents["logits"], axis),)


def softmax_tangent(p: Any, v: Any, axis: int) -> Any:
    """p∘(v - ⟨p, v⟩): the tangent of softmax, and the Hessian of log-sum-exp, along v.

    Where a class k has more than half, its entry is what makes the sum 0: no digits of 1 - p_k are lost.  The form is
    its own transpose, so reverse mode keeps them too.
    """
    largest = p > 0.5
    others = jnp.where(largest, 0, p * centred(p, v, axis))
    return jnp.where(largest, -jnp.sum(others, axis=axis, keepdims=True), others)


def centred(p: Any, v: Any, axis: int) -> Any:
    """v - ⟨p, v⟩, measured from v_k where a class k has more than half."""
    v = v.astype(p.dtype)
    d = v - jnp.sum(jnp.where(p > 0.5, v, 0), axis=axis, keepdims=True)
    return d - jnp.sum(p * d, axis=axis, keepdims=True)


@op(
    wrt=("z", "cap"),
    domain=Domain(z=Logit("B"), cap=Logit("")),
    group="prediction",
    formula="c tanh(z / c)",
    gradient="1 / cosh²(z / c)",
    source="Gemma 2 (2024), soft-capped logits",
    public=False,
    bounded=("z", "cap"),
)
def soft_cap(z: ArrayLike, cap: ArrayLike) -> jax.Array:
    r"""Logits bent smoothly into the interval (-c, c): c·tanh(z/c), with derivative 1/cosh²(z/c).

    With r = z/c, t = 2|r| and e = e^{-t} the derivative is 4e/(1+e)²; 1 - tanh² would lose its digits where the cap
    holds. That by c, tanh r - r/cosh² r, is ±(sinh t - t)/(1 + cosh t) without cancellation.

    >>> from xentjax.activations import soft_cap
    >>> print(f"{soft_cap(60.0, 30.0):.4f}")
    28.9208
    """
    return jnp.asarray(cap * jnp.tanh(z / cap))


@soft_cap.value
def _(z: Any, cap: Any) -> Any:
    ratio = z / cap
    return cap * jnp.tanh(ratio), ratio


@soft_cap.partial("z")
def _(ratio: Any, z: Any, cap: Any) -> Any:
    return _squared_sech(ratio)


@soft_cap.partial("cap")
def _(ratio: Any, z: Any, cap: Any) -> Any:
    # (1+e)² times it is 1 - e² - 2te: where that cancels, 2e(sinh t - t) by its power series. From t = 1000 on e is 0.
    t = jnp.minimum(2 * jnp.abs(ratio), 1000)
    e = jnp.exp(-t)
    series = jnp.ones_like(t)
    for n in range(11, 1, -1):
        series = 1 + t * t / (2 * n * (2 * n + 1)) * series
    numerator = jnp.where(t < 2, 2 * e * (t * t * t / 6) * series, 1 - e * (e + 2 * t))
    return jnp.sign(ratio) * numerator / ((1 + e) * (1 + e))


@soft_cap.second
def _(tangents: Any, active: Any, z: Any, cap: Any) -> Any:
    # With h = 2 tanh(r)/cosh²(r)/c: f_zz = -h, f_zc = r h, f_cc = -r² h.
    ratio = z / cap
    slope = _squared_sech(ratio)
    ratio = jnp.where(slope == 0, 0, ratio)  # a square that underflows beats any power of r
    zero = jnp.zeros_like(slope)
    moved = ratio * tangents.get("cap", zero) - tangents.get("z", zero)
    along = 2 * slope * jnp.tanh(ratio) / cap * moved
    return tuple(along if n == "z" else -ratio * along for n in active)


def _squared_sech(x: Any) -> Any:
    e = jnp.exp(-2 * jnp.abs(x))
    return 4 * e / ((1 + e) * (1 + e))
