"""The proof: every hand-derived derivative in the registry against truths that owe nothing to it.

For each record, argument and order of derivative, on the inputs of the record's domain:

- in float64, elementwise, against the derivative of the plain formula in arbitrary precision: the gradient and the
  Hessian by automatic differentiation of the formula, the JVP by finite differences of it;
- the oracles against each other: automatic differentiation of the formula in float64, and finite differences;
- in every other dtype against float64 on the same rounded inputs.

An element's error is counted in ULP of its *size*: of its own magnitude or, where it is a difference of larger terms
(p − t, −log p − 1), of how far it moves when every input moves by one part, relatively.  What rounding the inputs
already does to a result, no formula can undo.  The size of other elements, and their number, do not enter.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core.derivatives import ORDERS, Tally, groups, time_gradients
from xentjax.core.gradient import GradientReport, Worst, check_gradient
from xentjax.core.op import Record, ops

__all__ = ["CheckRow", "CheckTable", "GradientReport", "Worst", "check_gradient", "check_record", "check_records"]

DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """One line of the table: a derivative of one record with respect to one argument, in one dtype."""

    record: str
    argument: str
    order: str
    dtype: str
    device: str
    cases: int
    compared: int
    skipped: int
    ulp: float
    allowed: float
    automatic_ulp: float
    worst: str
    hand_seconds: float | None
    automatic_seconds: float | None
    passed: bool


@dataclasses.dataclass(frozen=True)
class CheckTable:
    """What :func:`check_records` found, a row for each record × argument × order × dtype."""

    rows: list[CheckRow]
    seconds: float

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> str:
        """The rows as a JSON array; infinities and NaN as strings."""
        rows = [{k: _json_number(v) for k, v in dataclasses.asdict(row).items()} for row in self.rows]
        return json.dumps({"passed": self.passed, "seconds": self.seconds, "rows": rows}, indent=1)

    def __str__(self) -> str:
        head = (
            "record",
            "argument",
            "order",
            "dtype",
            "compared",
            "skipped",
            "ULP",
            "allowed",
            "auto ULP",
            "hand",
            "auto",
        )
        lines = [
            (
                *(row.record, row.argument, row.order, row.dtype, str(row.compared), str(row.skipped)),
                *(f"{row.ulp:.3g}", f"{row.allowed:.3g}", f"{row.automatic_ulp:.2g}"),
                *(_milliseconds(row.hand_seconds), _milliseconds(row.automatic_seconds)),
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
        marks = ["    ", *("ok  " if row.passed else "FAIL" for row in self.rows)]
        text = [
            f"{mark} "
            + "  ".join(
                cell.ljust(w) if i < 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for mark, line in zip(marks, [head, *lines], strict=True)
        ]
        failed = [row for row in self.rows if not row.passed]
        text += [f"FAIL {r.record} / {r.argument} / {r.order} / {r.dtype}: {r.worst}" for r in failed]
        text.append(f"{len(self.rows) - len(failed)} of {len(self.rows)} passed in {self.seconds:.1f} s")
        return "\n".join(text)


def check_records(
    only: str | Iterable[str] | None = None,
    device: str | None = None,
    dtypes: Sequence[Any] = DTYPES,
    seed: int = 0,
    *,
    timed: bool = True,
    on_rows: Callable[[list[CheckRow]], None] | None = None,
) -> CheckTable:
    """Compare every record's hand-derived derivatives with their oracles.

    Args:
      only: names of the records to check; all by default.
      device: the platform to run on (``"cpu"``, ``"gpu"``, ``"tpu"``); JAX's default device by default.
      dtypes: the dtypes to check in.
      seed: of the inputs and directions.
      timed: whether to time the hand-derived and the automatic gradient.
      on_rows: called with each record's rows as soon as they are there.

    Raises:
      ValueError: where ``only`` names no record.
    """
    names = [only] if isinstance(only, str) else list(only or [record.name for record in ops()])
    records = {record.name: record for record in ops()}
    unknown = sorted(set(names) - set(records))
    if unknown:
        raise ValueError(f"only: no record is named {unknown[0]!r}; there are {', '.join(records)}")
    start, rows = time.perf_counter(), []
    for name in names:
        found = check_record(records[name], device, dtypes, seed, timed=timed)
        rows += found
        if on_rows is not None and found:
            on_rows(found)
    return CheckTable(rows, time.perf_counter() - start)


def check_record(
    record: Record,
    device: str | None = None,
    dtypes: Sequence[Any] = DTYPES,
    seed: int = 0,
    *,
    timed: bool = True,
) -> list[CheckRow]:
    """The rows of one record; none where it has no argument to differentiate by."""
    if not record.wrt:
        return []
    chosen = jax.devices(device)[0] if device else jax.devices()[0]
    names = [jnp.dtype(d).name for d in dtypes]
    tallies = {(a, o, d): Tally() for a in record.wrt for o in ORDERS for d in names}
    with jax.default_device(chosen):
        for group in groups(record, seed):
            group.tally(names, tallies)
        seconds = time_gradients(record, seed) if timed else (None, None)
    by_hand, automatic = ({("gradient", "float32"): second} for second in seconds)
    return [
        CheckRow(
            record.name,
            argument,
            order,
            dtype,
            chosen.platform,
            tally.cases,
            tally.compared,
            tally.skipped,
            tally.ulp,
            tally.allowed,
            tally.automatic,
            tally.report,
            by_hand.get((order, dtype)),
            automatic.get((order, dtype)),
            tally.passed,
        )
        for (argument, order, dtype), tally in tallies.items()
    ]


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f} ms"
