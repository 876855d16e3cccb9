"""Thousands of fits of changing sizes in one process: its memory stays flat, and its programs bounded."""

from __future__ import annotations

import collections
import gc
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.monitoring
import numpy as np
import scipy.sparse

import xentjax as xj
from xentjax.solvers import room

#: The share of the room for programs that fits get here: so little that they are forgotten several times.
_SHARE = 0.2

#: What is told of a soak, in so many rows.
_ROWS = 100

#: The most bytes of resident memory that a fit of the last half may leave behind, and the most that there may be.
_BYTES_A_FIT, _BYTES = 4096, 3 * 2**30

#: The most programs that are compiled: so many to begin with, and of so many further fits one. Usual fits share theirs,
#: but for those that are made again after there was no more room; others have their own.
_PROGRAMS, _FITS_A_PROGRAM = 80, 40

#: The kinds of fits by their options. The usual ones, whose sizes share twelve programs, are of the first two.
_KINDS: tuple[dict[str, Any], ...] = (
    {"inference": False},
    {"solver": "newton", "dtype": np.float32, "weights": True, "offset": True, "l2": 0.01, "inference": False},
    {"solver": "newton-cg", "sparse": True, "l2": 0.1, "dtype": np.float32, "inference": False},
    {"dtype": np.float32, "weights": True},
    {"classes": 3},
    {"solver": "lbfgs", "classes": 4, "l2": 0.1},
    {"l1": 0.01, "solver": "proximal-newton", "dtype": np.float32},
    {"l1": 0.02, "solver": "proximal-gradient"},
)
_USUAL_KINDS = 2

#: The shares of fits of any size and kind, and of those with more elements than sizes share programs for.
_ANY, _LARGE = 0.003, 0.0007

#: The least and the most rows and columns of usual fits, and of the others.
_SIZES = {"usual": ((10, 64), (1, 6)), "any": ((20, 16_000), (1, 60)), "large": ((8000, 60_000), (10, 40))}


def problem(generator: np.random.Generator) -> tuple[Any, Any, bool, dict[str, Any]]:
    """Features, labels, whether in float64, and options of a fit, of a size and a kind that are drawn."""
    share = str(generator.choice(list(_SIZES), p=(1 - _ANY - _LARGE, _ANY, _LARGE)))
    kind = dict(_KINDS[generator.integers(_USUAL_KINDS if share == "usual" else len(_KINDS))])
    rows, columns = (int(np.exp(generator.uniform(*np.log(ends)))) for ends in _SIZES[share])
    classes, dtype = kind.pop("classes", 2), kind.pop("dtype", np.float64)
    x = generator.standard_normal((rows, columns)).astype(dtype)
    scores = x[:, :1] * np.arange(classes) + generator.gumbel(size=(rows, classes))
    y = np.argmax(scores, axis=1)
    y[:classes] = np.arange(classes)
    if kind.pop("sparse", False):
        x = scipy.sparse.csr_array(x * (generator.random(x.shape) < 0.2))
    if kind.pop("weights", False):
        kind["weights"] = generator.uniform(0.5, 2, rows)
    if kind.pop("offset", False):
        kind["offset"] = generator.standard_normal(rows)
    return x, y, dtype == np.float64, kind


def rows(fits: int, seed: int) -> Iterator[dict[str, Any]]:
    """What the process takes, now and then, and at the end whether that is within bounds."""
    # How well a program is compiled is not what is asked for here, and it takes most of the time.
    jax.config.update("jax_disable_most_optimizations", True)
    room.SHARE = _SHARE
    programs: collections.Counter[str] = collections.Counter()
    count = lambda event, *_, **__: programs.update([event])
    jax.monitoring.register_event_duration_secs_listener(count)
    generator, statuses = np.random.default_rng(seed), collections.Counter[str]()
    start, seen = time.perf_counter(), list[dict[str, Any]]()
    try:
        for i in range(1, fits + 1):
            x, y, wide, options = problem(generator)
            with jax.enable_x64(wide):
                statuses[str(xj.fit_logistic(x, y, **options).status)] += 1
            if i % max(fits // _ROWS, 1) == 0 or i == fits:
                gc.collect()
                taken = {"resident": resident(), "mappings": room.mappings()}
                seconds = round(time.perf_counter() - start, 1)
                compiled = programs["/jax/core/compile/backend_compile_duration"]
                row = {"kind": "row", "fits": i, "seconds": seconds, "programs": compiled, **taken}
                seen.append(row)
                if i < fits:
                    yield row
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    slope = growth([row["fits"] for row in seen], [row["resident"] for row in seen])
    # And what is mapped by the fit that finds no more room.
    mapped, programs_allowed = int(_SHARE * (room.most_mappings() or 0)) + 2000, _PROGRAMS + fits // _FITS_A_PROGRAM
    held = {
        f"resident memory grows by at most {_BYTES_A_FIT} bytes a fit over the last half": slope <= _BYTES_A_FIT,
        f"and is at most {_BYTES >> 20} MiB": max(row["resident"] for row in seen) <= _BYTES,
        f"at most {programs_allowed} programs are compiled": seen[-1]["programs"] <= programs_allowed,
        f"at most {mapped} mappings of memory are in use": max(row["mappings"] for row in seen) <= mapped,
    }
    yield {**seen[-1], "seed": seed, "bytes_a_fit": slope, "statuses": dict(statuses), "held": held}


def growth(fits: Sequence[float], values: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points of the last half (Theil and Sen): a few that jump, as where
    memory is given back, do not move it."""
    half = [(a, b) for a, b in zip(fits, values, strict=True) if a > fits[-1] / 2]
    slopes = [(v - u) / (b - a) for i, (a, u) in enumerate(half) for b, v in half[i + 1 :]]
    return float(np.median(slopes)) if slopes else 0.0


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def one_line(row: Mapping[str, Any]) -> str:
    text = f"{row['fits']:>7,} fits in {row['seconds']:>6.0f} s: {row['resident'] / 2**20:>6,.0f} MiB, "
    text += f"{row['programs']:>5,} programs, {row['mappings']:>6,} mappings"
    return text + (f"; {row['bytes_a_fit']:,.0f} bytes a fit" if "bytes_a_fit" in row else "")


def faults(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of faults: the fault, how many times it was tried and has failed, what happened, and the
    command that shows it."""
    last = rows[-1]
    what = f"{last['bytes_a_fit']:,.0f} bytes a fit over the last half, {last['resident'] / 2**20:,.0f} MiB, "
    what += f"{last['programs']:,} programs, {last['mappings']:,} mappings"
    failed = sum(not held for held in last["held"].values())
    told = {"fault": "fits of changing sizes in one process", "tried": last["fits"], "failed": failed}
    return [{**told, "outcome": what, "command": "python -m benchmarks soak"}]
