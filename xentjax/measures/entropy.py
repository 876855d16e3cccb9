"""Entropy of distributions and of binary variables."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from xentjax.care import corrected
from xentjax.core.domains import Domain, Logit, Mask, Probabilities, Probability
from xentjax.core.op import op
from xentjax.core.rule import along
from xentjax.numerics import log, log_e_times, log_quotient, sum_along, total, xlogx
from xentjax.pairs import Pair, full_log_ratio, negative, pair_sum, rounded, scaled, two_sum, weighted

DISTRIBUTION_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"axis": 0, "base": 2, "keepdims": True, "where": Mask("B K")},
)
Axis = int | tuple[int, ...] | None


# -- of a distribution -------------------------------------------------------------------------------------------------


@op(
    wrt=("p",),
    domain=Domain(p=Probabilities("B K"), options=DISTRIBUTION_OPTIONS),
    group="entropy",
    formula="-Σ p log p",
    gradient="-log p - 1",
    source="Shannon 1948",
    fill={"p": 0.0},
    underflow=200,
)
def entropy(
    p: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None, base: float | None = None, keepdims: bool = False
) -> jax.Array:
    r"""Entropy of a distribution.

    .. math:: H(p) = -\sum_i p_i \log p_i, \qquad \frac{\partial H}{\partial p_i} = -\log p_i - 1

    Args:
      p: non-negative numbers, a distribution along ``axis``. They are not renormalised.
      axis: the axis, or axes, of the distribution; None for all.
      where: which entries exist, of p's shape. The others count as 0 and have gradient 0, whatever stands there.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axis with length 1.

    Returns:
      The entropy without ``axis``, in p's dtype (16-bit floats are computed in float32).

    0·log 0 = 0, where the gradient is +inf. A negative entry gives NaN. Where nothing is left by the mask it is 0.

    Raises:
      ValueError: for an axis that p lacks or along which it is empty, a mask of another shape, or a base that is none.

    Where an entry is above 1, terms of both signs may cancel: they are then pairs of floats, with twice the digits.

    >>> entropy(jnp.array([0.5, 0.25, 0.25]), base=2)
    Array(1.5, dtype=float32)
    """
    return -jnp.sum(xlogx(p), axis=axis, keepdims=keepdims)


def entropy_sum(p: Any, logarithm: Any, axis: Any) -> Any:
    """-Σ p log p: terms of one sign where no p is above 1, otherwise pairs of floats, which may cancel."""
    value = total(jnp.where(p == 0, 0, p * -logarithm), axis)
    return corrected(value, jnp.max(p, initial=0) > 1, lambda p: rounded(_entropy_pair(p, axis)), p)


def _entropy_pair(p: Any, axis: Any) -> Pair:
    return pair_sum(weighted(p, negative(full_log_ratio(p))), axis)


def entropy_gradient(logarithm: Any, p: Any) -> Any:
    """-log p - 1 = -log(e·p)."""
    return -log_e_times(p, jnp.ones_like(p), logarithm)


@entropy.value
def _(p: Any, *, axis: Any) -> Any:
    logarithm = log(p)
    return entropy_sum(p, logarithm, axis), logarithm


@entropy.partial("p")
def _(logarithm: Any, p: Any, *, axis: Any) -> Any:
    return entropy_gradient(logarithm, p)


@entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, *, axis: Any) -> Any:
    return (-along(1 / p, tangents["p"]),)


@op(
    wrt=("p",),
    domain=Domain(p=Probabilities("B K"), options=({}, {"axis": 0, "keepdims": True, "where": Mask("B K")})),
    group="entropy",
    formula="exp(-Σ p log p)",
    gradient="exp(H) (-log p - 1)",
    source="Jelinek et al. 1977",
    fill={"p": 0.0},
)
def perplexity(p: ArrayLike, *, axis: Axis = -1, where: ArrayLike | None = None, keepdims: bool = False) -> jax.Array:
    r"""Perplexity of a distribution: the number of equally likely classes of the same entropy.

    .. math:: e^{H(p)}, \qquad \frac{\partial}{\partial p_i} e^{H(p)} = e^{H(p)} (-\log p_i - 1)

    Arguments, edges and errors are those of :func:`entropy`; it does not depend on a base. Where nothing is left by
    the mask it is 0. The entropy enters the exponential as a pair of floats, so that its rounding is not magnified.

    >>> perplexity(jnp.full(8, 0.125)).round(4)
    Array(8., dtype=float32)
    """
    return jnp.exp(-jnp.sum(xlogx(p), axis=axis, keepdims=keepdims))


@perplexity.value
def _(p: Any, *, axis: Any) -> Any:
    squares = jnp.sum(p * p, axis=axis, keepdims=True)
    excess = _sum_less_one(p, axis)
    ordinary = (squares <= 1) & (jnp.abs(excess) < 1 / 64)  # no p above 1, and a sum close to 1

    # With 2^k close to 1/Σ p²:  H = -Σ p log(2^k p) + k log 2 Σ p, and k log 2 is taken out of the exponential. What is
    # left in it is small, and so is what its rounding costs.
    k = jnp.round(jnp.clip(-jnp.log2(squares), 0, 100)).astype(jnp.int32)
    power, _ = scaled((jnp.ones_like(squares), jnp.zeros_like(squares)), k)
    rest = total(p * -jnp.log(p * power + float(jnp.finfo(p.dtype).tiny)), axis)
    value = power * jnp.exp(rest + k.astype(p.dtype) * excess * np.log(2.0).astype(p.dtype))

    def of_anything(p: Any) -> Any:
        high, low = _entropy_pair(p, axis)
        value = jnp.exp(high)
        return jnp.where(jnp.isfinite(value), value + value * low, value)

    value = corrected(value, ~ordinary, of_anything, p)
    return value, value


def _sum_less_one(p: Any, axis: Any) -> Any:
    """Σ p - 1, for a sum close to 1. The entries are cut at one place, so that they add up without rounding, and what
    was cut off is small."""
    grid = 2.0 ** jnp.finfo(p.dtype).nmant
    multiples = jnp.sum(jnp.floor(p * grid), axis=axis, keepdims=True)
    p = jax.lax.optimization_barrier(p)
    return (multiples / grid - 1) + total(p - jnp.floor(p * grid) / grid, axis)


@perplexity.partial("p")
def _(value: Any, p: Any, *, axis: Any) -> Any:
    return value * entropy_gradient(log(p), p)


@perplexity.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any, *, axis: Any) -> Any:
    # With u = -log p - 1 and v = exp(H):  d(v u_i) = v (u_i ⟨u, t⟩ - t_i/p_i).
    t, u = tangents["p"], entropy_gradient(log(p), p)
    value = jnp.exp(-jnp.sum(xlogx(p), axis=axis, keepdims=True))
    return (value * (along(u, sum_along(u, t, axis=axis)) - along(1 / p, t)),)


# -- of a binary variable ----------------------------------------------------------------------------------------------


@op(
    wrt=("p",),
    domain=Domain(p=Probability("B"), options=({}, {"base": 2, "where": Mask("B")})),
    group="entropy",
    formula="-p log p - (1-p) log(1-p)",
    gradient="log((1-p)/p)",
    source="Shannon 1948",
    fill={"p": 0.0},
)
def binary_entropy(p: ArrayLike, *, where: ArrayLike | None = None, base: float | None = None) -> jax.Array:
    r"""Entropy of a binary variable whose one value has probability p, elementwise.

    .. math:: H(p) = -p \log p - (1 - p) \log(1 - p), \qquad H'(p) = \log\frac{1 - p}{p}, \qquad
       H''(p) = -\frac{1}{p (1 - p)}

    Args:
      p: probabilities, of any shape.
      where: which of them exist, of p's shape. The others have value 0 and gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.

    Returns:
      An array of p's shape and dtype (16-bit floats are computed in float32).

    0 at 0 and 1, where the gradient is +inf and -inf; NaN outside [0, 1].

    Raises:
      ValueError: for a mask of another shape, or a base that is none.

    >>> binary_entropy(jnp.array([0.0, 0.5, 1.0]), base=2)
    Array([0., 1., 0.], dtype=float32)
    """
    return -xlogx(p) - xlogx(1 - jnp.asarray(p))


@binary_entropy.value
def _(p: Any) -> Any:
    inside = (p >= 0) & (p <= 1)
    other = _one_minus(p)
    first = jnp.where(p == 0, 0, -p * log(p))
    second = jnp.where(p == 1, 0, -other[0] * log(other))
    return jnp.where(inside, first + second, jnp.nan), None


@binary_entropy.partial("p")
def _(saved: None, p: Any) -> Any:
    return log_quotient(_one_minus(p), p)


def _one_minus(p: Any) -> Pair:
    """1 - p exactly."""
    return two_sum(jnp.ones_like(p), -p)


@binary_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], p: Any) -> Any:
    return (-along(1 / (p * (1 - p)), tangents["p"]),)


@op(
    wrt=("logit",),
    domain=Domain(logit=Logit("B"), options=({}, {"base": 2, "where": Mask("B")})),
    group="entropy",
    formula="H(σ(x))",
    gradient="-x σ(x) σ(-x)",
    source="Shannon 1948, of the logistic function",
    fill={"logit": 0.0},
)
def binary_entropy_from_logits(
    logit: ArrayLike, *, where: ArrayLike | None = None, base: float | None = None
) -> jax.Array:
    r"""Entropy of a binary variable whose probability is σ(x), from the logit x, elementwise.

    With :math:`a = |x|`, :math:`e = e^{-a}` and :math:`q = e/(1+e) = \sigma(-a)`:

    .. math:: H = \log(1 + e) + a q, \qquad H'(x) = -x\,\sigma(x)\,\sigma(-x), \qquad
       H''(x) = \sigma(x)\,\sigma(-x)\,(x \tanh(x/2) - 1)

    Args:
      logit: real numbers, of any shape.
      where: which of them exist, of the logits' shape. The others have value 0 and gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.

    Returns:
      An array of the logits' shape and dtype (16-bit floats are computed in float32).

    Both terms are non-negative, so that a confident model's entropy keeps its digits. At ±inf value and all
    derivatives are 0.

    Raises:
      ValueError: for a mask of another shape, or a base that is none.

    >>> binary_entropy_from_logits(jnp.array([0.0, jnp.inf]), base=2)
    Array([1., 0.], dtype=float32)
    """
    p, q = jax.nn.sigmoid(jnp.asarray(logit)), jax.nn.sigmoid(-jnp.asarray(logit))
    return -xlogx(p) - xlogx(q)


#: From here on e² is below the last digit of e, so that H = e·(1 + a), and e is taken as two factors: it may be too
#: small for the format where a·e is not.
_FAR, _FACTOR = 40.0, 16.0


def _far_exponential(a: Any, factor: Any) -> Any:
    """factor·e^-a for a > 16, rounded to 0 only where the product is too small."""
    shifted = jnp.exp(_FACTOR - a)
    return jnp.where(shifted == 0, 0, factor * shifted) * np.exp(-_FACTOR).astype(a.dtype)


@binary_entropy_from_logits.value
def _(logit: Any) -> Any:
    a = jnp.abs(logit)
    e = jnp.exp(-a)
    near = jnp.log1p(e) + jnp.where(e == 0, 0, a * (e / (1 + e)))
    return jnp.where(a > _FAR, _far_exponential(a, 1 + a), near), e


@binary_entropy_from_logits.partial("logit")
def _(e: Any, logit: Any) -> Any:
    near = jnp.where(e == 0, 0, -logit * (e / ((1 + e) * (1 + e))))
    a = jnp.abs(logit)
    return jnp.where(a > _FAR, _far_exponential(a, -logit), near)


@binary_entropy_from_logits.second
def _(tangents: dict[str, Any], active: tuple[str, ...], logit: Any) -> Any:
    a = jnp.abs(logit)
    e = jnp.exp(-a)
    near = e / ((1 + e) * (1 + e)) * (a * ((1 - e) / (1 + e)) - 1)
    return (tangents["logit"] * jnp.where(a > _FAR, _far_exponential(a, a - 1), near),)
