"""The suite of one process: every shape, dtype and mode, all methods in interleaved rounds."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from benchmarks.harness import Implementation, Task, measure
from benchmarks.linear import counts, methods, torch_methods
from benchmarks.linear.problems import CPU, QUICK_CPU, Shape, draw, tangents
from benchmarks.linear.reading import load, place
from benchmarks.linear.truth import Truth, truth
from benchmarks.machine import Machine

DTYPES = ("float32", "bfloat16")

#: Derivatives that few have, at these shapes alone.
FURTHER_MODES = {Shape(2048, 512, 32768): ("jvp", "hvp"), Shape(512, 32, 10): ("jvp", "hvp")}

#: Tokens at a time of the products alone.
ROWS = 512


def rows(machine: Machine, seconds: float, only: str | None = None, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Every row; ``only`` is a regular expression of "N,D,V dtype mode"."""
    yield from skipped()
    wanted = [place for place in all_places(quick) if only is None or re.search(only, name(*place))]
    if not wanted:
        raise SystemExit(
            f"--only {only!r} matches nothing; there are: {'; '.join(name(*p) for p in all_places(quick))}"
        )
    known: dict[tuple[Shape, str], Truth] = {}
    for shape, dtype, mode in wanted:
        arguments = draw(shape, dtype)
        if (shape, dtype) not in known:
            known = {(shape, dtype): truth(*arguments)}
        yield measure(task(shape, dtype, mode, arguments, known[shape, dtype]), machine, seconds=seconds)


def kept(folder: pathlib.Path, machine: dict[str, Any], only: str) -> list[dict[str, Any]]:
    """The rows in a folder that ``only`` does not name, so that a suite can be measured in parts."""
    path = folder / "linear.jsonl"
    if not path.exists():
        return []
    results = load(path)
    if any(results.machine[key] != machine[key] for key in ("name", "versions")):
        raise SystemExit(f"{path} is of another machine or other versions: measure all of it, or choose another --out")
    return [row for row in results.of("row", "linear") if not re.search(only, name_of(row))]


def skipped() -> Iterator[dict[str, Any]]:
    """A line for each peer that is not there."""
    for peer, why in (methods.absent() | torch_methods.absent(on_gpu=False)).items():
        yield {"kind": "skipped", "name": peer, "why": why}


def all_places(quick: bool) -> list[tuple[Shape, str, str]]:
    modes = lambda shape: ("value", "value_and_grad", *FURTHER_MODES.get(shape, ()))
    return [
        (shape, dtype, mode) for shape in (QUICK_CPU if quick else CPU) for dtype in DTYPES for mode in modes(shape)
    ]


def name(shape: Shape, dtype: str, mode: str) -> str:
    return f"{shape.n},{shape.d},{shape.v} {dtype} {mode}"


def name_of(row: dict[str, Any]) -> str:
    sizes, dtype, mode = place(row)
    return name(Shape(*sizes), dtype, mode)


def task(shape: Shape, dtype: str, mode: str, arguments: tuple[Any, ...], true: Truth) -> Task:
    """What one row is measured from."""
    if mode not in ("value", "value_and_grad"):
        arguments = arguments + tangents(shape, dtype)
    return Task(
        labels={"suite": "linear", "mode": mode, "dtype": dtype, "sizes": shape.sizes},
        arguments=arguments,
        implementations=tuple(implementations(dtype, mode, true)),
        moved=lambda result: counts.least_bytes(shape, mode, jnp.dtype(dtype).itemsize),
        flop=counts.least_flop(shape, mode),
    )


def implementations(dtype: str, mode: str, true: Truth) -> Iterator[Implementation]:
    plain = mode in ("value", "value_and_grad")
    for method in methods.methods(dtype):
        if plain or method.twice:
            yield methods.implementation(method, mode, true)
    if plain:
        yield from torch_methods.implementations(mode, true, on_gpu=False)
        yield methods.products(mode, ROWS)
