"""The command line, ``xentjax``. Its dependencies are the extra ``cli`` and load when :func:`main` is called."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata

from _xentjax_main import leave

#: Distributions whose module has another name.
_MODULES = {"scikit-learn": "sklearn", "orbax-checkpoint": "orbax"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 where a check or a fit fails, 2 for a mistake in what it was
    given, 130 after a Ctrl-C, 143 after SIGTERM.

    Args:
      arguments: those of the command line, by default this process's.
    """
    modules = sorted(_MODULES.get(name, name) for name in extras().get("cli", []))
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        print(f'xentjax: the command line needs {", ".join(missing)}: pip install "xentjax[cli]"', file=sys.stderr)
        return 2
    with _leaving_at_once():
        from xentjax.cli.app import run

    return run(sys.argv[1:] if arguments is None else arguments)


def extras() -> dict[str, list[str]]:
    """The extras of the installed package, each with the distributions that it needs, those of other packages' extras
    (``jax[cuda12]``) included. Empty for a source tree that is not installed."""
    try:
        declared = metadata.metadata("xentjax").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    return {extra: sorted(_needed("xentjax", extra) - {"xentjax"}) for extra in declared}


def _needed(package: str, extra: str) -> set[str]:
    """The distributions that an extra of a package asks for; of a package that is not installed, none."""
    found = set()
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.requires(package) or []:
            asked = re.match(r"([\w.-]+)\s*(?:\[([\w, -]+)\])?.*;.*\bextra == ['\"]([\w-]+)['\"]", line)
            if asked is not None and asked[3] == extra:
                found.add(asked[1])
                for inner in (asked[2] or "").split(","):
                    found |= _needed(asked[1], inner.strip()) if inner else set()
    return found


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """A signal in the block ends the process: a module that is half loaded would turn an exception into others."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return
    previous = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
