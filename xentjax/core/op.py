"""The record: a formula, a stable value and derivatives derived by hand, and the rule that JAX differentiates by.

A record is written as one block::

    @op(wrt=("logit",), domain=Domain(logit=Logit("B")), source="...")
    def binary_entropy_from_logits(logit, *, base=None): ...   # the textbook formula: definition and oracle

    @binary_entropy_from_logits.value
    def _(logit): return value, saved                          # what runs: stable

    @binary_entropy_from_logits.partial("logit")
    def _(saved, logit): return gradient                       # by hand, from what the value saved

    @binary_entropy_from_logits.second                         # only where differentiating the two would lose digits
    def _(tangents, active, logit): return (tangent_of_gradient,)

Its derivative rule is one ``custom_jvp`` for value *and* gradients together: the value's tangent is the contraction
of the hand-derived gradients with the tangents, the gradients' tangent is the hand-derived second derivative (or, by
default, JAX's derivative of the code that computes the gradients).  Being linear in the tangents it serves forward
mode, reverse mode and every order above.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xentjax.core import policy
from xentjax.core.domains import Domain

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
Options = tuple[tuple[str, Any], ...]

#: Keywords that mean the same in every record; the record's own functions never see them.
SHARED = ("where", "base", "keepdims", "weights", "ignore_index", "reduction")

_REGISTRY: dict[str, Record] = {}
_PLAIN = contextvars.ContextVar("plain", default=False)


class OpFunction(Protocol, Generic[P, R]):
    """An ordinary function that carries its record, and the decorators that complete it."""

    record: Record
    value: Callable[[Callable[..., Any]], Callable[..., Any]]
    partial: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]
    second: Callable[[Callable[..., Any]], Callable[..., Any]]
    prepare: Callable[[Callable[..., Any]], Callable[..., Any]]
    pushforward: Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


def ops() -> tuple[Record, ...]:
    """All records, in the order of their definition."""
    return tuple(_REGISTRY.values())


@contextlib.contextmanager
def plain_formulas() -> Iterator[None]:
    """While it is open every record is traced as its textbook formula: what its derivatives are compared with.

    What is traced here must not be found by an ordinary call of the same function, nor the other way round; so a
    setting is switched that does nothing here but is part of the key of JAX's caches.
    """
    config: Any = jax.config
    other = "warn" if config.jax_numpy_rank_promotion == "allow" else "allow"
    token = _PLAIN.set(True)
    try:
        with warnings.catch_warnings(), jax.numpy_rank_promotion(other):
            warnings.simplefilter("ignore")
            yield
    finally:
        _PLAIN.reset(token)


def op(
    *,
    wrt: tuple[str, ...],
    domain: Domain,
    group: str,
    formula: str,
    gradient: str,
    source: str,
    fill: dict[str, float] | None = None,
    axes: Callable[[dict[str, Any]], Any] | None = None,
    upcast: bool = True,
    bounded: tuple[str, ...] = (),
    public: bool = True,
    through: OpFunction[..., Any] | None = None,
) -> Callable[[Callable[P, R]], OpFunction[P, R]]:
    """Make a record of a textbook formula, and enter it in the registry.

    Args:
      wrt: the arguments with a hand-derived derivative. Every other float argument is declared non-differentiable:
        to differentiate with respect to it raises ``TypeError``.
      domain: the inputs that the checks, sweeps and benchmarks draw from.
      group: the heading under which tables list it (``"entropy"``, ``"pairs"``, ...).
      formula: the formula in one line of text, for tables.
      gradient: the hand-derived gradient in one line of text, for tables.
      source: where the formula and its stable form come from.
      fill: for each argument that ``where`` masks, the value that a masked entry is replaced by.
      axes: the axes that the value is summed over, from the options; by default ``options["axis"]`` where the
        signature has an axis, otherwise none (an elementwise function).
      upcast: whether 16-bit inputs reach the value and the partials as float32. A function that widens them itself,
        inside its fused passes, says False.
      bounded: the arguments whose partial is never infinite; their derivative is the plain product with a tangent. For
        the others a tangent of 0 gives 0 next to an infinite partial too, at the price of a second product.
      through: the building block that the function continues as once its arguments are prepared; then it has no
        value and no partials of its own, and whatever ``prepare`` does is differentiated by its parts.
      public: whether users see it (tables, README); a building block says False and is checked all the same.
    """

    def decorate(definition: Callable[P, R]) -> OpFunction[P, R]:
        texts = (group, formula, gradient, source)
        record = Record(definition, wrt, domain, texts, fill or {}, axes, upcast, bounded, public, through)
        _REGISTRY[record.name] = record
        return record.function

    return decorate


class Record:
    """A formula, its stable value and its hand-derived derivatives. Made by :func:`op`."""

    def __init__(
        self,
        definition: Callable[..., Any],
        wrt: tuple[str, ...],
        domain: Domain,
        texts: tuple[str, str, str, str],
        fill: dict[str, float],
        axes: Callable[[dict[str, Any]], Any] | None,
        upcast: bool,
        bounded: tuple[str, ...],
        public: bool,
        through: OpFunction[..., Any] | None,
    ):
        self.name: str = definition.__name__
        self.definition = definition
        self.signature = inspect.signature(definition)
        self.wrt, self.domain = wrt, domain
        self.group, self.formula_text, self.gradient_text, self.source = texts
        self.fill, self.upcast, self.bounded, self.public = fill, upcast, bounded, public
        names = tuple(self.signature.parameters)
        # The array arguments are those that the domain draws; any other is an option (an order, a number of classes).
        self.inputs = tuple(
            n
            for n, p in self.signature.parameters.items()
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and n in domain.kinds
        )
        unknown = set(wrt) - set(names)
        if unknown:
            raise TypeError(f"{self.name}: wrt names {sorted(unknown)}, which are not among its parameters {names}")
        # Weights without a reduction belong to the function itself: an average that it takes in closed form.
        self._shared = tuple(n for n in SHARED if n in names and (n != "weights" or "reduction" in names))
        self._axes = axes or (lambda options: options.get("axis", ()))
        self._value: Callable[..., Any] | None = None
        self._prepare: Callable[..., Any] | None = None
        self._second: Callable[..., Any] | None = None
        self._partials: dict[str, Callable[..., Any]] = {}
        self._pushforwards: dict[str, Callable[..., Any]] = {}
        self._through: Record = self if through is None else through.record
        self._core = _with_derivative_rule(self)
        self.function: Any = self._make_function()

    # -- the decorators that complete a record ---------------------------------------------------------------------

    def value(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register what runs: ``f(*inputs, **options) -> (value, saved)``, reduced axes kept with length 1."""
        self._value = function
        return function

    def partial(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register the gradient with respect to ``name``: ``f(saved, *inputs, **options) -> array``.

        The array has the shape of the argument broadcast against the value's summed-over axes: its product with a
        tangent, summed over those axes, is the value's tangent.
        """
        if name not in self.wrt:
            raise TypeError(f"{self.name}: partial({name!r}), but wrt is {self.wrt}")

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self._partials[name] = function
            return function

        return register

    def pushforward(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register how the partial of ``name`` acts on a tangent, ``f(partial, tangent, **options)``, for a value
        that is not a sum over ``partial * tangent`` (a vector-valued function)."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self._pushforwards[name] = function
            return function

        return register

    def second(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the second derivative: ``f(tangents, active, *inputs, **options)`` returns, for each name in
        ``active``, the tangent of its partial along ``tangents``, a dict that holds the arguments that move."""
        self._second = function
        return function

    def prepare(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the first step, ``f(arguments, keep) -> arguments``: it checks the arguments (a dict by name),
        casts labels, and applies whatever is composed in front of the record. ``keep`` is True for the examples that
        count, or None for all. Shared keywords may be left out of what it returns."""
        self._prepare = function
        return function

    # -- evaluation ------------------------------------------------------------------------------------------------

    def oracle(self, *args: Any, **kwargs: Any) -> jax.Array:
        """The textbook formula under the shared keywords, in plain JAX: automatic differentiation applies to it."""
        bound = self._bind(args, kwargs)
        bound = {n: _float_array(v) if n in (*self.inputs, *self.wrt) else v for n, v in bound.items()}
        shared = {n: bound[n] for n in self._shared}
        dtype = policy.result_dtype(bound[n] for n in self.inputs)
        axes = self._reduced(bound)
        kept = policy.examples_kept(bound, shared, axes)
        masked = policy.fill_masked(bound, shared.get("where"), self.fill)
        value = self.definition(**{**masked, **self._neutral()})
        value = policy.zero_where_nothing_is_left(value, shared.get("where"), axes)
        value = self._finish(value, kept, shared, axes)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), value)

    def _make_function(self) -> Any:
        @functools.wraps(self.definition)
        def function(*args: Any, **kwargs: Any) -> Any:
            return self.oracle(*args, **kwargs) if _PLAIN.get() else self._call(*args, **kwargs)

        for name in ("value", "partial", "second", "prepare", "pushforward"):
            setattr(function, name, getattr(self, name))
        function.record = self  # type: ignore[attr-defined]
        return function

    def _bind(self, args: Any, kwargs: Any) -> dict[str, Any]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def _neutral(self) -> dict[str, Any]:
        neutral: dict[str, Any] = {"base": None, "keepdims": True, "weights": None, "ignore_index": None}
        neutral["reduction"] = "none"
        return {n: neutral[n] for n in self._shared if n in neutral}

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._bind(args, kwargs)
        arrays, options = {}, {}
        for name, value in bound.items():
            is_array = name in self.inputs or name in ("where", "weights") or not _is_static(value)
            if is_array and value is not None:
                as_array = functools.partial(policy.as_array, self.name, name)
                arrays[name] = jax.tree.map(as_array, value) if _is_params(value) else as_array(value)
            else:
                options[name] = value
        return _jitted(self, tuple(options.items()), arrays)

    def _evaluate(self, options: Options, arrays: dict[str, Any]) -> Any:
        """The whole function on arrays: prepare, the record under its derivative rule, then the shared keywords."""
        given = {**dict(options), **arrays}
        bound = {n: given[n] for n in self.signature.parameters}
        dtype = policy.result_dtype(bound[n] for n in self.inputs)
        policy.check_shared(self.name, bound, self._shared)
        # Integers stand for the same floats, but integer labels are class indices.
        numbers = [n for n in self.inputs if n in self.wrt and n not in ("labels", "y")]
        bound |= {n: jax.tree.map(lambda v: policy.as_float(v, dtype), bound[n]) for n in numbers}
        shared = {n: bound[n] for n in self._shared}
        axes = self._reduced(bound)
        kept = policy.examples_kept(bound, shared, axes)
        if self._prepare is not None:
            bound = self._prepare(bound, kept[1])
        bound = {n: v for n, v in bound.items() if n not in self._shared}
        core_arrays = {n: v for n, v in bound.items() if not _is_static(v)}
        core_options = tuple((n, v) for n, v in bound.items() if _is_static(v))
        core_arrays |= {n: v for n, v in (("where", shared.get("where")), ("keep", kept[1])) if v is not None}
        value, _ = self._through._core(core_options, (), core_arrays)
        value = self._finish(value, kept, shared, axes)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), value)

    def _reduced(self, bound: dict[str, Any]) -> Any:
        return self._axes(bound)

    def _finish(self, value: Any, kept: tuple[Any, Any], shared: dict[str, Any], axes: Any) -> Any:
        """Base, kept dimensions, weights and reduction: plain arithmetic that JAX differentiates by itself."""
        if shared.get("base") is not None:
            value = value / policy.log_of_base(self.name, shared["base"])
        if axes != () and not shared.get("keepdims", False):
            value = jnp.squeeze(value, axes if axes is not None else tuple(range(value.ndim)))
        if "reduction" in shared:
            value = policy.weigh_and_reduce(value, kept, shared)
        return value

    def _value_and_partials(self, options: Options, active: tuple[str, ...], arrays: dict[str, Any]) -> Any:
        """The stable value and the hand-derived gradients named in ``active``, masked, in the dtype of computation."""
        if self._value is None:
            raise TypeError(f"{self.name} has no stable value: register one with @{self.name}.value")
        bound, where, keep = self._unmask(options, arrays)
        value, saved = self._value(**bound)
        axes = self._reduced(bound)
        value = policy.zero_where_nothing_is_left(value, where, axes)
        partials = tuple(self._masked(self._partials[n](saved, **bound), where, keep, axes, n) for n in active)
        return value, partials

    def _unmask(self, options: Options, arrays: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
        bound = {**dict(options), **arrays}
        where, keep = bound.pop("where", None), bound.pop("keep", None)
        if self.upcast:
            dtype = policy.compute_dtype(policy.result_dtype(bound[n] for n in self.inputs))
            bound = jax.tree.map(lambda v: v.astype(dtype) if policy.is_float(v) else v, bound)
        return policy.fill_masked(bound, where, self.fill), where, keep

    def _masked(self, partial: Any, where: Any, keep: Any, axes: Any, name: str) -> Any:
        """The gradient with zeros at masked entries (of the arguments that ``where`` masks) and left-out examples."""
        if where is not None and name in self.fill and partial.shape == where.shape:
            partial = jnp.where(where, partial, 0)
        if keep is not None:
            partial = jnp.where(policy.expand(keep, axes), partial, 0)
        return partial

    def _contract(self, name: str, partial: Any, tangent: Any, value: Any, options: dict[str, Any]) -> Any:
        if name in self._pushforwards:
            return self._pushforwards[name](partial, tangent, **options)
        times = _product if name in self.bounded else _product_with_infinite
        products = jax.tree.leaves(jax.tree.map(times, partial, tangent))
        axes = self._reduced(options)
        if axes == ():
            return sum(products[1:], products[0])
        return sum(jnp.sum(p, axis=axes, keepdims=value.ndim == p.ndim) for p in products)

    def _tangents_of_partials(self, options: Options, active: Any, arrays: Any, tangents: dict[str, Any]) -> Any:
        if not active:
            return ()
        if self._second is None:
            rest = {n: v for n, v in arrays.items() if n not in tangents}
            moving = {n: arrays[n] for n in tangents}
            return jax.jvp(
                lambda part: self._value_and_partials(options, active, {**rest, **part})[1], (moving,), (tangents,)
            )[1]
        bound, where, keep = self._unmask(options, arrays)
        if where is not None:
            tangents = {
                n: jnp.where(where, t, 0) if n in self.fill and t.shape == where.shape else t
                for n, t in tangents.items()
            }
        bound, tangents = jax.tree.map(policy.up, (bound, tangents))
        second = self._second(tangents, active, **bound)
        axes = self._reduced(bound)
        return tuple(self._masked(t, where, keep, axes, n) for n, t in zip(active, second, strict=True))


def _with_derivative_rule(record: Record) -> Callable[..., Any]:
    """Value and gradients as one function with one linear tangent rule.

    For the value v(a) and its gradients g_i = ∂v/∂a_i the rule is dv = Σ_i ⟨g_i, da_i⟩ over the arguments that move,
    and dg_i = Σ_j ∂g_i/∂a_j da_j.  It calls the same function for the values, so it differentiates again by itself.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
    def core(options: Options, active: tuple[str, ...], arrays: dict[str, Any]) -> Any:
        return record._value_and_partials(options, active, arrays)

    def rule(options: Options, active: tuple[str, ...], primals: Any, tangents: Any) -> Any:
        (arrays,), (arrays_dot,) = primals, tangents
        moving = {n: _instantiate(t) for n, t in arrays_dot.items() if _moves(t)}
        fixed = [n for n in moving if n not in record._partials]
        if fixed:
            raise TypeError(
                f"{record.name} has no derivative with respect to {fixed[0]!r} (only to {', '.join(record.wrt)}); "
                "pass a constant, or stop its gradient with jax.lax.stop_gradient"
            )
        needed = (*active, *(n for n in moving if n not in active))
        value, partials = core(options, needed, arrays)
        partial = dict(zip(needed, partials, strict=True))
        bound = {**dict(options), **{n: v for n, v in arrays.items() if n not in record.inputs}}
        bound = {n: v for n, v in bound.items() if n not in ("where", "keep")}
        terms = [record._contract(n, partial[n], t, value, bound) for n, t in moving.items()]
        value_dot = sum(terms[1:], terms[0])
        partials_dot = record._tangents_of_partials(options, active, arrays, moving)
        return (value, partials[: len(active)]), (value_dot, partials_dot)

    core.defjvp(rule, symbolic_zeros=True)
    return core


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jitted(record: Record, options: Options, arrays: dict[str, Any]) -> Any:
    return record._evaluate(options, arrays)


def _product(partial: Any, tangent: Any) -> Any:
    return partial * policy.up(tangent)


def _product_with_infinite(partial: Any, tangent: Any) -> Any:
    """partial * tangent, with ±inf * 0 = 0. Infinity is a product of two numbers, so that this is linear too."""
    largest = jnp.asarray(jnp.finfo(partial.dtype).max, partial.dtype)
    return jnp.clip(partial, -largest, largest) * policy.up(tangent) * jnp.where(jnp.isinf(partial), largest, 1)


def _is_static(value: Any) -> bool:
    """Plain Python scalars, strings, None and tuples of them configure a function; all else is data."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return all(_is_static(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _is_params(value: Any) -> bool:
    """Named parameters (a NamedTuple, a dict, a registered dataclass) rather than something to make an array of."""
    return hasattr(value, "_fields") or isinstance(value, dict) or hasattr(value, "__dataclass_fields__")


def _float_array(value: Any) -> Any:
    if value is None:
        return None
    return jax.tree.map(jnp.asarray, value) if _is_params(value) else jnp.asarray(value)


def _moves(tangent: Any) -> bool:
    leaves = jax.tree.leaves(tangent, is_leaf=lambda t: isinstance(t, SymbolicZero))
    return any(not isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0 for t in leaves)


def _instantiate(tangent: Any) -> Any:
    def one(t: Any) -> Any:
        if isinstance(t, SymbolicZero) and t.dtype != jax.dtypes.float0:
            return jnp.zeros(t.shape, t.dtype)
        return np.zeros(t.shape, jax.dtypes.float0) if isinstance(t, SymbolicZero) else t

    return jax.tree.map(one, tangent, is_leaf=lambda t: isinstance(t, SymbolicZero))
