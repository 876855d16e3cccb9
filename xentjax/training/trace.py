"""The history of a run, in this process and in those that it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xentjax.training.config import RunConfig
from xentjax.training.machine import Stopwatch, device_name, versions
from xentjax.training.run_state import RunState

Array = np.ndarray[Any, Any]


def identity(config: RunConfig, digest: str) -> dict[str, Any]:
    """What the bits of a run depend on: its config, its data by their digest, the device, and versions."""
    return {
        "config": config.model_dump(mode="json", exclude={"name", "checkpoint"}),
        "data": digest,
        "device": device_name(),
        "versions": versions("xentjax", "jax", "jaxlib", "optax", "numpy"),
    }


class Trace:
    """The columns of a history, which grow, and the time that was spent, kept in checkpoints with the run's own state.

    Args:
      kept: where checkpoints are; None for none.
      what: gives the identity of the run.
      columns: how many; three are steps, objective and largest gradient component, for a run of one fit.
    """

    def __init__(self, kept: RunState | None, what: Callable[[], Mapping[str, Any]], columns: int = 3):
        self._kept, self._what, self._columns = kept, what, columns
        self._parts: list[tuple[Array, ...]] = []
        #: Seconds of compiling and of all else in processes before this one.
        self.spent: Array = np.zeros(2)

    def add(self, *columns: Array) -> None:
        """More of the history, along the last axis."""
        self._parts.append(columns)

    @property
    def length(self) -> int:
        """How many entries a column has."""
        return sum(columns[0].shape[-1] for columns in self._parts)

    @property
    def history(self) -> tuple[Array, ...]:
        """All of it."""
        if not self._parts:
            return ()
        columns = zip(*self._parts, strict=True)
        self._parts = [tuple(np.concatenate(column, axis=-1) for column in columns)]
        return self._parts[0]

    def restored(self, start: Any) -> Any:
        """The state to go on from: that of the last checkpoint, or ``start`` where there is none."""
        if self._kept is None:
            return start
        like = {"run": start, "history": (np.zeros(0),) * self._columns, "spent": self.spent}
        found = self._kept.restored(self._what, like)
        if found is None:
            return start
        self.spent = found["spent"]
        if self._columns:
            self.add(*found["history"])
        return found["run"]

    def keep(self, step: int, run: Any, watch: Stopwatch, stopped: bool) -> None:
        """Write a checkpoint of the run's own state, where one is due, or the run is stopped."""
        if self._kept is not None:
            spent = lambda: watch.cost().and_before(self.spent).spent
            self._kept.see(step, lambda: {"run": run, "history": self.history, "spent": spent()}, stopped)
