"""Rows of floats in a file, one after the other: written once, and read at any place."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xentjax.training.errors import UserError

Array = np.ndarray[Any, Any]

#: Bytes that passes of NumPy's take at once, and that the system is asked to read ahead.
_BLOCK, _AHEAD = 2**23, 2**25


class Reading(NamedTuple):
    """How far a pass over the rows is."""

    done: int
    total: int
    passes: int
    """Passes that were begun."""
    rows_per_second: float
    """In this pass, computing included."""
    objective: float | None
    """At the end of the pass before."""


class MatrixFile:
    """The rows ``[n, d]`` of a file from a byte on, a :class:`RowSource`.

    A chunk is read straight to where it is computed with, while the system reads on behind it: what lies on a disk
    comes while the chunk before it is computed with, and what the system holds already is copied once.
    """

    def __init__(
        self, file: io.FileIO, path: Path, offset: int, shape: tuple[int, int], dtype: Any, origin: Array | None = None
    ):
        self.path, self.shape, self.dtype, self.origin = path, shape, np.dtype(dtype), origin
        self.failure: BaseException | None = None
        self.told: Callable[[Reading], None] | None = None
        self.rows_read, self.seconds_reading, self.passes = 0, 0.0, 0
        self._file, self._offset = file, offset
        self._row = shape[1] * self.dtype.itemsize
        self._ahead, self._began = 0, time.perf_counter()
        self._objective: float | None = None
        self._lock = threading.Lock()

    def read(self, start: int, out: Array) -> None:
        began = time.perf_counter()
        if start == 0:
            self.passes, self._began, self._ahead = self.passes + 1, began, 0
        self._read_ahead(start)
        self._fill(_bytes_of(out), start)
        now = time.perf_counter()
        with self._lock:
            self.rows_read += len(out)
            self.seconds_reading += now - began
        if self.told is not None:
            done = start + len(out)
            rate = done / max(now - self._began, 1e-9)
            self.told(Reading(done, self.shape[0], self.passes, rate, self._objective))

    def take(self, rows: Array, out: Array) -> None:
        began = time.perf_counter()
        for row, place in zip(rows.tolist(), out, strict=True):
            self._fill(_bytes_of(place), row)
        with self._lock:
            self.rows_read += len(out)
            self.seconds_reading += time.perf_counter() - began

    def tell(self, objective: float) -> None:
        self._objective = objective

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Each block of rows with the number of its first, for passes of NumPy's."""
        n, rows = self.shape[0], max(_BLOCK // max(self._row, 1), 1)
        for start in range(0, n, rows):
            block = np.empty((min(rows, n - start), self.shape[1]), self.dtype)
            self._fill(_bytes_of(block), start)
            yield start, block

    def close(self) -> None:
        self._file.close()

    def _fill(self, room: memoryview, row: int) -> None:
        place = self._offset + row * self._row
        while room.nbytes:
            try:
                count = os.preadv(self._file.fileno(), [room], place)
            except (OSError, ValueError) as error:  # a file that is closed is a ValueError
                raise UserError(f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
            if count == 0:
                raise UserError(f"{self.path}: ends early: it has become shorter since it was opened")
            room, place = room[count:], place + count

    def _read_ahead(self, start: int) -> None:
        """Ask for what comes next once half of what was asked for is read; after the last row comes the first."""
        place, end = start * self._row, self.shape[0] * self._row
        if not hasattr(os, "posix_fadvise") or place + _AHEAD // 2 < self._ahead or self._file.closed:
            return
        self._ahead = place + _AHEAD
        os.posix_fadvise(self._file.fileno(), self._offset + place, _AHEAD, os.POSIX_FADV_WILLNEED)
        if self._ahead > end:
            os.posix_fadvise(self._file.fileno(), self._offset, self._ahead - end, os.POSIX_FADV_WILLNEED)


def _bytes_of(array: Array) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")


class MatrixWriter:
    """A file without a name in the folder ``cache``, which is gone when nobody reads it any more, however that ends."""

    def __init__(self, cache: Path | None, columns: int, dtype: Any):
        self._folder = cache or temporary_folder()
        self.dtype, self._columns, self._rows = np.dtype(dtype), columns, 0
        try:
            self._file: Any = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  (who reads closes)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, block: Array) -> None:
        """Append rows."""
        room = _bytes_of(np.ascontiguousarray(block, self.dtype))
        self._rows += len(block)
        while room.nbytes:
            try:
                room = room[self._file.write(room) :]
            except OSError as error:
                raise self._failed(error) from error

    def done(self, origin: Array | None = None) -> MatrixFile:
        """What was written, to be read."""
        return MatrixFile(self._file, self._folder, 0, (self._rows, self._columns), self.dtype, origin)

    def _failed(self, error: OSError) -> UserError:
        hint = "features that are not read where they stand are written there once; cache names another folder"
        return UserError(f"{self._folder}: cannot be written: {error.strerror or error}; {hint}")


def temporary_folder() -> Path:
    """Where large files may lie: ``TMPDIR``, or ``/var/tmp``, as ``/tmp`` may be memory."""
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK):
        return Path("/var/tmp")
    return Path(tempfile.gettempdir())
