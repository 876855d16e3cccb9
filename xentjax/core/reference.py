"""The truth: a formula written in JAX, or its automatic derivative, evaluated with as many digits as it takes.

JAX traces the plain formula (or ``jax.grad``, ``jax.hessian`` of it) into a list of primitive operations; this module
carries that list out on arbitrary-precision numbers from mpmath, with IEEE rules for infinities and NaN.  A new
function so gets a truth for its value and its derivatives from its textbook formula alone, however many digits that
formula loses in floating point.

    >>> import jax.numpy as jnp, numpy as np
    >>> logits = np.array([50.0, 0.0, 0.0])
    >>> value, _ = Formula(lambda z: jnp.log(jnp.sum(jnp.exp(z))) - z[0], logits).truth(logits)
    >>> print(f"{float(value):.14e}")
    3.85749969592784e-22
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core.arithmetic import element, elements, exact, precision
from xentjax.core.interpreter import interpret

#: Digits of the successive attempts; the last serves formulae in which exp(-3000) is added to 1.
DIGITS = (60, 400, 1600)
#: Beyond the smallest number of every float format.
TINY = 1e-330
#: Two attempts agree where they differ by less than this, relatively.
AGREEMENT = 1e-25


class Formula:
    """A function in JAX, traced in float64 for arguments of the given shapes, to evaluate in any precision.

    Args:
      function: any JAX function of arrays (and pytrees of them) made of elementwise arithmetic, reductions, products
        of matrices, indexing and selection; ``jax.grad`` and ``jax.jacfwd`` of such a function too.
      *arguments: arguments of the shapes and dtypes to come; floats are traced as float64.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        with jax.enable_x64(True):
            traced, shapes = jax.make_jaxpr(function, return_shape=True)(*jax.tree.map(_traceable, arguments))
        self._jaxpr = traced
        self._structure = jax.tree.structure(shapes)

    def evaluate(self, *arguments: Any, digits: int = 60) -> Any:
        """The outputs as object arrays of ``mpf``, computed with ``digits`` digits throughout."""
        with precision(digits):
            inputs = [exact(leaf) for leaf in jax.tree.leaves(arguments)]
            outputs = interpret(self._jaxpr.jaxpr, [exact(c) for c in self._jaxpr.consts], inputs)
        return jax.tree.unflatten(self._structure, outputs)

    def truth(self, *arguments: Any, inward: Any = None) -> Any:
        """The outputs, each a pair of float64 arrays ``(high, low)`` whose sum is true to some 30 digits.

        Precision grows until two attempts agree.  A result that is 0, infinite or NaN is not believed before the last
        attempt that could change it: 0 before ``TINY`` can be told from it, the others before 1600 digits.

        Args:
          *arguments: the arguments, exact as they are.
          inward: arrays like ``arguments`` that are 1 or -1 where an argument lies on an edge of the domain and more
            or less than it lies inside (None where nothing does).  The outputs are then limits from inside: where the
            formula writes 0·log 0 = 0 as a case of its own, its automatic derivative there is the case's and means
            nothing.  A limit is ±inf where the attempts grow without end, NaN where there is none.
        """
        return self._refine(lambda n: self.evaluate(*_inside(arguments, inward, n), digits=DIGITS[n]), inward is None)

    def slope(self, arguments: Sequence[Any], tangents: Sequence[Any], inward: Any = None) -> Any:
        """The outputs' derivatives along ``tangents`` by central differences, as pairs like those of :meth:`truth`.

        With a step h = 10^(-digits/4) the error is of the order of h², beyond every float format: finite differences
        without their usual loss, and a derivative that owes nothing to automatic differentiation.
        """

        def attempt(n: int) -> Any:
            digits, start = DIGITS[n], _inside(arguments, inward, n)
            with precision(digits):
                step = element(10) ** (-(digits // 4))
                ahead, back = (self.evaluate(*_moved(start, tangents, s), digits=digits) for s in (step, -step))
                return jax.tree.map(lambda a, b: elements(lambda x, y: (x - y) / (2 * step), a, b), ahead, back)

        return self._refine(attempt, inward is None)

    def _refine(self, attempt: Callable[[int], Any], early: bool) -> Any:
        attempts: list[list[Any]] = []
        for n in range(len(DIGITS)):
            attempts.append(jax.tree.leaves(attempt(n)))
            if early and n and all(_agree(a, b, DIGITS[n]) for a, b in zip(*attempts[-2:], strict=True)):
                break
        last = attempts[-1] if early else [elements(_limit, *leaves) for leaves in zip(*attempts, strict=True)]
        return jax.tree.unflatten(self._structure, [_pair(leaf) for leaf in last])


def _inside(arguments: Any, inward: Any, attempt: int) -> Any:
    """The arguments with those on an edge moved inside, the less the later the attempt.

    Arguments approach at different rates, which change places between attempts: what depends on the path (0/0) so
    settles on nothing.
    """
    if inward is None:
        return arguments
    digits = DIGITS[attempt]
    leaves, structure = jax.tree.flatten(arguments)
    directions = jax.tree.leaves(inward, is_leaf=lambda d: d is None)
    with precision(digits):
        moved = []
        for i, (leaf, direction) in enumerate(zip(leaves, directions, strict=True)):
            rate = 1 + (i + attempt) % 2
            distance = element(10) ** (-(digits // 8) * rate)
            far = element(digits * rate)
            if direction is not None and np.any(direction):
                leaf = elements(
                    lambda x, d, near=distance, far=far: (
                        x if d == 0 else x + d * near if abs(x) < math.inf else d * far
                    ),
                    exact(leaf),
                    np.asarray(direction).astype(int).astype(object),
                )
            moved.append(leaf)
    return jax.tree.unflatten(structure, moved)


def _moved(arguments: Any, tangents: Any, step: Any) -> Any:
    def move(a: Any, t: Any) -> Any:
        return a if t is None else elements(lambda x, d: x + step * d if d != 0 else x, exact(a), exact(t))

    leaves, structure = jax.tree.flatten(arguments)
    moves = jax.tree.leaves(tangents, is_leaf=lambda t: t is None)
    return jax.tree.unflatten(structure, list(map(move, leaves, moves)))


def _traceable(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _agree(old: Any, new: Any, digits: int) -> bool:
    """Whether all elements are settled."""
    if new.dtype != object:
        return True
    enough = 10.0**-digits < TINY
    for a, b in zip(old.reshape(-1), new.reshape(-1), strict=True):
        if not abs(b) < math.inf or not abs(a) < math.inf:
            return False
        if (a == 0 or b == 0) and not enough:
            return False
        if abs(a - b) > AGREEMENT * abs(b) and not (enough and abs(a - b) < TINY):
            return False
    return True


def _limit(first: Any, second: Any, third: Any) -> Any:
    """What three attempts tend to: a number, ±inf where each is half as large again as the one before, or NaN."""
    if abs(second) < 1e-20 and abs(third) < 1e-80 and abs(third) < abs(second) ** 2:
        return element(0)
    if abs(third - second) <= AGREEMENT * abs(third):
        return third
    if 0 < 1.5 * abs(first) < abs(second) and 1.5 * abs(second) < abs(third) and second * third > 0:
        return element(math.copysign(math.inf, third))
    return element(math.nan)


def _pair(leaf: Any) -> tuple[np.ndarray, np.ndarray]:
    if leaf.dtype != object:
        return leaf.astype(np.float64), np.zeros(leaf.shape)
    high = np.array([float(x) for x in leaf.reshape(-1)], np.float64)
    low = [float(x - h) if math.isfinite(h) else 0.0 for x, h in zip(leaf.reshape(-1), map(float, high), strict=True)]
    return high.reshape(leaf.shape), np.array(low, np.float64).reshape(leaf.shape)
