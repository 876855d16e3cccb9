"""What is kept of a run until it is complete, in a folder beside its run folder: lock, config and checkpoints.

``runs/digits.checkpoint`` holds

- ``lock``, which the process that works on it has locked;
- ``config.toml``, the config as used;
- ``500``, a checkpoint after so many steps, and those before it that are kept; ``latest``, the number of the last one;
- ``finished``, for a moment at the end: the sum of the run folder's summary, which is about to get its place.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xentjax.training.checkpoint import damage, read_about, read_checkpoint, write_checkpoint
from xentjax.training.config import CheckpointConfig, RunConfig
from xentjax.training.config_file import to_toml
from xentjax.training.errors import UserError
from xentjax.training.lock import Lock
from xentjax.training.run_folder import MARK, status_of

_LOCK, _CONFIG, _LATEST, _FINISHED = "lock", "config.toml", "latest", "finished"

#: What is told in a line on the way.
Say = Callable[[str], None]


def state_of(run: Path) -> Path:
    """Where the state of a run is that writes this folder."""
    return run.with_name(f"{run.name}.checkpoint")


class RunState:
    """The state of one run, of which this process has the lock.

    Args:
      run: the run folder that the run will write.
      config: that of the run.
      say: is told where the run goes on from, and of checkpoints that are damaged.

    Raises:
      UserError: another process works on it, or the folder cannot be written.
    """

    def __init__(self, run: Path, config: RunConfig, say: Say):
        self.run, self.path = run, state_of(run)
        self._say = say
        self._when: CheckpointConfig = getattr(config, "checkpoint", CheckpointConfig())
        self._identity: Callable[[], Mapping[str, Any]] | None = None
        self._saved = 0  # the step of the last checkpoint
        self._written = time.monotonic()
        self._made = [p for p in (self.path, *self.path.absolute().parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path / _LOCK, run)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        try:
            if not self._lock.is_held:
                say(f"{self.path}: cannot be locked here: take care that no other process works on {run}")
            for left in self.path.glob(".*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
            (self.path / _FINISHED).unlink(missing_ok=True)
            if not self.steps():
                self._write(_CONFIG, to_toml(config.model_dump(exclude_none=True)))
        except OSError as error:
            self.close()
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def steps(self) -> list[int]:
        """Of which steps there are checkpoints."""
        return sorted(int(path.name) for path in self.path.iterdir() if path.name.isdecimal())

    def require_none(self) -> None:
        """UserError where there are checkpoints, of a run that is not made of steps."""
        if self.steps():
            raise UserError(
                f"{self.path}: is the state of a training run, which this is not: delete it, or choose another --out"
            )

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def restored(self, identity: Callable[[], Mapping[str, Any]], like: Any) -> Any:
        """What the last whole checkpoint holds, in the structure of ``like``; None where there never was one.

        Args:
          identity: gives what the bits of a run depend on: config, data, versions. To another run a checkpoint is
            refused.

        Raises:
          UserError: they are checkpoints of another run, or none of them is whole.
        """
        self._identity = functools.cache(identity)
        steps, latest = self.steps(), self._latest()
        if latest is not None and latest not in steps and latest > max(steps, default=-1):
            self._say(f"{self.path / str(latest)}: the last checkpoint is missing: looking for one before it")
        for step in reversed(steps):
            path = self.path / str(step)
            wrong = damage(path)
            if wrong is not None:
                self._say(f"{path}: the checkpoint is damaged ({wrong}): looking for one before it")
                continue
            self._require_same(read_about(path), path)
            tree = read_checkpoint(path, like)
            self._say(f"{self.run}: goes on from step {step}")
            self._saved, self._written = step, time.monotonic()
            return tree
        if steps or latest is not None:
            raise UserError(f"{self.path}: none of the checkpoints is whole: delete it to start anew")
        return None

    def _require_same(self, about: Mapping[str, Any], path: Path) -> None:
        assert self._identity is not None
        identity, stored = self._identity(), about["identity"]
        for key in sorted(identity.keys() | stored.keys()):
            if (other := _difference(key, identity.get(key), stored.get(key))) is not None:
                raise UserError(
                    f"{self.path}: is the state of a run with another {other}: delete it to start anew, or choose "
                    "another --out"
                )

    def see(self, step: int, state: Callable[[], Any], stopped: bool = False) -> None:
        """Write a checkpoint of the state after so many steps, where one is due or the run is stopped.

        Raises:
          UserError: it cannot be written. Those that there are stay.
        """
        every, late = self._when.every_steps, time.monotonic() - self._written >= self._when.every_seconds
        due = stopped or late or (every is not None and step // every > self._saved // every)
        if due and (step > self._saved or not self.steps()):
            self._save(step, state())

    def _save(self, step: int, state: Any) -> None:
        assert self._identity is not None
        if self._lock.is_lost or not self.path.is_dir():
            raise UserError(f"{self.path}: was removed while the run went on, which so cannot write its checkpoints")
        write_checkpoint(self.path / str(step), state, {"step": step, "identity": self._identity()})
        self._saved, self._written = step, time.monotonic()
        try:
            self._write(_LATEST, f"{step}\n")
            for old in self.steps()[: -self._when.keep]:
                gone = self.path / f".{old}"
                (self.path / str(old)).rename(gone)
                shutil.rmtree(gone)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _latest(self) -> int | None:
        try:
            return int((self.path / _LATEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _write(self, name: str, text: str) -> None:
        """A small file, at once or not at all."""
        temporary = self.path / f".{name}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self, folder: Path) -> None:
        """Note which summary the run folder will have, before it gets its place: so a run that is killed between that
        and :meth:`remove` is known to be complete."""
        self._write(_FINISHED, _sum_of(folder))

    def remove(self) -> None:
        """The run is complete: nothing of its state is needed."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name != _LOCK:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock. A folder in which there is no checkpoint is removed."""
        with contextlib.suppress(OSError):
            if self.path.is_dir() and not self.steps() and not self._lock.is_lost:
                self.remove()
        self._lock.release()
        for path in self._made or [self.path]:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


@contextlib.contextmanager
def run_state(run: Path, config: RunConfig, say: Say) -> Iterator[RunState]:
    """The state of a run, locked for the block."""
    state = RunState(run, config, say)
    try:
        yield state
    finally:
        state.close()


def is_unfinished(run: Path) -> bool:
    """Whether the run folder is that of a run which was stopped, and which can go on from a checkpoint."""
    return status_of(run) == "interrupted" and any(
        path.name.isdecimal() for path in (state_of(run).iterdir() if state_of(run).is_dir() else ())
    )


def config_to_resume(run: Path) -> Path:
    """The config of a run that can go on.

    Raises:
      UserError: there is nothing to go on with.
    """
    clear_complete(run)
    config, status = state_of(run) / _CONFIG, status_of(run)
    if config.is_file():
        return config
    if status is not None and status != "interrupted":
        raise UserError(f"{run}: is complete ({status}): there is nothing to go on with")
    if config.parent.is_dir():
        raise UserError(f"{config.parent}: has no {_CONFIG}: start the run by its config, with --out {run}")
    if status is None:
        raise UserError(f"{run}: there is no such run, and no {config.parent.name} beside it")
    raise UserError(f"{run}: was stopped, but has no checkpoint ({config.parent} is missing): start it with --force")


def clear_complete(run: Path) -> None:
    """Remove the state of a run whose run folder is in its place, where it was killed before it did that."""
    with contextlib.suppress(OSError):
        if (state_of(run) / _FINISHED).read_text(encoding="utf-8") == _sum_of(run):
            shutil.rmtree(state_of(run))


def _sum_of(folder: Path) -> str:
    return hashlib.sha256((folder / MARK).read_bytes()).hexdigest()


def _difference(key: str, one: Any, other: Any) -> str | None:
    """The first key, in words, by which two values differ; None where they are the same."""
    if one == other:
        return None
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for inner in sorted(one.keys() | other.keys()):
            if (found := _difference(inner, one.get(inner), other.get(inner))) is not None:
                return f"{key}.{found}"
    return key
