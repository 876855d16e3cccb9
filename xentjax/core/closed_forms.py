"""Derivatives of a formula that are functions of their own, beside the rule of a record: what the check looks at too.

A solver takes a Hessian, or its product with a direction, from code that was derived by hand and that JAX's
differentiation of the record never runs. Such functions are entered here with what each of them is::

    FORMS = closed_forms("loss", wrt="params", formula=loss.record.oracle, domain=Domain(...))

    @FORMS.form("hessian_diagonal", "hessian", part=lambda hessian, params, **data: jnp.diagonal(hessian))
    def _(params, direction, x, y): ...                # the function under test
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree

from xentjax.core.domains import Domain


class Kind(NamedTuple):
    """What a form may be: of a function f at p, along a direction v where it takes one."""

    plain: Callable[[Any, Any, Any], Any]  # (f, p, v) -> the same by automatic differentiation
    steps: int  # how many times the contract's K it may be off
    slope_of: str | None = None  # the kind that it is the derivative of along v


def _hessian(f: Any, p: Any, v: Any) -> Any:
    flat, unravel = ravel_pytree(p)
    return jax.jacfwd(jax.grad(lambda q: f(unravel(q))))(flat)


KINDS = {
    "value": Kind(lambda f, p, v: f(p), 1),
    "gradient": Kind(lambda f, p, v: jax.grad(f)(p), 1),
    "slope": Kind(lambda f, p, v: jax.jvp(f, (p,), (v,))[1], 1, "value"),
    "hvp": Kind(lambda f, p, v: jax.jvp(jax.grad(f), (p,), (v,))[1], 4, "gradient"),
    "hessian": Kind(_hessian, 4),  # a matrix in the order of the raveled parameters
}


class Form(NamedTuple):
    """A function written by hand, its kind, and what it gives of that."""

    function: Callable[..., Any]
    kind: str
    part: Callable[..., Any] | None


class ClosedForms:
    """The closed forms of the derivatives of one formula. Made by :func:`closed_forms`.

    Attributes:
      name: how the check calls them.
      wrt: the one argument that they are derivatives by.
      oracle: the formula, a scalar function of the arguments that the domain draws.
      domain: the inputs to check on. All of them are finite, and the formula is smooth there.
      forms: each :class:`Form` by its name.
    """

    underflow = 1.0
    is_whole = False

    def __init__(self, name: str, wrt: str, formula: Callable[..., Any], domain: Domain):
        self.name, self.wrt, self.oracle, self.domain = name, (wrt,), formula, domain
        self.forms: dict[str, Form] = {}

    def form(
        self, name: str, kind: str, part: Callable[..., Any] | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register ``f(p, direction, **arguments)`` as a form of this kind, or as ``part(whole, p, **arguments)`` of
        what is of this kind."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.forms[name] = Form(function, kind, part)
            return function

        return register

    def function(self, p: Any, direction: Any, **arguments: Any) -> dict[str, Any]:
        """All forms, by hand."""
        return {name: form.function(p, direction, **arguments) for name, form in self.forms.items()}

    def plain(self, p: Any, direction: Any, **arguments: Any) -> dict[str, Any]:
        """All forms, by automatic differentiation of the formula."""
        return self._plain({name: form.kind for name, form in self.forms.items()}, p, direction, arguments)

    def plain_but_slopes(self, p: Any, direction: Any, **arguments: Any) -> dict[str, Any]:
        """The forms that are no slopes along the direction, by automatic differentiation of the formula."""
        kinds = {name: form.kind for name, form in self.forms.items() if KINDS[form.kind].slope_of is None}
        return self._plain(kinds, p, direction, arguments)

    def plain_below_slopes(self, p: Any, direction: Any, **arguments: Any) -> dict[str, Any]:
        """What the other forms are the slopes of."""
        lower = {name: KINDS[form.kind].slope_of for name, form in self.forms.items()}
        return self._plain({name: kind for name, kind in lower.items() if kind}, p, direction, arguments)

    def _plain(self, kinds: dict[str, str], p: Any, direction: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        f = lambda p: self.oracle(**{self.wrt[0]: p}, **arguments)
        whole = {kind: KINDS[kind].plain(f, p, direction) for kind in kinds.values()}
        parts = {name: self.forms[name].part for name in kinds}
        return {n: whole[k] if (part := parts[n]) is None else part(whole[k], p, **arguments) for n, k in kinds.items()}


_REGISTRY: dict[str, ClosedForms] = {}


def closed_forms(name: str, *, wrt: str, formula: Callable[..., Any], domain: Domain) -> ClosedForms:
    """Closed forms to be checked against this formula, without any as yet, entered in the registry."""
    _REGISTRY[name] = made = ClosedForms(name, wrt, formula, domain)
    return made


def all_closed_forms() -> tuple[ClosedForms, ...]:
    """All closed forms, in the order of their definition."""
    return tuple(_REGISTRY.values())
