"""The ways of calling each record that are measured: its arguments, the gradients taken, its peers, the batches.

A peer gets the record's arrays in order and returns what the record returns without keywords: a loss for each example,
a measure for each distribution. Where a record has none it is compared with its plain formula.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

import xentjax.peers
from xentjax.core.domains import Probabilities

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of calling a record; ``peers`` are functions of JAX arrays, the one that ours replaces first."""

    name: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wrt: tuple[str, ...] | None = None
    peers: Mapping[str, Function] = dataclasses.field(default_factory=dict)
    torch: Function | None = None
    batches: tuple[str, ...] = ("plain",)


#: The losses and measures of logits, where a row that one class dominates takes the careful path.
BOTH = ("plain", "dominated")


def variants(name: str) -> tuple[Variant, ...]:
    """The variants of a record by its name."""
    offered = dict(xentjax.peers.of(name))
    torch = offered.pop("torch", None)
    first = "optax" if "optax" in offered else "jax"
    peers = {first: offered[first]} if offered else {}
    if name == "softmax_cross_entropy":
        soft = Variant(
            "soft labels",
            options={"labels": Probabilities("B K")},
            wrt=("logits",),
            peers={"optax": optax.losses.softmax_cross_entropy},
            torch=torch,
            batches=BOTH,
        )
        return Variant("integer labels", wrt=("logits",), peers=peers, torch=torch, batches=BOTH), soft
    if name == "sigmoid_cross_entropy":
        return (Variant(wrt=("logits",), peers=peers, torch=torch, batches=BOTH),)
    if name in ("entropy_from_logits", "kl_divergence_from_logits"):
        return (Variant(peers=peers, torch=torch, batches=BOTH),)
    return (Variant(peers=peers, torch=torch),)
