"""The options and policies that the losses share, against formulae of NumPy's in float64."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj

pytestmark = pytest.mark.usefixtures("compiled_fast", "strict_dtypes")

IGNORED = -7
RNG = np.random.default_rng(20)
LOGITS = RNG.normal(0, 3, (6, 5))
LABELS = np.array([0, 4, IGNORED, 2, 1, 3])
DISTRIBUTIONS = RNG.dirichlet(np.ones(5), 6)
WEIGHTS = np.array([1.0, 0.5, 2.0, 3.0, 0.0, 1.5])
CLASS_WEIGHTS = np.array([1.0, 2.0, 0.5, 0.25, 3.0])
KEPT = np.ones((6, 5), bool)
KEPT[[0, 1, 3, 5], [3, 0, 4, 1]] = False

#: Each option by itself has two values at least: that of leaving it out, and another.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "label_smoothing": (0.0, 0.2),
    "class_weights": (None, CLASS_WEIGHTS),
    "z_loss": (0.0, 0.03),
    "softcap": (None, 4.0),
    "temperature": (1.0, 1.7),
    "where": (None, KEPT),
    "weights": (None, WEIGHTS),
    "reduction": ("none", "sum", "mean"),
}


def softmax_loss(logits: Any, labels: Any, o: dict[str, Any]) -> tuple[Any, Any]:
    """The loss, and the gradient of its sum with respect to the logits, one example after the other."""
    losses, gradients, counted = np.zeros(len(logits)), np.zeros(logits.shape), np.zeros(len(logits))
    for n, (z, label) in enumerate(zip(logits, labels, strict=True)):
        kept = np.ones(z.size, bool) if o["where"] is None else o["where"][n]
        weight = 1.0 if o["weights"] is None else o["weights"][n]
        if weight == 0 or (np.ndim(label) == 0 and label == IGNORED):
            continue
        t = np.where(kept, label, 0.0) if np.ndim(label) else np.eye(z.size)[label]
        a = (1 - o["label_smoothing"]) * t + o["label_smoothing"] * t.sum() * kept / kept.sum()
        a = a * (1 if o["class_weights"] is None else o["class_weights"])
        cap = o["softcap"]
        u = (z if cap is None else cap * np.tanh(z / cap)) / o["temperature"]
        slope = (1 if cap is None else 1 / np.cosh(z / cap) ** 2) / o["temperature"]
        lse = np.log(np.sum(np.exp(u[kept])))
        p = np.where(kept, np.exp(u - lse), 0)
        losses[n] = weight * (a[kept] @ (lse - u[kept]) + o["z_loss"] * lse**2)
        gradients[n] = weight * (p * (a.sum() + 2 * o["z_loss"] * lse) - a) * np.where(kept, slope, 0)
        counted[n] = weight
    return reduced(losses, gradients, counted, o["reduction"])


def reduced(losses: Any, gradients: Any, counted: Any, reduction: str) -> tuple[Any, Any]:
    if reduction == "none":
        return losses, gradients
    divisor = counted.sum() if reduction == "mean" else 1.0
    return losses.sum() / divisor, gradients / divisor


def loss_and_gradient(loss: Any, logits: Any, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    value, pull = jax.vjp(lambda z: loss(z, *arguments, **options), jnp.asarray(logits))
    return value, pull(jnp.ones_like(value))[0]


def agree(got: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


# -- all options together ----------------------------------------------------------------------------------------------


def choices(options: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Every value by itself, all options together, and all but one."""
    default, everything = ({name: values[i] for name, values in options.items()} for i in (0, 1))
    single = [default | {name: value} for name, values in options.items() for value in values[1:]]
    together = [everything | {"reduction": reduction} for reduction in options["reduction"]]
    return [default, *single, *together, *(everything | {name: default[name]} for name in options)]


@pytest.mark.parametrize("labels", [LABELS, DISTRIBUTIONS], ids=["indices", "distributions"])
def test_softmax_loss_with_each_option_and_with_all_together(labels: Any) -> None:
    ignore = {} if labels.ndim == 2 else {"ignore_index": IGNORED}
    with jax.enable_x64(True):
        for options in choices(OPTIONS):
            got = loss_and_gradient(xj.softmax_cross_entropy, LOGITS, labels, **options, **ignore)
            agree(got, softmax_loss(LOGITS, labels, options))


def test_options_do_not_depend_on_the_axis_of_the_classes() -> None:
    options = {name: values[1] for name, values in OPTIONS.items()} | {"ignore_index": IGNORED, "reduction": "none"}
    first = options | {"where": KEPT.T, "axis": 0}
    with jax.enable_x64(True):
        for labels in (LABELS, DISTRIBUTIONS):
            ignore = {} if labels.ndim == 1 else {"ignore_index": None}
            loss, gradient = loss_and_gradient(xj.softmax_cross_entropy, LOGITS, labels, **options | ignore)
            moved = loss_and_gradient(xj.softmax_cross_entropy, LOGITS.T, labels.T, **first | ignore)
            agree((moved[0], moved[1].T), (loss, gradient))


BINARY = RNG.normal(0, 4, (6, 5))
TARGETS = np.where(RNG.random((6, 5)) < 0.2, IGNORED, RNG.random((6, 5)))
BINARY_OPTIONS: dict[str, tuple[Any, ...]] = {
    "label_smoothing": (0.0, 0.2),
    "pos_weight": (None, CLASS_WEIGHTS, 3.0),
    "softcap": (None, 4.0),
    "temperature": (1.0, 1.7),
    "where": (None, KEPT),
    "weights": (None, np.where(KEPT.T.reshape(6, 5), WEIGHTS[:, None], 0.7)),
    "reduction": ("none", "sum", "mean"),
}


def sigmoid_loss(x: Any, labels: Any, o: dict[str, Any]) -> tuple[Any, Any]:
    counted = np.ones(x.shape) if o["weights"] is None else o["weights"]
    counted = np.where(labels == IGNORED, 0, counted) * (1 if o["where"] is None else o["where"])
    t = (1 - o["label_smoothing"]) * labels + o["label_smoothing"] / 2
    w = 1.0 if o["pos_weight"] is None else o["pos_weight"]
    cap = o["softcap"]
    u = (x if cap is None else cap * np.tanh(x / cap)) / o["temperature"]
    slope = (1 if cap is None else 1 / np.cosh(x / cap) ** 2) / o["temperature"]
    losses = counted * (w * t * np.log1p(np.exp(-u)) + (1 - t) * np.log1p(np.exp(u)))
    gradients = counted * slope * ((1 - t) / (1 + np.exp(-u)) - w * t / (1 + np.exp(u)))
    return reduced(losses, gradients, counted, o["reduction"])


def test_sigmoid_loss_with_each_option_and_with_all_together() -> None:
    with jax.enable_x64(True):
        for options in choices(BINARY_OPTIONS):
            got = loss_and_gradient(xj.sigmoid_cross_entropy, BINARY, TARGETS, ignore_index=IGNORED, **options)
            agree(got, sigmoid_loss(BINARY, TARGETS, options))


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint32"])
@pytest.mark.parametrize("classes", [5, 200])
def test_an_index_out_of_range_is_nan_in_loss_and_gradient(dtype: str, classes: int) -> None:
    with jax.enable_x64(dtype == "int64"):
        info = jnp.iinfo(dtype)
        indices = np.array([0, classes - 1, classes, info.max, info.min], np.int64).clip(info.min, info.max)
        wrong = (indices < 0) | (indices >= classes)
        logits = jnp.zeros((5, classes), jnp.float32)
        loss, gradient = loss_and_gradient(xj.softmax_cross_entropy, logits, jnp.asarray(indices, dtype))
        np.testing.assert_array_equal(np.isnan(loss), wrong)
        np.testing.assert_array_equal(np.isnan(gradient), np.broadcast_to(wrong[:, None], gradient.shape))
        np.testing.assert_allclose(loss[~wrong], np.log(classes), rtol=1e-6)
        at_label = np.asarray(gradient)[np.arange(5), indices.clip(0, classes - 1)]
        np.testing.assert_allclose(at_label[~wrong], 1 / classes - 1, rtol=1e-6)


def test_a_wrong_index_is_not_hidden_by_reduction_smoothing_or_class_weights() -> None:
    labels = jnp.array([0, 5, 1])
    for options in ({"reduction": "mean"}, {"label_smoothing": 0.1}, {"class_weights": CLASS_WEIGHTS.astype("f4")}):
        loss = xj.softmax_cross_entropy(jnp.zeros((3, 5)), labels, **options)
        assert np.isnan(loss if loss.ndim == 0 else loss[1])


@pytest.mark.parametrize("label", [-0.1, 1.1, np.nan, 2, -1])
def test_a_binary_label_outside_of_0_and_1_is_nan(label: float) -> None:
    loss, slope = loss_and_gradient(xj.sigmoid_cross_entropy, np.float32(0.3), jnp.asarray(label))
    assert np.isnan(loss)
    assert np.isnan(slope)


@pytest.mark.parametrize("ignored", [-1, 2, 255])
def test_ignored_examples_cost_nothing_and_do_not_count(ignored: int) -> None:
    logits = jnp.asarray(LOGITS, jnp.float32).at[1].set(jnp.nan).at[3].set(jnp.inf)
    labels = jnp.array([0, ignored, 1, ignored, 3, 4], "int16" if ignored == 255 else "int32")
    counted = np.array([0, 2, 4, 5])
    for reduction in ("none", "mean", "sum"):
        got = loss_and_gradient(xj.softmax_cross_entropy, logits, labels, ignore_index=ignored, reduction=reduction)
        rest = loss_and_gradient(xj.softmax_cross_entropy, logits[counted], labels[counted], reduction=reduction)
        np.testing.assert_array_equal(got[1][counted], rest[1])
        np.testing.assert_array_equal(got[1][np.array([1, 3])], 0)
        np.testing.assert_array_equal(got[0] if reduction != "none" else got[0][counted], rest[0])


# -- weights, masks, reductions ----------------------------------------------------------------------------------------


def test_the_mean_is_zero_where_nothing_counts() -> None:
    nan = jnp.full((3, 4), jnp.nan)
    labels = jnp.array([0, 1, 2])
    none = jnp.zeros(3)
    nothing: list[tuple[Any, Any, dict[str, Any]]] = [
        (xj.softmax_cross_entropy, labels, {"weights": none}),
        (xj.softmax_cross_entropy, labels * 0 - 1, {"ignore_index": -1}),
        (xj.softmax_cross_entropy, labels, {"where": jnp.zeros((3, 4), bool), "weights": none}),
        (xj.sigmoid_cross_entropy, nan, {"where": jnp.zeros((3, 4), bool)}),
        (xj.sigmoid_cross_entropy, nan, {"weights": jnp.zeros((3, 4))}),
    ]
    for function, target, options in nothing:
        loss, gradient = loss_and_gradient(function, nan, target, reduction="mean", **options)
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)
    empty = xj.softmax_cross_entropy(jnp.zeros((0, 4)), jnp.zeros(0, int), reduction="mean")
    assert empty == 0


def test_an_example_of_weight_zero_reaches_nothing() -> None:
    weights = jnp.array([1.0, 0.0, 2.0])
    clean, holes = jnp.zeros((3, 4)), jnp.zeros((3, 4)).at[1].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0]))
    labels = jnp.array([0, 99, 2])
    full: dict[str, Any] = {"class_weights": jnp.ones(4), "label_smoothing": 0.1, "softcap": 5.0, "z_loss": 0.1}
    for options in ({}, full):

        def mean(z: Any, s: Any, options: Any = options) -> Any:
            return xj.softmax_cross_entropy(z, labels, weights=s, reduction="mean", **options)

        got = jax.value_and_grad(mean)(holes, weights)
        expected = jax.value_and_grad(mean)(clean, weights)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_masked_classes_hold_anything() -> None:
    where = jnp.array([[True, True, False, True], [False, True, True, False]])
    clean = jnp.arange(8.0).reshape(2, 4)
    options: list[dict[str, Any]] = [{}, {"softcap": 5.0, "temperature": 2.0, "label_smoothing": 0.1, "z_loss": 0.1}]
    for value, option in itertools.product((jnp.nan, jnp.inf, -jnp.inf), options):
        holes = jnp.where(where, clean, value)
        for labels in (jnp.array([0, 2]), jnp.full((2, 4), 0.25)):
            got = loss_and_gradient(xj.softmax_cross_entropy, holes, labels, where=where, **option)
            expected = loss_and_gradient(xj.softmax_cross_entropy, clean, labels, where=where, **option)
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(got[1][~where], 0)


@pytest.mark.parametrize("options", [{}, {"class_weights": jnp.ones(3)}, {"label_smoothing": 0.1}])
def test_a_label_on_a_masked_class_costs_infinitely_much(options: dict[str, Any]) -> None:
    where = jnp.array([False, True, True])
    logits = jnp.array([1.0, 2.0, 3.0])
    assert xj.softmax_cross_entropy(logits, jnp.array(0), where=where, **options) == jnp.inf
    distribution = jnp.array([jnp.nan, 0.5, 0.5])
    assert jnp.isfinite(xj.softmax_cross_entropy(logits, distribution, where=where, **options)), (
        "left out, whatever it is"
    )


@pytest.mark.parametrize("option", ["class_weights", "label_smoothing", "temperature", "softcap"])
@pytest.mark.parametrize("labels", [jnp.array([-100, 1]), jnp.array([[jnp.nan, 0.0, jnp.inf], [0.0, 1.0, 0.0]])])
def test_what_is_left_out_reaches_no_derivative_by_an_option(labels: Any, option: str) -> None:
    logits = jnp.array([[1.0, jnp.nan, 3.0], [0.0, 5.0, -1.0]])
    weights = jnp.array([0.0, 1.0])
    value = jnp.ones(3) if option == "class_weights" else jnp.asarray(0.1)

    def loss(value: Any, logits: Any, labels: Any, weights: Any) -> Any:
        return jnp.sum(xj.softmax_cross_entropy(logits, labels, weights=weights, **{option: value}))

    got = jax.grad(loss)(value, logits, labels, weights)
    np.testing.assert_array_equal(got, jax.grad(loss)(value, logits[1:], labels[1:], weights[1:]))
    assert np.all(np.isfinite(got))


@pytest.mark.parametrize("option", ["label_smoothing", "pos_weight", "temperature", "softcap"])
def test_entries_left_out_of_the_binary_loss_reach_no_derivative_by_an_option(option: str) -> None:
    logits, labels = jnp.array([1.0, 2.0, -1.0]), jnp.array([jnp.nan, 1.0, 7.0])

    def loss(value: Any) -> Any:
        where, weights = jnp.array([False, True, True]), jnp.array([1.0, 1.0, 0.0])
        return jnp.sum(xj.sigmoid_cross_entropy(logits, labels, where=where, weights=weights, **{option: value}))

    def rest(value: Any) -> Any:
        return xj.sigmoid_cross_entropy(logits[1], labels[1], **{option: value})

    assert jax.grad(loss)(0.3) == jax.grad(rest)(0.3)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"temperature": 2.0}, {"label_smoothing": 0.1}])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_derivative_by_a_weight_of_zero_is_that_of_the_loss(options: dict[str, Any], reduction: Any) -> None:
    weights = jnp.array([0.5, 0.0, 2.0])
    softmax = (xj.softmax_cross_entropy, jnp.arange(12.0).reshape(3, 4) % 5, jnp.array([3, 1, 0]))
    sigmoid = (xj.sigmoid_cross_entropy, jnp.array([1.0, -2.0, 3.0]), jnp.array([0.0, 1.0, 0.3]))
    for loss, logits, labels in (softmax, sigmoid):

        def reduced(weights: Any, loss: Any = loss, logits: Any = logits, labels: Any = labels) -> Any:
            return loss(logits, labels, weights=weights, reduction=reduction, **options)

        losses = loss(logits, labels, **options)
        mean = jnp.sum(weights * losses) / jnp.sum(weights)
        expected = losses if reduction == "sum" else (losses - mean) / jnp.sum(weights)
        np.testing.assert_allclose(jax.grad(reduced)(weights), expected, rtol=1e-6, atol=1e-7)


# -- hyperparameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [("temperature", (0, -1.0), 2.0), ("softcap", (0, -1.0), 2.0), ("label_smoothing", (-0.1, 1.5), 1.0)],
)
def test_hyperparameters_outside_of_their_range_are_refused(loss: str, option: str, wrong: Any, right: float) -> None:
    labels = jnp.array([0, 1]) if loss == "softmax" else jnp.ones((2, 3))
    function = getattr(xj, f"{loss}_cross_entropy")
    logits = jnp.ones((2, 3))
    assert np.all(np.isfinite(function(logits, labels, **{option: right})))
    for value in wrong:
        with pytest.raises(ValueError, match=f"{loss}_cross_entropy: {option} must be .*, got {value}"):
            function(logits, labels, **{option: value})
        assert np.all(np.isnan(function(logits, labels, **{option: jnp.asarray(value, jnp.float32)})))
    for shape in ((3,), (2, 1)):
        with pytest.raises(ValueError, match=re.escape(f"{option} has shape {shape}, but needs (), one number")):
            function(logits, labels, **{option: jnp.ones(shape)})


def test_smoothing_of_the_binary_loss_loses_no_digits() -> None:
    # 1 - t is as small as ε/2, and 1 - (1 - ε/2) would have lost what ε/2 is smaller by.
    x, smoothing = np.float32(-3.0), np.float32(1e-6)
    loss, slope = loss_and_gradient(xj.sigmoid_cross_entropy, x, np.float32(1), label_smoothing=smoothing)
    half, exact = np.float64(smoothing) / 2, np.float64(x)
    p = 1 / (1 + np.exp(-exact))
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(
        loss, (1 - half) * np.log1p(np.exp(-exact)) + half * np.log1p(np.exp(exact)), rtol=4 * eps
    )
    np.testing.assert_allclose(slope, half * p - (1 - half) * (1 - p), rtol=4 * eps)
    far, slope = loss_and_gradient(xj.sigmoid_cross_entropy, np.float32(30.0), np.float32(1), label_smoothing=smoothing)
    np.testing.assert_allclose(far, half * 30 + np.log1p(np.exp(-30.0)), rtol=4 * eps)
    np.testing.assert_allclose(slope, half - np.exp(-30.0) / (1 + np.exp(-30.0)), rtol=4 * eps)


# -- masses on classes of probability zero -----------------------------------------------------------------------------


@pytest.mark.parametrize("mass", [1.0, 1e-3, 1e-30, 2e-38])
@pytest.mark.parametrize("classes", [2, 40, 300])
def test_any_mass_on_an_impossible_class_costs_infinitely_much(classes: int, mass: float) -> None:
    labels = jnp.zeros(classes).at[0].set(1.0).at[1].set(mass)
    flat = jnp.zeros(classes)
    assert xj.softmax_cross_entropy(flat.at[1].set(-jnp.inf), labels) == jnp.inf
    assert xj.softmax_cross_entropy(flat.at[0].set(jnp.inf), labels) == jnp.inf
    without = labels.at[1].set(0.0)
    assert xj.softmax_cross_entropy(flat.at[0].set(jnp.inf), without) == 0
    expected = np.float32(np.log(classes - 1)) if classes > 2 else 0
    np.testing.assert_allclose(xj.softmax_cross_entropy(flat.at[1].set(-jnp.inf), without), expected, rtol=1e-6)


def test_a_depth_beyond_the_largest_number_is_not_taken_for_infinity() -> None:
    logits, labels = jnp.array([3e38, -3e38, 0.0]), jnp.array([1.0, 1e-30, 0.0])
    np.testing.assert_allclose(xj.softmax_cross_entropy(logits, labels), 6e8, rtol=4 * np.finfo(np.float32).eps)
