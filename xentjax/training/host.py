"""Data of NumPy with more digits than JAX is configured for: what of them fits into 32 bits is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import policy

#: Squares of centred columns that are smaller than this underflow in float32.
_SMALLEST = 1e-18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Centered:
    """Features ``[n, d]`` from which a number in the midst of each column, ``origin [d]``, has been taken off."""

    x: Any
    origin: Any


def centered(
    function: str,
    x: Any,
    weights: Any,
    *,
    at_origin: bool = False,
    in_all: Callable[[Any], np.ndarray] = np.asarray,
) -> Any:
    """Features that JAX would round to float32 as :class:`Centered` ones; all others as they are.

    Rounded as they are, features of mean 1e6 and deviation 1 keep one digit; less their mean, which is computed here in
    float64, they keep seven.

    Args:
      function: what errors name.
      x: features ``[n, d]``, or ``[k, n, d]`` for k fits, whose origin then is ``[k, d]``.
      weights: those of the rows, ``[n]`` or ``[k, n]``; what has none has no part in the origin.
      at_origin: whether the origin has to be 0, as for a model without a bias.
      in_all: from the sums of these rows those of all, where other processes have more of them.

    Raises:
      ValueError: a number is beyond the range of float32, or a column below it.
    """
    if jnp.result_type(float) != np.float32:
        return x
    wide = x if isinstance(x, np.ndarray) else _as_wide(x)
    if wide is None or not _loses_digits(wide.dtype) or wide.ndim not in (2, 3):
        return x
    counted = _counted(wide, weights)
    with np.errstate(all="ignore"):
        number = np.sum(counted, axis=-1, keepdims=True, dtype=np.float64)
        sums = np.sum(wide, axis=-2, where=counted[..., None], dtype=np.float64)
        sums = in_all(np.concatenate([sums, number], axis=-1))
        mean = sums[..., :-1] / np.maximum(sums[..., -1:], 1)
        origin = np.where(np.isfinite(mean) & (not at_origin), mean, 0).astype(np.float32)
        narrow = np.empty(wide.shape, np.float32)
        np.subtract(wide, origin[..., None, :], out=narrow, dtype=np.float64, casting="same_kind")
    _require_range(function, wide, narrow, counted)
    return Centered(policy.copied(narrow), policy.copied(origin))


def require_held(function: str, name: str, values: Any) -> None:
    """ValueError where values are integers of NumPy that JAX would wrap to fewer bits."""
    if not (isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.dtype.itemsize > 4):
        return
    held = jnp.iinfo(jnp.result_type(int))
    beyond = (values < held.min) | (values > held.max)
    if beyond.any():
        place = tuple(map(int, np.argwhere(beyond)[0]))
        raise ValueError(
            f"{function}: {name}{list(place)} is {values[place]}, beyond {held.dtype}, which JAX is configured for: "
            "jax.config.update('jax_enable_x64', True) gives it 64 bits"
        )


def _as_wide(x: Any) -> np.ndarray | None:
    """Lists and tables of other libraries as an array; None for what is JAX's, sparse, or no table of numbers."""
    if isinstance(x, (jax.Array, Centered)) or hasattr(x, "tocsr") or not hasattr(x, "__len__"):
        return None
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x)):
        return None
    try:
        return np.asarray(x)
    except ValueError:
        return None


def _loses_digits(dtype: Any) -> bool:
    return dtype.kind in "iuf" and dtype.itemsize >= 4 and dtype != np.float32


def _counted(wide: np.ndarray, weights: Any) -> np.ndarray:
    """Which rows have a weight, as far as that is known: ``[n]``, or ``[k, n]`` for tables of their own."""
    shape = wide.shape[:-1]
    if weights is None or isinstance(weights, jax.core.Tracer):
        return np.ones(shape, bool)
    counted = np.asarray(weights) != 0
    if counted.ndim > len(shape):
        counted = counted.any(axis=0)
    return np.broadcast_to(counted, shape) if counted.shape[-1:] == shape[-1:] else np.ones(shape, bool)


def _require_range(function: str, wide: np.ndarray, narrow: np.ndarray, counted: np.ndarray) -> None:
    """ValueError where float32 makes numbers infinite, or a column that varies one of zeros."""
    hint = "scale the column, or compute in float64: jax.config.update('jax_enable_x64', True)"
    if not np.isfinite(narrow).all():
        beyond = np.isinf(narrow) & np.isfinite(wide) & counted[..., None]
        if beyond.any():
            place = tuple(map(int, np.unravel_index(np.argmax(np.where(beyond, np.abs(wide), 0)), wide.shape)))
            raise ValueError(f"{function}: x{list(place)} is {wide[place]}, beyond the range of float32: {hint}")
    with np.errstate(invalid="ignore"):
        small = np.max(np.abs(narrow), axis=-2, where=counted[..., None], initial=0) < _SMALLEST
    if small.any():
        rows = (
            np.moveaxis(wide, -1, -2)[small],
            np.broadcast_to(counted[..., None, :], small.shape + counted.shape[-1:])[small],
        )
        for place, values, there in zip(np.argwhere(small), *rows, strict=True):
            if there.any() and np.ptp(values[there]) > 0:
                index = ", ".join([*map(str, place[:-1]), ":", str(place[-1])])
                raise ValueError(
                    f"{function}: x[{index}] varies by less than {_SMALLEST}, too little for float32: {hint}"
                )
