"""The arguments of a function whose gradient is checked: which numbers move, and what a gradient looks like."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import policy

_NAME = "check_gradient"


class Target:
    """Arguments, pytrees of arrays, of which the floats in the chosen ones move; everything else is constant.

    Attributes:
      args: the arguments as arrays.
      names: the parameters' names.
      chosen: the positions of the arguments to differentiate by.
      paths: for each leaf that moves what it is called.
      moving: the leaves that move.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], wrt: Any):
        self.names = _parameter_names(function, len(args))
        self.args = tuple(_as_arrays(name, a) for name, a in zip(self.names, args, strict=True))
        self.chosen = _choose(self.names, self.args, wrt)
        chosen = [self.args[i] for i in self.chosen]
        found, self.structure = jax.tree_util.tree_flatten_with_path(chosen[0] if len(chosen) == 1 else tuple(chosen))
        self._leaves = [leaf for _, leaf in found]
        self._places = [i for i, leaf in enumerate(self._leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        self.paths = [self._path(found[i][0]) for i in self._places]
        self.moving = [self._leaves[i] for i in self._places]

    def _path(self, path: Any) -> str:
        if len(self.chosen) == 1:
            return self.names[self.chosen[0]] + jax.tree_util.keystr(path)
        return self.names[self.chosen[path[0].idx]] + jax.tree_util.keystr(path[1:])

    def arguments(self, moving: Sequence[Any], dtype: Any = None) -> tuple[Any, ...]:
        """All arguments with the moving leaves in place; the other float arrays in ``dtype`` as well."""
        leaves = list(self._leaves)
        for i, leaf in zip(self._places, moving, strict=True):
            leaves[i] = leaf
        target = jax.tree.unflatten(self.structure, leaves)
        full = [_cast(a, dtype) for a in self.args]
        for i, part in zip(self.chosen, (target,) if len(self.chosen) == 1 else target, strict=True):
            full[i] = part
        return tuple(full)

    def leaves_of(self, gradient: Any) -> list[Any]:
        """The leaves of a gradient that belong to those that move."""
        found = jax.tree.leaves(tuple(gradient) if isinstance(gradient, list) else gradient, is_leaf=_is_none)
        return [found[i] for i in self._places]

    def misfit(self, gradient: Any) -> tuple[str, str, str] | None:
        """None where a gradient has the structure, the shapes and the dtypes of the arguments; otherwise the path of
        what does not fit, what is needed there and what it is."""
        if len(self.chosen) > 1:
            wanted = ", ".join(self.names[i] for i in self.chosen)
            if not isinstance(gradient, (tuple, list)) or len(gradient) != len(self.chosen):
                is_sequence = isinstance(gradient, (tuple, list))
                what = f"{len(gradient)} of them" if is_sequence else type(gradient).__name__
                return wanted, f"a tuple of {len(self.chosen)} gradients ({wanted})", what
            gradient = tuple(gradient)
        found: Any = jax.tree.structure(gradient, is_leaf=_is_none)
        if found != self.structure:
            return self.paths[0], f"the structure {self.structure}", str(found)
        for path, needed, leaf in zip(self.paths, self.moving, self.leaves_of(gradient), strict=True):
            if leaf is None:
                return path, f"an array of shape {needed.shape}", "None"
            if np.shape(leaf) != needed.shape:
                return path, f"shape {needed.shape}", f"shape {np.shape(leaf)}"
            dtype = jnp.asarray(leaf).dtype
            if dtype != needed.dtype:
                return path, f"dtype {needed.dtype}", f"dtype {dtype}"
        return None


def _is_none(node: Any) -> bool:
    return node is None


def _parameter_names(function: Any, count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [plain[i] if i < len(plain) else f"args[{i}]" for i in range(count)]


def _as_arrays(name: str, argument: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: policy.as_array(_NAME, name + jax.tree_util.keystr(path), leaf), argument
    )


def _cast(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _choose(names: list[str], args: tuple[Any, ...], wrt: Any) -> list[int]:
    floats = [i for i, a in enumerate(args) if any(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(a))]
    if wrt is None:
        if not floats:
            raise TypeError(f"{_NAME}: none of the arguments {', '.join(names)} holds floats")
        return floats
    chosen = []
    several = isinstance(wrt, Sequence) and not isinstance(wrt, str)
    for one in wrt if several else (wrt,):
        position = names.index(one) if isinstance(one, str) and one in names else one
        if not isinstance(position, (int, np.integer)) or not -len(args) <= position < len(args):
            raise TypeError(f"{_NAME}: wrt names {one!r}, but the arguments are {', '.join(names)}")
        position %= len(args)
        if position not in floats:
            raise TypeError(f"{_NAME}: wrt names {names[position]!r}, which holds no floats")
        if position in chosen:
            raise TypeError(f"{_NAME}: wrt names {names[position]!r} twice")
        chosen.append(int(position))
    if not chosen:
        raise TypeError(f"{_NAME}: wrt names no argument; there are {', '.join(names)}")
    return chosen
