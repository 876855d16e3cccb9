"""The shapes that are measured, and the numbers that are drawn for them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

#: Drawn separately, each with a seed of its own: the numbers are the same on any number of threads.
PARTS = 16


@dataclasses.dataclass(frozen=True)
class Shape:
    """N tokens of D features, V classes."""

    n: int
    d: int
    v: int

    @property
    def sizes(self) -> dict[str, int]:
        return {"N": self.n, "D": self.d, "V": self.v}

    def __str__(self) -> str:
        return f"({self.n}, {self.d}, {self.v})"


#: Of a processor: heads of language models, then few classes.
CPU = (
    Shape(2048, 512, 32768),
    Shape(1024, 512, 50257),
    Shape(4096, 256, 8192),
    Shape(8192, 64, 10),
    Shape(4096, 256, 1000),
)
QUICK_CPU = (Shape(256, 64, 2049), Shape(512, 32, 10))

#: Of an accelerator, in bfloat16: Llama 3 8B, Gemma 2 2B, a longer batch of the first, GPT-2.
GPU = (
    Shape(4096, 4096, 128256),
    Shape(8192, 2304, 256000),
    Shape(16384, 4096, 128256),
    Shape(8192, 1024, 50257),
)
TINY = (Shape(48, 64, 576), Shape(64, 32, 301))


def draw(shape: Shape, dtype: str) -> tuple[Any, ...]:
    """x [N, D], w [D, V] and labels [N] as NumPy arrays; the same numbers in every process."""
    x = normal((shape.n, shape.d), 1.0, dtype, f"x{shape}")
    w = normal((shape.d, shape.v), 1 / math.sqrt(shape.d), dtype, f"w{shape}")
    return x, w, labels(shape)


def tangents(shape: Shape, dtype: str) -> tuple[Any, ...]:
    """A direction in x and w, of the size of those."""
    along_x = normal((shape.n, shape.d), 1.0, dtype, f"tangent of x{shape}")
    return along_x, normal((shape.d, shape.v), 1 / math.sqrt(shape.d), dtype, f"tangent of w{shape}")


def labels(shape: Shape) -> np.ndarray:
    """Uniform over the classes; the last class is the first token's label."""
    drawn = np.random.default_rng(_seed(f"labels{shape}")).integers(0, shape.v, shape.n).astype(np.int32)
    drawn[:1] = shape.v - 1
    return drawn


def normal(shape: tuple[int, int], scale: float, dtype: str, name: str) -> np.ndarray:
    """Normal numbers in the dtype, drawn in float32 by as many threads as there are parts."""
    result = np.empty(shape, jnp.dtype(dtype))
    rows = np.array_split(np.arange(shape[0]), PARTS)
    seeds = np.random.SeedSequence(_seed(name)).spawn(PARTS)

    def fill(part: int) -> None:
        if len(rows[part]):
            size = len(rows[part]), shape[1]
            numbers = np.random.default_rng(seeds[part]).standard_normal(size, np.float32) * np.float32(scale)
            result[rows[part][0] : rows[part][-1] + 1] = numbers

    with concurrent.futures.ThreadPoolExecutor(PARTS) as pool:
        list(pool.map(fill, range(PARTS)))
    return result


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())
