"""Small problems are padded to sizes that share a program: their fits are those of the problems as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj
from xentjax.models.sparse import SparseRows
from xentjax.training import buckets, fit

pytestmark = pytest.mark.usefixtures("module_compiled_fast")


def data(n, d, classes):
    rng = np.random.default_rng(n + d)
    x = rng.standard_normal((n, d)) * np.arange(1, d + 1) + 5
    logits = (x[:, :1] - 5) / 3 * np.arange(classes)
    return x, np.argmax(logits + rng.gumbel(size=(n, classes)), axis=1)


def both(monkeypatch, x, y, **options):
    """The fits with padding and without."""
    with jax.enable_x64(True):
        padded = jax.device_get(xj.fit_logistic(x, y, **options))
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "SMALL", 0)
            plain = jax.device_get(xj.fit_logistic(x, y, **options))
    assert padded.history.value.shape == plain.history.value.shape
    assert jax.tree.map(np.shape, padded) == jax.tree.map(np.shape, plain)
    return padded, plain


def assert_alike(padded, plain):
    """The same to rounding: what is relative to the size of an array is 1e-9 of it."""
    for part in ("params", "covariance", "robust_covariance", "log_likelihood", "null_log_likelihood"):
        for a, b in zip(jax.tree.leaves(getattr(padded, part)), jax.tree.leaves(getattr(plain, part)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.nanmax(np.abs(b), initial=0), err_msg=part)
    for part in ("degrees_of_freedom", "num_observations"):
        np.testing.assert_allclose(getattr(padded, part), getattr(plain, part), rtol=1e-9)
    assert padded.status == plain.status
    np.testing.assert_array_equal(padded.dependent, plain.dependent)


def test_two_classes_with_all_options(monkeypatch):
    x, y = data(37, 5, 2)
    rng = np.random.default_rng(0)
    options = {"weights": rng.uniform(0, 2, 37), "offset": rng.standard_normal(37), "class_weight": "balanced"}
    assert_alike(*both(monkeypatch, x, y, l2=np.linspace(0, 1, 5), **options))
    assert_alike(*both(monkeypatch, x, y, fit_intercept=False, max_steps=60))


def test_three_classes_and_an_initial_point(monkeypatch):
    x, y = data(50, 5, 3)
    init = xj.LogisticParams(jnp.zeros((5, 3)), jnp.zeros(3))
    padded, plain = both(monkeypatch, x, y, init=init)
    assert_alike(padded, plain)
    assert padded.params.weights.shape == (5, 3)
    assert padded.status == "converged"


def test_the_padding_is_no_dependent_column_and_does_not_hide_one(monkeypatch):
    x, y = data(60, 5, 2)
    x = np.column_stack([x[:, :2], x[:, 0] + x[:, 1], np.ones(60), x[:, 2]])
    padded, plain = both(monkeypatch, x, y)
    assert padded.status == "rank_deficient"
    assert np.flatnonzero(padded.dependent).tolist() == [2, 3]
    assert_alike(padded, plain)


def test_the_padding_does_not_hide_a_separation(monkeypatch):
    x, y = data(40, 5, 2)
    x[:, 3] = np.where(y, 2, -2) + np.linspace(-1, 1, 40)
    padded, plain = both(monkeypatch, x, y)
    assert padded.status == plain.status == "separated"
    assert padded.direction.weights.shape == (5,)
    assert bool(padded.completely_separated)


def test_problems_of_like_size_share_a_program():
    before = None
    for n, d in ((49, 5), (50, 6), (57, 5), (64, 6)):
        xj.fit_logistic(*data(n, d, 2), l2=0.1, max_steps=100 + n)
        before = fit._solved.jitted._cache_size() if before is None else before
    assert fit._solved.jitted._cache_size() == before


def test_what_is_traced_is_not_padded():
    x, y = data(20, 3, 2)
    plain = xj.fit_logistic(x, y, l2=0.1)
    traced = jax.jit(lambda x: xj.fit_logistic(x, y, l2=0.1))(x)
    np.testing.assert_allclose(traced.params.weights, plain.params.weights, rtol=1e-4)


def test_sizes():
    sizes = [buckets.bucket(n, least=32) for n in range(1, 2000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * n for n, size in enumerate(sizes, 1) if n > 32)
    assert len(set(sizes)) == 13


@pytest.mark.parametrize("block", [4, 7, 100])
def test_blocks_of_sparse_rows(block):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(block)
    dense = np.where(rng.random((19, 6)) < 0.3, rng.standard_normal((19, 6)), 0).astype(np.float32)
    rows = SparseRows.of(sparse.csc_matrix(dense), block)
    assert rows.shape == dense.shape
    for start in {*range(0, 19 - rows.block, rows.block), 19 - rows.block}:
        np.testing.assert_array_equal(rows.dense(start), dense[start : start + rows.block])
    wider = rows.extended(24, 8, 64)
    np.testing.assert_array_equal(wider.dense(0), np.pad(dense, [(0, 5), (0, 2)]))


def test_sparse_features_may_not_hold_what_is_no_number():
    sparse = pytest.importorskip("scipy.sparse")
    x, y = data(20, 3, 2)
    x[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"x.data\[13\] is inf, but needs to be finite"):
        xj.fit_logistic(sparse.csr_matrix(x), y)
