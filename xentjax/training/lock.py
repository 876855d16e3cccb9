"""A lock on a folder, which only one process can hold, and which ends with it however it ends."""

from __future__ import annotations

import datetime
import errno
import json
import os
import platform
from pathlib import Path
from typing import Any

from xentjax.training.errors import UserError

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

#: What a file system says that has no locks.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Holds a file by ``flock``, with the name of this process in it.

    The system lets go of it where the process ends, killed or not. Over NFS, Linux asks the server, which holds it for
    all machines. Where a file system or a system has no locks nobody is kept away, and ``is_held`` is False.

    Args:
      path: the file, which is made, and removed again by ``release``.
      run: what is locked, in the words of an error.

    Raises:
      UserError: another process holds it, which is named.
    """

    def __init__(self, path: Path, run: Path):
        self.path = path
        self._file: int | None = None
        while self._file is None:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _taken(file):
                    os.close(file)
                    return
            except BlockingIOError:
                holder = _holder(file)
                os.close(file)
                raise UserError(f"{run}: {holder}: wait for its end, or choose another --out") from None
            if _is_at(path, file):
                self._file = file
            else:  # the process that held it has removed it meanwhile
                os.close(file)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        told = {"process": os.getpid(), "machine": platform.node(), "since": now}
        os.truncate(self._file, 0)
        os.pwrite(self._file, json.dumps(told).encode(), 0)

    @property
    def is_held(self) -> bool:
        return self._file is not None

    @property
    def is_lost(self) -> bool:
        """Whether somebody has removed the file, or its folder."""
        return self._file is not None and not _is_at(self.path, self._file)

    def release(self) -> None:
        """Let go of the file, and remove it."""
        if not self.is_lost:
            self.path.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _taken(file: int) -> bool:
    """Lock it; False where that cannot be done here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise
    return True


def _holder(file: int) -> str:
    try:
        told: Any = json.loads(os.pread(file, 4096, 0))
        return f"process {told['process']} of {told['machine']} works on it since {told['since']}"
    except (ValueError, TypeError, KeyError):
        return "another process works on it"


def _is_at(path: Path, file: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    mine = os.fstat(file)
    return (found.st_ino, found.st_dev) == (mine.st_ino, mine.st_dev)
