"""L1 penalties and elastic nets: minima by their optimality conditions in numpy, and zeros that others find too."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimality import mean_loss, unmet
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split

import xentjax as xj
from xentjax.solvers.penalty import smallest_subgradient, soft_threshold

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def breast(columns=12, rows=200):
    x, y = load_breast_cancer(return_X_y=True)
    x, y = x[:rows, :columns], y[:rows]
    return (x - x.mean(0)) / x.std(0), y


X, Y = breast()
TOP = np.abs((Y - Y.mean()) @ X).max() / len(Y)


def value(params, x, y, l1, l2=0.0):
    w = np.asarray(params.weights)
    return mean_loss(params, x, y) + l1 * np.abs(w).sum() + l2 / 2 * (w @ w)


def theirs(x, y, l1, l2=0.0):
    """Coefficients of scikit-learn's SAGA at a tolerance that costs it thousands of passes."""
    total, n = l1 + l2, len(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return LogisticRegression(
            C=1 / (n * total), l1_ratio=l1 / total, solver="saga", tol=1e-10, max_iter=100_000
        ).fit(x, y)  # fmt: skip


@pytest.mark.parametrize("l2", [0.0, 0.02])
@pytest.mark.parametrize("solver", ["auto", "proximal-gradient"])
def test_the_minimum_and_its_zeros(solver, l2):
    l1 = TOP / 10
    fit = xj.fit_logistic(X, Y, l1=l1, l2=l2, solver=solver)
    peer = theirs(X, Y, l1, l2)
    assert fit.status == "converged", fit.message
    assert unmet(fit.params, X, Y, l1, l2) <= 1e-8
    np.testing.assert_array_equal(fit.params.weights == 0, peer.coef_[0] == 0)
    np.testing.assert_allclose(fit.params.weights, peer.coef_[0], atol=1e-6)
    np.testing.assert_allclose(fit.objective, value(fit.params, X, Y, l1, l2), rtol=1e-13)
    assert 0 < np.sum(np.asarray(fit.params.weights) == 0) < X.shape[1]


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_many_classes(l2):
    x, y = load_iris(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    l1 = 0.02
    fit = xj.fit_logistic(x, y, l1=l1, l2=l2)
    assert fit.status == "converged", fit.message
    assert unmet(fit.params, x, y, l1, l2) <= 1e-8
    np.testing.assert_allclose(jnp.sum(fit.params.bias), 0, atol=1e-12)
    peer = theirs(x, y, l1, l2)
    np.testing.assert_array_equal(np.asarray(fit.params.weights).T == 0, peer.coef_ == 0)
    np.testing.assert_allclose(np.asarray(fit.params.weights).T, peer.coef_, atol=1e-5)


@pytest.mark.parametrize("l1", [0.001, 0.03])
def test_four_classes_whose_coefficients_no_curvature_holds(l1):
    """With an even number of classes a number added to a feature's coefficients may change nothing at all."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 6)), rng.integers(0, 4, 200)
    x[np.arange(200), y] += 1.0
    objective = xj.LogisticObjective(jnp.asarray(x), jnp.asarray(y), l1=l1, num_classes=4)
    solution = xj.minimize(objective, objective.init(), xj.ProximalNewton(), tol=1e-9)
    assert solution.status == "converged"
    assert unmet(solution.params, x, y, l1) <= 1e-8


def test_raw_features_have_the_penalty_of_the_users_units():
    """Means of a million and columns of any size: the same minimum as that of clean data with the factors to match."""
    scale, mean = np.geomspace(1e-3, 1e3, X.shape[1]), np.linspace(-1e4, 1e4, X.shape[1])
    l1 = TOP / 10
    clean = xj.fit_logistic(X, Y, l1=l1)
    raw = xj.fit_logistic((X + mean) * scale, Y, l1=l1 * scale)
    assert raw.status == "converged"
    np.testing.assert_array_equal(raw.params.weights == 0, clean.params.weights == 0)
    # The features themselves are rounded: 1e4 · 2⁻⁵³ of a standard deviation.
    np.testing.assert_allclose(raw.params.weights * scale, clean.params.weights, rtol=1e-9)


def test_from_the_largest_factor_on_all_weights_are_zero():
    top = float(xj.lambda_max(X, Y))
    np.testing.assert_allclose(top, TOP, rtol=1e-12)
    for l1 in (top, 1.5 * top):
        fit = xj.fit_logistic(X, Y, l1=l1)
        assert fit.status == "converged"
        assert not np.any(fit.params.weights)
        np.testing.assert_allclose(fit.params.bias, np.log(Y.mean() / (1 - Y.mean())), rtol=1e-12)
        assert fit.degrees_of_freedom == 1
    assert np.sum(np.asarray(xj.fit_logistic(X, Y, l1=0.99 * top).params.weights) != 0) == 1


def test_the_largest_factor_with_weights_and_an_offset():
    rng = np.random.default_rng(1)
    weights, offset = rng.integers(0, 3, len(X)).astype(float), rng.standard_normal(len(X))
    given = {"weights": weights, "offset": offset}
    top = float(xj.lambda_max(X, Y, **given))
    # The intercept of the model without features, by bisection.
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        above = weights @ (1 / (1 + np.exp(-(offset + middle))) - Y) > 0
        low, high = (low, middle) if above else (middle, high)
    slopes = (weights * (1 / (1 + np.exp(-(offset + low))) - Y)) @ X / weights.sum()
    np.testing.assert_allclose(top, np.abs(slopes).max(), rtol=1e-10)
    assert not np.any(xj.fit_logistic(X, Y, l1=top, **given).params.weights)
    assert np.any(xj.fit_logistic(X, Y, l1=0.999 * top, **given).params.weights)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_largest_factor_of_classes(fit_intercept):
    x, y = load_iris(return_X_y=True)
    shares = np.bincount(y) / len(y) if fit_intercept else np.full(3, 1 / 3)
    expected = np.abs(x.T @ (shares - np.eye(3)[y])).max() / len(x)
    np.testing.assert_allclose(xj.lambda_max(x, y, fit_intercept=fit_intercept), expected, rtol=1e-12)


def test_no_factor_is_the_smooth_fit():
    smooth = xj.fit_logistic(X, Y, l2=0.01)
    np.testing.assert_array_equal(xj.fit_logistic(X, Y, l2=0.01, l1=0.0).params.weights, smooth.params.weights)
    # An array is a penalty, whatever it holds: the same minimum by another way.
    traced = xj.fit_logistic(X, Y, l2=0.01, l1=jnp.zeros(()))
    assert (smooth.solver, traced.solver) == ("newton", "proximal-newton")
    np.testing.assert_allclose(traced.params.weights, smooth.params.weights, rtol=1e-10)


def test_separated_data_have_a_minimum_with_a_penalty_and_none_without():
    y = (X[:, 0] + X[:, 5] > 0).astype(int)
    fit = xj.fit_logistic(X, y, l1=1e-3)
    assert fit.status == "converged"
    assert unmet(fit.params, X, y, 1e-3) <= 1e-8
    none = xj.fit_logistic(X, y, l1=np.zeros(()))
    assert none.status == "separated"
    assert none.completely_separated


def test_equal_constant_and_empty_columns():
    x = X.copy()
    x[:, 3], x[:, 4], x[:, 7] = x[:, 0], 1, 0
    fit = xj.fit_logistic(x, Y, l1=TOP / 10)
    assert fit.status == "converged"
    assert unmet(fit.params, x, Y, TOP / 10) <= 1e-8
    assert not np.any(fit.params.weights[np.array([4, 7])])


def test_a_factor_is_no_less_where_free_columns_depend_on_each_other():
    x, l1 = X[:, [0, 0, 0, 1]], np.array([TOP / 4, 0.0, 0.0, TOP / 4])
    fit, single = xj.fit_logistic(x, Y, l1=l1), xj.fit_logistic(x[:, 2:], Y, l1=l1[2:])
    assert fit.status == "rank_deficient"
    half, other = np.asarray(single.params.weights) / [2, 1]
    np.testing.assert_allclose(fit.params.weights, [0, half, half, other], rtol=1e-8)
    assert fit.params.weights[0] == 0


@pytest.mark.parametrize("number", [100, 10])
def test_weights_and_rows_that_count_for_nothing(number):
    """With ten rows there are more features than rows."""
    rows = np.arange(len(X))
    weights = np.where(rows % (len(X) // number) == 0, 1 + rows % 3, 0).astype(float)
    spoiled = np.where(weights[:, None] == 0, np.nan, X)
    fit = xj.fit_logistic(spoiled, Y, l1=0.02, l2=0.01, weights=weights)
    assert fit.status == "converged"
    assert unmet(fit.params, X, Y, 0.02, 0.01, weights) <= 1e-8
    assert fit.num_observations == weights.sum()


@pytest.mark.parametrize("columns", [11, 12])
def test_factors_of_features_some_of_them_free(columns):
    x, l1 = X[:, :columns], np.where(np.arange(columns) < 2, 0, 0.05)
    fit = xj.fit_logistic(x, Y, l1=l1)
    assert fit.status == "converged"
    assert unmet(fit.params, x, Y, l1) <= 1e-8
    assert np.all(fit.params.weights[:2] != 0)


def test_float32_finds_the_same_zeros():
    truth = xj.fit_logistic(X, Y, l1=TOP / 10)
    with jax.enable_x64(False):
        objective = xj.LogisticObjective(jnp.asarray(np.float32(X)), jnp.asarray(Y), l1=TOP / 10)
        solution = xj.minimize(objective, objective.init(), xj.ProximalNewton(), tol=1e-6)
    assert solution.status == "converged"
    np.testing.assert_array_equal(solution.params.weights == 0, truth.params.weights == 0)
    np.testing.assert_allclose(solution.params.weights, truth.params.weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("l1_ratio", [0.25, 0.5])
def test_hardly_any_penalty_where_columns_depend_on_others(l1_ratio):
    """The Hessian is singular, and one of fewer digits has negative curvature."""
    x, y = make_classification(500, random_state=0)
    x, _, y, _ = train_test_split(x, y, random_state=0)
    for train, _ in StratifiedKFold(5).split(x, y):
        fit = xj.fit_logistic(x[train], y[train], l1=3e-9 * l1_ratio, l2=3e-9 * (1 - l1_ratio))
        assert fit.status == "converged", fit.gradient_norm


def test_a_factor_for_each_of_features_that_are_padded():
    one = xj.fit_logistic(X[:, :5], Y, l1=TOP / 10)
    each = xj.fit_logistic(X[:, :5], Y, l1=np.full(5, TOP / 10))
    np.testing.assert_allclose(each.params.weights, one.params.weights, rtol=1e-10)


def test_the_last_step_makes_0_of_what_would_change_its_sign():
    x, y = make_classification(1000, random_state=0)
    train, _ = list(StratifiedKFold(5).split(x, y))[4]
    x, y, alpha = x[train], y[train], 1 / len(train)
    before = xj.fit_logistic(x, y, l1=1 * alpha, l2=9 * alpha, tol=1e-3)
    fit = xj.fit_logistic(x, y, l1=0.1 * alpha, l2=0.9 * alpha, tol=1e-3, init=before.params)
    assert fit.status == "converged"
    # Near the minimum a Newton step leaves the square of what was there.
    assert fit.gradient_norm < 1e-4
    assert np.sum(fit.params.weights == 0) == 1


def test_vmap_over_factors():
    factors = jnp.asarray([TOP / 2, TOP / 20])
    fits = jax.jit(jax.vmap(lambda l1: xj.fit_logistic(X, Y, l1=l1)))(factors)
    assert np.all(fits.status == "converged")
    for i, l1 in enumerate(factors):
        assert unmet(jax.tree.map(lambda leaf, i=i: leaf[i], fits.params), X, Y, float(l1)) <= 1e-8


def test_degrees_of_freedom_are_what_is_not_zero_and_errors_are_not_defined():
    fit = xj.fit_logistic(X, Y, l1=TOP / 10)
    assert fit.degrees_of_freedom == 1 + np.sum(np.asarray(fit.params.weights) != 0)
    np.testing.assert_allclose(fit.log_likelihood, -len(X) * value(fit.params, X, Y, 0), rtol=1e-12)
    assert 0 <= fit.newton_decrement < 1e-16
    with pytest.raises(ValueError, match="with an L1 penalty they are not defined"):
        fit.std_err
    with pytest.raises(ValueError, match="with l1 there is no inference"):
        xj.fit_logistic(X, Y, l1=0.1, inference=True)
    assert "x11" in fit.summary()


@pytest.mark.parametrize(
    ("l1", "message"),
    [(-0.1, "l1 is -0.1"), (np.nan, "l1 is nan"), (np.ones(3), r"l1 has shape \(3,\), but needs \(\) or \(12,\)")],
)
def test_factors_that_are_none(l1, message):
    with pytest.raises(ValueError, match=message):
        xj.fit_logistic(X, Y, l1=l1)


# -- solvers under minimize --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver", [xj.GradientDescent(), xj.Newton(), xj.Optax(optax.adam(0.1))], ids=lambda s: type(s).__name__
)
def test_solvers_that_cannot_say_so_and_name_those_that_can(solver):
    objective = xj.LogisticObjective(X, Y, l1=0.1)
    with pytest.raises(ValueError, match=r"cannot .* L1 penalty .*: take ProximalNewton\(\) or ProximalGradient\(\)"):
        xj.minimize(objective, objective.init(), solver)
    if not isinstance(solver, xj.Optax):
        with pytest.raises(ValueError, match="L1 penalty"):
            xj.fit_logistic(X, Y, l1=0.1, solver=solver)


def huber(params):
    return jnp.sum(jnp.sqrt(1 + (params["a"] - 3) ** 2)) + (params["b"] - params["a"][0]) ** 2


@pytest.mark.parametrize("solver", [xj.ProximalNewton(), xj.ProximalGradient(), xj.ProximalGradient(0.2)], ids=repr)
def test_objectives_of_the_user(solver):
    """Σ √(1 + (a - 3)²) + (b - a₀)² + 0.5 |a| + 0.3 |b|: b = a₀ - 0.15, and the slopes of a balance."""
    init = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    factors = {"a": jnp.full(2, 0.5), "b": 0.3}
    solution = xj.minimize(xj.Objective(huber, l1=factors), init, solver, tol=1e-9, max_steps=2000)
    assert solution.status == "converged"
    # (3 - a)/√(1 + (3 - a)²) = c  ⇔  a = 3 - c/√(1 - c²), c being 0.5 and, for the one that b holds back, 0.8.
    a = [3 - c / np.sqrt(1 - c * c) for c in (0.8, 0.5)]
    np.testing.assert_allclose(solution.params["a"], a, atol=1e-8)
    np.testing.assert_allclose(solution.params["b"], a[0] - 0.15, atol=1e-8)
    penalty = 0.5 * jnp.sum(jnp.abs(solution.params["a"])) + 0.3 * jnp.abs(solution.params["b"])
    np.testing.assert_allclose(solution.value, huber(solution.params) + penalty, rtol=1e-12)
    assert solution.history.gradient_norm[solution.steps] == solution.gradient_norm


@pytest.mark.parametrize("solver", [xj.ProximalNewton(), xj.ProximalGradient()], ids=repr)
def test_without_a_penalty_they_minimize_what_is_smooth(solver):
    objective = xj.LogisticObjective(X, Y, l2=0.05)
    found = xj.minimize(objective, objective.init(), solver, tol=1e-9)
    truth = xj.minimize(objective, objective.init(), xj.Newton(), tol=1e-9)
    assert found.status == "converged"
    np.testing.assert_allclose(found.params.weights, truth.params.weights, atol=1e-7)


def test_one_factor_for_all_and_wrong_ones():
    target = jnp.array([3.0, 0.5, -2.0])
    objective = xj.Objective(lambda p: jnp.sum((p - target) ** 2) / 2, l1=1.0)
    solution = xj.minimize(objective, jnp.zeros(3), xj.ProximalNewton(), tol=1e-12)
    np.testing.assert_allclose(solution.params, [2, 0, -1], atol=1e-12)
    assert solution.params[1] == 0
    for l1, message in ((jnp.ones(2), "shape"), ((1.0, 2.0), "structure")):
        with pytest.raises(ValueError, match=message):
            xj.minimize(dataclasses.replace(objective, l1=l1), jnp.zeros(3), xj.ProximalNewton())


def test_the_smallest_subgradient():
    gradient, params = jnp.array([0.3, -0.3, 0.7, -0.7, 0.1]), jnp.array([0.0, 0.0, 0.0, 2.0, -2.0])
    got = smallest_subgradient(gradient, params, jnp.full(5, 0.5))
    np.testing.assert_allclose(got, [0, 0, 0.2, -0.2, -0.4], atol=1e-15)
    assert np.isnan(soft_threshold(jnp.array(jnp.nan), 1.0))
