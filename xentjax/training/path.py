"""Fits along a path of penalties, with cross-validation: one program, each fit certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.models import _rows, inference, one_pass
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.spread import Spread
from xentjax.solvers import checks
from xentjax.solvers import status as codes
from xentjax.solvers.compiled import join, separate
from xentjax.solvers.kept import kept
from xentjax.solvers.minimize import opening_at, run_steps
from xentjax.solvers.objective import Point, evaluate_with_hessian
from xentjax.solvers.penalty import absolute
from xentjax.solvers.proximal_newton import ProximalNewton
from xentjax.solvers.status import Status
from xentjax.training import folding
from xentjax.training.arguments import checked_objective
from xentjax.training.path_result import Folds, LogisticPath
from xentjax.training.solution import default_tolerance, null_model, null_point, scaled, tolerance_at

#: A path that is mostly quadratic begins as if this share of its penalty were L1: it has no largest factor of its own.
_LEAST_SHARE = 0.01


def lambda_max(
    x: ArrayLike,
    y: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    class_weight: str | Mapping[int, float] | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    num_classes: int | None = None,
) -> jax.Array:
    r"""The smallest factor of an L1 penalty for which all weights of the fit are 0.

    .. math::
      \lambda_{\max} = \max_j \Bigl|\frac{1}{\sum_i s_i}\sum_i s_i\,x_{ij}\,(\hat y_i - y_i)\Bigr|

    with the predictions of the model without features.

    Args and errors: those of :func:`fit_logistic`.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1])
      >>> top = xj.lambda_max(x, y)
      >>> top.round(3), xj.fit_logistic(x, y, l1=top).params.weights
      (Array(0.25, dtype=float32), Array([0.], dtype=float32))
    """
    options = (weights, class_weight, offset, fit_intercept, num_classes)
    static, data = separate(checked_objective("lambda_max", x, y, 0.0, 0.0, *options))
    return _lambda_max(static, data)


def fit_path(
    x: ArrayLike,
    y: ArrayLike,
    *,
    l1_ratio: float = 1.0,
    lambdas: ArrayLike | None = None,
    num_lambdas: int = 100,
    smallest: float | None = None,
    folds: int | ArrayLike | None = None,
    seed: int = 0,
    weights: ArrayLike | None = None,
    class_weight: str | Mapping[int, float] | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    tol: ArrayLike | None = None,
    max_steps: int = 100,
    num_classes: int | None = None,
    mesh: Mesh | None = None,
) -> LogisticPath:
    r"""Fit a logistic or softmax regression for each of many penalties, and choose one by cross-validation.

    .. math::
      \min_{w, b}\ \frac{1}{\sum_i s_i}\sum_i s_i\,\ell_i(x_i w + b + o_i)
      + \lambda\Bigl(\frac{1-\alpha}{2}\|w\|^2 + \alpha\|w\|_1\Bigr)

    Each fit starts where the one before it, of the next larger λ, has ended, with the Hessian that it has left; all
    folds and all λ are one compiled program. Features are centred and scaled inside; the penalty is that of the
    features as given.

    Args:
      x, y, weights, class_weight, offset, fit_intercept, num_classes: as in :func:`fit_logistic`.
      l1_ratio: α from 0 (quadratic penalty) to 1 (L1).
      lambdas: factors λ above 0, in any order; the result has them from the largest to the smallest. By default
        ``num_lambdas`` of them, in equal ratios, from :func:`lambda_max` over α, from where on all weights are 0 (α
        counts as 0.01 at least), to ``smallest`` times that.
      num_lambdas: how many.
      smallest: the last λ over the first, by default 1e-4, and 0.01 where there are fewer rows than features.
      folds: how many parts the rows are dealt to, at random and each class evenly; or the part of each row, ``[n]``
        integers from 0. Each part is predicted by fits to all others. None: no cross-validation.
      seed: of the dealing.
      tol: as in :func:`fit_logistic`, for each fit.
      max_steps: the most steps of each fit.
      mesh: devices to split the rows over, as in :func:`fit_logistic`.

    Returns:
      A :class:`LogisticPath`.

    It works under ``jit`` and ``vmap``, with ``folds`` given as a number. Traced λ that are not above 0 and finite are
    NaN in the result, at its end, and their fits ``not_finite``.

    Raises:
      ValueError: what :func:`fit_logistic` raises; a λ that is not above 0 and finite; l1_ratio or smallest is out of
        range; a fold without rows that count, or one whose other rows lack a class.

    Source: Friedman, Hastie and Tibshirani, J. Stat. Softw. 33 (2010), 1-22.

    Example:
      >>> import jax, xentjax as xj
      >>> x = jax.random.normal(jax.random.key(0), (200, 4))
      >>> y = (x[:, 0] + jax.random.normal(jax.random.key(1), (200,)) > 0).astype(int)
      >>> path = xj.fit_path(x, y, num_lambdas=20, folds=5)
      >>> path.params.weights.shape, path.folds.test_loss.shape, bool((path.folds.status == "converged").all())
      ((20, 4), (5, 20), True)
      >>> path.at(path.best_1se).weights.round(2)
      Array([0.75, 0.  , 0.  , 0.  ], dtype=float32)
    """
    ratio = _number("l1_ratio", l1_ratio)
    if not 0 <= ratio <= 1:
        raise ValueError(f"fit_path: l1_ratio must be from 0 to 1, got {l1_ratio}")
    steps = checks.number_of_steps(max_steps, "fit_path")
    if tol is not None:
        checks.require_tolerance(tol, "fit_path")
    options = (weights, class_weight, offset, fit_intercept, num_classes)
    spread = None if mesh is None else Spread.over("fit_path", mesh)
    objective, shapes = checked_objective("fit_path", x, y, 0.0, 0.0, *options, spread=spread)
    part, parts = folding.dealt(objective, folds, seed)
    folding.require_fair(objective, shapes, part, parts)
    if spread is not None:
        objective = objective.on(spread)
        part = spread.placed(part, objective.x.shape[0] // spread.parts)
    factors = _lambdas(lambdas, objective, shapes, ratio, num_lambdas, smallest)
    static, data = separate((objective, shapes, factors, part, tol))
    return _path(static, data, ratio, parts, steps)


@kept(0, 2, 3, 4)
def _path(static: Any, data: Any, l1_ratio: float, parts: int, max_steps: int) -> LogisticPath:
    objective, shapes, lambdas, part, tol = join(static, data)
    dtype = shapes.bias.dtype
    inner = scaled(objective, dtype)
    scaling: Any = inner.scaling
    own = jnp.ones(inner.x.shape[0], dtype) if inner.weights is None else inner.weights

    def without(fold: Any) -> _Fits:
        held = jnp.where(part == fold, own, 0)
        return _fits(inner, shapes, lambdas, l1_ratio, own - held, held, tol, max_steps)

    # The part -1 has no rows: without it the fits are those to all of them.
    found = jax.lax.map(without, jnp.arange(-1, parts, dtype=part.dtype))
    nothing_free = jnp.zeros(scaling.inverse.shape, bool)
    in_units = jax.vmap(jax.vmap(lambda params: inference.in_user_units(params, scaling, nothing_free)))
    found = found._replace(params=in_units(found.params))
    whole, others = (jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in (0, slice(1, None)))
    folds = Folds(
        params=others.params,
        gradient_norm=others.gradient_norm,
        steps=others.steps,
        status=Status(others.code),
        test_loss=others.held_loss,
        weights=jnp.zeros(parts, dtype).at[part].add(own),
    )
    path = LogisticPath(
        lambdas=lambdas,
        l1_ratio=jnp.asarray(l1_ratio, dtype),
        params=whole.params,
        objective=whole.objective,
        train_loss=whole.loss,
        gradient_norm=whole.gradient_norm,
        steps=whole.steps,
        status=Status(whole.code),
        folds=folds if parts else None,
    )
    return path if inner.spread is None else inner.spread.everywhere(path)


class _Fits(NamedTuple):
    """One path: a leading axis for λ."""

    params: LogisticParams
    objective: Any
    loss: Any
    held_loss: Any
    gradient_norm: Any
    steps: Any
    code: Any


def _fits(
    inner: LogisticObjective,
    shapes: LogisticParams,
    lambdas: Any,
    l1_ratio: float,
    own: Any,
    held: Any,
    tol: Any,
    max_steps: int,
) -> _Fits:
    """The fits to rows with weights ``own``, and their losses on those with weights ``held``."""
    inner, test = inner.weighted(own), inner.weighted(held).rows
    first, frequencies = null_model(inner, shapes)
    first, null_loss = null_point(inner, first)
    default = tolerance_at(default_tolerance(inner, frequencies), null_loss, held=True)
    limit = (lambda _: tol) if tol is not None else default
    solver = ProximalNewton("float32")

    def penalized(factor: Any) -> LogisticObjective:
        l1 = None if l1_ratio == 0 else factor * l1_ratio
        return dataclasses.replace(inner, l2=factor * (1 - l1_ratio), l1=l1)

    def next_fit(state: Any, factor: Any) -> Any:
        before, point, hessian = state
        objective = penalized(factor)
        point, hessian = _with_other_penalty(penalized(before), objective, point, hessian)
        run = opening_at(objective, point, solver.at(hessian), tol=limit)
        run, _ = run_steps(objective, solver, run, limit, max_steps, max_steps)
        run = run._replace(code=jnp.where(run.code == codes.RUNNING, codes.MAX_STEPS, run.code))
        loss = run.point.value - _penalty(objective, run.point.params)
        held_loss = one_pass.mean_loss(run.point.params, test)
        made = _Fits(run.point.params, run.point.value, loss, held_loss, run.norm, run.step, run.code)
        # Nothing starts from numbers that are none.
        ended = factor, run.point, run.solver.hessian
        return jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(run.point.value), new, old), ended, state), made

    largest = jnp.where(jnp.isnan(lambdas[0]), 1, lambdas[0])
    point, hessian = evaluate_with_hessian(penalized(largest), first)
    last, fits = jax.lax.scan(next_fit, (largest, point, hessian), lambdas)
    # Logits are largest at the end, and with them the rounding errors of the gradients.
    noise = inner.gradient_error(last[1].params)
    limited = (fits.code == codes.STALLED) | ((fits.code == codes.CONVERGED) & ~(noise <= limit(last[1])))
    return fits._replace(code=jnp.where(limited, codes.PRECISION_LIMITED, fits.code).astype(jnp.int32))


def _with_other_penalty(
    before: LogisticObjective, after: LogisticObjective, point: Point, hessian: Any
) -> tuple[Point, Any]:
    """Value, gradient and Hessian of the same rows with another penalty: no pass over the rows is needed."""
    weights = point.params.weights
    more = _of_scaled(after, after.l2 - before.l2)
    value = point.value + _penalty(after, point.params) - _penalty(before, point.params)
    gradient = point.gradient._replace(weights=point.gradient.weights + _rows.pull(more, weights))
    of_weights = jnp.repeat(more, weights.size // max(more.size, 1))
    diagonal = jnp.append(of_weights, jnp.zeros(point.params.bias.size, more.dtype))
    return Point(point.params, value, gradient), hessian + jnp.diag(diagonal)


def _penalty(objective: LogisticObjective, params: LogisticParams) -> Any:
    return _rows.penalty(_of_scaled(objective, objective.l2), params.weights) + absolute(
        objective.l1_factors(params), params
    )


def _of_scaled(objective: LogisticObjective, l2: Any) -> Any:
    assert objective.scaling is not None
    return objective.scaling.penalty(l2)


# -- arguments ---------------------------------------------------------------------------------------------------------


@kept(0)
def _lambda_max(static: Any, data: Any) -> jax.Array:
    objective, shapes = join(static, data)
    inner: Any = scaled(objective, shapes.bias.dtype)
    null, _ = null_point(inner, null_model(inner, shapes)[0])
    slope = inner.value_and_gradient(null)[1].weights
    inverse = inner.scaling.inverse.reshape((-1,) + (1,) * (slope.ndim - 1))
    in_units = jnp.where(inverse == 0, 0, jnp.abs(slope) / jnp.where(inverse == 0, 1, inverse))
    # A little more: the fit's own gradient is rounded otherwise.
    return jnp.max(in_units, initial=0) * (1 + 8 * jnp.finfo(slope.dtype).eps)


def _lambdas(
    lambdas: Any, objective: LogisticObjective, shapes: LogisticParams, l1_ratio: float, number: int, smallest: Any
) -> jax.Array:
    """The factors from the largest to the smallest."""
    dtype = shapes.bias.dtype
    if lambdas is not None:
        lambdas = policy.as_array("fit_path", "lambdas", lambdas).astype(dtype)
        if lambdas.ndim != 1 or lambdas.size == 0:
            raise ValueError(f"fit_path: lambdas has shape {lambdas.shape}, but needs one axis and one number or more")
        if not isinstance(lambdas, jax.core.Tracer):
            wrong = np.flatnonzero(~((lambdas > 0) & np.isfinite(lambdas)))
            if wrong.size:
                value = lambdas[wrong[0]]
                raise ValueError(f"fit_path: lambdas[{wrong[0]}] is {value}, but needs to be above 0 and finite")
        return -jnp.sort(-jnp.where((lambdas > 0) & jnp.isfinite(lambdas), lambdas, jnp.nan))
    if policy.whole_number("fit_path", "num_lambdas", number) < 1:
        raise ValueError(f"fit_path: num_lambdas must be 1 or more, got {number}")
    n, d = objective.x.shape
    smallest = (1e-4 if n >= d else 1e-2) if smallest is None else _number("smallest", smallest)
    if not 0 < smallest <= 1:
        raise ValueError(f"fit_path: smallest must be above 0 and at most 1, got {smallest}")
    largest = _lambda_max(*separate((objective, shapes))) / max(l1_ratio, _LEAST_SHARE)
    # Where no feature tells anything, any factor leaves all weights 0.
    largest = jnp.where(largest > 0, largest, 1)
    return largest * jnp.asarray(np.geomspace(1, smallest, number), dtype)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"fit_path: {name} must be a number, not traced, got {value!r}") from error
