"""Arrays of NumPy in 64 bits where JAX has 32: no digit is lost that float32 can hold, and none unsaid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj

pytestmark = pytest.mark.usefixtures("compiled_fast")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 3))
Y = (RNG.random(300) < 1 / (1 + np.exp(-X @ [0.55, 1, -1]))).astype(int)
Y3 = np.where(X[:, 0] + RNG.standard_normal(300) > 0.8, 2, Y)
#: Means of 1e6, of 1e4 times the deviation, and of none of it.
MEANS = np.array([1e6, 1e4, 0.0])


@pytest.fixture(scope="module", autouse=True)
def _float32():
    with jax.enable_x64(False):
        yield


def in_float64(function, *args, **options):
    with jax.enable_x64(True):
        return jax.device_get(function(*args, **options))


def assert_params(got, expected):
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.asarray(g).dtype == np.float32
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("y", [Y, Y3], ids=["two classes", "three classes"])
def test_a_mean_of_1e6_leaves_all_digits(y):
    got, expected = xj.fit_logistic(X + MEANS, y), in_float64(xj.fit_logistic, X + MEANS, y)
    assert got.status == "converged"
    assert_params(got.params, expected.params)
    np.testing.assert_allclose(got.std_err.weights, expected.std_err.weights, rtol=1e-3)
    np.testing.assert_allclose(got.std_err.bias, expected.std_err.bias, rtol=1e-3)
    assert got.precision == "float32"
    assert "computed in float32; in float64 after jax.config" in got.summary()


def test_so_do_many_fits_and_paths():
    expected = in_float64(xj.fit_logistic, X + MEANS, Y).params
    shared = xj.fit_many(X + MEANS, Y, weights=np.stack([np.ones(300), np.arange(300) % 2]))
    assert_params(shared[0].params, expected)
    own = xj.fit_many(np.stack([X, X + MEANS]), np.stack([Y, Y]))
    assert_params(own[1].params, expected)
    groups = xj.fit_many([X[:100], X + MEANS, X.astype(np.float32)], [Y[:100], Y, Y])
    assert_params(groups[1].params, expected)
    assert all((fits.status == "converged").all() for fits in (shared, own, groups))
    options = {"lambdas": [0.1, 0.01], "tol": 1e-6}
    path = xj.fit_path(X + MEANS, Y, **options)
    assert_params(path.params, in_float64(xj.fit_path, X + MEANS, Y, **options).params)
    assert "computed in float32" in path.summary()
    np.testing.assert_allclose(xj.lambda_max(X + MEANS, Y), in_float64(xj.lambda_max, X, Y), rtol=1e-4)


def test_what_rows_without_weight_hold_does_not_matter():
    weights = np.ones(300)
    weights[7] = 0
    x = X + MEANS
    expected = xj.fit_logistic(x, Y, weights=weights)
    for garbage in (np.nan, 1e300, 1e20):
        x[7] = garbage
        assert_params(xj.fit_logistic(x, Y, weights=weights).params, expected.params)


def test_integers_beyond_the_digits_of_float32():
    x = np.round(1000 * X).astype(np.int64)
    got = xj.fit_logistic(x + 3_000_000_000, Y)
    np.testing.assert_allclose(got.params.weights, xj.fit_logistic(x, Y).params.weights, rtol=1e-5)


def test_without_intercept_features_stay_where_they_are():
    got = xj.fit_logistic(X + 3, Y, fit_intercept=False)
    assert_params(got.params, in_float64(xj.fit_logistic, X + 3, Y, fit_intercept=False).params)


def test_an_init_is_that_of_the_features_as_given():
    fit = xj.fit_logistic(X + MEANS, Y)
    again = xj.fit_logistic(X + MEANS, Y, init=fit.params)
    assert again.status == "converged"
    assert_params(again.params, fit.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X * [1e200, 1, 1]}, "beyond the range of float32"),
        ({"x": X * [1, 1e-30, 1]}, r"x\[:, 1\] varies by less than 1e-18, too little for float32"),
        ({"y": Y + 2**32}, r"y\[\d\] is 429496729\d, beyond int32"),
        ({"weights": np.full(300, 2**40)}, r"weights\[0\] is 1099511627776, beyond int32"),
        ({"weights": np.full(300, 1e38)}, "weights sum to 3e[+]40, beyond the range of float32"),
        ({"weights": np.full(300, 1e-41)}, "weights sum to 2.9999e-39, beyond the range of float32"),
    ],
)
def test_what_float32_cannot_hold_is_an_error(change, message):
    arguments = {"x": X, "y": Y} | change
    with pytest.raises(ValueError, match=message):
        xj.fit_logistic(**arguments)


def test_the_solution_of_minimum_norm():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((5, 20)), np.array([0.2, 0.6, 0.3, 0.5, 0.7])
    fit = xj.fit_logistic(x, y)
    assert fit.status == "rank_deficient"
    np.testing.assert_allclose(fit.params.weights, in_float64(xj.fit_logistic, x, y).params.weights, atol=1e-5)


def test_arrays_of_jax_are_taken_as_they_are():
    fit = xj.fit_logistic(jnp.asarray(X), jnp.asarray(Y))
    assert_params(fit.params, in_float64(xj.fit_logistic, X, Y).params)
