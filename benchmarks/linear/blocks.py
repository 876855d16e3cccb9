"""The table of block sizes that the dispatcher reads: what is fastest by device, dtype, shape and strategy."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from xentjax.losses.linear import measured
from xentjax.losses.linear.measured import TABLE


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line: value and gradients of x [n, d] and w [d, v] by a strategy took so many milliseconds on a device.

    ``block`` is classes at a time, ``chunk`` tokens at a time; None: all of them, or by kernels as the plan chooses.
    ``kernels`` is what computed on a GPU or a TPU.
    """

    device: str
    dtype: str
    n: int
    d: int
    v: int
    strategy: str
    block: int | None
    chunk: int | None
    milliseconds: float
    kernels: str = "xla"

    @property
    def key(self) -> tuple[Any, ...]:
        return self.device, self.dtype, self.n, self.d, self.v, self.strategy


def read(path: pathlib.Path = TABLE) -> list[Entry]:
    return [Entry(**line) for line in measured.read(path)] if path.exists() else []


def write(entries: Iterable[Entry], path: pathlib.Path = TABLE) -> None:
    """One entry a line, in order of their keys, so that differences of two tables are seen."""
    lines = [json.dumps(dataclasses.asdict(entry)) for entry in sorted(entries, key=lambda entry: entry.key)]
    path.write_text("[\n  " + ",\n  ".join(lines) + "\n]\n" if lines else "[]\n")


def of_rows(rows: Iterable[dict[str, Any]]) -> list[Entry]:
    """The entries that results of a sweep hold."""
    names = [field.name for field in dataclasses.fields(Entry)]
    return [Entry(**{name: row[name] for name in names if name in row}) for row in rows if row["kind"] == "block"]


def merged(old: Iterable[Entry], measured: Iterable[Entry]) -> list[Entry]:
    """The fastest of what was measured for each key, which takes the place of an older entry of that key."""
    best: dict[tuple[Any, ...], Entry] = {}
    for entry in sorted(measured, key=lambda entry: -entry.milliseconds):
        best[entry.key] = entry
    return list({**{entry.key: entry for entry in old}, **best}.values())
