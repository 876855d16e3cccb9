"""What may become of a good file: bytes flipped, cut or repeated, and put into it what parsers trip over."""

from __future__ import annotations

import enum
import os
import pathlib
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

#: The largest file that is made.
MOST_BYTES = 2**21

#: What parsers trip over: ends of strings, marks of encodings, nests, endless numbers, paths, codes of terminals.
TOKENS = (
    *(
        b"",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xc3(",
        b"\x7f",
        b"\x1b[2J",
        b"\x0c",
        b"\xe2\x80\xa8",
    ),
    *(
        b'"',
        b"'",
        b'"""',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"#",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b",",
        b";",
        b"\t",
        b" ",
        b"=",
    ),
    *(b"[" * 5000, b"{" * 5000, b"{a=" * 3000, b'{"a":' * 3000, b"a." * 20_000, b'"a".' * 10_000, b"(" * 5000),
    *(b"9" * 5000, b"0x" + b"f" * 20_000, b"1" * 300 + b".0", b"1e999", b"-1e999", b"-0.0", b"1e-400", b"nan", b"inf"),
    *(
        b"1_000",
        b"9223372036854775808",
        b"-9223372036854775809",
        b"1979-05-27T07:32:00Z",
        b"25:61:61",
        b"true",
        b"null",
    ),
    *(b"../../../etc/passwd", b"/dev/zero", b"C:\\con", b"~root", b"$HOME", b"%n%s", b"PAR1", b"ARROW1", b"\x93NUMPY"),
    *(b"a" * 200_000, b"a," * 60_000, b"a\n" * 60_000, b'"\n' * 20_000, b"1," * 200_000, b"\xf0\x9f\x92\xa9" * 1000),
    *(n.to_bytes(size, "little") for size in (4, 8) for n in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1)),
    *(b"\xff" * 10, b"\x80" * 9 + b"\x01", b"\x80\x80\x80\x80\x08"),  # of variable length
)

_PLACE = st.one_of(st.integers(0, 2**20), st.integers(-16, 16).map(lambda n: n + 2**20 if n < 0 else n))
_CHANGE = st.tuples(
    st.sampled_from(("flip", "put", "replace", "cut", "truncate", "repeat", "move")),
    _PLACE,
    st.integers(1, 2**16),
    st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=8)),
)


def changed(valid: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the good files after up to five changes."""
    return st.builds(_changed, st.sampled_from(list(valid)), st.lists(_CHANGE, max_size=5))


def _changed(data: bytes, changes: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, number, token in changes:
        # A place is a share of the file, or a few bytes from one of its ends.
        at = place if place <= 16 else len(data) - (2**20 - place) if place >= 2**20 - 16 else len(data) * place >> 20
        at = min(max(at, 0), len(data))
        span = 1 + number % max(min(len(data), 64), 1)
        match kind:
            case "flip" if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ (number % 255 + 1)]) + data[at + 1 :]
            case "put":
                data = data[:at] + token + data[at:]
            case "replace":
                data = data[:at] + token + data[at + len(token) :]
            case "cut":
                data = data[:at] + data[at + span :]
            case "truncate":
                data = data[:at]
            case "repeat":
                data = data[:at] + data[at : at + span] * (1 + number % 1000) + data[at:]
            case "move":
                data = data[:at] + data[at + span :] + data[at : at + span]
        data = data[:MOST_BYTES]
    return data


# -- what is no ordinary file ------------------------------------------------------------------------------------------


class Special(enum.Enum):
    """What may stand in the place of a file."""

    ABSENT = "nothing"
    FOLDER = "a folder"
    PIPE = "a pipe that nobody writes to"
    DEVICE = "a link to a device without end"
    CIRCLE = "a link to itself"
    DANGLING = "a link to nothing"
    OUTSIDE = "a link to a file far away"
    HOLE = "8 GiB of zeros that take no place on the disk"
    HOLE_BEHIND = "a good file, and such zeros behind it"


#: The contents of files by their paths below a folder.
Files = dict[str, bytes | Special]

_HOLE = 2**33


def put(folder: pathlib.Path, files: Mapping[str, bytes | Special], good: Mapping[str, bytes]) -> None:
    """Make the files in an empty folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case bytes():
                path.write_bytes(content)
            case Special.FOLDER:
                path.mkdir()
            case Special.PIPE:
                os.mkfifo(path)
            case Special.DEVICE:
                path.symlink_to("/dev/zero")
            case Special.CIRCLE:
                path.symlink_to(path.name)
            case Special.DANGLING:
                path.symlink_to("nowhere/at/all")
            case Special.OUTSIDE:
                path.symlink_to("/etc/passwd")
            case Special.HOLE | Special.HOLE_BEHIND:
                path.write_bytes(good.get(name, b"") if content is Special.HOLE_BEHIND else b"")
                os.truncate(path, _HOLE)


def one_of_them(
    good: Mapping[str, bytes], contents: Mapping[str, st.SearchStrategy[bytes]]
) -> st.SearchStrategy[Files]:
    """Good files of which one or two have other contents, or are no files."""
    names = sorted(contents)
    of_one = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(contents[name], contents[name], contents[name], _SPECIAL))
    )
    return st.lists(of_one, min_size=1, max_size=2).map(lambda others: {**good, **dict(others)})


# Few, as each of them is always refused, or always read, in the same way.
_SPECIAL: st.SearchStrategy[bytes | Special] = st.sampled_from(list(Special))
