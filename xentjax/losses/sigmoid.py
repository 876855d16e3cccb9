"""Sigmoid cross-entropy: the loss of independent binary predictions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.activations import logistic
from xentjax.core import policy
from xentjax.core.domains import BinaryLabels, Domain, Logit, Mask, Probability
from xentjax.core.op import op
from xentjax.logit_rows import huge
from xentjax.losses.shaping import hyperparameter, shaped_logits


@op(
    wrt=("logits", "labels", "pos_weight"),
    domain=Domain(logits=Logit("B"), labels=Probability("B"), pos_weight=Probability("B")),
    group="losses",
    formula="w t softplus(-x) + (1 - t) softplus(x)",
    gradient="(1 - t) σ(x) - w t σ(-x)",
    source="binary cross-entropy in terms of e = e^{-|x|}",
    fill={"logits": 0.0, "labels": 0.0},
    bounded=("logits",),
    public=False,
)
def binary_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    pos_weight: ArrayLike,
    *,
    where: ArrayLike | None = None,
    complement: ArrayLike | None = None,
) -> jax.Array:
    """The loss of logits x against probabilities t, the positive term weighted by w.

    ``complement`` is 1 - t, for a t that has rounded it away.

    >>> from xentjax.losses.sigmoid import binary_loss
    >>> print(f"{binary_loss(0.0, 1.0, 2.0):.4f}")
    1.3863
    """
    x, t = jnp.asarray(logits), jnp.asarray(labels)
    # softplus(x) = max(x, 0) + log1p(e^{-|x|}), so that e^x does not overflow.
    softplus = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.asarray(pos_weight) * t * (softplus - x) + (1 - t) * softplus


@binary_loss.value
def _(logits: Any, labels: Any, pos_weight: Any, *, complement: Any) -> Any:
    size = jnp.abs(logits)
    e = jnp.exp(-size)
    positive, negative = pos_weight * labels, 1 - labels if complement is None else complement
    against = jnp.where(logits >= 0, negative, positive)
    mass = positive + negative
    loss = jnp.where(against == 0, 0, against * size) + mass * jnp.log1p(e)
    # The select changes nothing. With arithmetic outermost XLA:CPU hands a sum that follows to a library that takes no
    # selects or logarithms, and stores four arrays for it; with a select outermost one loop computes all.
    return jnp.where(jnp.isnan(size), jnp.nan, loss), (e, against, mass)


@binary_loss.partial("logits")
def _(saved: Any, logits: Any, labels: Any, pos_weight: Any, *, complement: Any) -> Any:
    e, against, mass = saved
    difference = against - mass * (e / (1 + e))
    return jnp.where(logits >= 0, difference, -difference)


@binary_loss.partial("labels")
def _(saved: Any, logits: Any, labels: Any, pos_weight: Any, *, complement: Any) -> Any:
    # w softplus(-x) - softplus(x), with softplus(x) = max(x, 0) + log1p(e).
    e, x = saved[0], logits
    surplus = jnp.where(pos_weight == 1, 0, (pos_weight - 1) * jnp.log1p(e))
    return jnp.where(x >= 0, -x, -pos_weight * x) + surplus


@binary_loss.partial("pos_weight")
def _(saved: Any, logits: Any, labels: Any, pos_weight: Any, *, complement: Any) -> Any:
    return jnp.where(labels == 0, 0, labels * _softplus(-logits, saved[0]))


@binary_loss.second
def _(tangents: Any, active: Any, logits: Any, labels: Any, pos_weight: Any, *, complement: Any) -> Any:
    e = jnp.exp(-jnp.abs(logits))
    x_dot, t_dot, w_dot = (tangents.get(n, jnp.zeros_like(e)) for n in ("logits", "labels", "pos_weight"))
    p, q = logistic(logits), logistic(-logits)
    # Capped, so that a tangent of 0 gives 0 at x = -inf.
    mass = pos_weight * labels + (1 - labels if complement is None else complement)
    loss = jnp.minimum(_softplus(-logits, e), huge(e.dtype))
    slope_by_label = -p - pos_weight * q
    along = {
        "logits": mass * (e / ((1 + e) * (1 + e))) * x_dot + slope_by_label * t_dot - labels * q * w_dot,
        "labels": slope_by_label * x_dot + loss * w_dot,
        "pos_weight": -labels * q * x_dot + loss * t_dot,
    }
    return tuple(along[n] for n in active)


def _softplus(x: Any, e: Any) -> Any:
    """log(1 + e^x), with e = e^{-|x|}."""
    return jnp.maximum(x, 0) + jnp.log1p(e)


@op(
    wrt=("logits", "labels", "weights", "pos_weight", "label_smoothing", "softcap", "temperature"),
    domain=Domain(
        logits=Logit("B"),
        labels=Probability("B"),
        options=(
            {},
            {"where": Mask("B"), "pos_weight": 3.0, "label_smoothing": 0.1},
            {"softcap": 5.0, "temperature": 2.0, "weights": Probability("B"), "reduction": "mean"},
            {"labels": BinaryLabels("B"), "ignore_index": 1},
        ),
    ),
    group="losses",
    formula="softplus(x) - t x",
    gradient="σ(x) - t",
    source="binary cross-entropy in terms of e = e^{-|x|}",
    fill={"logits": 0.0, "labels": 0.0},
    through=binary_loss,
)
def sigmoid_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike | None = None,
    softcap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: policy.Reduction = "none",
) -> jax.Array:
    r"""Cross-entropy of binary labels and the predictions σ(x), from the logits x.

    .. math::

       \ell(x, t) = -t \log \sigma(x) - (1-t) \log \sigma(-x) = \mathrm{softplus}(x) - t x, \qquad
       \frac{\partial \ell}{\partial x} = \sigma(x) - t, \qquad
       \frac{\partial^2 \ell}{\partial x^2} = \sigma(x)\sigma(-x)

    With e = e^{-|x|}, q = e/(1+e) and s = 1-t where x >= 0, t elsewhere, the loss is s|x| + log(1+e) and its
    derivative ±(s - q): sums of terms that do not cancel.

    Args:
      logits: x, of any shape; each entry is a prediction by itself.
      labels: t, of the same shape: 0 and 1 (integers or booleans), or probabilities. A label outside [0, 1] that is
        not ``ignore_index`` gives NaN, and a gradient of NaN.
      where: True for the entries to keep; the others have loss and gradient 0, whatever they hold.
      weights: a factor for each entry; weight 0 leaves it out as ``where`` does.
      ignore_index: the label that leaves an entry out.
      label_smoothing: ε; labels become (1-ε)t + ε/2.
      pos_weight: a factor for the positive term -t log σ(x): a scalar, or one for each entry of the last axis.
      softcap: c; logits become c·tanh(x/c), before the temperature.
      temperature: τ; logits are divided by it.
      reduction: ``"none"``, ``"sum"``, or ``"mean"``: over the weights of the entries that count, 0 where none does.

    Returns:
      Losses in nats, shaped like the logits (or a scalar), in the promoted float dtype of logits and labels.

    Raises:
      ValueError: shapes that differ (nothing is broadcast), an unknown reduction.

    >>> import jax, jax.numpy as jnp, xentjax as xj
    >>> print([f"{loss:.4e}" for loss in xj.sigmoid_cross_entropy(jnp.array([50.0, -2.0]), jnp.array([1, 0]))])
    ['1.9287e-22', '1.2693e-01']
    >>> print(f"{jax.grad(xj.sigmoid_cross_entropy)(50.0, 1.0):.4e}")
    -1.9287e-22
    """
    x, t = jnp.asarray(logits), jnp.asarray(labels)
    t = t * (1 - label_smoothing) + label_smoothing / 2
    x = (x if softcap is None else softcap * jnp.tanh(x / softcap)) / temperature
    # softplus(x) = log(1 + e^x) = max(x, 0) + log1p(e^{-|x|}), so that e^x does not overflow.
    softplus = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.asarray((1 if pos_weight is None else pos_weight) * t * (softplus - x) + (1 - t) * softplus)


@sigmoid_cross_entropy.prepare
def _(bound: dict[str, Any], keep: Any) -> dict[str, Any]:
    name, logits, labels = "sigmoid_cross_entropy", bound["logits"], bound["labels"]
    policy.require_same_shape(name, logits=logits, labels=labels)
    dtype = policy.compute_dtype(policy.result_dtype((logits, labels)))
    t = labels.astype(dtype)
    t = jnp.where((t >= 0) & (t <= 1), t, jnp.nan)
    complement = None
    if policy.is_given(bound["label_smoothing"], 0.0):
        for kept in (keep, bound["where"]):  # what is no label would reach a derivative
            t = t if kept is None else jnp.where(kept | jnp.isfinite(t), t, 0)
        smoothing = hyperparameter(name, "label_smoothing", bound, dtype)
        t, complement = ((1 - smoothing) * share + smoothing / 2 for share in (t, 1 - t))
        complement = jax.lax.stop_gradient(complement)
    pos_weight = jnp.asarray(1 if bound["pos_weight"] is None else bound["pos_weight"], dtype)
    if pos_weight.ndim:
        policy.require_shape(name, "pos_weight", pos_weight.shape, logits.shape[-1:], "one for each class, or ()")
    return {
        "logits": shaped_logits(name, bound, keep, dtype),
        "labels": t,
        "pos_weight": jnp.broadcast_to(pos_weight, t.shape),
        "complement": complement,
    }
