"""What callers of fits pass, checked: the problem in their units, or an error that says what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import policy
from xentjax.models import one_pass
from xentjax.models.logistic import LogisticParams, params_as_arrays
from xentjax.models.loss import check_arguments
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling
from xentjax.models.sparse import SparseRows, is_sparse
from xentjax.models.spread import Spread, on_host
from xentjax.models.streamed import StreamedRows
from xentjax.training.host import Centered, centered, require_held
from xentjax.training.processes import sums_of_all, together


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
    spread: Spread | None = None,
) -> tuple[LogisticObjective, LogisticParams]:
    """The problem in the user's units, checked, and parameters 0 of its shapes. Errors name the function.

    Unless it has to be ``complete`` a class may lack rows. Rows that are going to be ``spread`` over devices stay on
    the host, as no device may have room for all; other processes may have more of them, and what is wrong in one is an
    error in all.
    """
    given = (x, y, l2, l1, weights, class_weight, offset, fit_intercept, num_classes)
    if spread is None:
        return _checked(function, *given, complete=complete)
    made: list[tuple[LogisticObjective, LogisticParams]] = []

    def check() -> None:
        _require_alike(function, x, y, weights, offset)
        made.append(_checked(function, *given, complete=complete, in_all=sums_of_all, place=on_host))

    together(check)
    return made[0]


def _require_alike(function: str, *rows: Any) -> None:
    """ValueError where processes do not pass arrays of the same kinds."""
    forms = together(lambda: [_form(values) for values in rows])
    for number, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"{function}: x, y, weights and offset are {form} in process {number}, but {forms[0]} in 0"
            )


def _form(values: Any) -> str:
    """The dtype and all sizes but the number of rows."""
    if values is None:
        return "None"
    known = values if hasattr(values, "dtype") and hasattr(values, "shape") else np.asarray(values)
    return f"{known.dtype}[{', '.join(['n', *map(str, known.shape[1:])])}]"


def _checked(
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
    complete: bool,
    in_all: Callable[[Any], np.ndarray] = np.asarray,
    place: Callable[[Any], Any] = policy.copied,
) -> tuple[LogisticObjective, LogisticParams]:
    """:func:`checked_objective`, given the function that adds up numbers of all rows, and where arrays belong."""
    if not isinstance(fit_intercept, bool):
        raise TypeError(f"{function}: fit_intercept must be True or False, got {fit_intercept!r}")
    for name, values in (("y", y), ("weights", weights), ("offset", offset)):
        require_held(function, name, values)
    x, scaling = centered(function, x, weights, at_origin=not fit_intercept, in_all=in_all), None
    if isinstance(x, StreamedRows) and x.source is not None and x.source.origin is not None:
        if not fit_intercept:
            raise ValueError(
                f"{function}: the rows are opened with a mean taken off each column, which a fit without an intercept "
                "cannot make good: open them with center=False"
            )
        x = Centered(x, x.source.origin)
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
    array = lambda n, v: policy.as_array(function, n, v, place)
    # Factors that are known stay on the host: a program takes them from there sooner than they are placed.
    factors = lambda n, v: policy.as_array(function, n, v, np.asarray if is_known(*jax.tree.leaves(v)) else jnp.asarray)
    x, y, l2 = x if isinstance(x, SparseRows | StreamedRows) else array("x", x), array("y", y), factors("l2", l2)
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
    if in_all(x.shape[0]) == 0:
        raise ValueError(f"{function}: x has shape {x.shape}: there is no row to fit to")
    if not policy.is_float(x):
        x = x.astype(jnp.result_type(float))  # type: ignore[union-attr]  # streamed rows are floats
    if y.dtype == jnp.bool_:
        y = y.astype(jnp.int32)
    # One program for numbers of Python's and of numpy's.
    with np.errstate(over="ignore"):
        l2, l1 = (None if v is None else v.astype(policy.compute_dtype(x.dtype)) for v in (l2, l1))
    _require_values(function, x, y, l2, l1, weights, offset, in_all)
    if num_classes is None and in_all is sums_of_all and not policy.is_float(y) and y.ndim == 1:
        highest = _highest_of_all(y, weights)
        num_classes = highest + 1 if highest > 1 else None
    l2, l1, weights = (_nan_where_negative(values) for values in (l2, l1, weights))
    if weights is not None and not is_known(weights):
        weights = jnp.where(jnp.isfinite(jnp.sum(weights)), weights, jnp.nan)
    objective = LogisticObjective(
        x, y, l2, weights, offset, l1, scaling, fit_intercept=fit_intercept, num_classes=num_classes
    )
    shapes = objective.shapes(function)
    check_arguments(function, shapes, x, y, l2, weights, offset)
    if class_weight is not None:
        objective = _with_class_weight(function, objective, shapes, class_weight, in_all)
    if complete:
        _require_classes(function, objective, shapes, in_all)
    return objective, shapes


def checked_init(function: str, init: Any, shapes: LogisticParams) -> LogisticParams:
    """Initial parameters as arrays of these shapes; errors where they are others, or no numbers."""
    init = params_as_arrays(function, "init", init)
    for field, got, needed in zip(init._fields, init, shapes, strict=True):
        policy.require_shape(function, f"init.{field}", got.shape, needed.shape, "that of the parameters")
        if is_known(got):
            _require_all(function, np.isfinite(np.asarray(got)), f"init.{field}", np.asarray(got), "finite")
    return init


def number_of_classes(function: str, num_classes: Any) -> int:
    number = policy.whole_number(function, "num_classes", num_classes)
    if number < 2:
        raise ValueError(f"{function}: num_classes must be 2 or more, got {number}")
    return number


def _require_values(
    function: str, x: Any, y: Any, l2: Any, l1: Any, weights: Any, offset: Any, in_all: Callable[[Any], np.ndarray]
) -> None:
    """ValueError for what is no number, or negative where it must not be, in a row that counts; traced: nothing."""
    counts = None
    if is_known(weights) and weights is not None and weights.shape == x.shape[:1]:
        numbers = np.asarray(weights)
        _require_all(function, numbers >= 0, "weights", numbers, "0 or more")
        _require_all(function, np.isfinite(numbers), "weights", numbers, "finite")
        counts = numbers != 0
        total, dtype = float(in_all(np.sum(numbers, dtype=np.float64))), policy.compute_dtype(x.dtype)
        if total == 0:
            raise ValueError(f"{function}: all weights are 0: there is no row to fit to")
        if not jnp.finfo(dtype).tiny <= total <= jnp.finfo(dtype).max:
            raise ValueError(f"{function}: weights sum to {total:g}, beyond the range of {dtype}: scale them")
    # The entries of sparse rows are not looked at by row: all of them have to be numbers. Those of a file were looked
    # at when it was opened.
    if isinstance(x, SparseRows) and is_known(x.values):
        _require_all(function, np.isfinite(x.entries), "x.data", x.entries, "finite")
    for name, values in (("x", None if isinstance(x, SparseRows | StreamedRows) else x), ("y", y), ("offset", offset)):
        if values is not None and is_known(values, weights) and policy.is_float(values):
            # One pass on the device tells that all is well; where it is not, the first place is looked for. (On a CPU
            # JAX would compile a program for each shape, and NumPy has the same memory.)
            if values.dtype.itemsize == 2 or (jax.default_backend() != "cpu" and isinstance(values, jax.Array)):
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
        if penalty is not None and is_known(penalty):
            factors = np.asarray(penalty)
            _require_all(function, np.isfinite(factors) & (factors >= 0), name, factors, "finite and 0 or more")


def _nan_where_negative(values: Any) -> Any:
    """Traced factors and weights with NaN in the place of those below 0, which makes the fit ``not_finite``."""
    if values is None or is_known(values):
        return values
    return jnp.where(values >= 0, values, jnp.nan).astype(policy.result_dtype((values,)))


def _require_all(function: str, good: Any, name: str, values: Any, needed: str) -> None:
    if not np.all(good):
        place = np.argwhere(~np.asarray(good))[0]
        where = f"[{', '.join(map(str, place))}]" if place.size else ""
        raise ValueError(f"{function}: {name}{where} is {values[tuple(place)]}, but needs to be {needed}")


def _highest_of_all(y: Any, weights: Any) -> int:
    """The highest integer label of a row that counts, of all processes."""
    counted = weights is None or weights.shape != y.shape or np.asarray(weights) != 0
    return max(together(lambda: int(np.max(np.asarray(y), where=counted, initial=0))))


def is_known(*values: Any) -> bool:
    return not any(isinstance(v, jax.core.Tracer) for v in values)


def _with_class_weight(
    function: str,
    objective: LogisticObjective,
    shapes: LogisticParams,
    class_weight: Any,
    in_all: Callable[[Any], np.ndarray],
) -> LogisticObjective:
    y, k = objective.y, max(shapes.bias.size, 2)
    if policy.is_float(y):
        raise TypeError(f"{function}: class_weight needs labels that are integers, got y of dtype {y.dtype}")
    dtype = shapes.bias.dtype
    # By NumPy, where the numbers are known: JAX would compile programs for each shape.
    xp: Any = np if is_known(y, objective.weights, class_weight) else jnp
    own = xp.ones(y.shape, dtype) if objective.weights is None else xp.asarray(objective.weights, dtype)
    y = xp.where(own > 0, xp.asarray(y), 0)  # what is in a row that does not count may be no class
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"{function}: class_weight must be 'balanced', a mapping or [K], got {class_weight!r}")
        counts = in_all(np.bincount(y, own, k)).astype(dtype) if xp is np else jnp.zeros(k, dtype).at[y].add(own)
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
    if is_known(factors):
        numbers = np.asarray(factors)
        _require_all(function, np.isfinite(numbers) & (numbers >= 0), "class_weight", numbers, "finite and 0 or more")
    weights = own * factors[y]
    return dataclasses.replace(
        objective, weights=weights if isinstance(objective.y, np.ndarray) else policy.copied(weights)
    )


def _require_classes(
    function: str, objective: LogisticObjective, shapes: LogisticParams, in_all: Callable[[Any], np.ndarray]
) -> None:
    """ValueError where a class has no row that counts: its bias would be infinite, with a penalty too."""
    if not is_known(objective.y, objective.weights) or not objective.fit_intercept:
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
    present = in_all(present.astype(int)) > 0
    if not present.all():
        of = "" if objective.weights is None else " with a weight above 0"
        raise ValueError(
            f"{function}: class {int(np.argmin(present))} has no row{of} in y, so that its bias has no finite "
            "optimum: leave the class out, or add rows of it"
        )
