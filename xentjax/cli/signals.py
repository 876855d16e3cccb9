"""What ends a command early: Ctrl-C, and SIGTERM, with which a machine is taken away."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from xentjax.training.steps import Terminated

#: What is said at the first of them, and the exception that then comes out of the progress callback.
_STOPPING: dict[int, tuple[str, type[BaseException]]] = {
    signal.SIGINT: ("stopping, and what there is then is written (Ctrl-C again: nothing is)", KeyboardInterrupt),
    signal.SIGTERM: ("SIGTERM: stopping after the steps under way, with a checkpoint (again: without)", Terminated),
}


class Leaving(BaseException):
    """A signal that ends the process at once, with nothing written but what is whole already."""

    def __init__(self, number: int, still_running: bool = False):
        super().__init__(number)
        self.number = number
        #: Whether a thread computes, which cannot be stopped: an ordinary end would take away what it works with.
        self.still_running = still_running


@contextlib.contextmanager
def stopping_gently(progress: Callable[[Any], None], in_steps: bool = True) -> Iterator[Callable[[Any], None]]:
    """The progress callback, made to end the run after a signal: where it is called there is a whole number of steps.

    Compiling, evaluating and writing are not stopped by the first signal, only by a second one. A run that is not made
    ``in_steps``, and so has no checkpoints, is ended by SIGTERM at once.
    """
    asked: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        if asked or (number == signal.SIGTERM and not in_steps):
            raise Leaving(number)
        asked.append(number)
        print(f"xentjax: {_STOPPING[number][0]}", file=sys.stderr, flush=True)

    def tell(step: Any) -> None:
        progress(step)
        if asked:
            raise _STOPPING[asked[0]][1]

    if threading.current_thread() is not threading.main_thread():
        yield progress  # Python lets no other thread handle signals
        return
    previous = {number: signal.signal(number, on_signal) for number in _STOPPING}
    try:
        yield tell
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
