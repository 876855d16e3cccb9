"""A record's derivatives and their truths on the cases of its domain: what :mod:`xentjax.core.check` compares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import ulp
from xentjax.core.domains import Case
from xentjax.core.inputs import inward, moved, signs
from xentjax.core.op import Record
from xentjax.core.reference import Formula

ORDERS = ("gradient", "jvp", "hessian")
#: How many times the contract's K each order may be off. The contract says nothing about second derivatives: a
#: product of two first derivatives, each within K, added to another such.
STEPS = {"gradient": 1, "jvp": 1, "hessian": 4}
#: Sizes of the cases: small, because the Hessian is compared whole and in arbitrary precision.
SIZES = {"B": 2, "K": 4, "J": 2, "D": 2}
#: Sizes for the times.
TIMED = {"B": 16, "K": 512, "J": 3, "D": 32}
#: The two oracles differ by no more than this, relatively to an element's size, in the ordinary situation.
ORACLES_AGREE = 1e-9


def groups(record: Record, seed: int) -> list[Group]:
    """The cases of a record's domain, by shapes and options."""
    found: dict[str, list[Case]] = {}
    for case in record.domain.cases(seed, **SIZES):
        found.setdefault(_signature(case), []).append(case)
    result: list[Any] = []
    seen: set[Any] = set()
    for cases in found.values():
        arguments = set(_differentiable(record, cases[0]))
        result.append(Group(record, cases, seed, main=not arguments <= seen))
        seen |= arguments
    return result


class Tally:
    """The worst element so far of one row."""

    def __init__(self) -> None:
        self.cases = self.compared = self.skipped = 0
        self.ratio, self.ulp, self.allowed, self.automatic, self.worst = 0.0, 0.0, math.nan, 0.0, ""
        self.problems: list[str] = []

    def add(
        self, case: Case, place: str, got: Any, truth: Any, size: Any, entries: int, dtype: str, steps: int
    ) -> None:
        """Compare one array, elementwise; elements whose truth is not finite count only where both are the same."""
        high, low = truth
        if got.shape != high.shape:
            self.problems.append(f"{case.situation}{place}: shape {got.shape}, expected {high.shape}")
            return
        got = np.asarray(got, np.float64)
        error = ulp.deviation(got, high, low, dtype)
        size = np.maximum(np.abs(high), np.where(np.isfinite(size), size, 0))
        limit = steps * ulp.tolerance(high, size, entries, dtype)
        narrow = jnp.finfo(dtype).bits == 16
        unit = ulp.spacing(high if narrow else size, dtype)
        known = np.isfinite(high) | ((error == 0) & ~np.isnan(high))
        self.skipped += int(np.sum(~known))
        self.compared += int(np.sum(known))
        ratio = np.where(known, error / limit, 0)
        if ratio.size and (self.allowed != self.allowed or ratio.max() > self.ratio):
            i = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
            self.ratio = float(ratio[i])
            with np.errstate(over="ignore"):
                self.ulp, self.allowed = float(error[i] / unit[i]), float(limit[i] / unit[i])
            index = ", ".join(map(str, map(int, i)))
            self.worst = f"{case.situation}{shown(case.options)}{place}[{index}]: got {got[i]!r}, expected {high[i]!r}"

    def add_automatic(self, got: Any, truth: Any, size: Any) -> None:
        unit = ulp.spacing(np.maximum(np.abs(truth[0]), size), np.float64)
        with np.errstate(over="ignore"):
            error = ulp.deviation(got, truth[0], truth[1], np.float64) / unit
        known = np.isfinite(truth[0])
        self.automatic = max(self.automatic, float(np.max(np.where(known, error, 0), initial=0)))

    @property
    def passed(self) -> bool:
        return self.ratio <= 1 and self.compared > 0 and not self.problems

    @property
    def report(self) -> str:
        """Where the worst element is, or what is wrong altogether."""
        return "; ".join(dict.fromkeys(self.problems)) or (self.worst if self.compared else "nothing could be compared")


class Group:
    """Cases of one shape with the same options: one compiled program for each dtype serves them all.

    The main groups (every situation under the first options, and the first that give an argument at all) run in all
    dtypes; the others, which differ in what is computed and not in how it is rounded, in the widest one.
    """

    def __init__(self, record: Record, cases: list[Case], seed: int, main: bool):
        self.record, self.cases, self.main = record, cases, main
        self.rng = np.random.default_rng(seed)
        self.options = {n: v for n, v in cases[0].options.items() if n not in _differentiable(record, cases[0])}
        first, rest = self.split(cases[0], np.float64)
        with jax.enable_x64(True):
            shapes = jax.eval_shape(lambda a, b: record.oracle(**a, **b, **self.options), first, rest)
        self.cotangents = jax.tree.map(lambda s: signs(self.rng, s.shape), shapes)
        self.tangents = jax.tree.map(lambda v: signs(self.rng, np.shape(v)), first)
        self.hand, self.automatic = (jax.jit(self.derivatives(f)) for f in (record.function, record.oracle))
        self.formula = Formula(self.curvature(record.oracle), self.cotangents, first, rest)
        self.plain = Formula(lambda a, b: record.oracle(**a, **b, **self.options), first, rest)

    def split(self, case: Case, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arrays that are differentiated by, and the others, rounded to ``dtype``."""
        chosen = _differentiable(self.record, case)
        given = {**case.cast(dtype), **{n: np.asarray(case.options[n], dtype) for n in chosen if n in case.options}}
        rest = {n: given[n] for n in case.arrays if n not in chosen}
        return {n: given[n] for n in chosen}, rest

    def curvature(self, function: Any) -> Callable[..., Any]:
        """Gradient and Hessian, per argument, of the outputs' sum weighted with the cotangents."""

        def derivatives(cotangents: Any, moving: dict[str, Any], rest: dict[str, Any]) -> Any:
            def total(moving: dict[str, Any]) -> Any:
                value = function(**moving, **rest, **self.options)
                products = jax.tree.map(lambda c, v: jnp.sum(c.astype(v.dtype) * v), cotangents, value)
                return sum(jax.tree.leaves(products))

            def gradient(moving: dict[str, Any]) -> Any:
                found = jax.grad(total)(moving)
                return found, found

            hessian, found = jax.jacfwd(gradient, has_aux=True)(moving)
            return found, hessian

        return derivatives

    def derivatives(self, function: Any) -> Callable[..., Any]:
        """Gradient, JVP and Hessian, each a dict by argument."""
        curvature = self.curvature(function)

        def all_orders(cotangents: Any, tangents: Any, moving: dict[str, Any], rest: dict[str, Any]) -> Any:
            def along(name: str) -> Any:
                def of(x: Any) -> Any:
                    return function(**{**moving, name: x}, **rest, **self.options)

                return jax.jvp(of, (moving[name],), (tangents[name],))[1]

            gradient, hessian = curvature(cotangents, moving, rest)
            return {"gradient": gradient, "jvp": {n: along(n) for n in moving}, "hessian": hessian}

        return all_orders

    def run(self, function: Any, moving: Any, rest: Any, tangents: Any, dtype: str, cotangents: Any = None) -> Any:
        cast = lambda tree: jax.tree.map(lambda v: np.asarray(v).astype(jnp.dtype(dtype)), tree)
        with jax.enable_x64(dtype == "float64"):
            found = function(
                cast(self.cotangents if cotangents is None else cotangents), cast(tangents), cast(moving), rest
            )
            return jax.tree.map(lambda v: np.asarray(v, np.float64), found)

    def sizes(self, moving: Any, rest: Any, tangents: Any, base: Any) -> Any:
        """How far each result moves, at most, for moves of every number by one part, tangents and cotangents too: 4
        patterns of signs.

        A JVP is at least of the size of the terms that it sums up: of the JVP along the tangents with the gradient's
        signs.
        """
        step, rng = 2.0**-20, np.random.default_rng(1)
        largest = jax.tree.map(np.zeros_like, base)
        for _ in range(4):
            shifted = {n: moved(self.record, n, v, step, rng) for n, v in moving.items()}
            along, against = (
                jax.tree.map(lambda v: v * (1 + step * rng.choice([-1.0, 1.0], np.shape(v))), tree)
                for tree in (tangents, self.cotangents)
            )
            found = self.run(self.hand, shifted, rest, along, "float64", against)
            with np.errstate(all="ignore"):
                largest = jax.tree.map(lambda m, a, b: np.fmax(m, np.abs(a - b) / step), largest, found, base)
        with np.errstate(all="ignore"):
            directions = {n: jax.tree.map(np.sign, base["gradient"][n]) for n in tangents}
            aligned = jax.tree.map(lambda t, s: np.abs(t) * np.where(np.isnan(s), 0, s), tangents, directions)
            terms = self.run(self.hand, moving, rest, aligned, "float64")["jvp"]
            largest["jvp"] = jax.tree.map(lambda m, t: np.fmax(m, np.abs(t)), largest["jvp"], terms)
        return jax.tree.map(lambda m: np.where(np.isfinite(m), m, 0), largest)

    def tally(self, dtypes: Sequence[str], tallies: dict[Any, Tally]) -> None:
        for case in self.cases:
            widest = max(dtypes, key=lambda d: jnp.finfo(d).bits)
            for dtype in dtypes if self.main else (widest,):
                moving, rest = self.split(case, jnp.dtype(dtype))
                moving = jax.tree.map(lambda v: np.asarray(v).astype(np.float64), moving)
                tangents = jax.tree.map(lambda t, v: np.where(np.isfinite(v) & (v != 0), t, 0), self.tangents, moving)
                wide = {n: v.astype(np.float64) if _is_float(v) else v for n, v in rest.items()}
                base = self.run(self.hand, moving, wide, tangents, "float64")
                sizes = self.sizes(moving, wide, tangents, base)
                if dtype == "float64":
                    got, truth = base, self.truth(moving, wide, tangents)
                    if self.main:
                        automatic = self.run(self.automatic, moving, wide, tangents, "float64")
                        self.compare_oracles(case, automatic, truth, sizes, tallies)
                else:
                    got = self.run(self.hand, moving, rest, tangents, dtype)
                    truth = jax.tree.map(lambda v: (v, np.zeros_like(v)), base)
                self.compare(case, dtype, got, truth, sizes, tallies)

    def truth(self, moving: Any, rest: Any, tangents: Any) -> Any:
        """Gradients and Hessians by automatic differentiation of the formula, JVPs by finite differences, exactly."""
        edges = {n: jax.tree.map(lambda v, n=n: inward(self.record, n, v), v) for n, v in {**moving, **rest}.items()}
        at_edge = any(d is not None and np.any(d) for d in jax.tree.leaves(edges))
        inside = ({n: edges[n] for n in moving}, {n: edges[n] for n in rest}) if at_edge else None
        unmoved = jax.tree.map(lambda c: None, self.cotangents)
        gradient, hessian = self.formula.truth(self.cotangents, moving, rest, inward=inside and (unmoved, *inside))
        still = jax.tree.map(lambda v: None, rest)
        slopes = {}
        for name in moving:
            along = {n: t if n == name else jax.tree.map(np.zeros_like, t) for n, t in tangents.items()}
            slopes[name] = self.plain.slope((moving, rest), (along, still), inward=inside)
        return {"gradient": gradient, "jvp": slopes, "hessian": hessian}

    def compare(self, case: Case, dtype: str, got: Any, truth: Any, sizes: Any, tallies: dict[Any, Tally]) -> None:
        entries = max([1, *(d for v in jax.tree.leaves(case.arrays) for d in np.shape(v))])
        for order in ORDERS:
            for argument in got[order]:
                tally = tallies[argument, order, dtype]
                tally.cases += 1
                slopes = jax.tree.leaves(truth["gradient"][argument], is_leaf=_is_pair)
                infinite = not all(np.all(np.isfinite(t[0])) for t in slopes)
                paths = jax.tree_util.tree_flatten_with_path(got[order][argument])[0]
                trues = jax.tree.leaves(truth[order][argument], is_leaf=_is_pair)
                moves = jax.tree.leaves(sizes[order][argument])
                for i, ((path, leaf), true, size) in enumerate(zip(paths, trues, moves, strict=True)):
                    known = np.ones(leaf.shape, bool)
                    if order == "jvp" and infinite:  # 0·∞ along directions that leave an infinite slope alone
                        known = np.isfinite(leaf)
                    if order == "hessian":  # an infinite slope has no derivative
                        slope = np.isfinite(slopes[i * len(slopes) // len(paths)][0])
                        known = np.broadcast_to(
                            slope.reshape(slope.shape + (1,) * (leaf.ndim - slope.ndim)), leaf.shape
                        )
                        known = known & (np.isfinite(leaf) | ~infinite)
                    true = (np.where(known, true[0], np.nan), true[1])
                    tally.add(case, jax.tree_util.keystr(path), leaf, true, size, entries, dtype, STEPS[order])

    def compare_oracles(self, case: Case, automatic: Any, truth: Any, sizes: Any, tallies: dict[Any, Tally]) -> None:
        for order in ORDERS:
            for argument in automatic[order]:
                trues = jax.tree.leaves(truth[order][argument], is_leaf=_is_pair)
                moves = jax.tree.leaves(sizes[order][argument])
                for leaf, true, size in zip(jax.tree.leaves(automatic[order][argument]), trues, moves, strict=True):
                    tally = tallies.get((argument, order, "float64"))
                    if tally is None:
                        continue
                    tally.add_automatic(leaf, true, size)
                    if case.situation == "unit":
                        far = np.abs(leaf - true[0]) > ORACLES_AGREE * np.maximum(
                            1e-3, np.maximum(np.abs(true[0]), size)
                        )
                        if np.any(far):
                            tally.problems.append(
                                f"{shown(case.options)}: automatic differentiation in float64 and the reference differ"
                            )


def _is_pair(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and all(isinstance(n, np.ndarray) for n in node)


def _differentiable(record: Record, case: Case) -> list[str]:
    """The arguments to differentiate by: of ``wrt``, those that the case gives as floats, numbers among the options
    included."""
    given = {**case.options, **case.arrays}
    return [n for n in record.wrt if n in given and all(map(_is_float, jax.tree.leaves(given[n]) or [0]))]


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(np.asarray(value).dtype, jnp.floating)


def _signature(case: Case) -> str:
    shapes = {n: jax.tree.map(lambda v: (np.shape(v), str(np.asarray(v).dtype)), v) for n, v in case.arrays.items()}
    return repr((shapes, sorted(case.options.items(), key=lambda item: item[0])))


def shown(options: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{n}={v}" for n, v in options.items()) + ")" if options else ""


def time_gradients(record: Record, seed: int) -> tuple[float, float]:
    """Median run times of the compiled gradient, hand-derived and automatic, in float32, taken in turns."""
    case = record.domain.case(np.random.default_rng(seed), "unit", record.domain.options[0], **TIMED)
    arrays = {n: v for n, v in case.cast(np.float32).items() if n in case.arrays}
    chosen = [n for n in _differentiable(record, case) if n in arrays]
    moving = jax.device_put({n: arrays[n] for n in chosen})
    rest = jax.device_put({n: v for n, v in arrays.items() if n not in chosen})
    compiled = []
    for function in (record.function, record.oracle):

        def total(moving: Any, rest: Any, function: Any = function) -> Any:
            return sum(jnp.sum(v) for v in jax.tree.leaves(function(**moving, **rest, **case.options)))

        compiled.append(jax.jit(jax.grad(total)))
        jax.block_until_ready(compiled[-1](moving, rest))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(7):
        for function, taken in zip(compiled, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(moving, rest))
            taken.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))
