"""Mini-batch training: every row once an epoch, the same for the same seed, resumable."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xentjax as xj

pytestmark = pytest.mark.usefixtures("strict_dtypes")

N, D = 11, 3
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((N, D)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 2, N))
INIT = xj.LogisticParams(jnp.zeros(D), jnp.zeros(()))
SGD = optax.sgd(0.3)
train = functools.partial(xj.train_minibatch, xj.logistic_loss, INIT, (X, Y), epochs=4, batch_size=4)


def equal(a, b):
    def numbers(tree):
        return [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]

    return all(np.array_equal(p, q, equal_nan=True) for p, q in zip(numbers(a), numbers(b), strict=True))


def reference(seed, weights=None, epochs=4, size=4):
    """The same in a Python loop with float64 numpy."""
    key, w, b, history = jax.random.key(seed), np.zeros(D), 0.0, []
    x, y = np.asarray(X, np.float64), np.asarray(Y)
    s = np.ones(N) if weights is None else np.asarray(weights, np.float64)
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), N))
        losses, totals = [], []
        for rows in np.split(order, range(size, N, size)):
            z = x[rows] @ w + b
            losses.append(np.sum(s[rows] * (np.logaddexp(0, z) - y[rows] * z)))
            totals.append(s[rows].sum())
            r = s[rows] * (1 / (1 + np.exp(-z)) - y[rows]) / totals[-1]
            w, b = w - 0.3 * r @ x[rows], b - 0.3 * r.sum()
        history.append(sum(losses) / sum(totals))
    return w, b, history


@pytest.mark.parametrize("weights", [None, RNG.random(N).astype(np.float32)])
def test_equals_a_loop_over_batches_with_a_ragged_last_one(weights):
    result = train(SGD, seed=7, weights=weights)
    w, b, history = reference(7, weights)
    np.testing.assert_allclose(result.params.weights, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.params.bias, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.history, history, rtol=1e-6)
    assert int(result.epochs) == 4


def test_the_seed_decides_everything():
    first, again, other = train(SGD, seed=1), train(SGD, seed=1), train(SGD, seed=2)
    assert equal(first, again)
    assert equal(first, train(SGD, seed=jax.random.key(1)))
    assert not equal(first, other)


def test_every_row_is_used_once_an_epoch():
    """A loss that counts rows: its gradient is the sum of the rows' one-hot codes."""

    def count(params, row, weights):
        return jnp.sum(params * jnp.sum(weights[:, None] * jax.nn.one_hot(row, N), axis=0))

    one = functools.partial(xj.train_minibatch, count, jnp.zeros(N), (jnp.arange(N),), optax.sgd(1.0))
    for size in (1, 3, 4, N, 2 * N):
        assert one(epochs=3, batch_size=size).params.tolist() == [-3.0] * N


def test_rows_of_weight_zero_may_hold_anything():
    weights = jnp.ones(N).at[3].set(0)
    clean = train(SGD, weights=weights)
    dirty = xj.train_minibatch(
        xj.logistic_loss, INIT, (X.at[3].set(jnp.nan), Y), SGD, epochs=4, batch_size=4, weights=weights
    )
    assert equal(clean, dirty)


def test_epoch_by_epoch_and_resumed_are_bit_identical():
    adam = optax.adam(optax.exponential_decay(0.1, 2, 0.9))
    arguments = (xj.logistic_loss, INIT, (X, Y), adam)
    whole = train(adam, seed=3)
    parts = list(xj.iterate_minibatch(*arguments, epochs=4, batch_size=4, seed=3))
    assert [int(p.epochs) for p in parts] == [1, 2, 3, 4]
    assert equal(parts[-1], whole)
    assert np.isnan(parts[1].history).tolist() == [False, False, True, True]
    resumed = list(xj.iterate_minibatch(*arguments, epochs=4, batch_size=4, resume=parts[1]))
    assert len(resumed) == 2
    assert equal(resumed[-1], whole)
    for most in (1, 2, 5):
        pieces = list(xj.iterate_minibatch(*arguments, epochs=4, batch_size=4, seed=3, most=most))
        assert equal(pieces[-1], whole)
        assert [int(p.batches) for p in pieces[:3]] == {1: [1, 2, 0], 2: [2, 0, 2], 5: [0, 0, 0]}[most]
        within = list(xj.iterate_minibatch(*arguments, epochs=4, batch_size=4, resume=lambda _, at=pieces[2]: at))
        assert equal(within[-1], whole)
    shorter = list(xj.iterate_minibatch(*arguments, epochs=2, batch_size=4, seed=3))[-1]
    assert equal(list(xj.iterate_minibatch(*arguments, epochs=4, batch_size=4, resume=shorter))[-1], whole)


def test_vmap_over_seeds_equals_single_runs():
    seeds = jnp.arange(3)
    many = jax.vmap(lambda seed: train(SGD, seed=seed))(seeds)
    assert many.history.shape == (3, 4)
    for i in range(3):
        single = train(SGD, seed=i)
        np.testing.assert_allclose(many.history[i], single.history, rtol=1e-5)
        np.testing.assert_allclose(many.params.weights[i], single.params.weights, rtol=1e-4, atol=1e-6)


def test_full_batches_do_not_depend_on_the_seed():
    """With all rows in one batch an epoch is a gradient step, whatever the order, up to the rounding of its sums."""
    runs = [train(SGD, batch_size=N, seed=seed).params.weights for seed in (0, 1)]
    np.testing.assert_allclose(*runs, rtol=1e-5)
    descent = xj.minimize(xj.LogisticObjective(X, Y), INIT, xj.GradientDescent(0.3), tol=0.0, max_steps=4)
    np.testing.assert_allclose(runs[0], descent.params.weights, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"weights": jnp.ones(3)}, r"weights has shape \(3,\), but needs \(11,\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        train(SGD, **change)
    with pytest.raises(ValueError, match=r"data\[1\] has shape \(3,\), but needs 11 rows"):
        xj.train_minibatch(xj.logistic_loss, INIT, (X, Y[:3]), SGD, epochs=1, batch_size=2)
