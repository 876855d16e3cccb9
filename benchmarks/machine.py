"""The machine a benchmark runs on: its name, its versions, and its rates for copies and matrix products."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.training.machine import versions

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("xentjax", "jax", "jaxlib", "optax", "numpy", "torch")
#: Of regressions, further peers.
REGRESSION_PACKAGES = (*PACKAGES, "scikit-learn", "glum", "statsmodels", "skglm")

#: Of fits of tables in files.
STREAM_PACKAGES = ("xentjax", "jax", "jaxlib", "numpy", "pyarrow")

#: Of linear cross-entropy.
LINEAR_PACKAGES = (*PACKAGES, "tokamax", "jax-cce", "triton", "liger-kernel", "cut-cross-entropy")

#: Bytes that a rotation of buffers must exceed on an accelerator, so that no input is left in the last cache.
ACCELERATOR_CACHE = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a result cannot be read without."""

    device: str
    platform: str
    name: str
    cores: int
    copy_bytes_per_s: float
    matmul_flop_per_s: dict[str, float]
    versions: dict[str, str]
    python: str
    commit: str
    date: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": "machine", **dataclasses.asdict(self)}


def measure_machine(device: jax.Device, quick: bool = False, packages: Sequence[str] = PACKAGES) -> Machine:
    """Names the machine and measures what it can do, in the fastest of several rounds: the scale for every share in the
    tables."""
    with jax.default_device(device):
        return Machine(
            device=device_name(device),
            platform=device.platform,
            name=processor_name(device),
            cores=os.cpu_count() or 1,
            copy_bytes_per_s=copy_rate(device, quick),
            matmul_flop_per_s={name: matmul_rate(device, name, quick) for name in ("float32", "bfloat16")},
            versions=versions(*packages),
            python=platform.python_version(),
            commit=commit(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def device_name(device: jax.Device) -> str:
    """A name for the folder of results: ``cpu-2core``, ``nvidia-h200``."""
    if device.platform == "cpu":
        return f"cpu-{os.cpu_count()}core"
    return re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")


def processor_name(device: jax.Device) -> str:
    if device.platform != "cpu":
        return device.device_kind
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def cache_bytes(device: jax.Device) -> int:
    """The size of the last-level cache, which inputs must not be found in."""
    if device.platform != "cpu":
        return ACCELERATOR_CACHE
    sizes = []
    for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = re.fullmatch(r"(\d+)([KMG]?)", path.read_text().strip()).groups()  # type: ignore[union-attr]
        sizes.append(int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit])
    return max(sizes, default=32 * 2**20)


def copy_rate(device: jax.Device, quick: bool) -> float:
    """Bytes read and written in a second by ``x -> -x`` over an array far larger than the cache.

    In place, by donation: fresh memory for every result would measure the operating system's page faults.
    """
    size = max(8 * cache_bytes(device), 2**26) // 4
    x = jax.random.normal(jax.random.key(0), (size,), jnp.float32)
    negate, times = jax.jit(jnp.negative, donate_argnums=0), []
    for _ in range(5 if quick else 21):
        start = time.perf_counter()
        x = jax.block_until_ready(negate(x))
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(times)


def matmul_rate(device: jax.Device, dtype: str, quick: bool) -> float:
    """FLOP in a second of a square matrix product of random numbers."""
    n = 8192 if device.platform != "cpu" else 1024
    x = jax.random.normal(jax.random.key(1), (n, n), jnp.float32).astype(dtype)
    return 2 * n**3 / _least_seconds(jax.jit(jnp.matmul), (x, x), 5 if quick else 21)


def _least_seconds(function: Any, arguments: tuple[Any, ...], rounds: int) -> float:
    for _ in range(3):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def commit() -> str:
    """The commit that is measured, with a plus sign where the working tree differs from it; empty without git."""
    try:
        run = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        changed = run("status", "--porcelain", "--untracked-files=no", "--", "xentjax", "benchmarks/*.py")
        return run("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
