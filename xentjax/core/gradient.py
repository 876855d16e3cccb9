"""The check of any function's gradient: written by hand, or a custom rule, against independent oracles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.core import ulp
from xentjax.core.differences import Slopes
from xentjax.core.report import GradientReport, Worst
from xentjax.core.rounding import Rounding, without_rules
from xentjax.core.target import Target

#: Rounding errors are estimated; elements may be off by this many times the estimate.
ESTIMATES = 8
#: Up to so many elements finite differences are taken of every one; beyond, along directions and of the worst.
ELEMENTWISE = 256
#: Finite differences are believed to this relative accuracy where they claim a better one.
DIFFERENCES = 1e-6


def check_gradient(
    fn: Callable[..., Any],
    *args: Any,
    wrt: int | str | Sequence[int | str] | None = None,
    gradient: Callable[..., Any] | None = None,
    order: Literal[1, 2] = 1,
    seed: int = 0,
    directions: int = 4,
) -> GradientReport:
    r"""Compare a gradient derived by hand with automatic differentiation and with finite differences, elementwise.

    The oracles work in float64: automatic differentiation of ``fn`` (where ``gradient`` is None: of ``fn`` without its
    custom derivative rules, or of the plain formula if ``fn`` is one of this library's), and finite differences.  The
    gradient under test runs in the arguments' dtype and in float64.  An element of true size t may be off by
    4 + \|ln t\| ULP (4 where t > 1) and by eight times the rounding error that the gradient and the oracle make in that
    element, as measured by disturbing each of their operations by its own rounding error.  No other element and no
    size of an array enters the tolerance. Where the oracle has NaN or an infinity, so must the gradient under test;
    a report without any finite derivative is not one that passed.

    Args:
      fn: a function of arrays or pytrees of them. Where its value is not a scalar, the gradient is that of the sum of
        its elements (and, where ``gradient`` is None, of sums with random signs).
      *args: the arguments at which to compare; integer and boolean arrays are held constant.
      wrt: positions or names of the arguments; by default every argument that holds floats.
      gradient: a function of the same arguments that returns the gradient with respect to ``wrt``: one array or
        pytree for one argument, a tuple for several. None checks the rule that ``fn`` carries, forward and reverse.
      order: 2 compares the Hessian along a random direction too: JAX's derivative of the gradient under test with that
        of the oracle.
      seed: of the random directions.
      directions: how many random directions to take differences along.

    Returns:
      A report: ``.passed``, ``.max_ulp``, ``.worst`` (argument, index, got, expected), ``.raise_if_failed()``.

    Raises:
      TypeError: where ``wrt`` names no argument, one twice, or one without floats; where an argument or the value is
        complex, or the value has no floats.
      ValueError: for another order.

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
    if not callable(fn):
        raise TypeError(f"check_gradient: fn must be a function, got {type(fn).__name__}")
    if order not in (1, 2):
        raise ValueError(f"check_gradient: order must be 1 or 2, got {order!r}")
    return _Check(fn, Target(fn, args, wrt), gradient, order, seed, directions).report()


class _Check:
    def __init__(self, fn: Any, target: Target, gradient: Any, order: int, seed: int, directions: int):
        self.fn, self.target, self.gradient = fn, target, gradient
        self.order, self.directions = order, directions
        self.rng = np.random.default_rng(seed)
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.compared = self.skipped = 0
        self.ratio, self.max_ulp, self.worst = -1.0, 0.0, Worst(target.paths[0], None, None, None)
        record = getattr(fn, "record", None)
        self.plain = fn if gradient is not None else record.oracle if record is not None else without_rules(fn)

    # -- functions of the moving leaves and of the outputs' weights ----------------------------------------------------

    def total(self, fn: Any, dtype: Any) -> Callable[[Any, Any], Any]:
        """The weighted sum of the function's outputs."""

        def scalar(moving: Any, weights: Any) -> Any:
            outputs = _floats(fn(*self.target.arguments(moving, dtype)))
            products = [jnp.sum(w.astype(v.dtype) * v) for w, v in zip(weights, outputs, strict=True)]
            return sum(products[1:], products[0])

        return scalar

    def under_test(self, dtype: Any) -> Callable[[Any, Any], Any]:
        """The gradient under test: the list of its leaves."""
        if self.gradient is None:
            return jax.grad(self.total(self.fn, dtype))
        gradient = self.gradient
        return lambda moving, weights: self.target.leaves_of(gradient(*self.target.arguments(moving, dtype)))

    # -- the comparison ------------------------------------------------------------------------------------------------

    def report(self) -> GradientReport:
        native = self.target.moving
        if not sum(leaf.size for leaf in native):
            self.problems.append(f"{', '.join(self.target.paths)}: no elements, nothing to compare")
            return self.finished()
        if self.gradient is not None:
            misfit = self.target.misfit(self.gradient(*self.target.args))
            if misfit is not None:
                path, needed, got = misfit
                self.problems.append(f"{path}: the gradient needs {needed}, got {got}")
                self.ratio, self.max_ulp, self.worst = math.inf, math.inf, Worst(path, None, got, needed)
                return self.finished()
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            weights, truths = self.in_float64(native)
        under_test = self.under_test(None)
        try:
            run = Rounding(under_test, native, weights[0])
            under_test = jax.jit(under_test)
        except (jax.errors.JAXTypeError, TypeError):
            run = None
        coarse = float(max(jnp.finfo(leaf.dtype).eps for leaf in native)) / 2.0**-52
        for w, (expected, error) in zip(weights, truths, strict=True):
            self.weights = w
            got = [np.asarray(g) for g in under_test(native, w)]
            own = run(native, w)[1] if run is not None else [e * coarse for e in error]
            self.compare("", got, expected, [a + b for a, b in zip(error, own, strict=True)], None)
        if not self.compared and not self.problems:
            self.problems.append("no element has a finite derivative to compare with")
        return self.finished()

    def in_float64(self, native: Any) -> tuple[list[Any], list[Any]]:
        """Everything that is compared in float64. Returns the outputs' weights, and for each of them the oracle's
        gradient and its rounding error."""
        wide = [jnp.asarray(np.asarray(leaf, np.float64)) for leaf in native]
        value = jax.eval_shape(self.plain, *self.target.arguments(wide, np.float64))
        for shape in jax.tree.leaves(value):
            if jnp.issubdtype(shape.dtype, jnp.complexfloating):
                raise TypeError(f"check_gradient: fn must have a real value, got dtype {shape.dtype}")
        shapes = _floats(value)
        if not shapes:
            got = ", ".join(str(v.dtype) for v in jax.tree.leaves(value)) or "None"
            raise TypeError(f"check_gradient: fn must return floats, got {got}")
        weights = [[np.ones(s.shape) for s in shapes]]
        if self.gradient is None and any(s.shape for s in shapes):
            weights += [[self.rng.choice([-1.0, 1.0], s.shape) for s in shapes] for _ in range(2)]
        oracle = Rounding(jax.value_and_grad(self.total(self.plain, np.float64)), wide, weights[0])
        hand: Any = oracle
        if self.gradient is None:
            hand = Rounding(jax.value_and_grad(self.total(self.fn, np.float64)), wide, weights[0])
        under_test: Any = None
        if self.gradient is not None:
            try:
                under_test = Rounding(self.under_test(np.float64), wide, weights[0])
            except (jax.errors.JAXTypeError, TypeError):
                self.note("the gradient is not traceable by JAX: its rounding error is taken to be the oracle's")
        self.prepare_differences(wide)
        forward = jax.jit(lambda x, t, w: jax.jvp(lambda m: self.total(self.fn, np.float64)(m, w), (x,), (t,))[1])
        truths = []
        for w in weights:
            (_, *expected), (_, *error) = oracle(wide, w)
            truths.append((expected, error))
            (_, *got), (noise, *own) = hand(wide, w)
            if under_test is not None:
                got, own = under_test(wide, w)
            elif self.gradient is not None:
                got, own = [np.asarray(g) for g in self.under_test(np.float64)(wide, w)], error
            self.weights, self.noise = w, float(noise)
            self.compare("float64", got, expected, [a + b for a, b in zip(error, own, strict=True)], np.float64)
            self.differences(got)
            if self.gradient is None:
                self.forward(forward, wide, w, got, error)
        if self.order == 2:
            self.second_order(wide, weights[-1])
        return weights, truths

    def compare(self, where: str, got: Any, expected: Any, errors: Any, dtype: Any, kinks: bool = True) -> None:
        """Every element against its own tolerance; at kinks of the function against the slopes to both sides."""
        start = 0
        for path, moving, own, true, error in zip(
            self.target.paths, self.target.moving, got, expected, errors, strict=True
        ):
            leaf = dtype or moving.dtype
            units = ulp.spacing(true, leaf) + ESTIMATES * error / 4
            limit = ulp.allowed(true) * ulp.spacing(true, leaf) + ESTIMATES * error + 2 * float(jnp.finfo(leaf).tiny)
            off = ulp.deviation(own, true, np.zeros_like(true), leaf)
            # By an argument that is infinite itself a formula may have no derivative; elsewhere NaN and infinities
            # are to be the same.
            known = np.isfinite(true)
            undefined = np.isnan(true) & ~np.isfinite(np.asarray(moving, np.float64)) if kinks else ~known
            with np.errstate(invalid="ignore"):
                ratio = np.where(undefined, 0, off / limit)
            at_kink = kinks & self.kinks(ratio, np.asarray(own, np.float64), limit, start)
            ratio, known = np.where(at_kink, 0, ratio), known & np.logical_not(at_kink)
            self.compared += int(np.sum(known))
            self.skipped += known.size - int(np.sum(known))
            with np.errstate(over="ignore"):
                self.take(path, where, ratio, off / units, own, true)
            start += ratio.size

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

    # -- finite differences --------------------------------------------------------------------------------------------

    def prepare_differences(self, wide: Any) -> None:
        """The function of all moving numbers in one flat array."""
        self.cuts = np.cumsum([int(leaf.size) for leaf in wide])[:-1]
        self.flat = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in wide])
        total = self.total(self.fn, np.float64)

        def along(x: Any, weights: Any) -> Any:
            parts = jnp.split(x, self.cuts)
            return total([p.reshape(leaf.shape) for p, leaf in zip(parts, wide, strict=True)], weights)

        self.slopes = Slopes(along)

    def kinks(self, ratio: Any, got: Any, limit: Any, start: int) -> np.ndarray:
        """Which of the elements that disagree lie on a kink and between the slopes to its two sides, all of which are
        right."""
        wrong = np.flatnonzero(ratio > 1)
        found = np.zeros(ratio.size, bool)
        if 0 < len(wrong) <= ELEMENTWISE and self.flat.size * len(wrong) <= 2**22:
            vectors = np.zeros((len(wrong), self.flat.size))
            vectors[np.arange(len(wrong)), start + wrong] = 1
            with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
                middle, error, jump = self.slopes(self.flat, vectors, self.noise, self.weights)
            with np.errstate(invalid="ignore"):
                beyond = np.abs(got.reshape(-1)[wrong] - middle) - jump
            found[wrong] = (jump > 10 * error) & (beyond <= limit.reshape(-1)[wrong] + 10 * error)
        return found.reshape(ratio.shape)

    def differences(self, got: Any) -> None:
        """The gradient under test against finite differences of the function itself."""
        flat = self.flat
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
        found, error, jump = self.slopes(flat, vectors, self.noise, self.weights)
        error = error + jump
        expected = vectors @ np.where(usable, slope, 0.0)
        size = np.abs(vectors) @ np.abs(np.where(usable, slope, 0.0))
        limit = DIFFERENCES * (size if flat.size > ELEMENTWISE else np.abs(found)) + 10 * error
        off = np.abs(found - expected)
        conclusive = np.isfinite(found) & np.isfinite(error)
        wrong = conclusive & (off > limit)
        if not np.any(conclusive):
            self.note("finite differences are inconclusive at this point")
        if np.any(wrong):
            worst = int(np.argmax(np.where(wrong, off / np.maximum(limit, 5e-324), 0)))
            self.blame(int(rows[worst]), found[worst], expected[worst], vectors[worst])

    def blame(self, element: int, found: float, expected: float, vector: Any) -> None:
        if element < 0:
            self.problems.append(f"finite differences along a random direction give {found}, the gradient {expected}")
            self.ratio = max(self.ratio, 2.0)
            return
        leaf = int(np.searchsorted(self.cuts, element, side="right"))
        start, path = int(self.cuts[leaf - 1]) if leaf else 0, self.target.paths[leaf]
        index = tuple(int(i) for i in np.unravel_index(element - start, self.target.moving[leaf].shape))
        step = float(vector[element])
        got, true = expected / step, found / step
        self.problems.append(f"{path}{list(index)}: finite differences give {true}, the gradient {got}")
        if self.ratio <= 1:
            self.ratio, self.worst = 2.0, Worst(path, index, got, true)
        with np.errstate(over="ignore"):
            self.max_ulp = max(self.max_ulp, float(abs(got - true) / ulp.spacing(true, np.float64)))

    # -- further modes and orders --------------------------------------------------------------------------------------

    def forward(self, run: Any, wide: Any, weights: Any, got: Any, errors: Any) -> None:
        """The rule in forward mode against the same rule in reverse mode."""
        for _ in range(self.directions):
            tangents = [jnp.asarray(self.rng.choice([-1.0, 1.0], leaf.shape)) for leaf in wide]
            try:
                moved = run(wide, tangents, weights)
            except TypeError:
                self.note("the function has no forward mode (custom_vjp): only reverse mode is checked")
                return
            terms = [np.asarray(g) * np.asarray(t) for g, t in zip(got, tangents, strict=True)]
            size = sum(float(np.sum(np.abs(t))) for t in terms)
            spread = sum(float(np.sum(e)) for e in errors)
            expected = sum(float(np.sum(t)) for t in terms)
            if math.isfinite(size) and abs(float(moved) - expected) > 1e-12 * size + ESTIMATES * spread:
                self.problems.append(f"forward mode gives {float(moved)} along a direction, reverse mode {expected}")
                self.ratio = max(self.ratio, 2.0)
                return

    def second_order(self, wide: Any, weights: Any) -> None:
        """The Hessian along a random direction: how the gradient's product with the direction moves."""
        tangents = [jnp.asarray(self.rng.choice([-1.0, 1.0], leaf.shape)) for leaf in wide]

        def along(gradient: Any) -> Rounding:
            def slope(moving: Any) -> Any:
                found = gradient(moving, weights)
                return sum(jnp.sum(g * t) for g, t in zip(found, tangents, strict=True))

            return Rounding(jax.grad(slope), wide)

        expected, error = along(jax.grad(self.total(self.plain, np.float64)))(wide)
        try:
            got, own = along(self.under_test(np.float64))(wide)
        except (jax.errors.JAXTypeError, TypeError):
            self.note("the gradient is not differentiable by JAX: second derivatives are not checked")
            return
        errors = [a + b for a, b in zip(error, own, strict=True)]
        self.compare("the Hessian along a direction", got, expected, errors, np.float64, kinks=False)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def finished(self) -> GradientReport:
        return GradientReport(
            passed=not self.problems,
            max_ulp=self.max_ulp,
            worst=self.worst,
            problems=tuple(self.problems),
            notes=tuple(self.notes),
            compared=self.compared,
            skipped=self.skipped,
        )


def _floats(value: Any) -> list[Any]:
    """The leaves of a function's value that have derivatives."""
    return [leaf for leaf in jax.tree.leaves(value) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
