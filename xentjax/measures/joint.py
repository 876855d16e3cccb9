"""Joint tables: the entropy of several variables together, and of one given the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core.domains import Domain, JointTable, Mask
from xentjax.core.op import op
from xentjax.core.policy import require_axis
from xentjax.core.rule import along
from xentjax.measures.entropy import entropy_gradient, entropy_sum
from xentjax.numerics import log, log_quotient, total, xlogx, xlogy
from xentjax.pairs import pair_sum

TABLE_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"base": 2, "keepdims": True, "where": Mask("B J K")})


@op(
    wrt=("joint",),
    domain=Domain(joint=JointTable("B J K"), options=(*TABLE_OPTIONS, {"axis": (0, 2)})),
    group="joint tables",
    formula="-Σ P log P",
    gradient="-log P - 1",
    source="Shannon 1948",
    fill={"joint": 0.0},
)
def joint_entropy(
    joint: ArrayLike,
    *,
    axis: int | tuple[int, ...] | None = (-2, -1),
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Entropy of several variables together, from the table of their joint distribution.

    .. math:: H(X, Y) = -\sum_{x,y} P_{xy} \log P_{xy}, \qquad \frac{\partial H}{\partial P_{xy}} = -\log P_{xy} - 1

    Args:
      joint: non-negative numbers, P(X = x, Y = y) in row x and column y. They are not renormalised.
      axis: the axes of the table, one for each variable; None for all. By default the last two.
      where: which cells exist, of the table's shape. The others count as 0 and have gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axes with length 1.

    Returns:
      The entropy without ``axis``, in the table's dtype (16-bit floats are computed in float32).

    Edges and errors are those of :func:`entropy`.

    >>> joint_entropy(jnp.full((2, 4), 0.125), base=2)
    Array(3., dtype=float32)
    """
    return -jnp.sum(xlogx(joint), axis=axis, keepdims=keepdims)


@joint_entropy.value
def _(joint: Any, *, axis: Any) -> Any:
    logarithm = log(joint)
    return entropy_sum(joint, logarithm, axis), logarithm


@joint_entropy.partial("joint")
def _(logarithm: Any, joint: Any, *, axis: Any) -> Any:
    return entropy_gradient(logarithm, joint)


@joint_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], joint: Any, *, axis: Any) -> Any:
    return (-along(1 / joint, tangents["joint"]),)


# -- of one variable given the other -----------------------------------------------------------------------------------


@op(
    wrt=("joint",),
    domain=Domain(joint=JointTable("B J K"), options=(*TABLE_OPTIONS, {"axis": (-1, -2)})),
    group="joint tables",
    formula="Σ P log(r/P), r = Σ_y P",
    gradient="log(r/P)",
    source="Shannon 1948",
    fill={"joint": 0.0},
)
def conditional_entropy(
    joint: ArrayLike,
    *,
    axis: tuple[int, int] = (-2, -1),
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Entropy of the column's variable given the row's, H(Y | X), from the table of their joint distribution.

    With the marginal of the row, :math:`r_x = \sum_y P_{xy}`:

    .. math:: H(Y | X) = \sum_{x,y} P_{xy} \log\frac{r_x}{P_{xy}}, \qquad
       \frac{\partial H}{\partial P_{xy}} = \log\frac{r_x}{P_{xy}}

    Args:
      joint: non-negative numbers, P(X = x, Y = y) in row x and column y. They are not renormalised.
      axis: the axis of the given variable X, then that of Y. ``(-1, -2)`` gives the entropy of the row's variable
        given the column's.
      where: which cells exist, of the table's shape. The others count as 0 and have gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the two axes with length 1.

    Returns:
      The entropy without the two axes, in the table's dtype (16-bit floats are computed in float32).

    All terms are non-negative. A cell with P = 0 contributes 0; its gradient is +inf, or 0 in a row of zeros. A
    negative cell gives NaN. Where nothing is left by the mask it is 0.

    Raises:
      ValueError: for axes that are not two different ones of the table or are empty, a mask of another shape, or a
        base that is none.

    >>> conditional_entropy(jnp.array([[0.5, 0.0], [0.25, 0.25]]), base=2)
    Array(0.5, dtype=float32)
    """
    marginal = jnp.sum(joint, axis=axis[1], keepdims=True)
    return jnp.sum(xlogy(joint, marginal) - xlogx(joint), axis=axis, keepdims=keepdims)


@conditional_entropy.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    require_two_axes("conditional_entropy", bound)
    return bound


@conditional_entropy.value
def _(joint: Any, *, axis: Any) -> Any:
    surprise = log_quotient(pair_sum(joint, axis[1]), joint)
    return total(jnp.where(joint == 0, 0, joint * surprise), axis), surprise


@conditional_entropy.partial("joint")
def _(surprise: Any, joint: Any, *, axis: Any) -> Any:
    # ∂/∂P_xy of Σ_x r log r - Σ P log P:  (log r_x + 1) - (log P_xy + 1).
    empty = jnp.max(joint, axis=axis[1], keepdims=True) == 0
    return jnp.where(empty, 0, surprise)


@conditional_entropy.second
def _(tangents: dict[str, Any], active: tuple[str, ...], joint: Any, *, axis: Any) -> Any:
    t = tangents["joint"]
    marginal, marginal_dot = (jnp.sum(x, axis=axis[1], keepdims=True) for x in (joint, t))
    return (jnp.where(marginal == 0, 0, marginal_dot / marginal - along(1 / joint, t)),)


def variables(function: str, joint: Any, axis: Any) -> tuple[int, ...]:
    """The axes of the variables, all different."""
    axes = require_axis(function, "joint", joint, tuple(range(joint.ndim)) if axis is None else axis)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{function}: axis {axis} names an axis twice")
    return axes


def require_two_axes(function: str, bound: dict[str, Any]) -> None:
    axis = bound["axis"]
    if not isinstance(axis, tuple) or len(variables(function, bound["joint"], axis)) != 2:
        raise ValueError(f"{function}: axis must be a tuple of two axes, got {axis!r}")
