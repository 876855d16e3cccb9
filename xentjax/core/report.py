"""What the check of a gradient found."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple


class Worst(NamedTuple):
    """The element that is furthest off: the argument's path, its index, and the two numbers."""

    argument: str
    index: tuple[int, ...] | None  # type: ignore[assignment]
    got: Any
    expected: Any


class GradientError(AssertionError):
    """A gradient that the check found wrong; the message is the report."""


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What :func:`xentjax.check_gradient` found.

    Attributes:
      passed: whether every element is within its tolerance.
      max_ulp: the deviation of the worst element, in ULP of that element (plus what rounding costs it).
      worst: where it is: argument, index, what it is, what it should be.
      problems: each disagreement in one line; empty where the check passed.
      notes: what could not be compared, and why.
      compared: how many elements were compared with an oracle.
      skipped: how many have no finite derivative to compare with, or lie on a kink.
    """

    passed: bool
    max_ulp: float
    worst: Worst
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    compared: int
    skipped: int

    def raise_if_failed(self) -> None:
        """Raise ``GradientError`` (an ``AssertionError``) with this report as its message, unless it passed."""
        if not self.passed:
            raise GradientError(str(self))

    def __str__(self) -> str:
        w = self.worst
        place = w.argument if w.index is None else f"{w.argument}[{', '.join(map(str, w.index))}]"
        lines = [
            f"gradient check {'passed' if self.passed else 'FAILED'}: {self.compared} elements compared, "
            f"{self.skipped} without a finite derivative; worst {self.max_ulp:.3g} ULP",
            f"  worst: {place}: got {w.got}, expected {w.expected}",
        ]
        return "\n".join(lines + [f"  wrong: {p}" for p in self.problems] + [f"  note: {n}" for n in self.notes])
