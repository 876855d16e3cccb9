"""Torch in a process of its own, so that its memory and JAX's are apart: `python -m benchmarks.linear.torch_process`.

It reads what is asked for from its standard input, as JSON, and prints a row as soon as it has one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Task, row_of, run_all
from benchmarks.linear import counts, torch_methods
from benchmarks.linear.problems import Shape, draw
from benchmarks.linear.truth import Truth
from benchmarks.machine import ACCELERATOR_CACHE, Machine

#: Of a process that is told to end, until it is ended.
GRACE = 5.0


def rows(
    machine: Machine,
    places: Sequence[tuple[Shape, str, str]],
    truths: dict[Shape, Truth],
    folder: pathlib.Path,
    seconds: float,
    limit: float,
) -> Iterator[dict[str, Any]]:
    """The rows of places, (shape, dtype, mode), as they come, for ``limit`` seconds; truths pass by a folder."""
    if not importlib.util.find_spec("torch"):
        return
    for shape, true in truths.items():
        np.savez(folder / f"{shape}.npz", **dataclasses.asdict(true))  # type: ignore[arg-type]
    asked = {"machine": dataclasses.asdict(machine), "folder": str(folder), "seconds": seconds, "limit": limit}
    asked["places"] = [[*dataclasses.astuple(shape), dtype, mode] for shape, dtype, mode in places]
    command = [sys.executable, "-m", __name__]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(limit + GRACE, process.kill)
        alarm.start()
        try:
            process.stdin.write(json.dumps(asked))
            process.stdin.close()
            yield from map(json.loads, process.stdout)
        finally:
            alarm.cancel()
    if process.returncode not in (0, None):
        yield {
            "kind": "skipped",
            "name": "torch",
            "why": f"its process ended with {process.returncode}, or had no time",
        }


def main() -> None:
    asked = json.load(sys.stdin)
    end = time.perf_counter() + asked["limit"]
    machine = Machine(**asked["machine"])
    arguments: dict[tuple[Shape, str], tuple[Any, ...]] = {}
    for n, d, v, dtype, mode in asked["places"]:
        shape = Shape(n, d, v)
        if time.perf_counter() > end:
            line = {"kind": "skipped", "name": f"torch, {shape}, {mode}", "why": "no time was left"}
        else:
            if (shape, dtype) not in arguments:
                arguments[shape, dtype] = draw(shape, dtype)
            with np.load(pathlib.Path(asked["folder"]) / f"{shape}.npz") as stored:
                true = Truth(**stored)
            line = _row(shape, dtype, mode, arguments[shape, dtype], true, machine, asked["seconds"])
        print(json.dumps(line), flush=True)


def _row(
    shape: Shape, dtype: str, mode: str, arguments: tuple[Any, ...], true: Truth, machine: Machine, seconds: float
) -> dict[str, Any]:
    """Methods of torch beside the products alone."""
    on_gpu = machine.platform == "gpu"
    methods = torch_methods.implementations(mode, true, on_gpu, compiled=on_gpu)
    task = Task(
        labels={"suite": "linear, torch", "mode": mode, "dtype": dtype, "sizes": shape.sizes},
        arguments=arguments,
        implementations=(torch_methods.products(mode, on_gpu), *methods),
        moved=lambda result: counts.least_bytes(shape, mode, arguments[0].itemsize),
        flop=counts.least_flop(shape, mode),
    )
    return row_of(task, run_all(task, ACCELERATOR_CACHE, seconds), machine, ratio="products_over_this")


if __name__ == "__main__":
    main()
