"""Features that stand in a file and are read a chunk of rows at a time, for sums that go over blocks of rows."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

#: Bytes of a chunk. A larger one has left the processor's cache before its blocks are computed with, a smaller one
#: is not worth a call into Python. (An accelerator has a chunk for each block.)
_CHUNK = 2**22

#: The open sources by their numbers, for as long as somebody else holds them.
_OPEN: weakref.WeakValueDictionary[int, RowSource] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


class RowSource(Protocol):
    """Rows ``[n, d]`` that can be read from any place on, in a thread that must not call JAX."""

    shape: tuple[int, int]
    dtype: Any
    origin: np.ndarray[Any, Any] | None
    """What has been taken off each column ``[d]``, so that float32 holds what is left of 64 bits; None for nothing."""
    failure: BaseException | None
    """Why the last reading failed; :func:`reading` sets and clears it."""

    def read(self, start: int, out: np.ndarray[Any, Any]) -> None:
        """Fill ``out [k, d]`` with the rows from number ``start`` on."""

    def take(self, rows: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
        """Fill ``out [k, d]`` with the rows of these numbers ``[k]``."""

    def tell(self, objective: float) -> None:
        """Hear of the objective at the end of a pass over all rows."""


class _InThisProcess:
    """Marks programs that call into this process, so that no other one takes them over (see solvers.kept)."""


_HERE = _InThisProcess()


class _Layout(NamedTuple):
    """What a program is compiled for. Which of the open sources it reads is data."""

    n: int
    d: int
    dtype: Any
    mark: Any = _HERE


@jax.tree_util.register_pytree_node_class
class StreamedRows:
    """The rows of a :class:`RowSource`, for sums that go over blocks of rows: a chunk of them is in memory at once.

    A pytree whose one number says which source it is, so that sources of the same shape share compiled programs. As
    long as this object (not one that was made of its leaves) is held, the source stays open.
    """

    def __init__(self, number: Any, layout: _Layout, source: RowSource | None = None):
        self.number, self.layout, self.source = number, layout, source

    @classmethod
    def of(cls, source: RowSource) -> StreamedRows:
        number = next(_numbers)
        _OPEN[number] = source
        return cls(np.int32(number), _Layout(*source.shape, np.dtype(source.dtype)), source)

    def tree_flatten(self) -> tuple[tuple[Any], _Layout]:
        return (self.number,), self.layout

    @classmethod
    def tree_unflatten(cls, layout: _Layout, children: tuple[Any]) -> StreamedRows:
        return cls(*children, layout)

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.n, self.layout.d

    @property
    def ndim(self) -> int:
        return 2

    @property
    def size(self) -> int:
        return self.layout.n * self.layout.d

    @property
    def dtype(self) -> Any:
        return self.layout.dtype

    @property
    def at_once(self) -> int:
        """How many rows a chunk has, or somewhat fewer."""
        return max(_CHUNK // max(self.layout.d * self.dtype.itemsize, 1), 1)

    def block(self, start: Any, size: int) -> Any:
        """So many rows ``[size, d]`` from number ``start`` on."""
        return self._call(_read, size, start)

    def take(self, rows: Any) -> Any:
        """The rows of these numbers ``[k]``, as ``[k, d]``: each is read where it stands."""
        return self._call(_take, rows.shape[0], rows)

    def tell(self, objective: Any) -> None:
        """Let the source hear of the objective, once it is computed."""
        if jax.default_backend() == "cpu":
            buffer_callback(_tell, (), has_side_effect=True)(self.number, objective)
        else:
            jax.debug.callback(lambda number, value: _tell(None, (), number, value), self.number, objective)

    def _call(self, function: Any, size: int, argument: Any) -> Any:
        if jax.dtypes.canonicalize_dtype(self.dtype) != self.dtype:
            raise ValueError(
                f"the rows were opened as {self.dtype}, which JAX is not configured for: open them after "
                "jax.config.update('jax_enable_x64', True), or as float32"
            )
        result = jax.ShapeDtypeStruct((size, self.layout.d), self.dtype)
        if jax.default_backend() == "cpu":  # the rows are written where the program reads them
            return buffer_callback(function, result, vmap_method="sequential")(self.number, argument)

        def made(number: Any, argument: Any) -> Any:
            out = np.empty(result.shape, result.dtype)
            function(None, out, number, argument)
            return out

        return jax.pure_callback(made, result, self.number, argument, vmap_method="sequential")


def _read(_: Any, out: Any, number: Any, start: Any) -> None:
    source = _source(number)
    with _remembered(source):
        source.read(int(np.asarray(start)), np.asarray(out))


def _take(_: Any, out: Any, number: Any, rows: Any) -> None:
    source = _source(number)
    with _remembered(source):
        source.take(np.asarray(rows), np.asarray(out))


def _tell(_: Any, out: Any, number: Any, objective: Any) -> None:
    _source(number).tell(float(np.asarray(objective)))


def _source(number: Any) -> RowSource:
    source = _OPEN.get(int(np.asarray(number)))
    if source is None:
        raise ValueError("the rows are no longer open: hold what open_rows returned for as long as they are read")
    return source


@contextlib.contextmanager
def _remembered(source: RowSource) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        source.failure = error
        raise


@contextlib.contextmanager
def reading(x: Any) -> Iterator[None]:
    """What fails in reading the rows of x inside the block, in the place of the error that JAX makes of it.

    Programs run on after they are called: what they give has to be waited for inside the block.
    """
    source = x.source if isinstance(x, StreamedRows) else None
    try:
        yield
    except Exception:
        if source is None or source.failure is None:
            raise
        failure, source.failure = source.failure, None
        raise failure from None
