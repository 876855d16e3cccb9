"""Windows of tokens: those of each training step, drawn by the seed, and those that cover a text once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xentjax.training.errors import UserError
from xentjax.training.language.tokenizer import END
from xentjax.training.language_config import LanguageBatchesConfig

Array = np.ndarray[Any, Any]


def require_enough(tokens: Array, config: LanguageBatchesConfig, context: int) -> None:
    """UserError where a text is too short for one batch."""
    needed = context + (config.size + 1) * config.length
    if len(tokens) < needed:
        raise UserError(
            f"batches: {config.size} windows of {config.length} tokens with {context} before them need {needed}, "
            f"but the training text has {len(tokens)}: take fewer or shorter windows, or more text"
        )


def training_windows(tokens: Array, step: int, config: LanguageBatchesConfig, context: int, seed: int) -> Array:
    """The windows of a step, ``[size, context + length]``: the last ``length`` tokens of each are to be predicted.

    Of an epoch all windows are distinct: the text is cut into windows from a start that the seed and the epoch draw,
    which are taken in an order that they draw too. What is left for no whole batch is left out.
    """
    starts = training_starts(len(tokens), step, config, context, seed)
    return tokens[starts[:, None] + np.arange(context + config.length)]


def training_starts(tokens: int, step: int, config: LanguageBatchesConfig, context: int, seed: int) -> Array:
    """Where the windows of a step begin in a text of so many tokens, ``[size]``."""
    per_epoch = (tokens - context - config.length) // config.length // config.size
    epoch, batch = divmod(step, per_epoch)
    # Another stream than those of the split and of the initial values, which have the same seed.
    generator = np.random.default_rng([seed, 2, epoch])
    start = generator.integers(config.length)
    order = generator.permutation((tokens - context - start) // config.length)
    return start + config.length * order[batch * config.size : (batch + 1) * config.size]


def covering_windows(
    tokens: Array, config: LanguageBatchesConfig, context: int, most: int | None = None
) -> Iterator[tuple[Array, Array]]:
    """Batches of windows in which each token but the first is predicted once: windows ``[size, context + length]`` and
    weights ``[size, length]``, 0 for what fills the last batch up.

    What stands before the text are ends of files. With ``most`` only so many batches, spread over the text.
    """
    size, length = config.size, config.length
    count = -(-(len(tokens) - 1) // length)
    batches = -(-count // size)
    before = np.full(context - 1, END, tokens.dtype)
    after = np.full(batches * size * length - (len(tokens) - 1), END, tokens.dtype)
    padded = np.concatenate([before, tokens, after])
    chosen = range(batches) if most is None or most >= batches else np.linspace(0, batches - 1, most).astype(int)
    for batch in chosen:
        starts = (batch * size + np.arange(size)) * length
        labels_at = starts[:, None] + np.arange(length)
        yield padded[starts[:, None] + np.arange(context + length)], labels_at < len(tokens) - 1
