"""Runs that are killed with SIGKILL at random moments of their life, over and over, until they are complete.

A moment is drawn from the time that an undisturbed run takes, imports, compiling, checkpoints and the run folder at the
end included. After each kill the disk says what it has hit. The next process goes on with ``--resume``, or every other
time by the config, and must do so from the last checkpoint that is on the disk; the run folder at the end must be that
of the undisturbed run, file by file.
"""

from __future__ import annotations

import collections
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.survival.runs import Place, differences

#: The kinds of runs, and their names in tables.
PARTS = {"gd": "gradient descent", "minibatch": "mini-batches", "language": "language model", "grid": "grid of fits"}


def kill_row(part: str, count: int, minutes: float, seed: int, say: Callable[[str], object]) -> dict[str, Any]:
    """The counts of so many kills of one kind of run, or of those for which there was time."""
    generator, started = random.Random(f"{seed} {part}"), time.monotonic()
    hit: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    complete = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Place.make(pathlib.Path(folder))
        config = f"{part}.toml"
        place.run(config, "--out", "first")  # compiles
        began = time.monotonic()
        place.run(config, "--out", "whole")
        life = time.monotonic() - began
        while sum(hit.values()) < count and time.monotonic() - started < 60 * minutes:
            last = place.steps("run")
            by_config = generator.random() < 0.5 or not (place.folder / "run.checkpoint" / "config.toml").exists()
            run = place.start(*((config, "--out", "run") if by_config else ("--resume", "run")))
            moment = generator.uniform(0, life)
            try:
                run.process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
            told = run.told
            if run.status == -signal.SIGKILL:
                hit[_hit(place, run.process.pid)] += 1
                say(f"{part}: {sum(hit.values())} of {count} kills, {complete} runs complete, {len(wrong)} wrong")
            elif run.status != 0 and not is_told_complete(told, place):
                wrong.append(f"status {run.status}: {told.strip()}")
            found = re.search(r"goes on from step (\d+)", told)
            if found and [int(found[1])] != last[-1:]:
                wrong.append(f"went on from step {found[1]}, not from {last}")
            if "damaged" in told:
                wrong.append(told.strip())
            if (place.folder / "run" / "summary.json").exists():
                wrong += differences(place.folder / "run", place.folder / "whole")
                complete += 1
                shutil.rmtree(place.folder / "run")
                shutil.rmtree(place.folder / "run.checkpoint", ignore_errors=True)
    return {
        "kind": "fault",
        "fault": f"SIGKILL at a random moment: {PARTS[part]}",
        "tried": sum(hit.values()),
        "failed": len(wrong),
        "outcome": f"{complete} runs completed, each the same bits as undisturbed; killed {_told(hit)}",
        "command": f"python -m benchmarks kills --only {part}",
        "wrong": wrong[:20],
        "hit": dict(hit),
        "seconds": round(time.monotonic() - started),
        "seed": seed,
    }


def is_told_complete(told: str, place: Place) -> bool:
    """Whether a process has refused to go on because the last one was killed after the end of its work."""
    there = (place.folder / "run" / "summary.json").exists()
    return there and ("is complete" in told or "run: exists" in told)


def _hit(place: Place, process: int) -> str:
    """What the process was at, as the disk tells."""
    folder, state = place.folder, place.folder / "run.checkpoint"
    if (folder / "run").exists():
        return "after its end"
    if any(folder.glob(f".run-*-{process}-*")):
        return "while the run folder was written"
    if not state.exists():
        return "before its first file"
    if any(path.is_dir() for path in state.glob(".*")):
        return "while a checkpoint was written"
    if not (state / "lock").exists() or str(process) not in (state / "lock").read_text():
        return "before it had the lock"
    return "between checkpoints" if place.steps("run") else "before its first checkpoint"


def _told(hit: collections.Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in sorted(hit.items(), key=lambda found: -found[1]))
