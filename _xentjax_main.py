"""The console script ``xentjax``: a Ctrl-C or SIGTERM while the library loads is told in one line, as any later one is.

It stands outside the package, whose own import is what takes the time.
"""

from __future__ import annotations

import os
import signal
import sys

#: The exit status after a Ctrl-C, and after SIGTERM.
INTERRUPTED, TERMINATED = 130, 143


def main() -> int:
    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    from xentjax.cli import main as command

    for number, handler in previous.items():
        signal.signal(number, handler)
    return command()


def leave(number: int, frame: object) -> None:
    """End at once: nothing is half written, and a module that is half loaded turns an exception into others."""
    print(f"xentjax: {told(number)}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def told(number: int) -> str:
    """What a signal has done."""
    return "terminated" if number == signal.SIGTERM else "interrupted"
