"""How many products each mode takes at least, what they cost, and the bytes that must move."""

from __future__ import annotations

from benchmarks.linear.problems import Shape

#: Products of N, D and V that a mode takes at least. A derivative along a direction is one product more for each of the
#: two arguments; a Hessian-vector product is that of all three products of a gradient: 1 + 2 for logits and their
#: tangent, 2 for each gradient.
LEAST_PRODUCTS = {"value": 1, "value_and_grad": 3, "jvp": 3, "hvp": 7}


def product_flop(shape: Shape) -> int:
    """FLOP of one product: N·V·D multiplications and additions."""
    return 2 * shape.n * shape.v * shape.d


def least_flop(shape: Shape, mode: str) -> int:
    return LEAST_PRODUCTS[mode] * product_flop(shape)


def least_bytes(shape: Shape, mode: str, itemsize: int) -> int:
    """Arguments read once (with their tangents, where there are any), labels of 4 bytes, gradients written once."""
    arguments = itemsize * (shape.n * shape.d + shape.d * shape.v)
    passes = {"value": 1, "value_and_grad": 2, "jvp": 2, "hvp": 3}[mode]
    return passes * arguments + 4 * shape.n
