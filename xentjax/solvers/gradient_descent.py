"""Gradient descent with a fixed step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.solvers.objective import Point, evaluate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientDescent:
    r"""Gradient descent, :math:`\beta \leftarrow \beta - \eta\,\nabla L(\beta)`.

    Args:
      step_size: :math:`\eta`, a number or an array of shape ``[]`` (one may ``vmap`` over it). By default
        :math:`1/L` with the objective's bound :math:`L` of the gradient's Lipschitz constant: the loss then falls in
        every step, :math:`L(\beta_{k+1}) \le L(\beta_k) - \|\nabla L(\beta_k)\|^2 / 2L`.

    Source: Nesterov, Lectures on Convex Optimization (2018), section 1.2.3.

    Example:
      >>> import jax, jax.numpy as jnp, xentjax as xj
      >>> def run(step_size):
      ...     return xj.minimize(lambda p: (p - 1) ** 2, jnp.zeros(()), xj.GradientDescent(step_size), max_steps=50)
      >>> jax.vmap(run)(jnp.array([0.5, 0.25, 0.001])).status.names.tolist()
      ['converged', 'converged', 'max_steps']
    """

    step_size: Any = None

    def init(self, objective: Any, point: Point) -> Any:
        if self.step_size is not None:
            return jnp.asarray(self.step_size)
        bound = objective.lipschitz() if hasattr(objective, "lipschitz") else None
        if bound is None:
            raise ValueError(
                "GradientDescent: step_size is None, which means 1 / objective.lipschitz(), but the objective "
                f"({type(objective).__name__}) has no such bound: pass GradientDescent(step_size=...) or "
                "Objective(value, lipschitz_constant=...)"
            )
        return 1 / bound

    def step(self, objective: Any, point: Point, state: Any) -> tuple[Point, Any]:
        params = jax.tree.map(lambda p, g: p - (state * g).astype(p.dtype), point.params, point.gradient)
        return evaluate(objective, params), state
