"""What becomes of a fit whose minimum may not exist or not be the only one, and the covariances of all others."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.models import _rows, inference, separation
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.solvers import status as codes
from xentjax.solvers.minimize import opening, run_steps
from xentjax.solvers.newton import Newton, solve_positive
from xentjax.solvers.newton_cg import NewtonCG
from xentjax.solvers.objective import largest_component, select
from xentjax.solvers.proximal_newton import flat_factors, on_support, support
from xentjax.solvers.status import Status
from xentjax.training.fit_result import LogisticFit
from xentjax.training.solution import Inside, scaled

#: A margin along a direction counts as none below this share of the largest.
_NO_MARGIN = 1e-4

#: How heavily a margin below 0 counts in the search for a direction that separates.
_PENALTY = {32: 1e4, 64: 1e8}


class Inverse(NamedTuple):
    """The inverse of the Hessian where it has one, and which parameters are not determined."""

    matrix: Any  # None without a Hessian
    involved: Any


def explained(objective: LogisticObjective, fit: LogisticFit, inside: Inside) -> tuple[LogisticFit, Inside, Inverse]:
    """A doubtful fit, with the direction that separates its classes, or made that of minimum norm."""
    inner = scaled(objective, inside.params.bias.dtype, inside.scaling)
    fit = _separated(inner, fit, inside)
    if inside.hessian is None:
        return as_it_is(fit, inside)
    params, inverse = _minimum_norm(inner, inside)
    code = fit.status.code
    solved = (code == codes.CONVERGED) | (code == codes.PRECISION_LIMITED)
    code = jnp.where(solved & jnp.any(fit.dependent), codes.RANK_DEFICIENT, code).astype(jnp.int32)
    moved = inference.in_user_units(params, inside.scaling, inside.free)
    moved = select(jnp.any(inside.combined), moved, fit.params)
    fit = dataclasses.replace(fit, params=moved, status=Status(code))
    return fit, inside._replace(params=params), inverse


def as_it_is(fit: LogisticFit, inside: Inside) -> tuple[LogisticFit, Inside, Inverse]:
    """A fit without doubts in the place of :func:`explained`."""
    size = inside.params.weights.size + inside.params.bias.size
    if inside.hessian is None:
        return fit, inside, Inverse(None, jnp.zeros(size, bool))
    matrix = solve_positive(inside.hessian, jnp.eye(size, dtype=inside.hessian.dtype))
    return fit, inside, Inverse(matrix, jnp.zeros(size, bool))


def with_covariances(objective: LogisticObjective, fit: LogisticFit, inside: Inside, inverse: Inverse) -> LogisticFit:
    """The fit with its covariances; NaN where it has no minimum, and for parameters that are not determined."""
    inner = scaled(objective, inside.params.bias.dtype, inside.scaling)
    constant = jnp.repeat(fit.dependent & (inside.scaling.inverse == 0), inside.params.bias.size)
    involved = inverse.involved | jnp.append(constant, jnp.zeros(inside.params.bias.size, bool))
    rows = inner.rows
    found = inference.covariances(inside.params, inverse.matrix, involved, rows, inside.free, objective.fit_intercept)
    code = fit.status.code
    known = (code == codes.CONVERGED) | (code == codes.PRECISION_LIMITED) | (code == codes.RANK_DEFICIENT)
    model, robust = (jnp.where(known, c, jnp.nan) for c in (found.model, found.robust))
    degrees = jnp.where(jnp.isnan(fit.degrees_of_freedom), found.degrees, fit.degrees_of_freedom)
    return dataclasses.replace(fit, covariance=model, robust_covariance=robust, degrees_of_freedom=degrees)


def _separated(inner: LogisticObjective, fit: LogisticFit, inside: Inside) -> LogisticFit:
    """The fit with the direction that separates its classes, where one does.

    At a minimum a Newton step is rounding; where none exists it goes on, however small the gradient has become. In a
    direction in which it does so a penalty holds no weight: those that one holds are 0 there, as if their columns were.
    """
    free, code = inside.free, fit.status.code
    params = inside.params._replace(weights=_rows.only(free, inside.params.weights))
    scaling = dataclasses.replace(inside.scaling, inverse=jnp.where(free, inside.scaling.inverse, 0))
    data = inner.rows._replace(offset=None, scaling=scaling, shared=False)
    toward = separation.sum_of_margins(params, data, fit_intercept=inner.fit_intercept)
    penalty = _PENALTY[jnp.finfo(params.bias.dtype).bits]
    probe = separation.SeparationProbe(data, toward, penalty, inner.fit_intercept)
    solver: Any = NewtonCG() if inside.hessian is None else Newton()
    state, _ = run_steps(probe, solver, opening(probe, toward, solver, tol=1e-6), 1e-6, 100, 100)
    found = state.point.params
    low, high = separation.margins(found, data)
    own_low, own_high = separation.margins(params, data)
    complete = own_low > _NO_MARGIN * own_high
    separated = inside.moving & (complete | ((high > 0) & (low >= -_NO_MARGIN * high)))
    direction = jax.tree.map(lambda p, v: jnp.where(complete, p, v), params, found)
    # What plays no part is rounding.
    largest = largest_component(direction.weights)
    weights = jnp.where(jnp.abs(direction.weights) > 1e-6 * largest, direction.weights, 0)
    direction = inside.scaling.undo(direction._replace(weights=weights))
    length = largest_component(direction.weights)
    direction = jax.tree.map(lambda v: jnp.where(separated, v / jnp.where(length == 0, 1, length), jnp.nan), direction)
    unknown = jnp.where(inside.moving & (code == codes.CONVERGED), codes.PRECISION_LIMITED, code)
    code = jnp.where(separated, codes.SEPARATED, unknown).astype(jnp.int32)
    return dataclasses.replace(fit, status=Status(code), direction=direction, completely_separated=complete & separated)


def _minimum_norm(inner: LogisticObjective, inside: Inside) -> tuple[LogisticParams, Inverse]:
    """Of all parameters with these logits those of minimum norm in the user's units, and the pseudo-inverse.

    What an L1 penalty has made 0 stays so.
    """
    flat, unravel = ravel_pytree(inside.params)
    moves = support(flat, flat_factors(inner, inside.params))
    hessian, k = on_support(inside.hessian, moves), inside.params.bias.size
    dtype = hessian.dtype
    none = 64 * hessian.shape[0] * jnp.finfo(dtype).eps
    diagonal = jnp.diagonal(hessian)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    values, vectors = jnp.linalg.eigh(hessian * scale * scale[:, None])
    is_null = values <= none
    null = scale[:, None] * jnp.where(is_null & moves[:, None], vectors, 0)
    factors = jnp.append(jnp.repeat(inside.scaling.inverse, k), jnp.zeros(k, dtype))
    # Where nothing is null the columns are 0, and their singular values rounding.
    rounding = max(1e-8, 8 * flat.size * float(jnp.finfo(dtype).eps))
    inverse_of_null = jnp.linalg.pinv(factors[:, None] * null, rtol=rounding)
    shift = jnp.matmul(inverse_of_null, factors * flat, precision=_rows.PRECISION)
    inverse = vectors * jnp.where(is_null, 0, 1 / jnp.where(is_null, 1, values))
    inverse = scale[:, None] * jnp.matmul(inverse, vectors.T, precision=_rows.PRECISION) * scale
    involved = jnp.any(jnp.abs(jnp.where(is_null, vectors, 0)) > 1e-6, axis=1) & jnp.any(inside.combined)
    return unravel(flat - jnp.matmul(null, shift, precision=_rows.PRECISION)), Inverse(inverse, involved)
