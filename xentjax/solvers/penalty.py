r"""The L1 penalty of an objective: what declares it, its value, and when a point is a minimum in spite of its kinks.

An objective may have ``l1_factors(params)``: a pytree like params with the factors :math:`\lambda_j \ge 0` of
:math:`\sum_j \lambda_j|\beta_j|` (0 where a parameter is not penalized), or None where there is no such penalty.
Whether there is one is part of the program, as it decides which solvers can be used; the factors are data. The
objective's own value and gradient are those of its smooth part.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def l1_factors(objective: Any, params: Any) -> Any:
    """The factors as arrays of the shapes and dtypes of the parameters, or None.

    Raises:
      ValueError: they are not of the parameters' structure, or do not broadcast to their shapes.
    """
    factors = objective.l1_factors(params) if hasattr(objective, "l1_factors") else None
    if factors is None:
        return None
    structures: Any = [jax.tree.structure(factors), jax.tree.structure(params)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"minimize: the objective's l1_factors have the structure {structures[0]}, "
            f"but need that of params, {structures[1]}"
        )
    return jax.tree.map(_like, factors, params)


def _like(factor: Any, parameter: Any) -> Any:
    factor = jnp.asarray(factor).astype(parameter.dtype)
    try:
        return jnp.broadcast_to(factor, parameter.shape)
    except ValueError as error:
        raise ValueError(
            f"minimize: the objective's l1_factors have a leaf of shape {factor.shape}, "
            f"but need one that broadcasts to {parameter.shape}, the shape of the parameter"
        ) from error


def absolute(factors: Any, params: Any) -> Any:
    """Σ λ_j |β_j|; 0 without factors."""
    if factors is None:
        return 0
    terms = jax.tree.map(lambda f, p: jnp.sum(f * jnp.abs(p)), factors, params)
    return jax.tree.reduce(jnp.add, terms)


def smallest_subgradient(gradient: Any, params: Any, factors: Any) -> Any:
    r"""What is left of the gradient at best, for each parameter: 0 everywhere exactly at a minimum.

    :math:`g_j + \lambda_j \operatorname{sign} \beta_j` where :math:`\beta_j \ne 0`, and otherwise the distance of
    :math:`-g_j` from :math:`[-\lambda_j, \lambda_j]`, with its sign. Without factors it is the gradient.
    """
    if factors is None:
        return gradient

    def smallest(g: Any, p: Any, f: Any) -> Any:
        return jnp.where(p == 0, soft_threshold(g, f), g + f * jnp.sign(p))

    return jax.tree.map(smallest, gradient, params, factors)


def soft_threshold(value: Any, threshold: Any) -> Any:
    """The value moved toward 0 by the threshold, and exactly 0 within it; a NaN stays one."""
    return value - jnp.clip(value, -threshold, threshold)


def require_ability(solver: Any, objective: Any, params: Any) -> None:
    """ValueError where the objective has an L1 penalty and the solver does not say that it ``handles_l1``."""
    if not getattr(solver, "handles_l1", False) and l1_factors(objective, params) is not None:
        raise ValueError(
            f"{type(solver).__name__} cannot minimize an objective with an L1 penalty "
            f"({type(objective).__name__}.l1_factors): take ProximalNewton() or ProximalGradient()"
        )
