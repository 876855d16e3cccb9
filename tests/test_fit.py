"""Fits: regressions solved to full precision by others, inference, and data on which every other library is wrong."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

import xentjax as xj
from xentjax.solvers.objective import evaluate
from xentjax.training import solution

pytestmark = pytest.mark.usefixtures("compiled_fast")

DATA = pathlib.Path(__file__).parent / "data"

#: Problems with their solutions in 80-bit arithmetic, checked in multi-precision.
PROBLEMS: dict[str, dict[str, Any]] = json.loads((DATA / "regression.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def data_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The data of a problem, made as its recipe says."""
    rng = np.random.default_rng(0)
    match name.split("_")[0]:
        case "breast":
            x, y = datasets.load_breast_cancer(return_X_y=True)
            return ((x - x.mean(0)) / x.std(0) if "std" in name else x), y
        case "iris":
            return datasets.load_iris(return_X_y=True)
        case "digits":
            x, y = datasets.load_digits(return_X_y=True)
            return x / 16, y
        case "diabetes":
            x, target = datasets.load_diabetes(return_X_y=True)
            return x, (target > np.median(target)).astype(int)
        case "separable":
            return np.array([[-2, 1], [-1, 0.5], [1, 2], [2, 0.3]]), np.array([0, 0, 1, 1])
        case "imbalanced":
            x, y = rng.standard_normal((100000, 3)), np.zeros(100000, int)
            x[:10] += 1
            y[:10] = 1
            return x, y
        case "scale":
            x = rng.standard_normal((200, 3))
            y = rng.random(200) < 1 / (1 + np.exp(-x @ [0.5, 1, 1.5]))
            return x * [1e6, 1, 1], y.astype(int)
    table = np.loadtxt(DATA / f"{name.split('_')[0]}.csv", delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1].astype(int)


def assert_relative(got: Any, expected: Any, limit: float) -> None:
    """The largest difference is at most ``limit`` times the largest number."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    assert got.shape == expected.shape
    assert np.max(np.abs(got - expected)) <= limit * np.max(np.abs(expected))


@pytest.mark.parametrize("name", PROBLEMS)
def test_solutions_of_reference_from_raw_data_at_default_settings(name):
    x, y = data_of(name)
    problem = PROBLEMS[name]
    fit = xj.fit_logistic(x, y, l2=problem["lam"])
    assert fit.status == "converged"
    assert_relative(fit.params.weights.T, problem["coef"], 1e-9)
    assert_relative(fit.params.bias, problem["intercept"], 1e-9)
    assert_relative(fit.objective, problem["objective_value"], 1e-13)
    if "std_err" not in problem:
        return
    errors = np.array(problem["std_err"], float), np.array(problem["std_err_intercept"], float)
    for got, expected in zip((fit.std_err.weights.T, fit.std_err.bias), errors, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-7)
    np.testing.assert_allclose(fit.log_likelihood, problem["llf"], rtol=1e-12)
    if "aic" in problem:
        np.testing.assert_allclose(
            [fit.null_log_likelihood, fit.aic, fit.bic, fit.pseudo_r2],
            [problem[n] for n in ("llnull", "aic", "bic", "pseudo_r2_mcfadden")],
            rtol=1e-10,
        )
        flat = lambda params: np.append(params.weights, params.bias)
        np.testing.assert_allclose(flat(fit.z_values)[: x.shape[1]], problem["z"][: x.shape[1]], rtol=1e-7)
        # erfc(z/√2) turns an error of z into one of p that is z² + 1 times as large, and z goes up to 5.
        np.testing.assert_allclose(flat(fit.p_values), problem["p_values_coef_then_intercept"], rtol=1e-6)
        np.testing.assert_allclose(flat(fit.robust_std_err), problem["std_err_HC0_coef_then_intercept"], rtol=1e-7)


@pytest.mark.parametrize("name", ["breast_cancer_raw_l2_C1", "iris_multinomial_l2_C1", "imbalanced_1_to_10000_l2_C1"])
def test_solutions_of_reference_in_float32(name):
    x, y = data_of(name)
    problem = PROBLEMS[name]
    with jax.enable_x64(False):
        fit = xj.fit_logistic(x, y, l2=problem["lam"])
        assert fit.status == "converged"
        assert fit.params.weights.dtype == jnp.float32
        assert_relative(fit.params.weights.T, problem["coef"], 1e-4)
        assert_relative(fit.params.bias, problem["intercept"], 1e-4)


# -- where others are silently wrong -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 3))
    return x, (rng.random(500) < 1 / (1 + np.exp(-x @ [0.55, 1, -1]))).astype(int)


def test_a_column_of_any_mean_and_size_gives_the_same_digits(clean):
    x, y = clean
    plain = xj.fit_logistic(x, y, l2=1 / 500)
    moved = xj.fit_logistic(x + np.array([1e6, 0, 0]), y, l2=1 / 500)
    # Adding 1e6 rounds x itself by 1e-10.
    assert_relative(moved.params.weights, plain.params.weights, 1e-9)
    assert_relative(moved.params.bias, plain.params.bias - 1e6 * plain.params.weights[0], 1e-9)
    penalties = np.array([1e-12, 1, 1]) / 500
    scaled = xj.fit_logistic(x * [1e-6, 1, 1], y, l2=penalties)
    assert_relative(scaled.params.weights * np.array([1e-6, 1, 1]), plain.params.weights, 1e-12)
    assert moved.status == scaled.status == "converged"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_separation_is_found_with_its_direction(dtype):
    cases = {
        "completely": ([[-2.0, 1.0], [-1.0, 0.5], [1.0, 2.0], [2.0, 0.3]], [0, 0, 1, 1]),
        "but for ties": (
            [[-2.0, 1.0], [-1.0, -1.0], [0.0, 2.0], [0.0, 2.0], [1.0, 0.5], [2.0, 1.0]],
            [0, 0, 0, 1, 1, 1],
        ),
    }
    for how, (x, y) in cases.items():
        x, y = np.array(x, dtype), np.array(y)
        fit = xj.fit_logistic(x, y)
        assert fit.status == "separated"
        margins = (2 * y - 1) * (x @ np.asarray(fit.direction.weights) + np.asarray(fit.direction.bias))
        assert margins.max() > 0.1
        assert margins.min() > (0 if how == "completely" else -1e-3)
        assert bool(fit.completely_separated) == (how == "completely")
        assert f"Separated {how} by columns" in fit.message
        assert np.isnan(fit.std_err.weights).all()
        assert xj.fit_logistic(x, y, l2=0.1).status == "converged"


def test_a_dummy_that_decides_is_named(clean):
    x, y = clean
    dummy = np.random.default_rng(1).random(500) < 0.1
    fit = xj.fit_logistic(np.column_stack([x, dummy]), np.where(dummy, 1, y))
    assert fit.status == "separated"
    assert "Separated but for ties by columns 3" in fit.message


def test_a_class_that_is_apart_is_named(clean):
    x, _ = clean
    others = np.random.default_rng(2).integers(0, 2, 500)
    fit = xj.fit_logistic(x, np.where(x[:, 0] > 1, 2, others))
    assert fit.status == "separated"
    assert "(classes 2)" in fit.message


@pytest.mark.parametrize("classes", [2, 3])
def test_dependent_columns_give_the_solution_of_minimum_norm(clean, classes):
    x, y = clean
    y = y if classes == 2 else np.random.default_rng(3).integers(0, 3, 500)
    plain = xj.fit_logistic(x, y)
    more = np.column_stack([x, np.full(500, 0.1), np.zeros(500), x @ [1, -2, 3]])
    fit = xj.fit_logistic(more, y)
    assert fit.status == "rank_deficient"
    assert "Columns that depend on others: 3, 4, 5" in fit.message
    # The minimum norm of w + t (c, -1) over t: w lies in the row space of the columns.
    w = np.asarray(plain.params.weights).reshape(3, -1)
    c = np.array([1.0, -2, 3])
    shift = (c @ w) / (c @ c + 1)
    expected = np.vstack([w - np.outer(c, shift), np.zeros((2, w.shape[1])), shift])
    np.testing.assert_allclose(np.asarray(fit.params.weights).reshape(6, -1), expected, atol=1e-9)
    np.testing.assert_allclose(fit.log_likelihood, plain.log_likelihood, rtol=1e-12)
    assert np.isnan(fit.std_err.weights).all()
    assert_relative(fit.degrees_of_freedom, plain.degrees_of_freedom, 0)
    assert xj.fit_logistic(more, y, l2=0.01).status == "converged"


def test_a_duplicate_leaves_the_errors_of_the_others(clean):
    x, y = clean
    plain, fit = xj.fit_logistic(x, y), xj.fit_logistic(np.column_stack([x, x[:, 1]]), y)
    np.testing.assert_allclose(
        np.asarray(fit.params.weights)[[1, 3]], np.full(2, plain.params.weights[1] / 2), rtol=1e-9
    )
    np.testing.assert_allclose(
        np.asarray(fit.std_err.weights)[[0, 2]], np.asarray(plain.std_err.weights)[[0, 2]], rtol=1e-9
    )
    assert np.isnan(np.asarray(fit.std_err.weights)[[1, 3]]).all()


def test_nearly_dependent_columns_are_no_dependent_ones(clean):
    x, y = clean
    rng = np.random.default_rng(4)
    fit = xj.fit_logistic(np.column_stack([x, x[:, 0] + 1e-4 * rng.standard_normal(500)]), y)
    assert fit.status == "converged"
    assert float(fit.std_err.weights[3]) > 100


def test_weights_count_repetitions(clean):
    x, y = clean
    counts = np.random.default_rng(5).integers(0, 3, 500)
    x = np.where((counts == 0)[:, None] & (np.arange(3) == 1), np.nan, x)
    weighted = xj.fit_logistic(x, y, weights=counts, l2=0.01)
    repeated = xj.fit_logistic(np.repeat(x, counts, axis=0), np.repeat(y, counts), l2=0.01)
    for name in (
        "params",
        "std_err",
        "robust_std_err",
        "objective",
        "bic",
        "null_log_likelihood",
        "degrees_of_freedom",
    ):
        got, expected = (jax.tree.leaves(getattr(fit, name)) for fit in (weighted, repeated))
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-11)


def test_class_weights(clean):
    x, y = clean
    factors = {0: 0.5, 1: 3.0}
    expected = xj.fit_logistic(x, y, weights=np.where(y == 1, 3.0, 0.5))
    for given in (factors, [0.5, 3.0]):
        np.testing.assert_allclose(
            xj.fit_logistic(x, y, class_weight=given).params.weights, expected.params.weights, rtol=1e-11
        )
    balanced = xj.fit_logistic(x, y, class_weight="balanced")
    own = 500 / (2 * np.bincount(y))
    np.testing.assert_allclose(
        balanced.params.weights, xj.fit_logistic(x, y, weights=own[y]).params.weights, rtol=1e-11
    )


def test_an_offset_is_a_feature_of_coefficient_one(clean):
    x, y = clean
    free = xj.fit_logistic(x, y)
    fit = xj.fit_logistic(x[:, :2], y, offset=x[:, 2] * float(free.params.weights[2]))
    np.testing.assert_allclose(fit.params.weights, free.params.weights[:2], rtol=1e-9)
    null = xj.fit_logistic(x[:, :0], y, offset=x[:, 2] * float(free.params.weights[2]))
    np.testing.assert_allclose(fit.null_log_likelihood, null.log_likelihood, rtol=1e-12)


def test_without_intercept(clean):
    x, y = clean
    fit = xj.fit_logistic(x, y, fit_intercept=False)
    with_column = xj.fit_logistic(np.column_stack([x, np.ones(500)]), y, fit_intercept=False)
    own = xj.fit_logistic(x, y)
    assert float(fit.params.bias) == 0
    np.testing.assert_allclose(with_column.params.weights, np.append(own.params.weights, own.params.bias), rtol=1e-9)
    np.testing.assert_allclose(with_column.std_err.weights, np.append(own.std_err.weights, own.std_err.bias), rtol=1e-9)
    gradient = xj.logistic_gradient(fit.params, jnp.asarray(x), jnp.asarray(y))
    assert np.max(np.abs(gradient.weights)) < 1e-15


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("classes", [2, 3])
def test_without_intercept_there_is_none_whatever_the_solver_and_the_start(clean, classes, solver):
    x, y = clean[0] + 1, clean[1] if classes == 2 else clean[1] + (clean[0][:, 0] > 0.5)
    init = xj.LogisticParams(np.zeros((3, 3)), np.ones(3)) if classes == 3 else xj.LogisticParams(np.zeros(3), 1.0)
    for start in (None, init):
        fit = xj.fit_logistic(x, y, l2=0.01, fit_intercept=False, solver=solver, init=start)
        assert fit.status == "converged"
        assert not np.any(fit.params.bias)
        gradient = xj.logistic_gradient(fit.params, jnp.asarray(x), jnp.asarray(y), l2=0.01)
        assert np.max(np.abs(gradient.weights)) < 1e-12


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_a_feature_without_penalty_among_others_that_decides_is_named(clean, penalty):
    x, y = clean
    dummy = np.arange(500) % 10 == 0
    y, x = np.where(dummy, 1, y), np.column_stack([x, dummy])
    fit = xj.fit_logistic(x, y, **{penalty: np.array([0.01, 0.01, 0.01, 0.0])})
    assert fit.status == "separated"
    assert "Separated but for ties by columns 3" in fit.message
    assert xj.fit_logistic(x, y, **{penalty: np.array([0.0, 0.0, 0.0, 0.01])}).status == "converged"


def test_offsets_that_predict_the_other_class(clean):
    """A Newton step from where there is hardly any curvature goes to 1e16."""
    x, y = clean
    offset = np.where(y == 1, -40.0, 40.0)
    fit, another = (xj.fit_logistic(x, y, offset=offset, solver=solver) for solver in ("newton", "newton-cg"))
    assert fit.status == "converged"
    assert_relative(fit.objective, another.objective, 1e-12)
    assert_relative(fit.params.weights, another.params.weights, 1e-9)


@pytest.mark.parametrize("l2", [1e-12, 1e12])
def test_penalties_of_every_size(clean, l2):
    x, y = clean
    fit = xj.fit_logistic(x, y, l2=l2)
    assert fit.status == "converged"
    if l2 < 1:
        np.testing.assert_allclose(fit.params.weights, xj.fit_logistic(x, y).params.weights, rtol=1e-8)
    else:  # w = -∇L(0)/λ to first order, the bias being that of the classes
        null = xj.LogisticParams(jnp.zeros(3), fit.params.bias)
        gradient = xj.logistic_gradient(null, jnp.asarray(x), jnp.asarray(y))
        np.testing.assert_allclose(fit.params.weights, -gradient.weights / l2, rtol=1e-9)


def test_columns_so_small_that_their_squares_underflow(clean):
    x, y = clean
    fit, plain = xj.fit_logistic(x * [1e-200, 1, 1], y), xj.fit_logistic(x, y)
    assert fit.status == "converged"
    assert_relative(fit.params.weights * np.array([1e-200, 1, 1]), plain.params.weights, 1e-12)


def test_an_init_far_from_the_data_is_no_worse_than_none(clean):
    x, y = clean
    fit, plain = xj.fit_logistic(x, y, init=xj.LogisticParams(np.full(3, 1e6), 0.0)), xj.fit_logistic(x, y)
    assert fit.status == "converged"
    assert_relative(fit.params.weights, plain.params.weights, 1e-12)


def test_offsets_far_from_0(clean):
    x, y = clean
    plain = xj.fit_logistic(x, y)
    fit = xj.fit_logistic(x, y, offset=np.full(500, 1e4))
    assert fit.status == "converged"
    assert_relative(fit.params.bias, plain.params.bias - 1e4, 1e-12)
    assert_relative(fit.params.weights, plain.params.weights, 1e-9)
    one = np.where(np.arange(500) == np.argmax(y), 1e20, 0)  # predicted with certainty, and right: it tells nothing
    fit, without = xj.fit_logistic(x, y, offset=one), xj.fit_logistic(x, y, weights=(one == 0).astype(float))
    assert_relative(fit.params.weights, without.params.weights, 1e-9)


def test_fewer_rows_than_columns():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((5, 20)), np.array([0, 1, 0, 1, 1])
    assert xj.fit_logistic(x, y).status == "separated"
    fit = xj.fit_logistic(x, y, l2=0.1)
    assert fit.status == "converged"
    gradient = xj.logistic_gradient(fit.params, jnp.asarray(x), jnp.asarray(y), l2=0.1)
    assert max(np.max(np.abs(g)) for g in gradient) < 1e-14


BAD = {
    "labels of -1 and 1": (lambda x, y: {"y": 2 * y - 1}, "y[1] is -1, but needs to be 0, 1"),
    "floats beyond 1": (lambda x, y: {"y": 2.0 * y}, "is 2.0, but needs to be 0, 1 or a probability"),
    "one class": (lambda x, y: {"y": 0 * y}, "class 1 has no row in y"),
    "a missing class": (lambda x, y: {"y": 2 * y}, "class 1 has no row in y"),
    "weights that remove a class": (lambda x, y: {"weights": y}, "class 0 has no row with a weight above 0"),
    "negative weights": (lambda x, y: {"weights": -1.0 * y}, "needs to be 0 or more"),
    "infinite weights": (lambda x, y: {"weights": np.inf * (y + 1)}, "weights[0] is inf"),
    "all weights 0": (lambda x, y: {"weights": 0 * y}, "all weights are 0"),
    "NaN": (lambda x, y: {"x": np.where(np.arange(1500).reshape(500, 3) == 10, np.nan, x)}, "x[3, 1] is nan"),
    "infinity": (lambda x, y: {"x": np.where(np.arange(1500).reshape(500, 3) == 10, np.inf, x)}, "x[3, 1] is inf"),
    "too few labels": (lambda x, y: {"y": y[:-1]}, "y has shape (499,), but needs (500,)"),
    "no rows": (lambda x, y: {"x": x[:0], "y": y[:0]}, "there is no row to fit to"),
    "a vector": (lambda x, y: {"x": x[:, 0]}, "x has shape (500,), but needs [n, d]"),
    "an infinite penalty": (lambda x, y: {"l2": np.inf}, "l2 is inf"),
    "a negative penalty": (lambda x, y: {"l2": -1.0}, "l2 is -1.0"),
    "a class weight of an unknown class": (lambda x, y: {"class_weight": {2: 1.0}}, "names class 2"),
    "an unknown solver": (lambda x, y: {"solver": "magic"}, "solver must be one of 'auto'"),
    "an init of another shape": (lambda x, y: {"init": xj.LogisticParams(np.zeros(2), 0.0)}, "init.weights has shape"),
    "an offset of another length": (lambda x, y: {"offset": np.zeros(3)}, "offset has shape (3,), but needs (500,)"),
    "an offset that is NaN": (lambda x, y: {"offset": np.full(500, np.nan)}, "offset[0] is nan"),
    "an init that is NaN": (
        lambda x, y: {"init": xj.LogisticParams(np.full(3, np.nan), 0.0)},
        "init.weights[0] is nan, but needs to be finite",
    ),
    "a column of labels": (lambda x, y: {"y": 1.0 * y[:, None]}, "needs [n], or [n, K] with 2 classes or more"),
    "steps without end": (lambda x, y: {"max_steps": 10**9}, "max_steps must be at most 16777216, as the history has"),
    "a single class": (lambda x, y: {"num_classes": 1}, "num_classes must be 2 or more, got 1"),
    "L1 factors of other features": (lambda x, y: {"l1": np.ones(4)}, "l1 has shape (4,), but needs () or (3,)"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_place(clean, name):
    x, y = clean
    change, message = BAD[name]
    arguments = {"x": x, "y": y} | change(x, y)
    with pytest.raises(ValueError, match="fit_logistic: ") as error:
        xj.fit_logistic(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("y", [np.array(["a", "b"] * 250), np.array([0, 1] * 250, object), np.arange(500) + 1j, None])
def test_labels_of_another_type(clean, y):
    with pytest.raises(TypeError, match="fit_logistic: y must be"):
        xj.fit_logistic(clean[0], y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": "2"}, "num_classes must be a whole number, not traced, got '2'"),
        ({"max_steps": 2.5}, "max_steps must be a whole number"),
        ({"tol": "small"}, "tol must be a number"),
        ({"solver": None}, "solver must have init"),
        ({"fit_intercept": 1}, "fit_intercept must be True or False"),
        ({"inference": "no"}, "inference must be True, False or None, got 'no'"),
        ({"class_weight": {1: "a"}}, "class_weight must map classes to numbers, got 'a'"),
    ],
)
def test_options_of_another_type(clean, options, message):
    with pytest.raises(TypeError, match=f"fit_logistic: {message}"):
        xj.fit_logistic(*clean, **options)


# -- inference ---------------------------------------------------------------------------------------------------------


def test_penalized_covariances_are_the_sandwich(clean):
    x, y = clean
    fit = xj.fit_logistic(x, y, l2=0.1)
    tilde = np.column_stack([x, np.ones(500)])
    p = 1 / (1 + np.exp(-tilde @ np.append(fit.params.weights, fit.params.bias)))
    information = tilde.T @ (tilde * (p * (1 - p))[:, None])
    bread = np.linalg.inv(information + 500 * 0.1 * np.diag([1, 1, 1, 0]))
    scores = tilde * (p - y)[:, None]
    np.testing.assert_allclose(fit.covariance, bread @ information @ bread, rtol=1e-9)
    np.testing.assert_allclose(fit.robust_covariance, bread @ scores.T @ scores @ bread, rtol=1e-9)
    np.testing.assert_allclose(fit.degrees_of_freedom, np.trace(bread @ information), rtol=1e-10)


def test_tests_and_intervals(clean):
    from scipy import stats

    x, y = clean
    fit, smaller = xj.fit_logistic(x, y), xj.fit_logistic(x[:, 1:], y)
    low, high = fit.confidence_interval(0.9)
    reach = stats.norm.ppf(0.95) * np.asarray(fit.std_err.weights)
    np.testing.assert_allclose(low.weights, fit.params.weights - reach, rtol=1e-12)
    np.testing.assert_allclose(high.weights, fit.params.weights + reach, rtol=1e-12)
    statistic, p_value = fit.wald_test([1, 0, 0, 0])
    np.testing.assert_allclose(statistic, fit.z_values.weights[0] ** 2, rtol=1e-10)
    np.testing.assert_allclose(p_value, fit.p_values.weights[0], rtol=1e-9)
    statistic, p_value = fit.likelihood_ratio_test(smaller)
    expected = 2 * (float(fit.log_likelihood) - float(smaller.log_likelihood))
    np.testing.assert_allclose([statistic, p_value], [expected, stats.chi2.sf(expected, 1)], rtol=1e-9)
    _, p_value = fit.likelihood_ratio_test()
    expected = 2 * (float(fit.log_likelihood) - float(fit.null_log_likelihood))
    np.testing.assert_allclose(p_value, stats.chi2.sf(expected, 3), rtol=1e-9)
    with pytest.raises(ValueError, match="fewer parameters"):
        smaller.likelihood_ratio_test(fit)
    with pytest.raises(ValueError, match="follows from the others"):
        fit.wald_test([[1, 0, 0, 0], [2, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"value has shape \(2,\)"):
        fit.wald_test([1, 0, 0, 0], [0, 0])


def test_summary(clean):
    x, y = clean
    text = xj.fit_logistic(x, y).summary(["age", "income", "size"])
    assert "converged" in text
    assert "income" in text
    assert "P>|z|" in text
    three = xj.fit_logistic(x, np.random.default_rng(3).integers(0, 3, 500))
    assert "class 0 (reference)" in three.summary()
    assert "rank_deficient: " in xj.fit_logistic(np.column_stack([x, x[:, 0]]), y).summary()
    assert "std err" not in xj.fit_logistic(x, y, inference=False).summary()
    with pytest.raises(ValueError, match="inference=True"):
        _ = xj.fit_logistic(x, y, inference=False).std_err


# -- transformations ---------------------------------------------------------------------------------------------------


def test_jit_and_vmap_over_data_penalty_and_weights(clean):
    x, y = clean
    l2 = np.array([0.0, 0.01, 1.0])
    weights = np.random.default_rng(7).integers(0, 3, (3, 500)).astype(float)
    dummy = np.column_stack([x, y, x[:, 0]])  # separated where there is no penalty, and of dependent columns

    @jax.jit
    def many(x, l2, weights):
        return jax.vmap(lambda l2, s: xj.fit_logistic(x, y, l2=l2, weights=s))(l2, weights)

    for features in (x, dummy):
        fits = many(features, l2, weights)
        for i in range(3):
            alone = xj.fit_logistic(features, y, l2=l2[i], weights=weights[i])
            assert fits.status[i] == alone.status
            assert int(fits.steps[i]) == int(alone.steps)
            if alone.status == "converged":
                for got, expected in zip(
                    jax.tree.leaves((fits.params, fits.std_err)),
                    jax.tree.leaves((alone.params, alone.std_err)),
                    strict=True,
                ):
                    np.testing.assert_allclose(got[i], expected, rtol=1e-9)


TRACED = {
    "a negative penalty": lambda x, y: {"l2": -0.1},
    "a penalty that is NaN": lambda x, y: {"l2": np.nan},
    "an infinite penalty": lambda x, y: {"l2": np.inf},
    "a negative L1 penalty": lambda x, y: {"l1": np.array(-0.1)},
    "a negative weight": lambda x, y: {"weights": y - 0.5},
    "an infinite weight": lambda x, y: {"weights": np.where(np.arange(500) == 3, np.inf, 1)},
    "weights whose sum overflows": lambda x, y: {"weights": np.full(500, 1e307)},
    "a NaN": lambda x, y: {"x": np.where(np.arange(1500).reshape(500, 3) == 10, np.nan, x)},
    "an infinity": lambda x, y: {"x": np.where(np.arange(1500).reshape(500, 3) == 10, np.inf, x)},
    "an offset that is NaN": lambda x, y: {"offset": np.full(500, np.nan)},
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_data_that_are_no_numbers_are_in_the_status(clean, name):
    arguments = dict(zip("xy", clean, strict=True)) | TRACED[name](*clean)
    assert jax.jit(lambda arguments: xj.fit_logistic(**arguments))(arguments).status == "not_finite"


def test_traced_data_of_one_class_are_separated(clean):
    x, y = clean
    fit = jax.jit(lambda y, weights: xj.fit_logistic(x, y, weights=weights))
    assert fit(0 * y, np.ones(500)).status == "separated"
    penalized = jax.jit(lambda y: xj.fit_logistic(x, y, l2=0.1))
    assert all(penalized(one).status == "separated" for one in (0 * y, 0 * y + 1))
    assert fit(y, 1.0 * y).status == "separated"
    assert fit(y, 0.0 * y).status == "separated"


def test_traced_labels_out_of_range_are_in_the_status(clean):
    x, y = clean
    fit = jax.jit(lambda y: xj.fit_logistic(x, y))(np.where(np.arange(500) == 3, 2, y))
    assert fit.status == "not_finite"
    assert np.isnan(fit.std_err.weights).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_what_stands_for_the_rounding_error_bounds_its_estimate(classes):
    """For rows with outliers, weights of many sizes, and parameters that are no optimum."""
    rng = np.random.default_rng(classes)
    for weighted in (False, True):
        for size in (1e-2, 1.0, 100.0):
            x, y = rng.standard_t(1.2, size=(50, 4)), rng.integers(0, classes, 50)
            weights = jnp.asarray(rng.exponential(size=50) ** 4) if weighted else None
            k = None if classes == 2 else classes
            objective = xj.LogisticObjective(jnp.asarray(x), jnp.asarray(y), 0.1, weights, num_classes=k)
            inner = solution.scaled(objective, jnp.float64)
            params = jax.tree.map(lambda p: jnp.asarray(size * rng.normal(size=p.shape)), inner.init())  # noqa: B023
            point = evaluate(inner, params)
            estimate, bound = inner.gradient_error(params), solution._gradient_error(inner, point, np.inf)
            assert estimate <= bound < 1e-10 * (1 + size)
            np.testing.assert_allclose(solution._gradient_error(inner, point, 0.0), estimate, rtol=1e-12)


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "newton-cg"])
@pytest.mark.parametrize("c", [1e4, 1e8, 1e12])
def test_separated_classes_under_a_tiny_penalty_have_their_minimum(c, solver):
    """Gradients are far below 1e-8 long before: they are as small as the loss, which at the minimum is as small as the
    penalty."""
    x, y = datasets.load_iris(return_X_y=True)
    x, y, l2 = (x - x.mean(0)) / x.std(0), (y == 0).astype(int), 1 / (c * 150)
    fit = xj.fit_logistic(x, y, l2=l2, solver=solver)
    assert fit.status == "converged"
    # The optimum is where the penalty's pull is that of the rows: all digits, in numpy.
    z = x @ np.asarray(fit.params.weights) + float(fit.params.bias)
    residual = np.where(y == 1, -1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z)))
    pull, rows = l2 * np.asarray(fit.params.weights), x.T @ residual / 150
    np.testing.assert_allclose(rows, -pull, rtol=1e-6)
    assert fit.newton_decrement < 1e-12
