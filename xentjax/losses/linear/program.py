"""The program of a linear cross-entropy: every output that is asked for, for the rows of x."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.losses.linear.arguments import Problem
from xentjax.losses.linear.in_forward import loss_in_forward
from xentjax.losses.linear.outputs import Numbers, Rows, losses, output, reduced, where
from xentjax.losses.linear.plan import Explanation
from xentjax.losses.linear.rule import statistics
from xentjax.losses.linear.statistics import State
from xentjax.losses.linear.vocabulary import Arrays, Walk


@functools.partial(jax.jit, static_argnums=(0, 1))
def outputs_of_rows(problem: Problem, plan: Explanation, arrays: Arrays, numbers: Numbers) -> dict[str, Any]:
    """Every output that is asked for, by name, for the rows of x; the loss as its reduction says."""
    if problem.rows == 0:
        return _of_no_rows(problem, plan, arrays, numbers)
    if "labels" in arrays:
        labels = arrays["labels"]
        arrays = {**arrays, "is_class": (labels >= 0) & (labels < problem.classes)}
    if plan.strategy == "gradient_in_forward":
        return {"loss": _in_forward(problem, plan, arrays, numbers)}
    walk = plan.walk(problem)
    walked = functools.partial(_walked, problem, walk)
    rows = Rows(problem, walk, arrays, numbers, walked(_statistics_of(problem, plan), arrays), walked)
    outputs = {name: output(name).value(rows) for name in problem.outputs}
    if (legible := numbers.get("legible")) is not None:
        of_prediction = {n: v for n, v in outputs.items() if not output(n).is_of_labels}
        outputs |= jax.tree.map(functools.partial(where, legible), of_prediction)
    return outputs


def _walked(problem: Problem, walk: Walk, names: tuple[str, ...], arrays: Arrays) -> State:
    return statistics(walk, arrays, names, problem.top)


def _of_no_rows(problem: Problem, plan: Explanation, arrays: Arrays, numbers: Numbers) -> dict[str, Any]:
    """The outputs of one row of weight 0, without that row."""
    row = lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype)
    of_rows = {n: row(a) for n, a in arrays.items() if n in ("x", "teacher_x", "labels", "is_left_out")}
    of_numbers = {n: a if a is None or a.ndim == 0 else row(a) for n, a in numbers.items()}
    of_numbers |= {"weights": row(arrays["x"][:, 0].astype(problem.dtype)), "kept": jnp.zeros(1, bool)}
    one = dataclasses.replace(problem, rows=1)
    outputs = outputs_of_rows(one, plan, {**arrays, **of_rows}, of_numbers)
    return jax.tree.map(lambda a: a[:0] if a.ndim else a, outputs)


def _statistics_of(problem: Problem, plan: Explanation) -> tuple[str, ...]:
    """Those that the outputs are made of, and the products where all of them are stored."""
    names = {name for asked in problem.outputs for name in output(asked).statistics(problem)}
    names |= {name for name, is_asked in (("top", problem.top), ("known", plan.strategy == "dense")) if is_asked}
    return tuple(sorted(names))


def _in_forward(problem: Problem, plan: Explanation, arrays: Arrays, numbers: Numbers) -> Any:
    """The loss, reduced, with its gradient computed as it is: a sum over examples, each of its share."""
    walk = plan.walk(problem)
    given = {n: v for n, v in numbers.items() if v is not None}
    missing = dict.fromkeys(n for n, v in numbers.items() if v is None)

    def loss(values: Any, found: State) -> Any:
        own = {**missing, **{n: values[n] for n in values if n not in arrays}}
        walked = functools.partial(_walked, problem, walk)
        rows = Rows(problem, walk, {n: values[n] for n in arrays}, own, found, walked)
        return reduced("sum", own, losses(rows))

    values = {**arrays, **given, "weights": _shares(problem, numbers)}
    return loss_in_forward(walk, _statistics_of(problem, plan), loss, plan, tuple(arrays), values)


def _shares(problem: Problem, numbers: Numbers) -> Any:
    """What each example counts for in the reduced loss."""
    weights = numbers["weights"]
    shares = jnp.ones(problem.rows, problem.dtype) if weights is None else weights
    if (counted := numbers["counted"]) is not None:
        shares = jnp.where(counted, shares, 0)
    if problem.reduction == "sum":
        return shares
    return shares * policy.inverse(jnp.sum(shares))
