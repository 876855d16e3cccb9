"""Many fits that share their features, all at once: the products of the features' columns are made for all of them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.models import _rows, one_pass
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling
from xentjax.models.sparse import is_sparse
from xentjax.solvers import status as codes
from xentjax.solvers.compiled import join
from xentjax.solvers.kept import kept
from xentjax.solvers.minimize import opening, run_steps
from xentjax.solvers.newton import Newton
from xentjax.training import buckets
from xentjax.training.arguments import checked_objective
from xentjax.training.certificate import as_it_is, with_covariances
from xentjax.training.fit_result import LogisticFit
from xentjax.training.host import Centered
from xentjax.training.solution import null_model, scaled, solve
from xentjax.training.solvers_by_name import chosen_solver

#: Up to this many columns (with that of the bias) the products of all pairs of them are few enough to be stored.
_COLUMNS = 32

#: Logits that all fits of a chunk have in a block: they stay in the cache of one core.
_LOGITS = 2**16

#: A column's variance in the rows of a fit, beside that in all rows: beyond these bounds the fit has its own scaling.
_VARIANCE = 0.25, 4.0

#: The gradient of that optimum: nearer than fits of other weights are to it.
_NEAR = 1e-3


class Way(NamedTuple):
    """How fits are made together: the settings of each, and what the choice of the solver was."""

    settings: tuple[tuple[str, Any], ...]
    name: str
    reason: str


def way_of(arrays: dict[str, Any], many: list[str], solver: Any, settings: dict[str, Any]) -> Way | None:
    """How these fits can be made together; None where one by one is better, or the only way."""
    x = arrays["x"]
    if "x" in many or "l1" in arrays or is_sparse(x) or x.shape[1] >= _COLUMNS:
        return None
    if any(isinstance(a, jax.core.Tracer) for a in arrays.values()) or not bool(jnp.all(jnp.isfinite(x))):
        return None
    first = {name: a[0] if name in many else a for name, a in arrays.items()}
    objective, shapes = _problem(first, dict(settings))
    name, made, reason = chosen_solver("fit_many", solver, objective, shapes)
    is_newton = isinstance(made, Newton) and made.subsample is None
    return Way(tuple(sorted(settings.items())), name, reason) if is_newton else None


def most_together(x: Any, classes: int) -> int:
    """How many fits a chunk has at most, so that what they work on stays in a cache."""
    rows = min(x.shape[0], one_pass.block_rows(x.shape[1], jnp.result_type(float)))
    return max(_LOGITS // (max(rows, 1) * (classes if classes > 2 else 1)), 8)


@kept(0, 2)
def fitted_together(static: Any, data: Any, way: Way) -> tuple[LogisticFit, Any]:
    """The fits, and which of them have to be made alone: their columns vary otherwise than in all rows, they have not
    converged, or are in doubt."""
    own, common, tol = join(static, data)
    settings = dict(way.settings)
    base, shapes = _problem({name: values[0] for name, values in own.items()} | common, settings)
    dtype = shapes.bias.dtype
    base = dataclasses.replace(base, weights=common.get("weights"))
    scaling: Any = scaled(base, dtype).scaling
    # Where they differ by weights alone, as bootstraps do, they begin at the optimum for the mean of these.
    begin = None
    if own.keys() == {"weights"}:
        pooled = dataclasses.replace(base, weights=jnp.mean(own["weights"], axis=0))
        inner = scaled(pooled, dtype, scaling)
        params, _ = null_model(inner, shapes)
        state = opening(inner, params, Newton(), tol=_NEAR)
        begin = scaling.undo(run_steps(inner, Newton(), state, _NEAR, 20, 20)[0].point.params)

    def one(own: dict[str, Any]) -> tuple[LogisticFit, Any]:
        objective, shapes = _problem(own | common, settings)
        objective = dataclasses.replace(objective, shared=True)
        steps, d = settings["max_steps"], objective.x.shape[1]
        how = {"max_steps": steps, "longest": buckets.bucket(steps, least=128), "columns": d}
        how |= {"hessian": "final" if settings["inference"] else "exact", "shapes": shapes, "name": way.name}
        how |= {"scaling": scaling}
        fit, inside = solve(objective, Newton(), begin, tol, **how)
        alone = inside.doubtful | (fit.status.code != codes.CONVERGED)
        if "weights" in own:
            alone = alone | _varies_otherwise(objective, own["weights"].astype(dtype), scaling)
        if settings["inference"]:
            fit = with_covariances(objective, *as_it_is(fit, inside))
        history = jax.tree.map(lambda values: values[:steps], fit.history)
        return dataclasses.replace(fit, history=history, reason=way.reason), alone

    return jax.vmap(one)(own)


def _problem(arrays: dict[str, Any], settings: dict[str, Any]) -> Any:
    arrays = {"weights": None, "offset": None} | arrays
    x: Any = Centered(arrays["x"], arrays["origin"]) if "origin" in arrays else arrays["x"]
    others = (arrays["weights"], None, arrays["offset"], settings["fit_intercept"], settings["num_classes"])
    return checked_objective("fit_many", x, arrays["y"], arrays["l2"], 0.0, *others, complete=False)


def _varies_otherwise(objective: LogisticObjective, weights: Any, scaling: Scaling) -> Any:
    x = scaling.apply(objective.x.astype(weights.dtype))
    share = _rows.shares(weights)
    mean, square = (jnp.matmul(share, rows, precision=_rows.PRECISION) for rows in (x, x * x))
    variance = square - mean * mean if objective.fit_intercept else square
    low, high = _VARIANCE
    return jnp.any(((variance < low) | (variance > high)) & (scaling.inverse != 0))
