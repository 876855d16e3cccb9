"""svmlight (libsvm) files: a label and ``column:value`` pairs a line, which scikit-learn parses block by block."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xentjax.training.errors import UserError
from xentjax.training.streams.formats import Skipped

#: The column of the labels.
LABEL = "label"

#: Bytes of lines that are parsed at once, and cells of the dense rows that are made of them.
_BLOCK, _CELLS = 2**22, 2**20

_LINE = re.compile(rb"\s*(\S+)((?:\s+qid:\d+)?)((?:\s+\d+:\S+)*)\s*")


@dataclass(frozen=True)
class SvmlightFile:
    """Its columns have the numbers that stand in the file, from the smallest to the largest one, and what a line leaves
    out is 0. (Which these are takes a pass over the file of its own.) Comments (``#``) and ``qid`` are left out."""

    path: Path
    names: tuple[str, ...]
    first: int
    """The number of the first column: 0 or 1."""
    counted_in = "lines"

    @classmethod
    def of(cls, path: Path) -> SvmlightFile:
        largest, first = -1, 1
        for number, lines in _lines(path):
            try:
                matrix, _ = _parsed(lines)
            except ValueError:
                matrix = _parsed([line for _, line in _good(number, lines)])[0]
            if matrix.nnz:
                largest = max(largest, int(matrix.indices.max()))
                first = min(first, int(matrix.indices.min()))
        if largest < 0:
            raise UserError(f"{path}: has no column: every line needs a label and pairs column:value")
        return cls(path, (LABEL, *(str(j) for j in range(first, largest + 1))), first)

    def blocks(self, names: Sequence[str], skipped: Skipped | None) -> Iterator[pa.Table]:
        d = len(self.names) - 1
        wanted = [int(name) - self.first for name in names if name != LABEL]
        for number, lines in _lines(self.path):
            try:
                matrix, labels = _parsed(lines, self.first + d)
            except ValueError:
                good = _good(number, lines)
                if skipped is None:
                    raise UserError(
                        f"{self.path}, line {_first_bad(number, lines)}: is no label with pairs column:value in order"
                    ) from None
                for _ in range(_records(lines) - len(good)):
                    skipped()
                matrix, labels = _parsed([line for _, line in good], self.first + d)
            rows = max(_CELLS // d, 256)
            for start in range(0, matrix.shape[0], rows):
                dense = matrix[start : start + rows].toarray()[:, self.first :]
                columns = {name: labels[start : start + rows] for name in names if name == LABEL}
                columns |= {self.names[j + 1]: np.ascontiguousarray(dense[:, j]) for j in wanted}
                yield pa.table(columns).select(list(names))

    def numbers(self, rows: Sequence[int]) -> list[int]:
        """The lines of rows. Blank lines and those of comments are no rows."""
        wanted, found, row = set(rows), {}, 0
        for number, lines in _lines(self.path):
            for n, line in enumerate(lines, number):
                if _content(line):
                    if row in wanted:
                        found[row] = n
                    row += 1
            if len(found) == len(wanted):
                break
        return [found[row] for row in rows]


def _lines(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of lines, each with the number of its first."""
    number = 1
    try:
        with path.open("rb") as file:
            while lines := file.readlines(_BLOCK):
                yield number, lines
                number += len(lines)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parsed(lines: Sequence[bytes], columns: int | None = None) -> tuple[Any, Any]:
    """The pairs as a sparse matrix, whose columns are numbered as in the file, and the labels."""
    from sklearn.datasets import load_svmlight_file

    text = b"".join(line for line in lines if _content(line))
    if not text:
        from scipy.sparse import csr_matrix

        return csr_matrix((0, columns or 0)), np.zeros(0)
    return load_svmlight_file(io.BytesIO(text), n_features=columns, zero_based=True)


def _content(line: bytes) -> bytes:
    return line.partition(b"#")[0].strip()


def _records(lines: Sequence[bytes]) -> int:
    return sum(bool(_content(line)) for line in lines)


def _good(number: int, lines: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """The lines that can be parsed, with their numbers."""
    return [(n, line) for n, line in enumerate(lines, number) if _content(line) and _parses(line)]


def _first_bad(number: int, lines: Sequence[bytes]) -> int:
    return next(n for n, line in enumerate(lines, number) if _content(line) and not _parses(line))


def _parses(line: bytes) -> bool:
    if not _LINE.fullmatch(_content(line)):
        return False
    try:
        _parsed([line])
    except ValueError:
        return False
    return True
