"""Joint tables: what the variables tell of each other."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core.domains import Domain, JointTable, Mask
from xentjax.core.op import op
from xentjax.core.rule import along
from xentjax.measures.joint import TABLE_OPTIONS, require_two_axes, variables
from xentjax.numerics import deviance, log, log_quotient, total, xlogx, xlogy
from xentjax.pairs import Pair, as_pair, divide, mantissa_and_exponent, multiply, pair_sum, scaled, select


@op(
    wrt=("joint",),
    domain=Domain(joint=JointTable("B J K"), options=(*TABLE_OPTIONS, {"axis": (0, 1)})),
    group="joint tables",
    formula="Σ P log(P/(r c))",
    gradient="log(P/(r c)) - 1",
    source="Shannon 1948; Loader 2000",
    fill={"joint": 0.0},
)
def mutual_information(
    joint: ArrayLike,
    *,
    axis: tuple[int, int] = (-2, -1),
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Mutual information of two variables, from the table of their joint distribution.

    With the marginals :math:`r_x = \sum_y P_{xy}` and :math:`c_y = \sum_x P_{xy}`:

    .. math:: I(X; Y) = \sum_{x,y} P_{xy} \log\frac{P_{xy}}{r_x c_y}, \qquad
       \frac{\partial I}{\partial P_{xy}} = \log\frac{P_{xy}}{r_x c_y} - 1

    (the two marginals give -1 each, the cell itself +1).

    Args:
      joint: non-negative numbers, P(X = x, Y = y) in row x and column y. They are not renormalised.
      axis: the axes of the two variables. By default the last two.
      where: which cells exist, of the table's shape. The others count as 0 and have gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the two axes with length 1.

    Returns:
      The mutual information without the two axes, in the table's dtype (16-bit floats are computed in float32).

    Almost independent variables keep their digits: the marginals and their products are carried with twice the digits,
    and with T, the sum of the table, and Q = rc/T it is Σ (P log(P/Q) - P + Q) - T log T. These deviances are
    non-negative and of second order. A cell with P = 0 contributes 0; its gradient is -inf, or 0 where its row
    or column is zero. A negative cell gives NaN. Where nothing is left by the mask it is 0.

    Raises:
      ValueError: for axes that are not two different ones of the table or are empty, a mask of another shape, or a
        base that is none.

    >>> mutual_information(jnp.array([[0.5, 0.0], [0.0, 0.5]]), base=2)
    Array(1., dtype=float32)
    """
    return jnp.sum(_plain_dependence(joint, axis), axis=axis, keepdims=keepdims)


@mutual_information.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    require_two_axes("mutual_information", bound)
    return bound


@mutual_information.value
def _(joint: Any, *, axis: Any) -> Any:
    return _dependence(joint, axis)


@mutual_information.partial("joint")
def _(saved: Any, joint: Any, *, axis: Any) -> Any:
    return _dependence_gradient(saved, joint, axis)


@mutual_information.second
def _(tangents: dict[str, Any], active: tuple[str, ...], joint: Any, *, axis: Any) -> Any:
    return (_dependence_second(tangents["joint"], joint, axis),)


@op(
    wrt=("joint",),
    domain=Domain(
        joint=JointTable("J K D"),
        options=({}, {"base": 2, "keepdims": True, "where": Mask("J K D")}, {"axis": (1, 2)}),
    ),
    group="joint tables",
    formula="Σ P log(P/Π r)",
    gradient="log(P/Π r) + 1 - n",
    source="Watanabe 1960",
    fill={"joint": 0.0},
)
def total_correlation(
    joint: ArrayLike,
    *,
    axis: tuple[int, ...] | None = None,
    where: ArrayLike | None = None,
    base: float | None = None,
    keepdims: bool = False,
) -> jax.Array:
    r"""Total correlation of n variables: the divergence of their joint distribution from the product of the marginals.

    With :math:`r^{(k)}` the marginal of variable k:

    .. math:: C = \sum_x P_x \log\frac{P_x}{\prod_k r^{(k)}_{x_k}}, \qquad
       \frac{\partial C}{\partial P_x} = \log\frac{P_x}{\prod_k r^{(k)}_{x_k}} + 1 - n

    Args:
      joint: non-negative numbers, one axis for each variable. They are not renormalised.
      axis: the axes of the variables; None for all.
      where: which cells exist, of the table's shape. The others count as 0 and have gradient 0.
      base: of the logarithm; nats where it is None, bits where it is 2.
      keepdims: keep the axes with length 1.

    Returns:
      The total correlation without ``axis``, in the table's dtype (16-bit floats are computed in float32).

    For two variables it is their :func:`mutual_information`, and it is computed in the same way. A cell with P = 0
    contributes 0; its gradient is -inf, or 0 where a marginal is zero. A negative cell gives NaN. Where nothing is left
    by the mask it is 0.

    Raises:
      ValueError: for an axis that is missing, empty or named twice, a mask of another shape, or a base that is none.

    >>> total_correlation(jnp.zeros((2, 2, 2)).at[0, 0, 0].set(0.5).at[1, 1, 1].set(0.5), base=2)
    Array(2., dtype=float32)
    """
    return jnp.sum(_plain_dependence(joint, axis), axis=axis, keepdims=keepdims)


@total_correlation.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    variables("total_correlation", bound["joint"], bound["axis"])
    return bound


@total_correlation.value
def _(joint: Any, *, axis: Any) -> Any:
    return _dependence(joint, axis)


@total_correlation.partial("joint")
def _(saved: Any, joint: Any, *, axis: Any) -> Any:
    return _dependence_gradient(saved, joint, axis)


@total_correlation.second
def _(tangents: dict[str, Any], active: tuple[str, ...], joint: Any, *, axis: Any) -> Any:
    return (_dependence_second(tangents["joint"], joint, axis),)


# -- the parts of mutual information and total correlation -------------------------------------------------------------


def _others(joint: Any, axis: Any) -> list[tuple[int, ...]]:
    """For each variable, the axes of all the others: a marginal is the sum over them."""
    axes = variables("", joint, axis)
    return [tuple(other for other in axes if other != one) for one in axes]


def _plain_dependence(joint: Any, axis: Any) -> Any:
    """P log(P/Π r) of every cell: the plain formula."""
    joint = jnp.asarray(joint)
    terms = xlogx(joint)
    for others in _others(joint, axis):
        terms = terms - xlogy(joint, jnp.sum(joint, axis=others, keepdims=True))
    return terms


def _dependence(joint: Any, axis: Any) -> tuple[Any, Any]:
    r"""Σ P log(P/Π r), and log(P/Π r) with where Π r is not zero.

    With n variables and T = Σ P, let Q = Π r / T^(n-1), whose sum is T too:

        Σ P log(P/Π r) = Σ (deviance of P and Q) - (n - 1) T log T.

    The deviances are of second order where the variables are almost independent, and log T has all its digits where T
    is close to one. Q is a pair, from the mantissas of its factors, so that no product leaves the range.
    """
    whole = pair_sum(joint, axis)
    marginals = [pair_sum(joint, others) for others in _others(joint, axis)]
    (divisor, less), (product, shift) = _mantissa(whole), _mantissa(marginals[0])
    for marginal in marginals[1:]:
        factor, exponent = _mantissa(marginal)
        product, shift = multiply(product, divide(factor, divisor)), shift + exponent - less
    logarithm = log_quotient(joint, product, shift)
    exists = functools.reduce(jnp.logical_and, [marginal[0] != 0 for marginal in marginals])
    high, low = select(exists, scaled(product, shift), as_pair(jnp.zeros_like(joint)))
    scale = (len(marginals) - 1) * log(whole)
    value = total(deviance(joint, high, logarithm, low), axis) - scale * whole[0]
    return value, (logarithm - scale, exists)


def _mantissa(x: Pair) -> tuple[Pair, Any]:
    """x = m·2^k, with the high part of the pair m from 1 to 2; m = 1 where x is 0."""
    mantissa, exponent = mantissa_and_exponent(x[0])
    return (mantissa, jnp.where(x[0] == 0, 0, mantissa * (x[1] / x[0]))), exponent


def _dependence_gradient(saved: Any, joint: Any, axis: Any) -> Any:
    """log(P/Π r) + 1 - n: the cell itself gives +1, and each marginal Σ_x P_x/r_x = 1 with the other sign."""
    logarithm, exists = saved
    return jnp.where(exists, logarithm + (1 - len(_others(joint, axis))), 0)


def _dependence_second(t: Any, joint: Any, axis: Any) -> Any:
    """dP/P - Σ dr/r."""
    moved, exists = along(1 / joint, t), True
    for others in _others(joint, axis):
        marginal, marginal_dot = (jnp.sum(x, axis=others, keepdims=True) for x in (joint, t))
        moved, exists = moved - marginal_dot / marginal, exists & (marginal != 0)
    return jnp.where(exists, moved, 0)
