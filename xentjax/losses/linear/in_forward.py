"""The gradient in the forward pass: one scalar loss, examples in chunks, three products over the vocabulary, not four.

The logits of a chunk of examples are there when its losses are, and so is its gradient: with a scalar loss nothing has
to be waited for.  Value and gradients come out together, and the cotangent only scales them.  What is derived further
(a Hessian-vector product, a gradient by example weights) is that of the logits computed again, block by block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from xentjax.core import policy
from xentjax.core.linear_map import vary_like
from xentjax.losses.linear import rule, slopes
from xentjax.losses.linear.plan import Explanation
from xentjax.losses.linear.statistics import State, statistics_alone
from xentjax.losses.linear.vocabulary import Walk, unwritten

#: What has one entry for each example, along its first axis.
_BY_EXAMPLE = ("x", "teacher_x", "labels", "is_class", "is_left_out", "probabilities", "weights", "counted", "kept")

#: Arrays of the walk and numbers of the loss, all by name.
Values = Mapping[str, Any]
#: The loss from ``values`` and the statistics of their rows, a sum over the examples.
Loss = Callable[[Values, State], Any]


def loss_in_forward(
    walk: Walk, heads: tuple[str, ...], loss: Loss, plan: Explanation, names: tuple[str, ...], values: Values
) -> Any:
    """A scalar loss whose gradient is computed as its value is, wherever it is differentiated.

    Args:
      walk: how the vocabulary is walked over.
      heads: the statistics that the loss is made of.
      loss: of values and statistics of any examples, a sum over them.
      plan: how many examples to take at a time, whose logits are stored, and whether dlogits of all are kept.
      names: of the arrays of the walk; all else are numbers of the loss.
      values: arrays and numbers, ``weights`` among them.
    """

    def plain(values: Values) -> Any:
        return loss(values, rule.statistics(walk, {n: values[n] for n in names}, heads, 0))

    @jax.custom_jvp
    def function(values: Values) -> Any:
        return plain(values)

    def first(primals: Any, tangents: Any) -> tuple[Any, Any]:
        (values,), (tangents,) = primals, tangents
        along = {n: t for n, t in tangents.items() if policy.is_float(values[n]) and not isinstance(t, SymbolicZero)}
        if "weights" in along:
            still, moving = ({n: v for n, v in values.items() if (n in along) == moves} for moves in (False, True))
            return jax.jvp(lambda moving: plain({**still, **moving}), (moving,), (along,))
        value, gradients = value_and_gradients(tuple(along), values)
        products = [jnp.vdot(gradients[n].astype(value.dtype), t.astype(value.dtype)) for n, t in along.items()]
        slope = sum(products[1:], products[0])
        return value, slope if walk.axis_name is None else jax.lax.psum(slope, walk.axis_name)

    function.defjvp(first, symbolic_zeros=True)

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
    def value_and_gradients(moving: tuple[str, ...], values: Values) -> tuple[Any, dict[str, Any]]:
        return _in_chunks(walk, heads, loss, plan, names, moving, values)

    @value_and_gradients.defjvp
    def _(moving: tuple[str, ...], primals: Any, tangents: Any) -> tuple[Any, Any]:
        (values,), (tangents,) = primals, tangents

        def again(floats: Values) -> Any:
            everything = {**values, **floats}
            at = {n: everything[n] for n in moving}
            value, gradients = jax.value_and_grad(lambda at: plain({**everything, **at}))(at)
            return value, {n: gradients[n].astype(_unscaled(values[n].dtype)) for n in moving}

        floats = {n: v for n, v in values.items() if policy.is_float(v)}
        along = {n: tangents[n] for n in floats}
        return value_and_gradients(moving, values), jax.jvp(again, (floats,), (along,))[1]

    return function(values)


def _in_chunks(
    walk: Walk,
    heads: tuple[str, ...],
    loss: Loss,
    plan: Explanation,
    names: tuple[str, ...],
    moving: tuple[str, ...],
    values: Values,
) -> tuple[Any, dict[str, Any]]:
    """Value and gradients: those of the examples in their place, all others added up in the dtype of computation."""
    rows = values["x"].shape[0]
    chunks = -(-rows // plan.chunk)
    size = -(-rows // chunks)
    by_example = {n for n in values if n in _BY_EXAMPLE} | {"dlogits"}
    wanted, kind = moving, jnp.dtype(policy.result_dtype((values["x"], values["w"])))
    dtype = policy.compute_dtype(kind)
    if plan.keeps_dlogits and "w" in moving:
        moving = (*(n for n in moving if n not in ("x", "w")), "dlogits")

    def step(i: Any, carry: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        total, found = carry
        # The last chunk begins where it is whole; what it has in common with the one before counts there alone.
        start = jnp.minimum(i * size, rows - size)
        part = {n: jax.lax.dynamic_slice_in_dim(values[n], start, size) for n in values if n in by_example}
        if rows % size:
            is_new = start + jnp.arange(size) >= i * size
            part["kept"] = is_new & part["kept"] if "kept" in part else is_new
            part["weights"] = jnp.where(is_new, part["weights"], 0)
        shared = {n: found[n] for n in moving if n not in by_example and chunks > 1}
        value, gradients = _of_chunk(walk, heads, loss, names, moving, {**values, **part}, shared, to_zeros=chunks == 1)
        for name in set(moving) & by_example:
            new = gradients[name].astype(found[name].dtype)
            if rows % size:
                new = new + jax.lax.dynamic_slice_in_dim(found[name], start, size)
            gradients[name] = jax.lax.dynamic_update_slice_in_dim(found[name], new, start, 0)
        return total + value, gradients

    def zeros(name: str) -> Any:
        if name == "dlogits":
            # On a GPU nothing is written where each row is once.
            return (jnp.zeros if rows % size else unwritten)((rows, walk.width), kind)
        return jnp.zeros(values[name].shape, _unscaled(values[name].dtype) if name in by_example else dtype)

    every = tuple(values.values())
    start = {n: vary_like(zeros(n), *every) for n in moving}
    total = vary_like(jnp.zeros((), dtype), *every, but=walk.axis_name)
    total, found = step(0, (total, start)) if chunks == 1 else jax.lax.fori_loop(0, chunks, step, (total, start))
    if "dlogits" in moving:
        products = slopes.products_of_dlogits(walk, values, found.pop("dlogits"))
        found |= {n: products[n] for n in wanted if n in products}
    return total, {n: found[n].astype(_unscaled(values[n].dtype)) for n in wanted}


def _unscaled(dtype: Any) -> Any:
    """The dtype of a gradient whose factor is still to come: one that float16 has no room for may have it after."""
    return jnp.float32 if dtype == jnp.float16 else dtype


def _of_chunk(
    walk: Walk,
    heads: tuple[str, ...],
    loss: Loss,
    names: tuple[str, ...],
    moving: tuple[str, ...],
    values: Values,
    shared: dict[str, Any],
    *,
    to_zeros: bool,
) -> tuple[Any, dict[str, Any]]:
    """The loss of some examples and its gradients, added to ``shared`` where that has them; ``to_zeros``: it has none,
    and they are rounded at once."""
    arrays = {n: values[n] for n in names}
    found = statistics_alone(walk, arrays, (*heads, "known"))
    known = {**arrays, "known": found.pop("known")}
    floats = {n: v for n, v in found.items() if policy.is_float(v)}
    #: What the loss is made of beside the statistics.
    direct = {n: values[n] for n in moving if n in ("class_weights", *set(moving) - {*names, "dlogits"})}

    def of(floats: State, direct: Values) -> Any:
        return loss({**values, **direct}, {**found, **floats})

    value, (by_statistics, by_numbers) = jax.value_and_grad(of, (0, 1))(floats, direct)
    residuals, tangents, sums = rule.linearized(walk, arrays, found)
    along = jax.eval_shape(tangents, sums)
    (cotangents,) = jax.linear_transpose(tangents, sums)({n: by_statistics[n] for n in along})

    walked = tuple(n for n in moving if n in (*names, "dlogits"))
    start = {n: shared[n] if n in shared else _start(walk, values, n, to_zeros) for n in walked}
    operands = (known, residuals, cotangents, start)
    known, residuals, cotangents, start = jax.tree.map(lambda a: vary_like(a, *jax.tree.leaves(operands)), operands)
    gradients = slopes.add_gradients((walk, walked), (known, residuals), cotangents, start, to_zeros=to_zeros)
    for name, more in by_numbers.items():
        gradients[name] = more + (gradients[name] if name in gradients else shared.get(name, 0))
    return value, gradients


def _start(walk: Walk, values: Values, name: str, to_zeros: bool) -> Any:
    """For the gradient by one array to be added to, or put in."""
    kind = jnp.dtype(policy.result_dtype((values["x"], values["w"])))
    if name == "dlogits":
        return walk.to_fill(jax.ShapeDtypeStruct((values["x"].shape[0], walk.width), kind), values)
    if name in slopes.SUMS or not to_zeros:
        return jnp.zeros(values[name].shape, policy.compute_dtype(kind))
    return walk.to_fill(values[name], values)
