"""The command line, ``xentjax``. Its dependencies are the extra ``cli`` and load when :func:`main` is called."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

_NEEDED = ("typer", "rich", "pydantic", "matplotlib", "pyarrow", "safetensors", "sklearn", "mpmath")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 where a check fails, 2 for a mistake in what it was given.

    Args:
      arguments: those of the command line, by default this process's.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f'xentjax: the command line needs {", ".join(missing)}: pip install "xentjax[cli]"', file=sys.stderr)
        return 2
    try:
        from xentjax.cli.app import run
    except KeyboardInterrupt:
        return 130

    return run(sys.argv[1:] if arguments is None else arguments)
