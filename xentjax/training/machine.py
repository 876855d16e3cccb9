"""What a run was computed with and how long it took: versions, device, and times without those of compiling."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import jax
import jax.monitoring
import numpy as np


class Cost(NamedTuple):
    """The time that a run took, in seconds, and the device on which."""

    compile_seconds: float
    run_seconds: float
    device: str

    def summary(self) -> dict[str, object]:
        return {**self._asdict(), "versions": versions("xentjax", "jax", "numpy")}


class Stopwatch:
    """The time that JAX spends tracing and compiling, the union of the spans that it reports, and all other time."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._started = time.perf_counter()
        self._seconds = 0.0

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._started

    def cost(self) -> Cost:
        """What has passed until the stopwatch was stopped."""
        compiling, end = 0.0, -np.inf
        for start, stop in sorted(self._spans):
            compiling += max(stop - max(start, end), 0.0)
            end = max(end, stop)
        return Cost(compiling, max(self._seconds - compiling, 0.0), device_name())


@contextlib.contextmanager
def timed() -> Iterator[Stopwatch]:
    """Measures what happens inside the block."""
    watch = Stopwatch()
    jax.monitoring.register_event_duration_secs_listener(watch)
    try:
        yield watch
    finally:
        watch.stop()
        jax.monitoring.unregister_event_duration_listener(watch)


def versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed; a source tree that is not installed has none."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def device_name() -> str:
    device = jax.devices()[0]
    return f"cpu, {os.cpu_count()} cores" if device.platform == "cpu" else f"{device.device_kind} ({device.platform})"
