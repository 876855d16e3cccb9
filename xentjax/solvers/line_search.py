"""A line search by values where they tell, and by slopes where the value is flat to its last digit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from xentjax.solvers.objective import Point, evaluate, select

#: What a step must gain of what the slope promises, and which share of the slope may be left (Wolfe).
_GAIN, _LEFT = 1e-4, 0.9

#: The approximate Wolfe condition in the place of the gain: an upward slope of at most this share of the first one.
_UPWARD = 0.8

#: Roundings of the value that two values may differ by and be the same.
ROUNDINGS = 16

#: Evaluations at most: enough to go 20 orders of magnitude, up or down.
_TRIALS = 40


class _End(NamedTuple):
    """An end of the bracket: where, and value and slope there."""

    length: Any
    value: Any
    slope: Any


class _Search(NamedTuple):
    length: Any  # of the next trial
    low: _End  # the farthest known point that is no higher than the start and goes down
    high: _End  # beyond it: goes up, is higher, or is not finite; infinitely far where there is none
    found: Point
    lowest: Point  # of all trials, and the start
    accepted: Any
    trials: Any


def value_rounding(point: Point) -> Any:
    """Differences of values below this are rounding."""
    return ROUNDINGS * jnp.finfo(point.value.dtype).eps * jnp.abs(point.value)


def search(objective: Any, point: Point, direction: Any, slope: Any, first: Any) -> tuple[Point, Any]:
    r"""A point along a direction that fulfils the Wolfe conditions, exactly or approximately.

    With :math:`\varphi(t) = f(\beta + t d)` a length is accepted if
    :math:`\varphi'(t) \ge 0.9\,\varphi'(0)` and either :math:`\varphi(t) \le \varphi(0) + 10^{-4}\,t\,\varphi'(0)`,
    by more than rounding :math:`\epsilon`, or :math:`\varphi(t) \le \varphi(0) + \epsilon` and
    :math:`\varphi'(t) \le 0.8\,|\varphi'(0)|`, which for a parabola says nearly the same, and can be told from the
    slope long after the value no longer can. Each trial is one evaluation of value and gradient. Steps grow, at most
    tenfold, until a bracket is found; there they are minima of cubics, kept off the ends.

    Args:
      objective: what has ``value_and_gradient``.
      point: where the search starts.
      direction: d, in the order of the raveled parameters.
      slope: φ'(0), below 0.
      first: the first length.

    Returns:
      The point found, and whether there is one; where none is accepted, the lowest of those tried, if it is lower than
      the start by more than rounding.

    Source: Hager and Zhang, SIAM J. Optim. 16 (2005), 170-192; Moré and Thuente, ACM TOMS 20 (1994), 286-307.
    """
    origin, unravel = ravel_pytree(point.params)
    rounding = value_rounding(point)

    def trial(s: _Search) -> _Search:
        new = evaluate(objective, unravel(origin + s.length * direction))
        here = _End(s.length, new.value, jnp.vdot(ravel_pytree(new.gradient)[0], direction))
        finite = jnp.isfinite(here.value) & jnp.isfinite(here.slope)
        # Only a fall that is more than rounding tells anything: what promises less would always be kept.
        fall = point.value - here.value
        gained = (fall > rounding) & (fall >= -_GAIN * s.length * slope)
        level = (fall >= -rounding) & (here.slope <= -_UPWARD * slope)
        accepted = finite & (gained | level) & (here.slope >= _LEFT * slope)
        beyond = ~finite | (here.slope >= 0) | ~(fall >= -rounding)
        low, high = select(beyond, s.low, here), select(beyond, here, s.high)
        lowest = select(finite & (here.value < s.lowest.value), new, s.lowest)
        return _Search(_next_length(s.low, low, high, rounding), low, high, new, lowest, accepted, s.trials + 1)

    begin = _End(jnp.zeros_like(slope), point.value, slope)
    nowhere = _End(jnp.full_like(slope, jnp.inf), jnp.full_like(point.value, jnp.nan), jnp.full_like(slope, jnp.nan))
    state = _Search(first, begin, nowhere, point, point, jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    unsuccessful = lambda s: ~s.accepted & (s.trials < _TRIALS) & (s.length > 0)
    s = jax.lax.while_loop(unsuccessful, trial, state)
    return select(s.accepted, s.found, s.lowest), s.accepted | (s.lowest.value < point.value - rounding)


def _next_length(before: _End, low: _End, high: _End, rounding: Any) -> Any:
    """Between the ends of a bracket; where there is no upper one yet, beyond the lower one, which ``before`` was."""
    # Where the line through both slopes is 0.
    flattening = low.slope / jnp.where(low.slope > before.slope, before.slope - low.slope, jnp.nan)
    beyond = low.length + (low.length - before.length) * flattening
    beyond = jnp.clip(jnp.where(jnp.isfinite(beyond), beyond, jnp.inf), 2 * low.length, 10 * low.length)
    # The minimum of the cubic of both values and slopes. Where the values differ by rounding only, their difference is
    # that of a parabola through the slopes.
    width = high.length - low.length
    rise = high.value - low.value
    rise = jnp.where(jnp.abs(rise) > rounding, rise, width * (low.slope + high.slope) / 2)
    middle = low.slope + high.slope - 3 * rise / width
    root = jnp.sqrt(jnp.maximum(middle * middle - low.slope * high.slope, 0))
    share = 1 - (high.slope + root - middle) / (high.slope - low.slope + 2 * root)
    finite = jnp.isfinite(high.value) & jnp.isfinite(high.slope)
    # Off the ends, and in the middle where a cubic says nothing. What is not finite lies far beyond.
    share = jnp.where(finite & (high.slope >= 0) & jnp.isfinite(share), jnp.clip(share, 0.1, 0.9), 0.5)
    inside = low.length + width * jnp.where(finite, share, 0.1)
    return jnp.where(jnp.isfinite(high.length), inside, beyond)
