"""One fit as a function of arrays: scaled, solved, and polished."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.measures.entropy import binary_entropy, entropy
from xentjax.models import _rows, inference, one_pass
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling
from xentjax.solvers import status as codes
from xentjax.solvers.minimize import History, State, blank_history, opening, run_steps
from xentjax.solvers.newton import Newton
from xentjax.solvers.objective import Point, largest_component, residual, select
from xentjax.solvers.penalty import absolute, l1_factors
from xentjax.solvers.status import Status
from xentjax.training.fit_result import LogisticFit
from xentjax.training.polish import Needed, Polished, polished

#: The default tolerance beside the curvature, and a Newton step beside the features' deviations that is no rounding.
_RELATIVE_TOLERANCE = {32: 1e-4, 64: 1e-8}
_STILL_MOVING = {32: 1e-2, 64: 1e-5}

#: How many times the tolerance a gradient may be for a last step of Newton's method to be tried, with a Hessian and
#: with products alone, where a failure costs more; and how large at most, for a parabola to tell where the minimum is.
_EARLY, _EARLY_BY_PRODUCTS = {32: 10.0, 64: 1e3}, {32: 10.0, 64: 1e2}
_NEAR = 1e-4

#: The share of the tolerance that the last step may leave where it begins within it, by products alone.
_LEFT_BY_DEFAULT = 1e-3

#: The share of the objective that a Newton step may still gain where a fit has converged by the default tolerance.
_MUCH = {32: 1e-3, 64: 1e-6}


class Inside(NamedTuple):
    """A fit in terms of scaled features, with what makes doubtful whether its minimum exists and is the only one."""

    params: LogisticParams
    scaling: Scaling
    hessian: Any  # None where the parameters are too many for it
    free: Any  # features without penalty
    moving: Any  # a Newton step from here is more than rounding in weights that no penalty holds
    combined: Any  # [d], columns that depend on those before them
    doubtful: Any  # moving, or columns that depend on others


def solve(
    objective: LogisticObjective,
    solver: Any,
    init: LogisticParams | None,
    tol: Any,
    *,
    shapes: LogisticParams,
    name: str,
    max_steps: Any,
    longest: int,
    columns: Any,
    hessian: Needed,
    scaling: Scaling | None = None,
) -> tuple[LogisticFit, Inside]:
    """The minimum of an objective whose data are in the user's units, without covariances.

    The scaling is made of its features unless it is given.

    It ends with a Newton step. With ``"none"`` for a Hessian that is made of products with it, for parameters too many
    for the matrix; there is then no test whether columns depend on others, but for those that are constant. That test
    needs an ``"exact"`` one where a penalty does not hold all parameters, covariances the ``"final"`` one.

    The history has the length ``longest``, which is ``max_steps`` or more. The columns of x from number ``columns`` on
    are padding: zeros, which get the weight 0.
    """
    dtype = shapes.bias.dtype
    inner = scaled(objective, dtype, scaling)
    null, frequencies = null_model(inner, shapes)
    null, null_loss = _null_fit(inner, null, frequencies)
    scaling = inner.scaling
    assert scaling is not None
    first = null
    if init is not None:
        init = jax.tree.map(lambda p: p.astype(dtype), init)
        init = init if inner.fit_intercept else init._replace(bias=jnp.zeros_like(init.bias))
        first = _better(inner, scaling.redo(init), null, null_loss)
    held = ~jnp.any(inner.unpenalized())
    limit = tol if tol is not None else tolerance_at(default_tolerance(inner, frequencies), null_loss, held)
    state = opening(inner, first, solver, tol=limit)
    early = _early(state, dtype, hessian, is_default=tol is None)
    ran = _run(inner, solver, state, limit, max_steps, longest, needed=hessian, early=early)
    state, history, (point, pull, step, curvature, pivots) = ran
    norm = largest_component(residual(inner, point))
    tiny = jnp.finfo(dtype).tiny
    decrement = jnp.vdot(pull, step) / 2 / jnp.maximum(jnp.abs(point.value), tiny)
    sought = limit(point) if callable(limit) else limit
    noise = _gradient_error(inner, point, sought)
    code = jnp.where(state.code == codes.RUNNING, codes.MAX_STEPS, state.code)
    code = jnp.where(code == codes.STALLED, codes.PRECISION_LIMITED, code)
    told = noise <= sought
    if tol is None:
        sought, told = jnp.maximum(sought, noise), decrement <= _MUCH[jnp.finfo(dtype).bits]
    reached = (norm <= sought) & (code != codes.NOT_FINITE)
    code = jnp.where(reached, jnp.where(told, codes.CONVERGED, codes.PRECISION_LIMITED), code).astype(jnp.int32)

    # A class without rows: its bias has no finite optimum, with a penalty neither.
    absent = _lacks_a_class(inner, frequencies)
    code = jnp.where(absent & objective.fit_intercept & (code != codes.NOT_FINITE), codes.SEPARATED, code)
    free = inner.unpenalized()
    given = jnp.arange(scaling.inverse.size, dtype=jnp.int32) < columns
    constant = free & given & (scaling.inverse == 0) if objective.fit_intercept else jnp.zeros_like(free)
    # Sums of products are rounded: what is left of a column that depends on others is a few units in the last place.
    none = 64 * step.size * jnp.finfo(dtype).eps
    combined = free & (pivots <= none) & (scaling.inverse != 0) if pivots is not None else jnp.zeros_like(free)
    each = shapes.bias.size
    unheld = jnp.append(jnp.repeat(free, each), jnp.broadcast_to(jnp.any(free), each))
    farthest = jnp.max(jnp.where(unheld, jnp.abs(step), 0))
    moving = ~(farthest <= _STILL_MOVING[jnp.finfo(dtype).bits]) & (code != codes.NOT_FINITE)
    solved = (code == codes.CONVERGED) | (code == codes.PRECISION_LIMITED)
    code = jnp.where(solved & jnp.any(constant), codes.RANK_DEFICIENT, code)

    n = jnp.asarray(inner.x.shape[0], dtype) if inner.weights is None else jnp.sum(inner.weights)
    loss = point.value - _rows.penalty(scaling.penalty(inner.l2), point.params.weights)
    loss = loss - absolute(l1_factors(inner, point.params), point.params)
    effective = jnp.full((), jnp.nan, dtype)  # with a quadratic penalty it comes with the covariances
    if inner.l1 is not None:
        biases = objective.fit_intercept * max(shapes.bias.size - 1, 1)
        effective = (jnp.sum(point.params.weights != 0) + biases).astype(dtype)
    rank = (jnp.sum(given & ~(constant | combined)) + objective.fit_intercept) * max(shapes.bias.size - 1, 1)
    fit = LogisticFit(
        params=inference.in_user_units(point.params, scaling, free),
        objective=point.value,
        gradient_norm=norm,
        newton_decrement=decrement,
        steps=state.step,
        status=Status(code.astype(jnp.int32)),
        history=history,
        dependent=constant | combined,
        direction=jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), point.params),
        completely_separated=jnp.zeros((), bool),
        log_likelihood=-n * loss,
        null_log_likelihood=-n * null_loss,
        num_observations=n,
        degrees_of_freedom=jnp.where(jnp.all(free), rank.astype(dtype), effective),
        covariance=None,
        robust_covariance=None,
        solver=name,
        with_l1=inner.l1 is not None,
    )
    return fit, Inside(point.params, scaling, curvature, free, moving, combined, moving | jnp.any(combined))


def _early(state: State, dtype: Any, needed: Needed, *, is_default: bool) -> float | None:
    """How many times the tolerance is near enough to try the last step; None where that begins within it.

    By default a fit has all the digits that a Newton step from within the tolerance gives.
    """
    if is_default:
        return None
    has_hessian = needed != "none" or hasattr(state.solver, "hessian")
    return (_EARLY if has_hessian else _EARLY_BY_PRODUCTS)[jnp.finfo(dtype).bits]


def _run(
    inner: LogisticObjective,
    solver: Any,
    state: State,
    limit: Any,
    max_steps: Any,
    longest: int,
    *,
    needed: Needed,
    early: float | None,
) -> tuple[State, History, Polished]:
    """Steps until the gradient is within the limit, and the last one, of Newton's method.

    That one takes the place of several if it is made ``early``, from a gradient of so many times the limit. If it does
    not lead to one within the limit, the steps go on from where they were.
    """
    share = _LEFT_BY_DEFAULT if early is None else 1
    bound = limit if callable(limit) else lambda point: limit

    def attempt(state: State, history: History, factor: Any) -> tuple[State, History, Polished]:
        near = lambda point: jnp.maximum(jnp.minimum(bound(point) * factor, _NEAR), bound(point))
        state, history = run_steps(inner, solver, state, near, max_steps, longest, history)
        wanted, allowed = bound(state.point) * share, state.code != codes.RUNNING
        ended = polished(inner, solver, state.point, state.solver, wanted, allowed=allowed, needed=needed)
        return state, history, ended

    blank = blank_history(state, longest)
    if early is None:
        return attempt(state, blank, 1)

    def next_attempt(run: Any) -> Any:
        state, history, _, is_last, _ = run
        state, history, ended = attempt(state, history, jnp.where(is_last, 1, early))
        reached = largest_component(residual(inner, ended.point)) <= bound(ended.point)
        done = is_last | reached | (state.code != codes.CONVERGED)
        code = jnp.where(done, state.code, codes.RUNNING).astype(jnp.int32)
        return state._replace(code=code), history, ended, jnp.ones_like(is_last), done

    shapes = jax.eval_shape(lambda: attempt(state, blank, 1)[2])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    start = (state, blank, nothing, jnp.zeros((), bool), jnp.zeros((), bool))
    return jax.lax.while_loop(lambda run: ~run[-1], next_attempt, start)[:3]


def _gradient_error(inner: LogisticObjective, point: Point, enough: Any) -> Any:
    """The rounding error of the gradient, as :meth:`LogisticObjective.gradient_error` estimates it, or a bound of that
    estimate that is at most ``enough``, which takes no pass over the rows.

    With the shares p_i of the rows and features of variance 1, each p_i x_ij² is in [0, 1] and they sum to 1, as does
    Σ_i p_i² x_ij² x_ik² at most. So Σ_i p_i² x_ij² (Σ_k x_ik² w_k²) is at most Σ_k w_k², and with the square of the
    logit in its place at most (d + 1) times that; a residual is at most 1.
    """
    weights, bias = point.params
    n, d = inner.x.shape
    exact = lambda: inner.gradient_error(point.params)
    if inner.offset is not None:
        return exact()
    largest = jnp.abs(weights) if weights.ndim == 1 else jnp.max(jnp.abs(weights), axis=1, initial=0)
    squares = (d + 2) * (jnp.sum(largest**2) + jnp.max(bias**2))
    share = 1 / n if inner.weights is None else jnp.max(inner.weights) / one_pass.total_of(inner.rows)
    error = jnp.sqrt(squares + share * (1 + n / 64))
    pull = jnp.max(inner.scaling.penalty(inner.l2) * largest, initial=0)  # type: ignore[union-attr]
    sums = (largest_component(point.gradient) + pull) * (1 + n / 64) ** 0.5
    bound = jnp.finfo(bias.dtype).eps * (error + sums + pull)
    if inner.shared:  # one of many at once, which would all wait for it
        return bound
    return jax.lax.cond(bound <= enough, lambda: bound, exact)


def _better(inner: LogisticObjective, first: LogisticParams, second: LogisticParams, second_value: Any) -> Any:
    """The first of two parameters, or where their objective is less the second ones.

    Far from the data all predictions are certain, and nothing there leads back.
    """
    keep = _objective(inner, first) <= second_value
    return select(keep, first, second)


def _objective(inner: LogisticObjective, params: LogisticParams) -> Any:
    return inner.value_and_gradient(params)[0] + absolute(l1_factors(inner, params), params)


def scaled(objective: LogisticObjective, dtype: Any, scaling: Scaling | None = None) -> LogisticObjective:
    """The objective in terms of scaled features, with weights in the dtype of computation.

    A scaling that the objective has already says what has been taken off its features before.
    """
    weights = None if objective.weights is None else objective.weights.astype(dtype)
    if scaling is None:
        centered, spread = objective.fit_intercept, objective.spread
        scaling = one_pass.scaling_of(objective.x, weights, dtype, centered=centered, spread=spread)
        if objective.scaling is not None:
            scaling = dataclasses.replace(scaling, origin=objective.scaling.origin)
    return dataclasses.replace(objective.weighted(weights), scaling=scaling)


def default_tolerance(inner: LogisticObjective, frequencies: Any) -> Any:
    """1e-8 (float32: 1e-4) times 4 f (1 - f) for the rarest class: a gradient is small only beside the curvature."""
    relative = _RELATIVE_TOLERANCE[jnp.finfo(frequencies.dtype).bits]
    if not inner.fit_intercept:
        return jnp.full((), relative, frequencies.dtype)
    both = jnp.stack([frequencies, 1 - frequencies]) if frequencies.ndim == 0 else frequencies
    rarest = jnp.min(jnp.clip(both, 1e-3 / max(inner.y.shape[0], 1), 0.5))
    return relative * 4 * rarest * (1 - rarest)


def tolerance_at(tol: Any, null_loss: Any, held: Any) -> Any:
    """The default tolerance as a function of the point.

    Where penalties hold all weights (``held``) there is a minimum, though its loss may be as small as they are: rows
    that are separated leave gradients as small as their losses. They have to be small beside the objective, too.
    """
    least = jnp.finfo(jnp.result_type(null_loss)).tiny
    return lambda point: tol * jnp.where(held, jnp.clip(point.value / jnp.maximum(null_loss, least), least, 1), 1)


def null_model(inner: LogisticObjective, shapes: LogisticParams) -> tuple[LogisticParams, Any]:
    """The parameters of the model without features (and without offset), and the share of each class."""
    rows = inner.y.shape[0]
    dtype, n = shapes.bias.dtype, max(rows, 1)
    blank = jax.tree.map(jnp.zeros_like, LogisticParams(shapes.weights[:0], shapes.bias))

    def counted(block: one_pass.Block) -> Any:
        if block.y.ndim == 1 and blank.bias.ndim == 1:
            return blank.bias.at[block.y].add(block.share)
        return jnp.matmul(block.share, block.y.astype(dtype), precision=_rows.PRECISION)

    columns = inner.rows._replace(x=jnp.zeros((rows, 0), dtype), offset=None, scaling=None)
    frequencies = one_pass.over_blocks(counted, blank, columns)
    # A class that no row has would have an infinite bias.
    least = 1e-3 / n
    inside = jnp.clip(frequencies, least, None if shapes.bias.ndim else 1 - least)
    if not inner.fit_intercept:
        bias = jnp.zeros_like(shapes.bias)
    elif shapes.bias.ndim == 0:
        bias = jnp.log(inside) - jnp.log1p(-inside)
    else:
        bias = jnp.log(inside) - jnp.mean(jnp.log(inside))
    return LogisticParams(jnp.zeros_like(shapes.weights), bias), frequencies


def _lacks_a_class(inner: LogisticObjective, frequencies: Any) -> Any:
    if frequencies.ndim:
        return jnp.any(frequencies == 0)
    # The share of all rows is 1 but for rounding.
    counted = True if inner.weights is None else inner.weights != 0
    return ~(jnp.any((inner.y > 0) & counted) & jnp.any((inner.y < 1) & counted))


def _null_fit(inner: LogisticObjective, null: LogisticParams, frequencies: Any) -> tuple[LogisticParams, Any]:
    """The model without features, and its mean loss: where no offset shifts it, the entropy of the classes."""
    if not inner.fit_intercept or inner.offset is not None:
        return null_point(inner, null)
    if frequencies.ndim == 0:
        return null, binary_entropy(frequencies)
    total = jnp.sum(frequencies)
    return null, total * entropy(frequencies / jnp.where(total == 0, 1, total))


def null_point(inner: LogisticObjective, null: LogisticParams) -> tuple[LogisticParams, Any]:
    """The model without features, whose bias is fitted to the offset, and its mean loss."""
    none = jnp.zeros((inner.x.shape[0], 0), null.bias.dtype)
    no_penalty: dict[str, Any] = {"l2": jnp.zeros((), null.bias.dtype), "l1": None}
    columns = dataclasses.replace(inner, x=none, scaling=None, **no_penalty)
    params = LogisticParams(null.weights[:0], null.bias)
    if inner.offset is None or not inner.fit_intercept:
        return null, columns.value_and_gradient(params)[0]
    solver = Newton()
    # Offsets may be far from 0 all alike, or some of them.
    share = _rows.shares(inner.weights)
    rows = inner.offset if share is None else _rows.only(inner.weights != 0, inner.offset)
    mean = jnp.sum(_rows.scale(share, rows.astype(null.bias.dtype)), axis=0)
    params = _better(columns, params._replace(bias=params.bias - mean), params, _objective(columns, params))
    point = run_steps(columns, solver, opening(columns, params, solver, tol=0.0), 0.0, 50, 50)[0].point
    return null._replace(bias=point.params.bias), point.value
