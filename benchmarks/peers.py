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
from xentjax.core.domains import Logits, Probabilities
from xentjax.core.op import ops

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


def batches(name: str) -> tuple[str, ...]:
    """What a record is measured on: one of logits on rows that one class dominates too, where it takes more care."""
    record = next(record for record in ops() if record.name == name)
    of_logits = any(isinstance(kind, Logits) for kind in record.domain.kinds.values())
    return ("plain", "dominated") if of_logits else ("plain",)


def variants(name: str) -> tuple[Variant, ...]:
    """The variants of a record by its name."""
    offered = dict(xentjax.peers.of(name))
    torch = offered.pop("torch", None)
    first = "optax" if "optax" in offered else "jax"
    peers = {first: offered[first]} if offered else {}
    on = batches(name)
    if name == "softmax_cross_entropy":
        soft = Variant(
            "soft labels",
            options={"labels": Probabilities("B K")},
            wrt=("logits",),
            peers={"optax": optax.losses.softmax_cross_entropy},
            torch=torch,
            batches=on,
        )
        return Variant("integer labels", wrt=("logits",), peers=peers, torch=torch, batches=on), soft
    wrt = ("logits",) if name == "sigmoid_cross_entropy" else None
    return (Variant(wrt=wrt, peers=peers, torch=torch, batches=on),)
