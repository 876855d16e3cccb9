"""Times of both problems over host devices of one process, and over processes; what the processes send is counted."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.harness import digits, interleave
from benchmarks.scale.problems import AXIS, Head, Newton, sent

#: Devices of one process, and processes, that are measured.
DEVICES, PROCESSES = (1, 2, 4, 8), (1, 2, 4)

#: The problems at full size, and for a look; weak scaling begins with an eighth of them.
FULL = (Newton(400_000, 100), Head(1024, 256, 32768))
QUICK = (Newton(8_000, 20), Head(64, 32, 1024))

#: Seconds that processes may take to start, to compile and to measure.
_PATIENCE = 300


def rows(quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each problem, way of scaling and number of devices or processes."""
    for problem in QUICK if quick else FULL:
        yield from _over_devices(problem, seconds)
        yield from _over_processes(problem, seconds, quick)


def _scaled(problem: Newton | Head, way: str, parts: int) -> Newton | Head:
    if way == "strong":
        return problem
    size = "rows" if isinstance(problem, Newton) else "vocabulary"
    return type(problem)(**{**_fields(problem), size: getattr(problem, size) // 8}).weak(parts)


def _fields(problem: Newton | Head) -> dict[str, int]:
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}


def _mesh(parts: int) -> Mesh:
    return Mesh(np.asarray(jax.devices()[:parts]), (AXIS,))


class _Repeated:
    """A compiled program that is timed in turn with others."""

    repeats = 1

    def __init__(self, problem: Newton | Head, parts: int):
        self.problem, self.parts = problem, parts
        self.compiled, self.arguments = problem.program(_mesh(parts))
        self.times: list[float] = []
        self.once(0)

    def once(self, turn: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.arguments))
        return time.perf_counter() - start

    def row(self, over: str, way: str) -> dict[str, Any]:
        low, middle, high = np.percentile(self.times, [20, 50, 80])
        return {
            "kind": "row",
            "suite": "scale",
            "problem": self.problem.name,
            "sizes": self.problem.sizes,
            "over": over,
            "way": way,
            "parts": self.parts,
            "rounds": len(self.times),
            "run_s": digits(float(middle)),
            "p20_s": digits(float(low)),
            "p80_s": digits(float(high)),
            "predicted_bytes": self.problem.predicted if self.parts > 1 else 0,
            "compiled_bytes": sent(self.compiled.as_text()) if self.parts > 1 else 0,
        }


def _over_devices(problem: Newton | Head, seconds: float) -> Iterator[dict[str, Any]]:
    for way in ("strong", "weak"):
        runs = [_Repeated(_scaled(problem, way, parts), parts) for parts in DEVICES]
        interleave(runs, seconds * len(runs), seed=0)
        for run in runs:
            yield run.row("devices", way)


# -- processes ---------------------------------------------------------------------------------------------------------


def _over_processes(problem: Newton | Head, seconds: float, quick: bool) -> Iterator[dict[str, Any]]:
    which = (QUICK if quick else FULL).index(problem)
    for way in ("strong", "weak"):
        for parts in PROCESSES:
            yield _of_processes(which, way, parts, seconds, quick)


def _of_processes(which: int, way: str, parts: int, seconds: float, quick: bool) -> dict[str, Any]:
    """The row that process 0 of so many writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    asked = {"which": which, "way": way, "parts": parts, "seconds": seconds, "quick": quick, "port": port}
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-m", "benchmarks.scale.run"]
    running = [
        subprocess.Popen(
            [*command, json.dumps({**asked, "process": i})],
            env=environment,
            stdout=subprocess.PIPE if i == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(parts)
    ]
    try:
        told, wrong = running[0].communicate(timeout=_PATIENCE)
    finally:
        for process in running:
            process.kill()
    if running[0].returncode:
        raise RuntimeError(f"{parts} processes of {way} scaling: {wrong.strip().splitlines()[-1]}")
    return json.loads(told.splitlines()[-1])


def worker(asked: dict[str, Any]) -> None:
    """What one process does; process 0 prints the row."""
    parts = asked["parts"]
    if parts > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{asked['port']}", parts, asked["process"])
    run = _Repeated(_scaled((QUICK if asked["quick"] else FULL)[asked["which"]], asked["way"], parts), parts)
    # As many rounds in each process: a program waits for the others.
    rounds = int(np.clip(asked["seconds"] / min(run.once(0) for _ in range(2)), 3, 200))
    if parts > 1:
        from jax.experimental import multihost_utils

        rounds = int(np.min(multihost_utils.process_allgather(np.asarray(rounds))))
    before = _loopback_bytes()
    run.times += [run.once(turn) for turn in range(rounds)]
    moved = None if before is None else (_loopback_bytes() - before) / rounds  # type: ignore[operator]
    if asked["process"] == 0:
        row = run.row("processes", asked["way"])
        # A ring sends each byte twice through all processes but one.
        row["ring_bytes"] = 2 * (parts - 1) * row["compiled_bytes"]
        row["network_bytes"] = None if moved is None else round(moved)
        print(json.dumps(row), flush=True)


def _loopback_bytes() -> int | None:
    """What the machine has sent to itself; None where the system does not say."""
    statistics = pathlib.Path("/sys/class/net/lo/statistics/tx_bytes")
    return int(statistics.read_text()) if statistics.exists() else None


def one_line(row: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {size:,}" for name, size in row["sizes"].items())
    network = f", sent {row['network_bytes']:,} bytes" if row.get("network_bytes") is not None else ""
    return (
        f"{row['problem']} ({sizes}), {row['way']}, {row['parts']} {row['over']}: {1e3 * row['run_s']:.2f} ms, "
        f"{row['compiled_bytes']:,} bytes reduced, predicted {row['predicted_bytes']:,}{network}"
    )


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
