"""What a linear cross-entropy gives, from statistics of rows of logits: plain arithmetic, which JAX differentiates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.losses.linear.arguments import OF_LABELS, Problem, top_of
from xentjax.losses.linear.in_forward import loss_in_forward
from xentjax.losses.linear.plan import Explanation
from xentjax.losses.linear.rule import statistics
from xentjax.losses.linear.statistics import State
from xentjax.losses.linear.vocabulary import Arrays, Walk

#: The numbers of a loss, by name.
Numbers = Mapping[str, Any]


class TopClasses(NamedTuple):
    """The most probable classes of each example, in order: log-probabilities and class indices, ``[..., k]``."""

    log_probs: Any
    indices: Any


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
    found = statistics(walk, _heads(problem, plan), problem.top, arrays)
    outputs: dict[str, Any] = {"logsumexp": found["maximum"] + found["log_total"]}
    for name in problem.outputs:
        if name == "entropy":
            outputs[name] = found["log_total"] + found["depth"]
        elif name == "argmax":
            outputs[name] = found["argmax"]
        elif name == "loss":
            outputs[name] = _reduced(problem.reduction, numbers, _loss(problem, walk, arrays, numbers, found))
        elif name == "log_prob":
            outputs[name] = _kept(numbers, -_surprise(problem, plan, arrays, numbers, found))
        elif name == "correct":
            outputs[name] = _kept(numbers, found["argmax"] == _label(problem, arrays, numbers, found))
        elif k := top_of(name):
            outputs[name] = TopClasses(-found["top_gap"][:, :k], found["top"][:, :k])
    if (legible := numbers.get("legible")) is not None:
        of_prediction = {n: v for n, v in outputs.items() if n not in OF_LABELS}
        outputs |= jax.tree.map(functools.partial(_where, legible), of_prediction)
    return {name: outputs[name] for name in problem.outputs}


def _of_no_rows(problem: Problem, plan: Explanation, arrays: Arrays, numbers: Numbers) -> dict[str, Any]:
    """The outputs of one row of weight 0, without that row."""
    row = lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype)
    of_rows = {n: row(a) for n, a in arrays.items() if n in ("x", "teacher_x", "labels", "is_left_out")}
    of_numbers = {n: a if a is None or a.ndim == 0 else row(a) for n, a in numbers.items()}
    of_numbers |= {"weights": row(arrays["x"][:, 0].astype(problem.dtype)), "kept": jnp.zeros(1, bool)}
    one = dataclasses.replace(problem, rows=1)
    outputs = outputs_of_rows(one, plan, {**arrays, **of_rows}, of_numbers)
    return jax.tree.map(lambda a: a[:0] if a.ndim else a, outputs)


def _heads(problem: Problem, plan: Explanation) -> tuple[str, ...]:
    """The statistics that the outputs are made of."""
    asked, heads = set(problem.outputs), []
    if asked & {"loss", "log_prob"}:
        heads.append("teacher" if problem.labels == "teacher" else "gap")
    if "loss" in asked and "label_smoothing" in problem.options:
        heads.append("uniform")
    if "entropy" in asked:
        heads.append("depth")
    if asked & {"argmax", "correct"}:
        heads.append("argmax")
    if "correct" in asked and problem.labels == "teacher":
        heads.append("teacher_argmax")
    if problem.top:
        heads.append("top")
    if plan.strategy == "dense":
        heads.append("known")
    return tuple(heads)


def _loss(problem: Problem, walk: Walk, arrays: Arrays, numbers: Numbers, found: State) -> Any:
    r"""Each row's :math:`(1-\varepsilon)\sum t_i v_i (-\log p_i) + \frac{\varepsilon T}{V}\sum_j v_j (-\log p_j)
    + \zeta\,\mathrm{lse}^2`."""
    smoothing, kept = numbers.get("label_smoothing"), numbers["kept"]
    if kept is not None:
        # What is infinite in examples that are left out must not meet their cotangents of 0.
        names = [n for n in ("maximum", "log_total", "gap", "uniform", "teacher") if n in found]
        is_kept = {n: kept.reshape(-1, *(1,) * (found[n].ndim - 1)) for n in names}
        found = found | {n: jnp.where(is_kept[n] | jnp.isfinite(found[n]), found[n], 0) for n in names}
    if problem.labels == "teacher":
        loss, mass = found["teacher"], 1
    else:
        masses = numbers["probabilities"]
        mass = 1 if masses is None else jnp.sum(masses, axis=1)
        if "class_weights" in arrays:
            own = _class_weights_of_labels(walk, arrays)
            masses = own if masses is None else masses * own
        gap = found["gap"]
        loss = jnp.sum(gap if masses is None else _massed(masses, gap), axis=1)
    if smoothing is not None:
        loss = (1 - smoothing) * loss + smoothing / problem.classes * mass * found["uniform"]
    if (z_loss := numbers.get("z_loss")) is not None:
        loss = loss + z_loss * jnp.square(found["maximum"] + found["log_total"])
    return loss


def _massed(masses: Any, gap: Any) -> Any:
    """m (-log p), where 0·log 0 = 0; elsewhere a mass of 0 still has a derivative."""
    return jnp.where((masses == 0) & (gap == jnp.inf), 0, masses * gap)


def _class_weights_of_labels(walk: Walk, arrays: Arrays) -> Any:
    """The class weight of each label, which another device may have; NaN where there is no such class."""
    places = arrays["labels"] - arrays.get("offset", 0)
    own = jnp.take(arrays["class_weights"], jnp.clip(places, 0, walk.width - 1))
    if walk.axis_name is not None:
        own = jax.lax.psum(jnp.where((places >= 0) & (places < walk.width), own, 0), walk.axis_name)
    return jnp.where(arrays["is_class"], own, jnp.nan)


def _reduced(reduction: str, numbers: Numbers, loss: Any) -> Any:
    shared = {"weights": numbers["weights"], "reduction": reduction}
    return policy.weigh_and_reduce(loss, (numbers["counted"], numbers["kept"]), shared)


def _in_forward(problem: Problem, plan: Explanation, arrays: Arrays, numbers: Numbers) -> Any:
    """The loss, reduced, with its gradient computed as it is: a sum over examples, each of its share."""
    walk = plan.walk(problem)
    given = {n: v for n, v in numbers.items() if v is not None}
    missing = dict.fromkeys(n for n, v in numbers.items() if v is None)

    def loss(values: Any, found: State) -> Any:
        own = {**missing, **{n: values[n] for n in values if n not in arrays}}
        return _reduced("sum", own, _loss(problem, walk, {n: values[n] for n in arrays}, own, found))

    values = {**arrays, **given, "weights": _shares(problem, numbers)}
    return loss_in_forward(walk, _heads(problem, plan), loss, plan, tuple(arrays), values)


def _shares(problem: Problem, numbers: Numbers) -> Any:
    """What each example counts for in the reduced loss."""
    weights = numbers["weights"]
    shares = jnp.ones(problem.rows, problem.dtype) if weights is None else weights
    if (counted := numbers["counted"]) is not None:
        shares = jnp.where(counted, shares, 0)
    if problem.reduction == "sum":
        return shares
    return shares * policy.inverse(jnp.sum(shares))


def _kept(numbers: Numbers, values: Any) -> Any:
    """The values, and 0 for examples that are left out."""
    return values if numbers["kept"] is None else _where(numbers["kept"], values)


def _where(examples: Any, values: Any) -> Any:
    """The values of some examples, 0 and False for the others."""
    return jnp.where(examples.reshape(-1, *(1,) * (values.ndim - 1)), values, jnp.zeros_like(values))


def _surprise(problem: Problem, plan: Explanation, arrays: Arrays, numbers: Numbers, found: State) -> Any:
    """Σ t_i (-log p_i), without any option of the loss."""
    if problem.labels == "teacher":
        if "class_weights" not in arrays:
            return found["teacher"]
        # The statistics have it with the class weights: another walk.
        plain = {n: a for n, a in arrays.items() if n != "class_weights"}
        return statistics(plan.walk(problem), ("teacher",), 0, plain)["teacher"]
    gap, masses = found["gap"], numbers["probabilities"]
    if masses is None:
        return gap[:, 0]
    return jnp.sum(_massed(masses, gap), axis=1)


def _label(problem: Problem, arrays: Arrays, numbers: Numbers, found: State) -> Any:
    """The label of each row, the most probable one."""
    if problem.labels == "teacher":
        return found["teacher_argmax"]
    labels, masses = arrays["labels"], numbers["probabilities"]
    if masses is None:
        return labels[:, 0]
    # A class that is named twice has the sum.
    is_same = labels[:, :, None] == labels[:, None, :]
    masses = jnp.sum(jnp.where(is_same, masses[:, None, :], 0), axis=2)
    return jnp.take_along_axis(labels, jnp.argmax(masses, axis=1)[:, None], axis=1)[:, 0]
