"""Files that are well formed, and whose contents are not what a reader looks for: other types, sizes and names."""

from __future__ import annotations

import io
import json
import struct
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

from benchmarks.fuzz.changes import changed
from xentjax.training.config import FitConfig, TutorialConfig
from xentjax.training.config_table import Table
from xentjax.training.language_config import LanguageConfig
from xentjax.training.regression_config import RegressionConfig

# -- TOML --------------------------------------------------------------------------------------------------------------

_WORDS = (
    *("digits", "iris", "stdlib", "auto", "newton", "gradient_descent", "optax", "adam", "lbfgs", "sgd", "lipschitz"),
    *(
        "float64",
        "cosine",
        "balanced",
        "min",
        "table.csv",
        "../../table.csv",
        "/dev/zero",
        "/",
        ".",
        "..",
        "",
        " ",
        "a b",
    ),
    *("\0", "\x7f", "\x1b[2J", "é", "\U0001f4a9", "a" * 300, "a" * 5000, "/".join(["a"] * 500), "\\", '"', "'", "\n"),
)
_NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "-0.0",
    "1e308",
    "5e-324",
    "1e-320",
    "9223372036854775807",
    "2147483648",
    "1000000",
)
_TOKENS = (
    *_NUMBERS,
    *(
        "9223372036854775808",
        "0x" + "f" * 30,
        "0o7",
        "0b1",
        "nan",
        "inf",
        "-inf",
        "true",
        "false",
        "[]",
        "{}",
        "[[]]",
        "[{}]",
    ),
    *(
        "1979-05-27",
        "07:32:00",
        "1979-05-27T07:32:00Z",
        "1979-05-27T07:32:00.999999-07:00",
        "{a = 1}",
        "[1, 'a', {b = 2}]",
    ),
    *("[" * 20 + "]" * 20, "[" * 40 + "]" * 40, "[" * 3000 + "]" * 3000, "{a = " * 40 + "1" + "}" * 40, "9" * 5000),
    *("[" + "1, " * 20_000 + "]", "[" + ", ".join(f"'{n}'" for n in range(20_000)) + "]", "'''\n'''", "'unclosed"),
)


def _keys(table: type[Table], prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys of a config."""
    for name, field in table.model_fields.items():
        yield prefix + name
        for inner in _tables(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _tables(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for argument in typing.get_args(annotation) for table in _tables(argument)]


_CONFIGS = (FitConfig, RegressionConfig, LanguageConfig, TutorialConfig)
_ALL_KEYS = sorted(
    {key for config in _CONFIGS for key in _keys(config)} | {"a", "data.a", "a.b.c", '"a b"', "''", "a" * 99}
)
_VALUE = st.one_of(
    st.sampled_from(_TOKENS),
    st.sampled_from([json.dumps(word) for word in _WORDS]),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=20).map(json.dumps),
    st.lists(st.one_of(st.sampled_from(_NUMBERS), st.sampled_from(_WORDS).map(json.dumps)), max_size=4).map(
        lambda values: f"[{', '.join(values)}]"
    ),
)


def configs(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Configs in which some keys have other values, are gone, or are new; and the good ones changed byte by byte."""
    flat = [dict(_flat(tomllib.loads(text.decode()))) for text in good]
    edits = st.lists(st.tuples(st.sampled_from(_ALL_KEYS), st.one_of(_VALUE, st.none())), min_size=1, max_size=4)
    return st.one_of(changed(good), st.builds(_edited, st.sampled_from(flat), edits))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, json.dumps(value)  # which is TOML, as no table stands in an array


def _edited(flat: Mapping[str, str], edits: Sequence[tuple[str, str | None]]) -> bytes:
    edited: dict[str, str | None] = {**flat, **dict(edits)}
    lines = (f"{key} = {value}\n" for key, value in edited.items() if value is not None)
    return "".join(lines).encode("utf-8", "surrogatepass")


def settings() -> st.SearchStrategy[bytes]:
    """What stands behind --set: keys and values."""
    one = st.builds(
        lambda key, value: f"{key}={value}".encode("utf-8", "surrogatepass"), st.sampled_from(_ALL_KEYS), _VALUE
    )
    return st.lists(one, min_size=1, max_size=3).map(b"\0".join)


# -- JSON --------------------------------------------------------------------------------------------------------------

_ATOM = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from((0, 1, -1, 0.5, 1e308, 2**63, 10**400, float("nan"), float("inf"))),
    st.sampled_from(_WORDS),
    st.text(max_size=10),
)
_JSON = st.recursive(
    _ATOM, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def documents(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """JSON in which a value has become another one, or a key is gone or twice there; and the good ones changed."""
    trees = [json.loads(text) for text in good]
    replaced = st.builds(_replaced, st.sampled_from(trees), st.lists(st.integers(0, 9), max_size=5), _JSON)
    return st.one_of(changed(good), replaced, _JSON.map(_written), st.sampled_from((_nested(100), _nested(100_000))))


def _replaced(tree: Any, path: Sequence[int], value: Any) -> bytes:
    def at(inner: Any, rest: Sequence[int]) -> Any:
        if not rest or not isinstance(inner, dict | list) or not inner:
            return value
        if isinstance(inner, dict):
            key = sorted(inner)[rest[0] % len(inner)]
            return {**inner, key: at(inner[key], rest[1:])}
        i = rest[0] % len(inner)
        return [*inner[:i], at(inner[i], rest[1:]), *inner[i + 1 :]]

    return _written(at(tree, path))


def _written(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


# -- safetensors -------------------------------------------------------------------------------------------------------

_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(("F32", "F64", "F16", "BF16", "F8_E4M3", "I8", "I64", "U64", "BOOL", "C64", "", "X")),
        "shape": st.lists(st.sampled_from((0, 1, 2, 3, 4, -1, 2**31, 2**63, 1.5)), max_size=3),
        "data_offsets": st.lists(st.sampled_from((0, 4, 8, 12, 16, 24, 32, 2**40, -1)), min_size=1, max_size=3),
    }
)
_HEADER = st.dictionaries(st.sampled_from(("weights", "bias", "__metadata__", "../weights", "")), _TENSOR, max_size=3)


def tensors(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Files of safetensors with headers of their own, lengths that are not theirs; and the good ones changed."""
    length = st.one_of(st.just(0), st.sampled_from((-1, 1, 8, 2**27, 2**40, 2**62)))
    return st.one_of(changed(good), st.builds(_tensors, _HEADER, length, st.binary(max_size=64)))


def _tensors(header: Mapping[str, Any], more: int, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", (len(text) + more) % 2**64) + text + data


# -- tables ------------------------------------------------------------------------------------------------------------

_CELL = st.one_of(
    st.sampled_from(
        ("0", "1", "2.5", "-3", "yes", "no", "a", "b", "", " ", "nan", "inf", "1e400", "0x1", "1_0", '"', "\0")
    ),
    st.sampled_from(
        ('"a,b"', '"a\nb"', '"a""b"', '"a', "a" * 1000, "\x1b[2J", "1.0", "9" * 30, "true", "NULL", "\ufeff", "é")
    ),
    st.text(max_size=6),
)
_ROWS = st.lists(st.lists(_CELL, max_size=5), max_size=8)


def csv_tables(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Rows of cells below the columns of the good tables, or below none; and the good ones changed."""
    headers = sorted({text.partition(b"\n")[0] for text in good} | {b"", b"a,b", b"y,y"})
    return st.one_of(
        changed(good), st.builds(_csv, st.sampled_from(headers), _ROWS, st.sampled_from(("\n", "\r\n", "\r")))
    )


def _csv(header: bytes, rows: Sequence[Sequence[str]], end: str) -> bytes:
    lines = [header.decode(), *(",".join(row) for row in rows)]
    return end.join(lines).encode("utf-8", "surrogatepass")


_TYPES: tuple[pa.DataType, ...] = (
    *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.string()),
    *(
        pa.large_string(),
        pa.binary(),
        pa.binary(3),
        pa.date32(),
        pa.timestamp("ns", "UTC"),
        pa.time64("us"),
        pa.duration("s"),
    ),
    *(pa.decimal128(10, 2), pa.decimal256(60, 2), pa.list_(pa.int64()), pa.struct([("a", pa.int64())])),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64()), pa.map_(pa.string(), pa.int64())),
)
_COLUMN = st.tuples(st.sampled_from(_TYPES), st.lists(st.sampled_from((None, 0, 1, 2, 3, 7)), min_size=4, max_size=4))
_NAMES = ("y", "size", "colour", "a", "a.b", "", "é", "\x1b[2J", "y.list.element")


def parquet_tables(good: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Columns of every type below the names that are asked for, packed in several ways; good ones changed; bombs."""
    names = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4, unique=True)
    packing = st.sampled_from(("none", "snappy", "zstd", "gzip", "lz4"))
    made = st.builds(_parquet, names, st.lists(_COLUMN, min_size=4, max_size=4), packing)
    # Few, as each takes as long as a large table.
    return st.one_of(*[changed(good)] * 5, made, made, changed(bombs()))


def _parquet(names: Sequence[str], columns: Sequence[tuple[pa.DataType, list[Any]]], packing: str) -> bytes:
    arrays = {name: _column(*column) for name, column in zip(names, columns, strict=False)}
    file = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pa.table(arrays), file, compression=packing)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # a type that Parquet has not
        return b"PAR1"
    return file.getvalue()


def _column(kind: pa.DataType, numbers: Sequence[int | None]) -> pa.Array:
    """Small numbers as values of a type: itself where numbers are none of it."""
    plain = pa.array(numbers, pa.int64())
    for steps in ((kind,), (pa.string(), kind), (pa.string(), pa.binary(), kind)):
        made = plain
        try:
            for step in steps:
                made = made.cast(step)
            return made
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            continue
    values: dict[str, Any] = {"list": [[1], None, [], [2]], "struct": [{"a": 1}, None, {"a": 2}, {"a": 3}]}
    name = str(kind).partition("<")[0]
    if name in values:
        return pa.array(values[name], kind)
    if name == "fixed_size_binary[3]":
        return pa.array([b"abc", None, b"abd", b"abc"], kind)
    return pa.nulls(len(numbers), kind)


def bombs() -> list[bytes]:
    """Parquet files that are small, and large when they are read: numbers that repeat, words that do, and zeros."""
    rows = 100_000
    ones, label = pa.array([1.5]).take(pa.array([0] * 1000)), pa.array(["yes", "no"] * 500)
    long = pa.array(["x" * 100_000])
    made = []
    for size, times in ((ones, rows // 1000), (long.take(pa.array([0] * 1000)).dictionary_encode(), 50)):
        file = io.BytesIO()
        table = pa.table({"size": size, "colour": size, "y": label})
        with pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd") as writer:
            for _ in range(times):
                writer.write_table(table)
        made.append(file.getvalue())
    zeros = pa.table({"size": ["0" * 2**26, "1"], "colour": ["a", "b"], "y": ["yes", "no"]})
    file = io.BytesIO()
    pyarrow.parquet.write_table(zeros, file, compression="zstd", use_dictionary=False, write_statistics=False)
    return [*made, file.getvalue()]
