"""Softmax cross-entropy: integer labels or distributions as labels, every option in one pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.core.domains import Domain, Labels, Logits, Mask, Probabilities, Real
from xentjax.core.op import op
from xentjax.losses.shaping import hyperparameter, shaped_logits
from xentjax.losses.targets import one_hot, target_loss


@op(
    wrt=("logits", "labels", "weights", "class_weights", "label_smoothing", "softcap", "temperature"),
    domain=Domain(
        logits=Logits("B K"),
        labels=Labels("B"),
        options=(
            {},
            {"where": Mask("B K"), "z_loss": 0.01},
            {
                **{"softcap": 5.0, "temperature": 2.0, "label_smoothing": 0.1},
                **{"class_weights": Real("K"), "weights": Real("B"), "reduction": "sum"},
            },
            {"labels": Probabilities("B K")},
            {"labels": Probabilities("B K"), "where": Mask("B K"), "label_smoothing": 0.1, "z_loss": 0.01},
        ),
    ),
    group="losses",
    formula="-Σ t_i log softmax(z)_i",
    gradient="softmax(z) Σt - t",
    source="masked sum without cancellation",
    fill={"logits": -jnp.inf, "labels": 0.0},
    through=target_loss,
    upcast=False,
)
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: policy.Reduction = "none",
) -> jax.Array:
    r"""Cross-entropy of labels and the predictions softmax(z), from the logits z.

    .. math::

       \ell(z, y) = \log \sum_j e^{z_j} - z_y, \qquad
       \frac{\partial \ell}{\partial z} = \mathrm{softmax}(z) - \mathrm{one\_hot}(y), \qquad
       H v = p \circ (v - \langle p, v \rangle)

    For a distribution t as label, ℓ = -Σ_i t_i log softmax(z)_i with gradient (Σt)·softmax(z) - t.  With the options,

    .. math::

       u = c \tanh(z / c) / \tau, \quad
       a_i = w_i \left((1-\varepsilon) t_i + \tfrac{\varepsilon}{K} \textstyle\sum_j t_j \right), \quad
       \ell = \sum_i a_i (\mathrm{lse}(u) - u_i) + \zeta\, \mathrm{lse}(u)^2 .

    The sum over the classes other than the largest is taken by itself, so that a prediction that is right and certain
    keeps a loss and a gradient with all their digits: z = [50, 0, 0] with y = 0 has the loss 3.857e-22.

    Args:
      logits: z, real numbers with the K classes along ``axis``. -inf is a class of probability zero.
      labels: class indices (integers, the shape of the logits without ``axis``), or distributions (floats, the shape
        of the logits; not renormalised). An index out of range that is not ``ignore_index`` gives NaN, and a gradient
        of NaN.
      axis: the axis of the classes.
      where: True for the classes to keep, with the shape of the logits. An example whose label is masked has an
        infinite loss; one without any class has loss and gradient 0.
      weights: a factor for each example; weight 0 leaves the example out, whatever it holds.
      ignore_index: the class index that leaves an example out: loss 0, gradient 0, not counted.
      label_smoothing: ε: the share of the label's mass that is spread evenly over the classes that ``where`` keeps.
      class_weights: w, a factor for each class, shape (K,).
      z_loss: ζ, the coefficient of logsumexp(u)², which keeps logits from drifting.
      softcap: c; logits become c·tanh(z/c), before the temperature.
      temperature: τ; logits are divided by it.
      reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the sum of ``weights`` of the examples that count (not of
        ``class_weights``), 0 where none does.

    Returns:
      Losses in nats, one for each example (or a scalar), in the promoted float dtype of logits and float labels.
      NaN for a row with a NaN, two +inf, or nothing but -inf.

    Raises:
      ValueError: shapes that do not fit, no classes, an unknown reduction, ``ignore_index`` with distributions.

    >>> import jax, jax.numpy as jnp, xentjax as xj
    >>> z = jnp.array([[50.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    >>> print([f"{loss:.4e}" for loss in xj.softmax_cross_entropy(z, jnp.array([0, 2]))])
    ['3.8575e-22', '4.0761e-01']
    >>> print([f"{g:.4e}" for g in jax.grad(xj.softmax_cross_entropy)(z[0], 0)])
    ['-3.8575e-22', '1.9287e-22', '1.9287e-22']
    """
    z, t = jnp.asarray(logits), jnp.asarray(labels)
    if not policy.is_float(t):
        in_range = jnp.expand_dims((t >= 0) & (t < z.shape[axis]), axis)
        t = jnp.where(in_range, one_hot(t, z, axis).astype(z.dtype), jnp.nan)
    kept = jnp.ones_like(z) if where is None else jnp.where(where, jnp.ones_like(z), 0)
    uniform = kept / jnp.sum(kept, axis=axis, keepdims=True)
    t = t * (1 - label_smoothing) + label_smoothing * jnp.sum(t, axis=axis, keepdims=True) * uniform
    if class_weights is not None:
        t = t * _along(class_weights, z, axis)
    u = (z if softcap is None else softcap * jnp.tanh(z / softcap)) / temperature
    u = u if where is None else jnp.where(where, u, -jnp.inf)
    lse = jax.nn.logsumexp(u, axis=axis, keepdims=True)
    surprise = jnp.sum(jnp.where(t == 0, 0, t * (lse - u)), axis=axis, keepdims=True)
    return surprise + z_loss * jnp.where(jnp.isfinite(lse), lse, 0) ** 2


@softmax_cross_entropy.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    name, axis, logits, labels = "softmax_cross_entropy", bound["axis"], bound["logits"], bound["labels"]
    (axis,) = policy.require_axis(name, "logits", logits, axis)
    dtype = policy.compute_dtype(policy.result_dtype((logits, labels)))
    examples = tuple(n for i, n in enumerate(logits.shape) if i != axis)
    if policy.is_float(labels):
        policy.require_shape(name, "labels", labels.shape, logits.shape, "the shape of logits, being distributions")
        if bound["ignore_index"] is not None:
            raise ValueError(f"{name}: ignore_index needs integer labels, got dtype {labels.dtype}; use weights")
    else:
        policy.require_shape(name, "labels", labels.shape, examples, "the shape of logits without its class axis")
        labels = policy.class_indices(labels, logits.shape[axis])
    if policy.is_float(labels) and bound["where"] is not None:
        labels = jnp.where(bound["where"], labels, 0)
    if policy.is_given(bound["label_smoothing"], 0.0) or bound["class_weights"] is not None:
        labels = _masses(bound, labels, keep, axis, dtype)
    shaped = shaped_logits(name, bound, keep, dtype, axis)
    z_loss = hyperparameter(name, "z_loss", bound, dtype) if policy.is_given(bound["z_loss"], 0.0) else 0.0
    return {"logits": shaped, "labels": labels, "axis": axis, "z_loss": z_loss}


def _masses(bound: dict[str, Any], labels: Any, keep: Any, axis: int, dtype: Any) -> Any:
    """a_i = w_i·((1-ε)·t_i + ε·Σt/K): what each class counts for, over the K classes that the mask keeps.

    Labels of examples left out that are none become 0: they would reach a derivative.
    """
    logits, where = bound["logits"], bound["where"]
    if policy.is_float(labels):
        target = labels.astype(dtype)
        target = target if keep is None else jnp.where(policy.expand(keep, axis) | jnp.isfinite(target), target, 0)
        mass = jnp.sum(target, axis=axis, keepdims=True)
    else:
        in_range = (labels >= 0) & (labels < logits.shape[axis])
        in_range = jnp.expand_dims(in_range if keep is None else in_range | ~keep, axis)
        target = jnp.where(in_range, one_hot(labels, logits, axis).astype(dtype), jnp.nan)
        mass = jnp.ones((), dtype)
    if policy.is_given(bound["label_smoothing"], 0.0):
        kept = jnp.ones((), dtype) if where is None else where.astype(dtype)
        count = logits.shape[axis] if where is None else jnp.sum(kept, axis=axis, keepdims=True)
        smoothing = hyperparameter("softmax_cross_entropy", "label_smoothing", bound, dtype)
        target = target * (1 - smoothing) + smoothing * mass * kept / jnp.maximum(count, 1)
    if bound["class_weights"] is not None:
        class_weights = jnp.asarray(bound["class_weights"], dtype)
        policy.require_shape(
            "softmax_cross_entropy", "class_weights", class_weights.shape, (logits.shape[axis],), "one for each class"
        )
        target = target * _along(class_weights, logits, axis)
    return target


def _along(vector: Any, like: Any, axis: int) -> Any:
    """A vector over the classes, shaped to multiply an array with the classes along ``axis``."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return jnp.reshape(jnp.asarray(vector), shape)
