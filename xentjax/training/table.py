"""Tables in files: columns of numbers or of categories, and errors that name the line or row, and the column.

Text is converted column by column, so that a cell which does not fit can be shown as it stands in the file.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xentjax.training.config import SVMLIGHT
from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.files import require_file, require_memory, unreadable
from xentjax.training.streams.formats import ArrowFile, CsvFile, NpyFile, ParquetFile, Skipped, TableFormat
from xentjax.training.streams.svmlight import SvmlightFile

Array = np.ndarray[Any, Any]

#: The most columns of a table: of what has more none is made.
_MOST_COLUMNS = 100_000


@dataclass(frozen=True)
class TableFile:
    """A table on disk: one file, or all those of a folder in the order of their names; and the names of its columns."""

    path: Path
    names: tuple[str, ...]
    files: tuple[TableFormat, ...]
    _counted: dict[Path, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(file.path.stat().st_size for file in self.files)

    def place(self, row: int, column: str | None = None) -> str:
        """Where a row or a cell is, as the user finds it: the line of a file of text, or the row, counted from 1."""
        file, row = self._file_of(row)
        where = f"{file.path}, {file.counted_in[:-1]} {file.numbers([row])[0]}"
        return where if column is None else f"{where}, column {column!r}"

    def located(self, rows: Sequence[int]) -> tuple[str, list[Any]]:
        """Where rows are: what is counted, and the numbers, or in several files the places."""
        if len(self.files) == 1:
            return self.files[0].counted_in, self.files[0].numbers(rows)
        return "files", [self.place(row) for row in rows]

    def _file_of(self, row: int) -> tuple[TableFormat, int]:
        """The file that a row is in, and its number there."""
        file = self.files[-1]
        for file in self.files:
            if row < self._counted.get(file.path, row + 1):
                break
            row -= self._counted[file.path]
        return file, row

    def require(self, names: Sequence[str]) -> None:
        known = set(self.names)
        for name in names:
            if name not in known:
                raise UserError(
                    f"{self.path}: has no column {name!r}{did_you_mean(name, self.names) or has(self.names)}"
                )

    def blocks(self, names: Sequence[str], skipped: Skipped | None = None) -> Iterator[pa.Table]:
        """The columns of these names, a block of rows at a time: text, or typed. Rows with a wrong number of cells are
        left out and told to ``skipped``, where it is given."""
        self.require(names)
        self._counted.clear()
        for file in self.files:
            count = 0
            for block in file.blocks(names, skipped):
                yield block
                count += block.num_rows
            self._counted[file.path] = count
        if not any(self._counted.values()):
            raise UserError(f"{self.path}: has column names, but no rows")

    def read(self, names: Sequence[str], skipped: Skipped | None = None) -> dict[str, pa.ChunkedArray]:
        """The columns of these names."""
        blocks = []
        for block in self.blocks(names, skipped):
            # It is copied once more, and made numbers or words of.
            require_memory(2 * block.nbytes, f"{self.path}: another {block.num_rows} rows")
            blocks.append(block)
        try:
            table = pa.concat_tables(blocks)
        except pa.ArrowException as error:
            raise UserError(f"{self.path}: its files are not of one kind: {error}") from error
        return {name: table.column(name) for name in names}


def open_table(path: str | Path, delimiter: str = ",") -> TableFile:
    """The table and its column names, or UserError."""
    path = Path(path)
    paths = [path]
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "_")))
        if not paths:
            raise UserError(f"{path}: is a folder without a file")
    files = tuple(_open(p, delimiter) for p in paths)
    for file in files[1:]:
        if file.names != files[0].names:
            raise UserError(f"{file.path}: has other columns than {files[0].path}")
    return TableFile(path, files[0].names, files)


def _open(path: Path, delimiter: str) -> TableFormat:
    """Parquet, Arrow and .npy are known by their first bytes, svmlight by its name; everything else is CSV."""
    require_file(path)
    try:
        with path.open("rb") as opened:
            start = opened.read(6)
        file: TableFormat
        if start.startswith(b"PAR1"):
            file = ParquetFile.of(path)
        elif start == b"ARROW1":
            file = ArrowFile.of(path)
        elif start == b"\x93NUMPY":
            file = NpyFile.of(path)
        elif path.suffix in SVMLIGHT:
            file = SvmlightFile.of(path)
        else:
            file = CsvFile.of(path, delimiter)
    except OSError as error:
        raise unreadable(path, error) from error
    except pa.ArrowException as error:
        kind = "a Parquet" if start.startswith(b"PAR1") else "an Arrow"
        raise UserError(f"{path}: is not {kind} file that can be read: {error}") from error
    if not file.names:
        raise UserError(f"{path}: is empty")
    if len(file.names) > _MOST_COLUMNS:
        raise UserError(f"{path}: has {len(file.names)} columns, but at most {_MOST_COLUMNS} are read")
    if len(set(file.names)) < len(file.names):
        name = next(name for name, times in Counter(file.names).items() if times > 1)
        raise UserError(f"{path}: has two columns named {name!r}")
    return file


# -- columns -----------------------------------------------------------------------------------------------------------


def numbers(
    table: TableFile, name: str, column: pa.ChunkedArray, hint: str = "", first: int = 0, bad: Array | None = None
) -> Array:
    """The column as finite float64 numbers, or UserError at the first cell that is none, with a hint for words.

    ``first`` is the number of its first row. Where ``bad [n]`` is given, it becomes true for cells that are no numbers,
    and these become 0.
    """
    column = _dense(table, name, column)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.utf8_trim_whitespace(column)
        values = _parsed(column)
        if values is None and bad is not None:
            values = _parsed_or_null(column)
        if values is None:
            row = _first_not_parsed(column)
            raise UserError(f"{table.place(first + row, name)}: {_not_a_number(column[row].as_py(), hint)}")
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values = pc.cast(column, pa.float64(), safe=False)
    elif pa.types.is_decimal(kind):
        values = pc.cast(column, pa.float64())
    else:
        raise UserError(f"{table.path}, column {name!r}: holds {kind}, not numbers{hint}")
    if values.null_count and bad is None:
        raise UserError(f"{table.place(first + _first(pc.is_null(values)), name)}: is empty")
    array = values.to_numpy()  # NaN where a cell is empty
    if np.all(finite := np.isfinite(array)):
        return array
    if bad is None:
        row = int(np.argmin(finite))
        raise UserError(f"{table.place(first + row, name)}: is {column[row].as_py()}, but a feature must be finite")
    bad |= ~finite
    return np.where(finite, array, 0)


def texts(table: TableFile, name: str, column: pa.ChunkedArray, first: int = 0, bad: Array | None = None) -> Array:
    """The column as an array of str, whole numbers without a decimal point; UserError at the first empty cell, or
    where ``bad [n]`` is given, true there. ``first`` is the number of its first row."""
    column = words(table, name, column)
    empty = pc.or_kleene(pc.is_null(column), pc.equal(column, ""))
    if pc.any(empty).as_py():
        if bad is None:
            raise UserError(f"{table.place(first + _first(empty), name)}: is empty")
        bad |= empty.to_numpy()
        column = pc.fill_null(column, "")
    longest = pc.max(pc.utf8_length(column)).as_py() or 0
    # An array of NumPy's has for each word the room of the longest; what is made of it is as large.
    needed = 2 * 4 * longest * len(column)
    require_memory(needed, f"{table.path}, column {name!r}: its words of up to {longest} letters")
    return column.to_numpy().astype(str)


def words(table: TableFile, name: str, column: Any) -> Any:
    """The column as Arrow's trimmed text, of floats that are whole numbers the digits."""
    column = _dense(table, name, column)
    try:
        if pa.types.is_floating(column.type):
            column = pc.cast(column, pa.float32()) if pa.types.is_float16(column.type) else column
            with contextlib.suppress(pa.ArrowInvalid):  # a fraction, no number, or one too large
                column = pc.cast(column, pa.int64())
        return pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UserError(f"{table.path}, column {name!r}: holds {column.type}, not categories") from error


def _dense(table: TableFile, name: str, column: Any) -> Any:
    """The column with each value where it stands, in the place of a dictionary; UserError where that is too much."""
    if not pa.types.is_dictionary(column.type):
        return column
    try:
        values = [chunk.dictionary for chunk in getattr(column, "chunks", [column])]
        if pa.types.is_string(column.type.value_type) or pa.types.is_large_string(column.type.value_type):
            longest = max((pc.max(pc.binary_length(words)).as_py() or 0 for words in values), default=0)
            require_memory(longest * len(column), f"{table.path}, column {name!r}: its words of up to {longest} bytes")
        return pc.cast(column, column.type.value_type)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UserError(f"{table.path}, column {name!r}: holds {column.type}, which cannot be read") from error


def _not_a_number(text: str | None, hint: str) -> str:
    return "is empty" if not text else f"{text!r} is not a number{hint}"


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    try:
        return pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        return None


def _parsed_or_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The numbers, and null where there is none: what does not parse is halved."""
    found, waiting = [], [column]
    while waiting:
        part = waiting.pop()
        values = _parsed(part)
        if values is None and len(part) > 1:
            middle = len(part) // 2
            waiting += [part.slice(middle), part.slice(0, middle)]
        else:
            found.append(pa.nulls(1, pa.float64()) if values is None else values.combine_chunks())
    return pa.chunked_array(found, pa.float64())


def _first_not_parsed(column: pa.ChunkedArray) -> int:
    """By bisection: every prefix that ends before the first bad cell parses, every longer one does not."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _parsed(column.slice(low, middle - low)) is None else (middle, high)
    return low


def _first(condition: pa.ChunkedArray) -> int:
    return pc.index(condition, True).as_py()


def has(names: Iterable[str]) -> str:
    """A hint at the names that exist: the first five of them."""
    first = list(names)[:6]
    return f"; it has {', '.join(repr(name) for name in first[:5])}{', ...' if len(first) > 5 else ''}"
