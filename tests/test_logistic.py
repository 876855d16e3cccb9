"""Logistic and softmax regression: closed forms against the plain formula, float64 numpy and finite differences."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import xentjax as xj
from xentjax import LogisticObjective, LogisticParams
from xentjax.models import spectrum

N, D, K = 7, 3, 4


pytestmark = pytest.mark.usefixtures("compiled_fast", "strict_dtypes")


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def problem(kind: str, scale: float = 1.0, weighted: bool = False) -> Any:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((N, D))
    shape = () if kind in ("binary", "probabilities") else (K,)
    y = {
        "binary": rng.integers(0, 2, N),
        "probabilities": rng.random(N),
        "classes": rng.integers(0, K, N),
        "distributions": rng.dirichlet(np.ones(K), N),
        "masses": 2 * rng.random((N, K)),
    }[kind]
    params = LogisticParams(rng.standard_normal((D, *shape)) * scale, rng.standard_normal(shape) * scale)
    weights = np.where(np.arange(N) == 2, 0, rng.random(N)) if weighted else None
    return jax.tree.map(jnp.asarray, (params, x, y, weights))


def plain_loss(params, x, y, l2=0.0, weights=None):
    """The textbook formula in plain JAX, nothing of the library in it."""
    z = x @ params.weights + params.bias
    if z.ndim == 1:
        y = y.astype(z.dtype)
        loss = -(y * jnp.log(1 / (1 + jnp.exp(-z))) + (1 - y) * jnp.log(1 / (1 + jnp.exp(z))))
    else:
        target = y if y.ndim == 2 else jnp.eye(K)[y]
        loss = -jnp.sum(target * (z - jnp.log(jnp.sum(jnp.exp(z), axis=1, keepdims=True))), axis=1)
    s = jnp.ones(N) if weights is None else weights
    return jnp.sum(s * loss) / jnp.sum(s) + l2 / 2 * jnp.sum(params.weights**2)


def assert_close(got, expected, rtol=1e-12, atol=2e-14):
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    for g, e in zip(got, expected, strict=True):
        assert jnp.shape(g) == jnp.shape(e)
        np.testing.assert_allclose(g, e, rtol=rtol, atol=atol)


@jax.jit
def by_hand(params, x, y, weights, direction):
    """Value, gradient, Hessian and product in closed form, and what JAX makes of the record's own rule."""
    options = {"l2": jnp.asarray(0.3), "weights": weights}
    gradient = xj.logistic_gradient(params, x, y, **options)
    hessian = xj.logistic_hessian(params, x, y, **options)
    product = xj.logistic_hvp(params, direction, x, y, **options)
    value, reverse = jax.value_and_grad(xj.logistic_loss)(params, x, y, **options)
    reverse_over_reverse = jax.jacrev(jax.grad(xj.logistic_loss))(params, x, y, **options)
    return value, gradient, hessian, product, reverse, reverse_over_reverse


@jax.jit
def automatic(params, x, y, weights, direction):
    def plain(p):
        return plain_loss(p, x, y, 0.3, weights)

    (value, gradient), hessian = jax.value_and_grad(plain)(params), jax.hessian(plain)(params)
    product = jax.jvp(jax.grad(plain), (params,), (direction,))[1]
    return value, gradient, hessian, product, gradient, hessian


@pytest.mark.parametrize(
    ("kind", "weighted"),
    [("binary", False), ("probabilities", True), ("classes", True), ("distributions", False), ("masses", True)],
)
def test_closed_forms_equal_automatic_derivatives_of_the_plain_formula(kind, weighted):
    for scale in (0.0, 1.0, 4.0):
        params, x, y, weights = problem(kind, scale, weighted)
        direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)
        assert_close(by_hand(params, x, y, weights, direction), automatic(params, x, y, weights, direction))


@pytest.mark.parametrize("kind", ["binary", "probabilities", "classes", "masses"])
def test_every_argument_has_its_derivatives_up_to_second_order(kind):
    params, x, y, weights = problem(kind, 1.0, True)
    wrt = (0, 1, 2, 3, 4) if jnp.issubdtype(y.dtype, jnp.floating) else (0, 1, 3, 4)

    def ours(params, x, y, l2, weights):
        return xj.logistic_loss(params, x, y, l2=l2, weights=weights)

    arguments = (params, x, y, jnp.asarray(0.3), weights)

    @jax.jit
    def derivatives(*arguments):
        return [[d(loss, wrt)(*arguments) for d in (jax.grad, jax.hessian)] for loss in (ours, plain_loss)]

    assert_close(*derivatives(*arguments))


@pytest.mark.parametrize("kind", ["binary", "distributions"])
def test_gradient_and_hvp_equal_central_differences(kind):
    params, x, y, weights = problem(kind, 1.0, True)
    h = 1e-5
    options = {"l2": 0.3, "weights": weights}
    flat, unflatten = ravel_pytree(params)
    flat, v = np.asarray(flat), np.arange(1.0, flat.size + 1) / flat.size

    @jax.jit
    def at(p):
        """The plain loss, our gradient, and our Hessian along v."""
        gradient = xj.logistic_gradient(unflatten(p), x, y, **options)
        product = xj.logistic_hvp(unflatten(p), unflatten(jnp.asarray(v)), x, y, **options)
        return plain_loss(unflatten(p), x, y, 0.3, weights), ravel_pytree(gradient)[0], ravel_pytree(product)[0]

    ends = [(at(flat + h * e), at(flat - h * e)) for e in np.eye(flat.size)]
    numeric, hessian = ([(np.asarray(a[i]) - b[i]) / (2 * h) for a, b in ends] for i in (0, 1))
    _, gradient, product = at(flat)
    # The error is h² times a third derivative of about 1, plus eps / h.
    np.testing.assert_allclose(gradient, np.array(numeric), atol=1e-9)
    np.testing.assert_allclose(product, np.array(hessian) @ v, atol=1e-8)


def test_the_textbook_steps_lead_to_the_gradient():
    """∂L/∂ŷ ∂ŷ/∂β is (1/n) Xᵀ(ŷ - y): the factor ŷ(1-ŷ) cancels."""
    params, x, y, _ = problem("binary")
    y = y.astype(x.dtype)
    prediction = xj.predict_proba(params, x)
    assert_close(xj.logistic_derivative(xj.predict_logits(params, x)), prediction * (1 - prediction))
    step = xj.prediction_gradient(params, x)
    assert_close(step.weights, (prediction * (1 - prediction))[:, None] * x)
    by_prediction = -(y / prediction - (1 - y) / (1 - prediction)) / N
    gradient = xj.logistic_gradient(params, x, y)
    assert_close((by_prediction @ step.weights, by_prediction @ step.bias), gradient)
    assert_close(gradient, (x.T @ (prediction - y) / N, jnp.mean(prediction - y)))


@pytest.mark.parametrize("kind", ["binary", "classes"])
def test_prediction_gradient_is_the_jacobian(kind):
    params, x, _, _ = problem(kind)
    gradient = jax.jit(xj.prediction_gradient)(params, x)
    assert_close(gradient, jax.jit(jax.jacobian(xj.predict_proba))(params, x))
    assert_close(jax.jit(xj.prediction_gradient)(params, x[0]), jax.tree.map(lambda g: g[0], gradient))


@pytest.mark.parametrize("kind", ["binary", "classes", "distributions"])
def test_rows_of_weight_zero_are_not_there(kind):
    params, x, y, weights = problem(kind, 1.0, True)
    kept = np.arange(N) != 2
    bad_y = y.at[2].set(jnp.nan if jnp.issubdtype(y.dtype, jnp.floating) else -5)
    bad = LogisticObjective(x.at[2].set(jnp.nan), bad_y, l2=0.1, weights=weights)
    good = LogisticObjective(x[kept], y[kept], l2=0.1, weights=weights[kept])

    @jax.jit
    def everything(objective):
        automatic = dataclasses.replace(objective, gradient="auto")
        derivatives = objective.value_and_gradient(params), jax.value_and_grad(objective.value)(params)
        second = objective.value_gradient_hessian(params)[2], objective.hvp(params, params), objective.lipschitz()
        return *derivatives, automatic.value_and_gradient(params), *second

    assert_close(everything(bad), everything(good))
    value, gradient, *_ = everything(dataclasses.replace(bad, l2=0.0, weights=jnp.zeros(N)))[0]
    assert value == 0
    assert all(jnp.all(g == 0) for g in gradient)


@pytest.mark.parametrize(("kind", "label"), [("binary", 2), ("probabilities", 1.5), ("classes", K), ("classes", -1)])
@pytest.mark.parametrize("gradient", ["hand", "auto"])
def test_labels_out_of_range_are_never_silent(kind, label, gradient):
    params, x, y, _ = problem(kind)
    objective = LogisticObjective(x, y.at[1].set(label), gradient=gradient)
    value, slope = jax.jit(LogisticObjective.value_and_gradient)(objective, params)
    assert jnp.isnan(value)
    assert all(jnp.all(jnp.isnan(g)) for g in slope)
    if gradient == "hand":
        assert jnp.isnan(jax.jit(LogisticObjective.value_gradient_hessian)(objective, params)[2]).any()


def test_confident_predictions_keep_their_digits():
    """At a logit of 40 the loss is e^-40, which 1 - ŷ in float32 cannot hold."""
    x = jnp.array([[40.0], [-40.0]], jnp.float32)
    binary = LogisticParams(jnp.ones(1, jnp.float32), jnp.zeros((), jnp.float32))
    classes = LogisticParams(jnp.array([[0.0, 1.0]], jnp.float32), jnp.zeros(2, jnp.float32))
    for params in (binary, classes):
        value = xj.logistic_loss(params, x, jnp.array([1, 0]))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, np.log1p(np.exp(-40.0)), rtol=4 * np.finfo(np.float32).eps)
        gradient = jax.jit(xj.logistic_gradient)(params, x, jnp.array([1, 0])).weights.reshape(-1)[-1]
        np.testing.assert_allclose(gradient, -40 * np.exp(-40.0), rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_inputs_are_computed_in_float32(dtype):
    params, x, y, weights = problem("binary", 1.0, True)
    narrow = jax.tree.map(lambda a: a.astype(dtype), (params, x, weights))
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
    value = xj.logistic_loss(narrow[0], narrow[1], y, weights=narrow[2])
    gradient = jax.jit(xj.logistic_gradient)(narrow[0], narrow[1], y, weights=narrow[2])
    assert value.dtype == gradient.weights.dtype == dtype
    assert value == xj.logistic_loss(wide[0], wide[1], y, weights=wide[2]).astype(dtype)
    assert LogisticObjective(narrow[1], y).init().weights.dtype == jnp.float32


def test_predictions():
    params = LogisticParams(jnp.array([2.0]), jnp.asarray(0.0))
    x = jnp.array([[-1.0], [0.0], [0.1], [jnp.nan]])
    assert xj.predict(params, x).tolist() == [0, 0, 1, -1]
    assert xj.predict(params, x).dtype == jnp.int32
    np.testing.assert_allclose(xj.predict_proba(params, x)[:3], 1 / (1 + np.exp([2.0, 0.0, -0.2])), rtol=1e-14)
    params, x, _, _ = problem("classes")
    proba = xj.predict_proba(params, x)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-14)
    assert xj.predict(params, x).tolist() == proba.argmax(axis=1).tolist()
    assert xj.predict(LogisticParams(jnp.zeros((D, K)), jnp.zeros(K)), x).tolist() == [0] * N


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((N, D + 1))}, r"x has shape \(7, 4\), but needs \[..., 3\]"),
        ({"y": jnp.zeros(N + 1)}, r"y has shape \(8,\), but needs \(7,\)"),
        ({"weights": jnp.ones((N, 1))}, r"weights has shape \(7, 1\), but needs \(7,\)"),
        ({"params": LogisticParams(jnp.zeros(D), jnp.zeros(1))}, r"params.bias has shape \(1,\), but needs \(\)"),
        ({"params": LogisticParams(jnp.zeros((D, K)), jnp.zeros(K))}, r"y has shape \(7,\), but needs \(7, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    params, x, y, _ = problem("probabilities")
    arguments = {"params": params, "x": x, "y": y} | change
    for function in (xj.logistic_loss, xj.logistic_gradient, xj.logistic_hessian):
        with pytest.raises(ValueError, match=message):
            function(**arguments)


@pytest.mark.parametrize("shape", [(40, 6), (5, 30)])
@pytest.mark.parametrize("kind", ["signed", "positive", "one column dominates", "rank one"])
def test_lipschitz_bounds_every_hessian(shape, kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    if kind == "positive":
        x = np.abs(x) + 3
    if kind == "one column dominates":
        x[:, 0] *= 1e3
    if kind == "rank one":
        x = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    y = jnp.asarray(rng.integers(0, 2, shape[0]))
    s = rng.random(shape[0])
    x1 = np.concatenate([x, np.ones((shape[0], 1))], axis=1)
    largest = np.linalg.eigvalsh(x1.T @ (x1 * s[:, None]) / s.sum())[-1]
    lipschitz = jax.jit(LogisticObjective.lipschitz)
    for dtype in (jnp.float32, jnp.float64):
        for classes, factor in ((None, 0.25), (3, 0.5)):
            objective = LogisticObjective(jnp.asarray(x, dtype), y, 0.1, jnp.asarray(s, dtype), num_classes=classes)
            bound = float(lipschitz(objective))
            assert factor * largest + 0.1 <= bound <= 1.1 * (factor * largest + 0.1)


def test_lipschitz_without_the_gram_matrix(monkeypatch):
    monkeypatch.setattr(spectrum, "_GRAM_LIMIT", 0)
    x = np.random.default_rng(0).random((50, 20))
    x1 = np.concatenate([x, np.ones((50, 1))], axis=1)
    largest = np.linalg.eigvalsh(x1.T @ x1 / 50)[-1]
    bound = float(LogisticObjective(jnp.asarray(x), jnp.zeros(50)).lipschitz())
    assert largest / 4 <= bound <= 1.01 * largest / 4  # exact for data without negative numbers


def test_gradient_error_tells_the_size_of_the_rounding_error():
    rng = np.random.default_rng(1)
    ratios = []
    gradient, error = jax.jit(xj.logistic_gradient), jax.jit(LogisticObjective.gradient_error)
    for n, scale in ((50, 1.0), (2000, 0.1), (2000, 20.0)):
        x = rng.standard_normal((n, 8)).astype(np.float32) * np.float32(scale)
        for seed in range(4):
            w = np.random.default_rng(seed).standard_normal(8).astype(np.float32)
            params = LogisticParams(jnp.asarray(w), jnp.asarray(0.25, jnp.float32))
            y = jnp.asarray((rng.random(n) < 0.5 + 0.5 * np.tanh(x @ w / 2)).astype(np.int32))
            wide = jax.tree.map(lambda p: p.astype(jnp.float64), params)
            exact = gradient(wide, x.astype(np.float64), y)
            got = gradient(params, x, y)
            largest = max(float(jnp.max(jnp.abs(g.astype(e.dtype) - e))) for g, e in zip(got, exact, strict=True))
            ratios.append(largest / float(error(LogisticObjective(jnp.asarray(x), y), params)))
    assert max(ratios) < 4
    assert np.median(ratios) > 0.05


def test_init_has_the_shapes_of_the_problem():
    x = jnp.zeros((4, 3))
    assert LogisticObjective(x, jnp.array([0, 1, 1, 0])).init().weights.shape == (3,)
    assert LogisticObjective(x, jnp.array([0, 1, 2, 0])).init().weights.shape == (3, 3)
    assert LogisticObjective(x, jnp.zeros((4, 5))).init().bias.shape == (5,)
    assert LogisticObjective(x, jnp.array([0, 1, 1, 0]), num_classes=2).init().bias.shape == (2,)
    with pytest.raises(ValueError, match="'hand' or 'auto', got 'automatic'"):
        LogisticObjective(x, jnp.zeros(4), gradient="automatic")


def test_data_that_do_not_fit_are_told_where_a_fit_begins():
    x = np.zeros((4, 3))

    def message(y, **options):
        with pytest.raises(ValueError) as error:
            LogisticObjective(x, y, **options).init()
        return str(error.value)

    assert "y has shape (3,), but needs (4,)" in message(np.zeros(3))
    assert message([0, 1, -1, 1]) == "LogisticObjective: y[2] is -1, but needs to be 0, 1 or a probability between them"
    assert "y[1] is -1, but needs to be a class index from 0 to 2" in message(jnp.array([0, -1, 2, -5]))
    assert "y[3] is 3, but needs to be a class index from 0 to 2" in message([0, 1, 2, 3], num_classes=3)
    assert "y[0] is nan, but" in message([np.nan, 0.0, 2.0, 1.0])
    assert "y[1] is [ 2. -1.], but needs to be masses of 0 or more" in message([[0, 1.0], [2, -1], [0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"x has shape \(3,\), but needs \[n, 3\]"):
        LogisticObjective(np.zeros(3), [0, 1, 1]).init()
    # Rows of weight 0 may hold any label, and what is traced is not looked at.
    assert LogisticObjective(x, [0, 9, -7, 1], weights=np.array([1.0, 0, 0, 1])).init().weights.shape == (3,)
    assert jax.jit(lambda y: LogisticObjective(x, y).init())(jnp.array([0, 1, -1, 1])).bias == 0
    many = LogisticObjective(np.zeros((2, 4, 3)), np.zeros((2, 4), int), l2=np.ones(2))
    assert jax.vmap(LogisticObjective.init)(many).weights.shape == (2, 3)


@pytest.mark.parametrize("params", [(np.zeros(3), 0.0), 3, None])
def test_parameters_are_of_their_type(params):
    x, y = np.zeros((4, 3)), np.zeros(4)
    for function in (xj.predict_logits, xj.predict_proba, xj.predict, xj.prediction_gradient):
        with pytest.raises(
            TypeError, match=rf"{function.__name__}: params must be LogisticParams\(weights, bias\), got"
        ):
            function(params, x)
    for function in (xj.logistic_gradient, xj.logistic_hessian):
        with pytest.raises(TypeError, match=r"params must be LogisticParams\(weights, bias\), got"):
            function(params, x, y)
    with pytest.raises(TypeError, match=r"direction must be LogisticParams\(weights, bias\), got"):
        xj.logistic_hvp(xj.LogisticParams(np.zeros(3), 0.0), params, x, y)
