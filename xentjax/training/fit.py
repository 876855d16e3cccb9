"""Logistic and softmax regression, fitted to the last digits and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.spread import Spread
from xentjax.models.streamed import StreamedRows, reading
from xentjax.solvers import checks
from xentjax.solvers.compiled import join, separate
from xentjax.solvers.kept import kept
from xentjax.solvers.minimize import History, Solver
from xentjax.solvers.penalty import require_ability
from xentjax.training import buckets
from xentjax.training.arguments import checked_init, checked_objective, is_known
from xentjax.training.certificate import Inverse, as_it_is, explained, with_covariances
from xentjax.training.fit_result import LogisticFit
from xentjax.training.polish import Needed
from xentjax.training.solution import Inside, solve
from xentjax.training.solvers_by_name import chosen_solver

#: Up to this many parameters their covariances are computed unless told otherwise.
_INFERENCE = 1000

#: Beyond this many parameters no Hessian is formed, but for a solver or covariances that need it. Where a penalty holds
#: all of them, nothing is left to be found in it, and products take less time from the second number on.
_DENSE, _DENSE_PENALIZED = 2000, 100


def fit_logistic(
    x: ArrayLike,
    y: ArrayLike,
    *,
    l2: ArrayLike = 0.0,
    l1: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
    class_weight: str | Mapping[int, float] | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    solver: str | Solver = "auto",
    tol: ArrayLike | None = None,
    max_steps: int = 1000,
    init: LogisticParams | None = None,
    num_classes: int | None = None,
    inference: bool | None = None,
    mesh: Mesh | None = None,
) -> LogisticFit:
    r"""Fit a logistic or softmax regression.

    .. math::
      \min_{w, b}\ \frac{1}{\sum_i s_i}\sum_i s_i\,\ell_i(x_i w + b + o_i) + \frac{\lambda}{2}\|w\|^2
      + \lambda_1 \|w\|_1

    with :math:`\ell_i` the cross-entropy of row i (:func:`logistic_loss`). The bias is not penalized. The features are
    centred and scaled inside, and the result is that of the features as given, as are the penalties.

    Args:
      x: features ``[n, d]``, a sparse matrix of SciPy, which is made dense one block of rows at a time, or the rows of
        a file (:func:`open_rows`), which are read a chunk at a time in each pass. The fit is computed in float64 only
        where JAX is configured for it (``jax_enable_x64``); otherwise arrays of NumPy in 64 bits are centred before
        they are rounded to float32.
      y: two classes: ``[n]``, 0 and 1 (or booleans, or probabilities of class 1). K classes: integers ``[n]`` from 0 to
        K - 1, or target distributions ``[n, K]``.
      l2: λ, or one factor for each feature ``[d]``. scikit-learn's C is :math:`1/(\lambda \sum_i s_i)`.
      l1: :math:`\lambda_1`, or one factor for each feature ``[d]``. From :func:`lambda_max` on, all weights are 0. The
        number 0 stands for no such penalty; an array, whatever it holds, for one.
      weights: example weights s ``[n]``, 0 or more. They count repetitions: weight 2 is the same row twice, weight 0
        none.
      class_weight: factors of the weights by class: ``"balanced"`` for :math:`\sum s / (K \sum_{i \in c} s_i)`, a
        mapping of classes to factors (1 for others), or an array ``[K]``. For labels that are integers.
      offset: known parts o of the logits, ``[n]`` or ``[n, K]``.
      fit_intercept: whether there is a bias b.
      solver: ``"auto"``, which chooses by the shape of the problem, ``"newton"``, ``"lbfgs"``, ``"newton-cg"``, for l1
        ``"proximal-newton"`` or ``"proximal-gradient"``, or any :class:`Solver`. The result names it, and the reason.
      tol: bound of the gradient's largest component (with l1 of the smallest subgradient's), in units of standardized
        features. By default 1e-8 (float32: 1e-4) times 4 f (1 - f), f being the share of the rarest class, and where
        penalties hold all weights times the objective beside its value without features; or the gradient's rounding
        error, if that is more. Whatever the solver, a last Newton step follows. By default it begins within the
        tolerance, so that coefficients are far better than that; with a bound of yours it need only end there.
      max_steps: the most steps of the solver.
      init: initial parameters; by default, and where they have a larger objective than that, the model without
        features. Without an intercept its bias counts as 0.
      num_classes: K, where integer labels do not tell.
      inference: whether to compute the covariances of the estimates, which standard errors and tests are made of. By
        default for up to 1000 parameters, and not with l1, where they are not defined.
      mesh: devices to split the rows over, along its axis ``data``: each sums over its own rows, and one all-reduce
        adds value, gradient and Hessian up. The result is on every device, and the same to rounding. In a run of
        several processes (``jax.distributed``) each passes its own rows, of which it may have none.

    Returns:
      A :class:`LogisticFit`. Of the many parameters that give K classes the same probabilities it has those relative
      to class 0 where there is no penalty, and otherwise those that sum to 0 over the classes.

    It works under ``jit`` and ``vmap``; y then needs ``num_classes`` for more than two classes, and what would be an
    error is in the status.

    Raises:
      ValueError: a shape does not fit; x, y, weights or offset hold NaN, infinities, or labels out of range (the error
        names the first place; rows of weight 0 may hold anything); a weight or factor is negative; all weights are 0;
        a class has no row with a weight; or with l1 inference or a solver is asked for that cannot be had with it.
      TypeError: an argument is of the wrong type.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 1, 0, 1])
      >>> fit = xj.fit_logistic(x, y)
      >>> str(fit.status), f"{fit.params.weights[0]:.2f} ± {fit.std_err.weights[0]:.2f}"
      ('converged', '0.42 ± 0.68')
    """
    given = (x, y, l2, l1, weights, class_weight, offset, fit_intercept, num_classes)
    spread = None if mesh is None else Spread.over("fit_logistic", mesh)
    objective, shapes = checked_objective("fit_logistic", *given, spread=spread)
    objective = objective if spread is None else objective.on(spread)
    steps = checks.number_of_steps(max_steps, "fit_logistic")
    if tol is not None:
        checks.require_tolerance(tol, "fit_logistic")
    size = shapes.weights.size + shapes.bias.size
    name, made, reason = chosen_solver("fit_logistic", solver, objective, shapes, has_init=init is not None)
    require_ability(made, objective, shapes)
    if inference is not None and not isinstance(inference, bool):
        raise TypeError(f"fit_logistic: inference must be True, False or None, got {inference!r}")
    if init is not None:
        init = checked_init("fit_logistic", init, shapes)
        init = init if spread is None else spread.everywhere(init)
    if inference and objective.l1 is not None:
        raise ValueError("fit_logistic: with l1 there is no inference: covariances of the estimates are not defined")
    with_inference = (size <= _INFERENCE and objective.l1 is None) if inference is None else inference
    penalized = is_known(objective.l2) and bool(np.all(np.asarray(objective.l2) > 0))
    matrix_free = size > (_DENSE_PENALIZED if penalized else _DENSE) and not with_inference
    hessian: Needed = "final" if with_inference else "none" if matrix_free else "rough" if penalized else "exact"
    how = _How(name, buckets.bucket(steps, least=128), hessian)
    columns, problem = objective.x.shape[1], buckets.padded(objective, shapes.bias.dtype)
    if problem is not objective:
        wider = problem.x.shape[1]
        shapes = buckets.padded_params(shapes, wider)
        init = None if init is None else buckets.padded_params(init, wider)
    static, data = separate((problem, made, init, shapes, tol, steps, columns))
    with reading(x):
        fit, inside = _solved(static, data, how)
        fit = _certified(problem, fit, inside, with_inference)
        if isinstance(x, StreamedRows):
            jax.block_until_ready(fit)
    # The reason names sizes, which programs are not compiled for.
    fit = dataclasses.replace(fit, reason=reason)
    if problem is not objective:
        return buckets.without_padding(fit, columns, steps)
    return dataclasses.replace(fit, history=_first(fit.history, steps))


def _first(history: History, steps: int) -> History:
    """Its first so many entries. (JAX compiles a program for each number of them.)"""
    if not is_known(history.value):
        return jax.tree.map(lambda values: values[:steps], history)
    return jax.device_put(jax.tree.map(lambda values: np.asarray(values)[:steps], history))


class _How(NamedTuple):
    """What a fit's program is compiled for beside its problem, as in :func:`solve`."""

    name: str
    longest: int
    hessian: Needed


@kept(0, 2)
def _solved(static: Any, data: Any, how: _How) -> tuple[LogisticFit, Inside]:
    objective, solver, init, shapes, tol, max_steps, columns = join(static, data)
    settings = how._asdict() | {"shapes": shapes, "max_steps": max_steps, "columns": columns}
    return _everywhere(objective, solve(objective, solver, init, tol, **settings))


def _certified(objective: LogisticObjective, fit: LogisticFit, inside: Inside, with_inference: bool) -> LogisticFit:
    """The fit, explained where it is doubtful, and with covariances where they are asked for."""
    if isinstance(inside.doubtful, jax.core.Tracer):
        certain, uncertain = (lambda: as_it_is(fit, inside)), (lambda: explained(objective, fit, inside))
        fit, inside, inverse = jax.lax.cond(inside.doubtful, uncertain, certain)
        return with_covariances(objective, fit, inside, inverse) if with_inference else fit
    # What few fits need is a program of its own, so that the others do not wait for its compilation.
    if bool(inside.doubtful):
        fit, inside, inverse = _explained(*separate((objective, fit, inside)))
        return _with_covariances(*separate((objective, fit, inside, inverse))) if with_inference else fit
    return _with_covariances(*separate((objective, fit, inside, None))) if with_inference else fit


@kept(0)
def _explained(static: Any, data: Any) -> tuple[LogisticFit, Inside, Inverse]:
    objective, fit, inside = join(static, data)
    return _everywhere(objective, explained(objective, fit, inside))


@kept(0)
def _with_covariances(static: Any, data: Any) -> LogisticFit:
    objective, fit, inside, inverse = join(static, data)
    if inverse is None:
        fit, inside, inverse = as_it_is(fit, inside)
    return _everywhere(objective, with_covariances(objective, fit, inside, inverse))


def _everywhere(objective: LogisticObjective, found: Any) -> Any:
    """What was found, on every device that has rows."""
    return found if objective.spread is None else objective.spread.everywhere(found)
