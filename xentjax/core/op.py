"""The record: a formula, a stable value and derivatives derived by hand, and the rule that JAX differentiates by.

A record is written as one block::

    @op(wrt=("logit",), domain=Domain(logit=Logit("B")), group="entropy", formula="...", gradient="...", source="...")
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

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from xentjax.core.domains import Domain
from xentjax.core.record import Record

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

_REGISTRY: dict[str, Record] = {}


class OpFunction(Protocol, Generic[P, R]):
    """An ordinary function that carries its record, and the decorators that complete it."""

    record: Record
    value: Callable[[Callable[..., Any]], Callable[..., Any]]
    alone: Callable[[Callable[..., Any]], Callable[..., Any]]
    partial: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]
    second: Callable[[Callable[..., Any]], Callable[..., Any]]
    prepare: Callable[[Callable[..., Any]], Callable[..., Any]]
    pushforward: Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]]
    whole: Callable[[Callable[[dict[str, Any]], Any]], Callable[[dict[str, Any]], Any]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...


def ops() -> tuple[Record, ...]:
    """All records, in the order of their definition."""
    return tuple(_REGISTRY.values())


def forget(name: str) -> None:
    """Take a record out of the registry, so that its name can be defined anew."""
    del _REGISTRY[name]


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
    own: tuple[str, ...] = (),
    underflow: float = 1,
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
      own: names of shared keywords that here mean something of the function's own and reach it as they are (weights of
        an average that it takes in closed form).
      underflow: how many of the smallest normal numbers flushing to zero may cost the value for each entry of a sum.
      through: the building block that the function continues as once its arguments are prepared; then it has no
        value and no partials of its own, and whatever ``prepare`` does is differentiated by its parts.
      public: whether users see it (tables, README); a building block says False and is checked all the same.

    Raises:
      TypeError: for what would silently be ignored: a name that is no parameter, ``where`` without ``fill``, weights
        without a reduction, ``ignore_index`` without class indices.
      ValueError: for the name of another record.
    """

    def decorate(definition: Callable[P, R]) -> OpFunction[P, R]:
        texts = (group, formula, gradient, source)
        record = Record(
            definition, wrt, domain, texts, fill or {}, axes, upcast, bounded, public, own, underflow, through
        )
        if record.name in _REGISTRY:
            other = _REGISTRY[record.name].definition.__module__
            raise ValueError(
                f"op: there is a record {record.name!r} already, of {other}; xentjax.core.op.forget({record.name!r}) "
                "takes it out of the registry"
            )
        _REGISTRY[record.name] = record
        return record.function

    return decorate
