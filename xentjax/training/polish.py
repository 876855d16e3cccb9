"""The last step of a fit: one of Newton's method, and what it says of the point that it leads to."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.models.objective import LogisticObjective
from xentjax.solvers.conjugate_gradients import conjugate_gradients
from xentjax.solvers.line_search import value_rounding
from xentjax.solvers.metric import Metric, metric_at
from xentjax.solvers.newton import damped_factor, solve_factored
from xentjax.solvers.objective import (
    Point,
    evaluate,
    evaluate_with_hessian,
    largest_component,
    linearized,
    residual,
    select,
)
from xentjax.solvers.proximal_newton import flat_factors, on_support, support

#: Which share of the gradient conjugate gradients leave: the least in the step that is taken, and in the next, which
#: only tells how far the minimum may be; and the most products that they may take.
_TAKEN, _TOLD = 1e-4, 0.3
_PRODUCTS = 500


#: Which Hessian the end of a fit needs: none; one of a few digits, if the solver has it; one of all digits; such a one
#: at the very point that is returned.
Needed = Literal["none", "rough", "exact", "final"]


class Polished(NamedTuple):
    """A point after one more Newton step, if that made its gradient smaller."""

    point: Point
    pull: Any  # the gradient there, raveled; with an L1 penalty the smallest subgradient of what is not 0
    step: Any  # the next Newton step, in the order of the raveled parameters
    hessian: Any  # None where it is too large
    pivots: Any  # ``[d]``: what each column has left when those before it are taken out of it; None without a Hessian


def polished(
    inner: LogisticObjective, solver: Any, point: Point, state: Any, wanted: Any, *, allowed: Any, needed: Needed
) -> Polished:
    """The point polished by a solution of the Newton system: by Cholesky, or without a Hessian by conjugate gradients,
    which go on until the gradient that they leave is well below the one ``wanted``, or a small share of the first.

    A solver whose state has the ``hessian`` of the last point, or a ``metric``, saves making it here; where it has a
    ``hessian_dtype`` that is not None, that Hessian is one of few digits. Without a matrix there are no pivots, so that
    nothing is known of columns that depend on others. With an L1 penalty the system is that of the parameters that are
    not 0; what would change its sign becomes 0.
    """
    origin, unravel = ravel_pytree(point.params)
    factors = flat_factors(inner, point.params)
    moves = support(origin, factors)
    pull = lambda point: jnp.where(moves, ravel_pytree(residual(inner, point))[0], 0)
    hessian = getattr(state, "hessian", None)
    if getattr(solver, "hessian_dtype", None) is not None and needed in ("exact", "final"):
        hessian = None
    if hessian is None and needed != "none":
        hessian = evaluate_with_hessian(inner, point.params)[1]
    if hessian is not None:
        factored = damped_factor(hessian if inner.l1 is None else on_support(hessian, moves))
        solve = lambda gradient, left: solve_factored(factored, gradient)
        weights = point.params.weights
        pivots = jnp.diagonal(factored[1])[: weights.size].reshape(-1, point.params.bias.size) ** 2
        pivots = jnp.min(pivots, axis=1, initial=jnp.inf)
    else:
        pivots = None
        solve = _by_products(inner, point, getattr(state, "metric", None), moves)
    before = pull(point)
    left = jnp.clip(wanted / 10 / jnp.max(jnp.abs(before), initial=jnp.finfo(origin.dtype).tiny), _TAKEN, _TOLD)
    target = origin - solve(before, left)
    target = unravel(jnp.where((factors > 0) & (target * origin <= 0), 0, target))
    moved, there = evaluate_with_hessian(inner, target) if needed == "final" else (evaluate(inner, target), hessian)
    better = allowed & (largest_component(residual(inner, moved)) < largest_component(residual(inner, point)))
    # Far from the minimum, where predictions are certain, a gradient may be smaller and the value far larger.
    better = better & (moved.value <= point.value + value_rounding(point))
    point, hessian = select(better, (moved, there), (point, hessian))
    gradient = pull(point)
    return Polished(point, gradient, solve(gradient, _TOLD), hessian, pivots)


def _by_products(inner: LogisticObjective, point: Point, metric: Metric | None, moves: Any) -> Any:
    """gradient -> the solution of the Newton system of what moves, from products with the Hessian at a point."""
    _, unravel = ravel_pytree(point.params)
    product = linearized(inner, point.params)
    known = metric_at(inner, point.params, "diagonal") if metric is None else metric

    def solve(gradient: Any, left: float) -> Any:
        matrix = lambda v: jnp.where(moves, ravel_pytree(product(unravel(v)))[0], 0)
        precondition = lambda v: jnp.where(moves, known.solve(v), 0)
        return conjugate_gradients(matrix, gradient, precondition, tol=left, most=_PRODUCTS).solution

    return solve
