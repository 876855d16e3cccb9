"""The README's part on fits of tables in files, from ``stream.jsonl``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import machine_line, table


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results.glob("*/stream.jsonl"))


def sections(paths: Sequence[pathlib.Path]) -> str:
    """A table for each device."""
    return "\n\n".join(section(path) for path in paths)


def section(path: pathlib.Path) -> str:
    machine, *rows = (json.loads(line) for line in path.read_text().splitlines())
    header = ["solver", "rows from", "fit, s", "of the speed in memory", "peak beyond JAX, MB", "read, GB/s", "reading"]
    header += ["opened in, s", "largest difference of parameters"]
    first = rows[0]
    size = f"{first['n']:,} rows of {first['d']} columns in {first['dtype']}"
    return f"**{path.parent.name}**: {machine_line(machine)}\n\n{size}.\n\n" + table(header, map(_cells, rows))


def _cells(row: dict[str, Any]) -> list[str]:
    told = lambda name, text: text.format(row[name]) if name in row else "–"
    return [
        row["solver"],
        row["source"],
        f"{row['fit_s']:.1f}",
        told("speed_of_memory", "{:.0%}"),
        f"{row['bytes_beyond_jax'] / 1e6:,.0f}",
        f"{row['bytes_per_s'] / 1e9:.2f}" if "bytes_per_s" in row else "–",
        told("reading_share", "{:.0%}"),
        f"{row['open_s']:.1f}",
        told("difference", "{:.1g}"),
    ]
