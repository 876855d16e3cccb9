"""Approximations of a Hessian that are cheap to solve with: where L-BFGS starts from, what preconditions CG."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.newton import damped_factor, solve_factored
from xentjax.solvers.objective import evaluate_with_hessian

#: What a metric holds of the Hessian: nothing, its diagonal, its blocks between parameters of one class, all of it.
KINDS = ("identity", "diagonal", "blocks", "hessian")


class Metric(NamedTuple):
    r"""A symmetric positive definite matrix M over the raveled parameters.

    - ``scale`` and ``factor`` None: the identity.
    - ``factor`` None: :math:`\operatorname{diag}(s)^{-2}`.
    - ``factor`` ``[p, p]``: :math:`\operatorname{diag}(s)^{-1} L L^T \operatorname{diag}(s)^{-1}`.
    - ``inverse`` ``[K, m, m]``: the inverses of K blocks, block k of every K-th parameter from number k on. (Products
      with them take less time than solutions by their factors.)
    """

    scale: Any = None
    factor: Any = None
    inverse: Any = None

    def solve(self, vector: Any) -> Any:
        """M⁻¹v."""
        if self.inverse is not None:
            by_block = vector.reshape(-1, self.inverse.shape[0]).T
            return jnp.einsum("kij,kj->ik", self.inverse, by_block, precision=jax.lax.Precision.HIGHEST).ravel()
        if self.scale is None:
            return vector
        if self.factor is None:
            return self.scale * self.scale * vector
        return solve_factored((self.scale, self.factor), vector)


def require_kind(solver: str, kind: Any) -> None:
    if kind not in KINDS:
        raise ValueError(f"{solver}: metric must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")


def metric_at(objective: Any, params: Any, kind: str) -> Metric:
    """The part of the Hessian at ``params`` that ``kind`` names; the identity where the objective does not offer it.

    It may offer ``hessian_diagonal(params)``, in the order of the raveled parameters, and
    ``hessian_blocks(params, dtype)``; a whole Hessian is there for every objective.
    """
    if kind == "diagonal" and hasattr(objective, "hessian_diagonal"):
        diagonal = objective.hessian_diagonal(params)
        return Metric(jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)), 1))
    if kind == "blocks" and hasattr(objective, "hessian_blocks"):
        return Metric(inverse=jax.lax.map(_inverse, objective.hessian_blocks(params, "float32")))
    if kind == "hessian":
        return Metric(*damped_factor(evaluate_with_hessian(objective, params)[1]))
    return Metric()


def _inverse(block: Any) -> Any:
    """The inverse of a block whose entries have the digits of float32, positive definite in its own rounding too."""
    factored = damped_factor(block, jnp.finfo(jnp.float32).eps)
    inverse = solve_factored(factored, jnp.eye(block.shape[0], dtype=block.dtype))
    return (inverse + inverse.T) / 2


def raveled(tree: Any) -> Any:
    return ravel_pytree(tree)[0]
