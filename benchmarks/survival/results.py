"""The file of all faults that were tried, ``faults.jsonl``, and the README's table of them."""

from __future__ import annotations

import datetime
import json
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.tables import table


def write(rows: Iterable[dict[str, Any]], results: pathlib.Path) -> int:
    """Write each row as it comes to ``<device>/faults.jsonl``, in the place of that of the same fault; 1 where one has
    failed."""
    import jax

    from benchmarks.machine import commit, device_name, processor_name
    from xentjax.training.machine import versions

    device = jax.devices()[0]
    path = results / device_name(device) / "faults.jsonl"
    machine = {
        "name": processor_name(device),
        "python": platform.python_version(),
        "versions": versions("xentjax", "jax", "jaxlib", "orbax-checkpoint"),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    failed = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        failed += row["failed"]
        print(f"{row['fault']}: {row['tried']} tried, {row['failed']} FAILED" if row["failed"] else one_line(row))
        known = {found["fault"]: found for found in load(path)} | {row["fault"]: row | {"machine": machine}}
        path.write_text("".join(f"{json.dumps(found)}\n" for found in known.values()))
    print(f"written to {path}")
    return 1 if failed else 0


def one_line(row: dict[str, Any]) -> str:
    return f"{row['fault']}: {row['tried']} tried: {row['outcome']}"


def load(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results.glob("*/faults.jsonl"))


def sections(paths: Sequence[pathlib.Path]) -> str:
    return "\n\n".join(section(path) for path in paths)


def section(path: pathlib.Path) -> str:
    """The table of one device, in the order in which the faults were first tried; then what was read and soaked."""
    from benchmarks import soak
    from benchmarks.fuzz import run as fuzz

    rows = load(path)
    machine = max((row["machine"] for row in rows), key=lambda machine: machine["date"])
    packages = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    head = f"**{path.parent.name}**: {machine['name']}. Python {machine['python']}, {packages}; {machine['date'][:10]}."
    header = ["fault", "tried", "failed", "what happened", "command"]
    for made, name in ((fuzz, "fuzz"), (soak, "soak")):
        if others := load(path.parent / f"{name}.jsonl"):
            rows += made.faults(others)
    cells = ([r["fault"], f"{r['tried']:,}", str(r["failed"]), r["outcome"], f"`{r['command']}`"] for r in rows)
    return f"{head}\n\n{table(header, cells)}"
