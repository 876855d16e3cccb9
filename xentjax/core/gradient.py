"""The gradient check for any function: a hand-written gradient, or a custom rule, against independent oracles."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import ulp
from xentjax.core.differences import slopes
from xentjax.core.rounding import rounding_error, without_rules

#: Rounding errors are estimated; elements may be off by this many times the estimate.
ESTIMATES = 8
#: Up to so many elements finite differences are taken of every one; beyond, along directions and of the worst.
ELEMENTWISE = 256
#: Finite differences are believed to this relative accuracy where they claim a better one.
DIFFERENCES = 1e-6


class Worst(NamedTuple):
    """The element that is furthest off: the argument's path, its index, and the two numbers."""

    argument: str
    index: tuple[int, ...] | None  # type: ignore[assignment]
    got: Any
    expected: Any


class GradientError(AssertionError):
    """A gradient that the check found wrong; the message is the report."""


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """What :func:`check_gradient` found.

    Attributes:
      passed: whether every element is within its tolerance.
      max_ulp: the deviation of the worst element, in ULP of that element (plus what rounding costs it).
      worst: where it is: argument, index, what it is, what it should be.
      problems: each disagreement in one line; empty where the check passed.
      notes: what could not be compared, and why.
      compared: how many elements were compared with an oracle.
      skipped: how many have no finite derivative to compare with.
    """

    passed: bool
    max_ulp: float
    worst: Worst
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    compared: int
    skipped: int

    def raise_if_failed(self) -> None:
        """Raise ``GradientError`` (an ``AssertionError``) with this report as its message, unless it passed."""
        if not self.passed:
            raise GradientError(str(self))

    def __str__(self) -> str:
        w = self.worst
        place = w.argument if w.index is None else f"{w.argument}[{', '.join(map(str, w.index))}]"
        lines = [
            f"gradient check {'passed' if self.passed else 'FAILED'}: {self.compared} elements compared, "
            f"{self.skipped} without a finite derivative; worst {self.max_ulp:.3g} ULP",
            f"  worst: {place}: got {w.got}, expected {w.expected}",
        ]
        return "\n".join(lines + [f"  wrong: {p}" for p in self.problems] + [f"  note: {n}" for n in self.notes])


def check_gradient(
    fn: Callable[..., Any],
    *args: Any,
    wrt: int | str | Sequence[int | str] | None = None,
    gradient: Callable[..., Any] | None = None,
    seed: int = 0,
    directions: int = 4,
) -> GradientReport:
    r"""Compare a gradient derived by hand with automatic differentiation and with finite differences, elementwise.

    The oracles work in float64: automatic differentiation of ``fn`` (where ``gradient`` is None: of ``fn`` without its
    custom derivative rules, or of the plain formula if ``fn`` is one of this library's), and finite differences.  The
    gradient under test runs in the arguments' dtype and in float64.  An element of true size t may be off by
    4 + \|ln t\| ULP (4 where t > 1) and by eight times the rounding error that the gradient and the oracle make in that
    element, as measured by disturbing each of their operations by its own rounding error.  No other element and no
    size of an array enters the tolerance.

    Args:
      fn: a function of arrays or pytrees of them. Where its value is not a scalar, the gradient is that of the sum of
        its elements (and, where ``gradient`` is None, of sums with random signs).
      *args: the arguments at which to compare; integer and boolean arrays are held constant.
      wrt: positions or names of the arguments; by default every argument that holds floats.
      gradient: a function of the same arguments that returns the gradient with respect to ``wrt``: one array or
        pytree for one argument, a tuple for several. None checks the rule that ``fn`` carries, forward and reverse.
      seed: of the random directions.
      directions: how many random directions to take differences along.

    Returns:
      A report: ``.passed``, ``.max_ulp``, ``.worst`` (argument, index, got, expected), ``.raise_if_failed()``.

    Raises:
      TypeError: where ``wrt`` names no argument, or one without floats, or a complex one.

    Example:
      >>> import jax.numpy as jnp, xentjax as xj
      >>> def loss(w, x, y): return jnp.mean((x @ w - y) ** 2)
      >>> def by_hand(w, x, y): return 2 * (x @ w - y) @ x / len(y)
      >>> w, x, y = jnp.array([1.0, -2.0]), jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0.5, 1.5])
      >>> xj.check_gradient(loss, w, x, y, wrt="w", gradient=by_hand).passed
      True
      >>> print(xj.check_gradient(loss, w, x, y, wrt="w", gradient=lambda *a: -by_hand(*a)).worst.argument)
      w
    """
    return _Check(fn, args, wrt, gradient, seed, directions).report()


class _Check:
    def __init__(self, fn: Any, args: Any, wrt: Any, gradient: Any, seed: int, directions: int):
        self.fn, self.gradient, self.directions = fn, gradient, directions
        self.rng = np.random.default_rng(seed)
        self.names = _parameter_names(fn, len(args))
        self.args = tuple(
            jax.tree.map(functools.partial(_real, name), a) for name, a in zip(self.names, args, strict=True)
        )
        self.chosen = _choose(self.names, self.args, wrt)
        target = self.args[self.chosen[0]] if len(self.chosen) == 1 else tuple(self.args[i] for i in self.chosen)
        paths, self.structure = jax.tree_util.tree_flatten_with_path(target)
        self.moving = [i for i, (_, leaf) in enumerate(paths) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        self.paths = [self._path(paths[i][0]) for i in self.moving]
        self.leaves = [leaf for _, leaf in paths]
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.compared = self.skipped = 0
        self.ratio, self.max_ulp, self.worst = -1.0, 0.0, Worst(self.paths[0], None, None, None)
        record = getattr(fn, "record", None)
        self.plain = fn if gradient is not None else record.oracle if record is not None else without_rules(fn)

    def _path(self, path: Any) -> str:
        if len(self.chosen) == 1:
            return self.names[self.chosen[0]] + jax.tree_util.keystr(path)
        return self.names[self.chosen[path[0].idx]] + jax.tree_util.keystr(path[1:])

    # -- the functions under test, of the list of moving leaves --------------------------------------------------------

    def arguments(self, moving: Sequence[Any], dtype: Any = None) -> tuple[Any, ...]:
        """All arguments with the moving leaves in place; the other float arrays in ``dtype`` as well."""
        leaves = list(self.leaves)
        for i, leaf in zip(self.moving, moving, strict=True):
            leaves[i] = leaf
        target = jax.tree.unflatten(self.structure, leaves)
        full = [_cast(a, dtype) for a in self.args]
        for i, part in zip(self.chosen, (target,) if len(self.chosen) == 1 else target, strict=True):
            full[i] = part
        return tuple(full)

    def total(self, fn: Any, cotangents: Any, dtype: Any) -> Callable[[Any], Any]:
        """The weighted sum of the function's outputs, a scalar function of the moving leaves."""

        def scalar(moving: Any) -> Any:
            outputs = jax.tree.leaves(fn(*self.arguments(moving, dtype)))
            products = [jnp.sum(c.astype(v.dtype) * v) for c, v in zip(cotangents, outputs, strict=True)]
            return sum(products[1:], products[0])

        return scalar

    def under_test(self, cotangents: Any, dtype: Any) -> Callable[[Any], Any]:
        if self.gradient is None:
            return jax.grad(self.total(self.fn, cotangents, dtype))
        gradient = self.gradient

        def by_hand(moving: Any) -> Any:
            got = gradient(*self.arguments(moving, dtype))
            leaves = jax.tree.leaves(tuple(got) if isinstance(got, list) else got, is_leaf=lambda g: g is None)
            return [leaves[i] for i in self.moving]

        return by_hand

    # -- the comparison ------------------------------------------------------------------------------------------------

    def report(self) -> GradientReport:
        native = [self.leaves[i] for i in self.moving]
        if self.gradient is not None and not self._has_the_right_structure(self.gradient(*self.args)):
            return self._finished()
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            wide = [jnp.asarray(np.asarray(leaf, np.float64)) for leaf in native]
            shapes = jax.tree.leaves(jax.eval_shape(self.plain, *self.arguments(wide, np.float64)))
            weights = [[np.ones(s.shape) for s in shapes]]
            if self.gradient is None and any(s.shape for s in shapes):
                weights += [[self.rng.choice([-1.0, 1.0], s.shape) for s in shapes] for _ in range(2)]
            truths = []
            for cotangents in weights:
                automatic = jax.grad(self.total(self.plain, cotangents, np.float64))
                expected = [np.asarray(g, np.float64) for g in automatic(wide)]
                error = rounding_error(automatic, wide)
                got = self.evaluate(self.under_test(cotangents, np.float64), wide, error, 1.0)
                if got is not None:
                    self.along = self.flat(cotangents, wide)
                    errors = [a + b for a, b in zip(error, got[1], strict=True)]
                    self.compare("float64", got[0], expected, errors, np.float64)
                    self.differences(wide, got[0])
                    if self.gradient is None:
                        self.forward(cotangents, wide, got[0], error)
                truths.append((expected, error))
        for cotangents, (expected, error) in zip(weights, truths, strict=True):
            if all(leaf.dtype == np.float64 for leaf in native):
                break
            coarse = float(max(jnp.finfo(leaf.dtype).eps for leaf in native)) / 2.0**-52
            got = self.evaluate(self.under_test(cotangents, None), native, error, coarse)
            if got is not None:
                errors = [a + b for a, b in zip(error, got[1], strict=True)]
                self.compare("", got[0], expected, errors, None)
        if not self.compared and not self.problems:
            self.problems.append("no element has a finite derivative to compare with")
        return self._finished()

    def evaluate(self, function: Any, moving: Any, error: Any, coarse: float) -> Any:
        """The gradient under test and its rounding error: measured, or the oracle's if JAX cannot trace it."""
        got = [np.asarray(g) for g in function(moving)]
        try:
            own = rounding_error(function, moving)
        except (jax.errors.JAXTypeError, TypeError):
            self._note("the gradient is not traceable by JAX: its rounding error is taken to be the oracle's")
            own = [e * coarse for e in error]
        return got, own

    def compare(self, where: str, got: Any, expected: Any, errors: Any, dtype: Any) -> None:
        """Every element against its own tolerance."""
        dtypes = [dtype or self.leaves[i].dtype for i in self.moving]
        start = 0
        for path, leaf, own, true, error in zip(self.paths, dtypes, got, expected, errors, strict=True):
            units = ulp.spacing(true, leaf) + ESTIMATES * error / 4
            limit = ulp.allowed(true) * ulp.spacing(true, leaf) + ESTIMATES * error + 2 * float(jnp.finfo(leaf).tiny)
            off = ulp.deviation(own, true, np.zeros_like(true), leaf)
            known = np.isfinite(true) | (off == 0)
            with np.errstate(invalid="ignore"):
                ratio = np.where(known, off / limit, 0)
            at_kink = self.kinks(ratio, off, start)
            ratio, known = np.where(at_kink, 0, ratio), known & ~at_kink
            self.compared += int(np.sum(known))
            self.skipped += int(np.sum(~known))
            self.take(path, where, ratio, off / units, own, true)
            start += ratio.size

    def kinks(self, ratio: Any, off: Any, start: int) -> np.ndarray:
        """Which of the elements that disagree lie on a kink, where any slope between the two sides' is right."""
        wrong = np.flatnonzero(ratio > 1)
        found = np.zeros(ratio.size, bool)
        if 0 < len(wrong) <= ELEMENTWISE:
            along, flat, noise = self.along
            if flat.size * len(wrong) <= 2**22:
                vectors = np.zeros((len(wrong), flat.size))
                vectors[np.arange(len(wrong)), start + wrong] = 1
                with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
                    _, error, jump = slopes(along, flat, vectors, noise)
                distance = off.reshape(-1)[wrong]
                found[wrong] = (jump >= distance / 4) & (jump > 10 * error)
        return found.reshape(ratio.shape)

    def take(self, path: str, where: str, ratio: Any, units: Any, got: Any, expected: Any) -> None:
        if not ratio.size:
            return
        index = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        place = tuple(int(i) for i in index)
        if ratio[index] > 1:
            count = int(np.sum(ratio > 1))
            precision = f" in {where}" if where else ""
            self.problems.append(
                f"{path}{precision}: {count} of {ratio.size} elements differ, most of all {list(place)}: "
                f"got {got[index]}, expected {expected[index]}"
            )
        if ratio[index] > self.ratio:
            self.ratio, self.worst = float(ratio[index]), Worst(path, place, got[index].item(), float(expected[index]))
        reached = np.where(ratio > 0, units, 0)
        self.max_ulp = max(self.max_ulp, float(np.max(reached, initial=0)))

    def flat(self, cotangents: Any, wide: Any) -> tuple[Callable[[Any], Any], np.ndarray, float]:
        """The scalar function of all moving numbers in one flat array, that array, and the value's rounding error."""
        cuts = np.cumsum([int(leaf.size) for leaf in wide])[:-1]
        total = self.total(self.fn, cotangents, np.float64)

        def along(x: Any) -> Any:
            return total([p.reshape(leaf.shape) for p, leaf in zip(jnp.split(x, cuts), wide, strict=True)])

        flat = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in wide])
        (noise,) = rounding_error(along, jnp.asarray(flat))
        return along, flat, float(noise)

    def differences(self, wide: Any, got: Any) -> None:
        """The gradient under test against finite differences of the function itself."""
        along, flat, noise = self.along
        cuts = np.cumsum([int(leaf.size) for leaf in wide])[:-1]
        slope = np.concatenate([np.asarray(g, np.float64).reshape(-1) for g in got])
        scale = np.where(np.isfinite(flat), np.where(flat == 0, 1.0, np.minimum(np.abs(flat), 1.0)), 0.0)
        usable = np.isfinite(slope) & (scale > 0)
        scale = np.where(usable, scale, 0.0)
        if flat.size <= ELEMENTWISE:
            rows = np.flatnonzero(usable)
            vectors = np.eye(flat.size)[rows] * scale
        else:
            signs = self.rng.choice([-1.0, 1.0], (self.directions, flat.size))
            rows, vectors = np.full(self.directions, -1), signs * scale
        if not len(vectors):
            return
        found, error, jump = slopes(along, flat, vectors, noise)
        error = error + jump
        expected = vectors @ np.where(usable, slope, 0.0)
        size = np.abs(vectors) @ np.abs(np.where(usable, slope, 0.0))
        limit = DIFFERENCES * (size if flat.size > ELEMENTWISE else np.abs(found)) + 10 * error
        off = np.abs(found - expected)
        conclusive = np.isfinite(found) & np.isfinite(error)
        wrong = conclusive & (off > limit)
        if not np.any(conclusive):
            self._note("finite differences are inconclusive at this point")
        if np.any(wrong):
            worst = int(np.argmax(np.where(wrong, off / np.maximum(limit, 5e-324), 0)))
            self.blame(int(rows[worst]), found[worst], expected[worst], vectors[worst], wide, cuts)

    def blame(self, element: int, found: float, expected: float, vector: Any, wide: Any, cuts: Any) -> None:
        if element < 0:
            self.problems.append(f"finite differences along a random direction give {found}, the gradient {expected}")
            self.ratio = max(self.ratio, 2.0)
            return
        leaf = int(np.searchsorted(cuts, element, side="right"))
        start = int(cuts[leaf - 1]) if leaf else 0
        index = tuple(int(i) for i in np.unravel_index(element - start, wide[leaf].shape))
        step = float(vector[element])
        got, true = expected / step, found / step
        self.problems.append(f"{self.paths[leaf]}{list(index)}: finite differences give {true}, the gradient {got}")
        if self.ratio <= 1:
            self.ratio, self.worst = 2.0, Worst(self.paths[leaf], index, got, true)
        self.max_ulp = max(self.max_ulp, abs(got - true) / float(ulp.spacing(true, np.float64)))

    def forward(self, cotangents: Any, wide: Any, got: Any, errors: Any) -> None:
        """The rule in forward mode against the same rule in reverse mode."""
        total = self.total(self.fn, cotangents, np.float64)
        for _ in range(self.directions):
            tangents = [jnp.asarray(self.rng.choice([-1.0, 1.0], leaf.shape)) for leaf in wide]
            try:
                _, moved = jax.jvp(total, (wide,), (tangents,))
            except TypeError:
                self._note("the function has no forward mode (custom_vjp): only reverse mode is checked")
                return
            terms = [np.asarray(g) * np.asarray(t) for g, t in zip(got, tangents, strict=True)]
            size = sum(float(np.sum(np.abs(t))) for t in terms)
            spread = sum(float(np.sum(e)) for e in errors)
            expected = sum(float(np.sum(t)) for t in terms)
            if math.isfinite(size) and abs(float(moved) - expected) > 1e-12 * size + ESTIMATES * spread:
                self.problems.append(f"forward mode gives {float(moved)} along a direction, reverse mode {expected}")
                self.ratio = max(self.ratio, 2.0)
                return

    # -- structure -----------------------------------------------------------------------------------------------------

    def _has_the_right_structure(self, got: Any) -> bool:
        if len(self.chosen) > 1:
            wanted = ", ".join(self.names[i] for i in self.chosen)
            if not isinstance(got, (tuple, list)) or len(got) != len(self.chosen):
                what = f"{len(got)} of them" if isinstance(got, (tuple, list)) else type(got).__name__
                return self._misshapen(wanted, f"a tuple of {len(self.chosen)} gradients ({wanted})", what)
            got = tuple(got)
        found: Any = jax.tree.structure(got, is_leaf=lambda g: g is None)
        if found != self.structure:
            return self._misshapen(self.paths[0], f"the structure {self.structure}", str(found))
        leaves = jax.tree.leaves(got, is_leaf=lambda g: g is None)
        for path, i in zip(self.paths, self.moving, strict=True):
            needed, leaf = self.leaves[i], leaves[i]
            if leaf is None:
                return self._misshapen(path, f"an array of shape {needed.shape}", "None")
            if np.shape(leaf) != needed.shape:
                return self._misshapen(path, f"shape {needed.shape}", f"shape {np.shape(leaf)}")
            dtype = jnp.asarray(leaf).dtype
            if dtype != needed.dtype:
                return self._misshapen(path, f"dtype {needed.dtype}", f"dtype {dtype}")
        return True

    def _misshapen(self, path: str, needed: str, got: str) -> bool:
        self.problems.append(f"{path}: the gradient needs {needed}, got {got}")
        self.ratio, self.max_ulp, self.worst = math.inf, math.inf, Worst(path, None, got, needed)
        return False

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _finished(self) -> GradientReport:
        return GradientReport(
            passed=not self.problems,
            max_ulp=self.max_ulp,
            worst=self.worst,
            problems=tuple(self.problems),
            notes=tuple(self.notes),
            compared=self.compared,
            skipped=self.skipped,
        )


def _parameter_names(fn: Any, count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [plain[i] if i < len(plain) else f"args[{i}]" for i in range(count)]


def _real(name: str, leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"check_gradient: {name} must be real, got dtype {array.dtype}")
    return array


def _cast(tree: Any, dtype: Any) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def _choose(names: list[str], args: tuple[Any, ...], wrt: Any) -> list[int]:
    floats = [i for i, a in enumerate(args) if any(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(a))]
    if wrt is None:
        if not floats:
            raise TypeError(f"check_gradient: none of the arguments {', '.join(names)} holds floats")
        return floats
    chosen = []
    for one in (wrt,) if isinstance(wrt, (int, str)) else wrt:
        position = names.index(one) if isinstance(one, str) and one in names else one
        if isinstance(position, str) or not -len(args) <= position < len(args):
            raise TypeError(f"check_gradient: wrt names {one!r}, but the arguments are {', '.join(names)}")
        position %= len(args)
        if position not in floats:
            raise TypeError(f"check_gradient: wrt names {names[position]!r}, which holds no floats")
        chosen.append(position)
    return chosen
