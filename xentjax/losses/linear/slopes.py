r"""The derivative of the statistics of rows of logits, as a linear function and its transpose, block by block.

For logits u = shape(x w + b) and their tangents du, with p = softmax(u), D = Σ p (m - u) and columns y_k (labels):

    mean      Σ_{j≠e} p_j du_j      e: the label with more than half of the probability, if there is one
    at        du_{y_k}
    depth     Σ_j p_j (m - u_j - D - 1) du_j
    uniform   Σ_j c_j du_j
    weights   Σ_j dc_j (-log p_j)
    teacher   Σ_j t_j c_j du_j
    level     Σ_j t_j da_j          a: the teacher's logits
    taught    Σ_j t_j (c_j (-log p_j) - Q) da_j + Σ_j t_j dc_j (-log p_j)
    mass      Σ_j t_j (c_j - A) da_j + Σ_j t_j dc_j

with Q = Σ t c (-log p) and A = Σ t c.  :mod:`xentjax.losses.linear.rule` makes the statistics' tangents of these.
Leaving e out of the mean is what keeps the digits of a confident prediction: its tangent is mean - (1 - p_e) du_e.

The transpose has one matrix G for each block, dlogits, whatever the number of outputs: G wᵀ goes to x and xᵀ G to w.
It is computed in float32 and rounded to the inputs' 16-bit type just before these products.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from xentjax.core import policy
from xentjax.core.linear_map import vary_like
from xentjax.logit_rows import finite, huge
from xentjax.losses.linear.kernels import devices_with
from xentjax.losses.linear.statistics import COMPARED, at_labels, compared_with, teacher_probabilities
from xentjax.losses.linear.vocabulary import FEW_COLUMNS, SHAPERS, Arrays, Block, Walk, rounded_product, shapers, zeros

#: How the vocabulary is walked over, and which arrays move.
Config = tuple[Walk, tuple[str, ...]]
#: What the sums need of the statistics that have been found, by name.
Residuals = Mapping[str, Any]
Constants = tuple[Arrays, Residuals]

#: Whose logits there are: the student's, and the teacher's.
_SOURCES = ("", "teacher_")
#: Whose gradients add up over the blocks, in the dtype of computation: arrays with a row for each example, and numbers.
#: Columns of w are put in their place once.
SUMS = ("x", "teacher_x", *SHAPERS)


def forward(config: Config, constants: Constants, moving: Arrays) -> dict[str, Any]:
    """The linear function: sums over this device's columns, by name, from the tangents of the arrays that move."""
    (walk, _), (arrays, residuals) = config, constants

    def step(block: Block, sums: dict[str, Any]) -> dict[str, Any]:
        moved = {n: moving[n] for n in moving if n in SHAPERS}
        for of in _SOURCES:
            parts = []
            if f"{of}x" in moving:
                parts.append(walk.products(moving[f"{of}x"], walk.columns_of(arrays[f"{of}w"], block)))
            if f"{of}w" in moving:
                parts.append(walk.products(arrays[f"{of}x"], walk.columns_of(moving[f"{of}w"], block)))
            if f"{of}bias" in moving:
                parts.append(jnp.broadcast_to(walk.entries_of(moving[f"{of}bias"], block), _shape(arrays, walk)))
            if parts:
                moved[f"{of}z"] = sum(parts[1:], parts[0])
        if "class_weights" in moving:
            moved["class_weights"] = walk.entries_of(moving["class_weights"], block)
        return jax.tree.map(jnp.add, sums, _Terms(walk, arrays, residuals, block).sums(moved))

    start = {name: zeros(shape, arrays) for name, shape in sums_of(arrays, residuals).items()}
    return walk.over(arrays, step, start)


def backward(config: Config, constants: Constants, cotangents: dict[str, Any]) -> Arrays:
    """The transpose: from cotangents of the sums to those of the arrays that move."""
    (walk, names), (arrays, _) = config, constants
    start = {n: zeros(arrays[n].shape, arrays) if n in SUMS else walk.to_fill(arrays[n], arrays) for n in names}
    found = add_gradients(config, constants, cotangents, start, to_zeros=True)
    return {n: found[n].astype(arrays[n].dtype) for n in names}


def add_gradients(
    config: Config, constants: Constants, cotangents: dict[str, Any], start: Arrays, *, to_zeros: bool
) -> dict[str, Any]:
    """The cotangents of the arrays that move, added to ``start``; ``to_zeros`` says that those of the vocabulary are
    zeros there. Among what moves may be ``"dlogits"``, the products x @ w as such: their cotangent ``[N, V]``, rounded
    as for the products with w and x."""
    (walk, names), (arrays, residuals) = config, constants
    transposed = {of: _transposed(walk, arrays[f"{of}x"]) for of in _SOURCES if f"{of}w" in names}
    scale = _scale(arrays["x"].dtype, cotangents)

    # Logits that are stored are not computed again.
    by_kernel = "cuda" in devices_with(walk, arrays) and "known" not in arrays
    scaled = cotangents if scale is None else jax.tree.map(lambda c: c / scale, cotangents)

    def narrow(g: Any, of: str) -> Any:
        dtype = policy.result_dtype((arrays[f"{of}x"], arrays[f"{of}w"]))
        return (g if scale is None else g / scale).astype(dtype)

    def wide(product: Any) -> Any:
        return product if scale is None else product * scale

    def step(block: Block, found: dict[str, Any]) -> dict[str, Any]:
        new = dict(found)
        g = {} if by_kernel else _cotangents(walk, arrays, residuals, block, names, cotangents)
        for of in _SOURCES:
            if by_kernel and not of:
                narrowed = _by_kernel(walk, arrays, residuals, block, scaled)
            elif {f"{of}x", f"{of}w", f"{of}dlogits"} & set(names):
                narrowed = narrow(g[f"{of}z"], of)
            if f"{of}dlogits" in names:
                place = dataclasses.replace(walk, layout="dv").add_columns
                new[f"{of}dlogits"] = place(found[f"{of}dlogits"], narrowed, block, to_zeros=True)
            if f"{of}x" in names:
                back = walk.back_to_x(narrowed, walk.columns_of(arrays[f"{of}w"], block))
                new[f"{of}x"] = found[f"{of}x"] + wide(back)
            if f"{of}w" in names:
                into = found[f"{of}w"].dtype if to_zeros and walk.is_even and scale is None else None
                back = wide(walk.back_to_w(transposed[of], narrowed, into))
                new[f"{of}w"] = walk.add_columns(found[f"{of}w"], back, block, to_zeros=to_zeros)
            if f"{of}bias" in names:
                part = jnp.sum(g[f"{of}z"], axis=0)
                new[f"{of}bias"] = walk.add_entries(found[f"{of}bias"], part, block, to_zeros=to_zeros)
        if "class_weights" in names:
            part = block.where_fresh(g["class_weights"], 0)
            new["class_weights"] = walk.add_entries(found["class_weights"], part, block, to_zeros=to_zeros)
        new |= {n: found[n] + g[n] for n in names if n in SHAPERS}
        return new

    return walk.over(arrays, step, dict(start))


def _cotangents(
    walk: Walk, arrays: Arrays, residuals: Residuals, block: Block, names: tuple[str, ...], cotangents: Any
) -> dict[str, Any]:
    """Those of the products z of a block, of the numbers that shape logits, and of the block's class weights."""
    moved = {n: arrays[n] for n in names if n in SHAPERS}
    for of in _SOURCES:
        if {f"{of}x", f"{of}w", f"{of}bias", f"{of}dlogits"} & set(names):
            moved[f"{of}z"] = zeros(_shape(arrays, walk), arrays)
    if "class_weights" in names:
        moved["class_weights"] = walk.entries_of(arrays["class_weights"], block)
    (g,) = jax.linear_transpose(_Terms(walk, arrays, residuals, block).sums, moved)(cotangents)
    return dict(g)


def _dlogits(walk: Walk, arrays: Arrays, residuals: Residuals, block: Block, cotangents: Any) -> Any:
    """The cotangents of the products of a block, rounded as for the products with w and x."""
    return _cotangents(walk, arrays, residuals, block, ("x",), cotangents)["z"].astype(arrays["x"].dtype)


def _by_kernel(walk: Walk, arrays: Arrays, residuals: Residuals, block: Block, cotangents: Any) -> Any:
    """The same by a kernel on a GPU. The derivative is XLA's everywhere."""
    from xentjax.losses.linear import gpu_kernels

    kernel, plainly = (functools.partial(f, walk) for f in (gpu_kernels.cotangents_of_block, _dlogits))
    operands = arrays, residuals, block, cotangents

    @jax.custom_jvp
    def chosen(operands: Any) -> Any:
        return jax.lax.platform_dependent(*operands, cuda=kernel, default=plainly)

    def rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        values, tree = jax.tree.flatten(primals[0])
        along = jax.tree.leaves(tangents[0], is_leaf=lambda t: isinstance(t, SymbolicZero))
        moving = [i for i, t in enumerate(along) if policy.is_float(values[i]) and not isinstance(t, SymbolicZero)]

        def of_moving(*moved: Any) -> Any:
            every = {**dict(enumerate(values)), **dict(zip(moving, moved, strict=True))}
            return plainly(*jax.tree.unflatten(tree, every.values()))

        return chosen(primals[0]), jax.jvp(of_moving, [values[i] for i in moving], [along[i] for i in moving])[1]

    chosen.defjvp(rule, symbolic_zeros=True)
    return chosen(operands)


def products_of_dlogits(walk: Walk, arrays: Arrays, dlogits: Any) -> dict[str, Any]:
    """The gradients by x and w, where the dlogits ``[N, V]`` of all examples are stored, rounded to their dtypes."""
    x, w = (vary_like(arrays[n], dlogits) for n in ("x", "w"))
    transposed = _transposed(walk, x)

    def at_once(block: Block, found: None) -> dict[str, Any]:
        by_x = rounded_product(dlogits, walk.columns_of(w, block), 1, walk.axis, x.dtype)
        return {"x": by_x, "w": walk.back_to_w(transposed, dlogits, w.dtype)}

    if walk.blocks == 1:
        return walk.over(arrays, at_once, None)

    def step(block: Block, found: dict[str, Any]) -> dict[str, Any]:
        g = dataclasses.replace(walk, layout="dv").columns_of(dlogits, block)
        g = block.where_fresh(g, 0)
        by_x = found["x"] + walk.back_to_x(g, walk.columns_of(w, block))
        part = walk.back_to_w(transposed, g, w.dtype if walk.is_even else None)
        by_w = walk.add_columns(found["w"], part, block, to_zeros=True)
        return {"x": by_x, "w": by_w}

    start = {"x": zeros(x.shape, {"x": x}), "w": walk.to_fill(w, arrays)}
    return walk.over(arrays, step, start)


def _transposed(walk: Walk, x: Any) -> Any:
    """Stored so, as it is read: XLA:CPU's products of many columns are faster by a tenth then."""
    return x.T if walk.block < FEW_COLUMNS else jax.lax.optimization_barrier(x.T)


def _shape(arrays: Arrays, walk: Walk) -> tuple[int, int]:
    return arrays["x"].shape[0], walk.block


def sums_of(arrays: Arrays, residuals: Residuals) -> dict[str, tuple[int, ...]]:
    """The names of the sums, and their shapes."""
    n = arrays["x"].shape[:1]
    found = {"mean": n}
    if "columns" in residuals:
        found["at"] = residuals["columns"].shape
    if "depth" in residuals:
        found["depth"] = n
    if "uniform" in residuals:
        found |= {"uniform": n, "weights": n}
    if "teacher" in residuals:
        found |= {"teacher": n, "level": n, "taught": n, "mass": n}
    return found


def _scale(dtype: Any, cotangents: dict[str, Any]) -> Any:
    """A power of two that float16 gradients are measured in, as those of a mean over many examples would underflow; not
    by examples whose gradients are NaN."""
    if dtype != jnp.float16:
        return None
    sizes = [jnp.where(jnp.isfinite(c), jnp.abs(c), 0) for c in jax.tree.leaves(jax.lax.stop_gradient(cotangents))]
    largest = jnp.max(jnp.stack([jnp.max(size, initial=0) for size in sizes]))
    return jnp.where(largest > 0, jnp.exp2(jnp.ceil(jnp.log2(largest))), 1)


@jax.custom_jvp
def _fall(logits: Any, maximum: Any) -> Any:
    """u - m, where one +inf is the limit of a large logit; at least the most negative number, so that 0 times it is 0.
    The maximum is a constant to derivatives."""
    return jnp.maximum(jnp.minimum(logits - finite(maximum), 0), -huge(logits.dtype))


@_fall.defjvp
def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _fall(*primals), tangents[0]


class _Terms:
    """What the sums of a block are made of."""

    def __init__(self, walk: Walk, arrays: Arrays, residuals: Residuals, block: Block):
        if "is_lost" in residuals:
            arrays = {**arrays, "is_lost": residuals["is_lost"]}
        self.walk, self.arrays, self.residuals, self.block = walk, arrays, residuals, block
        self.z = walk.with_bias(arrays, block, walk.products_of(arrays, block))
        self.logits = walk.shaping(arrays, block)(self.z, shapers(arrays))
        self.dtype = self.logits.dtype
        self.classes = block.first + jnp.arange(walk.block, dtype=jnp.int32)[None]
        fall, log_total = _fall(self.logits, residuals["maximum"][:, None]), residuals["log_total"][:, None]
        self.p = jnp.exp(fall - log_total)
        self.depth = -fall
        self.surprise = log_total - fall

    def sums(self, moved: dict[str, Any]) -> dict[str, Any]:
        """Linear in ``moved``: tangents of the products z, of the teacher's, of the numbers that shape logits, and of
        the class weights in this block."""
        residuals, zero = self.residuals, zeros((), self.arrays)
        shapes = sums_of(self.arrays, residuals)
        found = dict.fromkeys(shapes, zero)
        du = self.tangent(moved, "", self.z)
        if du is not None:
            found["mean"] = jnp.sum(self.weights_of_mean() * du, axis=1)
            if "columns" in residuals:
                found["at"] = self.at(du)
            if "depth" in residuals:
                found["depth"] = jnp.sum(self.p * (self.depth - residuals["depth"][:, None] - 1) * du, axis=1)
            if "uniform" in residuals:
                found["uniform"] = jnp.sum(self.class_weights * du, axis=1)
            if "teacher" in residuals:
                found["teacher"] = jnp.sum(self.t * self.class_weights * du, axis=1)
        dc = moved.get("class_weights")
        if dc is not None and "uniform" in residuals:
            found["weights"] = jnp.sum(self.surprise * dc[None], axis=1)
        if "teacher" in residuals:
            if dc is not None:
                found["taught"] += jnp.sum(self.t * self.surprise * dc[None], axis=1)
                found["mass"] += jnp.sum(self.t * dc[None], axis=1)
            da = self.tangent(moved, "teacher_", None)
            if da is not None:
                value, mass = (residuals[n][:, None] for n in ("teacher", "teacher_mass"))
                found["level"] = jnp.sum(self.t * da, axis=1)
                # At most the largest number, so that a probability of 0 times it is 0.
                surprise = jnp.clip(self.class_weights * self.surprise, -huge(self.dtype), huge(self.dtype))
                found["taught"] += jnp.sum(self.t * (surprise - value) * da, axis=1)
                found["mass"] += jnp.sum(self.t * (self.class_weights - mass) * da, axis=1)
        return {name: jnp.broadcast_to(value, shapes[name]) for name, value in found.items()}

    def tangent(self, moved: dict[str, Any], of: str, z: Any) -> Any:
        """That of the logits; None where nothing of theirs moves."""
        along = {n: moved[n] for n in (f"{of}softcap", "temperature") if n in moved}
        if f"{of}z" not in moved and not along:
            return None
        if z is None:
            z = self.walk.with_bias(self.arrays, self.block, self.walk.products_of(self.arrays, self.block, of), of)
        numbers = shapers(self.arrays, of)
        dz = moved.get(f"{of}z", jnp.zeros_like(z))
        still = {n: jnp.zeros_like(v) for n, v in numbers.items()}
        return jax.jvp(self.walk.shaping(self.arrays, self.block, of), (z, numbers), (dz, {**still, **along}))[1]

    def weights_of_mean(self) -> Any:
        if "columns" not in self.residuals:
            return self.p
        return jnp.where(self.classes == self.residuals["dominant"][:, None], 0, self.p)

    def at(self, du: Any) -> Any:
        """The entries at the labels, 0 for those in other blocks."""
        labels = self.residuals["columns"]
        return (compared_with if labels.shape[1] <= COMPARED else at_labels)(labels, self.block, du)

    @property
    def t(self) -> Any:
        return teacher_probabilities(self.walk, {**self.arrays, **self.residuals}, self.block)

    @property
    def class_weights(self) -> Any:
        """Those of the block's columns, 1 for each where there are none; 0 for what is not fresh."""
        if "class_weights" in self.arrays:
            return self.walk.entries_of(self.arrays["class_weights"], self.block)[None]
        return self.block.where_fresh(jnp.ones((1, self.walk.block), self.dtype), 0)
