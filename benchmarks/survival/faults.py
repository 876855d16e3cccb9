"""What may happen to a run beside being killed: each fault tried on real processes, by ``python -m benchmarks faults``.

A fault is a function of a :class:`Bench` that gives how many times it was tried, what went wrong in which, and in words
what happened.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.survival.kills import PARTS
from benchmarks.survival.runs import Place, Run, differences
from xentjax.training.checkpoint import damage

#: How many single bits are flipped.
_BITS = 1000
#: A regression of some seconds: resamples, which are fitted in parts.
_REGRESSION = '[data]\npath = "table.csv"\ntarget = "y"\n[bootstrap]\nresamples = 200000\n'


class Found(NamedTuple):
    """What came of trying a fault."""

    tried: int
    wrong: list[str]
    outcome: str


class Bench:
    """Runs of each kind in a folder: whole ones, and states of ones that were stopped on their way."""

    def __init__(self, folder: pathlib.Path, seed: int, times: int):
        self.place, self.random = Place.make(folder), random.Random(seed)
        self.times = times  # that a fault is tried, of each kind
        (folder / "regression.toml").write_text(_REGRESSION)

    def path(self, name: str) -> pathlib.Path:
        return self.place.folder / name

    def whole(self, kind: str) -> pathlib.Path:
        """The run folder of an undisturbed run."""
        folder = self.path(f"whole_{kind}")
        if not folder.exists():
            self.place.run(f"{kind}.toml", "--out", folder.name)
        return folder

    def stopped(self, kind: str, number: int, out: str = "run") -> tuple[Run, float]:
        """A run that gets a signal some time after it has two checkpoints; and the seconds that it then took to end."""
        run = self.place.start(f"{kind}.toml", "--out", out)
        while len(self.place.steps(out)) < 2 and run.process.poll() is None:
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.2))
        run.process.send_signal(number)
        began = time.monotonic()
        run.process.wait()
        return run, time.monotonic() - began

    def base(self) -> pathlib.Path:
        """A copy of the state of gradient descent that was stopped, in its place for ``--resume run``."""
        if not self.path("base.checkpoint").exists():
            self.stopped("gd", signal.SIGTERM, "base")
        self.clear()
        return pathlib.Path(shutil.copytree(self.path("base.checkpoint"), self.path("run.checkpoint")))

    def clear(self, name: str = "run") -> None:
        for path in (self.path(name), self.path(f"{name}.checkpoint")):
            shutil.rmtree(path, ignore_errors=True)

    def compared(self, kind: str, run: Run) -> list[str]:
        """What is wrong with a run that has gone on to its end: its status, or files unlike those of a whole one."""
        if run.status != 0:
            return [f"status {run.status}: {run.told}"]
        if self.path("run.checkpoint").exists():
            return ["its state is still there"]
        return [f"{kind}: {name}" for name in differences(self.path("run"), self.whole(kind))]


def sigterm(bench: Bench) -> Found:
    wrong, slowest, tried = [], 0.0, 0
    for kind in PARTS:
        for _ in range(bench.times):
            bench.clear()
            run, seconds = bench.stopped(kind, signal.SIGTERM)
            tried, slowest = tried + 1, max(slowest, seconds)
            step = bench.place.steps("run")[-1]
            if run.status != 143 or f"goes on from step {step}" not in run.told:
                wrong.append(f"{kind}: status {run.status}: {run.told}")
            wrong += bench.compared(kind, bench.place.run("--resume", "run"))
    outcome = f"a checkpoint and status 143 within {slowest:.1f} s; resumed, the same bits as undisturbed"
    return Found(tried, wrong, outcome)


def sigterm_of_a_regression(bench: Bench) -> Found:
    wrong = []
    for _ in range(bench.times):
        bench.clear()
        run = bench.place.start("regression.toml", "--out", "run")
        while not bench.path("run.checkpoint").exists() and run.process.poll() is None:
            time.sleep(0.01)
        time.sleep(bench.random.uniform(0.5, 2))
        run.process.terminate()
        run.process.wait()
        if (run.status, run.told) != (143, "xentjax: terminated\n") or bench.path("run.checkpoint").exists():
            wrong.append(f"status {run.status}: {run.told}")
    return Found(bench.times, wrong, "one line, status 143, nothing written")


def ctrl_c(bench: Bench) -> Found:
    wrong = []
    for _ in range(bench.times):
        bench.clear()
        run, _ = bench.stopped("minibatch", signal.SIGINT)
        status = json.loads((bench.path("run") / "summary.json").read_text())["status"]
        if (run.status, status) != (130, "interrupted"):
            wrong.append(f"status {run.status}, {status}: {run.told}")
        wrong += bench.compared("minibatch", bench.place.run("minibatch.toml", "--out", "run"))
    outcome = "status 130 and a run folder of what there was; the same command goes on, and ends with the same bits"
    return Found(bench.times, wrong, outcome)


def flipped_bits(bench: Bench) -> Found:
    folder, wrong = sorted(path for path in bench.base().iterdir() if path.name.isdecimal())[-1], []
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files]
    for _ in range(_BITS):
        (path,) = bench.random.choices(files, sizes)
        content = path.read_bytes()
        at = bench.random.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        if damage(folder) is None:
            wrong.append(f"bit {at} of {path.name}")
        path.write_bytes(content)
    return Found(_BITS, wrong + ([] if damage(folder) is None else ["not whole again"]), "found by its checksum")


def _truncate(checkpoint: pathlib.Path, generator: random.Random) -> None:
    path = generator.choice([path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size])
    os.truncate(path, generator.randrange(path.stat().st_size))


def _flip(checkpoint: pathlib.Path, generator: random.Random) -> None:
    path = generator.choice([path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def _remove_a_file(checkpoint: pathlib.Path, generator: random.Random) -> None:
    generator.choice([path for path in checkpoint.rglob("*") if path.is_file()]).unlink()


def _remove(checkpoint: pathlib.Path, generator: random.Random) -> None:
    shutil.rmtree(checkpoint)


def _gone_on_after(bench: Bench, harm: Callable[[pathlib.Path, random.Random], None]) -> Found:
    wrong = []
    for _ in range(bench.times):
        state = bench.base()
        before, last = bench.place.steps("run")[-2:]
        harm(state / str(last), bench.random)
        run = bench.place.run("--resume", "run")
        if f"goes on from step {before}\n" not in run.told or run.told.count("looking for one before it") != 1:
            wrong.append(run.told)
        wrong += bench.compared("gd", run)
    return Found(bench.times, wrong, "said in one line; the one before is taken, and the end has the same bits")


def none_whole(bench: Bench) -> Found:
    wrong = []
    for _ in range(bench.times):
        state = bench.base()
        for step in bench.place.steps("run"):
            _truncate(state / str(step), bench.random)
        run = bench.place.run("--resume", "run")
        if run.status != 2 or "none of the checkpoints is whole: delete it" not in run.told or not state.exists():
            wrong.append(f"status {run.status}: {run.told}")
    return Found(bench.times, wrong, "status 2; says what to delete to start anew, and deletes nothing itself")


def another_config(bench: Bench) -> Found:
    wrong, overrides = [], ("solver.step_size=0.1", "stop.max_steps=500", "seed=1")
    for override in overrides:
        bench.base()
        before = _contents(bench.path("run.checkpoint"))
        run = bench.place.run("--resume", "run", "--set", override)
        key = override.partition("=")[0]
        if not run.is_a_clear_error or f"another config.{key}" not in run.told:
            wrong.append(f"status {run.status}: {run.told}")
        wrong += [] if _contents(bench.path("run.checkpoint")) == before else [f"{override} has changed the state"]
    return Found(len(overrides), wrong, "one line that names the key, status 2; the state stays as it was")


def second_run(bench: Bench) -> Found:
    wrong = []
    for _ in range(bench.times):
        bench.clear()
        first = bench.place.start("gd.toml", "--out", "run")
        while not bench.place.steps("run") and first.process.poll() is None:
            time.sleep(0.005)
        os.kill(first.process.pid, signal.SIGSTOP)
        before = _contents(bench.path("run.checkpoint"))
        second = bench.place.run("gd.toml", "--out", "run", told="second")
        if not second.is_a_clear_error or f"process {first.process.pid} of" not in second.told:
            wrong.append(f"status {second.status}: {second.told}")
        wrong += [] if _contents(bench.path("run.checkpoint")) == before else ["the second run has changed the state"]
        os.kill(first.process.pid, signal.SIGCONT)
        first.process.wait()
        wrong += bench.compared("gd", first)
    return Found(bench.times, wrong, "one line that names the process, status 2; the first run ends as if alone")


def removed_while_running(bench: Bench) -> Found:
    wrong = []
    for _ in range(bench.times):
        bench.clear()
        run = bench.place.start("gd.toml", "--out", "run")
        while not bench.place.steps("run") and run.process.poll() is None:
            time.sleep(0.005)
        os.kill(run.process.pid, signal.SIGSTOP)
        shutil.rmtree(bench.path("run.checkpoint"))
        os.kill(run.process.pid, signal.SIGCONT)
        run.process.wait()
        if not run.is_a_clear_error or bench.path("run").exists():
            wrong.append(f"status {run.status}: {run.told}")
    return Found(bench.times, wrong, "one line, status 2, no run folder")


def full_disk(bench: Bench) -> Found:
    """Where a file system can be mounted, a small one is filled with checkpoints; elsewhere no file may be large."""
    wrong, keep = [], ("--set", "checkpoint.keep=1000")
    folder = bench.path("disk")
    folder.mkdir()
    for _ in range(bench.times):
        mounted = _mount(folder, "size=300k")
        how: dict[str, Any] = {} if mounted else {"prepare": _only_small_files}
        try:
            run = bench.place.run("gd.toml", "--out", "disk/run", *keep, **how)
            if not run.is_a_clear_error or not re.search("No space left on device|File too large", run.told):
                wrong.append(f"status {run.status}: {run.told}")
            state = folder / "run.checkpoint"
            steps = bench.place.steps("disk/run")
            wrong += [str(step) for step in steps if damage(state / str(step)) is not None]
            if mounted and not steps:
                wrong.append("no checkpoint is left")
            if mounted:
                subprocess.run(["mount", "-o", "remount,size=50m", str(folder)], check=True)
            run = bench.place.run(
                "--resume" if steps else "gd.toml", *(("disk/run",) if steps else ("--out", "disk/run"))
            )
            wrong += [f"status {run.status}: {run.told}"] if run.status else []
            # The config as used, with what is kept, is no part of the bits.
            wrong += [name for name in differences(folder / "run", bench.whole("gd")) if name != "config.toml"]
        finally:
            _unmount(folder, mounted)
    outcome = "one line, status 2, the checkpoints whole; with room again it goes on, and ends with the same bits"
    return Found(bench.times, wrong, outcome)


def read_only(bench: Bench) -> Found:
    wrong = []
    folder = bench.path("still")
    folder.mkdir()
    for _ in range(bench.times):
        bench.base()
        shutil.copytree(bench.path("run.checkpoint"), folder / "run.checkpoint")
        mounted, places = _mount(folder, "ro", onto_itself=True), (folder, folder / "run.checkpoint")
        try:
            for path in () if mounted else places:
                path.chmod(0o555)
            before = _contents(folder)
            runs = ("gd.toml", "--out", "still/run"), ("--resume", "still/run"), ("gd.toml", "--out", "still/other")
            for arguments in runs:
                run = bench.place.run(*arguments)
                if not run.is_a_clear_error or "cannot be written" not in run.told:
                    wrong.append(f"status {run.status}: {run.told}")
            wrong += [] if _contents(folder) == before else ["it was written to"]
        finally:
            for path in () if mounted else places:
                path.chmod(0o755)
            _unmount(folder, mounted)
    return Found(3 * bench.times, wrong, "one line before any work, status 2, nothing changed")


def not_finite(bench: Bench) -> Found:
    """Steps that are too large; and two rows of opposite classes whose logits no float32 can hold after a step."""
    large = bench.path("large.csv")
    rows = [f"{3e38 if i < 5 else 1e38 if i < 10 else i},{'yes' if i < 5 or i % 3 == 0 else 'no'}" for i in range(40)]
    large.write_text("\n".join(["a,y", *rows]) + "\n")
    rate = "solver={name='optax', transformation='sgd', learning_rate=3e38}"
    cases = {
        "gd": (f"data={{path='{large}', target='y', standardize=false}}", "solver.step_size=1e-30"),
        "minibatch": (rate,),
        "language": (rate,),
    }
    wrong = []
    for kind, overrides in cases.items():
        bench.clear()
        run = bench.place.run(f"{kind}.toml", "--out", "run", *(f"--set={override}" for override in overrides))
        where = bench.path("run") / "not_finite.json"
        told = json.loads(where.read_text()) if where.exists() else {}
        status = json.loads((bench.path("run") / "summary.json").read_text())["status"]
        if run.status != 1 or status != "diverged" or run.told.count("\n") != 1 or "brings" not in run.told:
            wrong.append(f"{kind}: status {run.status}, {status}: {run.told}")
        if not (told.get("rows") or told.get("windows")):
            wrong.append(f"{kind}: {told}")
    outcome = "status `diverged`, the parameters before it; step, batch and rows (windows) in one line and in a file"
    return Found(len(cases), wrong, outcome)


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _mount(folder: pathlib.Path, options: str, onto_itself: bool = False) -> bool:
    """Mount a small file system on a folder, or itself with other options; False where that is not allowed."""
    run = lambda *command: subprocess.run(command, capture_output=True).returncode == 0
    if onto_itself:
        if not run("mount", "--bind", str(folder), str(folder)):
            return False
        return run("mount", "-o", f"remount,bind,{options}", str(folder))
    return run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))


def _unmount(folder: pathlib.Path, mounted: bool) -> None:
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
    for path in folder.iterdir():
        shutil.rmtree(path)


def _only_small_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


#: Each fault by a short name: what it is, and what tries it.
FAULTS: dict[str, tuple[str, Callable[[Bench], Found]]] = {
    "sigterm": ("SIGTERM, in every kind of run made of steps", sigterm),
    "sigterm-regression": ("SIGTERM, in a regression", sigterm_of_a_regression),
    "ctrl-c": ("Ctrl-C", ctrl_c),
    "bits": ("a bit of a checkpoint flipped, any bit of any file", flipped_bits),
    "flipped": ("the last checkpoint has a flipped bit", lambda bench: _gone_on_after(bench, _flip)),
    "truncated": ("the last checkpoint has a truncated file", lambda bench: _gone_on_after(bench, _truncate)),
    "file-missing": ("the last checkpoint lacks a file", lambda bench: _gone_on_after(bench, _remove_a_file)),
    "missing": ("the last checkpoint is missing", lambda bench: _gone_on_after(bench, _remove)),
    "none-whole": ("all checkpoints are damaged", none_whole),
    "config": ("gone on with by another config", another_config),
    "second-run": ("a second run in the same folder", second_run),
    "removed": ("the state is removed while the run goes on", removed_while_running),
    "full-disk": ("a full disk", full_disk),
    "read-only": ("a folder that cannot be written to", read_only),
    "not-finite": ("a loss that becomes NaN or infinite", not_finite),
}


def rows(only: str | None, seed: int, times: int) -> Iterator[dict[str, Any]]:
    """A row for each fault, as it is tried."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(pathlib.Path(folder), seed, times)
        for name, (fault, trial) in FAULTS.items():
            if re.fullmatch(only or ".*", name):
                began = time.monotonic()
                found = trial(bench)
                bench.clear()
                yield {
                    "kind": "fault",
                    "fault": fault,
                    "tried": found.tried,
                    "failed": len(found.wrong),
                    "outcome": found.outcome,
                    "command": f"python -m benchmarks faults --only {name}",
                    "wrong": found.wrong[:20],
                    "seconds": round(time.monotonic() - began),
                    "seed": seed,
                }
