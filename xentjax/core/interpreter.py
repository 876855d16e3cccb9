"""Carries out a traced JAX function (a jaxpr) on arbitrary-precision numbers.

Floats are object arrays of ``mpf``; integers and booleans are NumPy arrays.  Elementwise operations are those of
:mod:`xentjax.core.arithmetic`; here are calls, reductions, and what moves elements about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.arithmetic import ELEMENTWISE, element, elements, exact

#: Primitives that carry out a function that was traced by itself, and those among them with derivative rules.
CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
RULES = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


def interpret(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, at mpmath's working precision."""
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return exact(atom.val) if hasattr(atom, "val") else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, operands: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        branch = params["branches"][int(operands[0])]
        return interpret(branch.jaxpr, [exact(c) for c in branch.consts], operands[1:])
    inner = params.get("call_jaxpr", params.get("jaxpr"))
    if name in CALLS | RULES and inner is not None:
        consts = [exact(c) for c in inner.consts] if hasattr(inner, "consts") else []
        return interpret(getattr(inner, "jaxpr", inner), consts, operands)
    if name in ELEMENTWISE:
        return [ELEMENTWISE[name](params, *operands)]
    if name in _STRUCTURAL:
        result = _STRUCTURAL[name](equation, *operands)
        return result if isinstance(result, list) else [result]
    raise NotImplementedError(
        f"no exact arithmetic for the JAX primitive {name!r}: known are "
        f"{', '.join(sorted({*ELEMENTWISE, *_STRUCTURAL, *CALLS, *RULES}))}"
    )


def _reduction(ufunc: Any) -> Callable[..., Any]:
    def reduce(equation: Any, a: Any) -> Any:
        axes = tuple(equation.params["axes"])
        if a.dtype == object and ufunc is not np.add:  # comparisons with NaN must give NaN, as in IEEE arithmetic
            moved = np.moveaxis(a, axes, range(len(axes))).reshape(-1, *_shape(equation))
            result = moved[0, ...]
            for i in range(1, len(moved)):
                result = ELEMENTWISE["max" if ufunc is np.maximum else "min"]({}, result, moved[i, ...])
            return result
        return _as_array(ufunc.reduce(a, axis=axes, **({"initial": element(0)} if a.dtype == object else {})), a.dtype)

    return reduce


def _as_array(value: Any, dtype: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(dtype, copy=False)
    array = np.empty((), dtype)
    array[()] = value
    return array


def _shape(equation: Any, output: int = 0) -> tuple[int, ...]:
    return tuple(equation.outvars[output].aval.shape)


def _broadcast(equation: Any, a: Any, *_: Any) -> Any:
    shape = _shape(equation)
    kept = [1] * len(shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], a.shape, strict=True):
        kept[int(axis)] = size
    return np.broadcast_to(a.reshape(kept), shape)


def _convert(equation: Any, a: Any) -> Any:
    dtype = equation.params["new_dtype"]
    if jnp.issubdtype(dtype, jnp.floating):
        return a if a.dtype == object else elements(lambda x: element(int(x)), a.astype(object))
    return elements(lambda x: int(x) if x == x else 0, a).astype(dtype) if a.dtype == object else a.astype(dtype)


def _dot(equation: Any, a: Any, b: Any) -> Any:
    (sum_a, sum_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    free_a = [i for i in range(a.ndim) if i not in (*sum_a, *batch_a)]
    free_b = [i for i in range(b.ndim) if i not in (*sum_b, *batch_b)]
    batch = [a.shape[i] for i in batch_a]
    size = math.prod(a.shape[i] for i in sum_a)
    left = a.transpose(*batch_a, *free_a, *sum_a).reshape(*batch, -1, size)
    right = b.transpose(*batch_b, *sum_b, *free_b).reshape(*batch, size, -1)
    return (left @ right).reshape((*batch, *(a.shape[i] for i in free_a), *(b.shape[i] for i in free_b)))


def _by_position(equation: Any, *operands: Any) -> Any:
    """Any primitive that only moves elements: run it on their positions, then take the elements from there."""
    arrays = [o for o in operands if o.dtype == object]
    if not arrays:
        return np.asarray(equation.primitive.bind(*map(jnp.asarray, operands), **equation.params))
    offsets = np.cumsum([0, *(a.size for a in arrays)])
    places = iter(
        np.arange(s, s + a.size, dtype=np.int32).reshape(a.shape) for s, a in zip(offsets, arrays, strict=False)
    )
    params = dict(equation.params)
    fill = None
    if "fill_value" in params:
        fill, params["fill_value"] = params["fill_value"], -1
    bound = equation.primitive.bind(
        *(jnp.asarray(next(places) if o.dtype == object else o) for o in operands), **params
    )
    pool = np.concatenate([a.reshape(-1) for a in arrays] + [exact(np.array([np.nan if fill is None else fill]))])
    taken = [pool[np.asarray(p)] for p in (bound if equation.primitive.multiple_results else [bound])]
    return [_as_array(t, object) for t in taken]


def _scatter_add(equation: Any, operand: Any, indices: Any, updates: Any) -> Any:
    """Where each update goes is what the gather with the same dimensions would have read."""
    numbers, shape = equation.params["dimension_numbers"], operand.shape
    windowed = [d for d in range(operand.ndim) if d not in numbers.inserted_window_dims]
    windowed = [d for d in windowed if d not in numbers.operand_batching_dims]
    sizes = [1] * operand.ndim
    for d, window in zip(windowed, numbers.update_window_dims, strict=True):
        sizes[d] = updates.shape[window]
    places = jax.lax.gather(
        jnp.arange(operand.size, dtype=jnp.int32).reshape(shape),
        jnp.asarray(indices),
        jax.lax.GatherDimensionNumbers(
            offset_dims=numbers.update_window_dims,
            collapsed_slice_dims=numbers.inserted_window_dims,
            start_index_map=numbers.scatter_dims_to_operand_dims,
            operand_batching_dims=numbers.operand_batching_dims,
            start_indices_batching_dims=numbers.scatter_indices_batching_dims,
        ),
        tuple(sizes),
        mode="fill",
        fill_value=-1,
    )
    result = operand.reshape(-1).copy()
    for place, update in zip(np.asarray(places).reshape(-1), updates.reshape(-1), strict=True):
        if place >= 0:
            result[place] = result[place] + update
    return result.reshape(shape)


def _slice(equation: Any, a: Any) -> Any:
    starts, limits, strides = (equation.params[k] for k in ("start_indices", "limit_indices", "strides"))
    strides = strides or [1] * a.ndim
    return a[tuple(slice(s, e, t) for s, e, t in zip(starts, limits, strides, strict=True))]


def _split(equation: Any, a: Any) -> list[Any]:
    return np.split(a, np.cumsum(equation.params["sizes"])[:-1], axis=equation.params["axis"])


def _cumsum(equation: Any, a: Any) -> Any:
    axis, backwards = equation.params["axis"], equation.params["reverse"]
    turned = np.flip(a, axis) if backwards else a
    result = np.add.accumulate(turned, axis=axis)
    return np.flip(result, axis) if backwards else result


def _arg(function: Any) -> Callable[..., Any]:
    def find(equation: Any, a: Any) -> Any:
        (axis,) = equation.params["axes"]
        return np.asarray(function(a, axis=axis)).astype(equation.params["index_dtype"])

    return find


def _sort(equation: Any, *operands: Any) -> list[Any]:
    """In the order of the first; the others go along."""
    axis, keys = equation.params["dimension"], equation.params["num_keys"]
    if keys != 1:
        raise NotImplementedError(f"no exact arithmetic for the JAX primitive 'sort' with {keys} keys")
    order = np.argsort(operands[0], axis=axis, kind="stable")
    return [np.take_along_axis(a, order, axis) for a in operands]


def _select(equation: Any, which: Any, *cases: Any) -> Any:
    """The chosen elements; what was not chosen may be anything."""
    index = np.broadcast_to(np.asarray(which).astype(int), cases[0].shape)
    result = cases[0].copy()
    for i, case in enumerate(cases[1:], 1):
        result = np.where(index == i, case, result)
    return _as_array(result, cases[0].dtype)


_STRUCTURAL: dict[str, Callable[..., Any]] = {
    "reduce_sum": _reduction(np.add),
    "reduce_max": _reduction(np.maximum),
    "reduce_min": _reduction(np.minimum),
    "reduce_and": lambda q, a: np.logical_and.reduce(a, axis=tuple(q.params["axes"])),
    "reduce_or": lambda q, a: np.logical_or.reduce(a, axis=tuple(q.params["axes"])),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _cumsum,
    "sort": _sort,
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda q, a: a.reshape(_shape(q)),
    "squeeze": lambda q, a: a.reshape(_shape(q)),
    "expand_dims": lambda q, a: a.reshape(_shape(q)),
    "transpose": lambda q, a: a.transpose(q.params["permutation"]),
    "concatenate": lambda q, *a: np.concatenate(a, axis=q.params["dimension"]),
    "stack": lambda q, *a: np.stack(a, axis=q.params["axis"]),
    "slice": _slice,
    "split": _split,
    "iota": lambda q, *_: _convert_like(q, np.indices(_shape(q))[q.params["dimension"]]),
    "convert_element_type": _convert,
    "dot_general": _dot,
    "scatter-add": _scatter_add,
    "stop_gradient": lambda q, a: a,
    "copy": lambda q, a: a,
    "copy_p": lambda q, a: a,
    "reduce_precision": lambda q, a: a,
    "optimization_barrier": lambda q, *a: list(a),
    **dict.fromkeys(("gather", "dynamic_slice", "dynamic_update_slice", "pad", "rev"), _by_position),
}


def _convert_like(equation: Any, a: Any) -> Any:
    dtype = equation.outvars[0].aval.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return elements(lambda x: element(int(x)), a.astype(object))
    return a.astype(dtype)
