"""The inputs on which a function's accuracy is measured, and its errors there.

Each record is run on every situation of its domain, with every option set of it: over 2 and 7 entries, and, where an
option set says no more than what the arguments are, over 32,000; with logits of standard deviations from 1e-3 to 1e4;
functions of one number on every float16 and bfloat16 there is.

The truth is the plain formula in arbitrary precision, on the inputs as they are rounded to the dtype.  There is no time
for it everywhere: with further option sets 16 bits are compared with our float64 result, which is compared with
arbitrary precision beside it, and so are all numbers of 16 bits, and 32,000 entries in the situation "huge".  Functions
of more than one array of 32,000 entries are compared with arbitrary precision over 2,000 instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax import peers
from xentjax.core.derivatives import COMPILED_FAST
from xentjax.core.domains import SITUATIONS, Case, Kind, Logit, Logits, Probability
from xentjax.core.inputs import edges, largest_moves, signs
from xentjax.core.record import Record
from xentjax.core.reference import Formula
from xentjax.core.tally import Tally

#: Numbers of entries, and of examples for each.
SIZES = {2: 8, 7: 4, 32000: 1}
QUICK = {7: 4}
#: Of further option sets.
FURTHER = 7
#: So many numbers, and entries where there would be more, are taken in arbitrary precision.
EXACT = 40_000
FEWER = 2000
#: Only this many situations differ over many entries.
OF_MANY = ("unit", "huge", "dominant")
#: Logits in the situation "huge" have a standard deviation of 1e3; the sweep goes on to 1e4.
WIDER = 10


class Sweep:
    """All inputs of one record with one option set, and the worst errors there."""

    def __init__(self, record: Record, number: int, dtypes: tuple[str, ...], seed: int, quick: bool, worst: Any):
        self.record, self.dtypes, self.quick, self.number = record, dtypes, quick, number
        self.rng = np.random.default_rng([seed, number])
        self.given = record.domain.options[number]
        self.options = {n: v for n, v in self.given.items() if not isinstance(v, Kind)}
        self.kinds = {**record.domain.kinds, **{n: v for n, v in self.given.items() if isinstance(v, Kind)}}
        self.peers = peers.of(record.name) if number == 0 else {}
        self.worst: dict[tuple[str, str, str], Tally] = worst
        self.formulas: dict[Any, Formula] = {}
        self.functions = {
            dtype: jax.jit(
                self.both(self.call(record.function)),
                compiler_options=COMPILED_FAST if jnp.finfo(dtype).bits == 16 else None,
            )
            for dtype in {*dtypes, "float64"}
        }
        #: The value as it is without derivatives, where the record has another way to it.
        self.alone = {d: jax.jit(self.call(record.function)) for d in dtypes} if record.has_value_alone else {}
        #: Whether it averages over examples of which each has a weight.
        self.is_mean = self.options.get("reduction") == "mean" or "weights" in record.own
        self.others = {lib: jax.jit(self.both(self.positional(f))) for lib, f in self.peers.items() if lib != "torch"}

    def call(self, function: Any) -> Callable[..., Any]:
        return lambda arrays: function(**arrays, **self.options)

    def positional(self, function: Any) -> Callable[..., Any]:
        return lambda arrays: function(*(arrays[n] for n in self.record.domain.kinds), **self.options)

    def both(self, function: Any) -> Callable[..., Any]:
        """Value, and gradients of its sum weighted with ``cotangents``."""

        def evaluate(cotangents: Any, arrays: dict[str, Any]) -> Any:
            moving = {n: v for n, v in arrays.items() if n in self.moving(arrays)}

            def total(moving: Any) -> Any:
                value = function({**arrays, **moving})
                return jnp.sum(value * cotangents.astype(value.dtype)), value

            (_, value), gradient = jax.value_and_grad(total, has_aux=True)(moving)
            return value, gradient

        return evaluate

    def moving(self, arrays: dict[str, Any]) -> list[str]:
        floats = lambda v: all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(v))
        return [n for n in self.record.wrt if n in arrays and floats(arrays[n])]

    # -- inputs --------------------------------------------------------------------------------------------------------

    def inputs(self) -> Iterator[tuple[str, Case]]:
        """Cases to evaluate."""
        letters = [kind.shape.split() for kind in self.kinds.values()]
        entries = any("K" in shape for shape in letters)
        single = all(len(shape) <= 1 for shape in letters)
        simple = self.number == 0 or set(self.given) <= set(self.record.domain.kinds)
        for size, examples in (QUICK if self.quick else SIZES).items():
            if (size != FURTHER and not entries) or (size < FURTHER and self.number) or (size > FURTHER and not simple):
                continue
            for situation in SITUATIONS if size <= FURTHER else OF_MANY:
                if situation == "corner" and not simple:
                    continue  # the truth there is a limit, of the formula alone: options may have none, or another
                sizes = {"K": size, "B": 64 if single else examples, "D": 3, "J": 2}
                numbers = sum(math.prod(kind.dims(sizes)) for kind in self.kinds.values())
                if numbers > EXACT and situation != "huge":
                    sizes["K"] = FEWER
                case = self.record.domain.case(self.rng, situation, self.given, **sizes)
                shown = "".join(
                    f", {n}={type(v).__name__ if isinstance(v, Kind) else v}" for n, v in self.given.items()
                )
                label = (f"{situation}, {sizes['K']} entries" if entries else situation) + shown
                yield label, case
                if situation == "huge" and any(isinstance(k, Logits) for k in self.kinds.values()):
                    wider = {n: v * WIDER if isinstance(self.kinds[n], Logits) else v for n, v in case.arrays.items()}
                    yield label.replace("huge", "sd 1e4", 1), Case("huge", wider, case.options)

    def run_all(self) -> None:
        for label, case in self.inputs():
            self.of_case(label, case)
        kinds = list(self.record.domain.kinds.values())
        if not self.quick and not self.number and len(kinds) == 1 and isinstance(kinds[0], (Logit, Probability)):
            for dtype in self.dtypes:
                if jnp.finfo(dtype).bits == 16:
                    (name, kind) = next(iter(self.record.domain.kinds.items()))
                    self.one("every number", [dtype], {name: every(dtype, kind)}, exactly=False)

    def of_case(self, label: str, case: Case) -> None:
        rounded = lambda dtype: {n: v for n, v in case.cast(jnp.dtype(dtype)).items() if n in case.arrays}
        many = max(np.size(v) for v in jax.tree.leaves(case.arrays)) > 1000
        if not many and not self.number:
            for dtype in self.dtypes:
                self.one(label, [dtype], rounded(dtype), exactly=True)
            return
        wide = [d for d in self.dtypes if jnp.finfo(d).bits > 16]
        if wide:  # one truth serves 32 and 64 bits
            self.one(label, wide, rounded("float32"), exactly=not (many and case.situation == "huge"))
        for dtype in (d for d in self.dtypes if d not in wide):
            self.one(label, [dtype], rounded(dtype), exactly=False)

    # -- errors --------------------------------------------------------------------------------------------------------

    def one(self, label: str, dtypes: list[str], arrays: dict[str, Any], exactly: bool) -> None:
        """Everything on one input, already rounded."""
        wide = _as(np.float64, arrays)
        cotangents = signs(np.random.default_rng(0), self.shape(wide))
        base = self.run(self.functions["float64"], cotangents, wide, "float64")
        size = self.sizes(cotangents, wide, base)
        value_size = self.size_of_value(cotangents, wide, base[0])
        truth = self.exact(cotangents, wide) if exactly else jax.tree.map(lambda v: (v, np.zeros_like(v)), base)
        entries = max([1, *(d for v in jax.tree.leaves(arrays) for d in np.shape(v))])
        for dtype in dtypes:
            given = _as(jnp.dtype(dtype), arrays)
            found = {"xentjax": self.run(self.functions[dtype], cotangents, given, dtype)}
            if dtype == "float32":
                found |= {library: self.run(f, cotangents, given, dtype) for library, f in self.others.items()}
                if "torch" in self.peers:
                    found["torch"] = self.torch(cotangents, given)
            flushed = self.record.underflow * entries
            for library, got in found.items():
                self.add(library, label, dtype, got, truth, (value_size, size), flushed)
            if dtype in self.alone:
                with jax.enable_x64(dtype == "float64"):
                    value = np.asarray(self.alone[dtype](given), np.float64)
                self.tally("xentjax", "value", dtype).add(
                    f"alone, {label}", value, truth[0], value_size, flushed, dtype
                )

    def shape(self, wide: Any) -> tuple[int, ...]:
        with jax.enable_x64(True):
            return jax.eval_shape(self.call(self.record.function), wide).shape  # type: ignore[no-any-return]

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
        value = self.positional(self.peers["torch"])(tensors)
        (value * torch.tensor(cotangents.astype(np.float32))).sum().backward()
        zero = {n: torch.zeros_like(tensors[n]) for n in moving}
        found: dict[str, Any] = {n: tensors[n].grad for n in moving}
        gradient = {n: (zero[n] if grad is None else grad).numpy() for n, grad in found.items()}
        return value.detach().numpy(), gradient

    def sizes(self, cotangents: Any, wide: Any, base: Any) -> Any:
        """How far each gradient component moves when every input moves by one part, the weights of a mean, too.

        The slope of a mean by a weight is (ℓ_i - L)/Σs, a difference of losses: at least of the size of L/Σs.
        """
        value, gradient = base
        moving = {n: wide[n] for n in gradient}
        if self.is_mean and "weights" not in moving:
            rows = next(len(wide[n]) for n, kind in self.kinds.items() if kind.shape.startswith("B"))
            moving["weights"] = np.ones(rows)
        rest = {n: v for n, v in wide.items() if n not in moving}

        def run(moving: Any, factors: Any) -> Any:
            found = self.run(self.functions["float64"], factors, {**rest, **moving}, "float64")[1]
            return {n: found[n] for n in gradient}

        found = largest_moves(self.record, run, gradient, moving, cotangents)
        if self.is_mean and "weights" in gradient:
            found["weights"] = np.fmax(found["weights"], np.abs(value) / np.abs(np.sum(moving["weights"])))
        return found

    def size_of_value(self, cotangents: Any, wide: Any, value: Any) -> Any:
        """The value's own size; where weights of both signs multiply what it sums, that of the terms: how far it moves
        when they move by one part."""
        weights = {n: wide[n] for n in ("weights", "class_weights") if n in wide}
        if not weights:
            return np.zeros_like(value)
        rest = {n: v for n, v in wide.items() if n not in weights}
        run = lambda moving, _: self.run(self.functions["float64"], cotangents, {**rest, **moving}, "float64")[0]
        return largest_moves(self.record, run, value, weights, ())

    def exact(self, cotangents: Any, wide: Any) -> Any:
        key = repr(jax.tree.map(np.shape, wide))
        if key not in self.formulas:
            self.formulas[key] = Formula(self.both(self.call(self.record.oracle)), cotangents, wide)
        inward = edges(self.record, wide)
        return self.formulas[key].truth(cotangents, wide, inward=inward and (None, inward))

    def add(self, library: str, label: str, dtype: str, got: Any, truth: Any, size: Any, flushed: float) -> None:
        (value, gradient), (true_value, true_gradient), (value_size, size) = got, truth, size
        self.tally(library, "value", dtype).add(label, value, true_value, value_size, flushed, dtype)
        for name, leaf in gradient.items():
            is_pair = lambda t: type(t) is tuple
            trues, moves = jax.tree.leaves(true_gradient[name], is_leaf=is_pair), jax.tree.leaves(size[name])
            for a, true, s in zip(jax.tree.leaves(leaf), trues, moves, strict=True):
                self.tally(library, "gradient", dtype).add(f"{name} {label}", a, true, s, flushed, dtype)

    def tally(self, library: str, quantity: str, dtype: str) -> Tally:
        return self.worst.setdefault((library, quantity, dtype), Tally())


def every(dtype: str, kind: Kind) -> np.ndarray:
    """All finite numbers of a 16-bit dtype; for a probability those from 0 to 1."""
    numbers = np.arange(2**16, dtype=np.uint16).view(jnp.dtype(dtype))
    with np.errstate(invalid="ignore"):
        wide = numbers.astype(np.float64)
    inside = (wide >= 0) & (wide <= 1) if isinstance(kind, Probability) else np.isfinite(wide)
    return numbers[inside]


def _as(dtype: Any, arrays: Any) -> Any:
    floats = functools.partial(jnp.issubdtype, arg2=jnp.floating)
    return jax.tree.map(lambda v: np.asarray(v).astype(dtype) if floats(np.asarray(v).dtype) else v, arrays)
