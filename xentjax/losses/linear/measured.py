"""What was measured on devices, by ``python -m benchmarks blocks``: the table of what is fastest, and its reader."""

from __future__ import annotations

import functools
import json
import math
import pathlib
from typing import Any

import jax

from xentjax.losses.linear.arguments import Problem

#: Entries by device, dtype, sizes, strategy.
TABLE = pathlib.Path(__file__).parent / "blocks.json"

#: An entry stands for sizes that differ from its own by this factor at most, each.
_ALIKE = 4.0

#: The largest table in bytes.
_MOST_BYTES = 2**24

#: What an entry holds, and of which types; the others may be missing.
_NEEDED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("device", "dtype", "strategy"), (str,)),
    **dict.fromkeys(("n", "d", "v"), (int,)),
    **dict.fromkeys(("block", "chunk"), (int, type(None))),
    "milliseconds": (int, float),
}
_KINDS = {**_NEEDED, "kernels": (str,)}


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The entries of a table.

    Raises:
      ValueError: it is no such table; the error names the first entry that is wrong.
      OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is no file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: has more than {_MOST_BYTES} bytes")
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no table of blocks: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: is no table of blocks, but {type(entries).__name__}")
    for i, entry in enumerate(entries):
        is_whole = isinstance(entry, dict) and _NEEDED.keys() <= entry.keys() <= _KINDS.keys()
        if not is_whole or not all(type(value) in _KINDS[name] for name, value in entry.items()):
            raise ValueError(f"{path}: entry {i} is no measurement of a block")
        if min(entry["n"], entry["d"], entry["v"], (entry["block"] or 1) - 1, (entry["chunk"] or 1) - 1) < 0:
            raise ValueError(f"{path}: entry {i} has a size below 0")
    return entries


@functools.cache
def _table() -> list[dict[str, Any]]:
    return read(TABLE)


def nearest(problem: Problem, strategy: str) -> dict[str, Any]:
    """The entry of the table for this device, dtype and strategy whose sizes are nearest, if any is near."""
    entries = _table()
    if not entries:
        return {}
    kind = jax.devices()[0].device_kind
    sizes = (problem.rows, problem.features, problem.width)

    def distance(entry: dict[str, Any]) -> float:
        own = (entry["n"], entry["d"], entry["v"])
        return max(abs(math.log(max(a, 1) / max(b, 1))) for a, b in zip(own, sizes, strict=True))

    key = (kind, problem.operands.name, strategy)
    known = [entry for entry in entries if (entry["device"], entry["dtype"], entry["strategy"]) == key]
    found = min(known, key=distance, default=None)
    return found if found is not None and distance(found) <= math.log(_ALIKE) else {}
