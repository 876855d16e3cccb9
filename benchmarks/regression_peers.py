"""What solves a regression problem: xentjax by each of its solvers, and every peer that is installed.

A ``Method`` is given a problem, places its data where it likes, and returns ``solve(tol) -> (weights, bias)``: what is
timed. Peers get the layout of the data and the options that suit them best. Their tolerances mean different things; so
a benchmark tightens them until the gradient, which is checked elsewhere, is what it should be.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import xentjax as xj
from benchmarks.data import Problem
from xentjax.training.solvers_by_name import PROXIMAL, SOLVERS

Solve = Callable[[float], tuple[np.ndarray, np.ndarray]]

#: Tolerances to try, loosest first. Ours is asked for what is checked and never for less, so that its result is
#: certified; a peer's may be looser where it comes out well all the same.
TOLERANCES = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
OUR_TOLERANCES = (1e-8, 1e-9)

#: Updates of a coefficient by a row that the slowest method may make: about 20 s.
_MOST_UPDATES = 3e9

#: The fit as part of a program of the user's.
JITTED = "xentjax in jax.jit"

#: Features of fewer elements are so soon fitted to that what is done outside of the program matters.
_SMALL = 2**18

#: What liblinear multiplies the column of ones by: it penalizes the bias, divided by this (for L2: by its square).
_INTERCEPT_SCALING = {"l2": 1e3, "l1": 1e6}


@dataclasses.dataclass(frozen=True)
class Method:
    """``applies`` says whether it solves a problem at all; ``package`` is what it needs."""

    name: str
    package: str
    applies: Callable[[Problem], bool]
    prepare: Callable[[Problem], Solve]
    tolerances: tuple[float, ...] = TOLERANCES

    @property
    def is_ours(self) -> bool:
        return self.package == "xentjax"


def methods(problem: Problem) -> tuple[Method, ...]:
    """Ours first, then the peers that are installed and solve the problem."""
    installed = lambda package: importlib.util.find_spec(package) is not None
    return tuple(m for m in (*_ours(), *_peers()) if installed(m.package) and m.applies(problem))


def missing() -> tuple[str, ...]:
    """The packages of peers that are not installed."""
    return tuple(sorted({m.package for m in _peers() if importlib.util.find_spec(m.package) is None}))


# -- ours --------------------------------------------------------------------------------------------------------------


def _ours() -> tuple[Method, ...]:
    made = [Method("xentjax", "xentjax", lambda p: True, _fit_logistic("auto"), OUR_TOLERANCES)]
    # Solvers that take an L1 penalty are measured where there is one.
    for name in SOLVERS:
        applies = lambda p, name=name: (p.l1 > 0) == (name in PROXIMAL)
        made.append(Method(f"xentjax {name}", "xentjax", applies, _fit_logistic(name), OUR_TOLERANCES))
    small = lambda p: p.x.size <= _SMALL
    made.append(Method(JITTED, "xentjax", small, _fit_logistic("auto", jitted=True), OUR_TOLERANCES))
    return tuple(made)


def _fit_logistic(solver: str, *, jitted: bool = False) -> Callable[[Problem], Solve]:
    """``jitted`` it is part of a program of the user's: nothing is checked, and nothing done outside of it."""

    def prepare(problem: Problem) -> Solve:
        x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
        options: dict[str, Any] = {"l2": problem.l2, "l1": problem.l1, "solver": solver}
        options |= {"inference": problem.inference, "num_classes": problem.classes if problem.classes > 2 else None}
        fit = lambda x, y, tol: xj.fit_logistic(x, y, tol=tol, **options)
        run = jax.jit(fit) if jitted else fit

        def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
            found = jax.block_until_ready(run(x, y, tol))
            return np.asarray(found.params.weights), np.asarray(found.params.bias)

        return solve

    return prepare


# -- peers -------------------------------------------------------------------------------------------------------------


def _peers() -> tuple[Method, ...]:
    ridge = lambda p: not p.l1 and not p.inference
    binary_ridge = lambda p: ridge(p) and p.classes == 2
    binary = lambda p: p.classes == 2 and not p.inference
    lasso = lambda p: p.l1 > 0 and p.classes == 2
    inference = lambda p: p.inference and p.classes == 2
    scikit_learn = lambda solver, applies: Method(
        f"scikit-learn {solver}", "sklearn", applies, lambda p: _scikit_learn(p, solver)
    )
    return (
        scikit_learn("lbfgs", ridge),
        scikit_learn("newton-cholesky", ridge),
        scikit_learn("newton-cg", ridge),
        scikit_learn("saga", lambda p: not p.inference),
        scikit_learn("liblinear", binary),
        Method("glum irls-ls", "glum", lambda p: p.classes == 2 and not p.l1, lambda p: _glum(p, "irls-ls")),
        Method("glum irls-cd", "glum", lasso, lambda p: _glum(p, "irls-cd")),
        Method("statsmodels Logit", "statsmodels", inference, _statsmodels),
        Method("skglm", "skglm", lasso, _skglm),
        Method("optax.lbfgs", "optax", ridge, _optax),
        Method("torch LBFGS", "torch", binary_ridge, _torch),
    )


def _most_passes(problem: Problem) -> int:
    return int(np.clip(_MOST_UPDATES / problem.x.size, 20, 10_000))


def _scikit_learn(problem: Problem, solver: str) -> Solve:
    from sklearn.linear_model import LogisticRegression

    # SAGA and liblinear go through rows; the others' products do not mind.
    x = problem.x
    strength = problem.l1 or problem.l2
    options: dict[str, Any] = {"C": 1 / (strength * len(x)) if strength else np.inf, "solver": solver}
    options["l1_ratio"] = 1.0 if problem.l1 else 0.0
    options["max_iter"] = _most_passes(problem) if solver == "saga" else 10_000
    if solver == "liblinear":
        options["intercept_scaling"] = _INTERCEPT_SCALING["l1" if problem.l1 else "l2"]
        options["max_iter"] = 1000  # of its outer loop
    if solver in ("saga", "liblinear"):
        options["random_state"] = 0

    def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged is seen from the gradient
            model = LogisticRegression(tol=tol, **options).fit(x, problem.y)
        if problem.classes == 2:
            return model.coef_[0], model.intercept_[0]
        return model.coef_.T, model.intercept_

    return solve


def _glum(problem: Problem, solver: str) -> Solve:
    from glum import GeneralizedLinearRegressor

    x, y = np.asfortranarray(problem.x), problem.y.astype(np.float64)
    options: dict[str, Any] = {"family": "binomial", "alpha": problem.l1 or problem.l2, "solver": solver}
    options |= {"l1_ratio": 1.0 if problem.l1 else 0.0, "max_iter": 1000}

    def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = GeneralizedLinearRegressor(gradient_tol=tol, **options).fit(x, y)
            if problem.inference:
                model.std_errors(x, y, robust=False)
        return model.coef_, np.asarray(model.intercept_)

    return solve


def _statsmodels(problem: Problem) -> Solve:
    from statsmodels.discrete.discrete_model import Logit

    x = np.column_stack([problem.x, np.ones(len(problem.x))])

    def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
        result = Logit(problem.y, x).fit(method="newton", tol=tol, maxiter=100, disp=0)
        return result.params[:-1], np.asarray(result.params[-1])

    return solve


def _skglm(problem: Problem) -> Solve:
    from skglm import SparseLogisticRegression

    x = np.asfortranarray(problem.x)

    def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SparseLogisticRegression(alpha=problem.l1, tol=tol, max_iter=1000).fit(x, problem.y)
        return model.coef_.ravel(), np.asarray(model.intercept_).ravel()[0]

    return solve


def _optax(problem: Problem) -> Solve:
    x, y = jnp.asarray(problem.x), jnp.asarray(problem.y)
    shape = () if problem.classes == 2 else (problem.classes,)
    init = (jnp.zeros((x.shape[1], *shape), x.dtype), jnp.zeros(shape, x.dtype))
    solver = optax.lbfgs()

    def run(x: Any, y: Any, tol: Any) -> Any:
        def loss(params: Any) -> Any:
            z = x @ params[0] + params[1]
            if problem.classes == 2:
                losses = optax.losses.sigmoid_binary_cross_entropy(z, y)
            else:
                losses = optax.losses.softmax_cross_entropy_with_integer_labels(z, y)
            return jnp.mean(losses) + 0.5 * problem.l2 * jnp.sum(params[0] ** 2)

        value_and_gradient = optax.value_and_grad_from_state(loss)
        norm = lambda g: jnp.maximum(jnp.max(jnp.abs(g[0])), jnp.max(jnp.abs(g[1])))

        def step(carry: Any) -> Any:
            params, state, count, _ = carry
            value, gradient = value_and_gradient(params, state=state)
            updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            return optax.apply_updates(params, updates), state, count + 1, norm(optax.tree.get(state, "grad"))

        running = lambda carry: (carry[3] > tol) & (carry[2] < 2000)
        start = (init, solver.init(init), 0, jnp.asarray(jnp.inf, x.dtype))
        return jax.lax.while_loop(running, step, start)[0]

    with jax.numpy_dtype_promotion("standard"):
        compiled = jax.jit(run).lower(x, y, jnp.zeros((), x.dtype)).compile()

    def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
        weights, bias = compiled(x, y, jnp.asarray(tol, x.dtype))
        return np.asarray(weights), np.asarray(bias)

    return solve


def _torch(problem: Problem) -> Solve:
    import torch

    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y.astype(np.float64))

    def solve(tol: float) -> tuple[np.ndarray, np.ndarray]:
        weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights, bias],
            max_iter=1000,
            tolerance_grad=tol,
            tolerance_change=0.0,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            optimizer.zero_grad()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ weights + bias, y)
            loss = losses + 0.5 * problem.l2 * weights @ weights
            loss.backward()
            return loss

        optimizer.step(closure)
        return weights.detach().numpy(), bias.detach().numpy()

    return solve
