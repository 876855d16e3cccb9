"""What a run was computed with and how long it took: versions, device, and times without those of compiling."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.monitoring
import numpy as np


class Cost(NamedTuple):
    """The time that a run took, in seconds, and the device on which."""

    compile_seconds: float
    run_seconds: float
    device: str

    @property
    def spent(self) -> np.ndarray[Any, Any]:
        """Both times, as a checkpoint has them."""
        return np.asarray([self.compile_seconds, self.run_seconds])

    def and_before(self, spent: np.ndarray[Any, Any]) -> Cost:
        """With what the processes have spent that the run has gone on from."""
        return Cost(self.compile_seconds + float(spent[0]), self.run_seconds + float(spent[1]), self.device)

    def summary(self) -> dict[str, object]:
        return {**self._asdict(), "versions": versions("xentjax", "jax", "numpy")}


class Stopwatch:
    """The time that JAX spends tracing and compiling, the union of the spans that it reports, and all other time."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._started = time.perf_counter()
        self._seconds: float | None = None

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._started

    def cost(self) -> Cost:
        """What has passed until the stopwatch was stopped, or until now."""
        passed = time.perf_counter() - self._started if self._seconds is None else self._seconds
        compiling, end = 0.0, -np.inf
        for start, stop in sorted(self._spans):
            compiling += max(stop - max(start, end), 0.0)
            end = max(end, stop)
        return Cost(compiling, max(passed - compiling, 0.0), device_name())


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
