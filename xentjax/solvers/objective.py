"""What a solver sees of a problem: a value, its gradient, and where it is known the Lipschitz constant of that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.penalty import absolute, l1_factors, smallest_subgradient


class Point(NamedTuple):
    """Parameters with the objective's value there, penalties included, and the gradient of its smooth part."""

    params: Any
    value: jax.Array
    gradient: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    r"""A function to minimize, with its gradient derived by hand or by JAX.

    Args:
      value: ``value(params)``, a real scalar.
      gradient: ``gradient(params)``, of the structure of params; by default the automatic one.
      lipschitz_constant: an upper bound :math:`L` of the gradient's Lipschitz constant, if it is known:
        ``GradientDescent()`` then takes steps of :math:`1/L`.
      l1: factors of a penalty :math:`\sum_j \lambda_j|\beta_j|` that is added to the value: a number for all
        parameters, or a pytree like params, 0 where a parameter is not penalized. ``gradient`` is without it.

    Both functions may be pytrees (``jax.tree_util.Partial``): arrays in them are data, over which one can ``vmap``
    without compiling again.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> objective = xj.Objective(lambda p: jnp.sum((p - 3) ** 2), gradient=lambda p: 2 * (p - 3))
      >>> solution = xj.minimize(objective, jnp.zeros(2), xj.GradientDescent(0.25))
      >>> str(solution.status), solution.params.round(5)
      ('converged', Array([3., 3.], dtype=float32))
    """

    value: Callable[[Any], Any]
    gradient: Callable[[Any], Any] | None = None
    lipschitz_constant: Any = None
    l1: Any = None

    def value_and_gradient(self, params: Any) -> tuple[Any, Any]:
        if self.gradient is None:
            return jax.value_and_grad(lambda p: _real_scalar(self.value(p)))(params)
        return self.value(params), self.gradient(params)

    def lipschitz(self) -> jax.Array | None:
        return None if self.lipschitz_constant is None else jnp.asarray(self.lipschitz_constant)

    def l1_factors(self, params: Any) -> Any:
        structures: Any = [jax.tree.structure(self.l1), jax.tree.structure(params)]
        if self.l1 is None or structures[0] == structures[1]:
            return self.l1
        return jax.tree.map(lambda _: self.l1, params)


def as_objective(objective: Any) -> Any:
    """The objective itself if it has ``value_and_gradient``, otherwise a plain function with automatic gradient."""
    if hasattr(objective, "value_and_gradient"):
        return objective
    if callable(objective):
        return Objective(objective)
    raise TypeError(
        "minimize: objective must be a function of the parameters or have value_and_gradient(params), "
        f"got {type(objective).__name__}"
    )


def evaluate(objective: Any, params: Any) -> Point:
    """The point at ``params``; errors name what an objective returned that is no scalar or no gradient."""
    return _penalized(objective, as_point(params, *objective.value_and_gradient(params)))


def residual(objective: Any, point: Point) -> Any:
    """What must be 0 in every component at a minimum: the gradient, or with an L1 penalty the smallest subgradient."""
    return smallest_subgradient(point.gradient, point.params, l1_factors(objective, point.params))


def _penalized(objective: Any, point: Point) -> Point:
    factors = l1_factors(objective, point.params)
    return point if factors is None else point._replace(value=point.value + absolute(factors, point.params))


def as_point(params: Any, value: Any, gradient: Any) -> Point:
    value = _real_scalar(value)
    structures: Any = [jax.tree.structure(gradient), jax.tree.structure(params)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"minimize: the objective's gradient has the structure {jax.tree.structure(gradient)}, "
            f"but needs that of params, {jax.tree.structure(params)}"
        )
    return Point(params, value, jax.tree.map(_like, gradient, params))


def evaluate_with_hessian(objective: Any, params: Any, dtype: Any = None, exact: Any = None) -> tuple[Point, jax.Array]:
    """The point at ``params``, and the Hessian of the smooth part as a matrix in the order of the raveled parameters.

    An objective may have ``value_gradient_hessian(params)``, which gives all three at once; if it is to be asked for a
    ``dtype`` of the Hessian's products, which does not hold where ``exact`` is given and true,
    ``value_gradient_hessian(params, dtype, exact)``. Otherwise the Hessian is JAX's derivative of the gradient.
    """
    if hasattr(objective, "value_gradient_hessian"):
        asked = () if dtype is None else (dtype, exact)
        value, gradient, hessian = objective.value_gradient_hessian(params, *asked)
        return _penalized(objective, as_point(params, value, gradient)), hessian
    flat, unravel = ravel_pytree(params)

    def gradient_of(flat: Any) -> tuple[Any, Point]:
        point = evaluate(objective, unravel(flat))
        return ravel_pytree(point.gradient)[0], point

    hessian, point = jax.jacfwd(gradient_of, has_aux=True)(flat)
    return point, hessian


def linearized(objective: Any, params: Any) -> Callable[[Any], Any]:
    """direction -> the Hessian at ``params`` times it.

    An objective may have ``linearized(params)``, which does what all directions share only once, or
    ``hvp(params, direction)``; otherwise it is JAX's derivative of the gradient.
    """
    if hasattr(objective, "linearized"):
        return objective.linearized(params)
    if hasattr(objective, "hvp"):
        return lambda direction: objective.hvp(params, direction)
    return jax.linearize(lambda p: evaluate(objective, p).gradient, params)[1]


def _real_scalar(value: Any) -> jax.Array:
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"minimize: objective must return a real scalar, got {type(value).__name__}") from error
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"minimize: objective must return a real scalar, got shape {value.shape} and dtype {value.dtype}"
        )
    return value


def _like(gradient: Any, parameter: Any) -> Any:
    gradient = jnp.asarray(gradient)
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"minimize: the objective's gradient has a leaf of shape {gradient.shape}, "
            f"but needs {parameter.shape}, the shape of the parameter"
        )
    return gradient.astype(parameter.dtype)


def select(condition: Any, first: Any, second: Any) -> Any:
    """One of two pytrees of the same structure, by a condition that may be traced."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def largest_component(tree: Any) -> jax.Array:
    """The infinity-norm over all leaves; NaN if there is one, 0 for a tree without numbers."""
    parts = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree) if leaf.size]
    if not parts:
        return jnp.zeros(())
    # maximum, unlike Python's max, hands a NaN on.
    result = parts[0]
    for part in parts[1:]:
        result = jnp.maximum(result, part)
    return result


def value_function(objective: Any) -> Callable[[Any], Any]:
    """The value as a function whose derivative is the objective's own gradient, for line searches that take it."""

    @jax.custom_jvp
    def value(params: Any) -> Any:
        return evaluate(objective, params).value

    @value.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        point = evaluate(objective, *primals)
        terms = jax.tree.map(lambda g, t: jnp.sum(g * t), point.gradient, *tangents)
        return point.value, jax.tree.reduce(jnp.add, terms).astype(point.value.dtype)

    return value
