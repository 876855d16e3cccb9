"""Results of the suite as they are read: rows of each kind, and those of both processes put together."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from benchmarks.linear.methods import PRODUCTS

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """One device's results: the name of their folder, the machine's line, then rows of each kind."""

    folder: str
    machine: dict[str, Any]
    rows: tuple[Row, ...]

    def of(self, kind: str, suite: str | None = None) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind and suite in (None, row.get("suite"))]


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results.glob("*/linear.jsonl"))


def load(path: pathlib.Path) -> Results:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Results(path.parent.name, lines[0], tuple(lines[1:]))


def sizes(row: Row) -> str:
    return ", ".join(f"{letter} = {size:,}" for letter, size in row["sizes"].items())


def methods(row: Row) -> dict[str, Row]:
    """What was measured of each method, without those that failed and the products alone."""
    return {n: m for n, m in row["implementations"].items() if "failed" not in m and not n.startswith(PRODUCTS)}


def joined(results: Results) -> list[Row]:
    """The rows of the suite, each with what was measured of the same place in torch's own process.

    Their ratios are of times in different rounds: each method's over the products alone beside it.
    """
    of_torch = {place(row): row for row in results.of("row", "linear, torch")}
    found = []
    for row in results.of("row", "linear"):
        other = of_torch.get(place(row))
        found.append(row if other is None else row | {"implementations": _joined(row, other)})
    return found


def place(row: Row) -> tuple[Any, ...]:
    return tuple(row["sizes"].values()), row["dtype"], row["mode"]


def _joined(row: Row, other: Row) -> dict[str, Row]:
    mine, theirs = row["implementations"], dict(other["implementations"])
    alone = theirs.pop(PRODUCTS)
    found = {**mine, **theirs, f"{PRODUCTS}, torch": alone}
    ours = mine[next(iter(mine))].get("run_s")
    of_ours = ours / mine[PRODUCTS]["run_s"] if "run_s" in mine.get(PRODUCTS, {}) else None
    for name in theirs:
        if "products_over_this" in found[name] and of_ours is not None:
            found[name] = found[name] | {"ours_over_this": of_ours * found[name]["products_over_this"]}
    return found
