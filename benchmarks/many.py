"""Many fits at once: distinct data, bootstrap samples of one table, and a path of penalties in every fold."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import xentjax as xj
from benchmarks.certificate import gradient_norm
from benchmarks.certified import Contender
from benchmarks.data import Problem, drawn, ridge, scikit_learn
from benchmarks.regression_peers import OUR_TOLERANCES, TOLERANCES

#: Arrays [k, d] and [k].
Solutions = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fit:
    """One of the many: a problem, the weights of its examples (None: all 1), and its own penalty."""

    problem: Problem
    examples: np.ndarray | None
    l2: float


@dataclasses.dataclass(frozen=True)
class Task:
    """Fits that are asked for together; ``ours`` solves all of them in one call."""

    name: str
    fits: list[Fit]
    ours: Callable[[], Callable[[float], Solutions]]
    solvers: tuple[str, ...] = ("newton-cholesky", "lbfgs")

    @property
    def contenders(self) -> list[Contender]:
        """Ours, and scikit-learn's loop over the fits; all are judged by their worst fit."""
        made = [Contender("xentjax", self.ours, self.check, OUR_TOLERANCES, True)]
        for solver in self.solvers:
            prepare = lambda solver=solver: scikit_learn_loop(self.fits, solver)  # type: ignore[misc]
            made.append(Contender(f"scikit-learn {solver}, a loop", prepare, self.check, TOLERANCES, False))
        return made

    def check(self, solutions: Solutions) -> float:
        found = zip(self.fits, *solutions, strict=True)
        return max(gradient_norm(fit.problem, w, b, fit.examples, fit.l2) for fit, w, b in found)


def tasks(quick: bool = False) -> dict[str, Callable[[], Task]]:
    """What makes each task, by name."""
    k, n, d = (20, 60, 3) if quick else (1000, 500, 10)
    penalties, folds = (4, 2) if quick else (100, 5)
    table = (lambda: drawn("a table", 80, 3)) if quick else _breast_cancer
    return {
        f"{k} tables": lambda: distinct(k, n, d),
        f"{k} bootstraps": lambda: bootstraps(k, n, d),
        f"{penalties} penalties in {folds} folds": lambda: path(table(), penalties, folds),
    }


def distinct(k: int, n: int, d: int) -> Task:
    """k tables of their own, [k, n, d]."""
    whole = drawn("tables", k * n, d)
    x, y = whole.x.reshape(k, n, d), whole.y.reshape(k, n)
    problems = [Problem("one table", *one, l2=1 / n) for one in zip(x, y, strict=True)]

    def ours() -> Callable[[float], Solutions]:
        places = jnp.asarray(x), jnp.asarray(y)
        return lambda tol: _solutions(xj.fit_many(*places, l2=1 / n, tol=tol, inference=False))

    return Task(f"{k} tables", [Fit(p, None, p.l2) for p in problems], ours)


def bootstraps(k: int, n: int, d: int) -> Task:
    """k resamplings of one table: the weights of a row are how often it was drawn."""
    table = drawn("one table", n, d)
    counts = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), size=k).astype(np.float64)

    def ours() -> Callable[[float], Solutions]:
        x, y, weights = jnp.asarray(table.x), jnp.asarray(table.y), jnp.asarray(counts)
        return lambda tol: _solutions(xj.fit_many(x, y, weights=weights, l2=table.l2, tol=tol, inference=False))

    return Task(f"{k} bootstraps", [Fit(table, row, table.l2) for row in counts], ours)


def path(table: Problem, penalties: int, folds: int) -> Task:
    """C from 1e-4 to 1e4 on the training rows of every fold, each fit from the one before it.

    scikit-learn's loop does not start from the fit before it: its Newton method comes from 0 as fast.
    """
    n = len(table.x)
    fold = np.random.default_rng(2).permutation(n) % folds
    training = np.stack([(fold != f).astype(np.float64) for f in range(folds)])
    factors = 1 / (np.geomspace(1e-4, 1e4, penalties) * n)
    fits = [Fit(table, weights, l2) for weights in training for l2 in factors]

    def ours() -> Callable[[float], Solutions]:
        x, y = jnp.asarray(table.x), jnp.asarray(table.y)

        def whole_path(tol: Any, weights: Any, factors: Any) -> Any:
            def next_penalty(params: Any, l2: Any) -> Any:
                fit = xj.fit_logistic(x, y, weights=weights, l2=l2, tol=tol, init=params, inference=False)
                return fit.params, fit.params

            start = xj.LogisticParams(jnp.zeros(x.shape[1], x.dtype), jnp.zeros((), x.dtype))
            return jax.lax.scan(next_penalty, start, factors)[1]

        of_folds = lambda tol, training, factors: jax.lax.map(lambda w: whole_path(tol, w, factors), training)
        run = jax.jit(of_folds)
        places = jnp.asarray(training), jnp.asarray(factors)

        def solve(tol: float) -> Solutions:
            weights, bias = _arrays(run(tol, *places))
            return weights.reshape(-1, weights.shape[-1]), bias.reshape(-1)

        return solve

    return Task(f"{penalties} penalties in {folds} folds", fits, ours)


def _breast_cancer() -> Problem:
    return ridge("breast cancer", *scikit_learn("breast_cancer"))


def _solutions(fits: Any) -> Solutions:
    return _arrays(jax.block_until_ready(fits).params)


def _arrays(params: Any) -> Solutions:
    return np.asarray(params.weights), np.asarray(params.bias)


def scikit_learn_loop(fits: list[Fit], solver: str) -> Callable[[float], Solutions]:
    """One fit of scikit-learn after the other."""
    from sklearn.linear_model import LogisticRegression

    # Rows of weight 0 are taken out beforehand, which it would only compute with.
    prepared = []
    for fit in fits:
        keep = slice(None) if fit.examples is None else np.flatnonzero(fit.examples)
        weights = None if fit.examples is None else fit.examples[keep]
        total = len(fit.problem.x) if weights is None else weights.sum()
        x = np.ascontiguousarray(fit.problem.x[keep])
        prepared.append((x, fit.problem.y[keep], weights, 1 / (fit.l2 * total)))

    def solve(tol: float) -> Solutions:
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for x, y, weights, c in prepared:
                model = LogisticRegression(C=c, tol=tol, solver=solver, max_iter=10_000).fit(x, y, weights)
                found.append((model.coef_[0], model.intercept_[0]))
        weights, bias = zip(*found, strict=True)
        return np.array(weights), np.array(bias)

    return solve
