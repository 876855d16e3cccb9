"""Small runs of each kind as real processes of the command line, and whether two of them ended with the same bits."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]

_TABLE = '[data]\npath = "table.csv"\ntarget = "y"\n'
_ADAM = '[solver]\nname = "optax"\ntransformation = "adam"\nlearning_rate = 0.02\nschedule = {name = "cosine"}\n'
_TEXT = """[text]
path = "words"
suffix = ".txt"
test_fraction = 0.1
[vocabulary]
size = 261
[model]
width = 16
layers = 1
hidden = 32
[batches]
size = 8
length = 16
"""

#: The config of each kind: a second of steps, with checkpoints so often that many a kill is within one.
CONFIGS = {
    "gd": f'{_TABLE}[solver]\nname = "gradient_descent"\nstep_size = 0.2\n[stop]\ntol = 0.0\nmax_steps = 400\n'
    "[checkpoint]\nevery_steps = 20\n",
    "minibatch": f"{_TABLE}{_ADAM}[stop]\ntol = 0.0\n[batches]\nsize = 16\nepochs = 14\n"
    "[checkpoint]\nevery_steps = 11\n",
    "grid": f'{_TABLE}[solver]\nname = "gradient_descent"\n[many]\nstep_sizes = [0.1, 0.2]\nseeds = [0, 1]\n[stop]\n'
    "tol = 0.0\nmax_steps = 400\n[checkpoint]\nevery_steps = 20\n",
    "language": f"{_TEXT}{_ADAM}[stop]\nmax_steps = 80\n[checkpoint]\nevery_steps = 4\n",
}

#: What is part of no comparison: how long it took.
_TIMES = ("compile_seconds", "run_seconds")


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with the config of each kind of run, and a cache of its own for compiled programs."""

    folder: pathlib.Path

    @classmethod
    def make(cls, folder: pathlib.Path) -> Place:
        for kind, text in CONFIGS.items():
            (folder / f"{kind}.toml").write_text(text)
        generator = random.Random(1)
        rows = [[generator.gauss(0, 1) for _ in range(8)] for _ in range(320)]
        lines = [",".join([*(f"{x:.6f}" for x in row), ("no", "yes")[sum(row[:3]) > 0]]) for row in rows]
        (folder / "table.csv").write_text("\n".join(["a,b,c,d,e,f,g,h,y", *lines]) + "\n")
        (folder / "words").mkdir()
        for number in range(40):
            words = generator.choices([" one", " two", " six", " ten"], (8, 4, 2, 1), k=150)
            (folder / "words" / f"{number}.txt").write_text("".join(words))
        return cls(folder)

    def start(self, *arguments: str, prepare: Callable[[], object] | None = None, told: str = "stderr") -> Run:
        """``xentjax fit`` with these arguments, in the folder.

        Args:
          prepare: is called in its process before it begins.
          told: the file for what it says.
        """
        names = {
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "MPLCONFIGDIR": str(self.folder),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "xentjax", "fit", *arguments],
            cwd=self.folder,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true", **names},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / told).open("w"),
            preexec_fn=prepare,
        )
        return Run(process, self.folder / told)

    def run(self, *arguments: str, **how: Any) -> Run:
        """The same, at its end."""
        started = self.start(*arguments, **how)
        started.process.wait()
        return started

    def steps(self, run: str) -> list[int]:
        """Of which steps a run has checkpoints."""
        state = self.folder / f"{run}.checkpoint"
        return sorted(int(p.name) for p in state.iterdir() if p.name.isdecimal()) if state.is_dir() else []


@dataclasses.dataclass(frozen=True)
class Run:
    """A process, and the file of what it says on stderr."""

    process: subprocess.Popen[bytes]
    _told: pathlib.Path

    @property
    def status(self) -> int:
        return self.process.returncode

    @property
    def told(self) -> str:
        return self._told.read_text()

    @property
    def is_a_clear_error(self) -> bool:
        """Whether it ended with one line and status 2."""
        return self.status == 2 and self.told.count("\n") == 1 and self.told.startswith("xentjax: ")


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """The files of two run folders that are not the same, times apart."""
    names = sorted({path.name for path in itertools.chain(one.iterdir(), other.iterdir())})
    return [name for name in names if _content(one / name) != _content(other / name)]


def _content(path: pathlib.Path) -> Any:
    if not path.exists():
        return None
    if path.name == "summary.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in _TIMES}
    return path.read_bytes()
