"""The network of a language model: gated layers of causal convolutions over embeddings, which are its head as well."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.losses.linear import linear_cross_entropy
from xentjax.training.language.split import ON_ONE_DEVICE, Split
from xentjax.training.language_config import LanguageModelConfig

Array = np.ndarray[Any, Any]


class Layer(NamedTuple):
    """What a layer learns, for a width of D and H hidden units."""

    taps: Any
    """``[kernel, D]``, the weights of the positions that it sees, the last for the present one."""
    gate: Any
    """``[D, H]``"""
    value: Any
    """``[D, H]``"""
    out: Any
    """``[H, D]``"""


class LanguageParams(NamedTuple):
    """What a language model learns, for a width of D and V tokens."""

    embedding: Any
    """``[V, D]``, of the tokens that are read, and the head's weights for those that are predicted."""
    bias: Any
    """``[V]``, of the head."""
    layers: tuple[Layer, ...]
    projection: Any
    """``[D, D]``, of the normalized output before the head."""


def context(config: LanguageModelConfig) -> int:
    """How many tokens a prediction is made from."""
    return config.kernel**config.layers


def initial_params(config: LanguageModelConfig, counts: Array, seed: int, dtype: Any) -> LanguageParams:
    """Random embeddings and layers, and a bias with which the model is nearly the unigram model of ``counts [V]``."""
    generator = np.random.default_rng([seed, 1])
    d, h = config.width, config.hidden

    def normal(*shape: int, deviation: float) -> Array:
        return (generator.standard_normal(shape) * deviation).astype(dtype)

    layers = tuple(
        Layer(
            taps=normal(config.kernel, d, deviation=0.2) + np.eye(config.kernel, dtype=dtype)[-1][:, None],
            gate=normal(d, h, deviation=d**-0.5),
            value=normal(d, h, deviation=d**-0.5),
            out=normal(h, d, deviation=0.3 * h**-0.5),
        )
        for _ in range(config.layers)
    )
    frequency = (counts + 0.5) / (np.sum(counts) + 0.5 * len(counts))
    params = LanguageParams(
        embedding=normal(len(counts), d, deviation=d**-0.5),
        bias=np.log(frequency).astype(dtype),
        layers=layers,
        projection=normal(d, d, deviation=0.3 * d**-0.5),
    )
    return jax.device_put(params)


def outputs(params: LanguageParams, tokens: Any) -> jax.Array:
    r"""What the head predicts the next token from, ``[B, T - context + 1, D]``, for tokens ``[B, T]``.

    With x the embeddings times √D, layer i is

    .. math:: x \leftarrow x + (\mathrm{silu}(u G) \circ u V)\,O, \qquad
              u_t = \sum_j a_j \circ \mathrm{norm}(x)_{t - (K-1-j) K^i}

    with gate G, value V, out O and taps a of K positions, and :math:`\mathrm{norm}(x) = x / \sqrt{\overline{x^2}}`.
    What comes out of the last layer is normalized and projected. Each layer leaves out the positions that lack what
    they should see, so that all that is left has seen as much.
    """
    d = params.embedding.shape[1]
    x = params.embedding[tokens] * d**0.5
    step = 1
    for layer in params.layers:
        u, taps = _normalized(x), layer.taps.shape[0]
        left = x.shape[1] - (taps - 1) * step
        u = sum(layer.taps[j] * jax.lax.slice_in_dim(u, j * step, j * step + left, axis=1) for j in range(taps))
        x = x[:, -left:] + (jax.nn.silu(u @ layer.gate) * (u @ layer.value)) @ layer.out
        step *= taps
    return _normalized(x) @ params.projection


def _normalized(x: Any) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def losses(params: LanguageParams, windows: Any, split: Split = ON_ONE_DEVICE, **options: Any) -> jax.Array:
    """The cross-entropy in nats of each token of windows ``[B, context + length]`` that has enough tokens before it:
    ``[B, length]``, or what :func:`linear_cross_entropy` makes of them by its ``options``."""
    x = outputs(params, windows[:, :-1])
    labels = windows[:, -x.shape[1] :]
    head = {"bias": params.bias, "w_layout": "vd", **split.head, **options}
    return linear_cross_entropy(x, params.embedding, labels, **head)
