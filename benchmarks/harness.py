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

#: A first run of this many seconds stands for three.
LONG = 0.2

#: Of a message, in a row of what failed.
MOST_LETTERS = 300


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a compiled function: its temporary memory, and its FLOP where the compiler counts them."""

    temp_bytes: int
    flop: float | None = None


def place_in_jax(value: Any) -> Any:
    return jax.tree.map(jax.numpy.asarray, value)


def as_given(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return arguments


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A function of the task's arguments. ``compile`` returns what is timed, and what is known of it, if anything."""

    name: str
    compile: Callable[[Sequence[Any]], tuple[Callable[..., Any], Program | None]]
    place: Callable[[Any], Any] = place_in_jax
    wait: Callable[[Any], Any] = jax.block_until_ready
    arrange: Callable[[tuple[Any, ...]], tuple[Any, ...]] = as_given
    """The arguments in the layout that it takes, once they are placed; not timed."""
    check: Callable[[Any], dict[str, float]] | None = None
    """Its errors, from its result."""
    may_fail: bool = False
    """Its row says why it failed (too little memory, another version); else the task fails with it."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is measured: labels for the table, the arguments (numpy arrays or pytrees of them), who computes it."""

    labels: dict[str, Any]
    arguments: tuple[Any, ...]
    implementations: tuple[Implementation, ...]
    moved: Callable[[Any], int]
    """The bytes that must move, from the result: every input read once, every result written once."""
    flop: float | None = None
    """The FLOP that it takes; None: as the compiler counts them, which takes the body of a loop for one turn of it."""


def jax_implementation(name: str, function: Callable[..., Any], **rest: Any) -> Implementation:
    """An implementation in JAX: jitted, compiled ahead of time for the arguments it gets."""

    def compile_(arguments: Sequence[Any]) -> tuple[Callable[..., Any], Program | None]:
        compiled = jax.jit(function).lower(*arguments).compile()
        cost = compiled.cost_analysis() or {}
        flop = cost.get("flops", 0.0) + cost.get("transcendentals", 0.0)
        memory = compiled.memory_analysis()
        return compiled, None if memory is None else Program(memory.temp_size_in_bytes, flop)

    return Implementation(name, compile_, **rest)


def measure(task: Task, machine: Machine, *, seconds: float, seed: int = 0) -> dict[str, Any]:
    """The row of one task: for each implementation its times, memory and shares of what the machine can do."""
    device = jax.devices(machine.platform)[0]
    with jax.default_device(device):
        return row_of(task, run_all(task, cache_bytes(device), seconds, seed), machine)


def run_all(task: Task, cache: int, seconds: float, seed: int = 0) -> dict[str, Run | str]:
    """Every implementation after its rounds, or why it has none, by name; the first always runs."""
    bytes_in = sum(leaf.nbytes for leaf in jax.tree.leaves(task.arguments))
    copies = min(MOST_COPIES, max(1, math.ceil(2 * cache / max(bytes_in, 1))))
    placed: dict[Any, list[tuple[Any, ...]]] = {}
    arranged: dict[Any, list[tuple[Any, ...]]] = {}
    found: dict[str, Run | str] = {}
    for implementation in task.implementations:
        place, key = implementation.place, (implementation.place, implementation.arrange)
        try:
            if place not in placed:
                placed[place] = [tuple(map(place, _shifted(task.arguments, i))) for i in range(copies)]
            if key not in arranged:
                arranged[key] = [implementation.arrange(arguments) for arguments in placed[place]]
            found[implementation.name] = Run(implementation, arranged[key], task.moved)
        except Exception as error:
            if not implementation.may_fail:
                raise
            found[implementation.name] = f"{type(error).__name__}: {error}"
    interleave([run for run in found.values() if isinstance(run, Run)], seconds, seed)
    return found


def row_of(task: Task, found: dict[str, Run | str], machine: Machine, ratio: str = "ours_over_this") -> dict[str, Any]:
    """The row of a task whose implementations have run; ``ratio`` names the time of the first over another's."""
    first = next(iter(found.values()))
    assert isinstance(first, Run), "the first implementation may not fail"
    ours = np.array(first.times)
    rows: dict[str, dict[str, Any]] = {}
    for name, run in found.items():
        if isinstance(run, str):
            rows[name] = {"failed": run.splitlines()[0][:MOST_LETTERS]}
            continue
        rows[name] = run.row(first.moved, task.flop, machine, task.labels["dtype"])
        if run is not first:
            rows[name][ratio] = digits(np.median(ours / np.array(run.times)))
    row = {"kind": "row", **task.labels, "bytes": first.moved, "rounds": len(ours), "copies": len(first.buffers)}
    return {**row, "implementations": rows}


class Run:
    """One implementation while it is measured."""

    def __init__(
        self, implementation: Implementation, buffers: list[tuple[Any, ...]], moved: Callable[[Any], int]
    ) -> None:
        self.implementation, self.buffers = implementation, buffers
        start = time.perf_counter()
        self.function, self.program = implementation.compile(buffers[0])
        self.compile_s = time.perf_counter() - start
        result = self.function(*buffers[0])
        implementation.wait(result)
        self.moved = moved(result)
        self.errors = implementation.check(result) if implementation.check else {}
        del result
        self.repeats = 1
        self.times: list[float] = []
        first = self.once(0)
        if first < LONG:
            first = min(first, self.once(1), self.once(2))
        self.repeats = max(1, min(100, math.ceil(SHORTEST / first)))

    def once(self, turn: int) -> float:
        """Seconds of one call, over ``repeats`` calls in a row on different buffers."""
        function, buffers, repeats = self.function, self.buffers, self.repeats
        start = time.perf_counter()
        for i in range(repeats):
            result = function(*buffers[(turn * repeats + i) % len(buffers)])
        self.implementation.wait(result)
        return (time.perf_counter() - start) / repeats

    def row(self, moved: int, flop: float | None, machine: Machine, dtype: str) -> dict[str, Any]:
        median, p20, p80 = (float(np.quantile(self.times, q)) for q in (0.5, 0.2, 0.8))
        row: dict[str, float] = {"run_s": median, "p20_s": p20, "p80_s": p80, "compile_s": self.compile_s}
        row["copy_share"] = moved / median / machine.copy_bytes_per_s
        if self.program is not None:
            row["temp_bytes"] = self.program.temp_bytes
            flop = self.program.flop if flop is None else flop
        if flop is not None:
            row |= {"flop": flop, "matmul_share": flop / median / machine.matmul_flop_per_s[dtype]}
        return {name: digits(value) for name, value in (row | self.errors).items()}


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
    return jax.tree.map(lambda leaf: np.roll(leaf, by, axis=0) if by and np.ndim(leaf) else leaf, arguments)


def digits(value: float) -> float:
    """Four significant digits: more is noise, and files stay small."""
    number = float(f"{value:.4g}")
    return int(number) if number.is_integer() else number
