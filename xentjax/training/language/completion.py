"""What a language model goes on with after the beginning of a text."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.training.language.network import LanguageParams, outputs
from xentjax.training.language.tokenizer import END, Tokenizer


def complete(
    params: LanguageParams, tokenizer: Tokenizer, beginning: bytes, *, tokens: int, context: int, seed: int = 0
) -> bytes:
    """The beginning of a file and ``tokens`` more, each drawn from the model's prediction; fewer where the file ends.

    Args:
      context: how many tokens the network predicts from, as :func:`context` says.
    """
    known = np.append(np.full(context, END, np.int32), tokenizer.encode(beginning))
    drawn = np.asarray(_drawn(tokens, params, jnp.asarray(known[-context:]), jax.random.key(seed)))
    ends = np.flatnonzero(drawn == END)
    return beginning + tokenizer.decode(drawn[: ends[0]] if len(ends) else drawn)


@functools.partial(jax.jit, static_argnums=0)
def _drawn(count: int, params: LanguageParams, known: Any, key: Any) -> jax.Array:
    """As many tokens after those that are known ``[context]``."""

    def draw(known: Any, key: Any) -> tuple[Any, Any]:
        logits = params.embedding @ outputs(params, known[None])[0, -1] + params.bias
        token = jax.random.categorical(key, logits).astype(known.dtype)
        return jnp.append(known[1:], token), token

    return jax.lax.scan(draw, known, jax.random.split(key, count))[1]
