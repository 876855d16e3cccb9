"""A record: a formula, its stable value and its derivatives, and how the shared keywords are put around them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xentjax.core import arguments, policy, rule
from xentjax.core.domains import Domain

Options = tuple[tuple[str, Any], ...]

#: Keywords that mean the same in every record; the record's own functions never see them.
SHARED = ("where", "base", "keepdims", "weights", "ignore_index", "reduction")


class Record:
    """A formula, its stable value and its hand-derived derivatives. Made by :func:`xentjax.core.op.op`."""

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
        own: tuple[str, ...],
        underflow: float,
        through: Any,
    ):
        self.name: str = definition.__name__
        self.definition = definition
        self.signature = inspect.signature(definition)
        self.wrt, self.domain = wrt, domain
        self.group, self.formula_text, self.gradient_text, self.source = texts
        self.fill, self.upcast, self.bounded = fill, upcast, bounded
        self.public, self.underflow, self.own = public, underflow, own
        names = tuple(self.signature.parameters)
        # The array arguments are those that the domain draws; any other is an option (an order, a number of classes).
        self.inputs = tuple(
            n
            for n, p in self.signature.parameters.items()
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and n in domain.kinds
        )
        self.trees = {n: named for n in self.inputs if (named := domain.kinds[n].named) is not None}
        #: Those that are an array or a tuple of arrays.
        self.tuples = {n for n in self.inputs if any(kind.named for kind in domain.kinds_of(n))} - set(self.trees)
        self.indices = tuple(n for n in self.inputs if any(kind.is_index for kind in domain.kinds_of(n)))
        self._shared = tuple(n for n in SHARED if n in names and n not in own)
        self._axes = axes or (lambda options: options.get("axis", ()))
        self._value: Callable[..., Any] | None = None
        self._alone: Callable[..., Any] | None = None
        self._prepare: Callable[..., Any] | None = None
        self._second: Callable[..., Any] | None = None
        self._whole: Callable[[dict[str, Any]], Any] | None = None
        self._partials: dict[str, Callable[..., Any]] = {}
        self._pushforwards: dict[str, Callable[..., Any]] = {}
        self._through: Record = self if through is None else through.record
        self._refuse_mistakes(names, own)
        self._core = rule.with_derivative_rule(self)
        self.function: Any = self._make_function()

    def _refuse_mistakes(self, names: tuple[str, ...], own: tuple[str, ...]) -> None:
        """What would be silently ignored is an error as the record is made."""
        named = {"wrt": self.wrt, "fill": tuple(self.fill), "bounded": self.bounded, "own": own}
        named["domain"] = tuple(self.domain.kinds)
        for place, given in named.items():
            if unknown := [n for n in given if n not in names]:
                raise TypeError(f"{self.name}: {place} names {unknown}, which are not among its parameters {names}")
        if "where" in self._shared and not (names[0] in self.fill and self._through.fill):
            lacking = self if names[0] not in self.fill else self._through
            raise TypeError(
                f"{self.name}: where has the shape of {names[0]}, but fill does not say what a masked entry becomes: "
                f"op(fill={{...}}) of {lacking.name} needs a value that leaves the formula as if it were not there"
            )
        if "weights" in self._shared and "reduction" not in names:
            raise TypeError(
                f"{self.name}: weights go with a reduction, which is not among its parameters {names}; "
                "where the formula itself takes them, say op(own=('weights',))"
            )
        if "ignore_index" in self._shared and len(self.indices) != 1:
            raise TypeError(
                f"{self.name}: ignore_index needs one argument of class indices (of kind Labels or BinaryLabels in the "
                f"domain or one of its option sets), got {list(self.indices)}"
            )

    # -- the decorators that complete a record ---------------------------------------------------------------------

    def value(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register what runs: ``f(*inputs, **options) -> (value, saved)``, reduced axes kept with length 1."""
        self._value = function
        return function

    def alone(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register another way to the value for where no derivative is asked for, ``f(*inputs, **options) -> value``:
        one that stores less, as nothing need be saved."""
        self._alone = function
        return function

    @property
    def is_whole(self) -> bool:
        """Whether it is one that computes all by itself, matrix products among it."""
        return self._whole is not None

    @property
    def has_value_alone(self) -> bool:
        """Whether there is another way to the value for where no derivative is asked for."""
        return self._through._alone is not None

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

    def whole(self, function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        """Register all of the function, ``f(arguments) -> value``, with a derivative rule of its own, for what is made
        of matrix products. It has no other value and no partials, and in 16 bits its gradients are sums of terms that
        have been rounded to them."""
        self._whole = function
        return function

    # -- evaluation ------------------------------------------------------------------------------------------------

    def oracle(self, *args: Any, **kwargs: Any) -> jax.Array:
        """The textbook formula under the shared keywords, in plain JAX: automatic differentiation applies to it."""
        bound = self.converted(args, kwargs)
        bound = {n: jnp.asarray(v) if n in self.wrt and isinstance(v, (int, float)) else v for n, v in bound.items()}
        shared = {n: bound[n] for n in self._shared}
        dtype = policy.result_dtype(bound[n] for n in self.inputs)
        axes = self._reduced(bound)
        kept = self._kept(bound, shared, axes)
        masked = policy.fill_masked(bound, shared.get("where"), self.fill)
        value = self.definition(**{**masked, **self._neutral()})
        value = policy.zero_where_nothing_is_left(value, shared.get("where"), axes)
        value = self._finish(value, kept, shared, axes)
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if policy.is_float(leaf) else leaf, value)

    def _make_function(self) -> Any:
        @functools.wraps(self.definition)
        def function(*args: Any, **kwargs: Any) -> Any:
            return self.oracle(*args, **kwargs) if rule.PLAIN.value else self._call(*args, **kwargs)

        for name in ("value", "alone", "partial", "second", "prepare", "pushforward", "whole"):
            setattr(function, name, getattr(self, name))
        function.record = self  # type: ignore[attr-defined]
        return function

    def converted(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments of a call by name, as the record computes with them."""
        return arguments.converted(self, arguments.bind(self.name, self.signature, args, kwargs))

    def _kept(self, bound: dict[str, Any], shared: dict[str, Any], axes: Any) -> tuple[Any, Any]:
        return policy.examples_kept(bound[self.indices[0]] if self.indices else None, shared, axes)

    def _neutral(self) -> dict[str, Any]:
        neutral: dict[str, Any] = {"base": None, "keepdims": True, "weights": None, "ignore_index": None}
        neutral["reduction"] = "none"
        return {n: neutral[n] for n in self._shared if n in neutral}

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.converted(args, kwargs)
        options = tuple((n, v) for n, v in bound.items() if arguments.is_static(v))
        return _jitted(self, options, {n: v for n, v in bound.items() if not arguments.is_static(v)})

    def _evaluate(self, options: Options, arrays: dict[str, Any]) -> Any:
        """The whole function on arrays: prepare, the record under its derivative rule, then the shared keywords."""
        given = {**dict(options), **arrays}
        bound = {n: given[n] for n in self.signature.parameters}
        dtype = policy.result_dtype(bound[n] for n in self.inputs)
        policy.check_shared(self.name, bound, self._shared)
        # Integers stand for the same floats, but for class indices.
        numbers = [n for n in self.inputs if n in self.wrt and n not in self.indices]
        bound |= {n: jax.tree.map(lambda v: policy.as_float(v, dtype), bound[n]) for n in numbers}
        if self._whole is not None:
            return self._whole(bound)
        shared = {n: bound[n] for n in self._shared}
        axes = self._reduced(bound)
        kept = self._kept(bound, shared, axes)
        if self._prepare is not None:
            bound = self._prepare(bound, kept[1])
        bound = {n: v for n, v in bound.items() if n not in self._shared}
        core_arrays = {n: v for n, v in bound.items() if not arguments.is_static(v)}
        core_options = tuple((n, v) for n, v in bound.items() if arguments.is_static(v))
        core_arrays |= {n: v for n, v in (("where", shared.get("where")), ("keep", kept[1])) if v is not None}
        value, _ = self._through._core(self, core_options, (), core_arrays)
        value = self._finish(value, kept, shared, axes)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), value)

    def _reduced(self, bound: dict[str, Any]) -> Any:
        return self._axes(bound)

    def _finish(self, value: Any, kept: tuple[Any, Any], shared: dict[str, Any], axes: Any) -> Any:
        """Base, kept dimensions, weights and reduction: plain arithmetic that JAX differentiates by itself."""
        if shared.get("base") is not None:
            value = value / policy.log_of_base(self.name, shared["base"])
        if axes != () and not shared.get("keepdims", False):
            value = self._squeezed(value, axes)
        if "reduction" in shared:
            value = policy.weigh_and_reduce(value, kept, shared)
        return value

    def _squeezed(self, value: Any, axes: Any) -> Any:
        try:
            return jnp.squeeze(value, axes if axes is not None else tuple(range(value.ndim)))
        except ValueError as error:
            raise TypeError(
                f"{self.name}: the formula and the value must keep what they sum over, axis {axes}, with length 1 "
                f"(keepdims=True), got shape {value.shape}"
            ) from error

    def _value_and_partials(self, options: Options, active: tuple[str, ...], arrays: dict[str, Any]) -> Any:
        """The stable value and the hand-derived gradients named in ``active``, masked, in the dtype of computation."""
        if self._value is None:
            raise TypeError(f"{self.name} has no stable value: register one with @{self.name}.value")
        bound, where, keep = self._unmask(options, arrays)
        if active or self._alone is None:
            value, saved = self._value(**bound)
        else:
            value, saved = self._alone(**bound), None
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
        times = rule.product if name in self.bounded else rule.along
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _jitted(record: Record, options: Options, arrays: dict[str, Any]) -> Any:
    return record._evaluate(options, arrays)
