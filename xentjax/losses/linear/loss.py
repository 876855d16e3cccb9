"""The cross-entropy of linear predictions, in parts of their logits, and what else one pass over them gives."""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.core.arguments import is_static
from xentjax.core.domains import Domain, Labels, Real
from xentjax.core.op import op
from xentjax.losses.linear.arguments import named_labels, prepared
from xentjax.losses.linear.labels import FewClasses, SoftLabels, SomeIgnored, Teacher, Teachers
from xentjax.losses.linear.mesh import by_compiler, is_mapped, over_mesh
from xentjax.losses.linear.outputs import OUTPUTS, TopClasses, top_of
from xentjax.losses.linear.plan import Explanation, Plan, plan
from xentjax.losses.linear.program import outputs_of_rows
from xentjax.losses.linear.vocabulary import Layout

#: For the check: blocks of the vocabulary that do not divide it, and every option of the loss.
_BLOCKS = Plan("recompute", 3)
_EVERY = {"bias": Real("K"), "class_weights": Real("K"), "label_smoothing": 0.1, "z_loss": 0.01}
_EVERY |= {"softcap": 5.0, "temperature": 2.0}
_SOME = {"labels": SomeIgnored("B", classes="J"), "ignore_index": -1, "num_classes": 3, "reduction": "mean"}
_SOME |= {"bias": Real("K"), "class_weights": Real("K"), "label_smoothing": 0.1, "z_loss": 0.01}


@op(
    wrt=(
        *("x", "w", "labels", "bias", "weights", "label_smoothing", "class_weights", "z_loss", "softcap"),
        "temperature",
    ),
    domain=Domain(
        x=Real("B D"),
        w=Real("D K"),
        labels=Labels("B"),
        options=(
            {},
            {**_EVERY, "implementation": _BLOCKS, "weights": Real("B"), "reduction": "sum"},
            {**_EVERY, "implementation": _BLOCKS, "labels": FewClasses("B J"), "w_layout": "vd", "w": Real("K D")},
            {**_EVERY, "implementation": _BLOCKS, "labels": Teachers("B D")},
            {"implementation": _BLOCKS, "softcap": 5.0, "outputs": (*OUTPUTS, "top_2")},
            {"labels": Teachers("B D"), "outputs": "log_prob"},
            {**_SOME, "implementation": Plan("gradient_in_forward", 3, 1)},
        ),
    ),
    group="losses",
    formula="-Σ t_i log softmax(x w + b)_i",
    gradient="w: xᵀ(softmax(x w + b) - t); x: (softmax(x w + b) - t) wᵀ",
    source="blocks of the vocabulary, each computed again for the gradient",
    own=("weights", "ignore_index", "reduction"),
    upcast=False,
)
def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    labels: ArrayLike | SoftLabels | Teacher | tuple[ArrayLike, ArrayLike] | None = None,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: policy.Reduction = "none",
    w_layout: Layout = "dv",
    outputs: str | Sequence[str] = ("loss",),
    memory_budget: int | None = None,
    implementation: str | Plan | None = None,
    axis_name: Any = None,
    num_classes: int | None = None,
) -> Any:
    r"""Cross-entropy of labels and the predictions softmax(x w + b), storing all logits only where they are few.

    For an example x and its label y, over the V classes that w has a column for,

    .. math::

       z = x w + b, \quad u = c \tanh(z / c) / \tau, \quad
       \ell = \log \sum_j e^{u_j} - u_y, \qquad
       \frac{\partial \ell}{\partial w} = x^T \Bigl((\mathrm{softmax}(u) - \mathrm{one\_hot}(y))
       \circ \frac{\partial u}{\partial z}\Bigr), \quad
       \frac{\partial \ell}{\partial x} = \Bigl((\mathrm{softmax}(u) - \mathrm{one\_hot}(y))
       \circ \frac{\partial u}{\partial z}\Bigr) w^T

    and with label smoothing ε, class weights v and z-loss ζ, for a distribution t as label (one_hot(y) for an index),

    .. math::

       a_i = v_i \left((1-\varepsilon) t_i + \tfrac{\varepsilon}{V} \textstyle\sum_j t_j \right), \quad
       \ell = \sum_i a_i (\mathrm{lse}(u) - u_i) + \zeta\, \mathrm{lse}(u)^2 .

    The vocabulary is walked over in blocks of columns, which keep for each example the maximum m and the sum of
    e^{u-m} without one largest entry: a prediction that is right and certain keeps all digits of its loss. The gradient
    is computed in the same pass (a scalar loss), from each block computed again, or from logits that are stored, as
    ``implementation`` says; it is right to float32 before it meets w and x in their own dtype. Forward mode, reverse
    mode and Hessian-vector products come from one linear rule.

    Args:
      x: activations ``[..., D]``.
      w: one column for each class, ``[D, V]``, or ``[V, D]`` with ``w_layout="vd"`` (tied embeddings).
      labels: class indices ``[...]``; or :class:`SoftLabels`, a few classes for each example, also as a plain pair
        (indices ``[..., k]``, probabilities ``[..., k]``, not renormalised); or a :class:`Teacher`, whose predictions
        are the labels and whose logits are not stored either, also as a plain pair (x', w') of floats. The loss is then
        the cross-entropy of the teacher's distribution, which is KL(teacher ‖ student) and the teacher's entropy. None
        where no output needs labels. An index that is no class and not ``ignore_index`` gives NaN, and a gradient of
        NaN.
      bias: b ``[V]``; -inf for a class of probability zero, but with a softcap, which makes it -c.
      weights: one factor for each example, ``[...]``. An example of weight 0 is left out, whatever it holds.
      ignore_index: the label of examples that are left out: loss 0, gradient 0, not counted.
      label_smoothing: ε, from 0 to 1: this part of each label goes to all V classes alike.
      class_weights: v ``[V]``, a factor for each class.
      z_loss: ζ, the coefficient of logsumexp(u)², which keeps logits from drifting.
      softcap: c, positive and finite; logits become c·tanh(z/c), before the temperature.
      temperature: τ; logits are divided by it, a teacher's too.
      reduction: of the loss: ``"none"``, ``"sum"``, or ``"mean"``: over the sum of ``weights`` of the examples that
        count (not of ``class_weights``), 0 where none does. Other outputs are not reduced.
      w_layout: which axis of w the classes are along.
      outputs: which of ``"loss"``; ``"logsumexp"`` of the logits u; ``"log_prob"``, Σ t_i log softmax(u)_i, of the
        label alone, without any option of the loss; ``"entropy"`` of softmax(u); ``"argmax"``, the most probable class;
        ``"correct"``, whether that is the label (the most probable label); ``"top_5"``, say, the five most probable
        classes, a :class:`xentjax.losses.linear.TopClasses`. One name, or several in a tuple or list. Outputs that are
        floats are differentiable, also together, for little more than the loss alone; but ``"log_prob"`` of a teacher
        beside ``class_weights`` costs another walk. For an example that is left out, outputs that depend on its label
        are 0 or False, and so are the others where its x holds NaN or infinities.
      memory_budget: bytes of memory that may be used beside arguments and gradients; it decides on the strategy and the
        size of the blocks.
      implementation: a strategy by name (``"recompute"``, ``"gradient_in_forward"``, ``"dense"``), or a
        :class:`xentjax.losses.linear.Plan`; otherwise chosen, as :func:`xentjax.losses.linear.explain` tells.
      axis_name: the mesh axis that the classes of w (and of bias and class weights) are split over: under
        ``jax.shard_map``, where each device has its part of them, or of the mesh that ``jax.set_mesh`` has set. Not
        needed where w is split over an explicit axis of a mesh. Only numbers for each example travel. Labels are class
        indices of all of the vocabulary.
      num_classes: V, where w has more columns than that; the others are padding, and get gradients of 0.

    Returns:
      What ``outputs`` names: of one name the output itself, of several a tuple in that order whose fields have their
      names. Outputs are arrays; that of ``"top_5"`` is a tuple of log-probabilities and class indices, ``[..., 5]``.
      Floats have the promoted dtype of x, w and float labels; 16-bit inputs are computed in float32.

    Raises:
      ValueError: shapes that do not fit, an unknown output, layout or implementation, no classes.
      TypeError: arguments that are no numbers.

    >>> import jax, jax.numpy as jnp, xentjax as xj
    >>> x, w = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[50.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    >>> loss, entropy = xj.linear_cross_entropy(x, w, jnp.array([0, 2]), outputs=("loss", "entropy"))
    >>> print([f"{l:.4e}" for l in loss], [f"{h:.4e}" for h in entropy])
    ['3.8575e-22', '1.4293e-01'] ['1.9673e-20', '4.4106e-01']
    >>> gradient = jax.grad(lambda w: xj.linear_cross_entropy(x, w, jnp.array([0, 2]), reduction="mean"))(w)
    >>> print([f"{g:.4e}" for g in gradient[0]])
    ['-1.9287e-22', '9.6437e-23', '9.6437e-23']
    """
    labels = named_labels(labels)
    u, classes = _plain_logits(x, w, bias, softcap, temperature, w_layout, num_classes)
    log_p = u - jax.nn.logsumexp(u, axis=-1, keepdims=True)
    found: dict[str, Any] = {"logsumexp": jax.nn.logsumexp(u, axis=-1), "argmax": jnp.argmax(u, axis=-1)}
    found["entropy"] = -jnp.sum(jnp.where(log_p == -jnp.inf, 0, jnp.exp(log_p) * log_p), axis=-1)
    for name in (outputs,) if isinstance(outputs, str) else outputs:
        if k := top_of(name):
            indices = jnp.argsort(-u, axis=-1)[..., :k]
            found[name] = TopClasses(jnp.take_along_axis(log_p, indices, axis=-1), indices)
    if labels is not None:
        kept = policy.examples_kept(labels, {"ignore_index": ignore_index, "weights": weights}, ())
        t = _plain_labels(labels, u, temperature, w_layout, num_classes)
        a = t * (1 - label_smoothing) + label_smoothing * jnp.sum(t, axis=-1, keepdims=True) / classes
        a = a if class_weights is None else a * jnp.asarray(class_weights)[:classes]
        loss = -jnp.sum(jnp.where(a == 0, 0, a * log_p), axis=-1) + z_loss * found["logsumexp"] ** 2
        shared = {"weights": weights, "reduction": reduction}
        found["loss"] = policy.weigh_and_reduce(loss, kept, shared)
        left = jnp.ones(loss.shape, bool) if kept[1] is None else kept[1]
        found["log_prob"] = jnp.where(left, jnp.sum(jnp.where(t == 0, 0, t * log_p), axis=-1), 0)
        found["correct"] = left & (found["argmax"] == jnp.argmax(t, axis=-1))
    return _chosen(outputs, found)


def _plain_logits(x: Any, w: Any, bias: Any, softcap: Any, temperature: Any, layout: str, num_classes: Any) -> Any:
    x, w = jnp.asarray(x), jnp.asarray(w)
    w = w if layout == "dv" else w.T
    classes = w.shape[1] if num_classes is None else num_classes
    z = jnp.matmul(x, w[:, :classes])
    z = z if bias is None else z + jnp.asarray(bias)[:classes]
    return (z if softcap is None else softcap * jnp.tanh(z / softcap)) / temperature, classes


def _plain_labels(labels: Any, u: Any, temperature: Any, layout: str, num_classes: Any) -> Any:
    """Labels as distributions over all classes."""
    if isinstance(labels, Teacher):
        of_teacher = (labels.x, labels.w, labels.bias, labels.softcap)
        return jax.nn.softmax(_plain_logits(*of_teacher, temperature, layout, num_classes)[0])
    labels = (
        labels if isinstance(labels, SoftLabels) else SoftLabels(jnp.asarray(labels)[..., None], jnp.ones(1, u.dtype))
    )
    indices = jnp.asarray(labels.indices)[..., None]
    is_own = (indices == jnp.arange(u.shape[-1], dtype=indices.dtype)).astype(u.dtype)
    entries = jnp.where((indices >= 0) & (indices < u.shape[-1]), is_own, jnp.nan)
    return jnp.sum(entries * jnp.asarray(labels.probabilities)[..., None], axis=-2)


@linear_cross_entropy.whole
def _(bound: dict[str, Any]) -> Any:
    bound = {**bound, "labels": named_labels(bound["labels"])}
    return by_compiler(_over_vocabulary, bound)


def _over_vocabulary(bound: dict[str, Any]) -> Any:
    axis_name = bound["axis_name"]
    return _computed(bound) if axis_name is None or is_mapped(axis_name) else over_mesh(_computed, bound)


def _computed(bound: dict[str, Any]) -> Any:
    problem, arrays, numbers = prepared(bound)
    chosen = plan(problem, bound["memory_budget"], bound["implementation"])
    found = outputs_of_rows(problem, chosen, arrays, numbers)
    dtype = policy.result_dtype((bound["x"], bound["w"], bound["labels"]))
    examples = bound["x"].shape[:-1]

    def shaped(value: Any) -> Any:
        value = value.astype(dtype) if policy.is_float(value) else value
        return value if value.ndim == 0 else value.reshape(*examples, *value.shape[1:])

    reduced = jax.tree.map(shaped, {n: v for n, v in found.items() if n != "loss"})
    if "loss" in found:
        reduced["loss"] = shaped(found["loss"]) if problem.reduction == "none" else found["loss"].astype(dtype)
    return _chosen(bound["outputs"], reduced)


def _chosen(outputs: Any, found: dict[str, Any]) -> Any:
    """One output as it is, several as a tuple with their names."""
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    return found[names[0]] if len(names) == 1 else _tuple_of(names)(*(found[n] for n in names))


@functools.cache
def _tuple_of(names: tuple[str, ...]) -> Any:
    return collections.namedtuple("LinearOutputs", names)  # type: ignore[misc]


def explain(x: Any, w: Any, labels: Any = None, **options: Any) -> Explanation:
    """How :func:`linear_cross_entropy` computes what it is called with: strategy, sizes, why, FLOP and bytes.

    Nothing is computed; arrays may be ``jax.ShapeDtypeStruct``. Arguments and errors are those of the function.

    >>> import jax, jax.numpy as jnp
    >>> from xentjax.losses.linear import explain
    >>> x, w = jax.ShapeDtypeStruct((2048, 512), jnp.float32), jax.ShapeDtypeStruct((512, 32768), jnp.float32)
    >>> labels = jax.ShapeDtypeStruct((2048,), jnp.int32)
    >>> explain(x, w, labels, memory_budget=32 * 2**20).strategy
    'recompute'
    """
    found = []
    record = linear_cross_entropy.record
    static = {n: v for n, v in options.items() if n not in (*record.wrt, "weights") or is_static(v)}

    def traced(x: Any, w: Any, labels: Any, arrays: dict[str, Any]) -> None:
        bound = record.converted((x, w, labels), {**static, **arrays})
        problem, _, _ = prepared({**bound, "labels": named_labels(bound["labels"])})
        found.append(plan(problem, bound["memory_budget"], bound["implementation"]))

    jax.eval_shape(traced, x, w, labels, {n: v for n, v in options.items() if n not in static})
    return found[0]
