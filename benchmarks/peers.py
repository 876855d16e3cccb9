"""What each record is compared with: the function of optax, JAX or torch that its users call today.

A peer gets the record's arrays in order and returns what the record returns without keywords: a loss for each example,
a measure for each distribution. Records that have no entry here are compared with their plain formula alone.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy import special

from xentjax.core.domains import Probabilities

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of calling a record: its arguments, the gradients taken, its peers and the batches that matter."""

    name: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wrt: tuple[str, ...] | None = None
    peers: Mapping[str, Function] = dataclasses.field(default_factory=dict)
    torch: Function | None = None
    batches: tuple[str, ...] = ("plain",)


def _entropy_from_logits(z: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(z)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _kl_from_logits(a: jax.Array, b: jax.Array) -> jax.Array:
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _optax_kl_from_logits(a: jax.Array, b: jax.Array) -> jax.Array:
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(b), jax.nn.log_softmax(a))


def _torch_softmax_integer(z: Any, y: Any) -> Any:
    return _torch().nn.functional.cross_entropy(z, y, reduction="none")


def _torch_softmax_soft(z: Any, t: Any) -> Any:
    return _torch().nn.functional.cross_entropy(z, t, reduction="none")


def _torch_sigmoid(x: Any, t: Any) -> Any:
    return _torch().nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")


def _torch_entropy_from_logits(z: Any) -> Any:
    log_p = _torch().log_softmax(z, -1)
    return -(log_p.exp() * log_p).sum(-1)


def _torch_kl_from_logits(a: Any, b: Any) -> Any:
    torch = _torch()
    log_p, log_q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _torch() -> Any:
    import torch

    return torch


def torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


BOTH = ("plain", "dominated")

#: The variants of a record, by its name; every other record has the one variant without options and without peers.
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "softmax_cross_entropy": (
        Variant(
            "integer labels",
            wrt=("logits",),
            peers={"optax": optax.softmax_cross_entropy_with_integer_labels},
            torch=_torch_softmax_integer,
            batches=BOTH,
        ),
        Variant(
            "soft labels",
            options={"labels": Probabilities("B K")},
            wrt=("logits",),
            peers={"optax": optax.softmax_cross_entropy},
            torch=_torch_softmax_soft,
            batches=BOTH,
        ),
    ),
    "sigmoid_cross_entropy": (
        Variant(
            wrt=("logits",), peers={"optax": optax.sigmoid_binary_cross_entropy}, torch=_torch_sigmoid, batches=BOTH
        ),
    ),
    "entropy_from_logits": (
        Variant(peers={"jax.nn": _entropy_from_logits}, torch=_torch_entropy_from_logits, batches=BOTH),
    ),
    "kl_divergence_from_logits": (
        Variant(
            peers={"jax.nn": _kl_from_logits, "optax": _optax_kl_from_logits}, torch=_torch_kl_from_logits, batches=BOTH
        ),
    ),
    "entropy": (Variant(peers={"jax.scipy": lambda p: jnp.sum(special.entr(p), axis=-1)}),),
    "kl_divergence": (Variant(peers={"jax.scipy": lambda p, q: jnp.sum(special.rel_entr(p, q), axis=-1)}),),
    "logistic": (Variant(peers={"jax.nn": jax.nn.sigmoid}),),
    "softmax": (Variant(peers={"jax.nn": jax.nn.softmax}),),
}


def variants(name: str) -> tuple[Variant, ...]:
    return VARIANTS.get(name, (Variant(),))
