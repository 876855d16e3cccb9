"""The proof: every hand-derived derivative in the registry against truths that owe nothing to it.

For each record, argument and order of derivative, on the inputs of the record's domain, and for each closed form of a
derivative that is a function of its own (a Hessian, its product with a direction):

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
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core.closed_forms import ClosedForms, all_closed_forms
from xentjax.core.derivatives import Derivatives, Timing, groups
from xentjax.core.op import ops
from xentjax.core.record import Record
from xentjax.core.tables import chosen, to_json

DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """One line of the table: a derivative of one record with respect to one argument, in one dtype.

    Of closed forms, ``record`` is what they are called, and ``order`` the name of the form.
    """

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
        return to_json(self.rows, self.passed, self.seconds)

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


def checkable() -> dict[str, Record | ClosedForms]:
    """All that there is to check, by name."""
    found: list[Record | ClosedForms] = [*ops(), *all_closed_forms()]
    return {one.name: one for one in found}


def check_records(
    only: str | Iterable[str] | None = None,
    device: str | None = None,
    dtypes: Sequence[Any] = DTYPES,
    seed: int = 0,
    *,
    timed: bool = True,
    on_rows: Callable[[list[CheckRow]], None] | None = None,
) -> CheckTable:
    """Compare the hand-derived derivatives of every record, and all closed forms, with their oracles.

    Args:
      only: names of the records and closed forms to check; all by default.
      device: the platform to run on (``"cpu"``, ``"gpu"``, ``"tpu"``); JAX's default device by default.
      dtypes: the dtypes to check in.
      seed: of the inputs and directions.
      timed: whether to time the hand-derived and the automatic gradient.
      on_rows: called with each record's rows as soon as they are there; the times come when all are.

    Raises:
      ValueError: where ``only`` names no record.
    """
    records = chosen(only, checkable())
    start, rows = time.perf_counter(), []
    where = jax.devices(device)[0] if device else jax.devices()[0]
    kinds = [jnp.dtype(d).name for d in dtypes]
    # Nearly all of the time goes to compiling: the programs are made beside the arithmetic of the truths.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        # A record without an argument to differentiate by has nothing to check.
        differentiable = [record for record in records if record.wrt]
        checks = [_Check(record, seed, pool, where, kinds, timed) for record in differentiable]
        for check in checks:
            found = check.rows()
            rows.append(found)
            if on_rows is not None:
                on_rows(found)
        timings = [check.timing.seconds() if check.timing else (None, None) for check in checks]
    finally:
        pool.shutdown(cancel_futures=True)
    complete = [_with_times(row, *times) for found, times in zip(rows, timings, strict=True) for row in found]
    return CheckTable(complete, time.perf_counter() - start)


class _Check:
    """One record, or one's closed forms: its programs, in the making from the start, and its rows."""

    def __init__(
        self, record: Record | ClosedForms, seed: int, pool: Executor, device: Any, dtypes: list[str], timed: bool
    ):
        self.record, self.device, self.dtypes = record, device, dtypes
        self.groups = groups(record, seed)
        for group in self.groups:
            group.compile(pool, device, dtypes)
        self.timing = Timing(record, seed, pool, device) if timed and isinstance(record, Record) else None

    def rows(self) -> list[CheckRow]:
        keys = [(a, o, d) for a in self.record.wrt for o in self.groups[0].orders for d in self.dtypes]
        tallies = {key: Derivatives() for key in keys}
        for group in self.groups:
            group.tally(self.dtypes, tallies)
        self.groups = []  # and the compiled programs with them
        return [
            CheckRow(
                record=self.record.name,
                argument=argument,
                order=order,
                dtype=dtype,
                device=self.device.platform,
                cases=tally.cases,
                compared=tally.compared,
                skipped=tally.skipped,
                ulp=tally.ulp,
                allowed=tally.allowed,
                automatic_ulp=tally.automatic,
                worst=tally.report,
                hand_seconds=None,
                automatic_seconds=None,
                passed=tally.passed,
            )
            for (argument, order, dtype), tally in tallies.items()
        ]


def _with_times(row: CheckRow, hand: float | None, automatic: float | None) -> CheckRow:
    """The times stand in the rows of what was timed."""
    if (row.order, row.dtype) != ("gradient", "float32"):
        return row
    return dataclasses.replace(row, hand_seconds=hand, automatic_seconds=automatic)


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.2f} ms"
