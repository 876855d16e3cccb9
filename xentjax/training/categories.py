"""The order in which the categories of a column become features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def in_order(values: Array) -> list[str]:
    """The distinct values of an array of str: by size where all of them are numbers, otherwise as words.

    >>> import numpy as np
    >>> from xentjax.training.categories import in_order
    >>> in_order(np.array(["10", "9", "10"])), in_order(np.array(["10", "9", "none"]))
    (['9', '10'], ['10', '9', 'none'])
    """
    words = [str(word) for word in np.unique(values)]
    sizes = {word: as_number(word) for word in words}
    if not all(map(math.isfinite, sizes.values())):
        return words
    return sorted(words, key=lambda word: sizes[word])


def as_number(text: str) -> float:
    """The number that a text is, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
