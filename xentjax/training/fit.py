"""Logistic and softmax regression, fitted to the last digits and certified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.models import one_pass
from xentjax.models.logistic import LogisticParams, params_as_arrays
from xentjax.models.loss import check_arguments
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling
from xentjax.models.sparse import SparseRows, is_sparse
from xentjax.solvers import checks
from xentjax.solvers.compiled import join, separate
from xentjax.solvers.kept import kept
from xentjax.solvers.minimize import History, Solver
from xentjax.solvers.penalty import require_ability
from xentjax.training import buckets
from xentjax.training.certificate import Inverse, as_it_is, explained, with_covariances
from xentjax.training.fit_result import LogisticFit
from xentjax.training.host import Centered, centered, require_held
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
) -> LogisticFit:
    r"""Fit a logistic or softmax regression.

    .. math::
      \min_{w, b}\ \frac{1}{\sum_i s_i}\sum_i s_i\,\ell_i(x_i w + b + o_i) + \frac{\lambda}{2}\|w\|^2
      + \lambda_1 \|w\|_1

    with :math:`\ell_i` the cross-entropy of row i (:func:`logistic_loss`). The bias is not penalized. The features are
    centred and scaled inside, and the result is that of the features as given, as are the penalties.

    Args:
      x: features ``[n, d]``, or a sparse matrix of SciPy, which is made dense one block of rows at a time. The fit is
        computed in float64 only where JAX is configured for it (``jax_enable_x64``); otherwise arrays of NumPy in
        64 bits are centred before they are rounded to float32.
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
    objective, shapes = checked_objective("fit_logistic", *given)
    steps = checks.number_of_steps(max_steps, "fit_logistic")
    if tol is not None:
        checks.require_tolerance(tol, "fit_logistic")
    size = shapes.weights.size + shapes.bias.size
    name, made, reason = chosen_solver("fit_logistic", solver, objective, shapes, has_init=init is not None)
    require_ability(made, objective, shapes)
    if inference is not None and not isinstance(inference, bool):
        raise TypeError(f"fit_logistic: inference must be True, False or None, got {inference!r}")
    if init is not None:
        init = params_as_arrays("fit_logistic", "init", init)
        for field, got, needed in zip(init._fields, init, shapes, strict=True):
            policy.require_shape("fit_logistic", f"init.{field}", got.shape, needed.shape, "that of the parameters")
            if _known(got):
                _require_all("fit_logistic", np.isfinite(np.asarray(got)), f"init.{field}", np.asarray(got), "finite")
    if inference and objective.l1 is not None:
        raise ValueError("fit_logistic: with l1 there is no inference: covariances of the estimates are not defined")
    with_inference = (size <= _INFERENCE and objective.l1 is None) if inference is None else inference
    penalized = _known(objective.l2) and bool(np.all(np.asarray(objective.l2) > 0))
    matrix_free = size > (_DENSE_PENALIZED if penalized else _DENSE) and not with_inference
    hessian: Needed = "final" if with_inference else "none" if matrix_free else "rough" if penalized else "exact"
    how = _How(name, buckets.bucket(steps, least=128), hessian)
    columns, problem = objective.x.shape[1], buckets.padded(objective, shapes.bias.dtype)
    if problem is not objective:
        wider = problem.x.shape[1]
        shapes = buckets.padded_params(shapes, wider)
        init = None if init is None else buckets.padded_params(init, wider)
    static, data = separate((problem, made, init, shapes, tol, steps, columns))
    fit, inside = _solved(static, data, how)
    # The reason names sizes, which programs are not compiled for.
    fit = dataclasses.replace(_certified(problem, fit, inside, with_inference), reason=reason)
    if problem is not objective:
        return buckets.without_padding(fit, columns, steps)
    return dataclasses.replace(fit, history=_first(fit.history, steps))


def _first(history: History, steps: int) -> History:
    """Its first so many entries. (JAX compiles a program for each number of them.)"""
    if not _known(history.value):
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
    return solve(objective, solver, init, tol, **settings)


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
    return explained(*join(static, data))


@kept(0)
def _with_covariances(static: Any, data: Any) -> LogisticFit:
    objective, fit, inside, inverse = join(static, data)
    if inverse is None:
        fit, inside, inverse = as_it_is(fit, inside)
    return with_covariances(objective, fit, inside, inverse)


# -- arguments ---------------------------------------------------------------------------------------------------------


def checked_objective(
    function: str,
    x: Any,
    y: Any,
    l2: Any,
    l1: Any,
    weights: Any,
    class_weight: Any,
    offset: Any,
    fit_intercept: Any,
    num_classes: Any,
    *,
    complete: bool = True,
) -> tuple[LogisticObjective, LogisticParams]:
    """The problem in the user's units, checked, and parameters 0 of its shapes. Errors name the function.

    Unless it has to be ``complete`` a class may lack rows.
    """
    if not isinstance(fit_intercept, bool):
        raise TypeError(f"{function}: fit_intercept must be True or False, got {fit_intercept!r}")
    for name, values in (("y", y), ("weights", weights), ("offset", offset)):
        require_held(function, name, values)
    x, scaling = centered(function, x, weights, at_origin=not fit_intercept), None
    if isinstance(x, Centered):
        none: Any = np.zeros(x.origin.shape, np.float32)
        scaling = Scaling(none, none + 1, x.origin)
        x = x.x
    if is_sparse(x) and not isinstance(x, SparseRows):
        x = SparseRows.of(x, one_pass.block_rows(x.shape[1], x.dtype))
    # Each operation of JAX's would be a program for each shape: what is NumPy's stays so until it has its dtype.
    if isinstance(x, np.ndarray) and x.dtype.kind in "biu":
        x = x.astype(float)
    if isinstance(y, np.ndarray) and y.dtype.kind == "b":
        y = y.astype(np.int32)
    l1 = None if isinstance(l1, (int, float)) and l1 == 0 else l1
    array = lambda n, v: policy.as_array(function, n, v, policy.copied)
    # Factors that are known stay on the host: a program takes them from there sooner than they are placed.
    factors = lambda n, v: policy.as_array(function, n, v, np.asarray if _known(*jax.tree.leaves(v)) else jnp.asarray)
    x, y, l2 = x if isinstance(x, SparseRows) else array("x", x), array("y", y), factors("l2", l2)
    weights, offset = (None if v is None else array(n, v) for n, v in (("weights", weights), ("offset", offset)))
    l1 = None if l1 is None else factors("l1", l1)
    if num_classes is not None:
        num_classes = number_of_classes(function, num_classes)
    if x.ndim != 2:
        raise ValueError(f"{function}: x has shape {x.shape}, but needs [n, d]")
    if l1 is not None and l1.shape not in ((), x.shape[1:]):
        raise ValueError(f"{function}: l1 has shape {l1.shape}, but needs () or {x.shape[1:]}, one for each feature")
    if policy.is_float(y) and y.ndim == 2 and y.shape[1] < 2:
        raise ValueError(f"{function}: y has shape {y.shape}, but needs [n], or [n, K] with 2 classes or more")
    if x.shape[0] == 0:
        raise ValueError(f"{function}: x has shape {x.shape}: there is no row to fit to")
    if not policy.is_float(x):
        x = x.astype(jnp.result_type(float))
    if y.dtype == jnp.bool_:
        y = y.astype(jnp.int32)
    # One program for numbers of Python's and of numpy's.
    with np.errstate(over="ignore"):
        l2, l1 = (None if v is None else v.astype(policy.compute_dtype(x.dtype)) for v in (l2, l1))
    _require_values(function, x, y, l2, l1, weights, offset)
    l2, l1, weights = (_nan_where_negative(values) for values in (l2, l1, weights))
    if weights is not None and not _known(weights):
        weights = jnp.where(jnp.isfinite(jnp.sum(weights)), weights, jnp.nan)
    objective = LogisticObjective(
        x, y, l2, weights, offset, l1, scaling, fit_intercept=fit_intercept, num_classes=num_classes
    )
    shapes = objective.shapes(function)
    check_arguments(function, shapes, x, y, l2, weights, offset)
    if class_weight is not None:
        objective = _with_class_weight(function, objective, shapes, class_weight)
    if complete:
        _require_classes(function, objective, shapes)
    return objective, shapes


def number_of_classes(function: str, num_classes: Any) -> int:
    number = policy.whole_number(function, "num_classes", num_classes)
    if number < 2:
        raise ValueError(f"{function}: num_classes must be 2 or more, got {number}")
    return number


def _require_values(function: str, x: Any, y: Any, l2: Any, l1: Any, weights: Any, offset: Any) -> None:
    """ValueError for what is no number, or negative where it must not be, in a row that counts; traced: nothing."""
    counts = None
    if _known(weights) and weights is not None and weights.shape == x.shape[:1]:
        numbers = np.asarray(weights)
        _require_all(function, numbers >= 0, "weights", numbers, "0 or more")
        _require_all(function, np.isfinite(numbers), "weights", numbers, "finite")
        counts = numbers != 0
        if not counts.any():
            raise ValueError(f"{function}: all weights are 0: there is no row to fit to")
        total, dtype = np.sum(numbers, dtype=np.float64), policy.compute_dtype(x.dtype)
        if not jnp.finfo(dtype).tiny <= total <= jnp.finfo(dtype).max:
            raise ValueError(f"{function}: weights sum to {total:g}, beyond the range of {dtype}: scale them")
    # The entries of sparse rows are not looked at by row: all of them have to be numbers.
    if isinstance(x, SparseRows) and _known(x.values):
        _require_all(function, np.isfinite(x.entries), "x.data", x.entries, "finite")
    for name, values in (("x", None if isinstance(x, SparseRows) else x), ("y", y), ("offset", offset)):
        if values is not None and _known(values, weights) and policy.is_float(values):
            # One pass on the device tells that all is well; where it is not, the first place is looked for. (On a CPU
            # JAX would compile a program for each shape, and NumPy has the same memory.)
            if values.dtype.itemsize == 2 or jax.default_backend() != "cpu":
                if bool(jnp.all(jnp.isfinite(values))):
                    continue
            else:
                with np.errstate(all="ignore"):
                    if np.isfinite(np.sum(np.asarray(values))):
                        continue
            numbers = np.asarray(values.astype(jnp.float32) if values.dtype.itemsize == 2 else values)
            finite = np.isfinite(numbers)
            if counts is not None:
                finite |= ~counts.reshape((-1,) + (1,) * (numbers.ndim - 1))
            _require_all(function, finite, name, numbers, "finite")
    for name, penalty in (("l2", l2), ("l1", l1)):
        if penalty is not None and _known(penalty):
            factors = np.asarray(penalty)
            _require_all(function, np.isfinite(factors) & (factors >= 0), name, factors, "finite and 0 or more")


def _nan_where_negative(values: Any) -> Any:
    """Traced factors and weights with NaN in the place of those below 0, which makes the fit ``not_finite``."""
    if values is None or _known(values):
        return values
    return jnp.where(values >= 0, values, jnp.nan).astype(policy.result_dtype((values,)))


def _require_all(function: str, good: Any, name: str, values: Any, needed: str) -> None:
    if not np.all(good):
        place = np.argwhere(~np.asarray(good))[0]
        where = f"[{', '.join(map(str, place))}]" if place.size else ""
        raise ValueError(f"{function}: {name}{where} is {values[tuple(place)]}, but needs to be {needed}")


def _known(*values: Any) -> bool:
    return not any(isinstance(v, jax.core.Tracer) for v in values)


def _with_class_weight(
    function: str, objective: LogisticObjective, shapes: LogisticParams, class_weight: Any
) -> LogisticObjective:
    y, k = objective.y, max(shapes.bias.size, 2)
    if policy.is_float(y):
        raise TypeError(f"{function}: class_weight needs labels that are integers, got y of dtype {y.dtype}")
    dtype = shapes.bias.dtype
    # By NumPy, where the numbers are known: JAX would compile programs for each shape.
    xp: Any = np if _known(y, objective.weights, class_weight) else jnp
    own = xp.ones(y.shape, dtype) if objective.weights is None else xp.asarray(objective.weights, dtype)
    y = xp.where(own > 0, xp.asarray(y), 0)  # what is in a row that does not count may be no class
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"{function}: class_weight must be 'balanced', a mapping or [K], got {class_weight!r}")
        counts = np.bincount(y, own, k).astype(dtype) if xp is np else jnp.zeros(k, dtype).at[y].add(own)
        factors = counts.sum() / (k * xp.where(counts == 0, 1, counts))
    elif isinstance(class_weight, Mapping):
        unknown = [c for c in class_weight if c not in range(k)]
        if unknown:
            raise ValueError(f"{function}: class_weight names class {unknown[0]!r}; there are 0 to {k - 1}")
        given = [class_weight.get(c, 1.0) for c in range(k)]
        wrong = next((factor for factor in given if isinstance(factor, str) or np.ndim(factor)), None)
        if wrong is not None:
            raise TypeError(f"{function}: class_weight must map classes to numbers, got {wrong!r}")
        factors = xp.asarray(given, dtype)
    else:
        factors = xp.asarray(policy.as_array(function, "class_weight", class_weight, policy.copied), dtype)
        policy.require_shape(function, "class_weight", factors.shape, (k,), "one factor for each class")
    if _known(factors):
        numbers = np.asarray(factors)
        _require_all(function, np.isfinite(numbers) & (numbers >= 0), "class_weight", numbers, "finite and 0 or more")
    return dataclasses.replace(objective, weights=policy.copied(own * factors[y]))


def _require_classes(function: str, objective: LogisticObjective, shapes: LogisticParams) -> None:
    """ValueError where a class has no row that counts: its bias would be infinite, with a penalty too."""
    if not _known(objective.y, objective.weights) or not objective.fit_intercept:
        return
    y = np.asarray(objective.y)
    counts = np.ones(y.shape[0], bool) if objective.weights is None else np.asarray(objective.weights) > 0
    y, k = y[counts], max(shapes.bias.size, 2)
    if y.ndim == 2:
        present = (y > 0).any(axis=0)
    elif shapes.bias.ndim == 0:
        present = np.array([(y < 1).any(), (y > 0).any()])
    else:
        present = np.bincount(y.astype(np.int64), minlength=k)[:k] > 0
    if not present.all():
        of = "" if objective.weights is None else " with a weight above 0"
        raise ValueError(
            f"{function}: class {int(np.argmin(present))} has no row{of} in y, so that its bias has no finite "
            "optimum: leave the class out, or add rows of it"
        )
