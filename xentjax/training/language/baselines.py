"""What a language model is compared with: entropies of the corpus, models that count, and a compressor."""

from __future__ import annotations

import lzma
from typing import Any, NamedTuple

import jax
import numpy as np

from xentjax.measures.counts import entropy_of_counts
from xentjax.solvers.kept import kept
from xentjax.training.language.tokenized import Tokenized

Array = np.ndarray[Any, Any]


class Entropies(NamedTuple):
    """Of the training text, in bits per token, as its own counts have them."""

    unigram: float
    """The entropy of a token, H(T)."""
    bigram: float
    """That of a token where the one before it is known, H(T₂ | T₁) = H(T₁ T₂) − H(T₁)."""


def entropies(tokens: Array) -> Entropies:
    """The entropies of a sequence of tokens, each but the first with the one before it.

    Example:
      >>> import numpy as np
      >>> [round(bits, 6) for bits in entropies(np.array([0, 1, 0, 2, 0, 1, 0, 2, 0]))]
      [1.5, 0.5]
    """
    before, after = np.bincount(tokens[:-1]), np.bincount(tokens[1:])
    _, together = np.unique(_pairs(tokens, int(tokens.max()) + 1), return_counts=True)
    with jax.enable_x64(True):
        unigram, joint, of_before = (float(_entropy(counts.astype(float))) for counts in (after, together, before))
    return Entropies(unigram, joint - of_before)


@kept()
def _entropy(counts: Any) -> Any:
    return entropy_of_counts(counts, base=2)


class Counts(NamedTuple):
    r"""Unigrams and bigrams of a sequence of tokens, and the probabilities that follow.

    The unigram model adds one to each count: :math:`p(t) = (n_t + 1) / (n + V)`.  The bigram model is interpolated
    Kneser-Ney:

    .. math:: p(t \mid s) = \frac{\max(n_{st} - d, 0)}{n_s} + d\,\frac{|\{u: n_{su} > 0\}|}{n_s}\,
              \frac{|\{u: n_{ut} > 0\}| + 1}{\sum_v |\{u: n_{uv} > 0\}| + V}, \qquad d = \frac{m_1}{m_1 + 2 m_2}

    where :math:`m_i` is how many bigrams were seen i times; d = 1/2 where none was seen once. After a token that was
    never seen before another only the last fraction is left.

    Source: Kneser and Ney, Improved backing-off for m-gram language modeling, ICASSP 1995; d as in Ney, Essen and
    Kneser, On structuring probabilistic dependences in stochastic language modelling, 1994.
    """

    size: int
    """V, how many tokens there are."""
    unigram: Array
    """``[V]``, n_t."""
    pairs: Array
    """The bigrams that were seen, as s·V + t, in order."""
    counts: Array
    """How often each was seen."""

    @classmethod
    def of(cls, tokens: Array, size: int) -> Counts:
        """Those of a sequence, in which every token but the first is counted."""
        pairs, counts = np.unique(_pairs(tokens, size), return_counts=True)
        return cls(size, np.bincount(tokens[1:], minlength=size), pairs, counts)

    def unigram_nats(self, tokens: Array) -> float:
        """−Σ log p(t) over all tokens of a sequence but the first."""
        p = (self.unigram + 1) / (self.unigram.sum() + self.size)
        return float(-np.sum(np.log(p[tokens[1:]])))

    def bigram_nats(self, tokens: Array) -> float:
        """−Σ log p(t | s) over all tokens of a sequence but the first, s being the one before."""
        before, after = self.pairs // self.size, self.pairs % self.size
        followed = np.bincount(before, weights=self.counts, minlength=self.size)  # n_s
        followers = np.bincount(before, minlength=self.size)
        continued = np.bincount(after, minlength=self.size)
        once, twice = np.sum(self.counts == 1), np.sum(self.counts == 2)
        discount = once / (once + 2 * twice) if once else 0.5
        lower = (continued + 1) / (continued.sum() + self.size)
        wanted = _pairs(tokens, self.size)
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        seen = np.where(self.pairs[at] == wanted, self.counts[at], 0)
        s, t = tokens[:-1], tokens[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            p = (np.maximum(seen - discount, 0) + discount * followers[s] * lower[t]) / followed[s]
        return float(-np.sum(np.log(np.where(followed[s] > 0, p, lower[t]))))


def _pairs(tokens: Array, size: int) -> Array:
    """Each token but the first with the one before it, as one number."""
    wide = tokens.astype(np.int64)
    return wide[:-1] * size + wide[1:]


def compressed(train: bytes, test: bytes) -> tuple[int, int]:
    """The bytes that ``xz -9e`` makes of a text by itself, and beyond those that it makes of another one before it."""
    xz = lambda text: len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    return xz(test), xz(train + test) - xz(train)


class Baselines(NamedTuple):
    """What the held-out text costs by other means, after entropies of the training text."""

    entropies: Entropies
    unigram_nats: float
    bigram_nats: float
    xz_bytes: int
    xz_bytes_after_training: int

    @classmethod
    def of(cls, text: Tokenized) -> Baselines:
        counts = Counts.of(text.train.tokens, text.tokenizer.size)
        return cls(
            entropies(text.train.tokens),
            counts.unigram_nats(text.test.tokens),
            counts.bigram_nats(text.test.tokens),
            *compressed(b"".join(text.train.texts), b"".join(text.test.texts)),
        )
