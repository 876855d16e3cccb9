"""All readers through as many inputs as are asked for, in a process of their own that may die of them."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.fuzz.changes import Files
    from benchmarks.fuzz.readers import Reader

#: An input that takes so many seconds on a busy machine hangs: the process is ended, and says where it stood.
_HANGS = 300.0

#: A tally is told after so many inputs, and hypothesis forgets what it knows of them.
_AT_ONCE = 250

#: The most faults of a reader that are told in words.
_MOST_FAULTS = 10


@dataclasses.dataclass
class Tally:
    """What came of the inputs of one reader."""

    reader: str
    seed: int
    engine: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    refused_for_memory: int = 0
    """Of the refused."""
    worst_seconds: float = 0.0
    worst_bytes: int = 0
    faults: int = 0
    told: list[str] = dataclasses.field(default_factory=list)
    """The first faults, in words."""

    def fault(self, text: str) -> None:
        self.faults += 1
        if text not in self.told and len(self.told) < _MOST_FAULTS:
            self.told.append(text)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "row", **dataclasses.asdict(self)}


class Trials:
    """The inputs of one reader, one after the other."""

    def __init__(self, reader: Reader, good: Mapping[str, bytes], tally: Tally, tell: Callable[[], object]) -> None:
        self.reader, self.good, self.tally, self._tell = reader, good, tally, tell
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))

    def __call__(self, files: Files) -> None:
        from benchmarks.fuzz import changes, watch

        self._folder.mkdir(exist_ok=True)
        changes.put(self._folder, files, self.good)
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        found = watch.outcome(self.reader.read, self._folder, self.reader.refusals)
        faulthandler.cancel_dump_traceback_later()
        self.close()
        tally = self.tally
        tally.inputs += 1
        tally.accepted += found.message is None and found.fault is None
        tally.refused += found.message is not None
        tally.refused_for_memory += found.for_memory
        tally.worst_seconds = max(tally.worst_seconds, found.seconds)
        tally.worst_bytes = max(tally.worst_bytes, found.bytes)
        if found.fault is not None:
            tally.fault(f"{found.fault}; files {files!r:.300}")
        if tally.inputs % _AT_ONCE == 0:
            self._tell()

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def by_hypothesis(trials: Trials, count: int, seed: int) -> None:
    """So many inputs of the reader's strategy, the same for the same seed."""
    import hypothesis

    strategy = trials.reader.spoiled(trials.good)
    for part in range(seed, seed + 2 * count):
        left = count - trials.tally.inputs
        if left <= 0:
            return
        given = hypothesis.given(strategy)(lambda files: trials(files))
        settings = hypothesis.settings(
            max_examples=min(left, _AT_ONCE),
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.seed(part)(settings(given))()


def by_atheris(trials: Trials, count: int, seed: int) -> None:
    """So many inputs, led by which lines of this package they reach; the process ends with them."""
    import atheris
    import hypothesis

    def trial(files: Files) -> None:
        trials(files)
        if trials.tally.inputs == count:
            trials.close()
            trials._tell()
            os._exit(0)

    given = hypothesis.settings(database=None, deadline=None)(
        hypothesis.given(trials.reader.spoiled(trials.good))(trial)
    )
    atheris.Setup(
        [sys.argv[0], f"-seed={seed + 1}", "-rss_limit_mb=0", "-verbosity=0"],
        given.hypothesis.fuzz_one_input,  # type: ignore[attr-defined]
    )
    atheris.Fuzz()


ENGINES = {"hypothesis": by_hypothesis, "atheris": by_atheris}


def rows(names: Sequence[str], count: int, seed: int, engine: str = "hypothesis") -> Iterator[dict[str, Any]]:
    """A row for each reader, each of which gets its part of the inputs.

    One process reads for all of them; where it ends, or for each reader with atheris, another one goes on.
    """
    waiting = {name: count // len(names) + (i < count % len(names)) for i, name in enumerate(names)}
    context = multiprocessing.get_context("spawn")
    while waiting:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_work, args=(theirs, waiting, seed, engine))
        child.start()
        theirs.close()
        name = next(iter(waiting))
        row = Tally(name, seed, engine).to_json()
        with contextlib.suppress(EOFError):
            while waiting:
                row = ours.recv()
                if row["inputs"] == waiting[row["reader"]]:
                    yield row
                    del waiting[row["reader"]]
                    name = next(iter(waiting), "")
                    row = Tally(name, seed, engine).to_json()
        child.join()
        if waiting and (child.exitcode or engine != "atheris"):
            row["faults"] += 1
            row["told"] = [*row["told"], f"the process ended with status {child.exitcode}: what it says is above"]
            yield row
            del waiting[name]


def _work(pipe: Any, counts: Mapping[str, int], seed: int, engine: str) -> None:
    """Read for one reader after the other, and send their tallies, those that are whole and those that are not yet."""
    with _instrumented(engine):
        from benchmarks.fuzz.readers import READERS
    from benchmarks.fuzz import watch

    found = {name: (READERS[name], READERS[name].good()) for name in counts}
    for reader, good in found.values():
        _warm(reader, good)
    watch.limit_memory()
    for name, count in counts.items():
        tally = Tally(name, seed, engine)
        trials = Trials(*found[name], tally, lambda tally=tally: pipe.send(tally.to_json()))  # type: ignore[misc]
        ENGINES[engine](trials, count, seed)
        if tally.inputs % _AT_ONCE:
            pipe.send(tally.to_json())


def _instrumented(engine: str) -> contextlib.AbstractContextManager[object]:
    """Where atheris leads, it sees which lines run of what is imported inside."""
    if engine != "atheris":
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=["xentjax.training", "xentjax.losses.linear.measured", "tomllib", "csv"])


def _warm(reader: Reader, good: Mapping[str, bytes]) -> None:
    """Read the good files: what is loaded and compiled once is no part of any input's time and memory."""
    from benchmarks.fuzz import changes

    with tempfile.TemporaryDirectory() as name:
        changes.put(pathlib.Path(name), good, good)
        reader.read(pathlib.Path(name))


# -- for the eye -------------------------------------------------------------------------------------------------------

HEADER = f"{'reader':<24}{'inputs':>8}{'read':>8}{'refused':>9}{'worst s':>9}{'worst MiB':>11}{'faults':>8}"


def one_line(row: Mapping[str, Any]) -> str:
    """A row of the table, and its faults below."""
    text = f"{row['reader']:<24}{row['inputs']:>8,}{row['accepted']:>8,}{row['refused']:>9,}"
    text += f"{row['worst_seconds']:>9.2f}{row['worst_bytes'] / 2**20:>11.0f}{row['faults']:>8}"
    return "\n  ".join([text, *row["told"]])


def faults(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table of faults: the fault, how many times it was tried and has failed, what happened, and the
    command that shows it."""
    found = []
    for row in rows:
        if row.get("kind") == "row":
            what = f"{row['refused']:,} refused in one line, {row['accepted']:,} read; at most "
            what += f"{row['worst_seconds']:.1f} s and {row['worst_bytes'] / 2**20:.0f} MiB"
            told = {"fault": f"damaged or forged: {row['reader']}", "tried": row["inputs"], "failed": row["faults"]}
            found.append({**told, "outcome": what, "command": "python -m benchmarks fuzz"})
    return found
