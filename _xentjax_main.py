"""The console script ``xentjax``: a Ctrl-C while the library loads is told in one line, as any later one is.

It stands outside the package, whose own import is what takes the time.
"""

from __future__ import annotations

import os
import signal
import sys

#: The exit status after a Ctrl-C.
INTERRUPTED = 130


def main() -> int:
    previous = signal.signal(signal.SIGINT, leave)
    from xentjax.cli import main as command

    signal.signal(signal.SIGINT, previous)
    return command()


def leave(number: int, frame: object) -> None:
    """End at once: nothing is half written, and a module that is half loaded turns an exception into others."""
    print("xentjax: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)
