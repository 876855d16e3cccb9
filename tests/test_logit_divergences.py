"""Divergences of logits: where rows are near, where they are far, and at the ends of the range."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xentjax as xj

pytestmark = pytest.mark.usefixtures("compiled_fast", "strict_dtypes")

INF = np.inf


def log_probabilities(logits: Any) -> Any:
    """log softmax in 64 bits of mantissa; a single +inf is the class that has all."""
    z = np.asarray(logits, np.longdouble)
    largest = z.max(-1, keepdims=True)
    point = np.where(z == INF, 0, -INF)
    shifted = np.where(largest == INF, point, z - np.where(np.isinf(largest), 0, largest))
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(a: Any, b: Any) -> Any:
    log_p, log_q = log_probabilities(a), log_probabilities(b)
    with np.errstate(invalid="ignore"):
        terms = np.where(log_p == -INF, 0, np.exp(log_p) * (log_p - log_q))
    return np.where(np.any((log_p > -INF) & (log_q == -INF), -1), INF, terms.sum(-1))


@pytest.mark.parametrize(
    "classes", [17, 32, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 10, 100, 1000))]
)
def test_divergence_is_right_from_near_to_far(classes: int, optimized: None) -> None:
    rng = np.random.default_rng(classes)
    rows = {32: 4000, 1000: 160}.get(classes, max(16_800, 160_000 // classes))  # from 4096 on in one loop
    a = (rng.normal(size=(rows, classes)) * rng.choice([0.3, 1, 5, 20], (rows, 1))).astype(np.float32)
    step = rng.uniform(0.3, 2, (rows, 1)) * rng.choice([0.1, 1, 3], (rows, 1))
    b = (a + rng.normal(0, 1, (rows, classes)) * step).astype(np.float32) + rng.choice([0, 100, 1e4], (rows, 1))
    b = b.astype(np.float32)
    true = np.asarray(divergence(a, b), np.float64)
    is_known = true > 1e-12  # below, the sum itself cancels in 64 bits
    error = np.abs(np.asarray(xj.kl_divergence_from_logits(a, b), np.float64) - true)
    allowed = (4 + np.maximum(0, -np.log(np.where(is_known, true, 1)))) * np.spacing(true.astype(np.float32))
    # One row in 5,000, in which all roundings add up, is beyond, by less than 1.7.
    assert np.all((error <= 1.7 * allowed) | ~is_known)
    assert np.sum((error > allowed) & is_known) <= 1 + rows // 5000


@pytest.mark.parametrize("classes", [3, 17, 65])
def test_the_last_divergences_whose_exponential_is_finite(classes: int) -> None:
    depth = np.linspace(80, 100, 401, dtype=np.float32)
    a, b = np.zeros((2, depth.size, classes), np.float32)
    a[:, 0], b[:, 0] = 40, -depth
    np.testing.assert_allclose(xj.kl_divergence_from_logits(a, b), divergence(a, b).astype(float), rtol=2e-7)


@pytest.mark.parametrize("classes", [3, 20])
@pytest.mark.parametrize("size", [1e38, 1.6e38, 3e38])
def test_the_largest_logits_have_a_value_and_a_gradient(size: float, classes: int) -> None:
    a, b = np.zeros((2, classes), np.float32)
    b[:2] = size, -size
    value, (p_slope, q_slope) = jax.value_and_grad(xj.kl_divergence_from_logits, (0, 1))(a, b)
    np.testing.assert_allclose(
        [value, -p_slope[0], p_slope[1]], np.array([classes, 1, 1]) * (size / classes), rtol=1e-6
    )
    np.testing.assert_allclose(q_slope, np.eye(classes)[0] - 1 / classes, rtol=1e-6)


@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_one_argument_of_16_bits_beside_one_of_32_costs_no_digit(narrow: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 41))
    a, b = (jnp.asarray(z, narrow) for z in (a, a + rng.normal(0, 0.4, a.shape)))
    for p, q in ((a, b.astype(np.float32)), (a.astype(np.float32), b)):
        got = xj.kl_divergence_from_logits(p, q)
        assert got.dtype == jnp.float32
        true = divergence(p, q).astype(np.float32)
        assert np.all(np.abs(got - true) <= (4 + np.abs(np.log(true))) * np.spacing(true))


@pytest.mark.parametrize(
    ("classes", "rows"),
    [(41, 5000), *(pytest.param(*sizes, marks=pytest.mark.thorough) for sizes in [(10, 5000), (17, 40)])],
)
def test_a_class_that_q_excludes_is_infinite_however_little_p_has_of_it(classes: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, rows, classes)).astype(np.float32)
    a[::2, 3], b[::2, 3], a[1::2, 4] = -69, -INF, -INF
    value = xj.kl_divergence_from_logits(a, b)
    with_gradient, _ = jax.vmap(jax.value_and_grad(xj.kl_divergence_from_logits))(a, b)
    for got in (value, with_gradient):
        assert np.all(np.isinf(got[::2]))
        np.testing.assert_allclose(got[1::2], divergence(a, b)[1::2].astype(float), rtol=2e-6)


#: Pairs of rows that are limits, or large; what they lack are classes that neither has.
LIMITS = [
    ([0.0], [INF]),
    ([0.0, -INF], [INF, 0.0]),
    ([5.0, 0.0], [INF, 0.0]),
    ([0.0, 5.0], [INF, 0.0]),
    ([1e4, 0.0], [INF, 0.0]),
    ([0.0, -3e4], [0.0, INF]),
    ([110.0, 0.0], [0.0, -INF]),
    ([1e4, 0.0, 1.0], [0.0, -INF, 0.0]),
    ([INF, 0.0], [0.0, 0.0]),
    ([INF, 0.0], [-1e4, 0.0]),
    ([INF, 0.0], [INF, 3.0]),
    ([INF, 0.0], [3.0, INF]),
    ([0.0, -INF, 2.0], [1.0, 4.0, 2.0]),
    ([1e30, 1e30], [50.0, 40.0]),
    ([3e38, -3e38], [0.0, 1.0]),
]


@pytest.mark.parametrize("classes", [43, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 2, 3))])
def test_infinite_and_huge_logits_are_limits(classes: int) -> None:
    pairs = [(a, b) for a, b in LIMITS if len(a) <= classes]
    p_logits, q_logits = np.full((2, len(pairs), classes), -INF, np.float32)
    for row, (a, b) in enumerate(pairs):
        p_logits[row, : len(a)], q_logits[row, : len(b)] = a, b

    def slopes(function: Any) -> Any:
        return jax.grad(lambda q: jnp.sum(function(p_logits, q)))(q_logits)

    value = xj.kl_divergence_from_logits(p_logits, q_logits)
    np.testing.assert_allclose(value, divergence(p_logits, q_logits).astype(float), rtol=1e-6)
    p, q = (np.exp(log_probabilities(z)) for z in (p_logits, q_logits))
    np.testing.assert_allclose(slopes(xj.kl_divergence_from_logits), (q - p).astype(float), rtol=1e-5, atol=1e-30)

    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        of_p, of_q = (np.where(x == 0, 0, np.log(x / m)) for x in (p, q))
    js = ((p * of_p + q * of_q).sum(-1) / 2).astype(float)
    for one, other in ((p_logits, q_logits), (q_logits, p_logits)):
        np.testing.assert_allclose(xj.js_divergence_from_logits(one, other), js, rtol=1e-6, atol=1e-38)
    expected = (q * (of_q - (q * of_q).sum(-1, keepdims=True)) / 2).astype(float)
    np.testing.assert_allclose(slopes(xj.js_divergence_from_logits), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("a", [[INF, INF], [-INF, -INF], [np.nan, 0.0]])
def test_rows_that_are_no_distributions_are_nan(a: list[float]) -> None:
    for divergence_of in (xj.kl_divergence_from_logits, xj.js_divergence_from_logits):
        for pair in ((a, [0.0, 1.0]), ([0.0, 1.0], a)):
            assert jnp.isnan(divergence_of(*(jnp.array(z, jnp.float32) for z in pair)))


@pytest.mark.parametrize(("special", "axis"), [(3, 2), (2800, 0)])
def test_rows_that_need_care_are_found_wherever_they_are(special: int, axis: int, optimized: None) -> None:
    """Few of them, or many: near, dominated and infinite rows among others get what they get alone."""
    rng = np.random.default_rng(special)
    a, b = rng.normal(0, 1, (2, 4200, 48)).astype(np.float32)
    chosen = rng.permutation(4200)[:special]
    b[chosen] = a[chosen] + rng.normal(0, 1e-3, (special, 48)).astype(np.float32)
    a[chosen[0], 3] = 60  # dominated, and far
    a[chosen[-1], 5] = b[chosen[-1], 5] = -INF
    true = np.asarray(divergence(a, b), np.float64)
    labels = rng.integers(0, 48, 4200)
    loss = -np.take_along_axis(log_probabilities(a), labels[:, None], 1)[:, 0].astype(float)

    def of_batch(rows: Any) -> Any:
        return np.moveaxis(rows.reshape(3, 1400, *rows.shape[1:]), -1, axis) if rows.ndim > 1 else rows.reshape(3, 1400)

    rtol = 9 * np.finfo(np.float32).eps
    grids = of_batch(a), of_batch(b)
    np.testing.assert_allclose(xj.kl_divergence_from_logits(*grids, axis=axis), of_batch(true), rtol=rtol * 4)
    np.testing.assert_allclose(
        xj.softmax_cross_entropy(grids[0], of_batch(labels), axis=axis), of_batch(loss), rtol=rtol
    )
    mapped = jax.vmap(xj.kl_divergence_from_logits)(a.reshape(2, 2100, 48), b.reshape(2, 2100, 48))
    np.testing.assert_allclose(mapped.ravel(), true, rtol=rtol * 4)
    slopes = jax.grad(lambda z: jnp.sum(xj.softmax_cross_entropy(z, labels)))(a)
    at_label = np.take_along_axis(np.asarray(slopes, float), labels[:, None], 1)[:, 0]
    np.testing.assert_allclose(at_label, np.expm1(-loss), rtol=rtol * 4)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (50, "float32"),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in [(16, "float32"), (24, "bfloat16")]),
    ],
)
def test_a_large_batch_gets_what_its_rows_get_in_small_ones(classes: int, dtype: str) -> None:
    rng = np.random.default_rng(classes)
    a, b = (jnp.asarray(z, dtype) for z in rng.normal(0, 2, (2, 4100, classes)))
    a = a.at[7:9, 0].set(INF).at[20, :].set(-INF).at[30, 1].set(jnp.nan).at[40, 1].set(60000.0)
    b = b.at[8:10, 0].set(INF).at[50, 2].set(-INF).at[60, 1].set(jnp.nan).at[40, 2].set(60000.0)
    a, b = a.at[70:4000:5, 3:8].set(-INF), b.at[70:4000:5, 3:8].set(-INF)  # masked

    @jax.jit
    def value_and_slopes(a: Any, b: Any) -> tuple[Any, Any, Any]:
        value, pull = jax.vjp(xj.kl_divergence_from_logits, a, b)
        return value, *pull(jnp.ones_like(value))

    parts = [value_and_slopes(a[i : i + 410], b[i : i + 410]) for i in range(0, 4100, 410)]
    rtol = 12 * np.finfo(np.float32).eps if dtype == "float32" else 2.0**-7
    for got, *expected in zip(value_and_slopes(a, b), *parts, strict=True):
        wide = (np.asarray(z, np.float64) for z in (got, np.concatenate(expected)))
        np.testing.assert_allclose(*wide, rtol=rtol, atol=rtol)
