"""What the processes of one run tell each other: what each has found, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from xentjax.training.errors import UserError

_Found = TypeVar("_Found")

#: The mark of an error that every process knows of.
_TOLD = "told_to_every_process"

#: Errors that are raised in every process where one raises them, by their names.
_ERRORS: dict[str, type[Exception]] = {error.__name__: error for error in (ValueError, TypeError, UserError)}


def together(work: Callable[[], _Found]) -> list[_Found]:
    """What ``work()`` gives in each process of the run, in their order; where it fails in one, an error in all.

    Each process has to come here: one that stayed away would keep the others waiting.

    Args:
      work: gives what JSON can say, and raises ``ValueError``, ``TypeError`` or ``UserError``.

    Raises:
      ValueError, TypeError, UserError: that of this process, or else of the first that has one, with its number.
    """
    if jax.process_count() == 1:
        return [work()]
    failed: Exception | None = None
    try:
        mine: dict[str, Any] = {"found": work()}
    except tuple(_ERRORS.values()) as error:
        if _TOLD in error.__dict__:  # it comes out of a call inside of this one
            raise
        kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
        mine, failed = {"error": kind, "message": str(error)}, error
    every = [json.loads(text) for text in _gathered(json.dumps(mine).encode())]
    for number, one in enumerate(every):
        if failed is None and "error" in one:
            failed = _ERRORS[one["error"]](f"process {number}: {one['message']}")
    if failed is not None:
        failed.__dict__[_TOLD] = True
        raise failed
    return [one["found"] for one in every]


def sums_of_all(values: Any) -> np.ndarray[Any, Any]:
    """Numbers added up over the processes, in float64 or int64."""
    return np.sum(np.asarray(together(lambda: np.asarray(values).tolist())), axis=0)


def _gathered(text: bytes) -> list[bytes]:
    """The texts of all processes."""
    lengths = multihost_utils.process_allgather(np.asarray(len(text)))
    padded = np.zeros(int(np.max(lengths)), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows: Any = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]) for row, length in zip(rows, lengths, strict=True)]
