"""Parquet, Arrow, CSV and ``.npy`` files as tables that are read a block of rows at a time, by pyarrow and NumPy.

Which kind a file is, is told by its first bytes; everything else is CSV. (svmlight: :mod:`streams.svmlight`.)
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from xentjax.training.errors import UserError

Array = np.ndarray[Any, Any]

#: The most characters of a line of a CSV file.
_LONGEST_LINE = 2**24

#: Bytes of text that are parsed at once, and cells of a table.
_BLOCK, _CELLS = 2**23, 2**20

#: What is told of a row that has too few cells or too many, and is left out.
Skipped = Callable[[], None]


class TableFormat(Protocol):
    """One file."""

    @property
    def path(self) -> Path: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def blocks(self, names: Sequence[str], skipped: Skipped | None) -> Iterator[pa.Table]:
        """The columns of these names a block of rows at a time: text, or typed. With ``skipped`` rows of a wrong number
        of cells are left out and counted by it, otherwise they are a UserError."""
        ...

    @property
    def counted_in(self) -> str:
        """What :meth:`numbers` counts: "lines" or "rows"."""
        ...

    def numbers(self, rows: Sequence[int]) -> list[int]:
        """Where rows are as the user finds them, counted from 1."""
        ...


@dataclass(frozen=True)
class CsvFile:
    """Cells are text. Lines are counted as an editor counts them, blank lines and line breaks in quotes included; this
    takes a second pass over the file, which only happens when there is an error to tell."""

    path: Path
    names: tuple[str, ...]
    delimiter: str
    counted_in = "lines"

    @classmethod
    def of(cls, path: Path, delimiter: str) -> CsvFile:
        return cls(path, tuple(next((cells for _, cells in _records(path, delimiter)), ())), delimiter)

    def blocks(self, names: Sequence[str], skipped: Skipped | None) -> Iterator[pa.Table]:
        def leave_out(row: Any) -> str:
            skipped()  # type: ignore[misc]
            return "skip"

        parse = pyarrow.csv.ParseOptions(
            delimiter=self.delimiter,
            newlines_in_values=True,
            invalid_row_handler=None if skipped is None else leave_out,
        )
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(self.names, pa.string()), include_columns=list(names)
        )
        try:
            with pyarrow.csv.open_csv(
                self.path,
                read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK),
                parse_options=parse,
                convert_options=convert,
            ) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> UserError:
        if not isinstance(error, OSError):
            for line, cells in _records(self.path, self.delimiter):
                if len(cells) != len(self.names):
                    counts = f"has {len(cells)} cells, but the header names {len(self.names)} columns"
                    return UserError(f"{self.path}, line {line}: {counts}")
        return UserError(f"{self.path}: cannot be read: {error}")

    def numbers(self, rows: Sequence[int]) -> list[int]:
        wanted, records = set(rows), enumerate(_records(self.path, self.delimiter), -1)
        found: dict[int, int] = {}
        for row, (line, _) in records:
            if row in wanted:
                found[row] = line
            if len(found) == len(wanted):
                break
        return [found.get(row, row + 1) for row in rows]  # quotes that are never closed may hide lines


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


@dataclass(frozen=True)
class _Numbered:
    """A file whose rows have numbers."""

    path: Path
    names: tuple[str, ...]
    counted_in = "rows"

    def numbers(self, rows: Sequence[int]) -> list[int]:
        return [row + 1 for row in rows]


class ParquetFile(_Numbered):
    """Read a few rows of a row group at a time."""

    @classmethod
    def of(cls, path: Path) -> ParquetFile:
        return cls(path, tuple(pyarrow.parquet.read_schema(path).names))

    def blocks(self, names: Sequence[str], skipped: Skipped | None) -> Iterator[pa.Table]:
        with _explained(self.path):
            metadata, asked = pyarrow.parquet.read_metadata(self.path), set(names)
            leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
            # Words as dictionaries: many rows of one word take no memory then.
            words = [leaf.path for leaf in leaves if leaf.path in asked and leaf.physical_type == "BYTE_ARRAY"]
            of_file: dict[str, Any] = {"metadata": metadata, "read_dictionary": words}
        with (
            _explained(self.path),
            pyarrow.parquet.ParquetFile(self.path, buffer_size=2**20, pre_buffer=False, **of_file) as file,
        ):
            for batch in file.iter_batches(batch_size=_rows_of_block(names), columns=list(names), use_threads=True):
                yield pa.Table.from_batches([batch])


class ArrowFile(_Numbered):
    """Arrow IPC (Feather): a file of record batches, which are read one at a time."""

    @classmethod
    def of(cls, path: Path) -> ArrowFile:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            return cls(path, tuple(reader.schema.names))

    def blocks(self, names: Sequence[str], skipped: Skipped | None) -> Iterator[pa.Table]:
        with _explained(self.path), pa.OSFile(str(self.path)) as source:
            with pa.ipc.open_file(source) as reader:
                places = [reader.schema.get_field_index(name) for name in names]
            with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=places)) as reader:
                rows = _rows_of_block(names)
                for i in range(reader.num_record_batches):
                    table = pa.Table.from_batches([reader.get_batch(i)]).select(list(names))
                    for start in range(0, table.num_rows, rows):
                        yield table.slice(start, rows)


class NpyFile(_Numbered):
    """A matrix ``[n, d]`` of NumPy's as columns x0, x1, ...; the labels may stand in a file of their own."""

    @classmethod
    def of(cls, path: Path) -> NpyFile:
        matrix = mapped(path)
        if matrix.ndim != 2:
            raise UserError(f"{path}: holds an array of shape {matrix.shape}, but features need [n, d]")
        return cls(path, tuple(f"x{j}" for j in range(matrix.shape[1])))

    def blocks(self, names: Sequence[str], skipped: Skipped | None) -> Iterator[pa.Table]:
        places, rows = [int(name[1:]) for name in names], _rows_of_block(names)
        for start in range(0, mapped(self.path).shape[0], rows):
            # Mapped anew, so that what has been read does not count as memory of this process.
            block = np.ascontiguousarray(mapped(self.path)[start : start + rows][:, places].T)
            block = block.astype(block.dtype.newbyteorder("="), copy=False)
            yield pa.table(dict(zip(names, block, strict=True)))


def mapped(path: Path) -> Array:
    """The array in a ``.npy`` file, read where it is looked at; UserError where it has no numbers."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: is not a .npy file that can be read: {error}") from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: holds {array.dtype}, not numbers")
    return array


def _rows_of_block(names: Sequence[str]) -> int:
    return max(_CELLS // max(len(names), 1), 256)


class _explained:
    """What Arrow finds wrong with a file inside the block, as UserError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (pa.ArrowException, OSError)):
            raise UserError(f"{self.path}: cannot be read: {error}") from error
