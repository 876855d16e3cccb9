"""Entropy: of distributions, of models' outputs, of counts and of labels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from xentjax.core.domains import Domain, Logit, Mask, Probabilities
from xentjax.core.op import op
from xentjax.numerics import xlogx


@op(
    wrt=("p",),
    domain=Domain(
        p=Probabilities("B K"),
        options=({}, {"axis": 0}, {"base": 2}, {"keepdims": True}, {"where": Mask("B K")}),
    ),
    group="entropy",
    formula="-Σ p log p",
    gradient="-log p - 1",
    source="THEORY 2",
    fill={"p": 0.0},
)
def entropy(
    p: ArrayLike,
    *,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    return -jnp.sum(xlogx(p), axis=axis, keepdims=keepdims)


@entropy.value
def _(p: Any, *, axis: Any) -> Any:
    return -jnp.sum(xlogx(p), axis=axis, keepdims=True), None


@entropy.partial("p")
def _(saved: None, p: Any, *, axis: Any) -> Any:
    return -jnp.log(p) - 1


@op(
    wrt=("logit",),
    domain=Domain(logit=Logit("B"), options=({}, {"base": 2})),
    group="entropy",
    formula="H(σ(x))",
    gradient="-x σ(x) σ(-x)",
    source="THEORY 5, binary entropy of a logit",
)
def binary_entropy_from_logits(logit: ArrayLike, *, base: float | None = None) -> jax.Array:
    x = jnp.asarray(logit)
    p = 1 / (1 + jnp.exp(-x))
    return -p * jnp.log(p) - (1 - p) * jnp.log(1 - p)


@binary_entropy_from_logits.value
def _(logit: Any) -> Any:
    a = jnp.abs(logit)
    e = jnp.exp(-a)
    return jnp.log1p(e) + jnp.where(e == 0, 0, a * (e / (1 + e))), e


@binary_entropy_from_logits.partial("logit")
def _(e: Any, logit: Any) -> Any:
    return jnp.where(e == 0, 0, -logit * (e / ((1 + e) * (1 + e))))
