"""Many fits in one program: each is the fit that it is alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import xentjax as xj

pytestmark = pytest.mark.usefixtures("compiled_fast")

K, N, D = 5, 60, 3


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((K, N, D))
    return x, (rng.random((K, N)) < 1 / (1 + np.exp(-2 * x[:, :, 0]))).astype(int)


def assert_alone(fits, i, alone, errors=True):
    assert fits.status[i] == alone.status
    pairs = [(fits[i].params, alone.params), (fits[i].objective, alone.objective)]
    if errors and alone.status == "converged":
        pairs += [(fits[i].std_err, alone.std_err), (fits[i].bic, alone.bic)]
    for got, expected in pairs:
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-8)


def test_distinct_data_in_chunks_with_progress(data):
    x, y = data
    seen = []
    fits = xj.fit_many(x, y, l2=0.01, chunk=2, progress=lambda done, count: seen.append((done, count)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert fits.params.weights.shape == (K, D)
    for i in (0, K - 1):
        assert_alone(fits, i, xj.fit_logistic(x[i], y[i], l2=0.01))


def test_bootstraps_and_penalties_of_shared_data(data):
    x, y = data[0][0], data[1][0]
    rng = np.random.default_rng(1)
    weights = rng.multinomial(N, np.full(N, 1 / N), size=K)
    weights[2, y == 1] = 0  # a class that a fit never sees
    penalties = np.array([0.0, 0.01, 0.1, 1.0, 10.0])
    fits = xj.fit_many(x, y, weights=weights, l2=penalties)
    for i in (0, 1, 3):
        assert_alone(fits, i, xj.fit_logistic(x, y, weights=weights[i], l2=penalties[i]))
    assert fits.status[2] == "separated"
    assert "A class has no row" in fits[2].message


def test_fits_that_share_their_features_are_made_alone_where_they_need_it(data):
    """Among bootstraps: one in whose rows a column is constant, one whose rows are separated, one of few rows that
    vary little, one that is unlike all others."""
    x = np.c_[data[0][0], np.arange(N) % 7 == 0]
    y, rng = data[1][0], np.random.default_rng(1)
    weights = rng.multinomial(N, np.full(N, 1 / N), size=8).astype(float)
    weights[1, x[:, 3] == 1] = 0
    weights[2, (x[:, 0] > 0) != y] = 0
    weights[4, np.abs(x[:, 1]) > 0.3] = 0
    weights[6] *= 10.0 ** rng.uniform(-3, 3, N)
    fits = xj.fit_many(x, y, weights=weights)
    assert fits.status[1] == "rank_deficient"
    assert fits.status[2] == "separated"
    for i in range(8):
        alone = xj.fit_logistic(x, y, weights=weights[i])
        assert fits.status[i] == alone.status
        if alone.status == "converged":
            assert_alone(fits, i, alone)
        np.testing.assert_array_equal(fits[i].dependent, alone.dependent)


def test_classes_that_share_their_features(data):
    x, rng = data[0][0], np.random.default_rng(2)
    y = np.argmax(x @ rng.standard_normal((D, 3)) + rng.gumbel(size=(N, 3)), axis=1)
    weights = rng.multinomial(N, np.full(N, 1 / N), size=3)
    fits = xj.fit_many(x, y, weights=weights, l2=0.02)
    for i in range(3):
        assert_alone(fits, i, xj.fit_logistic(x, y, weights=weights[i], l2=0.02))


def test_more_classes_and_a_separated_fit(data):
    x = data[0]
    y = np.random.default_rng(2).integers(0, 3, (K, N))
    y[1] = np.where(x[1, :, 0] > 0.5, 2, y[1] % 2)
    fits = xj.fit_many(x, y)
    assert fits.params.bias.shape == (K, 3)
    assert_alone(fits, 0, xj.fit_logistic(x[0], y[0]))
    assert fits.status[1] == "separated"
    assert np.isnan(fits[1].std_err.weights).all()


def test_groups_of_unequal_sizes(data):
    x, y = data
    sizes = [N, 20, 45, N, 33]
    groups = [(x[i, :n], y[i, :n], np.arange(n) % 3) for i, n in enumerate(sizes)]
    fits = xj.fit_many(*([g[j] for g in groups] for j in (0, 1)), weights=[g[2] for g in groups], l2=0.1)
    for i, (features, labels, weights) in enumerate(groups):
        if i in (1, 4):
            assert_alone(fits, i, xj.fit_logistic(features, labels, weights=weights, l2=0.1))
    assert (fits.status == "converged").all()


def test_what_rows_of_a_group_without_weight_hold_does_not_matter(data):
    x, y = data
    labels, weights = np.where(np.arange(N) == 3, 99, y[0]), np.where(np.arange(N) == 3, 0.0, 1.0)
    fits = xj.fit_many([x[0], x[1]], [labels, y[1]], weights=[weights, np.ones(N)], l2=0.1)
    assert fits.params.weights.shape == (2, x.shape[2])
    assert_alone(fits, 0, xj.fit_logistic(x[0], y[0], weights=weights, l2=0.1))


def test_a_loop_over_fits_ends_and_there_are_no_others(data):
    x, y = data
    fits = xj.fit_many(x, y, l2=0.1)
    assert [float(fit.objective) for fit in fits] == fits.objective.tolist()
    assert [str(status) for status in fits.status] == fits.status.names.tolist()
    for index in (K, -K - 1, np.array([0, K])):
        with pytest.raises(IndexError, match=f"out of bounds for axis 0 with size {K}"):
            fits[index]
    path = xj.fit_path(x[0], y[0], num_lambdas=3)
    with pytest.raises(IndexError, match="index 3 is out of bounds"):
        path.at(3)


BAD = {
    "a NaN": (lambda x, y: {"x": np.where(x == x[3, 4, 1], np.nan, x)}, "fit 3: x[4, 1] is nan"),
    "a label": (lambda x, y: {"y": np.where(np.arange(K)[:, None] == 2, 2.5, y)}, "fit 2: y[0] is 2.5"),
    "a weight": (
        lambda x, y: {"weights": np.where(np.arange(K) == 1, -1.0, 1.0)[:, None] * np.ones(N)},
        "fit 1: weights[0]",
    ),
    "no weight": (lambda x, y: {"weights": np.zeros((K, N))}, "fit 0: all weights are 0"),
    "another number": (lambda x, y: {"l2": np.ones(3)}, "needs 5 on its first axis"),
    "one fit": (lambda x, y: {"x": x[0], "y": y[0]}, "nothing has one entry for each fit"),
    "no fit": (lambda x, y: {"x": x[:0], "y": y[:0]}, "there is no fit to make"),
    "a vector": (lambda x, y: {"x": x[0, 0]}, "needs [n, d], or [k, n, d]"),
    "no groups": (lambda x, y: {"x": [], "y": []}, "x is an empty list"),
    "groups of other columns": (lambda x, y: {"x": [x[0], x[1, :, :2]], "y": list(y[:2])}, "x[1] has shape (60, 2)"),
    "groups without labels": (lambda x, y: {"x": list(x), "y": list(y[:2])}, "y must be one too, got 2 of them"),
    "a group's labels": (lambda x, y: {"x": list(x), "y": [y[0, :5], *y[1:]]}, "y[0] has shape (5,), but x[0] (60, 3)"),
    "penalties of other groups": (
        lambda x, y: {"x": list(x), "y": list(y), "l2": np.ones(3)},
        "l2 has shape (3,), but needs () or 5 on its first axis",
    ),
    "groups of shares and of more classes": (
        lambda x, y: {"x": list(x), "y": [1.0 * y[0], y[1] + 1, *y[2:]]},
        "y has shape (64,), but needs (64, 3)",
    ),
    "a group without weights": (
        lambda x, y: {"x": list(x), "y": list(y), "weights": list(np.zeros((K, N)))},
        "fit 0: all weights are 0",
    ),
    "weights in a column": (
        lambda x, y: {"x": list(x), "y": list(y), "weights": [np.ones((N, 1))] * K},
        "weights[0] has shape (60, 1), but x[0] (60, 3)",
    ),
    "a solver": (lambda x, y: {"solver": "magic"}, "solver must be one of 'auto'"),
    "classes": (lambda x, y: {"num_classes": 0}, "num_classes must be 2 or more"),
    "chunk": (lambda x, y: {"chunk": 0}, "chunk must be at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_fit(data, name):
    change, message = BAD[name]
    arguments = dict(zip(("x", "y"), data, strict=True)) | change(*data)
    with pytest.raises(ValueError, match="fit_many: ") as error:
        xj.fit_many(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert message in str(error.value)
