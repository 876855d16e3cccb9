"""The loss and parts of its gradients in float64, and the errors of a result against them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.linear.problems import Shape

#: Tokens and classes at which gradients are compared.
TOKENS, CLASSES = 256, 4096

#: Logits that are held at once, as numbers of float64.
HELD = 2**25


@dataclasses.dataclass(frozen=True)
class Truth:
    """The mean loss; its gradient by x at ``tokens`` [t, D] and by w at ``classes`` [D, c]."""

    loss: float
    tokens: np.ndarray
    classes: np.ndarray
    dx: np.ndarray
    dw: np.ndarray


#: What a result is looked at by: the loss, its gradient by x at the tokens, by w at the classes as [D, c].
Picked = tuple[Any, Any, Any]


def truth(x: Any, w: Any, labels: Any) -> Truth:
    """Each logit is a sum of exact products in float64, so that its error is 2⁻⁵³ of theirs."""
    n, d = x.shape
    v = w.shape[1]
    tokens, classes = places(Shape(n, d, v), labels)
    with jax.enable_x64(True):
        w64 = jnp.asarray(w).astype(jnp.float64)
        of_classes = w64[:, classes]
        rows = max(1, HELD // v)
        losses, dw = [], jnp.zeros((d, len(classes)))
        for start in range(0, n, rows):
            some = slice(start, start + rows)
            part = jnp.asarray(x[some]).astype(jnp.float64)
            loss, product = _part(part, w64, of_classes, jnp.asarray(labels[some]), jnp.asarray(classes))
            losses.append(np.asarray(loss))
            dw += product
        dx = jnp.concatenate(
            [
                _rows(jnp.asarray(x[some]).astype(jnp.float64), w64, jnp.asarray(labels[some]))
                for some in np.array_split(tokens, -(-len(tokens) // rows))
            ]
        )
        return Truth(float(np.concatenate(losses).mean()), tokens, classes, np.asarray(dx) / n, np.asarray(dw) / n)


def places(shape: Shape, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens spread evenly, the last one included; classes at both ends, labels, and others spread evenly."""
    tokens = np.unique(np.linspace(0, shape.n - 1, min(shape.n, TOKENS)).astype(int))
    if shape.v <= CLASSES:
        return tokens, np.arange(shape.v)
    ends = np.concatenate([np.arange(256), np.arange(shape.v - 256, shape.v)])
    spread = np.linspace(0, shape.v - 1, CLASSES // 2).astype(int)
    return tokens, np.unique(np.concatenate([ends, labels[: CLASSES // 4], spread]))


@jax.jit
def _part(x: jax.Array, w: jax.Array, of_classes: jax.Array, labels: jax.Array, classes: jax.Array) -> Any:
    """The loss of each token, and its tokens' part of w's gradient at the classes."""
    logits = x @ w
    lse = jax.nn.logsumexp(logits, axis=-1)
    loss = lse - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    excess = jnp.exp(x @ of_classes - lse[:, None]) - (classes == labels[:, None])
    return loss, x.T @ excess


@jax.jit
def _rows(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    """The gradient of each token's loss by its features."""
    probabilities = jax.nn.softmax(x @ w, axis=-1)
    return probabilities @ w.T - w[:, labels].T


def errors(picked: Picked, true: Truth) -> dict[str, float]:
    """How far a result is off; without gradients where it has none. NaN stays NaN."""
    loss, dx, dw = (None if part is None else np.asarray(part, np.float64) for part in picked)
    found = {"loss_error": abs(float(loss) - true.loss) / abs(true.loss)}  # type: ignore[arg-type]
    for name, got, wanted in (("dx", dx, true.dx), ("dw", dw, true.dw)):
        if got is not None:
            off = got - wanted
            found[f"{name}_max_error"] = float(np.abs(off).max() / np.abs(wanted).max())
            found[f"{name}_error"] = float(np.linalg.norm(off) / np.linalg.norm(wanted))
    if dw is not None:
        each = np.linalg.norm(dw - true.dw, axis=0) / np.linalg.norm(true.dw, axis=0)
        found["class_error"] = float(each.max())
    return found


def pick_in_jax(layout: str, true: Truth) -> Callable[[Any], Picked]:
    """The parts of a result in JAX, (loss, (dx, dw)) or the loss alone, that are compared."""

    def pick(result: Any) -> Picked:
        if not isinstance(result, tuple):
            return result, None, None
        loss, (dx, dw) = result
        some = dw[:, true.classes] if layout == "dv" else dw[true.classes].T
        return loss, dx[true.tokens].astype(jnp.float32), some.astype(jnp.float32)

    return pick
