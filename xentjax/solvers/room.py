"""Room for compiled programs: those of this package are forgotten, all at once, before a process has too many.

On a CPU each kernel of a program is three pieces of mapped memory, a fit some hundreds, and Linux ends a process that
maps more than 65,530 (``vm.max_map_count``). JAX keeps thousands of programs: fits of ever new sizes would get there.
"""

from __future__ import annotations

import pathlib
import weakref
from typing import Protocol

#: The share of the mappings of memory that the process may have, beyond which this package's programs are forgotten.
SHARE = 0.5

#: So many programs are made at least before all are forgotten: what else the process does may have taken the room, and
#: where the system does not tell what is mapped, so many at most.
_FEWEST, _MOST = 16, 128


class Holder(Protocol):
    """What holds programs, and can make them again."""

    def forget(self) -> None: ...


_HOLDERS: weakref.WeakSet[Holder] = weakref.WeakSet()
_made = 0


def hold(holder: Holder) -> None:
    """From now on the holder forgets its programs when there is no more room."""
    _HOLDERS.add(holder)


def another() -> None:
    """Say that a holder has made a program; where there is no more room, all holders forget theirs.

    Whatever runs at the time keeps its program, and is not disturbed.
    """
    global _made
    _made += 1
    if _made < _FEWEST:
        return
    mapped, most = mappings(), most_mappings()
    if (_made > _MOST) if mapped is None or most is None else (mapped > SHARE * most):
        _made = 0
        for holder in list(_HOLDERS):
            holder.forget()


def mappings() -> int | None:
    """How many pieces of memory this process maps; None where the system does not tell."""
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return None


def most_mappings() -> int | None:
    """How many the system allows; None where it does not tell."""
    try:
        return int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return None
