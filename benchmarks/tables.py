"""Markdown tables and the words for a machine, which every report shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made_with(machine: dict[str, Any]) -> str:
    """Versions, commit and date of a measurement."""
    packages = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return f"Python {machine['python']}, {packages}; commit {machine['commit']}, {machine['date'][:10]}."


def mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def machine_line(machine: dict[str, Any]) -> str:
    rates = f"copies {machine['copy_bytes_per_s'] / 1e9:.1f} GB/s (read and written)"
    rates += "".join(f", {d} matrix products {r / 1e9:,.0f} GFLOP/s" for d, r in machine["matmul_flop_per_s"].items())
    cores = f", {machine['cores']} cores" if machine["platform"] == "cpu" else ""
    return f"{machine['name']}{cores}; measured: {rates}. {made_with(machine)}"
