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
