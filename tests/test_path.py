"""Paths of penalties: every fit at its minimum, every fold's loss that of rows it has not seen, and the choice."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimality import mean_loss, unmet
from sklearn.datasets import load_breast_cancer, load_iris

import xentjax as xj
from xentjax import plots
from xentjax.training.path_result import Folds

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def data(load, columns, rows=150):
    x, y = load(return_X_y=True)
    x = x[:rows, :columns]
    return (x - x.mean(0)) / x.std(0), y[:rows]


X, Y = data(load_breast_cancer, 8)
IRIS = data(load_iris, 4)
PARTS = np.arange(len(X)) % 4


def one(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def require_minima(path, x, y, l1_ratio, parts, weights=None):
    """Every fit is at the minimum of its own problem, and the losses are those of the rows in question."""
    weights = np.ones(len(x)) if weights is None else weights
    assert np.all(path.status == "converged")
    assert np.all(path.folds.status == "converged")
    for i, factor in enumerate(np.asarray(path.lambdas)):
        l1, l2 = factor * l1_ratio, factor * (1 - l1_ratio)
        assert unmet(path.at(i), x, y, l1, l2, weights) <= 1e-8
        loss, w = mean_loss(path.at(i), x, y, weights), np.asarray(path.at(i).weights)
        np.testing.assert_allclose(path.train_loss[i], loss, rtol=1e-11)
        np.testing.assert_allclose(path.objective[i], loss + l1 * np.abs(w).sum() + l2 / 2 * (w * w).sum(), rtol=1e-11)
        for fold in range(parts.max() + 1):
            held, params = parts == fold, one(path.folds.params, fold, i)
            assert unmet(params, x[~held], y[~held], l1, l2, weights[~held]) <= 1e-8
            expected = mean_loss(params, x[held], y[held], weights[held])
            np.testing.assert_allclose(path.test_loss[fold, i], expected, rtol=1e-10)


@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_every_fit_is_a_minimum_and_every_loss_that_of_rows_not_seen(l1_ratio):
    path = xj.fit_path(X, Y, l1_ratio=l1_ratio, num_lambdas=12, folds=PARTS)
    require_minima(path, X, Y, l1_ratio, PARTS)
    largest = float(xj.lambda_max(X, Y)) / max(l1_ratio, 0.01)
    np.testing.assert_allclose(path.lambdas, largest * np.geomspace(1, 1e-4, 12), rtol=1e-12)
    if l1_ratio:
        assert path.nonzero[0] == 0 < path.nonzero[-1]
        assert not np.any(path.at(0).weights)


def test_classes_weights_and_raw_features():
    """Raw features have the penalty in their own units: the same problem as that of clean ones with other factors."""
    x, y = IRIS
    weights = 1.0 + np.arange(len(x)) % 3
    parts = (np.arange(len(x)) * 7) % 3
    raw = 1e3 + 10 * x
    path = xj.fit_path(raw, y, l1_ratio=0.9, lambdas=[0.003, 0.3, 0.03], weights=weights, folds=parts)
    np.testing.assert_array_equal(path.lambdas, [0.3, 0.03, 0.003])
    # raw · w + b = 10 x · w + (b + 1000 Σ w), and a gradient in these units is ten times that of standardized features.
    for i, factor in enumerate(np.asarray(path.lambdas)):
        assert path.status[i] == "converged"
        w, b = path.at(i)
        params = xj.LogisticParams(w, b + 1e3 * jnp.sum(w, axis=0))
        assert unmet(params, 10 * x, y, 0.9 * factor, 0.1 * factor, weights) <= 1e-7
    np.testing.assert_allclose(jnp.sum(path.params.bias, axis=1), 0, atol=1e-9)
    np.testing.assert_array_equal(path.folds.weights, [weights[parts == f].sum() for f in range(3)])


def test_dealing():
    """Every part has as many rows of each class as another, but one; a seed deals again the same way."""
    path = xj.fit_path(X, Y, lambdas=[0.1], folds=4, seed=3)
    again, other = (xj.fit_path(X, Y, lambdas=[0.1], folds=4, seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(path.test_loss, again.test_loss)
    assert not np.array_equal(path.test_loss, other.test_loss)
    np.testing.assert_array_equal(np.sort(path.folds.weights), [37, 37, 38, 38])
    assert path.test_loss.shape == (4, 1)


def test_without_folds_and_under_jit():
    path = jax.jit(lambda y: xj.fit_path(X, y, num_lambdas=4, l1_ratio=0.5))(Y)
    assert path.folds is None
    assert np.all(path.status == "converged")
    with pytest.raises(ValueError, match="no cross-validation"):
        path.best
    assert "4 penalties, 50% of each L1" in path.summary()


def test_traced_penalties_that_are_none_are_not_finite_and_spoil_no_other():
    path = jax.jit(lambda lambdas: xj.fit_path(X, Y, lambdas=lambdas))(np.array([0.01, -1, np.nan, 0.1, 0, np.inf]))
    np.testing.assert_array_equal(path.lambdas, [0.1, 0.01, *[np.nan] * 4])
    assert path.status.names.tolist() == ["converged"] * 2 + ["not_finite"] * 4
    expected = xj.fit_path(X, Y, lambdas=[0.1, 0.01])
    np.testing.assert_allclose(path.params.weights[:2], expected.params.weights, rtol=1e-8)


def test_a_fit_that_cannot_end_says_so():
    path = xj.fit_path(X, Y, lambdas=[1e-3, 1e-1], max_steps=1, folds=PARTS)
    assert np.all(path.status[1:] == "max_steps")
    assert "max_steps: stopped after" in path.summary()
    assert "Cross-validation: " in path.message


def made(test_loss, weights):
    """A path of which only the test losses are of interest."""
    length = test_loss.shape[1]
    params = xj.LogisticParams(np.linspace(0, 1, length)[:, None] * np.array([1.0, -1, 0.5]), np.zeros(length))
    fits = jnp.zeros(test_loss.shape)
    folds = Folds(params, fits, fits, xj.Status(jnp.ones(test_loss.shape, jnp.int32)), test_loss, jnp.asarray(weights))
    path = xj.fit_path(X, Y, lambdas=[0.1], folds=4)
    nothing, lambdas = jnp.zeros(length), jnp.geomspace(1, 0.01, length)
    return dataclasses.replace(
        path, lambdas=lambdas, params=jax.tree.map(jnp.asarray, params), train_loss=nothing, folds=folds,
        status=xj.Status(jnp.ones(length, jnp.int32)),
    )  # fmt: skip


def test_the_best_and_the_largest_within_one_error():
    loss = jnp.array([[1.0, 0.5, 0.30, 0.2, 0.4], [1.2, 0.7, 0.38, 0.4, 0.9]])
    path = made(loss, [1.0, 3.0])
    mean = np.array([1.15, 0.65, 0.36, 0.35, 0.775])
    np.testing.assert_allclose(path.mean_test_loss, mean, rtol=1e-12)
    np.testing.assert_allclose(path.test_loss_error[3], np.sqrt(0.25 * 0.15**2 + 0.75 * 0.05**2), rtol=1e-12)
    # 0.35 + 0.0866 is above 0.36 and below 0.65.
    assert (path.best, path.best_1se) == (3, 2)
    text = path.summary(rows=2)
    assert text.count("converged") == 4
    assert "converged (best)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1_ratio": "half"}, "l1_ratio must be a number"),
        ({"num_lambdas": 2.5}, "num_lambdas must be a whole number"),
        ({"smallest": "little"}, "smallest must be a number"),
        ({"folds": 2.5}, "folds must be a whole number"),
        ({"folds": 3, "seed": "x"}, "seed must be a whole number"),
        ({"max_steps": 2.5}, "max_steps must be a whole number"),
        ({"tol": "small"}, "tol must be a number"),
        ({"lambdas": "many"}, "lambdas must be a real array"),
    ],
)
def test_options_of_another_type(options, message):
    with pytest.raises(TypeError, match=f"fit_path: {message}"):
        xj.fit_path(X, Y, **options)


def test_a_seed_beyond_its_range():
    with pytest.raises(ValueError, match="fit_path: seed must be from 0 to"):
        xj.fit_path(X, Y, folds=3, seed=2**70)


@pytest.mark.parametrize("function", [xj.fit_path, xj.lambda_max])
def test_errors_name_the_function_that_was_called(function):
    for y, message in ((Y[:-1], "y has shape"), (0 * Y, "class 1 has no row"), (2 * Y - 1, "y.* is -1")):
        with pytest.raises(ValueError, match=f"{function.__name__}: {message}"):
            function(X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambdas": []}, r"lambdas has shape \(0,\)"),
        ({"lambdas": [np.nan]}, r"lambdas\[0\] is nan, but needs to be above 0"),
        ({"lambdas": [0.1, np.inf]}, r"lambdas\[1\] is inf"),
        ({"l1_ratio": 1.5}, "l1_ratio must be from 0 to 1, got 1.5"),
        ({"lambdas": [0.1, 0.0]}, r"lambdas\[1\] is 0.0, but needs to be above 0"),
        ({"lambdas": np.ones((2, 2))}, r"lambdas has shape \(2, 2\)"),
        ({"num_lambdas": 0}, "num_lambdas must be 1 or more, got 0"),
        ({"smallest": 0.0}, "smallest must be above 0 and at most 1"),
        ({"folds": 1}, "folds must be from 2 to 150"),
        ({"folds": np.arange(3)}, r"folds has shape \(3,\), but needs \(150,\)"),
        ({"folds": -PARTS}, "folds must be whole numbers from 0"),
        ({"folds": 2 * PARTS}, "fold 1 has no row that counts"),
        ({"folds": Y}, "all rows of class 0 are in fold 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        xj.fit_path(X, Y, **options)


def test_the_picture(tmp_path):
    path = made(jnp.array([[1.0, 0.5, 0.30, 0.2, 0.4], [1.2, 0.7, 0.38, 0.4, 0.9]]), [1.0, 3.0])
    figure = plots.regularization_path(path, title="path", names=["one", "two", "three"])
    plots.save(figure, tmp_path / "path.png")
    top, bottom = figure.axes[:2]
    lines = {line.get_label(): line for line in top.lines}
    np.testing.assert_allclose(lines["two"].get_ydata(), -np.linspace(0, 1, 5))
    labels = {line.get_label(): line.get_xdata() for line in bottom.lines}
    np.testing.assert_allclose(labels["best: λ = 0.0316"], path.lambdas[3])
    with pytest.raises(ValueError, match="2 names for 3 features"):
        plots.regularization_path(path, title="path", names=["one", "two"])
    alone = plots.regularization_path(dataclasses.replace(path, folds=None), title="path")
    assert len(alone.axes) == 1
