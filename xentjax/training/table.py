"""CSV and Parquet files: columns of numbers or of categories, and errors that name the line and the column.

A CSV file is read as text, and each column that is asked for is converted on its own, so that a cell which does not
fit can be shown as it stands in the file. Lines are counted as an editor counts them, blank lines and line breaks in
quotes included; this takes a second pass over the file, which only happens when there is an error to tell.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from xentjax.training.errors import UserError, did_you_mean
from xentjax.training.files import require_file, require_memory, unreadable

#: The most columns of a table, and the most characters of a line of a CSV file: of what has more no table is made.
_MOST_COLUMNS, _LONGEST_LINE = 100_000, 2**24


@dataclass(frozen=True)
class TableFile:
    """A CSV or Parquet file on disk, and the names of its columns."""

    path: Path
    names: tuple[str, ...]
    delimiter: str | None
    """Between the cells of a CSV file; None for Parquet."""

    def place(self, row: int, column: str) -> str:
        """Where a cell is, as the user finds it: a CSV file's line, counted from 1, or a Parquet file's row."""
        if self.delimiter is None:
            return f"{self.path}, row {row + 1}, column {column!r}"
        line = next((line for i, (line, _) in enumerate(_records(self.path, self.delimiter)) if i == row + 1), None)
        where = f"row {row + 1}" if line is None else f"line {line}"  # quotes that are never closed may hide lines
        return f"{self.path}, {where}, column {column!r}"

    def require(self, names: Sequence[str]) -> None:
        known = set(self.names)
        for name in names:
            if name not in known:
                raise UserError(
                    f"{self.path}: has no column {name!r}{did_you_mean(name, self.names) or has(self.names)}"
                )

    def read(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """The columns of these names: text from CSV, typed from Parquet."""
        self.require(names)
        try:
            table = self._read_parquet(names) if self.delimiter is None else self._read_csv(names, self.delimiter)
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error) from error
        if table.num_rows == 0:
            raise UserError(f"{self.path}: has column names, but no rows")
        return {name: table.column(name) for name in names}

    def _read_parquet(self, names: Sequence[str]) -> pa.Table:
        """The columns, words as dictionaries: many rows of one word take no memory then."""
        metadata, asked = pyarrow.parquet.read_metadata(self.path), set(names)
        require_memory(_bytes_of(metadata, asked), f"{self.path}: its {metadata.num_rows} rows")
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        words = [leaf.path for leaf in leaves if leaf.path in asked and leaf.physical_type == "BYTE_ARRAY"]
        with pyarrow.parquet.ParquetFile(self.path, metadata=metadata, read_dictionary=words) as file:
            return file.read(columns=list(names))

    def _read_csv(self, names: Sequence[str], delimiter: str) -> pa.Table:
        return pyarrow.csv.read_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=16 << 20),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.string()), include_columns=list(names)
            ),
        )

    def _explain(self, error: Exception) -> UserError:
        if self.delimiter is not None and not isinstance(error, OSError):
            for line, cells in _records(self.path, self.delimiter):
                if len(cells) != len(self.names):
                    counts = f"has {len(cells)} cells, but the header names {len(self.names)} columns"
                    return UserError(f"{self.path}, line {line}: {counts}")
        return UserError(f"{self.path}: cannot be read: {error}")


def open_table(path: str | Path, delimiter: str = ",") -> TableFile:
    """The file and its column names, or UserError. Parquet is known by its first bytes, everything else is CSV."""
    path = Path(path)
    require_file(path)
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if is_parquet:
            names = tuple(pyarrow.parquet.read_schema(path).names)
        else:
            names = tuple(next((cells for _, cells in _records(path, delimiter)), ()))
    except OSError as error:
        raise unreadable(path, error) from error
    except pa.ArrowException as error:
        raise UserError(f"{path}: is not a Parquet file that can be read: {error}") from error
    if not names:
        raise UserError(f"{path}: is empty")
    if len(names) > _MOST_COLUMNS:
        raise UserError(f"{path}: has {len(names)} columns, but at most {_MOST_COLUMNS} are read")
    if len(set(names)) < len(names):
        name = next(name for name, times in Counter(names).items() if times > 1)
        raise UserError(f"{path}: has two columns named {name!r}")
    return TableFile(path, names, None if is_parquet else delimiter)


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not blank, each with the number of its first line; the header is the first."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_lines(path, file), delimiter=delimiter)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {_line_that_is_no_text(path)}: is not UTF-8 text") from error
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: cannot be read as CSV: {error}") from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file; UserError where one has no end within what is read at once."""
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            raise UserError(f"{path}, line {number}: has more than {_LONGEST_LINE} characters")
        if not line:
            return
        yield line


def _line_that_is_no_text(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _bytes_of(metadata: pyarrow.parquet.FileMetaData, names: set[str]) -> int:
    """The memory that columns of a Parquet file take as its footer says: uncompressed, and as a number for each row."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
    return sum(chunk.total_uncompressed_size for chunk in wanted) + 8 * metadata.num_rows * len(names)


# -- columns -----------------------------------------------------------------------------------------------------------


def numbers(table: TableFile, name: str, column: pa.ChunkedArray, hint: str = "") -> np.ndarray[Any, Any]:
    """The column as finite float64 numbers, or UserError at the first cell that is none, with a hint for words."""
    column = _dense(table, name, column)
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.utf8_trim_whitespace(column)
        values = _parsed(column)
        if values is None:
            row = _first_not_parsed(column)
            raise UserError(f"{table.place(row, name)}: {_not_a_number(column[row].as_py(), hint)}")
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values = pc.cast(column, pa.float64(), safe=False)
    elif pa.types.is_decimal(kind):
        values = pc.cast(column, pa.float64())
    else:
        raise UserError(f"{table.path}, column {name!r}: holds {kind}, not numbers{hint}")
    if values.null_count:
        raise UserError(f"{table.place(_first(pc.is_null(values)), name)}: is empty")
    array = values.to_numpy()
    if not np.all(finite := np.isfinite(array)):
        row = int(np.argmin(finite))
        raise UserError(f"{table.place(row, name)}: is {column[row].as_py()}, but a feature must be finite")
    return array


def texts(table: TableFile, name: str, column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """The column as an array of str, whole numbers without a decimal point; UserError at the first empty cell."""
    dense = _dense(table, name, column)
    try:
        words = _words(dense)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UserError(f"{table.path}, column {name!r}: holds {column.type}, not categories") from error
    empty = pc.or_kleene(pc.is_null(words), pc.equal(words, ""))
    if pc.any(empty).as_py():
        raise UserError(f"{table.place(_first(empty), name)}: is empty")
    longest = pc.max(pc.utf8_length(words)).as_py()
    # An array of NumPy's has for each word the room of the longest; what is made of it is as large.
    needed = 2 * 4 * longest * len(words)
    require_memory(needed, f"{table.path}, column {name!r}: its words of up to {longest} letters")
    return words.to_numpy().astype(str)


def _words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as trimmed words; of floats that are whole numbers the digits."""
    if pa.types.is_floating(column.type):
        column = pc.cast(column, pa.float32()) if pa.types.is_float16(column.type) else column
        with contextlib.suppress(pa.ArrowInvalid):  # a fraction, no number, or one too large
            column = pc.cast(column, pa.int64())
    return pc.utf8_trim_whitespace(pc.cast(column, pa.string()))


def _dense(table: TableFile, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with each value where it stands, in the place of a dictionary; UserError where that is too much."""
    if not pa.types.is_dictionary(column.type):
        return column
    try:
        values = [chunk.dictionary for chunk in column.chunks]
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
