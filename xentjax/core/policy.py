"""What every function does alike: dtypes, masks, labels, example weights, reduction, and the errors they raise."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS = get_args(Reduction)


# -- dtypes ------------------------------------------------------------------------------------------------------------


def as_array(function: str, name: str, value: Any, convert: Callable[[Any], Any] = jnp.asarray) -> jax.Array:
    """The value as a real array, or an error that names the function and the argument."""
    try:
        if isinstance(value, str):
            raise TypeError("a string")
        is_foreign = hasattr(value, "__array__") and not isinstance(value, (jax.Array, np.ndarray))  # a table, say
        known = np.asarray(value) if is_foreign else value
        if isinstance(known, np.ndarray) and known.dtype.kind in "OSUMm":
            raise TypeError(f"dtype {known.dtype}; convert it to numbers first")
        array = convert(known)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TypeError(f"{function}: {name} must be a real array, got {type(value).__name__} ({error})") from error
    dtype = array.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{function}: {name} must be real, got dtype {dtype}")
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise TypeError(f"{function}: {name} must be numbers, got dtype {dtype}")
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 16:
        raise TypeError(f"{function}: {name} needs floats of 16 bits or more, got dtype {dtype}; convert it first")
    return array


def whole_number(function: str, name: str, value: Any) -> int:
    """The value as an int, or TypeError where it is no integer, or traced."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{function}: {name} must be a whole number, not traced, got {value!r}") from error


def copied(value: Any) -> jax.Array:
    """``jnp.asarray``, which compiles a program for each shape of NumPy's arrays, without one."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, (int, float, np.generic)):
        return jax.device_put(value)
    if type(value) is not np.ndarray:
        return jnp.asarray(value)
    dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    # The memory becomes that of JAX's array, as it begins where XLA wants it to; that of the value stays the caller's.
    room = np.empty(value.size * dtype.itemsize + 64, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    own = room[start : start + value.size * dtype.itemsize].view(dtype).reshape(value.shape)
    np.copyto(own, value, casting="same_kind")
    return jax.device_put(own)


def is_symbol(size: Any) -> bool:
    """Whether the length of an axis is a symbol, of ``jax.export``: what depends on sizes takes a way for any then."""
    return not isinstance(size, int)


def is_float(array: Any) -> bool:
    return hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jnp.floating)


def result_dtype(inputs: Iterable[Any]) -> Any:
    """The promoted float dtype of the inputs; the default float dtype where none of them is a float."""
    floats = [leaf.dtype for value in inputs for leaf in jax.tree.leaves(value) if is_float(leaf)]
    with jax.numpy_dtype_promotion("standard"):  # what is documented, whatever the user forbids elsewhere
        return functools.reduce(jnp.promote_types, floats) if floats else jnp.result_type(float)


def compute_dtype(dtype: Any) -> Any:
    """The dtype of computation: float32 for 16-bit floats, otherwise the dtype itself."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits == 16 else jnp.dtype(dtype)


def up(array: Any) -> Any:
    """A 16-bit float array as float32; anything else as it is."""
    return array.astype(jnp.float32) if is_float(array) and jnp.finfo(array.dtype).bits == 16 else array


def is_given(option: Any, default: Any) -> bool:
    """Whether a hyperparameter differs from its default, as far as that is known before the program runs."""
    return not (isinstance(option, (bool, int, float)) and option == default)


def as_float(array: Any, dtype: Any) -> Any:
    """A float array as it is; integers and booleans in the given dtype."""
    return array if is_float(array) else array.astype(dtype)


# -- shapes ------------------------------------------------------------------------------------------------------------


def require_shape(function: str, name: str, got: tuple[int, ...], needed: tuple[int, ...], of: str) -> None:
    if got != needed:
        raise ValueError(f"{function}: {name} has shape {got}, but needs {needed}, {of}")


def require_same_shape(function: str, **arrays: Any) -> None:
    """All arrays have the shape of the first."""
    (first, array), *others = arrays.items()
    for name, other in others:
        require_shape(function, name, other.shape, array.shape, f"the shape of {first}")


def require_axis(function: str, name: str, array: Any, axis: Any) -> tuple[int, ...]:
    """The axis or axes as a tuple of non-negative numbers; ValueError where the array has no such axis."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    for one in axes:
        if not isinstance(one, int) or not -array.ndim <= one < array.ndim:
            raise ValueError(f"{function}: axis {one} does not exist: {name} has shape {array.shape}")
    return tuple(one % array.ndim for one in axes)


def check_shared(function: str, bound: dict[str, Any], shared: tuple[str, ...]) -> None:
    """The shared keywords that do not need the rest of the record: the axis, the mask's shape and dtype, the base."""
    first = next(iter(bound))
    if bound.get("axis") is not None:
        for one in require_axis(function, first, bound[first], bound["axis"]):
            if bound[first].shape[one] == 0:
                raise ValueError(f"{function}: {first} has shape {bound[first].shape}: axis {one} is empty")
    where = bound.get("where")
    if "where" in shared and where is not None:
        if where.dtype != jnp.bool_:
            raise TypeError(f"{function}: where must be boolean, got dtype {where.dtype}")
        require_shape(function, "where", where.shape, bound[first].shape, f"the shape of {first}")
    weights = bound.get("weights")
    if "weights" in shared and weights is not None:
        examples = () if bound.get("axis") is None else require_axis(function, first, bound[first], bound["axis"])
        shape = tuple(n for i, n in enumerate(bound[first].shape) if i not in examples)
        require_shape(function, "weights", weights.shape, shape, "one weight for each example")
    base = bound.get("base")
    if "base" in shared and isinstance(base, jax.Array):
        require_shape(function, "base", base.shape, (), "one number")


def expand(examples: Any, axes: Any) -> Any:
    """An array over the examples, with the summed-over axes put back as axes of length 1."""
    return examples if axes == () else jnp.expand_dims(examples, axes)


# -- masks, weights, reduction -----------------------------------------------------------------------------------------


def fill_masked(bound: dict[str, Any], where: Any, fill: dict[str, float]) -> dict[str, Any]:
    """The arguments with masked entries replaced by their neutral value."""
    if where is None:
        return bound

    def is_masked(name: str, value: Any) -> bool:
        return name in fill and value.shape == where.shape

    return {n: jnp.where(where, v, jnp.asarray(fill[n], v.dtype)) if is_masked(n, v) else v for n, v in bound.items()}


def zero_where_nothing_is_left(value: Any, where: Any, axes: Any) -> Any:
    """0 in place of the value of a distribution all of whose entries are masked."""
    if where is None:
        return value
    return jnp.where(where if axes == () else jnp.any(where, axis=axes, keepdims=True), value, 0)


def examples_kept(labels: Any, shared: dict[str, Any], axes: Any) -> tuple[Any, Any]:
    """Which examples count (label not ``ignore_index``, an entry left by the mask), and which of those have a weight.

    None stands for all.
    """
    counted = []
    if shared.get("ignore_index") is not None:
        labels = labels if is_float(labels) else class_indices(labels, 0)
        counted.append(labels != shared["ignore_index"])
    if "reduction" in shared and shared.get("where") is not None:
        counted.append(shared["where"] if axes == () else jnp.any(shared["where"], axis=axes))
    weighty = [] if shared.get("weights") is None else [shared["weights"] != 0]
    return _all(counted), _all(counted + weighty)


def _all(masks: list[Any]) -> Any:
    return functools.reduce(jnp.logical_and, masks) if masks else None


def weigh_and_reduce(value: Any, kept: tuple[Any, Any], shared: dict[str, Any]) -> Any:
    r"""Σ_i s_i·loss_i (``"sum"``), that over Σ_i s_i (``"mean"``; 0 where it is 0), or s_i·loss_i (``"none"``).

    An example that is left out has weight 0 whatever its loss is, NaN included. With respect to a weight that is 0
    the derivative is still the loss, where the loss is finite.
    """
    weights = shared.get("weights")
    counted, keep = kept
    if weights is not None:
        weights = weights.astype(value.dtype)
    if keep is not None:
        value = jnp.where(keep | jnp.isfinite(value), value, 0)
    if counted is not None:
        weights = jnp.where(counted, jnp.ones_like(value) if weights is None else weights, 0)
    weighted = value if weights is None else weights * value
    if shared["reduction"] == "none":
        return weighted
    if shared["reduction"] == "sum":
        return jnp.sum(weighted)
    return jnp.sum(value) / max(value.size, 1) if weights is None else weighted_mean(value, weights)


@jax.custom_jvp
def weighted_mean(values: Any, weights: Any) -> Any:
    r"""m = Σ s_i·v_i / Σ s_i, and 0 where Σ s_i is 0.

    By hand dm = Σ s_i·dv_i / Σs + Σ (v_i - m)·ds_i / Σs, with v_i - m by :func:`from_mean`.
    """
    total = jnp.sum(weights)
    return jnp.where(total == 0, 0, jnp.sum(weights * values) / jnp.where(total == 0, 1, total))


def _weighted_mean_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (values, weights), (values_dot, weights_dot) = primals, tangents
    scale = inverse(jnp.sum(weights))
    mean_dot = jnp.zeros_like(scale)
    if not isinstance(values_dot, SymbolicZero):
        mean_dot = mean_dot + jnp.sum(weights * values_dot) * scale
    if not isinstance(weights_dot, SymbolicZero):
        mean_dot = mean_dot + jnp.sum(from_mean(values, weights * scale) * weights_dot) * scale
    return weighted_mean(values, weights), mean_dot


weighted_mean.defjvp(_weighted_mean_rule, symbolic_zeros=True)


def inverse(total: Any) -> Any:
    """1/total, and 0 where the total is 0: the mean over no weight at all."""
    return jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))


def from_mean(values: Any, shares: Any) -> Any:
    """v_i - Σ_j p_j·v_j for shares p, all values measured from that with the largest share.

    Where one value has almost all of the weight, its distance from the mean is made of the others' distances from it,
    and keeps its digits.
    """
    largest = jnp.argmax(jnp.where(jnp.isfinite(values), jnp.abs(shares), -1))
    distances = values - jnp.ravel(values)[largest]
    return distances - jnp.sum(shares * distances)


def log_of_base(function: str, base: Any) -> Any:
    """log(base) as a number, or an error where the base is none of a logarithm."""
    if not isinstance(base, (int, float)):
        return jnp.log(up(base))
    if not 0 < base < np.inf or base == 1:
        raise ValueError(f"{function}: base must be a positive number other than 1, got {base}")
    return float(np.log(base))


# -- labels ------------------------------------------------------------------------------------------------------------


def class_indices(labels: Any, num_classes: int) -> Any:
    """Integer labels as int32 (int64 only where the number of classes needs it), what lies beyond at the nearest end.

    The cast comes first: an 8-bit label that is compared or indexed in its own type wraps.
    """
    wide = jnp.int64 if num_classes > np.iinfo(np.int32).max else jnp.int32
    if labels.dtype == jnp.bool_:
        return labels.astype(wide)
    own, ends = jnp.iinfo(labels.dtype), jnp.iinfo(wide)
    return jnp.clip(labels, max(own.min, ends.min), min(own.max, ends.max)).astype(wide)
