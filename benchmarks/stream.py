"""Fits of a table that is read from a file in each pass beside the same fits in memory, each in a process of its own.

What is measured: time of a fit whose programs are compiled, peak resident memory beyond that of a process that only
loads JAX and runs a program, bytes read in a second, the share of the time that goes by in reading, and how far the
parameters are from those in memory. The files are in the system's cache, but for the row that says so.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

#: Rows of the table that are drawn at once.
_DRAWN = 100_000

SOLVERS = ("newton", "lbfgs")


def rows(n: int, d: int, folder: pathlib.Path | None, repeats: int, cold: bool) -> Iterator[dict[str, Any]]:
    """A row for each way of reading and each solver; the table is made in a folder that is removed at the end."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="xentjax-stream-", dir=folder or _large_folder()))
    try:
        make_table(made, n, d)
        idle = _process(made, "idle", "", 0)["peak_bytes"]
        for solver in SOLVERS:
            of_memory = _process(made, "memory", solver, repeats)
            yield _row(n, d, solver, "memory", of_memory, of_memory, idle)
            for kind in ("npy", "parquet"):
                yield _row(n, d, solver, kind, _process(made, kind, solver, repeats), of_memory, idle)
        if cold:
            yield _row(n, d, SOLVERS[0], "npy, not cached", _process(made, "cold", SOLVERS[0], 1), None, idle)
    finally:
        shutil.rmtree(made)


def _large_folder() -> pathlib.Path:
    from xentjax.training.streams.matrix import temporary_folder

    return temporary_folder()


def make_table(folder: pathlib.Path, n: int, d: int) -> None:
    """Normal features and labels of a logistic model with a deviation of 1.5 of its logits, as .npy and as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    weights = 1.5 * rng.standard_normal(d) / np.sqrt(d)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (n, d))
    y = np.empty(n, np.int32)
    names = [f"x{j}" for j in range(d)]
    schema = pa.schema([(name, pa.float32()) for name in names] + [("y", pa.int32())])
    # Neither dictionaries nor compression gain anything on random numbers.
    with pa.parquet.ParquetWriter(folder / "table.parquet", schema, compression=None, use_dictionary=False) as writer:
        for start in range(0, n, _DRAWN):
            block = rng.standard_normal((min(_DRAWN, n - start), d), np.float32)
            labels = (rng.random(len(block)) < 1 / (1 + np.exp(-(block @ weights + 0.5)))).astype(np.int32)
            x[start : start + len(block)], y[start : start + len(block)] = block, labels
            columns = [pa.array(np.ascontiguousarray(column)) for column in block.T]
            writer.write_table(pa.table([*columns, pa.array(labels)], schema=schema))
    x.flush()
    del x
    np.save(folder / "y.npy", y)


def _process(folder: pathlib.Path, kind: str, solver: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream", str(folder), kind, solver, str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(
    n: int, d: int, solver: str, source: str, found: dict[str, Any], memory: dict[str, Any] | None, idle: int
) -> dict[str, Any]:
    row = {"kind": "row", "n": n, "d": d, "dtype": "float32", "solver": solver, "source": source}
    row |= {name: value for name, value in found.items() if name not in ("params", "peak_bytes")}
    row["bytes_beyond_jax"] = found["peak_bytes"] - idle
    if memory is not None and memory is not found:
        row["speed_of_memory"] = memory["fit_s"] / found["fit_s"]
        row["difference"] = float(np.max(np.abs(np.subtract(found["params"], memory["params"]))))
    return row


def one_line(row: dict[str, Any]) -> str:
    text = f"{row['solver']}, {row['source']}: {row['fit_s']:.2f} s, {row['steps']} steps, "
    text += f"{row['bytes_beyond_jax'] / 1e6:,.0f} MB beyond JAX"
    if "speed_of_memory" in row:
        text += f", {row['speed_of_memory']:.0%} of the speed in memory, difference {row['difference']:.1e}"
    if "bytes_per_s" in row:
        text += f", {row['bytes_per_s'] / 1e9:.2f} GB/s, {row['reading_share']:.0%} reading"
        text += f", opened in {row['open_s']:.1f} s"
    return text


# -- in a process of its own -------------------------------------------------------------------------------------------


def main(folder: pathlib.Path, kind: str, solver: str, repeats: int) -> None:
    import jax
    import jax.numpy as jnp

    jax.block_until_ready(jax.jit(jnp.sin)(1.0))
    if kind == "idle":
        print(json.dumps({"peak_bytes": peak_bytes()}))
        return
    import xentjax as xj

    began = time.perf_counter()
    if kind == "memory":
        x: Any = jax.device_put(np.load(folder / "x.npy"))
        y: Any = np.load(folder / "y.npy")
    else:
        opened = (folder / "table.parquet", "y") if kind == "parquet" else (folder / "x.npy", "y.npy")
        table = xj.open_rows(*opened, cache=folder)
        x, y = table.x, table.y
    found: dict[str, Any] = {"open_s": time.perf_counter() - began}
    seconds: list[float] = []
    for turn in range(repeats + 1):
        if kind == "cold":
            _forget(folder / "x.npy")
        source: Any = None if kind == "memory" else x.source
        before = (0, 0.0) if source is None else (source.rows_read, source.seconds_reading)
        began = time.perf_counter()
        fit = jax.block_until_ready(xj.fit_logistic(x, y, solver=solver))
        seconds.append(time.perf_counter() - began)
        if turn == 0:  # which compiles
            found["first_s"] = seconds.pop()
        elif source is not None and seconds[-1] == min(seconds):
            read = (source.rows_read - before[0]) * x.shape[1] * x.dtype.itemsize
            found |= {"bytes_read": read, "bytes_per_s": read / seconds[-1]}
            found["reading_share"] = (source.seconds_reading - before[1]) / seconds[-1]
    found |= {"fit_s": min(seconds), "fits_s": seconds, "steps": int(fit.steps), "status": str(fit.status)}
    found["params"] = [float(v) for leaf in fit.params for v in np.ravel(leaf)]
    print(json.dumps(found | {"peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024


def _forget(path: pathlib.Path) -> None:
    """Let the system drop a file from its cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
