"""The README's tables of scaling: what was measured on one machine, and what many H200 would take on paper."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks.scale import paper
from benchmarks.tables import made_with, milliseconds, table

Row = dict[str, Any]

#: Devices of the tables on paper, and the problems: rows and features, tokens of a node, width and vocabulary.
ON_PAPER = (8, 64, 512)
NEWTON, HEAD = (10**9, 100), (65_536, 4096, 128_256)


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results.glob("*/scale.jsonl"))


def write(path: pathlib.Path) -> list[str]:
    """Nothing stands beside the results: the README has all of them."""
    return []


def sections(paths: list[pathlib.Path]) -> str:
    return "\n\n".join([*map(measured, paths), on_paper()])


def measured(path: pathlib.Path) -> str:
    """Each problem, strong and weak, over devices of one process and over processes."""
    machine, *rows = (json.loads(line) for line in path.read_text().splitlines())
    header = ["problem", "scaling", "over", "1", "2", "4", "8", "bytes reduced (predicted)", "bytes sent (ring)"]
    lines = []
    for problem, over, way in dict.fromkeys((row["problem"], row["over"], row["way"]) for row in rows):
        found = {r["parts"]: r for r in rows if (r["problem"], r["over"], r["way"]) == (problem, over, way)}
        last = found[max(found)]
        sizes = ", ".join(f"{name} = {size:,}" for name, size in found[min(found)]["sizes"].items())
        times = [f"{milliseconds(found[n]['run_s'])}" if n in found else "" for n in (1, 2, 4, 8)]
        sent = f"{last['network_bytes']:,} ({last['ring_bytes']:,})" if last.get("network_bytes") else ""
        reduced = f"{last['compiled_bytes']:,} ({last['predicted_bytes']:,})"
        lines.append([f"{problem}, {sizes}", way, over, *times, reduced, sent])
    said = (
        "Milliseconds. Strong: the same problem on all; weak: rows, or classes, in proportion. "
        f"All of them share {machine['cores']} cores, so that beyond as many parts nothing is gained, and what can be "
        "seen is what splitting costs. Bytes are those of the largest number of parts: what the all-reduces of the "
        "compiled program hold, and what all processes together sent, with the protocol's own (2 (P - 1) times "
        "the first for a ring of P)."
    )
    return "\n\n".join([made_with(machine), said, table(header, lines)])


def on_paper() -> str:
    """Times by rates alone."""
    cluster = paper.H200
    said = (
        f"On paper, not measured: H200 with {cluster.copies / 1e12:g} TB/s of memory, "
        f"{cluster.products['float32'] / 1e12:g} (float32) and {cluster.products['bfloat16'] / 1e12:g} TFLOP/s "
        f"(bfloat16), NVLink {cluster.nvlink / 1e9:g} GB/s each way among {cluster.in_node} of a node, "
        f"{cluster.network / 1e9:g} GB/s from each device to other nodes, {1e6 * cluster.start_in_node:g} and "
        f"{1e6 * cluster.start_between:g} µs for an all-reduce to start (`benchmarks/scale/paper.py`). Milliseconds:"
    )
    newton, head = (
        [function(devices, *sizes) for devices in ON_PAPER]
        for function, sizes in ((paper.newton, NEWTON), (paper.head, HEAD))
    )
    names = (
        f"Newton step, n = {NEWTON[0]:,}, d = {NEWTON[1]}, float32",
        f"head's step, {HEAD[0]:,} tokens a node, D = {HEAD[1]}, V = {HEAD[2]:,}, bfloat16",
    )
    header = ["step", "devices", "memory", "products", "sent", "together"]
    lines = [
        [name, str(step.devices), *(_ms(t) for t in (step.memory, step.products, step.sent, step.total))]
        for name, steps in zip(names, (newton, head), strict=True)
        for step in steps
    ]
    return f"{said}\n\n{table(header, lines)}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"
