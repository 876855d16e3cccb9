"""One fit as a function of arrays: scaled, solved, polished, and certified."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.core import policy
from xentjax.models import _rows, inference, one_pass, separation
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling
from xentjax.solvers import status as codes
from xentjax.solvers.minimize import advance, start
from xentjax.solvers.newton import Curvature, Newton, damped_factor, solve_factored, solve_positive
from xentjax.solvers.objective import Point, evaluate, evaluate_with_hessian, largest_component, residual
from xentjax.solvers.penalty import absolute, l1_factors
from xentjax.solvers.proximal_newton import ProximalCurvature, flat_factors, on_support, support
from xentjax.solvers.status import Status
from xentjax.training.fit_result import LogisticFit

#: The tolerance for classes of equal size, by the bits of the dtype.
RELATIVE_TOLERANCE = {32: 1e-4, 64: 1e-8}

#: A Newton step that changes a logit by more than this is no rounding: the loss falls on.
_STILL_MOVING = 1e-3

#: A margin along a direction counts as none below this share of the largest.
_NO_MARGIN = 1e-4


def solve(
    objective: LogisticObjective,
    solver: Any,
    init: LogisticParams | None,
    tol: Any,
    *,
    shapes: LogisticParams,
    name: str,
    max_steps: int,
    with_inference: bool,
) -> LogisticFit:
    """The minimum of an objective whose data are in the user's units."""
    x = policy.up(objective.x)
    dtype = shapes.bias.dtype
    weights = None if objective.weights is None else objective.weights.astype(dtype)
    scaling = Scaling.of(x.astype(dtype), weights, centered=objective.fit_intercept)
    inner = dataclasses.replace(objective, scaling=scaling, weights=weights)
    null, spread = null_model(inner, shapes)
    null, null_loss = null_point(inner, null)
    first = null if init is None else scaling.redo(jax.tree.map(lambda p: p.astype(dtype), init))
    noise = inner.gradient_error(null)
    if tol is None:
        tol = jnp.maximum(RELATIVE_TOLERANCE[jnp.finfo(dtype).bits] * spread, noise)
    state = start(inner, first, solver, tol=tol, max_steps=max_steps)
    state, history = advance(inner, solver, state, tol=tol, max_steps=max_steps, chunk=max_steps)

    point, hessian, decrement, step = _polished(inner, state.point, state.solver)
    norm = largest_component(residual(inner, point))
    noise = inner.gradient_error(point.params)
    code = jnp.where(state.code == codes.STALLED, codes.PRECISION_LIMITED, state.code)
    reached = (norm <= tol) & (code != codes.NOT_FINITE)
    code = jnp.where(reached, jnp.where(noise <= tol, codes.CONVERGED, codes.PRECISION_LIMITED), code)

    free = inner.unpenalized()
    data = one_pass.Data(inner.x, inner.y, weights, None, scaling)
    low, high = separation.margins(step, data)
    code, direction, complete = _separated(inner, data, point.params, code, jnp.maximum(-low, high), jnp.all(free))
    kept = _independent(hessian, point.params, scaling, free)
    deficient = jnp.any(kept.dependent) & ((code == codes.CONVERGED) | (code == codes.PRECISION_LIMITED))
    code = jnp.where(deficient, codes.RANK_DEFICIENT, code).astype(jnp.int32)

    covariances = None
    if with_inference:
        covariances = inference.covariances(
            kept.params, kept.inverse, kept.involved, data._replace(offset=inner.offset), free, objective.fit_intercept
        )
        known = (code == codes.CONVERGED) | (code == codes.PRECISION_LIMITED) | (code == codes.RANK_DEFICIENT)
        covariances = jax.tree.map(lambda c: jnp.where(known, c, jnp.nan), covariances)
    n = jnp.asarray(x.shape[0], dtype) if weights is None else jnp.sum(weights)
    loss = point.value - _rows.penalty(scaling.penalty(inner.l2), point.params.weights)
    loss = loss - absolute(l1_factors(inner, point.params), point.params)
    rank = (jnp.sum(~kept.dependent) + objective.fit_intercept) * max(shapes.bias.size - 1, 1)
    penalized = covariances.degrees if covariances is not None else jnp.full((), jnp.nan, dtype)
    if inner.l1 is not None:
        nonzero = jnp.sum(kept.params.weights != 0)
        penalized = (nonzero + objective.fit_intercept * max(shapes.bias.size - 1, 1)).astype(dtype)
    return LogisticFit(
        params=inference.in_user_units(kept.params, scaling, free),
        objective=point.value,
        gradient_norm=norm,
        newton_decrement=decrement,
        steps=state.step,
        status=Status(code),
        history=history,
        dependent=kept.dependent,
        direction=direction,
        completely_separated=complete,
        log_likelihood=-n * loss,
        null_log_likelihood=-n * null_loss,
        num_observations=n,
        degrees_of_freedom=jnp.where(jnp.all(free), rank.astype(dtype), penalized),
        covariance=None if covariances is None else covariances.model,
        robust_covariance=None if covariances is None else covariances.robust,
        solver=name,
        with_l1=inner.l1 is not None,
    )


def null_point(inner: LogisticObjective, null: LogisticParams) -> tuple[LogisticParams, Any]:
    """The model without features, whose bias is fitted to the offset, and its mean loss."""
    columns = dataclasses.replace(inner, x=inner.x[:, :0], scaling=None, l2=jnp.zeros((), null.bias.dtype), l1=None)
    params = LogisticParams(null.weights[:0], null.bias)
    if inner.offset is None or not inner.fit_intercept:
        return null, columns.value_and_gradient(params)[0]
    state = start(columns, params, Newton(), tol=0.0, max_steps=50)
    point = advance(columns, Newton(), state, tol=0.0, max_steps=50, chunk=50)[0].point
    return null._replace(bias=point.params.bias), point.value


def null_model(inner: LogisticObjective, shapes: LogisticParams) -> tuple[LogisticParams, Any]:
    """The parameters of the model without features, and 4 f(1 - f) for the share f of its rarest class.

    The curvature of the loss is in proportion to the second: a gradient is small only beside it.
    """
    dtype = shapes.bias.dtype
    share = _rows.shares(inner.weights)
    share = jnp.full(inner.y.shape[0], 1 / max(inner.y.shape[0], 1), dtype) if share is None else share
    y = inner.y if inner.weights is None else _rows.only(inner.weights != 0, inner.y)
    if y.ndim == 1 and shapes.bias.ndim == 1:
        frequencies = jnp.zeros(shapes.bias.shape, dtype).at[y].add(share)
    else:
        frequencies = jnp.matmul(share, y.astype(dtype), precision=_rows.PRECISION)
    frequencies = jnp.clip(frequencies, 1e-3 / max(inner.y.shape[0], 1), None)
    if shapes.bias.ndim == 0:
        frequencies = jnp.minimum(frequencies, 1 - 1e-3 / max(inner.y.shape[0], 1))
        bias = jnp.log(frequencies) - jnp.log1p(-frequencies)
    else:
        bias = jnp.log(frequencies) - jnp.mean(jnp.log(frequencies))
    of_classes = jnp.stack([frequencies, 1 - frequencies]) if shapes.bias.ndim == 0 else frequencies
    spread = jnp.min(4 * of_classes * jnp.maximum(1 - of_classes, jnp.min(of_classes)))
    if not inner.fit_intercept:
        bias, spread = jnp.zeros_like(bias), jnp.ones_like(spread)
    return LogisticParams(jnp.zeros_like(shapes.weights), bias), spread


def _polished(inner: LogisticObjective, point: Point, state: Any) -> tuple[Point, Any, Any, LogisticParams]:
    """The point after one more Newton step, if that helps; the Hessian, the decrement and the next step there.

    With an L1 penalty all of them are those of the parameters that are not 0, whose signs the step has to keep.
    """
    start, unravel = ravel_pytree(point.params)
    known = isinstance(state, (Curvature, ProximalCurvature))
    hessian = state.hessian if known else evaluate_with_hessian(inner, point.params)[1]
    if inner.l1 is not None:
        hessian = on_support(hessian, support(start, flat_factors(inner, point.params)))
    factor = damped_factor(hessian)

    def pull(point: Point) -> Any:
        flat = ravel_pytree(residual(inner, point))[0]
        return flat if inner.l1 is None else jnp.where(support(start, flat_factors(inner, point.params)), flat, 0)

    moved = evaluate(inner, unravel(start - solve_factored(factor, pull(point))))
    better = largest_component(residual(inner, moved)) < largest_component(residual(inner, point))
    if inner.l1 is not None:
        kept = jnp.sign(ravel_pytree(moved.params)[0]) == jnp.sign(start)
        better = better & jnp.all(kept | (flat_factors(inner, point.params) == 0))
    point = jax.tree.map(lambda a, b: jnp.where(better, a, b), moved, point)
    gradient = pull(point)
    step = solve_factored(factor, gradient)
    tiny = jnp.finfo(start.dtype).tiny
    decrement = jnp.vdot(gradient, step) / 2 / jnp.maximum(jnp.abs(point.value), tiny)
    return point, hessian, decrement, unravel(step)


def _separated(
    inner: LogisticObjective, data: one_pass.Data, params: LogisticParams, code: Any, change: Any, unpenalized: Any
) -> tuple[Any, LogisticParams, Any]:
    """The code, the direction that separates the classes (NaN without one), and whether it does so completely.

    At a minimum a Newton step changes no logit; where none exists it goes on changing them, however small the
    gradient has become.
    """
    nowhere = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)

    def probe() -> tuple[Any, LogisticParams, Any]:
        penalty = {32: 1e4, 64: 1e8}[jnp.finfo(params.bias.dtype).bits]
        toward = separation.sum_of_margins(params, data, fit_intercept=inner.fit_intercept)
        objective = separation.SeparationProbe(data, toward, penalty, inner.fit_intercept)
        state = start(objective, toward, Newton(), tol=1e-6, max_steps=100)
        found = advance(objective, Newton(), state, tol=1e-6, max_steps=100, chunk=100)[0].point.params
        low, high = separation.margins(found, data)
        own_low, own_high = separation.margins(params, data)
        complete = own_low > _NO_MARGIN * own_high
        separated = complete | ((high > 0) & (low >= -_NO_MARGIN * high))
        direction = jax.tree.map(lambda p, v: jnp.where(complete, p, v), params, found)
        length = largest_component(direction)
        direction = jax.tree.map(
            lambda v: jnp.where(separated, v / jnp.where(length == 0, 1, length), jnp.nan), direction
        )
        unknown = jnp.where(code == codes.CONVERGED, codes.PRECISION_LIMITED, code)
        return jnp.where(separated, codes.SEPARATED, unknown), direction, complete & separated

    suspicious = unpenalized & ~(change <= _STILL_MOVING) & (code != codes.NOT_FINITE)
    if inner.l1 is not None:
        # Only factors that turn out to be 0 leave anything to suspect: what the parameters themselves show is enough.
        low, high = separation.margins(params, data)
        complete = suspicious & (low > _NO_MARGIN * high)
        unknown = jnp.where(suspicious & (code == codes.CONVERGED), codes.PRECISION_LIMITED, code)
        length = largest_component(params)
        direction = jax.tree.map(lambda p: jnp.where(complete, p / jnp.where(length == 0, 1, length), jnp.nan), params)
        return jnp.where(complete, codes.SEPARATED, unknown), direction, complete
    return jax.lax.cond(suspicious, probe, lambda: (code, nowhere, jnp.zeros((), bool)))


class _Independent(NamedTuple):
    """Parameters of minimum norm, which columns depend on those before them, which parameters are not determined, and
    the inverse of the Hessian on all others."""

    params: LogisticParams
    dependent: Any
    involved: Any
    inverse: Any


def _independent(hessian: Any, params: LogisticParams, scaling: Scaling, free: Any) -> _Independent:
    dtype, (d, k) = hessian.dtype, (params.weights.shape[0], params.bias.size)
    none = {32: 1e-5, 64: 1e-10}[jnp.finfo(dtype).bits]
    diagonal = jnp.diagonal(hessian)
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    # A pivot is what a column has left of its square when those before it are taken out of it.
    pivots = jnp.diagonal(damped_factor(hessian)[1]) ** 2
    constant = free & (scaling.inverse == 0)
    combined = free & jnp.any(pivots[: d * k].reshape(d, k) <= none, axis=1) & ~constant
    weights_u, unravel = ravel_pytree(params)
    factors = jnp.concatenate([jnp.repeat(scaling.inverse, k), jnp.zeros(k, dtype)])

    def minimum_norm() -> tuple[LogisticParams, Any, Any]:
        values, vectors = jnp.linalg.eigh(hessian * scale * scale[:, None])
        is_null = values <= none
        null = scale[:, None] * jnp.where(is_null, vectors, 0)
        in_units = factors[:, None] * null
        shift = jnp.matmul(jnp.linalg.pinv(in_units, rtol=1e-8), factors * weights_u, precision=_rows.PRECISION)
        inverse = vectors * jnp.where(is_null, 0, 1 / jnp.where(is_null, 1, values))
        inverse = scale[:, None] * jnp.matmul(inverse, vectors.T, precision=_rows.PRECISION) * scale
        moved = weights_u - jnp.matmul(null, shift, precision=_rows.PRECISION)
        return unravel(moved), jnp.any(jnp.abs(jnp.where(is_null, vectors, 0)) > 1e-6, axis=1), inverse

    def as_it_is() -> tuple[LogisticParams, Any, Any]:
        return (
            params,
            jnp.zeros(hessian.shape[0], bool),
            solve_positive(hessian, jnp.eye(hessian.shape[0], dtype=dtype)),
        )

    params, involved, inverse = jax.lax.cond(jnp.any(combined), minimum_norm, as_it_is)
    held = jnp.concatenate([jnp.repeat(constant, k), jnp.zeros(k, bool)])
    return _Independent(params, combined | constant, involved | held, inverse)
