"""Any optax transformation as a solver."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from xentjax.solvers.objective import Point, evaluate, value_function


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Optax:
    """Steps of an optax transformation: ``Optax(optax.adam(0.1))``, schedules and ``optax.lbfgs()`` included.

    Args:
      transformation: a gradient transformation. One that searches along a line is given the value, the gradient and
        the value's function, whose derivative is the objective's own gradient.

    A transformation is part of what is compiled: keep one object rather than build an equal one for each call. To
    ``vmap`` over a learning rate, build the transformation inside the function that is mapped.

    Example:
      >>> import jax, jax.numpy as jnp, optax, xentjax as xj
      >>> def run(learning_rate):
      ...     solver = xj.Optax(optax.sgd(learning_rate, momentum=0.5))
      ...     return xj.minimize(lambda p: (p - 1) ** 2, jnp.zeros(()), solver, max_steps=100)
      >>> bool((jax.vmap(run)(jnp.array([0.1, 0.2])).status == "converged").all())
      True
    """

    transformation: Any

    def init(self, objective: Any, point: Point) -> Any:
        return self.transformation.init(point.params)

    def step(self, objective: Any, point: Point, state: Any) -> tuple[Point, Any]:
        update = optax.with_extra_args_support(self.transformation).update
        line = {"value": point.value, "grad": point.gradient, "value_fn": value_function(objective)}
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            updates, state = update(point.gradient, state, point.params, **line)
            params = optax.apply_updates(point.params, updates)
        return evaluate(objective, params), state
