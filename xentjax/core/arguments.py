"""What a caller passes, as what a record computes with: options, known before anything is traced, and arrays."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import policy

_INT32 = np.iinfo(np.int32)


def converted(record: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument as an array or as a plain Python value (an option).

    Arrays are what the domain draws, ``where`` and ``weights``, and whatever else is none of Python's own numbers.

    Raises:
      TypeError: for what is no number where one is needed; for an option of another type. Both name the argument.
    """
    named: Any
    found: dict[str, Any] = {}
    wide: list[str] = []  # integers that JAX would wrap into 32 bits
    for name, value in given.items():
        default = record.signature.parameters[name].default
        if name in _OPTIONS:
            found[name] = _OPTIONS[name](record, value)
        elif value is None and default is None:
            found[name] = None
        elif name in record.trees:
            named = record.trees[name]
            if not isinstance(value, named):
                needed = f"{named.__name__}({', '.join(named._fields)})"
                raise TypeError(f"{record.name}: {name} must be {needed}, got {type(value).__name__}")
            as_array = lambda leaf, name=name: policy.as_array(record.name, name, leaf)
            found[name] = jax.tree.map(as_array, value, is_leaf=lambda leaf: leaf is None)
        elif name in record.tuples and isinstance(value, tuple):
            leaves = [None if leaf is None else _array(record, name, leaf) for leaf in value]
            named = type(value)
            found[name] = named(*leaves) if hasattr(value, "_fields") else tuple(leaves)
        elif name in (*record.inputs, "where", "weights"):
            found[name] = _array(record, name, value)
        else:
            is_number = name in (*record.wrt, "base") or isinstance(default, float)
            found[name] = _option_or_array(record, name, value, is_number)
        if isinstance(found[name], np.ndarray):
            wide.append(name)
    dtype = policy.result_dtype(found[n] for n in record.inputs)
    for name in wide:
        found[name] = jnp.asarray(found[name].astype(dtype if name in record.inputs else jnp.result_type(float)))
    return found


# -- arrays ------------------------------------------------------------------------------------------------------------


def _array(record: Any, name: str, value: Any) -> Any:
    """An array of JAX; or one of NumPy, of integers that stand for floats and may not fit into 32 bits."""
    integers = None if name == "where" else _wide_integers(value)
    if integers is None:
        return policy.as_array(record.name, name, value)
    if name in record.indices:  # what is out of range must stay so
        own = _INT32 if integers.dtype == object else np.iinfo(integers.dtype)
        low, high = max(int(own.min), int(_INT32.min)), min(int(own.max), int(_INT32.max))
        return jnp.asarray(np.clip(integers, low, high).astype(np.int32))
    return integers


def _wide_integers(value: Any) -> np.ndarray | None:
    """Integers of 64 bits and more (Python's own, too) where JAX holds fewer; None for anything else."""
    if isinstance(value, (jax.Array, float, str)):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, jax.errors.JAXTypeError):  # a list with traced numbers in it, or no array at all
        return None
    if array.dtype == object and array.size and all(type(v) is int for v in array.flat):
        return array
    fits = array.dtype.kind not in "iu" or array.dtype.itemsize < 8 or jnp.result_type(int) == np.int64
    return None if fits else array


# -- options -----------------------------------------------------------------------------------------------------------


def is_static(value: Any) -> bool:
    """Plain Python scalars, strings, None, tuples of them and frozen dataclasses configure a function; all else is
    data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return bool(value.__dataclass_params__.frozen)  # type: ignore[attr-defined]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return all(is_static(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _option_or_array(record: Any, name: str, value: Any, is_number: bool) -> Any:
    if isinstance(value, (np.integer, np.bool_)):
        value = value.item()
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = tuple(value)
    if is_number and not isinstance(value, (bool, int, float)):
        return _array(record, name, value)
    if isinstance(value, (jax.Array, np.ndarray)):
        return policy.as_array(record.name, name, value)
    if not is_static(value):
        what = "numbers, strings or tuples of them, known before the function is traced"
        raise TypeError(f"{record.name}: {name} takes {what}, got {type(value).__name__}")
    return value


def _index(value: Any) -> int | None:
    """An integer, also one of NumPy's, as Python's; None for what is none, booleans among it."""
    if isinstance(value, (bool, np.bool_)) or (hasattr(value, "dtype") and value.dtype == np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:  # a traced integer, too
        return None


def _axis(record: Any, value: Any) -> Any:
    one_axis = record.signature.parameters["axis"].annotation in (int, "int")
    what = "an integer" if one_axis else "an integer, a tuple of integers, or None"
    if value is None and not one_axis:
        return None
    axes = tuple(map(_index, value)) if isinstance(value, tuple) and not one_axis else (_index(value),)
    if None in axes:
        raise TypeError(f"{record.name}: axis must be {what}, known before the function is traced, got {value!r}")
    return axes if isinstance(value, tuple) else axes[0]


def _keepdims(record: Any, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{record.name}: keepdims must be True or False, got {value!r}")
    return bool(value)


def _reduction(record: Any, value: Any) -> str:
    if not isinstance(value, str) or value not in policy.REDUCTIONS:
        raise ValueError(f"{record.name}: reduction must be 'none', 'mean' or 'sum', got {value!r}")
    return value


def _ignore_index(record: Any, value: Any) -> int | None:
    if value is None:
        return None
    index = _index(value)
    if index is None:
        what = "an integer, known before the function is traced, or None"
        raise TypeError(f"{record.name}: ignore_index must be {what}, got {value!r}")
    if not _INT32.min <= index <= _INT32.max:
        raise ValueError(f"{record.name}: ignore_index must fit into 32 bits, got {index}")
    return index


#: The options that mean the same in every record.
_OPTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "axis": _axis,
    "keepdims": _keepdims,
    "reduction": _reduction,
    "ignore_index": _ignore_index,
}


def bind(name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, defaults among them."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)
