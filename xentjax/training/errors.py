"""The one exception that stands for a mistake in what the user gave: a config, a table, a folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

#: The longest line of an error: what is longer loses its middle.
_LONGEST = 1000

#: A hint compares so many names of so many letters at most, as each takes as long as the product of the two lengths.
_MOST_NAMES, _MOST_LETTERS = 1000, 100


class UserError(Exception):
    """A mistake in the input, told in one line that names the place: file, line, column or key.

    What a file holds may stand in it: signs that cannot be printed, which a terminal may obey, are escaped.
    """

    def __init__(self, message: str) -> None:
        line = _shortened(" ".join(message.split()))
        # A sign becomes as many as ten.
        super().__init__(
            _shortened("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))
        )


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """A hint at the nearest of the names that exist ("; did you mean ...?"), or nothing where none is near, or where
    they are too many or too long to compare."""
    if len(known) > _MOST_NAMES or len(name) > _MOST_LETTERS:
        return ""
    close = difflib.get_close_matches(name, [other for other in known if len(other) <= _MOST_LETTERS], n=1)
    if not close:
        return ""
    full = known[close[0]] if isinstance(known, Mapping) and isinstance(known[close[0]], str) else close[0]
    return f"; did you mean {full}?"


def listed(names: Sequence[str]) -> str:
    """The names between which to choose: 'a', 'b' or 'c'."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
