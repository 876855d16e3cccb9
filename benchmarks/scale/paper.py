"""What a Newton step and a head's step would take on many H200, by their numbers alone: nothing here is measured."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Nodes of eight H200. Rates are per device, and seconds of an all-reduce's start are assumed."""

    copies: float = 4.3e12
    """Bytes a second from and to memory, as copies on an H200 measure."""
    products: dict[str, float] = dataclasses.field(default_factory=lambda: {"float32": 50e12, "bfloat16": 780e12})
    """FLOP a second of large products: bfloat16 as measured, float32 three quarters of what is stated, 67e12."""
    in_node: int = 8
    nvlink: float = 450e9
    """Bytes a second that a device sends to others of its node (NVLink 4)."""
    network: float = 50e9
    """Bytes a second that a device sends to other nodes (400 Gbit/s)."""
    start_in_node: float = 15e-6
    start_between: float = 40e-6

    def all_reduce(self, size: float, devices: int) -> float:
        """Seconds of a ring within each node, of one between nodes of an eighth of the bytes each, and back."""
        here = min(devices, self.in_node)
        nodes = math.ceil(devices / self.in_node)
        seconds = 2 * (here - 1) / here * size / self.nvlink + self.start_in_node * (here > 1)
        return seconds + 2 * (nodes - 1) / nodes * size / here / self.network + self.start_between * (nodes > 1)


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step."""

    devices: int
    memory: float
    products: float
    sent: float

    @property
    def total(self) -> float:
        """Memory and products overlap, what is sent waits for both."""
        return max(self.memory, self.products) + self.sent


#: What the tables are made with.
H200 = Cluster()


def newton(devices: int, rows: int, features: int, cluster: Cluster = H200) -> Step:
    """One evaluation in float32: features are read once, the Hessian is 2 d² FLOP a row, one all-reduce."""
    p, here = features + 1, rows / devices
    memory = here * features * 4 / cluster.copies
    products = here * 2 * p * p / cluster.products["float32"]
    return Step(devices, memory, products, cluster.all_reduce(4 * (1 + p + p * p), devices))


def head(devices: int, tokens: int, width: int, vocabulary: int, cluster: Cluster = H200) -> Step:
    """Loss and gradients of ``tokens`` a node in bfloat16: the vocabulary is split over a node's devices, tokens over
    nodes. Three products; the gradient by x is added up in the node, that by w between nodes."""
    here = vocabulary / min(devices, cluster.in_node)
    products = 3 * 2 * tokens * width * here / cluster.products["bfloat16"]
    memory = 2 * (3 * tokens * here + 3 * width * here) / cluster.copies
    sent = cluster.all_reduce(4 * tokens * (4 + width), min(devices, cluster.in_node))
    nodes = math.ceil(devices / cluster.in_node)
    if nodes > 1:
        sent += 2 * (nodes - 1) / nodes * 2 * width * here / cluster.network + cluster.start_between
    return Step(devices, memory, products, sent)
