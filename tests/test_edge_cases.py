"""All inputs of ``data/edge_cases.json`` through the public names: value, gradients, Hessian, zero tangents.

Each case has exact inputs, the true value and the true gradient (80 digits, as decimal strings) of one function:

==================  ====================================================================================================
function            which one: see ``_PUBLIC`` below
inputs              exact in ``dtype``; "inf", "-inf" and "nan" are strings; ``*_rle`` is run-length encoded,
                    ``[[value, count], ...]``; ``where``: true keeps a class; ``label_dtype`` where it matters
expected_value      the true real number; where it lies beyond the dtype's range, ±inf or 0 is right
expected_grad       with respect to ``grad_wrt`` (``expected_grad_rle`` run-length encoded), ``expected_grad_other``
                    with respect to the other argument; null where none is meaningful
grad_scale          for each component the size that its error is measured at
expected_hessian    where given
subnormal_expected  0 is right too (flush to zero)
convention          whether it is our policy rather than forced by mathematics
checks              what to check: ``value``; ``grad``; ``jvp_of_zero_tangent_is_zero``: the JVP along a zero tangent is
                    exactly 0; ``hessian_finite``: no NaN or infinity in the Hessian of a function of logits
==================  ====================================================================================================
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ulp import why_wrong

import xentjax

pytestmark = pytest.mark.usefixtures("strict_dtypes")

_CASES = json.loads((pathlib.Path(__file__).parent / "data" / "edge_cases.json").read_text())

#: The table's function -> the public name, and the table's arguments -> its own.
_PUBLIC: dict[str, tuple[str, dict[str, str]]] = {
    "entropy_probs": ("entropy", {}),
    "cross_entropy_probs": ("cross_entropy", {}),
    "kl_probs": ("kl_divergence", {}),
    "js_probs": ("js_divergence", {}),
    "mutual_information_joint": ("mutual_information", {}),
    "entropy_logits": ("entropy_from_logits", {}),
    "binary_entropy_logits": ("binary_entropy_from_logits", {}),
    "kl_logits": ("kl_divergence_from_logits", {"a": "p_logits", "b": "q_logits"}),
    "softmax_ce_int": ("softmax_cross_entropy", {"label": "labels"}),
    "softmax_ce_soft": ("softmax_cross_entropy", {"targets": "labels"}),
    "sigmoid_ce": ("sigmoid_cross_entropy", {"logit": "logits", "label": "labels"}),
}


def _decoded(runs: Any) -> list[Any]:
    return [value for value, count in runs for _ in range(count)]


def _numbers(value: Any) -> Any:
    """Nested lists of numbers and strings as float64."""
    return np.vectorize(float, otypes=[np.float64])(np.array(value, dtype=object))


def _arguments(case: dict[str, Any]) -> dict[str, jax.Array]:
    """The inputs by their public names, in the case's dtype."""
    _, rename = _PUBLIC[case["function"]]
    inputs = {
        name.removesuffix("_rle"): _decoded(v) if name.endswith("_rle") else v for name, v in case["inputs"].items()
    }
    label_dtype = inputs.pop("label_dtype", "int32")
    arguments = {}
    for name, value in inputs.items():
        if name == "where":
            array = jnp.asarray(value)
        elif case["function"] == "softmax_ce_int" and name == "label":
            array = jnp.asarray(np.asarray(value, label_dtype))
        else:
            array = jnp.asarray(_numbers(value).astype(jnp.dtype(case["dtype"])))
        arguments[rename.get(name, name)] = array
    return arguments


@functools.cache
def _program(name: str, wrt: tuple[str, ...], hessian: bool) -> Any:
    """Value, gradients, the JVP along zero and the Hessian of the first argument, from one linearization."""
    function = getattr(xentjax, name)

    @jax.jit
    def run(arguments: dict[str, jax.Array]) -> Any:
        if not wrt:
            return {"value": function(**arguments)}

        def first_order(x: jax.Array) -> Any:
            moving = {one: x if one == wrt[0] else arguments[one] for one in wrt}
            value, push = jax.linearize(lambda moving: function(**{**arguments, **moving}), moving)
            (gradient,) = jax.linear_transpose(push, moving)(jnp.ones_like(value))
            results = {f"gradient {one}": slope for one, slope in gradient.items()}
            return gradient[wrt[0]], {"value": value, "jvp": push(jax.tree.map(jnp.zeros_like, moving)), **results}

        if not hessian:
            return first_order(arguments[wrt[0]])[1]
        second, results = jax.jacfwd(first_order, has_aux=True)(arguments[wrt[0]])
        return {**results, "hessian": second}

    return run


@pytest.mark.parametrize("case", _CASES, ids=[case["name"] for case in _CASES])
def test_edge_case(case: dict[str, Any]) -> None:
    name, rename = _PUBLIC[case["function"]]
    first, others = case["grad_wrt"], case.get("expected_grad_other") or {}
    of_logits = first in ("logits", "logit", "a", "b")
    hessian = "expected_hessian" in case or (of_logits and "hessian_finite" in case["checks"])
    wrt = tuple(rename.get(one, one) for one in (first, *others)) if "grad" in case["checks"] else ()
    with jax.enable_x64(case["dtype"] == "float64"):
        arguments = _arguments(case)
        results = jax.device_get(_program(name, wrt, hessian)(arguments))
        _check(case, arguments, results)


def _check(case: dict[str, Any], arguments: dict[str, jax.Array], results: Any) -> None:
    name, rename = _PUBLIC[case["function"]]
    dtype, first = jnp.dtype(case["dtype"]), case["grad_wrt"]
    classes = arguments[rename.get(first, first)].size
    flushed = 0 if dtype.itemsize == 2 else classes * (200 if "entropy" in name and "cross" not in name else 1)
    wrong = functools.partial(why_wrong, dtype=dtype, flushed=flushed)

    assert results["value"].dtype == dtype
    assert wrong(results["value"], case["expected_value"]) is None, wrong(results["value"], case["expected_value"])
    if "grad" not in case["checks"]:
        return
    expected = _decoded(case["expected_grad_rle"]) if "expected_grad_rle" in case else case["expected_grad"]
    for argument, gradient in {first: expected, **(case.get("expected_grad_other") or {})}.items():
        if gradient is None:
            continue
        got = results[f"gradient {rename.get(argument, argument)}"]
        assert got.dtype == dtype
        scales = case.get("grad_scale") if argument == first else None
        _compare(wrong, got, gradient, scales)
    if "expected_hessian" in case:
        _compare(wrong, results["hessian"], case["expected_hessian"], None)
    if "hessian" in results:
        assert np.all(np.isfinite(np.asarray(results["hessian"], np.float64)))
    if "jvp_of_zero_tangent_is_zero" in case["checks"]:
        assert np.all(np.asarray(results["jvp"]) == 0)


def _compare(wrong: Any, got: Any, expected: Any, scales: Any) -> None:
    """Every component that has a meaning; equal components of a long gradient are looked at once."""
    numbers = np.asarray(got, np.float64).ravel()
    truths = np.array(expected, dtype=object).ravel()
    sizes = np.full(truths.shape, None) if scales is None else np.array(scales, dtype=object).ravel()
    assert numbers.shape == truths.shape
    for number, true, size in set(zip(numbers.tolist(), truths.tolist(), sizes.tolist(), strict=True)):
        if true is not None:
            message = wrong(number, true, size=None if size in (None, "inf") else size)
            assert message is None, message
