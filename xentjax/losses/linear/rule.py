r"""The statistics of rows of logits with their derivative, one linear rule for forward mode, reverse mode and above.

With the sums of :mod:`xentjax.losses.linear.slopes`, p_k = e^{-gap_k}, and e the label with p_e > 1/2 (du_e = 0 where
there is none):

    d log_total   = mean + p_e du_e             (of m + log_total, m being a constant)
    d gap_k       = d log_total - du_{y_k}      for k = e: mean - (1 - p_e) du_e, 1 - p_e = -expm1(-gap_e)
    d uniform     = (Σ c) d log_total - uniform + weights
    d teacher     = A d log_total - teacher + taught,   d teacher_mass = mass
    d depth       = depth,  d teacher_log_total = level
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xentjax.core import policy
from xentjax.core.linear_map import linear_map
from xentjax.losses.linear import slopes
from xentjax.losses.linear.statistics import State, class_mass, statistics_alone
from xentjax.losses.linear.vocabulary import Arrays, Walk

#: Statistics that the derivative is made of.
_NEEDED = (
    "maximum",
    "log_total",
    "depth",
    "uniform",
    "teacher",
    "teacher_mass",
    "teacher_maximum",
    "teacher_log_total",
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 2, 3))
def statistics(walk: Walk, arrays: Arrays, heads: tuple[str, ...], top: int) -> State:
    """What :func:`xentjax.losses.linear.statistics.statistics_alone` gives, differentiable.

    The maximum counts as a constant: its tangent is 0, and that of ``log_total`` is the logsumexp's.
    """
    return statistics_alone(walk, arrays, heads, top)


def _rule(walk: Walk, heads: tuple[str, ...], top: int, primals: Any, tangents: Any) -> tuple[State, State]:
    (arrays,), (tangents,) = primals, tangents
    moving = {n: t for n, t in tangents.items() if policy.is_float(arrays[n]) and not isinstance(t, SymbolicZero)}
    found = statistics(walk, arrays, heads, top)
    residuals, tangents_of, _ = linearized(walk, arrays, found)
    known = {**arrays, "known": found["known"]} if "known" in found else arrays
    sums = linear_map(slopes.forward, slopes.backward, (walk, tuple(moving)), (known, residuals), moving)
    if walk.axis_name is not None:
        sums = jax.lax.psum(sums, walk.axis_name)
    along = tangents_of(sums)
    return found, {n: along.get(n, _zero(value)) for n, value in found.items()}


def linearized(walk: Walk, arrays: Arrays, found: State) -> tuple[State, Callable[[State], State], State]:
    """What the sums need of the statistics that have been found; the tangents of these, a linear function of the sums;
    and zeros in the sums' shapes."""
    is_lost = None
    if "is_left_out" in arrays:
        found, is_lost = _at_rest(arrays["is_left_out"], found)
    residuals = {n: found[n] for n in _NEEDED if n in found}
    if is_lost is not None:
        residuals["is_lost"] = is_lost
    of_gaps: dict[str, Any] = {"gap": arrays.get("labels"), "top_gap": found.get("top")}
    chosen = [(name, columns) for name, columns in of_gaps.items() if name in found]
    if chosen:
        columns = jnp.concatenate([columns for _, columns in chosen], axis=1)
        gap = jnp.concatenate([found[name] for name, _ in chosen], axis=1)
        others, is_dominant = _dominant(gap)
        dominant = jnp.max(jnp.where(is_dominant, columns, -1), axis=1)
        residuals |= {"columns": columns, "dominant": dominant}

    def tangents(sums: State) -> State:
        along: State = {}
        level = sums["mean"]
        if chosen:
            label = lambda values: jnp.sum(jnp.where(is_dominant, values, 0), axis=1)
            step = label(sums["at"])
            level = sums["mean"] + label(1 - others) * step
            apart = sums["mean"] - label(others) * step
            is_same = (columns == dominant[:, None]) & (dominant >= 0)[:, None]
            of_gap = jnp.where(is_same, apart[:, None], level[:, None] - sums["at"])
            for name, own in chosen:
                along[name], of_gap = of_gap[:, : own.shape[1]], of_gap[:, own.shape[1] :]
        if "gap" in found:
            # Where there is no such class the slope is NaN: a factor, so that no cotangent meets it anywhere else.
            along["gap"] = along["gap"] * jnp.where(arrays["is_class"], jnp.ones_like(along["gap"]), jnp.nan)
        along["log_total"] = level
        if "depth" in found:
            along["depth"] = sums["depth"]
        if "uniform" in found:
            along["uniform"] = class_mass(walk, arrays) * level - sums["uniform"] + sums["weights"]
        if "teacher" in found:
            along["teacher"] = found["teacher_mass"] * level - sums["teacher"] + sums["taught"]
            along["teacher_mass"], along["teacher_log_total"] = sums["mass"], sums["level"]
        return along

    shapes = slopes.sums_of(arrays, residuals)
    return residuals, tangents, {n: jnp.zeros(shape, found["log_total"].dtype) for n, shape in shapes.items()}


statistics.defjvp(_rule, symbolic_zeros=True)


#: -log p of all classes of an example that is left out and whose logits are not finite: p is 0.
_NEVER = 1000.0


def _at_rest(is_left_out: Any, found: State) -> tuple[State, Any]:
    """Which of the examples left out have logits that overflow, whose statistics are NaN; and the statistics with
    numbers in their place whose slopes are 0, as NaN would reach gradients of w although its cotangent is 0."""
    is_finite = [jnp.isfinite(a) for n, a in found.items() if n.removeprefix("teacher_") in ("maximum", "log_total")]
    is_lost = is_left_out & ~functools.reduce(jnp.logical_and, is_finite)

    def at_rest(name: str, value: Any) -> Any:
        if not policy.is_float(value) or name == "known":
            return value
        number = _NEVER if name.endswith(("log_total", "gap")) else 0
        return jnp.where(is_lost.reshape(-1, *(1,) * (value.ndim - 1)), number, value)

    return {name: at_rest(name, value) for name, value in found.items()}, is_lost


def _dominant(gap: Any) -> tuple[Any, Any]:
    """What the probabilities of the labels leave to others, and which label of a row has more than half: the first
    where it is named twice."""
    others = -jnp.expm1(-gap)
    is_large = jax.lax.stop_gradient(others) < 0.5
    return others, is_large & (jnp.cumsum(is_large, axis=1) == 1)


def _zero(value: Any) -> Any:
    return jnp.zeros_like(value) if policy.is_float(value) else np.zeros(value.shape, jax.dtypes.float0)
