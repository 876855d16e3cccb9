"""Bytes as tokens, and back: a vocabulary of frequent pieces in which every byte string can be written."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xentjax.training.errors import UserError
from xentjax.training.language_config import FIXED_TOKENS

Array = np.ndarray[Any, Any]

#: Tokens 0 to 255 are the bytes; this one ends a file.
END = 256

#: The longest piece that can be a token: to spell an unknown piece takes a time that grows with it for each byte.
_LONGEST = 128

#: Where a text is cut into pieces, each byte in one of them: line breaks with the indentation of the next line, words,
#: numbers and runs of signs with a blank before them, other blanks. Bytes above 127 are part of words, as in UTF-8.
_PIECE = re.compile(rb"\n\s*| ?[A-Za-z_\x80-\xff]+| ?[0-9]+| ?[^\s0-9A-Za-z_\x80-\xff]+|[^\S\n]+(?=[^\S\n])|\s")


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: the 256 bytes, the end of a file, and ``pieces``, the token of ``pieces[i]`` being 257 + i.

    A piece of a text that is one of these is one token; any other is written as the longest of these that it begins
    with, or its first byte, and so on.

    Example:
      >>> from xentjax.training.language.tokenizer import Tokenizer
      >>> tokenizer = Tokenizer.learn([b"the cat and the hat", b"the end of the day"], size=259)
      >>> tokenizer.pieces
      (b' the', b'the')
      >>> tokenizer.encode(b"the hat, then").tolist()
      [258, 32, 104, 97, 116, 44, 257, 110]
      >>> tokenizer.decode([257, 110])
      b' then'
    """

    pieces: tuple[bytes, ...]

    @classmethod
    def learn(cls, texts: Iterable[bytes], size: int) -> Tokenizer:
        """The vocabulary of ``size`` tokens whose pieces are the most frequent ones of the texts, the first in the
        order of bytes among equals.

        Raises:
          UserError: the texts have fewer pieces.
        """
        counts: Counter[bytes] = Counter()
        for text in texts:
            counts.update(_PIECE.findall(text))
        found = [(-count, piece) for piece, count in counts.items() if 1 < len(piece) <= _LONGEST]
        if len(found) < size - FIXED_TOKENS:
            most = len(found) + FIXED_TOKENS
            raise UserError(
                f"vocabulary.size: the training text has pieces for {most} tokens, not for {size}: "
                "take no more than that, or more text"
            )
        return cls(tuple(piece for _, piece in sorted(found)[: size - FIXED_TOKENS]))

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return FIXED_TOKENS + len(self.pieces)

    def encode(self, text: bytes) -> Array:
        """The tokens of a text, int32; ``decode`` gives the text back."""
        tokens: list[int] = []
        spelled = self._spelled
        for piece in _PIECE.findall(text):
            known = spelled.get(piece)
            if known is None:
                known = spelled[piece] = self._spell(piece)
            tokens += known
        return np.asarray(tokens, np.int32)

    def decode(self, tokens: Sequence[int] | Array) -> bytes:
        """The bytes that tokens stand for; the end of a file has none.

        Raises:
          ValueError: a token is not of this vocabulary.
        """
        words = self._words
        for token in tokens:
            if not 0 <= token < self.size:
                raise ValueError(f"decode: token {token} is not one of the {self.size} of this vocabulary")
        return b"".join(words[token] for token in tokens)

    def stream(self, texts: Iterable[bytes]) -> Array:
        """All texts as one sequence of tokens, int32, with the end of a file before, between and behind them."""
        end = np.asarray([END], np.int32)
        return np.concatenate([end, *(part for text in texts for part in (self.encode(text), end))])

    def _spell(self, piece: bytes) -> tuple[int, ...]:
        """The tokens of a piece that is none itself."""
        tokens, start = [], 0
        while start < len(piece):
            lengths = self._lengths.get(piece[start : start + 2], ())
            words = (piece[start : start + length] for length in lengths)
            known = next((word for word in words if word in self._spelled_as_one), piece[start : start + 1])
            tokens.append(self._spelled_as_one.get(known, known[0]))
            start += len(known)
        return tuple(tokens)

    @functools.cached_property
    def _spelled_as_one(self) -> dict[bytes, int]:
        return {piece: FIXED_TOKENS + i for i, piece in enumerate(self.pieces)}

    @functools.cached_property
    def _spelled(self) -> dict[bytes, tuple[int, ...]]:
        """The tokens of the pieces that were met so far."""
        return {piece: (token,) for piece, token in self._spelled_as_one.items()}

    @functools.cached_property
    def _lengths(self) -> dict[bytes, list[int]]:
        """How long the pieces are that begin with two bytes, the longest first."""
        found: dict[bytes, set[int]] = {}
        for piece in self.pieces:
            found.setdefault(piece[:2], set()).add(len(piece))
        return {start: sorted(lengths, reverse=True) for start, lengths in found.items()}

    @functools.cached_property
    def _words(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b"", *self.pieces]
