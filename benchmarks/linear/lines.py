"""A row of the suite for the eye, as it is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def one_line(row: Row) -> str:
    return LINES[row["kind"]](row)


def _skipped(row: Row) -> str:
    return f"{row['name']}: left out, {row['why']}"


def _check(row: Row) -> str:
    worst = max(row["errors"], key=lambda key: row["errors"][key])
    verdict = "passed" if row["passed"] else "FAILED"
    text = f"{row['name']}: {verdict}; {worst} {row['errors'][worst]:.1e}, of the dense formula "
    return text + f"{row['errors_of_dense'][worst]:.1e}; moves by {row['moving']:g} from run to run"


def _block(row: Row) -> str:
    sizes = " ".join(f"{name}={row[name]}" for name in ("block", "chunk") if row[name] is not None)
    shape = f"({row['n']}, {row['d']}, {row['v']}) {row['dtype']}"
    memory = f", {row['temp_bytes'] / 2**20:.1f} MiB" if "temp_bytes" in row else ""
    kernels = " by kernels" if row["kernels"] == "mosaic" else ""
    return f"{shape}, {row['strategy']} {sizes}{kernels}: {row['milliseconds']:g} ms{memory}"


def _row(row: Row) -> str:
    """Time and shares of the first method; of each other its time, in how many of its own the first is done; memory."""
    (name, first), *others = row["implementations"].items()
    place = f"({', '.join(str(size) for size in row['sizes'].values())}), {row['dtype']}, {row['mode']}"
    text = f"{place}: {name} {first['run_s'] * 1e3:.2f} ms, {first['copy_share']:.0%} of copy"
    text += f", {first['matmul_share']:.0%} of products" if "matmul_share" in first else ""
    for other, found in others:
        ratio = found.get("ours_over_this", found.get("products_over_this"))
        text += f", {other} failed" if ratio is None else f", {ratio:.2f}x {other}"
    memory = [found["temp_bytes"] for found in row["implementations"].values() if "temp_bytes" in found]
    return text + "; MiB " + "/".join(f"{b / 2**20:.1f}" for b in memory)


LINES: dict[str, Callable[[Row], str]] = {"skipped": _skipped, "check": _check, "block": _block, "row": _row}
