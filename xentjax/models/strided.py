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
    """

    x: Any
    stride: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, x: Any, stride: int) -> StridedRows:
        """Every stride-th row of an array, or of such rows of one."""
        return cls(x.x, x.stride * stride) if isinstance(x, StridedRows) else cls(jnp.asarray(x), stride)

    @property
    def shape(self) -> tuple[int, int]:
        n, d = self.x.shape
        return -(-n // self.stride), d

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def dense(self) -> Any:
        """A copy of them."""
        return self.x[:: self.stride]

    def block(self, start: Any, size: int) -> Any:
        """So many rows ``[size, d]`` from number ``start`` on."""
        span = max((size - 1) * self.stride + 1, 0)
        return jax.lax.dynamic_slice_in_dim(self.x, start * self.stride, span)[:: self.stride]
