"""The suite of an accelerator in one command of less than nine minutes: checks first, then blocks, then times.

Each stage has its seconds and may use what those before it left; what no time is left for has a line that says so. The
first products of a process are its slowest, as everything loads: they are those of the checks.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.harness import Task, measure
from benchmarks.linear import checks, counts, given_logits, methods, sweep, torch_methods, torch_process
from benchmarks.linear.problems import GPU, TINY, Shape, draw
from benchmarks.linear.truth import Truth, truth
from benchmarks.machine import Machine

#: Seconds of each stage: 520 in all, of 540. Those of the first are also for what starts JAX and names the machine.
SECONDS = {"checks": 80.0, "given logits": 20.0, "blocks": 95.0, "times": 190.0, "torch": 135.0}

DTYPE = "bfloat16"

#: The gradients first: they are what training costs.
MODES = ("value_and_grad", "value")


@dataclasses.dataclass
class Clock:
    """When a stage has to end: at the sum of all seconds up to its own."""

    ends: float

    @property
    def left(self) -> float:
        return self.ends - time.perf_counter()


def rows(machine: Machine, start: float, tiny: bool = False) -> Iterator[dict[str, Any]]:
    """Every row of every stage, as it comes, from ``start`` (of ``time.perf_counter``) on.

    ``tiny``: toy sizes, on any device, to see that all of it runs.
    """
    shapes = TINY if tiny else GPU
    seconds = 0.05 if tiny else 3.0
    until = {stage: Clock(start + ends) for stage, ends in _ends().items()}
    truths: dict[Shape, Truth] = {}
    on_gpu = machine.platform == "gpu"
    for peer, why in (methods.absent() | torch_methods.absent(on_gpu)).items():
        yield {"kind": "skipped", "name": peer, "why": why}
    yield from within(until["checks"], "checks", checks.rows(tiny))
    for mode in MODES:
        yield measure(given_logits.task(mode, tiny), machine, seconds=seconds)
    yield from within(until["blocks"], "blocks", sweep.rows(shapes, (DTYPE,), seconds / 3, tiny))
    yield from within(until["times"], "times", times(machine, shapes, seconds, truths))
    with tempfile.TemporaryDirectory() as folder:
        places = [(shape, DTYPE, mode) for mode in MODES for shape in truths]
        limit = until["torch"].left
        yield from torch_process.rows(machine, places, truths, pathlib.Path(folder), seconds, limit)


def _ends() -> dict[str, float]:
    return dict(zip(SECONDS, itertools.accumulate(SECONDS.values()), strict=True))


def within(clock: Clock, stage: str, found: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a stage until its time is over; the row that is being made then is the last."""
    for row in found:
        yield row
        if clock.left < 0:
            yield {"kind": "skipped", "name": f"the rest of the stage {stage!r}", "why": "no time was left"}
            return


def times(
    machine: Machine, shapes: tuple[Shape, ...], seconds: float, truths: dict[Shape, Truth]
) -> Iterator[dict[str, Any]]:
    """Each mode of each shape by all methods in JAX; what is true of a shape is left in ``truths``."""
    drawn: dict[Shape, tuple[Any, ...]] = {}
    for mode in MODES:
        for shape in shapes:
            if shape not in drawn:
                drawn[shape] = draw(shape, DTYPE)
                truths[shape] = truth(*drawn[shape])
            yield measure(task(shape, mode, drawn[shape], truths[shape]), machine, seconds=seconds)


def task(shape: Shape, mode: str, arguments: tuple[Any, ...], true: Truth) -> Task:
    every = (*methods.methods(DTYPE, in_stages=True), *methods.by_kernels(shape, DTYPE, mode))
    ours_and_peers = [methods.implementation(method, mode, true) for method in every]
    return Task(
        labels={"suite": "linear", "mode": mode, "dtype": DTYPE, "sizes": shape.sizes},
        arguments=arguments,
        implementations=(*ours_and_peers, methods.products(mode)),
        moved=lambda result: counts.least_bytes(shape, mode, arguments[0].itemsize),
        flop=counts.least_flop(shape, mode),
    )
