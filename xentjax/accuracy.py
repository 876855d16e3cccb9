"""The accuracy of every function on this machine: the worst error of its value and gradient, and of its peers'.

Each record is swept (:mod:`xentjax.sweep`) over the situations and the option sets of its domain; what it gives is
compared with the plain formula in arbitrary precision, in units in the last place.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

from xentjax.core.op import ops
from xentjax.core.record import Record
from xentjax.core.tables import chosen, to_json
from xentjax.core.tally import Tally
from xentjax.sweep import Sweep

DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class AccuracyRow:
    """The worst deviation of one function of one library, in one dtype."""

    record: str
    library: str
    quantity: str
    dtype: str
    ulp: float
    allowed: float
    within: bool
    compared: int
    skipped: int
    worst: str


@dataclasses.dataclass(frozen=True)
class AccuracyTable:
    """What :func:`measure` found: the library's rows, and those of its peers on the same inputs."""

    rows: list[AccuracyRow]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the library is within its accuracy contract everywhere."""
        own = [row for row in self.rows if row.library == "xentjax"]
        return bool(own) and all(row.within for row in own)

    def to_json(self) -> str:
        """The rows as JSON; infinities and NaN as strings."""
        return to_json(self.rows, self.passed, self.seconds)

    def to_markdown(self) -> str:
        """The worst ULP, value / gradient: a row for each function, a column for each of our dtypes and each peer."""
        ours = list(dict.fromkeys(("xentjax", r.dtype) for r in self.rows))
        peers = [(name, "float32") for name in ("optax", "jax", "torch") if any(r.library == name for r in self.rows)]
        lines = [
            "| function | " + " | ".join(dtype for _, dtype in ours) + "".join(f" | {p}, {d}" for p, d in peers) + " |",
            "|---|" + "---:|" * len([*ours, *peers]),
        ]
        cells = {(r.record, r.library, r.dtype, r.quantity): r for r in self.rows}
        for record in dict.fromkeys(r.record for r in self.rows):
            shown = []
            for column in (*ours, *peers):
                pair = [cells.get((record, *column, quantity)) for quantity in ("value", "gradient")]
                measured = [_short(r.ulp) if r is not None and r.compared else "not measured" for r in pair]
                shown.append(" / ".join(measured) if any(pair) else "–" if column in peers else "not measured")
            lines.append(f"| `{record}` | " + " | ".join(shown) + " |")
        own = [row for row in self.rows if row.library == "xentjax"]
        beyond = dict.fromkeys(f"`{r.record}` ({r.quantity}, {r.dtype})" for r in own if not r.within)
        kept = "kept everywhere" if not beyond else f"not kept by {', '.join(beyond)}"
        return "\n".join([*lines, "", f"The contract is {kept}: {len(own)} worst cases of xentjax compared."])

    def __str__(self) -> str:
        head = ("record", "library", "quantity", "dtype", "ULP", "allowed", "compared", "skipped", "")
        body = [
            (
                *(r.record, r.library, r.quantity, r.dtype, _short(r.ulp), _short(r.allowed)),
                *(str(r.compared), str(r.skipped), "" if r.within else f"beyond: {r.worst}"),
            )
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (head, *body)]
        return "\n".join([*lines, f"{len(self.rows)} rows in {self.seconds:.1f} s"])


def measurable() -> dict[str, Record]:
    """The records whose accuracy is measured, by name: all but those of nothing but matrix products, which round as the
    device does."""
    return {r.name: r for r in ops() if r.public and r.wrt and not r.is_whole}


def measure(
    only: str | Iterable[str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    seed: int = 0,
    *,
    quick: bool = False,
    on_rows: Callable[[list[AccuracyRow]], None] | None = None,
) -> AccuracyTable:
    """Measure the worst error of each public record's value and gradient, and of its peers'.

    Args:
      only: names of the records to measure; all public ones by default.
      dtypes: the dtypes to measure in; peers in float32 only.
      seed: of the inputs.
      quick: a few inputs of one size, for a first impression.
      on_rows: called with each record's rows as soon as they are there.

    Raises:
      ValueError: where ``only`` names no record.
    """
    records = chosen(only, measurable())
    start, rows = time.perf_counter(), []
    for record in records:
        worst: dict[tuple[str, str, str], Tally] = {}
        for number in range(len(record.domain.options)):
            Sweep(record, number, tuple(dtypes), seed, quick, worst).run_all()
        found = [
            AccuracyRow(record.name, *key, w.ulp, w.allowed, w.passed, w.compared, w.skipped, w.report)
            for key, w in worst.items()
        ]
        rows += found
        if on_rows is not None:
            on_rows(found)
    return AccuracyTable(rows, time.perf_counter() - start)


def _short(number: float) -> str:
    return f"{number:.2g}" if number < 100 else f"{number:.1e}"
