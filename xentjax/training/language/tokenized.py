"""From the files of a text to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xentjax.training.language.corpus import read_corpus
from xentjax.training.language.tokenizer import END, Tokenizer
from xentjax.training.language_config import LanguageConfig

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Files in one row, to train on or held out."""

    texts: Sequence[bytes]
    tokens: Array
    """int32, the end of a file before, between and behind them. All but the first one are predicted."""
    names: Sequence[str]
    """Of the files, in the same order."""

    def files_at(self, tokens: Array) -> list[str]:
        """The file that each of these tokens is in, by its number; of the end of a file, the one before it."""
        ends = np.flatnonzero(self.tokens == END)[1:]
        return [self.names[i] for i in np.minimum(np.searchsorted(ends, tokens), len(self.names) - 1)]

    @property
    def bytes(self) -> int:
        return sum(map(len, self.texts))

    @property
    def predicted(self) -> int:
        """How many tokens are predicted."""
        return len(self.tokens) - 1

    def bits_per_byte(self, nats: float) -> float:
        """A cross-entropy in nats for all tokens, as bits for each byte: how many tokens they are drops out."""
        return nats / float(np.log(2)) / self.bytes

    def bits_per_token(self, nats: float) -> float:
        return nats / float(np.log(2)) / self.predicted


@dataclass(frozen=True)
class Tokenized:
    """The text of a run in tokens of a vocabulary that its training part has given."""

    tokenizer: Tokenizer
    train: Part
    test: Part
    left_out: int
    """How many files were too much for ``text.max_bytes``."""
    digest: str
    """That of the corpus."""


def tokenize(config: LanguageConfig) -> Tokenized:
    """Read the text that the config names and write it in tokens, or raise UserError."""
    corpus = read_corpus(config.text, config.seed)
    tokenizer = Tokenizer.learn(corpus.train, config.vocabulary.size)
    parts = (corpus.train, corpus.train_names), (corpus.test, corpus.test_names)
    train, test = (Part(texts, tokenizer.stream(texts), names) for texts, names in parts)
    return Tokenized(tokenizer, train, test, corpus.left_out, corpus.digest)
