"""One harness for every suite: implementations of one task, compiled, run in turn in one process, and counted.

A suite describes a ``Task``: what is computed, on which buffers, by which implementations. ``measure`` compiles them,
lets them run in random order round after round (a machine that slows down slows all of them), and returns one row.

Times are of a call until its result is there (``block_until_ready``). Inputs rotate through copies that together
exceed the last-level cache, nothing is donated, and nothing is zeros. A run shorter than a millisecond is repeated
back to back and divided.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from benchmarks.machine import Machine, cache_bytes

#: A run of fewer seconds than this is repeated back to back, so that neither the clock nor the launch is measured.
SHORTEST = 1e-3
MOST_COPIES = 64


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A function of the task's arguments. ``compile`` returns what is timed; ``xla`` is its executable, if any."""

    name: str
    compile: Callable[[Sequence[Any]], tuple[Callable[..., Any], Any]]
    place: Callable[[Any], Any] = jax.numpy.asarray
    wait: Callable[[Any], Any] = jax.block_until_ready


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured: labels for the table, the arguments (numpy arrays or pytrees of them), who computes it."""

    labels: dict[str, Any]
    arguments: tuple[Any, ...]
    implementations: tuple[Implementation, ...]
    moved: Callable[[Any], int]
    """The bytes that must move, from the result: every input read once, every result written once."""


def jax_implementation(name: str, function: Callable[..., Any]) -> Implementation:
    """An implementation in JAX: jitted, compiled ahead of time for the arguments it gets."""

    def compile_(arguments: Sequence[Any]) -> tuple[Callable[..., Any], Any]:
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled, compiled

    return Implementation(name, compile_, place=lambda value: jax.tree.map(jax.numpy.asarray, value))


def measure(task: Task, machine: Machine, *, seconds: float, seed: int = 0) -> dict[str, Any]:
    """The row of one task: for each implementation its times, memory and shares of what the machine can do."""
    device = jax.devices(machine.platform)[0]
    bytes_in = sum(leaf.nbytes for leaf in jax.tree.leaves(task.arguments))
    copies = min(MOST_COPIES, max(1, math.ceil(2 * cache_bytes(device) / max(bytes_in, 1))))
    with jax.default_device(device):
        runs = [_Run(implementation, task, copies) for implementation in task.implementations]
        interleave(runs, seconds, seed)
        moved = task.moved(runs[0].result)
        rows = {run.implementation.name: run.row(moved, machine, task.labels["dtype"]) for run in runs}
    ours = np.array(runs[0].times)
    for run in runs[1:]:
        rows[run.implementation.name]["ours_over_this"] = digits(np.median(ours / np.array(run.times)))
    row = {"kind": "row", **task.labels, "bytes": moved, "rounds": len(ours), "copies": copies}
    return {**row, "implementations": rows}


class _Run:
    """One implementation while it is measured."""

    def __init__(self, implementation: Implementation, task: Task, copies: int):
        self.implementation = implementation
        placed = [tuple(implementation.place(a) for a in _shifted(task.arguments, i)) for i in range(copies)]
        start = time.perf_counter()
        self.function, self.executable = implementation.compile(placed[0])
        self.compile_s = time.perf_counter() - start
        self.buffers = placed
        self.repeats = 1
        self.times: list[float] = []
        self.result: Any = None
        first = min(self.once(i) for i in range(3))
        self.repeats = max(1, min(100, math.ceil(SHORTEST / first)))

    def once(self, turn: int) -> float:
        """Seconds of one call, over ``repeats`` calls in a row on different buffers."""
        function, buffers, repeats = self.function, self.buffers, self.repeats
        start = time.perf_counter()
        for i in range(repeats):
            result = function(*buffers[(turn * repeats + i) % len(buffers)])
        self.implementation.wait(result)
        elapsed = (time.perf_counter() - start) / repeats
        self.result = result
        return elapsed

    def row(self, moved: int, machine: Machine, dtype: str) -> dict[str, Any]:
        median, p20, p80 = (float(np.quantile(self.times, q)) for q in (0.5, 0.2, 0.8))
        row = {"run_s": median, "p20_s": p20, "p80_s": p80, "compile_s": self.compile_s}
        row["copy_share"] = moved / median / machine.copy_bytes_per_s
        if self.executable is not None:
            cost = self.executable.cost_analysis() or {}
            flop = cost.get("flops", 0.0) + cost.get("transcendentals", 0.0)
            memory = self.executable.memory_analysis()
            row |= {"flop": flop, "matmul_share": flop / median / machine.matmul_flop_per_s[dtype]}
            row |= {"temp_bytes": memory.temp_size_in_bytes}
        return {name: digits(value) for name, value in row.items()}


class Repeatable(Protocol):
    """What takes part in rounds: ``once`` returns the seconds of a call, of which it makes ``repeats``."""

    repeats: int
    times: list[float]

    def once(self, turn: int) -> float: ...


def interleave(runs: Sequence[Repeatable], seconds: float, seed: int, most: int = 51) -> None:
    """Rounds in which every implementation runs once, in random order: as many as fit the time, from 5 to ``most``."""
    one_round = sum(run.once(0) * run.repeats for run in runs)
    order = random.Random(seed)
    for turn in range(max(5, min(most, int(seconds / one_round)))):
        for run in order.sample(runs, len(runs)):
            run.times.append(run.once(turn))


def _shifted(arguments: tuple[Any, ...], by: int) -> tuple[Any, ...]:
    """The same numbers in fresh memory, rows moved along together, so that no two copies are equal."""
    return jax.tree.map(lambda leaf: np.roll(leaf, by, axis=0) if np.ndim(leaf) else leaf, arguments)


def digits(value: float) -> float:
    """Four significant digits: more is noise, and files stay small."""
    number = float(f"{value:.4g}")
    return int(number) if number.is_integer() else number
