"""What computes a linear cross-entropy on a GPU: XLA, or kernels where a problem is one that they are written for."""

from __future__ import annotations

from typing import get_args

import jax

from xentjax.losses.linear.arguments import Problem
from xentjax.losses.linear.outputs import output
from xentjax.losses.linear.vocabulary import Kernels

KERNELS = get_args(Kernels)

#: What D, the classes on a device, and the columns of a block are multiples of, and the tokens of a chunk: tiles in
#: shared memory have rows of 128 bytes, in groups of 8.
ALIGNED, ALIGNED_TOKENS = 64, 8
#: Columns of a tile at least, each of which leaves so many numbers in float32 of a row at most.
TILE, NUMBERS = 192, 4

_OPTIONS = {"bias": "a bias", "class_weights": "class weights", "softcap": "a soft cap", "temperature": "a temperature"}


def unmet(problem: Problem, block: int, tokens: int) -> str | None:
    """Why the kernels of :mod:`xentjax.losses.linear.mosaic` do not compute a problem in such blocks; None if they do.

    Args:
      problem: the shapes, dtypes and options.
      block: columns at a time.
      tokens: at a time.
    """
    if jax.__version_info__ < (0, 12):
        return f"kernels need jax 0.12 or later, not {jax.__version__}"
    capability = getattr(jax.devices()[0], "compute_capability", None)
    if capability not in (None, "9.0"):
        return f"kernels need a GPU of compute capability 9.0 (H100, H200), not {capability}"
    if problem.operands.itemsize != 2:
        return f"kernels need x and w in 16 bits, not {problem.operands.name}"
    if problem.labels not in ("indices", None):
        return "kernels need class indices as labels"
    if other := {name for name in problem.outputs if not output(name).is_of_kernels}:
        return f"kernels do not give {', '.join(sorted(other))}"
    if given := [words for name, words in _OPTIONS.items() if name in problem.options]:
        return f"kernels do not take {', '.join(given)}"
    sizes = {"D": problem.depth, "V": problem.width, "block": block}
    for name, size in sizes.items():
        if size % ALIGNED:
            return f"kernels need {name} to be a multiple of {ALIGNED}, not {size}"
    chunks = -(-problem.rows // max(tokens, 1))
    for size in {problem.rows, -(-problem.rows // max(chunks, 1))}:
        if size == 0 or size % ALIGNED_TOKENS:
            return f"kernels need N and tokens at a time to be multiples of {ALIGNED_TOKENS}, not {size}"
    return None


def bytes_of_tiles(problem: Problem, tokens: int) -> int:
    """What the tiles of all columns leave of so many tokens."""
    return tokens * -(-problem.width // TILE) * NUMBERS * 4
