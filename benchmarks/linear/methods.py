"""The methods in JAX: ours by every strategy, logits that are stored, and the packages that store none."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness import Implementation, as_given, jax_implementation
from benchmarks.linear.problems import Shape
from benchmarks.linear.truth import Truth, errors, pick_in_jax
from xentjax.losses.linear import STRATEGIES, Plan, explain, linear_cross_entropy

#: The name of the implementation that is a floor, not a method.
PRODUCTS = "products alone"

#: Strategies that kernels take part in, beside one that stores all logits.
KERNEL_STRATEGIES: tuple[Literal["recompute", "gradient_in_forward"], ...] = ("recompute", "gradient_in_forward")

#: Packages that are looked for, by the names of their modules, and what they are installed with.
PACKAGES = {"tokamax": "tokamax", "jax_cce": "jax-cce"}


@dataclasses.dataclass(frozen=True)
class Method:
    """``loss(x, w, labels)`` is the mean; ``layout`` is that of w, [D, V] ("dv") or [V, D] ("vd")."""

    name: str
    loss: Callable[..., jax.Array]
    layout: str = "dv"
    is_ours: bool = False
    twice: bool = True
    """It can be differentiated forward and twice."""
    may_fail: bool = False
    """Where it fails, that is a line; a method of others always may."""


def methods(dtype: str, in_stages: bool = False) -> Iterator[Method]:
    """Ours as it chooses, which all others are compared with, then each strategy, then the peers that are installed.

    ``in_stages``: without those that an accelerator's stages have no time for, as another of their kind is faster.
    """
    yield Method("xentjax", functools.partial(linear_cross_entropy, reduction="mean"), is_ours=True)
    for strategy in STRATEGIES:
        loss = functools.partial(linear_cross_entropy, reduction="mean", implementation=strategy)
        yield Method(f"xentjax {strategy}", loss, is_ours=True)
    yield Method("optax", _dense)
    if dtype != "float32" and not in_stages:
        yield Method("optax, float32 logits", functools.partial(_dense, logits="float32"))
    if is_installed("tokamax") and "chunked_xla" in _tokamax_implementations():
        yield Method("tokamax chunked_xla", _tokamax, twice=False)
    if is_installed("jax_cce") and not in_stages:
        yield Method("jax-cce", _jax_cce, layout="vd", twice=False)


def by_kernels(shape: Shape, dtype: str, mode: str = "value_and_grad") -> Iterator[Method]:
    """Ours by a device's kernels, where those are for such a problem; the value alone is the same by any strategy."""
    for strategy in KERNEL_STRATEGIES[: 1 if mode == "value" else None]:
        plan = Plan(strategy, kernels="mosaic")
        if is_by_kernels(plan, shape, dtype):
            loss = functools.partial(linear_cross_entropy, reduction="mean", implementation=plan)
            yield Method(f"xentjax {strategy}, kernels", loss, is_ours=True, may_fail=True)


def is_by_kernels(plan: str | Plan, shape: Shape, dtype: str) -> bool:
    """Whether a plan that asks for kernels gets them."""
    x, w = jax.ShapeDtypeStruct((shape.n, shape.d), dtype), jax.ShapeDtypeStruct((shape.d, shape.v), dtype)
    labels = jax.ShapeDtypeStruct((shape.n,), jnp.int32)
    return explain(x, w, labels, reduction="mean", implementation=plan).kernels == "mosaic"


def absent() -> dict[str, str]:
    """Why a peer in JAX takes no part."""
    found = {name: f"pip install {name}" for module, name in PACKAGES.items() if not is_installed(module)}
    if "tokamax" not in found and "chunked_xla" not in _tokamax_implementations():
        found["tokamax"] = "this version has no chunked_xla: version 0.0.13 does, on Python 3.12 or later"
    return found


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _dense(x: jax.Array, w: jax.Array, labels: jax.Array, logits: str | None = None) -> jax.Array:
    stored = jnp.matmul(x, w, preferred_element_type=logits)
    return optax.softmax_cross_entropy_with_integer_labels(stored, labels).mean()


def _tokamax(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    loss = _tokamax_package().linear_softmax_cross_entropy_loss
    return loss(x, labels, w, reduction="mean", implementation="chunked_xla")


def _jax_cce(x: jax.Array, w: jax.Array, labels: jax.Array) -> jax.Array:
    import jax_cce

    return jax_cce.linear_cross_entropy(x, w, labels)


@functools.cache
def _tokamax_package() -> Any:
    """tokamax; without xprof, which it imports for its own profiles alone, its name stands for it."""
    if not is_installed("xprof"):
        for name in ("xprof", "xprof.cli", "xprof.cli.tools"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["xprof.cli.tools"].get_kernel_stats_tool = None  # type: ignore[attr-defined]
    import tokamax

    return tokamax


def _tokamax_implementations() -> tuple[str, ...]:
    _tokamax_package()
    from tokamax._src.ops.linear_softmax_cross_entropy_loss import api

    return tuple(api.IMPLEMENTATIONS)


# -- implementations of a task -----------------------------------------------------------------------------------------


def implementation(method: Method, mode: str, true: Truth | None) -> Implementation:
    """A method in a mode: its value, value and gradients, derivative along tangents, or Hessian-vector product."""
    arrange = as_given if method.layout == "dv" else transposed
    check = None
    if true is not None and mode in ("value", "value_and_grad"):
        pick = pick_in_jax(method.layout, true)
        check = lambda result: errors(pick(result), true)
    function = MODES[mode](method.loss)
    may_fail = method.may_fail or not method.is_ours
    return jax_implementation(method.name, function, arrange=arrange, check=check, may_fail=may_fail)


def transposed(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """x, w [V, D], labels: in memory of its own, as a method with rows of classes would be given it."""
    x, w, labels = arguments
    return x, jnp.array(w.T), labels


def _gradient(loss: Callable[..., jax.Array], x: Any, w: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    return jax.grad(loss, (0, 1))(x, w, labels)


def _jvp(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda x, w, labels, *along: jax.jvp(lambda x, w: loss(x, w, labels), (x, w), along)


def _hvp(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    return lambda x, w, labels, *along: jax.jvp(lambda x, w: _gradient(loss, x, w, labels), (x, w), along)[1]


#: What is timed, from the loss: functions of x, w, labels and, for the last two, a tangent of x and one of w.
MODES: dict[str, Callable[[Callable[..., jax.Array]], Callable[..., Any]]] = {
    "value": lambda loss: loss,
    "value_and_grad": lambda loss: jax.value_and_grad(loss, (0, 1)),
    "jvp": _jvp,
    "hvp": _hvp,
}


def products(mode: str, rows: int | None = None) -> Implementation:
    """The products of a mode alone: logits, and from them as they are what takes the place of each gradient.

    ``rows`` tokens at a time (or what divides both that and N), of which the largest logit of each is kept, as a
    processor is fastest at; without, all at once and kept, as an accelerator is.
    """

    def whole(x: jax.Array, w: jax.Array, labels: jax.Array) -> Any:
        logits = x @ w
        return logits if mode == "value" else (logits @ w.T, x.T @ logits)

    def chunked(x: jax.Array, w: jax.Array, labels: jax.Array) -> Any:
        def turn(dw: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = part @ w
            if mode == "value":
                return dw, logits.max(axis=-1)
            more = jnp.matmul(part.T, logits, preferred_element_type=jnp.float32)
            return dw + more, logits @ w.T

        parts = x.reshape(-1, math.gcd(rows or len(x), len(x)), x.shape[1])
        start = jnp.zeros(() if mode == "value" else w.shape, jnp.float32)
        return jax.lax.scan(turn, start, parts)

    return jax_implementation(PRODUCTS, whole if rows is None else chunked, may_fail=True)
