"""How many ULP every function is off, at worst, beside what others offer on the same inputs.

Each public record is evaluated, value and gradient, on its domain: every situation of it, over 2 to 32,000 entries,
logits with standard deviations from 1e-3 to 1e4; functions of one number on every float16 and bfloat16 there is.  The
truth is the plain formula in arbitrary precision or, over many entries and in less than 64 bits, the float64 result.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax import peers
from xentjax.core.domains import SITUATIONS, Case, Kind, Logit, Logits, Probability
from xentjax.core.inputs import inward, moved, signs
from xentjax.core.op import Record, ops
from xentjax.core.reference import Formula
from xentjax.core.tally import Tally

DTYPES = ("bfloat16", "float16", "float32", "float64")
#: Numbers of entries, and of examples for each.
SIZES = {2: 16, 7: 8, 32000: 4}
QUICK = {7: 4}
#: The truth is computed in arbitrary precision for arrays of no more numbers than this.
EXACT = 128
#: Logits in the situation "huge" have a standard deviation of 1e3; the sweep goes on to 1e4.
WIDER = 10


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
        rows = [
            {
                k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in dataclasses.asdict(r).items()
            }
            for r in self.rows
        ]
        return json.dumps({"passed": self.passed, "seconds": self.seconds, "rows": rows}, indent=1)

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
                shown.append(" / ".join(_short(r.ulp) for r in pair if r is not None))
            lines.append(f"| `{record}` | " + " | ".join(shown) + " |")
        own = [row for row in self.rows if row.library == "xentjax"]
        beyond = dict.fromkeys(f"`{r.record}` ({r.quantity}, {r.dtype})" for r in own if not r.within)
        kept = "everywhere" if not beyond else f"not by {', '.join(beyond)}"
        return "\n".join([*lines, "", f"The contract is kept {kept}: {len(own)} worst cases of xentjax compared."])

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
    records = {record.name: record for record in ops() if record.public and record.wrt}
    names = [only] if isinstance(only, str) else list(only or records)
    unknown = sorted(set(names) - set(records))
    if unknown:
        raise ValueError(f"only: no record is named {unknown[0]!r}; there are {', '.join(records)}")
    start, rows = time.perf_counter(), []
    for name in names:
        found = _Sweep(records[name], tuple(dtypes), seed, quick).rows()
        rows += found
        if on_rows is not None:
            on_rows(found)
    return AccuracyTable(rows, time.perf_counter() - start)


class _Sweep:
    """All inputs of one record."""

    def __init__(self, record: Record, dtypes: tuple[str, ...], seed: int, quick: bool):
        self.record, self.dtypes, self.quick = record, dtypes, quick
        self.rng = np.random.default_rng(seed)
        self.names = [n for n in record.wrt if n in record.domain.kinds]
        self.options = {n: v for n, v in record.domain.options[0].items() if not isinstance(v, Kind)}
        self.peers = peers.of(record.name)
        self.worst: dict[tuple[str, str, str], Tally] = {}
        self.function = jax.jit(self.both(record.function))
        self.others = {lib: jax.jit(self.both(f)) for lib, f in self.peers.items() if lib != "torch"}

    def call(self, function: Any, arrays: dict[str, Any]) -> Any:
        return function(*(arrays[n] for n in self.record.domain.kinds), **self.options)

    def both(self, function: Any) -> Callable[..., Any]:
        """Value and gradients of its sum weighted with ``cotangents``."""

        def evaluate(cotangents: Any, arrays: dict[str, Any]) -> Any:
            moving = {n: v for n, v in arrays.items() if n in self.moving(arrays)}

            def total(moving: Any) -> Any:
                value = self.call(function, {**arrays, **moving})
                return jnp.sum(value * cotangents.astype(value.dtype)), value

            (_, value), gradient = jax.value_and_grad(total, has_aux=True)(moving)
            return value, gradient

        return evaluate

    def moving(self, arrays: dict[str, Any]) -> list[str]:
        return [n for n in self.names if all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(arrays[n]))]

    def inputs(self) -> Iterator[tuple[str, Case]]:
        """Cases to evaluate; the largest sizes only in the situations that grow with the size."""
        entries = any("K" in kind.shape.split() for kind in self.record.domain.kinds.values())
        for size, examples in (QUICK if self.quick else SIZES).items():
            if not entries and size != 7:
                continue
            for situation in SITUATIONS if size <= 7 else ("tiny", "unit", "huge", "offset", "ties", "dominant"):
                sizes = {"K": size, "B": examples if entries else 64, "D": 5, "J": 2}
                case = self.record.domain.case(self.rng, situation, self.record.domain.options[0], **sizes)
                yield f"{situation}, {size} entries" if entries else situation, case
                if situation == "huge" and any(isinstance(k, Logits) for k in self.record.domain.kinds.values()):
                    wider = {
                        n: v * WIDER if isinstance(self.record.domain.kinds.get(n), Logits) else v
                        for n, v in case.arrays.items()
                    }
                    yield f"sd 1e4, {size} entries", Case("huge", wider, case.options)

    def rows(self) -> list[AccuracyRow]:
        for label, case in self.inputs():
            for dtype in self.dtypes:
                self.one(label, dtype, {n: v for n, v in case.cast(jnp.dtype(dtype)).items() if n in case.arrays})
        if not self.quick and self._of_one_number():
            for dtype in self.dtypes:
                if jnp.finfo(dtype).bits == 16:
                    (name, kind) = next(iter(self.record.domain.kinds.items()))
                    self.one("every number", dtype, {name: _every(dtype, kind)})
        return [
            AccuracyRow(
                *(self.record.name, library, quantity, dtype, w.ulp, w.allowed, w.passed, w.compared, w.skipped),
                w.report,
            )
            for (library, quantity, dtype), w in self.worst.items()
        ]

    def _of_one_number(self) -> bool:
        kinds = list(self.record.domain.kinds.values())
        return len(kinds) == 1 and isinstance(kinds[0], (Logit, Probability))

    def one(self, label: str, dtype: str, arrays: dict[str, Any]) -> None:
        """Everything on one input, already rounded to ``dtype``."""
        wide = jax.tree.map(lambda v: v.astype(np.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v, arrays)
        cotangents = signs(np.random.default_rng(0), np.shape(self.shape(wide)))
        base = self.run(self.function, cotangents, wide, "float64")
        size = self.sizes(cotangents, wide, base[1])
        if dtype != "float64":
            truth = jax.tree.map(lambda v: (v, np.zeros_like(v)), base)
        elif sum(np.size(v) for v in jax.tree.leaves(arrays)) <= EXACT:
            truth = self.exact(cotangents, wide)
        else:
            return
        entries = self.record.underflow * max([1, *(d for v in jax.tree.leaves(arrays) for d in np.shape(v))])
        self.add("xentjax", label, dtype, self.run(self.function, cotangents, arrays, dtype), truth, size, entries)
        if dtype == "float32":
            for library, function in self.others.items():
                self.add(library, label, dtype, self.run(function, cotangents, arrays, dtype), truth, size, entries)
            if "torch" in self.peers:
                self.add("torch", label, dtype, self.torch(cotangents, arrays), truth, size, entries)

    def shape(self, wide: Any) -> Any:
        with jax.enable_x64(True):
            return np.empty(jax.eval_shape(functools.partial(self.call, self.record.function), wide).shape)

    def run(self, function: Any, cotangents: Any, arrays: Any, dtype: str) -> Any:
        with jax.enable_x64(dtype == "float64"):
            found = function(cotangents.astype(jnp.dtype(dtype)), arrays)
            return jax.tree.map(lambda v: np.asarray(v, np.float64), found)

    def torch(self, cotangents: Any, arrays: dict[str, Any]) -> Any:
        import torch

        tensors = {n: torch.tensor(v.astype(np.int64) if v.dtype.kind == "i" else v) for n, v in arrays.items()}
        moving = self.moving(arrays)
        for name in moving:
            tensors[name].requires_grad_()
        value = self.call(self.peers["torch"], tensors)
        (value * torch.tensor(cotangents.astype(np.float32))).sum().backward()
        zero = {n: torch.zeros_like(tensors[n]) for n in moving}
        found: dict[str, Any] = {n: tensors[n].grad for n in moving}
        gradient = {n: (zero[n] if grad is None else grad).numpy() for n, grad in found.items()}
        return value.detach().numpy(), gradient

    def sizes(self, cotangents: Any, wide: Any, base: Any) -> Any:
        """How far each gradient component moves when every input moves by one part: 8 patterns of signs, in pairs in
        which the arguments move with and against each other (what depends on their difference moves in one of them)."""
        step = 2.0**-20
        largest = jax.tree.map(np.zeros_like, base)
        for pattern in range(8):
            rng = np.random.default_rng(pattern // 2)
            steps = {n: -step if pattern % 2 and i % 2 else step for i, n in enumerate(wide)}
            shifted = {n: moved(self.record, n, v, steps[n], rng) if n in base else v for n, v in wide.items()}
            weights = cotangents * (1 + step * rng.choice([-1.0, 1.0], cotangents.shape))
            _, found = self.run(self.function, weights, shifted, "float64")
            with np.errstate(all="ignore"):
                largest = jax.tree.map(lambda m, a, b: np.fmax(m, np.abs(a - b) / step), largest, found, base)
        return largest

    def exact(self, cotangents: Any, wide: Any) -> Any:
        edges = {n: jax.tree.map(lambda v, n=n: inward(self.record, n, v), v) for n, v in wide.items()}
        at_edge = any(e is not None and np.any(e) for e in jax.tree.leaves(edges))
        formula = Formula(self.both(self.record.oracle), cotangents, wide)
        return formula.truth(cotangents, wide, inward=(None, edges) if at_edge else None)

    def add(self, library: str, label: str, dtype: str, got: Any, truth: Any, size: Any, entries: int) -> None:
        (value, gradient), (true_value, true_gradient) = got, truth
        self.tally(library, "value", dtype).add(label, value, true_value, 0.0, entries, dtype)
        for name, leaf in gradient.items():
            for a, true, s in zip(
                jax.tree.leaves(leaf),
                jax.tree.leaves(true_gradient[name], is_leaf=lambda t: type(t) is tuple),
                jax.tree.leaves(size[name]),
                strict=True,
            ):
                self.tally(library, "gradient", dtype).add(f"{name} {label}", a, true, s, entries, dtype)

    def tally(self, library: str, quantity: str, dtype: str) -> Tally:
        return self.worst.setdefault((library, quantity, dtype), Tally())


def _every(dtype: str, kind: Kind) -> np.ndarray:
    """All finite numbers of a 16-bit dtype; for a probability those from 0 to 1."""
    numbers = np.arange(2**16, dtype=np.uint16).view(jnp.dtype(dtype))
    with np.errstate(invalid="ignore"):
        wide = numbers.astype(np.float64)
    inside = (wide >= 0) & (wide <= 1) if isinstance(kind, Probability) else np.isfinite(wide)
    return numbers[inside]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(number: float) -> str:
    return f"{number:.2g}" if number < 100 else f"{number:.1e}"
