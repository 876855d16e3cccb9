"""What is asked of a file before it is read: that it is one, and no larger than what is read at once."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from xentjax.training.errors import UserError

try:
    import resource
except ImportError:  # a system that has no limits
    resource = None  # type: ignore[assignment]


def require_file(path: Path) -> int:
    """The size of a file in bytes, or UserError: a pipe or a device may have no end, or never begin."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise unreadable(path, error) from error
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path}: cannot be read: Is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is a pipe or a device: copy what comes out of it to a file first")
    return found.st_size


def contents(path: Path, most: int) -> bytes:
    """The bytes of a file that has at most so many, or UserError."""
    size = require_file(path)
    if size > most:
        raise UserError(f"{path}: has {size} bytes, but at most {most} are read")
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """What to say of a file that the system does not give."""
    return UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


# -- memory ------------------------------------------------------------------------------------------------------------


def require_memory(needed: int, what: str) -> None:
    """UserError where something needs more bytes than this process can still have; nothing where that is not known.

    A small file may ask for any number of bytes: rows that repeat cost it nothing, nor do categories.
    """
    free = _free_bytes()
    if free is not None and needed > free:
        raise UserError(f"{what} would take {needed / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} are free")


def _free_bytes() -> int | None:
    """What the system has free and the process's own limit leaves; None where the system does not tell."""
    try:
        told = dict(line.split(":")[:2] for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
        own = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, KeyError):
        return None
    limit = -1 if resource is None else resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if limit < 0 else max(min(free, limit - own), 0)
