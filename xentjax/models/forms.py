"""The closed forms of the logistic loss's derivatives, for the check: functions for users, and what solvers take.

What stands here says only what each of them is; it is derived in :mod:`xentjax.models.closed_form` and below it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.core import policy
from xentjax.core.closed_forms import closed_forms
from xentjax.core.domains import BinaryLabels, Domain, Labels, Probabilities, Probability, Real
from xentjax.models import closed_form
from xentjax.models.logistic import LogisticParams, Parameters
from xentjax.models.loss import logistic_loss
from xentjax.models.objective import LogisticObjective
from xentjax.models.scaling import Scaling

# -- functions for users -----------------------------------------------------------------------------------------------

LOSS = closed_forms(
    "logistic_closed_forms",
    wrt="params",
    formula=logistic_loss.record.oracle,
    domain=Domain(
        params=Parameters("D"),
        x=Real("B D"),
        y=BinaryLabels("B"),
        options=(
            {"l2": Probability("D"), "weights": Probabilities("B"), "offset": Real("B")},
            {"params": Parameters("D K"), "y": Labels("B"), "l2": 0.1},
        ),
    ),
)


@LOSS.form("logistic_gradient", "gradient")
def _(params: Any, direction: Any, x: Any, y: Any, **options: Any) -> Any:
    return closed_form.logistic_gradient(params, x, y, **options)


@LOSS.form("logistic_hvp", "hvp")
def _(params: Any, direction: Any, x: Any, y: Any, **options: Any) -> Any:
    return closed_form.logistic_hvp(params, direction, x, y, **options)


@LOSS.form("logistic_hessian", "hessian")
def _(params: Any, direction: Any, x: Any, y: Any, **options: Any) -> Any:
    return _matrix(params, closed_form.logistic_hessian(params, x, y, **options))


# -- what solvers take -------------------------------------------------------------------------------------------------


def _loss_in_user_units(
    params: Any, x: Any, y: Any, center: Any, inverse: Any, fit_intercept: bool = True, **options: Any
) -> Any:
    """The loss of the features as given, as a function of the parameters of scaled features."""
    bias = params.bias if fit_intercept else 0 * params.bias
    weights = (inverse * params.weights.T).T
    return logistic_loss.record.oracle(LogisticParams(weights, bias - center @ weights), x, y, **options)


OBJECTIVE = closed_forms(
    "LogisticObjective",
    wrt="params",
    formula=_loss_in_user_units,
    domain=Domain(
        params=Parameters("D"),
        x=Real("B D"),
        y=Probability("B"),
        center=Real("D"),
        inverse=Probability("D"),
        options=(
            {"l2": Probability("D"), "y": BinaryLabels("B"), "weights": Probabilities("B"), "offset": Real("B")},
            {"l2": 0.1, "weights": Probabilities("B"), "fit_intercept": False},
            {"params": Parameters("D K"), "y": Labels("B"), "l2": Probability("D"), "weights": Probabilities("B")},
            {"params": Parameters("D K"), "y": Labels("B"), "l2": 0.1, "fit_intercept": False},
            {"params": Parameters("D K"), "y": Probabilities("B K"), "offset": Real("B K")},
        ),
    ),
)


def _objective(x: Any, y: Any, center: Any, inverse: Any, **options: Any) -> LogisticObjective:
    scaling = Scaling(policy.up(center), policy.up(inverse))
    return LogisticObjective(x, y, scaling=scaling, **options)


@OBJECTIVE.form("value", "value")
def _(params: Any, direction: Any, **data: Any) -> Any:
    return _objective(**data).value_and_gradient(params)[0]


@OBJECTIVE.form("gradient", "gradient")
def _(params: Any, direction: Any, **data: Any) -> Any:
    return _objective(**data).value_and_gradient(params)[1]


@OBJECTIVE.form("slope", "slope")
def _(params: Any, direction: Any, **data: Any) -> Any:
    gradient = _objective(**data).value_and_gradient(params)[1]
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))


@OBJECTIVE.form("hvp", "hvp")
def _(params: Any, direction: Any, **data: Any) -> Any:
    return _objective(**data).hvp(params, direction)


@OBJECTIVE.form("linearized", "hvp")
def _(params: Any, direction: Any, **data: Any) -> Any:
    return _objective(**data).linearized(params)(direction)


def _held_everywhere(hessian: Any, params: Any, *, l2: Any = 0.0, fit_intercept: bool = True, **data: Any) -> Any:
    """The Hessian with a curvature in the directions in which the loss does not change by its form: 1 for a bias that
    does not move; for the mean over the classes of a parameter that no penalty holds, the mean of theirs."""
    k, hessian = params.bias.size, _moving(hessian, params, fit_intercept)
    if params.bias.ndim == 0:
        return hessian
    held = jnp.append(jnp.broadcast_to(jnp.asarray(l2) != 0, params.weights.shape[:1]), not fit_intercept)
    for j in range(len(held)):
        of_parameter = slice(j * k, (j + 1) * k)
        curvature = jnp.sum(hessian[of_parameter, of_parameter] * jnp.eye(k, dtype=hessian.dtype)) / k
        more = jnp.where(held[j], 0, jnp.where(curvature == 0, 1, curvature)) / k
        hessian = hessian.at[of_parameter, of_parameter].add(more)
    return hessian


@OBJECTIVE.form("value_gradient_hessian", "hessian", part=_held_everywhere)
def _(params: Any, direction: Any, **data: Any) -> Any:
    return _objective(**data).value_gradient_hessian(params)[2]


def _diagonal(hessian: Any, params: Any, *, fit_intercept: bool = True, **data: Any) -> Any:
    free = jnp.arange(_number_of_free(params, fit_intercept))
    return hessian[free, free]


@OBJECTIVE.form("hessian_diagonal", "hessian", part=_diagonal)
def _(params: Any, direction: Any, **data: Any) -> Any:
    objective = _objective(**data)
    return objective.hessian_diagonal(params)[: _number_of_free(params, objective.fit_intercept)]


def _blocks(hessian: Any, params: Any, *, fit_intercept: bool = True, **data: Any) -> Any:
    k, hessian = params.bias.size, _moving(hessian, params, fit_intercept)
    return jnp.stack([hessian[c::k, c::k] for c in range(k)])


@OBJECTIVE.form("hessian_blocks", "hessian", part=_blocks)
def _(params: Any, direction: Any, **data: Any) -> Any:
    return _objective(**data).hessian_blocks(params)


def _moving(hessian: Any, params: Any, fit_intercept: bool) -> Any:
    """The Hessian with a curvature of 1 for a bias that does not move."""
    moves = jnp.arange(len(hessian)) < _number_of_free(params, fit_intercept)
    return jnp.where(moves[:, None] & moves, hessian, jnp.eye(len(moves), dtype=hessian.dtype))


def _number_of_free(params: Any, fit_intercept: bool) -> int:
    """How many parameters move: those of the bias are the last."""
    return params.weights.size + fit_intercept * params.bias.size


def _matrix(params: Any, hessian: Any) -> Any:
    """A LogisticParams of LogisticParams as the matrix in the order of the raveled parameters."""
    rows = jax.vmap(lambda row: ravel_pytree(row)[0])
    return jnp.concatenate(
        [
            rows(jax.tree.map(lambda leaf, p=p: leaf.reshape(p.size, *leaf.shape[p.ndim :]), of))
            for p, of in zip(params, hessian, strict=True)
        ]
    )
