"""The building block of the softmax losses: rows of logits against an index or a distribution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from xentjax.activations import softmax, softmax_tangent
from xentjax.care import for_rows
from xentjax.core import policy
from xentjax.core.domains import Domain, Labels, Logits, Mask, Probabilities
from xentjax.core.op import op
from xentjax.core.policy import up
from xentjax.logit_rows import (
    COLUMNWISE_INDICES,
    Rows,
    at_labels,
    depth,
    exponentials,
    finite,
    huge,
    is_dominated,
    row_sum,
    rows_of,
)


@op(
    wrt=("logits", "labels"),
    domain=Domain(
        logits=Logits("B K"),
        labels=Labels("B"),
        options=(
            {},
            {"where": Mask("B K"), "z_loss": 0.01},
            {"labels": Probabilities("B K")},
            {"labels": Probabilities("B K"), "where": Mask("B K"), "z_loss": 0.01},
        ),
    ),
    group="losses",
    formula="Σ_i t_i (lse(z) - z_i) + ζ lse(z)²",
    gradient="(Σt + 2ζ lse(z)) softmax(z) - t",
    source="masked sum without cancellation",
    fill={"logits": -jnp.inf},
    upcast=False,
    bounded=("logits",),
    public=False,
)
def target_loss(
    logits: ArrayLike, labels: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None, z_loss: ArrayLike = 0.0
) -> jax.Array:
    """Cross-entropy of rows of logits against class indices (int32; NaN out of range) or masses t of any sum.

    With m = max z, d = z - m, S = Σe^d and rest the sum of e^d without the largest, lse - z_i is log1p(rest) - d_i.
    The gradient for an index y is e_i/S elsewhere and -(Σ_{j≠y} e_j)/S at y; for masses T·e_i/S - t_i, which at a
    dominating class k is Σ_{j≠k} t_j - T·rest/S.

    >>> import jax.numpy as jnp
    >>> from xentjax.losses.targets import target_loss
    >>> print(f"{target_loss(jnp.array([50.0, 0.0, 0.0]), jnp.array(0)):.4e}")
    3.8575e-22
    """
    z, t = jnp.asarray(logits), jnp.asarray(labels)
    if not policy.is_float(t):
        in_range = jnp.expand_dims((t >= 0) & (t < z.shape[axis]), axis)
        t = jnp.where(in_range, one_hot(t, z, axis).astype(z.dtype), jnp.nan)
    lse = jax.nn.logsumexp(z, axis=axis, keepdims=True)
    return jnp.sum(jnp.where(t == 0, 0, t * (lse - z)), axis=axis, keepdims=True) + z_loss * lse**2


@target_loss.value
def _(logits: Any, labels: Any, *, axis: int, z_loss: Any) -> Any:
    value = _value_for_masses if policy.is_float(labels) else _value_for_indices
    loss, rows, own = value(logits, labels, axis)
    if policy.is_given(z_loss, 0.0):
        loss = loss + z_loss * jnp.square(rows.maximum + rows.log_total)
    return jnp.expand_dims(loss, axis), (rows, own)


@target_loss.partial("logits")
def _(saved: Any, logits: Any, labels: Any, *, axis: int, z_loss: Any) -> Any:
    rows, own = saved
    e = exponentials(logits, rows.maximum, axis)
    gradient = _gradient_for_masses if policy.is_float(labels) else _gradient_for_indices
    result = gradient(e, rows, own, logits, labels, axis)
    if policy.is_given(z_loss, 0.0):
        result = result + e * jnp.expand_dims(2 * z_loss * (rows.maximum + rows.log_total) / rows.total, axis)
    return result


@target_loss.partial("labels")
def _(saved: Any, logits: Any, labels: Any, *, axis: int, z_loss: Any) -> Any:
    rows, _ = saved
    maximum, log_total = (jnp.expand_dims(r, axis) for r in (rows.maximum, rows.log_total))
    z = up(logits)
    return log_total - jnp.where(z == maximum, 0, z - maximum)


@target_loss.second
def _(tangents: Any, active: Any, logits: Any, labels: Any, *, axis: int, z_loss: Any) -> Any:
    # For masses t the gradient is c·p - t with c = Σt + 2ζ lse, so it moves by dc·p + c·p∘(v - ⟨p, v⟩) - dt, where
    # dc = Σdt + 2ζ⟨p, v⟩; the partial of the masses, lse - z_i, moves by ⟨p, v⟩ - v_i.
    p = softmax(logits, axis=axis)
    v = tangents["logits"].astype(p.dtype) if "logits" in tangents else jnp.zeros_like(p)
    mean = jnp.sum(p * v, axis=axis, keepdims=True)
    if policy.is_float(labels):
        mass = jnp.sum(labels.astype(p.dtype), axis=axis, keepdims=True)
    else:
        mass = jnp.where(_in_range(labels, logits, axis), jnp.ones((), p.dtype), jnp.nan)
        mass = jnp.expand_dims(mass, axis)
    mass_dot = jnp.zeros_like(mean)
    if policy.is_given(z_loss, 0.0):
        rows = rows_of(logits, axis)
        mass = mass + 2 * z_loss * jnp.expand_dims(rows.maximum + rows.log_total, axis)
        mass_dot = mass_dot + 2 * z_loss * mean
    gradient_dot = mass * softmax_tangent(p, v, axis)
    if "labels" in tangents:
        labels_dot = tangents["labels"].astype(p.dtype)
        mass_dot = mass_dot + jnp.sum(labels_dot, axis=axis, keepdims=True)
        gradient_dot = gradient_dot - labels_dot
    along = {"logits": gradient_dot + mass_dot * p, "labels": mean - v}
    return tuple(along[n] for n in active)


# -- integer labels ----------------------------------------------------------------------------------------------------


def _value_for_indices(logits: Any, labels: Any, axis: int) -> tuple[Any, Rows, Any]:
    rows = rows_of(logits, axis, columnwise=COLUMNWISE_INDICES)
    of_label = at_labels(logits, labels, axis)
    gap = jnp.where(of_label == rows.maximum, 0, of_label - rows.maximum)
    loss = jnp.where(_in_range(labels, logits, axis), rows.log_total - gap, jnp.nan)
    return loss, rows, gap


def _gradient_for_indices(e: Any, rows: Rows, gap: Any, logits: Any, labels: Any, axis: int) -> Any:
    # Σ_{j≠y} e_j is rest for a label at the maximum; elsewhere e_y is at most S/2, and S - e_y does not cancel.
    others = jnp.where(gap == 0, rows.rest, rows.total - jnp.exp(gap))
    inverse = jnp.where(_in_range(labels, logits, axis), 1 / rows.total, jnp.nan)
    at_label = one_hot(labels, logits, axis)
    return jnp.where(at_label, -jnp.expand_dims(others, axis), e) * jnp.expand_dims(inverse, axis)


def one_hot(labels: Any, logits: Any, axis: int) -> Any:
    """True where an entry of the logits is the label's, by comparison: nothing is gathered or scattered."""
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, axis % logits.ndim)
    return classes == jnp.expand_dims(labels, axis)


def _in_range(labels: Any, logits: Any, axis: int) -> Any:
    return (labels >= 0) & (labels < logits.shape[axis])


# -- masses ------------------------------------------------------------------------------------------------------------


def _value_for_masses(logits: Any, masses: Any, axis: int) -> tuple[Any, Rows, Any]:
    """Σ t_i(-d_i) + T·log1p(rest); also T, and Σ t_i without the largest class where that class dominates."""
    rows = rows_of(logits, axis)
    limit = huge(rows.maximum.dtype)
    # Not finite where a class of probability zero is met, with mass or without.
    spread = row_sum(lambda t, z, m: up(t) * (m - up(z)), [masses, logits], [finite(rows.maximum)], axis, apart=True)

    # The limit behind barriers, a new one in each sum: XLA:CPU stores a constant that sums share, once for every entry.
    def of_others(entries: Any, maximum: Any, axis: int, limit: Any = limit) -> Any:
        limit = jax.lax.optimization_barrier(limit)

        def below_maximum(t: Any, z: Any, m: Any) -> Any:
            return up(t) * jnp.minimum(jnp.maximum(m - up(z), 0) * limit, 1)

        return row_sum(below_maximum, entries, [finite(maximum)], axis, apart=True)

    def of_infinities(entries: Any, numbers: Any, axis: int) -> tuple[Any, Any]:
        maximum, spread, mass = numbers
        largest = jax.lax.optimization_barrier(limit)

        def has_mass_at_minus_infinity(t: Any, z: Any) -> Any:
            beyond = -largest - up(z)  # +inf for -inf, otherwise at most 0
            return jnp.minimum(up(t) * largest, beyond + jnp.abs(beyond))

        # By halves, so that the depth of a finite logit does not overflow.
        half = jnp.asarray(0.5, limit.dtype)
        halves = [finite(maximum) * half]
        clipped = 2 * row_sum(lambda t, z, m: up(t) * depth(up(z) * half, m), entries, halves, axis, apart=True)
        impossible = row_sum(has_mass_at_minus_infinity, entries, [], axis, apart=True) > 0
        spread = jnp.where(jnp.isfinite(spread), spread, jnp.where(impossible, jnp.inf, clipped))
        below = of_others(entries, maximum, axis, largest)
        return jnp.where(maximum == jnp.inf, jnp.where(below == 0, 0, below * jnp.inf), spread), mass

    # The mass goes along, or it would be computed where it is used, from columns that are stored first.
    entries, found = (masses, logits), (spread, row_sum(up, [masses], [], axis, apart=True))
    numbers, needed = (rows.maximum, *found), ~jnp.isfinite(spread)
    spread, mass = for_rows(needed, found, of_infinities, entries, numbers, axis, whole=True)
    # Where no class dominates it is not used.
    below = for_rows(is_dominated(rows.total), rows.maximum, of_others, entries, rows.maximum, axis, whole=True)
    return spread + mass * rows.log_total, rows, (mass, below)


def _gradient_for_masses(e: Any, rows: Rows, own: Any, logits: Any, masses: Any, axis: int) -> Any:
    mass, others = own
    # Where one class dominates its e is 1 and no other reaches 1/2; elsewhere nothing reaches 2.
    cut = jnp.expand_dims(jnp.where(is_dominated(rows.total), 1.0, 2.0).astype(e.dtype), axis)
    at_largest = jnp.expand_dims(others - mass * (rows.rest / rows.total), axis)
    share = jnp.expand_dims(mass / rows.total, axis)
    return jnp.where(e >= cut, at_largest, e * share - up(masses))
