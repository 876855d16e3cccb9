"""One input through one reader: what came of it, how long that took, and how much memory."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import time
import traceback
import warnings
from collections.abc import Callable

from xentjax.training.errors import UserError

#: What one input may take: seconds of computing, and bytes beyond those that the process has before.
SECONDS, BYTES = 5.0, 2**30

#: The longest error, in characters, beside the names of files.
_LONGEST = 1100


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one input."""

    message: str | None
    """Of the error that refused it; None: it was read."""
    seconds: float
    bytes: int
    """Resident at the worst moment, beyond what was before."""
    for_memory: bool = False
    """Whether it was refused as it would take more memory than the limit leaves."""
    fault: str | None = None
    """What is wrong with that; None: nothing."""


def limit_memory() -> None:
    """From now on the process gets no more than so many bytes beyond those that it has."""
    own = _status("VmSize") + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (own, resource.getrlimit(resource.RLIMIT_AS)[1]))


def outcome(
    read: Callable[[pathlib.Path], object], folder: pathlib.Path, refusals: tuple[type[Exception], ...]
) -> Outcome:
    """Read the files in a folder. Any other exception than the refusals is a fault, warnings are, and excess."""
    _forget_peak()
    before, start = _status("VmRSS"), time.process_time()
    message, for_memory, fault = None, False, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(folder)
    except refusals as error:
        message = str(error)
        for_memory = isinstance(error.__cause__, MemoryError) or "GiB of memory" in message
        fault = _unclean(message, folder)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "xentjax" in frame.filename]
        where = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        fault = f"{type(error).__name__} in {where}: {str(error)[:200]}"
    seconds, peak = time.process_time() - start, max(_status("VmHWM") - before, 0)
    if fault is None and seconds > SECONDS:
        fault = f"took {seconds:.1f} s"
    if fault is None and peak > BYTES:
        fault = f"took {peak / 2**20:.0f} MiB"
    return Outcome(message, seconds, peak, for_memory, fault)


def _unclean(message: str, folder: pathlib.Path) -> str | None:
    if not message.isprintable():
        return f"an error of several lines, or with signs that are not printed: {message!r:.200}"
    if len(message.replace(str(folder), "")) > _LONGEST:
        return f"an error of {len(message)} characters"
    return None


def _status(name: str) -> int:
    """A number of bytes that the system tells of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _forget_peak() -> None:
    """What was the most memory before counts no more."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


#: What most readers refuse with.
USER_ERROR = (UserError,)
