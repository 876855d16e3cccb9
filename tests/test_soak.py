"""Fits of changing sizes in one process: programs are forgotten when there is no more room, and nothing else grows."""

import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import soak
from xentjax.solvers import room
from xentjax.solvers.kept import kept

ROOT = pathlib.Path(__file__).parents[1]
TRACED = []


@kept(1)
def program(x, factor):
    TRACED.append(x.shape)
    return jnp.sum(x) * factor


@pytest.fixture
def little_room(monkeypatch):
    """Every program is one too many."""
    monkeypatch.setattr(room, "mappings", lambda: 3)
    monkeypatch.setattr(room, "most_mappings", lambda: 4)
    monkeypatch.setattr(room, "_FEWEST", 1)


def test_a_program_is_kept_as_long_as_there_is_room():
    TRACED.clear()
    for _ in range(3):
        assert [program(np.ones(n), 2) for n in (2, 3)] == [4, 6]
    assert len(TRACED) == 2


def test_programs_are_forgotten_when_there_is_no_more_room_and_made_again(little_room):
    TRACED.clear()
    for _ in range(3):
        assert [program(np.ones(n), 3) for n in (2, 3)] == [6, 9]
        assert program.jitted._cache_size() == 0
    assert len(TRACED) == 6


def test_where_the_system_does_not_tell_programs_are_counted(monkeypatch):
    forgotten = []

    class Holder:
        def forget(self):
            forgotten.append(room._made)

    holder = Holder()
    room.hold(holder)
    monkeypatch.setattr(room, "mappings", lambda: None)
    monkeypatch.setattr(room, "_made", 0)
    for _ in range(2 * (room._MOST + 1)):
        room.another()
    assert forgotten == [0, 0]


def test_room_that_others_have_taken_does_not_cost_each_program_anew(little_room, monkeypatch):
    monkeypatch.setattr(room, "_FEWEST", 16)
    monkeypatch.setattr(room, "_made", 0)
    TRACED.clear()
    for _ in range(20):
        program(np.ones(5), 4)
    assert len(TRACED) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_what_the_system_tells():
    assert 100 < room.mappings() < room.most_mappings()


def test_growth_is_that_of_most_points():
    fits = list(range(0, 1001, 10))
    assert soak.growth(fits, [7 * n for n in fits]) == 7
    jumps = [5e8 if n == 900 else 2.0**30 + (n % 50) for n in fits]
    assert abs(soak.growth(fits, jumps)) < 0.1
    leak = [2.0**30 + 4096 * n + 10**5 * (n % 3) for n in fits]
    assert 3000 < soak.growth(fits, leak) < 5000


def test_forty_fits(tmp_path):
    """They find no more room more than once, and go on."""
    code = (
        "import sys\n"
        "from benchmarks import __main__ as command, soak\n"
        "from xentjax.solvers import room\n"
        "most, forgotten = room.mappings() + 4000, []\n"
        "room.most_mappings = lambda: most / soak._SHARE\n"
        "class Holder:\n"
        "    def forget(self):\n"
        "        forgotten.append(1)\n"
        "holder = Holder()\n"
        "room.hold(holder)\n"
        "status = command.main(['soak', '--fits', '40', '--out', sys.argv[1]])\n"
        "print(len(forgotten))\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, check=False)
    machine, *rows = map(json.loads, (tmp_path / "soak.jsonl").read_text().splitlines())
    assert machine["kind"] == "machine"
    last = rows[-1]
    assert last["fits"] == sum(last["statuses"].values()) == 40
    assert int(done.stdout.split()[-1]) > 0
    held = {
        name: holds for name, holds in last["held"].items() if "bytes a fit" not in name
    }  # which it takes longer for
    assert all(held.values()), held
    (told,) = soak.faults(rows)
    fault, fits, command = told["fault"], told["tried"], told["command"]
    assert (fits, command) == (40, "python -m benchmarks soak")
    assert "fits" in fault
