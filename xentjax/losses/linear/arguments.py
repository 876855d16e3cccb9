"""The arguments of a linear cross-entropy: checked, flattened to rows, and in the dtypes of computation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.losses.linear.labels import SoftLabels, Teacher
from xentjax.losses.linear.outputs import OUTPUTS, output, top_of
from xentjax.losses.linear.vocabulary import Arrays, Layout
from xentjax.losses.shaping import hyperparameter

NAME = "linear_cross_entropy"
#: What may be given beside x, w and labels: arrays of the walk, and numbers of the loss.
OPTIONS = ("bias", "weights", "label_smoothing", "class_weights", "z_loss", "softcap", "temperature")
LAYOUTS: tuple[Layout, ...] = ("dv", "vd")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a call asks for, as far as it is known before it runs; part of the keys of JAX's caches.

    Attributes:
      rows: N, the number of examples.
      features: D, the columns of x.
      width: the columns of w on this device.
      classes: V, the number of classes on all devices.
      layout: that of w.
      outputs: their names, in order.
      labels: ``"indices"``, ``"soft"``, ``"teacher"``, or None.
      options: which of ``OPTIONS`` are given.
      reduction: of the loss.
      operands: the dtype of the matrix products' operands.
      dtype: the dtype of computation.
      axis_name: the mesh axis that the vocabulary is split over, or None.
      shards: over how many devices.
      teacher_features: the columns of a teacher's x; 0 without one.
    """

    rows: int
    features: int
    width: int
    classes: int
    layout: Layout
    outputs: tuple[str, ...]
    labels: str | None
    options: frozenset[str]
    reduction: policy.Reduction
    operands: Any
    dtype: Any
    axis_name: Any
    shards: int
    teacher_features: int

    @property
    def is_scalar(self) -> bool:
        """Whether one number is all that is asked for."""
        return self.outputs == ("loss",) and self.reduction != "none"

    @property
    def top(self) -> int:
        """How many of the most probable classes are asked for."""
        return max((output(name).top for name in self.outputs), default=0)


def prepared(bound: dict[str, Any]) -> tuple[Problem, Arrays, dict[str, Any]]:
    """What is asked for; the arrays of the vocabulary's walk; and the numbers of the loss, None where there are none.

    The numbers are label_smoothing, z_loss, probabilities ``[N, k]`` of soft labels, weights ``[N]``, and masks ``[N]``
    of examples: ``counted``, whose label is not ``ignore_index``; ``kept``, which also have a weight; and, where an
    output does not depend on labels, ``legible``: all but those that are left out and hold NaN or infinities.

    Raises:
      ValueError, TypeError: for arguments that do not fit together; the error names the argument and what it needs.
    """
    x, w = bound["x"], bound["w"]
    layout = LAYOUTS[1 - vocabulary_axis(bound)]
    width, d = _check_matrices(x, w, layout)
    axis_name, shards = bound["axis_name"], 1
    if axis_name is not None:
        shards = int(jax.lax.axis_size(axis_name))
    classes = _classes(bound["num_classes"], width * shards)
    outputs = _outputs(bound["outputs"], classes, bound["labels"])
    operands = jnp.dtype(policy.result_dtype((x, w)))
    dtype = policy.compute_dtype(operands)
    examples, rows = x.shape[:-1], x.size // d

    arrays: dict[str, Any] = {"x": x.astype(operands).reshape(rows, d), "w": w.astype(operands)}
    if axis_name is not None:
        arrays["offset"] = jax.lax.axis_index(axis_name).astype(jnp.int32) * width
    for name in ("bias", "class_weights"):
        if bound[name] is not None:
            entries = jnp.asarray(bound[name])
            policy.require_shape(NAME, name, entries.shape, (width,), "one for each column of w")
            arrays[name] = entries.astype(dtype)
    if bound["softcap"] is not None:
        arrays["softcap"] = hyperparameter(NAME, "softcap", bound, dtype)
    if policy.is_given(bound["temperature"], 1.0):
        arrays["temperature"] = hyperparameter(NAME, "temperature", bound, dtype)

    numbers: dict[str, Any] = {"weights": None, "probabilities": None}
    for name in ("label_smoothing", "z_loss"):
        if policy.is_given(bound[name], 0.0):
            numbers[name] = hyperparameter(NAME, name, bound, dtype)
    if bound["weights"] is not None:
        policy.require_shape(NAME, "weights", bound["weights"].shape, examples, "one weight for each example")
        numbers["weights"] = bound["weights"].reshape(rows).astype(dtype)
    labels = bound["labels"]
    kind = _kind_of(labels)
    if bound["ignore_index"] is not None and kind != "indices":
        raise ValueError(f"{NAME}: ignore_index needs integer labels; use weights")
    flat = None
    if kind == "indices":
        policy.require_shape(NAME, "labels", labels.shape, examples, "the shape of x without its last axis")
        flat = policy.class_indices(labels, classes).reshape(rows)
    shared = {"ignore_index": bound["ignore_index"], "weights": numbers["weights"]}
    numbers["counted"], numbers["kept"] = kept = policy.examples_kept(flat, shared, ())
    if flat is not None:
        arrays["labels"] = flat[:, None]
    elif kind == "soft":
        _add_soft(arrays, numbers, labels, examples, classes, dtype)
    elif kind == "teacher":
        _add_teacher(arrays, labels, examples, layout, dtype)
    if kept[1] is not None:
        if not all(output(name).is_of_labels for name in outputs):
            numbers["legible"] = kept[1] | jnp.all(jnp.isfinite(arrays["x"]), axis=1)
        _leave_out(arrays, numbers, kept[1], classes)
    problem = Problem(
        rows=rows,
        features=d,
        width=width,
        classes=classes,
        layout=layout,
        outputs=outputs,
        labels=kind,
        options=frozenset(n for n in OPTIONS if n in arrays or numbers.get(n) is not None),
        reduction=bound["reduction"],
        operands=operands,
        dtype=dtype,
        axis_name=axis_name,
        shards=shards,
        teacher_features=arrays["teacher_x"].shape[1] if kind == "teacher" else 0,
    )
    return problem, arrays, numbers


def vocabulary_axis(bound: dict[str, Any]) -> int:
    """Which axis of w the vocabulary is along."""
    if (layout := bound["w_layout"]) not in LAYOUTS:
        raise ValueError(f"{NAME}: w_layout must be {' or '.join(map(repr, LAYOUTS))}, got {layout!r}")
    return 1 - LAYOUTS.index(layout)


# -- shapes ------------------------------------------------------------------------------------------------------------


def _check_matrices(x: Any, w: Any, layout: Layout, of: str = "", examples: Any = None) -> tuple[int, int]:
    """V and D, or an error."""
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{NAME}: {of}x has shape {x.shape}, but needs (..., D), D features for each example")
    d, axis = x.shape[-1], LAYOUTS.index(layout)
    needed = f"({d}, V)" if layout == "dv" else f"(V, {d})"
    if w.ndim != 2 or w.shape[axis] != d or w.size == 0:
        other = LAYOUTS[1 - axis]
        swapped = f'; w_layout="{other}" takes its transpose' if w.ndim == 2 and w.shape[1 - axis] == d else ""
        raise ValueError(
            f"{NAME}: {of}w has shape {w.shape}, but needs {needed} for {of}x of shape {x.shape}, "
            f'V classes by w_layout="{layout}"{swapped}'
        )
    if examples is not None:
        policy.require_shape(NAME, f"{of}x", x.shape[:-1], examples, "the shape of x without its last axis")
    return w.shape[1 - axis], d


def _classes(given: Any, columns: int) -> int:
    if given is None:
        return columns
    classes = policy.whole_number(NAME, "num_classes", given)
    if not 1 <= classes <= columns:
        raise ValueError(f"{NAME}: num_classes must be from 1 to {columns}, the columns of w, got {classes}")
    return classes


def _outputs(given: Any, classes: int, labels: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, tuple) or not names or len(set(names)) < len(names):
        raise ValueError(f"{NAME}: outputs must name one or more outputs, each once, got {given!r}")
    for name in names:
        if name not in OUTPUTS and not top_of(str(name)):
            known = ", ".join(map(repr, OUTPUTS))
            raise ValueError(f"{NAME}: outputs may name {known} and 'top_<k>', got {name!r}")
        if output(name).top > classes:
            raise ValueError(f"{NAME}: {name!r} asks for more classes than the {classes} that there are")
        if labels is None and output(name).is_of_labels:
            raise ValueError(f"{NAME}: the output {name!r} needs labels, got None")
    return names


# -- labels ------------------------------------------------------------------------------------------------------------


def named_labels(labels: Any) -> Any:
    """Labels that are given as a plain pair as what they are, (indices, probabilities) or a teacher's (x, w)."""
    if not isinstance(labels, tuple):
        return labels
    if not isinstance(labels, (SoftLabels, Teacher)):
        if len(labels) != 2:
            raise TypeError(
                f"{NAME}: labels must be class indices, a pair (indices, probabilities), or a teacher's (x, w), "
                f"got a tuple of {len(labels)}"
            )
        labels = Teacher(*labels) if policy.is_float(labels[0]) else SoftLabels(*labels)
    for name, value in labels._asdict().items():
        if value is None and name not in labels._field_defaults:
            raise TypeError(f"{NAME}: labels are {type(labels).__name__}, which need {name}, got None")
    return labels


def _kind_of(labels: Any) -> str | None:
    if labels is None:
        return None
    if isinstance(labels, Teacher):
        return "teacher"
    if isinstance(labels, SoftLabels):
        return "soft"
    if policy.is_float(labels):
        raise ValueError(
            f"{NAME}: labels are floats of shape {labels.shape}: whole distributions would be as large as the logits; "
            "give SoftLabels(indices, probabilities), or a Teacher(x, w)"
        )
    return "indices"


def _add_soft(arrays: Any, numbers: Any, labels: SoftLabels, examples: Any, classes: int, dtype: Any) -> None:
    indices, probabilities = labels
    if policy.is_float(indices):
        raise TypeError(f"{NAME}: the indices of soft labels must be integers, got dtype {indices.dtype}")
    if indices.shape[:-1] != examples or indices.ndim != len(examples) + 1 or indices.shape[-1] == 0:
        raise ValueError(
            f"{NAME}: labels' indices have shape {indices.shape}, but need {(*examples, 'k')}, some for each example"
        )
    policy.require_shape(NAME, "labels' probabilities", probabilities.shape, indices.shape, "one for each index")
    rows = arrays["x"].shape[0]
    arrays["labels"] = policy.class_indices(indices, classes).reshape(rows, indices.shape[-1])
    numbers["probabilities"] = probabilities.reshape(arrays["labels"].shape).astype(dtype)


def _add_teacher(arrays: Any, labels: Teacher, examples: Any, layout: Layout, dtype: Any) -> None:
    x, w = labels.x, labels.w
    width, d = _check_matrices(x, w, layout, "the teacher's ", examples)
    own = arrays["w"].shape[1 - LAYOUTS.index(layout)]
    if width != own:
        raise ValueError(f"{NAME}: the teacher's w has {width} columns, but w has {own}: they need one vocabulary")
    operands = policy.result_dtype((x, w))
    arrays["teacher_x"] = x.astype(operands).reshape(arrays["x"].shape[0], d)
    arrays["teacher_w"] = w.astype(operands)
    if labels.bias is not None:
        policy.require_shape(NAME, "the teacher's bias", labels.bias.shape, (width,), "one for each column of its w")
        arrays["teacher_bias"] = labels.bias.astype(dtype)
    if labels.softcap is not None:
        arrays["teacher_softcap"] = hyperparameter(NAME, "softcap", {"softcap": labels.softcap}, dtype)


def _leave_out(arrays: Any, numbers: Any, kept: Any, classes: int) -> None:
    """Examples that are left out: what is not finite in them becomes 0, as it would reach gradients of w, and so do
    labels that are none."""
    arrays["is_left_out"] = ~kept
    kept = kept[:, None]
    for name in ("x", "teacher_x"):
        if name in arrays:
            arrays[name] = jnp.where(kept | jnp.isfinite(arrays[name]), arrays[name], 0)
    if "labels" in arrays:
        labels = arrays["labels"]
        arrays["labels"] = jnp.where(kept | ((labels >= 0) & (labels < classes)), labels, 0)
    if (given := numbers["probabilities"]) is not None:
        numbers["probabilities"] = jnp.where(kept | jnp.isfinite(given), given, 0)
