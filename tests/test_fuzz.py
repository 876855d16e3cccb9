"""Damaged and forged files through every reader, in a process with little memory; and that a fault would be seen."""

import json
import os
import pathlib
import subprocess
import sys
import warnings

import pytest

from benchmarks.fuzz import run, watch
from xentjax.training.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system tells no other way how much memory it gave")

ROOT = pathlib.Path(__file__).parents[1]


def test_every_reader_reads_or_refuses_in_one_line_and_in_bounds(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "fuzz", "--count", "900", "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    machine, *rows = map(json.loads, (tmp_path / "fuzz.jsonl").read_text().splitlines())
    assert machine["kind"] == "machine"
    for row in rows:
        assert row["faults"] == 0, row["told"]
        assert row["inputs"] == row["accepted"] + row["refused"] >= 900 // len(rows)
        assert row["accepted"] > 0, f"{row['reader']}: nothing is read"
        assert row["refused"] > 0 or row["reader"] == "kept program", f"{row['reader']}: nothing is refused"
    assert sum(told["tried"] for told in run.faults(rows)) == 900


def refuses(message):
    raise UserError(message)


def of_two_lines(_):
    raise ValueError("one\ntwo")


def warns(_):
    warnings.warn("overflow", RuntimeWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda _: None, None),
        (lambda _: refuses("data: is empty"), None),
        (lambda _: [][0], "IndexError"),
        (of_two_lines, "several lines"),
        (warns, "RuntimeWarning"),
        (lambda _: sum(range(10**7)), "took 0."),
        (lambda _: bytearray(2**26), "took 64 MiB"),
        (lambda _: [None] * 2**60, "MemoryError"),
    ],
    ids=["reads", "refuses", "traceback", "two lines", "warning", "slow", "large", "endless"],
)
def test_what_counts_as_a_fault(tmp_path, monkeypatch, read, fault):
    monkeypatch.setattr(watch, "SECONDS", 0.1)
    monkeypatch.setattr(watch, "BYTES", 2**25)
    found = watch.outcome(read, tmp_path, (UserError, ValueError)).fault
    assert found is None if fault is None else fault in found


def test_a_reader_that_dies_is_told_and_the_others_are_read(tmp_path):
    """The rows of a process that ends early: the reader at which it stood, and then those that it has not come to."""
    code = (
        "import os\n"
        "from benchmarks.fuzz import run\n"
        "if __name__ == '__main__':\n"
        "    for row in run.rows(['--set', 'table of blocks'], 20, 0):\n"
        "        print(row['reader'], row['inputs'], row['faults'])\n"
        "else:\n"
        "    put = run.by_hypothesis\n"
        "    def dies(trials, count, seed):\n"
        "        os._exit(7) if trials.tally.reader == '--set' else put(trials, count, seed)\n"
        "    run.ENGINES['hypothesis'] = dies\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["--set 0 1", "table of blocks 10 0"]
