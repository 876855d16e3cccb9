"""Whether a direction of the parameters separates the classes, so that an unpenalized loss has no minimum."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.core import policy
from xentjax.models import one_pass
from xentjax.models.logistic import LogisticParams


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SeparationProbe:
    r"""The distance of a direction from the cone of those that separate, as an objective.

    A direction v separates the classes (completely or not) if no row's right class loses against another along it:
    all margins :math:`z_{iy_i} - z_{ik}` of :math:`z_i = x_i v` are 0 or more, and one is more. The loss then has no
    minimum. With the sum of the margins' gradients a, of length 1, the projection of a on the cone of these v is 0
    exactly where there are none (the theorem of alternatives of Stiemke); here it is the minimum of

    .. math::
      \tfrac12\|v - a\|^2 + \tfrac{\rho}{2}\sum_i\sum_k \min(0, z_{iy_i} - z_{ik})^2

    for a large ρ, a parabola in pieces. A target between the classes has margins for each class that has a share.

    Args:
      data: rows with weights; their offsets do not matter.
      toward: a.
      penalty: ρ.
      fit_intercept: whether v has a bias.

    Source: Albert and Anderson, Biometrika 71 (1984), 1-10.
    """

    data: one_pass.Data
    toward: Any
    penalty: Any
    fit_intercept: bool = dataclasses.field(default=True, metadata={"static": True})

    def value_and_gradient(self, params: LogisticParams) -> tuple[Any, LogisticParams]:
        def of_block(block: one_pass.Block) -> Any:
            violation, slope, _ = _violation(block)
            return jnp.sum(violation), one_pass.transposed(block, slope)

        return self._whole(params, *one_pass.over_blocks(of_block, params, self.data))

    def value_gradient_hessian(self, params: LogisticParams) -> tuple[Any, LogisticParams, Any]:
        def of_block(block: one_pass.Block) -> Any:
            violation, slope, curvature = _violation(block)
            return jnp.sum(violation), one_pass.transposed(block, slope), one_pass.spread(block, curvature)

        violation, gradient, hessian = one_pass.over_blocks(of_block, params, self.data)
        hessian = self.penalty * hessian + jnp.eye(hessian.shape[0], dtype=hessian.dtype)
        if not self.fit_intercept:
            hessian = one_pass.without_bias(hessian, params.weights.size)
        return *self._whole(params, violation, gradient), hessian

    def hvp(self, params: LogisticParams, direction: LogisticParams) -> LogisticParams:
        """The Hessian times a direction."""
        return jax.jvp(lambda p: self.value_and_gradient(p)[1], (params,), (direction,))[1]

    def _whole(self, params: LogisticParams, violation: Any, gradient: Any) -> tuple[Any, LogisticParams]:
        """Value and gradient, from half of what the margins add to both."""
        distance = jax.tree.map(jnp.subtract, params, self.toward)
        gradient = jax.tree.map(lambda d, g: d + self.penalty * g, distance, one_pass.untable(gradient))
        if not self.fit_intercept:
            gradient = gradient._replace(bias=jnp.zeros_like(gradient.bias))
        return (jnp.sum(ravel_pytree(distance)[0] ** 2) + self.penalty * violation) / 2, gradient


def sum_of_margins(params: LogisticParams, data: one_pass.Data, *, fit_intercept: bool = True) -> LogisticParams:
    """The gradient of the sum of all margins, made to have length 1 (or 0); ``params`` only say the shapes."""

    def of_block(block: one_pass.Block) -> Any:
        right = _right(block)
        if block.z.ndim == 1:
            slope = (block.y > 0).astype(block.x.dtype) - (block.y < 1).astype(block.x.dtype)
        else:
            slope = right * right.shape[1] - jnp.sum(right, axis=1, keepdims=True)
        return one_pass.transposed(block, _counted(block, slope))

    sums = one_pass.over_blocks(of_block, params, data)
    sums = sums if fit_intercept else sums.at[-1].set(0)
    length = jnp.linalg.norm(sums)
    return one_pass.untable(sums / jnp.where(length == 0, 1, length))


def margins(params: LogisticParams, data: one_pass.Data) -> tuple[Any, Any]:
    """The smallest and the largest margin along a direction, over all rows and classes."""

    def of_block(block: one_pass.Block) -> Any:
        of_all = _margins(block)
        counted = _counted(block, jnp.ones(block.y.shape[:1], of_all.dtype)) != 0
        counted = counted.reshape((-1,) + (1,) * (of_all.ndim - 1))
        return tuple(jnp.max(jnp.where(counted & ~jnp.isnan(of_all), side, -jnp.inf)) for side in (-of_all, of_all))

    below, high = one_pass.over_blocks(of_block, params, data, largest=True)
    return -below, high


def _margins(block: one_pass.Block) -> Any:
    """All margins of a row, NaN where there is none."""
    if block.z.ndim == 1:
        of_one, of_zero = jnp.where(block.y > 0, block.z, jnp.nan), jnp.where(block.y < 1, -block.z, jnp.nan)
        return jnp.stack([of_one, of_zero], axis=1)
    pairs = block.z[:, :, None] - block.z[:, None, :]
    k = block.z.shape[1]
    return jnp.where((_right(block) > 0)[:, :, None] & ~jnp.eye(k, dtype=bool), pairs, jnp.nan)


def _violation(block: one_pass.Block) -> tuple[Any, Any, Any]:
    """Σ min(0, margin)² of each row, half its gradient and half its Hessian by the logits."""
    margin = _margins(block)
    wrong = jnp.where(margin < 0, margin, 0)
    acts = _counted(block, jnp.where(margin < 0, 1, 0).astype(block.x.dtype))
    wrong = _counted(block, wrong)
    value = jnp.sum(wrong**2)
    if block.z.ndim == 1:
        return value, wrong[:, 0] - wrong[:, 1], acts[:, 0] + acts[:, 1]
    slope = jnp.sum(wrong, axis=2) - jnp.sum(wrong, axis=1)
    own = jnp.sum(acts, axis=2) + jnp.sum(acts, axis=1)
    eye = jnp.eye(block.z.shape[1], dtype=acts.dtype)
    return value, slope, own[:, :, None] * eye - acts - jnp.swapaxes(acts, 1, 2)


def _right(block: one_pass.Block) -> Any:
    """1 for each class that has a share of the row's target."""
    if block.z.ndim == 1 or policy.is_float(block.y):
        return (block.y > 0).astype(block.x.dtype)
    classes = jnp.arange(block.z.shape[1], dtype=jnp.int32)
    return (classes == policy.class_indices(block.y, block.z.shape[1])[:, None]).astype(block.x.dtype)


def _counted(block: one_pass.Block, rows: Any) -> Any:
    """The rows that count, each once, and zeros in the place of the others."""
    return jnp.where((block.share != 0).reshape((-1,) + (1,) * (rows.ndim - 1)), rows, 0)
