"""The solvers of fits by name, and which of them ``"auto"`` is."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.models.logistic import LogisticParams
from xentjax.models.sparse import is_sparse
from xentjax.models.streamed import StreamedRows
from xentjax.solvers import checks
from xentjax.solvers.lbfgs import LBFGS
from xentjax.solvers.newton import Newton
from xentjax.solvers.newton_cg import NewtonCG
from xentjax.solvers.proximal_gradient import ProximalGradient
from xentjax.solvers.proximal_newton import ProximalNewton

SOLVERS: dict[str, Any] = {
    "newton": Newton,
    "lbfgs": LBFGS,
    "newton-cg": NewtonCG,
    # Where gradients are float64 a Hessian of float32 takes half the time, and hardly more steps.
    "proximal-newton": functools.partial(ProximalNewton, "float32"),
    "proximal-gradient": ProximalGradient,
}

#: Those that can have an L1 penalty.
PROXIMAL = tuple(name for name, made in SOLVERS.items() if getattr(made(), "handles_l1", False))

#: Up to this many parameters, whose Hessian then is 128 MiB in float64, an L1 penalty is left to a method with one.
_PROXIMAL = 4096

#: Up to this many numbers (32 MiB in float64) the metric is the Hessian's blocks; beyond, its diagonal.
_BLOCKS = 2**22

#: A Hessian is made at every step up to this many parameters, of all rows up to the second number, as that takes
#: little more time than their gradient. K classes take K² as much time, and other ways less.
_NEWTON, _SMALL, _NEWTON_CLASSES = 500, 128, 12

#: Steps of L-BFGS after which its metric is taken again: the Hessian, or for K classes only blocks of it.
_REFRESH, _REFRESH_CLASSES = 16, 32

#: On an accelerator the Hessian is the last thing to take time.
_NEWTON_ACCELERATED = 2000

#: Rows from which on a subsample is worth its optimum, how many of them it has for each parameter (more of them where
#: it is to give the metric, too), and its stride. For K classes, whose Hessian takes K² as much time, it is sooner.
_MANY_ROWS, _ROWS_EACH, _ROWS_EACH_METRIC, _STRIDE = 10_000, 10, 80, 8
_MANY_ROWS_CLASSES, _ROWS_EACH_CLASSES = 4_000, 3

#: The most bytes of a subsample of rows that are in a file, and it in memory.
_FEW = 2**26

#: From this many parameters on products take most of a Hessian's time, half of it in float32.
_PRODUCTS = 32


def chosen_solver(
    function: str, solver: Any, objective: Any, shapes: LogisticParams, *, has_init: bool = False
) -> tuple[str, Any, str]:
    """The solver that a name stands for, with what to call it, and why it is this one.

    Parameters that are given to begin with (``has_init``) are not left for those of a subsample.
    """
    require_solver(function, solver)
    if isinstance(solver, str):
        n, d, k = jnp.shape(objective.x)[0], shapes.weights.shape[0], shapes.bias.size
        if solver == "auto" and objective.l1 is not None:
            return _with_l1((d + 1) * k)
        if solver == "auto":
            is_alone = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(objective))
            dense, stride = not is_sparse(objective.x), _stride(objective.x)
            return _automatic(n, d, k, is_dense=dense, stride=stride, has_init=has_init, is_alone=is_alone)
        kind = SOLVERS[solver]
        if kind is Newton:
            return solver, _newton((d + 1) * k), "as asked for"
        return solver, kind(metric=_metric(d, k)) if kind in (LBFGS, NewtonCG) else kind(), "as asked for"
    return type(solver).__name__, solver, "as given"


def require_solver(function: str, solver: Any) -> None:
    """An error that names the function for what is neither a solver nor the name of one."""
    names = ("auto", *SOLVERS)
    if not isinstance(solver, str):
        checks.require_solver(solver, function)
    elif solver not in names:
        raise ValueError(f"{function}: solver must be one of {', '.join(map(repr, names))} or a Solver, got {solver!r}")


def _automatic(
    n: int, d: int, k: int, *, is_dense: bool, stride: int, has_init: bool, is_alone: bool
) -> tuple[str, Any, str]:
    """By the shape of the problem: which was the fastest to a gradient of 1e-8 on data of such shapes.

    Under ``vmap``, and what is traced (not ``is_alone``) may be, a metric that is not always taken always takes time.
    """
    size = (d + 1) * k
    if jax.default_backend() != "cpu":
        if size <= _NEWTON_ACCELERATED:
            return "newton", _newton(size), f"with few enough parameters ({size}) for their Hessian"
        return _by_products(d, k)
    has_metric = is_dense and is_alone and _metric(d, k) == "blocks"
    is_small = k == 1 and size <= _SMALL
    rows, each, most = _MANY_ROWS_CLASSES, _ROWS_EACH_CLASSES, _NEWTON_CLASSES
    if k == 1:
        rows, each, most = _MANY_ROWS, _ROWS_EACH, _NEWTON
        if has_metric:
            each, most = _ROWS_EACH if is_small else _ROWS_EACH_METRIC, _SMALL
    if n >= rows and size <= _NEWTON and n >= stride * each * size:
        if not is_dense:  # of which there is no subsample
            why = f"as the Hessian of {size} parameters takes longer than products with it over many sparse rows ({n})"
            return "newton-cg", NewtonCG(metric=_metric(d, k)), why
        if is_small:
            start = "the parameters given" if has_init else f"the optimum of every {stride}th of many rows ({n})"
            return "newton", _newton(size, None if has_init else stride), f"with few parameters ({size}), from {start}"
        why = f"as many rows ({n}) for {size} parameters make the Hessian of every {stride}th row a good metric"
        return "lbfgs", LBFGS(metric="hessian", subsample=stride), why
    if size <= most:
        return "newton", _newton(size), f"with few enough parameters ({size}) for their Hessian"
    return _with_metric(d, k) if has_metric else _by_products(d, k)


def _stride(x: Any) -> int:
    """Every which row a subsample has: of those of a file few enough to be kept, in steps of ten."""
    if not isinstance(x, StreamedRows) or x.size * x.dtype.itemsize <= _STRIDE * _FEW:
        return _STRIDE
    return -(-x.size * x.dtype.itemsize // (10 * _FEW)) * 10


def _with_metric(d: int, k: int) -> tuple[str, Any, str]:
    size, refresh = (d + 1) * k, _REFRESH if k == 1 else _REFRESH_CLASSES
    what = "their Hessian" if k == 1 else "blocks of their Hessian"
    why = f"with too many parameters ({size}) for more than {what} once in {refresh} steps, as a metric"
    return "lbfgs", LBFGS(metric="blocks", refresh=refresh), why


def _newton(size: int, subsample: int | None = None) -> Newton:
    return Newton("float32" if size >= _PRODUCTS else None, subsample)


def _with_l1(size: int) -> tuple[str, Any, str]:
    if size <= _PROXIMAL:
        name, why = "proximal-newton", f"for the L1 penalty, with few enough parameters ({size}) for their Hessian"
    else:
        name, why = "proximal-gradient", f"for the L1 penalty, with too many parameters ({size}) for their Hessian"
    return name, SOLVERS[name](), why


def _by_products(d: int, k: int) -> tuple[str, Any, str]:
    why = f"with too many parameters ({(d + 1) * k}) to make their Hessian at every step"
    return "newton-cg", NewtonCG(metric=_metric(d, k)), why


def _metric(d: int, k: int) -> str:
    return "blocks" if k * (d + 1) ** 2 <= _BLOCKS else "diagonal"
