"""The outputs of a linear cross-entropy: what each is called, needs, and is in terms of statistics of rows of logits.

Values are plain arithmetic, which JAX differentiates.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.losses.linear.vocabulary import Arrays, Walk

if TYPE_CHECKING:
    from xentjax.losses.linear.arguments import Problem
    from xentjax.losses.linear.statistics import State

#: The numbers of a loss, by name.
Numbers = Mapping[str, Any]


class TopClasses(NamedTuple):
    """The most probable classes of each example, in order: log-probabilities and class indices, ``[..., k]``."""

    log_probs: Any
    indices: Any


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some examples, and what is known of their logits.

    Attributes:
      problem: what is asked for.
      walk: over the vocabulary.
      arrays: of the walk.
      numbers: of the loss.
      found: the statistics of the rows.
      walked: statistics by their names, from a walk of its own with other arrays.
    """

    problem: Problem
    walk: Walk
    arrays: Arrays
    numbers: Numbers
    found: State
    walked: Callable[[tuple[str, ...], Arrays], State]

    def kept(self, values: Any) -> Any:
        """The values, and 0 for examples that are left out."""
        return values if self.numbers["kept"] is None else where(self.numbers["kept"], values)


@dataclasses.dataclass(frozen=True)
class Output:
    """One output.

    Attributes:
      statistics: of a problem: names of those that the value is made of, as
        :func:`xentjax.losses.linear.statistics.statistics_alone` lists them.
      value: of rows: an array ``[N, ...]``, or a NamedTuple of such.
      top: how many of the most probable classes it is made of; then ``"top"`` is among the statistics.
      is_of_labels: whether it depends on labels. Then it needs them, and its value is 0 for examples that are left out.
      is_of_kernels: whether the kernels give its statistics.
    """

    statistics: Callable[[Problem], set[str]]
    value: Callable[[Rows], Any]
    top: int = 0
    is_of_labels: bool = False
    is_of_kernels: bool = False


def output(name: str) -> Output:
    """The output of a name, ``"top_5"`` and the like among them; KeyError where none has it."""
    if k := top_of(name):
        return Output(_of_nothing_else, functools.partial(_top, k), top=k)
    return OUTPUTS[name]


def top_of(name: str) -> int:
    """k of ``"top_k"``, otherwise 0."""
    found = re.fullmatch(r"top_([1-9]\d*)", name)
    return int(found[1]) if found else 0


def where(examples: Any, values: Any) -> Any:
    """The values of some examples, 0 and False for the others."""
    return jnp.where(examples.reshape(-1, *(1,) * (values.ndim - 1)), values, jnp.zeros_like(values))


# -- of the prediction -------------------------------------------------------------------------------------------------


def _of_nothing_else(problem: Problem) -> set[str]:
    """The maximum and the sum are always there."""
    return set()


def _logsumexp(rows: Rows) -> Any:
    return rows.found["maximum"] + rows.found["log_total"]


def _entropy(rows: Rows) -> Any:
    return rows.found["log_total"] + rows.found["depth"]


def _argmax(rows: Rows) -> Any:
    return rows.found["argmax"]


def _top(k: int, rows: Rows) -> TopClasses:
    return TopClasses(-rows.found["top_gap"][:, :k], rows.found["top"][:, :k])


# -- of the labels -----------------------------------------------------------------------------------------------------


def _statistics_of_surprise(problem: Problem) -> set[str]:
    return {"teacher" if problem.labels == "teacher" else "gap"}


def _statistics_of_loss(problem: Problem) -> set[str]:
    return _statistics_of_surprise(problem) | ({"uniform"} if "label_smoothing" in problem.options else set())


def _statistics_of_correct(problem: Problem) -> set[str]:
    return {"argmax"} | ({"teacher_argmax"} if problem.labels == "teacher" else set())


def _loss(rows: Rows) -> Any:
    """Reduced as the problem says."""
    return reduced(rows.problem.reduction, rows.numbers, losses(rows))


def reduced(reduction: str, numbers: Numbers, loss: Any) -> Any:
    """Each row's loss, weighted and reduced."""
    shared = {"weights": numbers["weights"], "reduction": reduction}
    return policy.weigh_and_reduce(loss, (numbers["counted"], numbers["kept"]), shared)


def losses(rows: Rows) -> Any:
    r"""Each row's :math:`(1-\varepsilon)\sum t_i v_i (-\log p_i) + \frac{\varepsilon T}{V}\sum_j v_j (-\log p_j)
    + \zeta\,\mathrm{lse}^2`."""
    problem, arrays, numbers, found = rows.problem, rows.arrays, rows.numbers, rows.found
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
            own = _class_weights_of_labels(rows.walk, arrays)
            masses = own if masses is None else masses * own
        gap = found["gap"]
        loss = jnp.sum(gap if masses is None else _massed(masses, gap), axis=1)
    if smoothing is not None:
        loss = (1 - smoothing) * loss + smoothing / problem.classes * mass * found["uniform"]
    if (z_loss := numbers.get("z_loss")) is not None:
        loss = loss + z_loss * jnp.square(found["maximum"] + found["log_total"])
    return loss


def _log_prob(rows: Rows) -> Any:
    """Σ t_i log p_i, without any option of the loss."""
    return rows.kept(-_surprise(rows))


def _surprise(rows: Rows) -> Any:
    found, masses = rows.found, rows.numbers["probabilities"]
    if rows.problem.labels == "teacher":
        if "class_weights" not in rows.arrays:
            return found["teacher"]
        # The statistics have it with the class weights: another walk.
        plain = {n: a for n, a in rows.arrays.items() if n != "class_weights"}
        return rows.walked(("teacher",), plain)["teacher"]
    if masses is None:
        return found["gap"][:, 0]
    return jnp.sum(_massed(masses, found["gap"]), axis=1)


def _correct(rows: Rows) -> Any:
    """Whether the most probable class is the most probable label."""
    return rows.kept(rows.found["argmax"] == _label(rows))


def _label(rows: Rows) -> Any:
    if rows.problem.labels == "teacher":
        return rows.found["teacher_argmax"]
    labels, masses = rows.arrays["labels"], rows.numbers["probabilities"]
    if masses is None:
        return labels[:, 0]
    # A class that is named twice has the sum.
    is_same = labels[:, :, None] == labels[:, None, :]
    masses = jnp.sum(jnp.where(is_same, masses[:, None, :], 0), axis=2)
    return jnp.take_along_axis(labels, jnp.argmax(masses, axis=1)[:, None], axis=1)[:, 0]


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


# -- all of them -------------------------------------------------------------------------------------------------------

_of_labels = functools.partial(Output, is_of_labels=True)

#: By name; beside them ``"top_1"``, ``"top_2"`` and so on.
OUTPUTS = {
    "loss": _of_labels(_statistics_of_loss, _loss, is_of_kernels=True),
    "logsumexp": Output(_of_nothing_else, _logsumexp, is_of_kernels=True),
    "log_prob": _of_labels(_statistics_of_surprise, _log_prob, is_of_kernels=True),
    "entropy": Output(lambda problem: {"depth"}, _entropy),
    "argmax": Output(lambda problem: {"argmax"}, _argmax),
    "correct": _of_labels(_statistics_of_correct, _correct),
}
