"""The README's generated parts: what stands between ``<!-- NAME: ... -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from benchmarks.machine import ROOT
from xentjax.core.op import Record, ops

README = ROOT / "README.md"
ACCURACY = ROOT / "benchmarks" / "results" / "accuracy.md"


def refresh(path: pathlib.Path, parts: Mapping[str, str] | None = None) -> None:
    """Rewrites the generated parts in place: the functions from the registry, the accuracy table from its file, and
    ``parts``."""
    parts = {"functions": functions_table(ops()), **(parts or {})}
    if ACCURACY.exists():
        parts["accuracy"] = ACCURACY.read_text().strip()
    text = path.read_text()
    for name, content in parts.items():
        text = replace(text, name, content)
    path.write_text(text)


def replace(text: str, name: str, content: str) -> str:
    start, end = _markers(text, name)
    return f"{text[:start]}\n{content.strip()}\n{text[end:]}"


def part(text: str, name: str) -> str:
    """The generated part of that name."""
    start, end = _markers(text, name)
    return text[start:end].strip()


def _markers(text: str, name: str) -> tuple[int, int]:
    found = re.search(rf"<!-- {name}:[^>]*-->(.*?)<!-- end {name} -->", text, re.DOTALL)
    if found is None:
        raise ValueError(f"README has no part between <!-- {name}: ... --> and <!-- end {name} -->")
    return found.span(1)


def functions_table(records: tuple[Record, ...]) -> str:
    """Every public record: its call, its formula and the gradient that was derived by hand."""
    lines = ["| group | function | formula | gradient |", "|---|---|---|---|"]
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.public:
            groups.setdefault(record.group, []).append(record)
    for group, members in groups.items():
        for place, record in enumerate(members):
            call = f"`{record.name}({', '.join(record.inputs)})`"
            formula, gradient = (_cell(t) for t in (record.formula_text, record.gradient_text))
            lines.append(f"| {group if place == 0 else ''} | {call} | {formula} | {gradient} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
