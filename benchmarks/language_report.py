"""The README's part on the language model, from the summaries of its runs."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from xentjax.training.language.language_result import tables


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    """What ``make language`` has copied from run folders."""
    return sorted(results.glob("*/bytes_lm.json"))


def sections(paths: Sequence[pathlib.Path]) -> str:
    """What the run has printed on each device."""
    return "\n\n".join(section(path) for path in paths)


def section(path: pathlib.Path) -> str:
    summary = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    seconds = f"{summary['compile_seconds']:.0f} s to compile, {summary['run_seconds']:,.0f} s of steps"
    printed = f"```\n$ xentjax fit configs/bytes_lm.toml\n{tables(summary)}\n```"
    return f"**{path.parent.name}**: {seconds}. {versions}.\n\n{printed}"
