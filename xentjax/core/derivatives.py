"""A record's derivatives and their truths on the cases of its domain: what :mod:`xentjax.core.check` compares."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import ulp
from xentjax.core.closed_forms import KINDS, ClosedForms
from xentjax.core.domains import Case
from xentjax.core.inputs import edges, largest_moves, signs
from xentjax.core.record import Record
from xentjax.core.reference import Formula
from xentjax.core.tally import Tally

#: What is compared, and how many times the contract's K it may be off. The contract says nothing about second
#: derivatives: a product of two first derivatives, each within K, added to another such.
ORDERS = {"gradient": 1, "jvp": 1, "hessian": 4}
#: Sizes of the cases: small, because the Hessian is compared whole and in arbitrary precision.
SIZES = {"B": 2, "K": 4, "J": 2, "D": 2}
#: Sizes for the times.
TIMED = {"B": 16, "K": 512, "J": 3, "D": 32}
#: The two oracles differ by no more than this, relatively to an element's size, in the ordinary situation.
ORACLES_AGREE = 1e-9
#: How to compile in less time: no less is computed, but by slower machine code. For the formulas that are compared
#: with, and for 16 bits, where what counts is which numbers are rounded, and when.
COMPILED_FAST = {"xla_backend_optimization_level": 0}


class Derivatives(Tally):
    """The row of one derivative with respect to one argument, and the worst error of the automatic one."""

    def __init__(self) -> None:
        super().__init__()
        self.cases, self.automatic = 0, 0.0

    def add_automatic(self, got: Any, truth: Any, size: Any) -> None:
        unit = ulp.spacing(np.maximum(np.abs(truth[0]), size), np.float64)
        with np.errstate(over="ignore"):
            error = ulp.deviation(got, truth[0], truth[1], np.float64) / unit
        known = np.isfinite(truth[0])
        self.automatic = max(self.automatic, float(np.max(np.where(known, error, 0), initial=0)))


class Group:
    """Cases of one shape with the same options: one compiled program for each dtype serves them all.

    In the main groups, the first that give an argument at all, the oracles are compared with each other too.
    """

    orders = ORDERS

    def __init__(self, record: Record | ClosedForms, cases: list[Case], seed: int, main: bool):
        self.record, self.cases, self.main = record, cases, main
        self.rng = np.random.default_rng(seed)
        self.options = {n: v for n, v in cases[0].options.items() if n not in _differentiable(record, cases[0])}
        self.first = self.split(cases[0], np.float64)
        with jax.enable_x64(True):
            shapes = jax.eval_shape(self.plain, *self.first)
        self.cotangents = jax.tree.map(lambda s: signs(self.rng, s.shape), shapes)
        self.tangents = jax.tree.map(lambda v: signs(self.rng, np.shape(v)), self.first[0])

    def split(self, case: Case, dtype: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arrays that are differentiated by, and the others, rounded to ``dtype``."""
        chosen = _differentiable(self.record, case)
        given = {**case.cast(dtype), **{n: np.asarray(case.options[n], dtype) for n in chosen if n in case.options}}
        rest = {n: given[n] for n in case.arrays if n not in chosen}
        return {n: given[n] for n in chosen}, rest

    def plain(self, moving: dict[str, Any], rest: dict[str, Any]) -> Any:
        """The textbook formula."""
        return _floats(self.record.oracle(**moving, **rest, **self.options))

    def derivatives(self, function: Any) -> Callable[..., Any]:
        """Gradient of the outputs' sum weighted with the cotangents, Hessian of it, and JVP along the tangents, each a
        dict by argument, all from one trace of the function."""

        def all_orders(cotangents: Any, tangents: Any, moving: dict[str, Any], rest: dict[str, Any]) -> Any:
            def first_order(moving: dict[str, Any]) -> Any:
                value, push = jax.linearize(lambda m: _floats(function(**m, **rest, **self.options)), moving)
                weights = jax.tree.map(lambda c, v: c.astype(v.dtype), cotangents, value)
                (gradient,) = jax.linear_transpose(push, moving)(weights)
                still = jax.tree.map(jnp.zeros_like, moving)
                return gradient, (gradient, {n: push({**still, n: t}) for n, t in tangents.items()})

            hessian, (gradient, along) = jax.jacfwd(first_order, has_aux=True)(moving)
            return {"gradient": gradient, "jvp": along, "hessian": hessian}

        return all_orders

    # -- compiled programs ---------------------------------------------------------------------------------------------

    def compile(self, pool: Executor, device: Any, dtypes: Sequence[str]) -> None:
        """Start to compile what :meth:`tally` runs: the record in every dtype, the formula in float64."""
        self.device = device
        hand, formula = self.programs()
        self.hand = {}
        for dtype in dict.fromkeys((*dtypes, "float64")):
            options = COMPILED_FAST if jnp.finfo(dtype).bits == 16 else {}
            self.hand[dtype] = pool.submit(self.compiled, hand, dtype, options)
        if self.main and "float64" in dtypes:
            self.automatic = pool.submit(self.compiled, formula, "float64", COMPILED_FAST)

    def programs(self) -> tuple[Any, Any]:
        """What is derived by hand, and the same by automatic differentiation of the formula."""
        return self.derivatives(self.record.function), self.derivatives(self.record.oracle)

    def compiled(self, program: Any, dtype: str, options: dict[str, Any]) -> Any:
        with jax.enable_x64(dtype == "float64"), jax.default_device(self.device):
            moving, rest = self.split(self.cases[0], jnp.dtype(dtype))
            cotangents, tangents = _cast((self.cotangents, self.tangents), dtype)
            traced = jax.jit(program).lower(cotangents, tangents, moving, rest)
            return traced.compile(compiler_options=options)

    def run(
        self, program: Future[Any], moving: Any, rest: Any, tangents: Any, dtype: str, cotangents: Any = None
    ) -> Any:
        weights = self.cotangents if cotangents is None else cotangents
        with jax.enable_x64(dtype == "float64"), jax.default_device(self.device):
            found = program.result()(*_cast((weights, tangents, moving), dtype), rest)
            return jax.tree.map(lambda v: np.asarray(v, np.float64), found)

    # -- truths --------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def formulas(self) -> tuple[Formula, Formula]:
        """Value, and gradient and Hessian, of the textbook formula."""
        curvature = self.derivatives(self.record.oracle)
        both = Formula(lambda c, moving, rest: curvature(c, {}, moving, rest), self.cotangents, *self.first)
        return Formula(self.plain, *self.first), both

    def truth(self, moving: Any, rest: Any, tangents: Any) -> Any:
        """Gradients and Hessians by automatic differentiation of the formula, JVPs by finite differences, exactly."""
        value, derivatives = self.formulas
        at = edges(self.record, {**moving, **rest})
        inside = at and ({n: at[n] for n in moving}, {n: at[n] for n in rest})
        unmoved = jax.tree.map(lambda c: None, self.cotangents)
        found = derivatives.truth(self.cotangents, moving, rest, inward=inside and (unmoved, *inside))
        still = jax.tree.map(lambda v: None, rest)
        slopes = {}
        for name in moving:
            along = {n: t if n == name else jax.tree.map(np.zeros_like, t) for n, t in tangents.items()}
            slopes[name] = value.slope((moving, rest), (along, still), inward=inside)
        return {**found, "jvp": slopes}

    def sizes(self, moving: Any, rest: Any, tangents: Any, base: Any) -> Any:
        """How far each result moves, at most, for moves of every number by one part, tangents and cotangents too.

        A JVP is at least of the size of the terms that it sums up: of the JVP along the tangents with the gradient's
        signs.
        """

        def run(moving: Any, factors: Any) -> Any:
            along, against = factors
            return self.run(self.hand["float64"], moving, rest, along, "float64", against)

        largest = largest_moves(self.record, run, base, moving, (tangents, self.cotangents))
        with np.errstate(all="ignore"):
            directions = {n: jax.tree.map(np.sign, base["gradient"][n]) for n in tangents}
            aligned = jax.tree.map(lambda t, s: np.abs(t) * np.where(np.isnan(s), 0, s), tangents, directions)
            terms = self.run(self.hand["float64"], moving, rest, aligned, "float64")["jvp"]
            largest["jvp"] = jax.tree.map(lambda m, t: np.fmax(m, np.abs(t)), largest["jvp"], terms)
        return jax.tree.map(lambda m: np.where(np.isfinite(m), m, 0), largest)

    # -- the comparison ------------------------------------------------------------------------------------------------

    def tally(self, dtypes: Sequence[str], tallies: dict[Any, Derivatives]) -> None:
        for case in self.cases:
            for dtype in dtypes:
                moving, rest = self.split(case, jnp.dtype(dtype))
                moving = jax.tree.map(lambda v: np.asarray(v).astype(np.float64), moving)
                tangents = jax.tree.map(lambda t, v: np.where(np.isfinite(v) & (v != 0), t, 0), self.tangents, moving)
                wide = jax.tree.map(lambda v: v.astype(np.float64) if _is_float(v) else v, rest)
                base = self.run(self.hand["float64"], moving, wide, tangents, "float64")
                sizes = self.sizes(moving, wide, tangents, base)
                if dtype == "float64":
                    got, truth = base, self.truth(moving, wide, tangents)
                    if self.main:
                        automatic = self.run(self.automatic, moving, wide, tangents, "float64")
                        self.compare_oracles(case, automatic, truth, sizes, tallies)
                else:
                    got = self.run(self.hand[dtype], moving, rest, tangents, dtype)
                    truth = jax.tree.map(lambda v: (v, np.zeros_like(v)), base)
                self.compare(case, dtype, got, truth, sizes, tallies)

    def compare(
        self, case: Case, dtype: str, got: Any, truth: Any, sizes: Any, tallies: dict[Any, Derivatives]
    ) -> None:
        entries = max([1, *(d for v in jax.tree.leaves(case.arrays) for d in np.shape(v))])
        flushed = self.record.underflow * entries
        for order, steps in self.orders.items():
            for argument in got[order]:
                tally = tallies[argument, order, dtype]
                tally.cases += 1
                slopes = jax.tree.leaves(truth.get("gradient", {}).get(argument), is_leaf=_is_pair)
                infinite = not all(np.all(np.isfinite(t[0])) for t in slopes)
                paths = jax.tree_util.tree_flatten_with_path(got[order][argument])[0]
                trues = jax.tree.leaves(truth[order][argument], is_leaf=_is_pair)
                moves = jax.tree.leaves(sizes[order][argument])
                for i, ((path, leaf), true, size) in enumerate(zip(paths, trues, moves, strict=True)):
                    known = np.ones(leaf.shape, bool)
                    if order == "jvp" and infinite:  # 0·∞ along directions that leave an infinite slope alone
                        known = np.isfinite(leaf)
                    if order == "hessian" and infinite:  # an infinite slope has no derivative
                        slope = np.isfinite(slopes[i * len(slopes) // len(paths)][0])
                        known = np.broadcast_to(
                            slope.reshape(slope.shape + (1,) * (leaf.ndim - slope.ndim)), leaf.shape
                        )
                        known = known & np.isfinite(leaf)
                    true = (np.where(known, true[0], np.nan), true[1])
                    place = f"{case.situation}{shown(case.options)}{jax.tree_util.keystr(path)}"
                    tally.add(place, leaf, true, size, flushed, dtype, steps, products=self.record.is_whole)

    def compare_oracles(
        self, case: Case, automatic: Any, truth: Any, sizes: Any, tallies: dict[Any, Derivatives]
    ) -> None:
        for order in self.orders:
            for argument in automatic[order]:
                trues = jax.tree.leaves(truth[order][argument], is_leaf=_is_pair)
                moves = jax.tree.leaves(sizes[order][argument])
                tally = tallies[argument, order, "float64"]
                for leaf, true, size in zip(jax.tree.leaves(automatic[order][argument]), trues, moves, strict=True):
                    tally.add_automatic(leaf, true, size)
                    scale = np.maximum(1e-3, np.maximum(np.abs(true[0]), size))
                    if case.situation == "unit" and np.any(np.abs(leaf - true[0]) > ORACLES_AGREE * scale):
                        tally.problems.append(
                            f"{shown(case.options)}: automatic differentiation in float64 and the reference differ"
                        )


class FormGroup(Group):
    """Cases of closed forms, with what each of them is of the plain formula as the truth."""

    record: ClosedForms

    def __init__(self, record: ClosedForms, cases: list[Case], seed: int, main: bool):
        super().__init__(record, cases, seed, main)
        self.orders = {name: KINDS[form.kind].steps for name, form in record.forms.items()}

    def programs(self) -> tuple[Any, Any]:
        return self.of_all(self.record.function), self.of_all(self.record.plain)

    def of_all(self, function: Any) -> Callable[..., Any]:
        """Each form with the parameters as its argument, along the tangents where it takes a direction."""
        (name,) = self.record.wrt

        def forms(cotangents: Any, tangents: Any, moving: dict[str, Any], rest: dict[str, Any]) -> Any:
            found = function(moving[name], tangents[name], **rest, **self.options)
            return {form: {name: value} for form, value in found.items()}

        return forms

    @functools.cached_property
    def formulas(self) -> tuple[Formula, Formula]:
        """What slopes are taken of, and all else."""
        arguments = (self.cotangents, self.tangents, *self.first)
        below, others = self.of_all(self.record.plain_below_slopes), self.of_all(self.record.plain_but_slopes)
        return Formula(below, *arguments), Formula(others, *arguments)

    def truth(self, moving: Any, rest: Any, tangents: Any) -> Any:
        """By automatic differentiation of the formula, slopes along the direction by finite differences, exactly."""
        below, others = self.formulas
        arguments = (self.cotangents, tangents, moving, rest)
        still = jax.tree.map(lambda v: None, (self.cotangents, tangents, rest))
        return others.truth(*arguments) | below.slope(arguments, (still[0], still[1], tangents, still[2]))

    def sizes(self, moving: Any, rest: Any, tangents: Any, base: Any) -> Any:
        """How far each result moves, at most, for moves of every number, the data's too, by one part."""
        floats = {n: v for n, v in rest.items() if _is_float(v)}

        def run(everything: Any, tangents: Any) -> Any:
            data = {**rest, **{n: everything[n] for n in floats}}
            return self.run(self.hand["float64"], {n: everything[n] for n in moving}, data, tangents, "float64")

        largest = largest_moves(self.record, run, base, {**moving, **floats}, tangents)
        return jax.tree.map(lambda m: np.where(np.isfinite(m), m, 0), largest)


def groups(record: Record | ClosedForms, seed: int) -> list[Group]:
    """The cases of a record's domain, by shapes and options."""
    found: dict[str, list[Case]] = {}
    for case in record.domain.cases(seed, **SIZES):
        found.setdefault(_signature(case), []).append(case)
    if isinstance(record, ClosedForms):
        return [FormGroup(record, cases, seed, main=True) for cases in found.values()]
    result: list[Group] = []
    seen: set[str] = set()
    for cases in found.values():
        arguments = set(_differentiable(record, cases[0]))
        result.append(Group(record, cases, seed, main=not arguments <= seen))
        seen |= arguments
    return result


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda v: np.asarray(v).astype(jnp.dtype(dtype)), tree)


def _is_pair(node: Any) -> bool:
    return isinstance(node, tuple) and len(node) == 2 and all(isinstance(n, np.ndarray) for n in node)


def _differentiable(record: Record | ClosedForms, case: Case) -> list[str]:
    """The arguments to differentiate by: of ``wrt``, those that the case gives as floats, numbers among the options
    included."""
    given = {**case.options, **case.arrays}
    return [n for n in record.wrt if n in given and all(map(_is_float, jax.tree.leaves(given[n]) or [0]))]


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating)


def _floats(outputs: Any) -> Any:
    """The outputs without integers, which have no derivative."""
    return jax.tree.map(lambda v: v if _is_float(v) else None, outputs)


def _signature(case: Case) -> str:
    shapes = {n: jax.tree.map(lambda v: (np.shape(v), str(np.asarray(v).dtype)), v) for n, v in case.arrays.items()}
    return repr((shapes, sorted(case.options.items(), key=lambda item: item[0])))


def shown(options: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{n}={v}" for n, v in options.items()) + ")" if options else ""


class Timing:
    """The record's gradient and the automatic one in float32, compiled."""

    def __init__(self, record: Record, seed: int, pool: Executor, device: Any):
        self.record, self.device = record, device
        self.case = record.domain.case(np.random.default_rng(seed), "unit", record.domain.options[0], **TIMED)
        arrays = {n: v for n, v in self.case.cast(np.float32).items() if n in self.case.arrays}
        chosen = [n for n in _differentiable(record, self.case) if n in arrays]
        self.moving = {n: arrays[n] for n in chosen}
        self.rest = {n: v for n, v in arrays.items() if n not in chosen}
        self.programs = [pool.submit(self.compiled, f) for f in (record.function, record.oracle)]

    def compiled(self, function: Any) -> Any:
        def total(moving: Any, rest: Any) -> Any:
            return sum(jnp.sum(v) for v in jax.tree.leaves(function(**moving, **rest, **self.case.options)))

        with jax.default_device(self.device):
            return jax.jit(jax.grad(total)).lower(self.moving, self.rest).compile()

    def seconds(self) -> tuple[float, float]:
        """Median run times, hand-derived and automatic, taken in turns."""
        arrays = jax.device_put((self.moving, self.rest), self.device)
        compiled = [p.result() for p in self.programs]
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(8):
            for function, taken in zip(compiled, times, strict=True):
                start = time.perf_counter()
                jax.block_until_ready(function(*arrays))
                taken.append(time.perf_counter() - start)
        return float(np.median(times[0][1:])), float(np.median(times[1][1:]))
