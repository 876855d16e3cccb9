"""The suite over logistic regressions: one fit of each problem, many fits at once, how cost grows with n and d, and
what a new process takes for its first fit.

All else runs in one process on one core, in float64, until the gradient's largest component is 1e-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import xentjax as xj
from benchmarks import data, many, regression_peers, starts
from benchmarks.certificate import gradient_norm
from benchmarks.certified import Contender, Limits, race
from benchmarks.data import MissingPackage, Problem
from xentjax.training.solvers_by_name import chosen_solver

#: Sizes of the plots over n, at 20 features, and over d, at 20,000 rows.
GROWING = {"n": [(n, 20) for n in (1000, 10_000, 100_000, 1_000_000)], "d": [(20_000, d) for d in (10, 30, 100, 300)]}
QUICK_GROWING = {"n": [(200, 5), (400, 5)]}

#: Peers beside ours in those plots: the fastest of the second and of the first order.
GROWING_PEERS = ("scikit-learn newton-cholesky", "scikit-learn lbfgs")


def limits(quick: bool) -> Limits:
    return Limits(rounds=0.05, slow=0.5, search=2.0) if quick else Limits()


def rows(only: str | None = None, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Every row of the suite; ``only`` is a regular expression of names."""
    wanted = lambda name: only is None or re.fullmatch(only, name) is not None
    missing = regression_peers.missing()
    if missing:
        yield {"kind": "skipped", "name": "peers", "why": f"not installed: {', '.join(missing)}"}
    single, several = data.problems(quick), many.tasks(quick)
    growing = QUICK_GROWING if quick else GROWING
    names = [*single, *several, *(f"growing {letter}" for letter in growing), *(f"start: {way}" for way in starts.WAYS)]
    if not any(map(wanted, names)):
        raise SystemExit(f"--only {only!r} matches nothing; there are: {', '.join(names)}")
    for name, make in single.items():
        if wanted(name):
            yield attempt(name, lambda make=make: fit_row(make(), limits(quick)))  # type: ignore[misc]
    for name, prepare in several.items():
        if wanted(name):
            yield attempt(name, lambda prepare=prepare: many_row(prepare(), limits(quick)))  # type: ignore[misc]
    for letter, sizes in growing.items():
        for n, d in sizes if wanted(f"growing {letter}") else ():
            yield growing_row(letter, n, d, limits(quick))
    for way in starts.WAYS:
        if wanted(f"start: {way}"):
            yield starts.start_row(way, {"n": 40, "d": 3} if quick else starts.SIZES, 1 if quick else starts.PROCESSES)


def attempt(name: str, make: Any) -> dict[str, Any]:
    """A row, or why there is none."""
    try:
        return make()
    except MissingPackage as error:
        return {"kind": "skipped", "name": name, "why": str(error)}


def fit_row(problem: Problem, within: Limits) -> dict[str, Any]:
    """One fit of a problem by every method."""
    labels: dict[str, Any] = {"kind": "fit", "name": problem.name, "sizes": problem.sizes}
    labels |= {"l2": problem.l2, "l1": problem.l1, "inference": problem.inference}
    return {**labels, "methods": race(contenders(problem), within)}


def contenders(problem: Problem) -> list[Contender]:
    check = lambda result: gradient_norm(problem, *result)
    return [
        Contender(m.name, lambda m=m: m.prepare(problem), check, m.tolerances, m.is_ours)  # type: ignore[misc]
        for m in regression_peers.methods(problem)
    ]


def many_row(task: many.Task, within: Limits) -> dict[str, Any]:
    """Many fits by one call of ours, and by a peer's loop."""
    labels = {"kind": "many", "name": task.name, "fits": len(task.fits), "sizes": task.fits[0].problem.sizes}
    return {**labels, "methods": race(task.contenders, within)}


def growing_row(letter: str, n: int, d: int, within: Limits) -> dict[str, Any]:
    """Time of each of our solvers and two peers, and the memory of ours beside the data."""
    problem = data.drawn(f"growing {letter}", n, d)
    ours = lambda c: c.is_ours and c.name != regression_peers.JITTED
    chosen = [c for c in contenders(problem) if ours(c) or c.name in GROWING_PEERS]
    short = Limits(rounds=within.rounds / 5, slow=within.slow, search=within.search)
    found = race(chosen, short)
    for method, row in found.items():
        if row["ours"]:
            row["temp_bytes"] = temporary_bytes(problem, method.removeprefix("xentjax").strip() or "auto")
    return {"kind": "growing", "name": problem.name, "letter": letter, "sizes": problem.sizes, "methods": found}


def temporary_bytes(problem: Problem, solver: str) -> int:
    """What the compiled fit stores beside its arguments and its result."""
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    objective = xj.LogisticObjective(x, y)
    # What is chosen for arrays, not for the tracers below.
    made = chosen_solver("temporary_bytes", solver, objective, objective.shapes())[1]
    fit = lambda x, y: xj.fit_logistic(x, y, l2=problem.l2, tol=1e-8, inference=False, solver=made)
    memory = jax.jit(fit).lower(x, y).compile().memory_analysis()
    return 0 if memory is None else int(memory.temp_size_in_bytes)


def one_line(row: dict[str, Any]) -> str:
    """A row for the eye."""
    if row["kind"] == "skipped":
        return f"{row['name']}: skipped, {row['why']}"
    sizes = " ".join(f"{letter}={size}" for letter, size in row["sizes"].items())
    text = f"{row['name']} ({sizes}): "
    if row["kind"] == "start":
        return text + f"first process {row['first_s']:.2f} s, later ones {row['later_s']:.2f} s"
    shown = []
    for name, method in row["methods"].items():
        if "failed" in method:
            shown.append(f"{name} failed: {method['failed']}")
        else:
            end = "" if method["solved"] else f" (not reached: {method['norm']:.0e})"
            shown.append(f"{name} {method['run_s'] * 1e3:.1f} ms{end}")
    return text + "; ".join(shown)
