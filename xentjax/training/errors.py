"""The one exception that stands for a mistake in what the user gave: a config, a table, a folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


class UserError(Exception):
    """A mistake in the input, told in one line that names the place: file, line, column or key."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """A hint at the nearest of the names that exist ("; did you mean ...?"), or nothing where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if not close:
        return ""
    full = known[close[0]] if isinstance(known, Mapping) and isinstance(known[close[0]], str) else close[0]
    return f"; did you mean {full}?"


def listed(names: Sequence[str]) -> str:
    """The names between which to choose: 'a', 'b' or 'c'."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
