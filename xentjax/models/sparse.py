"""Features as a sparse matrix, of which a block of rows at a time is made dense."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import policy
from xentjax.models.streamed import StreamedRows
from xentjax.models.strided import StridedRows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseRows:
    """The rows of a sparse matrix (CSR), for sums that go over blocks of rows.

    A block is made dense where it is needed, so that all that is done with features, centring included, is done with
    these: it costs the time of dense features, and the memory of one block beside that of the entries.

    Args:
      values: the entries ``[e]``, row by row, with zeros behind them.
      columns: the column of each, int32 ``[e]``.
      rows: the row of each, int32 ``[e]``.
      starts: the number of entries before each row, and of all, ``[n + 1]``.
      num_columns: d.
      block: how many rows are made dense at once, at most n.
      most: no block has more entries than this, and as many zeros stand behind the values.
      parts: how many matrices of equally many rows, one below the other, the arrays are those of, one behind the
        other, as on so many devices. They have to be one for rows to be taken.
    """

    values: Any
    columns: Any
    rows: Any
    starts: Any
    num_columns: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})
    most: int = dataclasses.field(metadata={"static": True})
    parts: int = dataclasses.field(default=1, metadata={"static": True})

    @classmethod
    def of(cls, matrix: Any, block: int) -> SparseRows:
        """From a matrix of SciPy, whose blocks are to be of so many rows."""
        csr = matrix.tocsr()
        rows = np.repeat(np.arange(csr.shape[0], dtype=np.int32), np.diff(csr.indptr))
        values = csr.data if np.issubdtype(csr.data.dtype, np.floating) else csr.data.astype(float)
        return cls._of_entries(values, csr.indices, rows, csr.indptr, csr.shape[1], block)

    @classmethod
    def _of_entries(
        cls, values: Any, columns: Any, rows: Any, starts: Any, num_columns: int, block: int, least: int = 0
    ) -> SparseRows:
        """Arrays with room behind them for the largest block, whose size is rounded up to ``least`` at least."""
        n, count = len(starts) - 1, int(starts[-1])
        block = max(min(block, n), 1)
        first = np.minimum(np.arange(0, max(n, 1), block), max(n - block, 0))
        most = max(int(np.max(starts[first + block] - starts[first])) if n else 0, least, 1)
        room = max(count, least) + most - count
        # By NumPy, with device_put: JAX's own slices and jnp.asarray compile a program for each shape (jax 0.10).
        more = lambda array, dtype: jax.device_put(np.pad(np.asarray(array, dtype)[:count], (0, room)))
        offsets = jax.device_put(np.asarray(starts, np.int64 if count + most >= 2**31 else np.int32))
        return cls(
            more(values, values.dtype), more(columns, np.int32), more(rows, np.int32), offsets, num_columns, block, most
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.starts.shape[0] - self.parts, self.num_columns

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    @property
    def entries(self) -> np.ndarray:
        """The values without the zeros behind them."""
        return np.asarray(self.values)[: np.asarray(self.starts)[-1]]

    def astype(self, dtype: Any) -> SparseRows:
        return dataclasses.replace(self, values=self.values.astype(dtype))

    def dense(self, start: Any) -> Any:
        """The rows ``[block, d]`` from row ``start`` on: that of a block, or n - block."""
        first, last = self.starts[start], self.starts[start + self.block]
        here = lambda entries: jax.lax.dynamic_slice_in_dim(entries, first, self.most)
        # What belongs to later rows goes to a row that does not exist.
        counts = jnp.arange(self.most, dtype=first.dtype) < last - first
        row = jnp.where(counts, here(self.rows) - jnp.asarray(start, jnp.int32), self.block)
        empty = jnp.zeros((self.block, self.num_columns), self.values.dtype)
        return empty.at[row, here(self.columns)].add(here(self.values), mode="drop")

    def in_parts(self, parts: int, each: int, largest: Callable[[Any], Any] = np.asarray) -> SparseRows:
        """The same as so many matrices of ``each`` rows, zeros behind those that there are, on the host.

        Other processes may have further parts: ``largest`` tells the largest of each of some numbers of all of them.
        """
        starts = np.pad(np.asarray(self.starts), (0, parts * each - self.shape[0]), mode="edge")
        cuts = starts[np.arange(parts + 1) * each]
        block = int(min(-largest(np.asarray([-self.block]))[0], each))
        first = np.minimum(np.arange(0, each, block), each - block) + each * np.arange(parts)[:, None]
        sizes = largest(np.asarray([np.max(starts[first + block] - starts[first]), np.max(np.diff(cuts))]))
        most = max(int(sizes[0]), 1)
        room = int(sizes[1]) + most

        def cut(entries: Any, less: int = 0) -> Any:
            made = np.zeros((parts, room), np.asarray(entries).dtype)
            for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
                made[i, : end - begin] = np.asarray(entries)[begin:end] - i * less
            return made.reshape(-1)

        of_parts = starts[np.arange(each + 1) + each * np.arange(parts)[:, None]] - cuts[:-1, None]
        return SparseRows(
            values=cut(self.values),
            columns=cut(self.columns),
            rows=cut(self.rows, each),
            starts=of_parts.astype(starts.dtype).reshape(-1),
            num_columns=self.num_columns,
            block=block,
            most=most,
            parts=parts,
        )

    def extended(self, rows: int, columns: int, least: int) -> SparseRows:
        """The same with rows and columns of zeros behind it, and room for ``least`` entries or more."""
        starts = np.pad(np.asarray(self.starts), (0, rows - self.shape[0]), mode="edge")
        return self._of_entries(self.values, self.columns, self.rows, starts, columns, max(self.block, rows), least)


def is_sparse(x: Any) -> bool:
    """Whether it is a :class:`SparseRows`, or a matrix of SciPy that can be made one."""
    return isinstance(x, SparseRows) or hasattr(x, "tocsr")


def as_features(function: str, x: Any, convert: Callable[[Any], Any] = jnp.asarray) -> Any:
    """Rows that are sparse, streamed or strided as they are, and anything else as an array."""
    kinds = SparseRows | StreamedRows | StridedRows
    return x if isinstance(x, kinds) else policy.as_array(function, "x", x, convert)
