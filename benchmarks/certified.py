"""Times of methods that solve one problem, each at the loosest tolerance at which it is solved.

For each method the tolerance is tightened until the solution stands the check, which is made outside of it and is the
same for all. Then those that are fast enough run in interleaved rounds, in random order.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.certificate import SOLVED
from benchmarks.harness import digits, interleave


@dataclasses.dataclass(frozen=True)
class Contender:
    """``prepare`` places the data and returns ``solve(tol)``, which is timed; ``check`` returns the gradient norm."""

    name: str
    prepare: Callable[[], Callable[[float], Any]]
    check: Callable[[Any], float]
    tolerances: tuple[float, ...]
    is_ours: bool


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds: for all rounds of a problem, for a run that takes part in them, for the search for a tolerance."""

    rounds: float = 10.0
    slow: float = 20.0
    search: float = 90.0


def race(contenders: Iterable[Contender], limits: Limits, seed: int = 0) -> dict[str, dict[str, Any]]:
    """What each came to: seconds, the norm that was checked, the tolerance that it needed.

    ``run_s`` with ``p20_s`` and ``p80_s`` are of rounds; a slow method has run once, and ``rounds`` is 1. ``first_s``
    is the preparation and the very first call, less one such run: what is compiled or loaded then.
    """
    runs: dict[str, _Run] = {}
    failed: dict[str, str] = {}
    for contender in contenders:
        try:
            runs[contender.name] = _Run(contender, limits)
        except Exception as error:  # a peer of another version, say: its row tells
            if contender.is_ours:
                raise
            failed[contender.name] = f"{type(error).__name__}: {error}"
    fast = [run for run in runs.values() if run.once_s < limits.slow and run.is_solved]
    if fast:
        interleave(fast, limits.rounds, seed, most=31)
    return {name: run.row() for name, run in runs.items()} | {name: {"failed": why} for name, why in failed.items()}


class _Run:
    """One contender at the tolerance that it needs."""

    repeats = 1

    def __init__(self, contender: Contender, limits: Limits):
        self.contender = contender
        self.times: list[float] = []
        start = time.perf_counter()
        self.solve = contender.prepare()
        result = self.solve(contender.tolerances[0])
        self.first_s = self.once_s = time.perf_counter() - start
        self.norm, self.tolerance = contender.check(result), contender.tolerances[0]
        # The first call may have compiled; one that took long by itself is not made twice.
        remaining = contender.tolerances if self.once_s < limits.slow else contender.tolerances[1:]
        start = time.perf_counter()
        while remaining and time.perf_counter() - start < limits.search:
            self.tolerance, remaining = remaining[0], remaining[1:]
            turn = time.perf_counter()
            result = self.solve(self.tolerance)
            self.once_s = time.perf_counter() - turn
            self.norm = contender.check(result)
            if self.is_solved:
                break
            if self.once_s > limits.slow:  # no time for every step: the tightest decides
                remaining = remaining[-1:]

    @property
    def is_solved(self) -> bool:
        return self.norm <= SOLVED

    def once(self, turn: int) -> float:
        start = time.perf_counter()
        self.solve(self.tolerance)
        return time.perf_counter() - start

    def row(self) -> dict[str, Any]:
        times = self.times or [self.once_s]
        median, p20, p80 = (digits(float(np.quantile(times, q))) for q in (0.5, 0.2, 0.8))
        row = {"run_s": median, "p20_s": p20, "p80_s": p80, "rounds": len(times)}
        row |= {"first_s": digits(max(self.first_s - median, 0.0)), "norm": digits(self.norm)}
        return row | {"tolerance": self.tolerance, "solved": self.is_solved, "ours": self.contender.is_ours}
