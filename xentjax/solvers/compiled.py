"""What a problem's program is compiled for, and the numbers that it is given.

The driver compiles once for each kind of problem: for its functions, its strings and booleans, and the types of the
dataclasses that it is made of. All other numbers are arguments, so that new ones do not compile again.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import numpy as np


def separate(tree: Any) -> tuple[Hashable, list[Any]]:
    """What a program is compiled for, which is compared by equality, and the numbers in the tree."""
    leaves, structure = jax.tree.flatten(tree)
    is_data = [_is_number(leaf) for leaf in leaves]
    code = tuple(None if data else leaf for leaf, data in zip(leaves, is_data, strict=True))
    static = structure, types_in(structure), code
    return static, [leaf for leaf, data in zip(leaves, is_data, strict=True) if data]


def join(static: Any, data: list[Any]) -> Any:
    """The tree again, of other numbers or of tracers."""
    structure, _, code = static
    numbers = iter(data)
    return jax.tree.unflatten(structure, [next(numbers) if leaf is None else leaf for leaf in code])


def types_in(structure: Any) -> Hashable:
    """The types of the nodes of a pytree's structure.

    JAX takes two registered dataclasses of equal fields for equal structures, and may so run the program that was
    compiled for the other one, as an argument of ``jit`` too. A program that depends on methods needs the types.
    """
    node = structure.node_data()
    return None if node is None else (node[0], *map(types_in, structure.children()))


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float)) and not isinstance(leaf, bool)
