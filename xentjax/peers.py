"""What others offer in the place of a record: for each name, the call of optax, of JAX or of torch that users make.

Every function takes the record's arrays in their order and returns the value for each example.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy import special

Function = Callable[..., Any]


def _entropy_of_logits(z: Any) -> Any:
    log_p = jax.nn.log_softmax(z)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _kl_of_logits(a: Any, b: Any) -> Any:
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _js(p: Any, q: Any) -> Any:
    m = (p + q) / 2
    return jnp.sum(special.rel_entr(p, m) + special.rel_entr(q, m), axis=-1) / 2


def _mutual_information(joint: Any) -> Any:
    rows, columns = jnp.sum(joint, -1, keepdims=True), jnp.sum(joint, -2, keepdims=True)
    return jnp.sum(special.rel_entr(joint, rows * columns), axis=(-2, -1))


def _of_label(z: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], -1)[..., 0]


JAX: dict[str, Function] = {
    "logistic": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
    "softmax_cross_entropy": _of_label,
    "sigmoid_cross_entropy": lambda x, t: jax.nn.softplus(x) - t * x,
    "entropy": lambda p: jnp.sum(special.entr(p), axis=-1),
    "binary_entropy": lambda p: special.entr(p) + special.entr(1 - p),
    "entropy_from_logits": _entropy_of_logits,
    "binary_entropy_from_logits": lambda x: jax.nn.softplus(x) - x * jax.nn.sigmoid(x),
    "cross_entropy": lambda p, q: -jnp.sum(special.xlogy(p, q), axis=-1),
    "kl_divergence": lambda p, q: jnp.sum(special.rel_entr(p, q), axis=-1),
    "kl_divergence_from_logits": _kl_of_logits,
    "js_divergence": _js,
    "mutual_information": _mutual_information,
}


OPTAX: dict[str, Function] = {
    "softmax_cross_entropy": optax.losses.softmax_cross_entropy_with_integer_labels,
    "sigmoid_cross_entropy": optax.losses.sigmoid_binary_cross_entropy,
    "kl_divergence": lambda p, q: optax.losses.kl_divergence(jnp.log(q), p),
}


def torch_functions() -> dict[str, Function]:
    """Torch's functions of torch tensors."""
    import torch
    from torch.distributions import Bernoulli, Categorical, kl_divergence
    from torch.nn import functional

    checked: Any = {"validate_args": False}
    return {
        "logistic": torch.sigmoid,
        "softmax": functools.partial(torch.softmax, dim=-1),
        "softmax_cross_entropy": lambda z, y: functional.cross_entropy(z, y, reduction="none"),
        "sigmoid_cross_entropy": lambda x, t: functional.binary_cross_entropy_with_logits(x, t, reduction="none"),
        "entropy": lambda p: torch.special.entr(p).sum(-1),
        "entropy_from_logits": lambda z: Categorical(logits=z, **checked).entropy(),
        "binary_entropy_from_logits": lambda x: Bernoulli(logits=x, **checked).entropy(),
        "cross_entropy": lambda p, q: -torch.special.xlogy(p, q).sum(-1),
        "kl_divergence": lambda p, q: functional.kl_div(q.log(), p, reduction="none").sum(-1),
        "kl_divergence_from_logits": lambda a, b: kl_divergence(
            Categorical(logits=a, **checked), Categorical(logits=b, **checked)
        ),
    }


def of(name: str) -> Mapping[str, Function]:
    """The peers of a record that are installed, by library."""
    found = {library: known[name] for library, known in (("optax", OPTAX), ("jax", JAX)) if name in known}
    if importlib.util.find_spec("torch") is not None and name in (offered := torch_functions()):
        found["torch"] = offered[name]
    return found
