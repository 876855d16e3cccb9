"""Conjugate gradients, preconditioned, in a trust region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Step(NamedTuple):
    """What conjugate gradients end with."""

    solution: Any
    decrease: Any  # by how much the parabola is lower there: ⟨b, p⟩ - ½⟨p, A p⟩
    length: Any  # ‖p‖ in the metric
    at_border: Any
    products: Any  # their number


class _Iterate(NamedTuple):
    solution: Any
    residual: Any
    direction: Any
    square: Any  # ⟨residual, M⁻¹ residual⟩
    decrease: Any
    inside: Any  # ‖solution‖², ⟨solution, direction⟩ and ‖direction‖² in the metric
    ended: Any
    at_border: Any
    products: Any


def conjugate_gradients(
    product: Callable[[Any], Any],
    right: Any,
    solve: Callable[[Any], Any],
    *,
    tol: Any,
    radius: Any = jnp.inf,
    most: int | None = None,
) -> Step:
    r"""The solution of :math:`A p = b` within :math:`\|p\|_M \le \Delta`, as far as it is asked for.

    Along a direction of negative curvature, or one that leaves the region, it goes to the border and ends there. The
    lengths in the metric come from the recursion, without M itself.

    Args:
      product: v -> A v.
      right: b.
      solve: v -> M⁻¹ v, the preconditioner.
      tol: which share of b may be left, in the norm of M⁻¹.
      radius: Δ.
      most: the most products; by default five for each unknown, and 20 more.

    Source: Steihaug, SIAM J. Numer. Anal. 20 (1983), 626-637.
    """
    most = 5 * right.size + 20 if most is None else most

    def step(s: _Iterate) -> _Iterate:
        image = product(s.direction)
        curvature = jnp.vdot(s.direction, image)
        length, across, along = s.inside
        down = curvature > 0
        share = s.square / jnp.where(down, curvature, 1)
        leaves = ~down | (length + 2 * share * across + share * share * along >= radius * radius)
        # To the border: the positive root of ‖p + t d‖² = Δ².
        room = jnp.maximum(radius * radius - length, 0)
        border = room / (across + jnp.sqrt(across * across + along * room))
        share = jnp.where(leaves, border, share)
        residual = s.residual - share * image
        solved = solve(residual)
        square = jnp.vdot(residual, solved)
        ratio = square / jnp.where(s.square > 0, s.square, 1)
        # ⟨residual, direction⟩ is s.square: each direction is M⁻¹ of the residual and what is conjugate to it.
        decrease = s.decrease + share * s.square - share * share * curvature / 2
        length = length + 2 * share * across + share * share * along
        across = ratio * (across + share * along)
        along = square + ratio * ratio * along
        ended = leaves | (square <= tol * tol * first)
        inside = (length, across, along)
        return _Iterate(
            s.solution + share * s.direction,
            residual,
            solved + ratio * s.direction,
            square,
            decrease,
            inside,
            ended,
            leaves,
            s.products + 1,
        )

    solved = solve(right)
    first = jnp.vdot(right, solved)
    zero, none, no = jnp.zeros_like(first), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    inside = (zero, zero, first)
    state = _Iterate(jnp.zeros_like(right), right, solved, first, zero, inside, ~(first > 0), no, none)
    s = jax.lax.while_loop(lambda s: ~s.ended & (s.products < most), step, state)
    return Step(s.solution, s.decrease, jnp.sqrt(s.inside[0]), s.at_border, s.products)
