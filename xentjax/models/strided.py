"""Every so-many-th row of a matrix, read where it stands."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StridedRows:
    """The rows 0, s, 2s, ... of a matrix x ``[n, d]``, for sums that go over blocks of rows: no copy of them is made.

    Args:
      x: all rows.
      stride: s, 1 or more.
      parts: how many equal parts x is made of, such as those of devices; of each these rows are taken.
    """

    x: Any
    stride: int = dataclasses.field(metadata={"static": True})
    parts: int = dataclasses.field(default=1, metadata={"static": True})

    @classmethod
    def of(cls, x: Any, stride: int, parts: int = 1) -> StridedRows:
        """Every stride-th row of an array, or of such rows of one."""
        if isinstance(x, StridedRows):
            return dataclasses.replace(x, stride=x.stride * stride)
        return cls(jnp.asarray(x), stride, parts)

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self.x.shape
        return self.parts * -(-(n // self.parts) // self.stride), d

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def dense(self) -> Any:
        """A copy of them."""
        return every(self.x, self.stride, self.parts)

    def block(self, start: Any, size: int) -> Any:
        """So many rows ``[size, d]`` from number ``start`` on."""
        span = max((size - 1) * self.stride + 1, 0)
        return jax.lax.dynamic_slice_in_dim(self.x, start * self.stride, span)[:: self.stride]


def every(rows: Any, stride: int, parts: int = 1) -> Any:
    """The rows 0, s, 2s, ... of each of so many equal parts of an array."""
    of_parts = rows.reshape(parts, -1, *rows.shape[1:])[:, ::stride]
    return of_parts.reshape(-1, *rows.shape[1:])
