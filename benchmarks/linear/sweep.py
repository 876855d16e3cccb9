"""Value and gradients by every strategy with blocks of several sizes: what the table of blocks is made from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Implementation, Run, Task, digits, jax_implementation, run_all
from benchmarks.linear import methods
from benchmarks.linear.problems import Shape, draw
from benchmarks.machine import cache_bytes
from xentjax.losses.linear import STRATEGIES, Plan, linear_cross_entropy

Row = dict[str, Any]

#: Classes at a time and tokens at a time that are tried, on a processor and elsewhere.
BLOCKS = {True: (512, 1024, 2048, 4096, 8192), False: (4096, 8192, 16384)}
CHUNKS = {True: (128, 256, 512, 1024), False: (2048, 4096, 8192)}
TINY = (32, 64)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A strategy with its classes at a time and its tokens at a time; None where it has no such number."""

    strategy: str
    block: int | None = None
    chunk: int | None = None

    @property
    def plan(self) -> str | Plan:
        """What the function is asked for."""
        sizes = {name: size for name, size in (("block", self.block), ("chunk", self.chunk)) if size is not None}
        return Plan(self.strategy, **sizes) if sizes else self.strategy  # type: ignore[arg-type]


def candidates(shape: Shape, on_cpu: bool, tiny: bool = False) -> list[Candidate]:
    """Blocks of fewer classes than there are, chunks of no more tokens than there are; other strategies as they are."""
    blocks, chunks = (TINY, TINY) if tiny else (BLOCKS[on_cpu], CHUNKS[on_cpu])
    of = {
        "recompute": [Candidate("recompute", block=block) for block in blocks if block < shape.v],
        "gradient_in_forward": [Candidate("gradient_in_forward", chunk=chunk) for chunk in chunks if chunk <= shape.n],
    }
    return [candidate for strategy in STRATEGIES for candidate in of.get(strategy, [Candidate(strategy)])]


def rows(
    shapes: Sequence[Shape], dtypes: Sequence[str], seconds: float, tiny: bool = False
) -> Iterator[dict[str, Any]]:
    """One row for each candidate; those of a shape and dtype run in turn with each other."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    for shape in shapes:
        for dtype in dtypes:
            tried = {str(candidate): candidate for candidate in candidates(shape, on_cpu, tiny)}
            task = Task(
                labels={},
                arguments=draw(shape, dtype),
                implementations=tuple(_implementation(name, candidate) for name, candidate in tried.items()),
                moved=lambda result: 0,
            )
            for name, run in run_all(task, cache_bytes(device), seconds).items():
                place = {"device": device.device_kind, "dtype": dtype, "n": shape.n, "d": shape.d, "v": shape.v}
                row = {"kind": "block", **place, **dataclasses.asdict(tried[name])}
                if isinstance(run, Run):
                    yield row | measured(run)
                else:
                    yield {"kind": "skipped", "name": f"{shape} {dtype} {name}", "why": run}


def measured(run: Run) -> dict[str, float]:
    temp = {} if run.program is None else {"temp_bytes": run.program.temp_bytes}
    return {"milliseconds": digits(float(np.median(run.times)) * 1e3), **temp}


def _implementation(name: str, candidate: Candidate) -> Implementation:
    loss = functools.partial(linear_cross_entropy, reduction="mean", implementation=candidate.plan)
    return jax_implementation(name, methods.MODES["value_and_grad"](loss), may_fail=True)
