"""The measures at the ends of the range and where their terms cancel, against mpmath."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from ulp import why_wrong

import xentjax as xj

Vector = np.ndarray[Any, Any]


def _exact(x: Any) -> list[Any]:
    return [mp.mpf(float(number)) for number in np.asarray(x, np.float64)]


def _true_entropy(p: Any) -> Any:
    return -mp.fsum(x * mp.log(x) for x in _exact(p) if x)


def _true_cross_entropy(p: Any, q: Any) -> Any:
    return -mp.fsum(x * mp.log(y) for x, y in zip(_exact(p), _exact(q), strict=True) if x)


def _true_divergence(p: Any, q: Any) -> Any:
    return mp.fsum(x * mp.log(x / y) for x, y in zip(_exact(p), _exact(q), strict=True) if x)


# -- subnormal numbers -------------------------------------------------------------------------------------------------

_RATIOS = [
    (1e-30, 1e-39),
    (1.2e-38, 1.17e-38),
    (1e-39, 2e-39),
    (1e-39, 1.2e-38),
    (3e-5, 1e-40),
    (1e20, 1e-40),
    (0, 1e-40),
]


@pytest.mark.parametrize(("p", "q"), _RATIOS)
@pytest.mark.parametrize("measure", [xj.cross_entropy, xj.kl_divergence])
def test_ratio_by_a_subnormal_number(measure: Callable[..., Any], p: float, q: float) -> None:
    p32, q32 = np.float32([p]), np.float32([q])
    got = np.asarray(jax.grad(measure, argnums=1)(p32, q32))[0]
    true = -_exact(p32)[0] / _exact(q32)[0]
    largest = float(np.finfo(np.float32).max)
    assert why_wrong(got, max(true, -mp.mpf(largest)), np.float32, flushed=1) is None
    narrow = jnp.asarray([p, q], jnp.bfloat16)
    got = jax.grad(measure, argnums=1)(narrow[:1], narrow[1:])
    true = -_exact(narrow)[0] / _exact(narrow)[1]
    assert why_wrong(got[0], true, jnp.bfloat16) is None


@pytest.mark.parametrize("pair", [(1.5e-38, 1.5e-38), (1.2e-38, 1.3e-38), (1e-39, 2e-39), (1e-44, 1e-38), (3e38, 2e38)])
def test_gradients_of_js_divergence_at_the_ends_of_the_range(pair: tuple[float, float]) -> None:
    p, q = np.float32(pair)
    (a,), (b,) = _exact([p]), _exact([q])
    for got, x in zip(jax.grad(xj.js_divergence, (0, 1))(p[None], q[None]), (a, b), strict=True):
        assert why_wrong(got[0], mp.log(2 * x / (a + b)) / 2, np.float32) is None


# -- terms that cancel -------------------------------------------------------------------------------------------------


def _nearly_zero(rng: np.random.Generator, dtype: Any) -> Vector:
    """[a, b] with -a log a close to b log b: 1 < a, and b by bisection."""
    a = rng.uniform(1.0001, 1.4)
    low, high = 0.4, 1.0  # b log b falls, then rises to 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if a * np.log(a) + middle * np.log(middle) < 0 else (low, middle)
    return np.asarray([a, low], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_terms_of_both_signs_keep_twice_the_digits(dtype: Any) -> None:
    rng = np.random.default_rng(13)
    deviations = 10.0 ** -np.arange(2, 8)[:, None] * np.array([1, -1])
    rows = np.concatenate([1 + deviations, [_nearly_zero(rng, dtype) for _ in range(40)]]).astype(dtype)
    ones, other = np.ones_like(rows), rng.uniform(0.5, 3, rows.shape).astype(dtype)
    near = (rows * (1 + 1e-3 * rng.standard_normal(rows.shape))).astype(dtype)
    near[:, 0] += rows[:, 1] - near[:, 1]
    info = np.finfo(dtype)
    flushed = mp.mpf(float(info.eps)) ** 2 / mp.mpf(float(info.tiny))  # what pairs of floats of the size of one lack
    with jax.enable_x64(dtype == np.float64):
        entropies, crosses = xj.entropy(rows), xj.cross_entropy(np.stack([ones, other]), np.stack([rows, rows]))
        divergences = xj.kl_divergence(rows, near)
        for i, row in enumerate(rows):
            assert why_wrong(entropies[i], _true_entropy(row), dtype, flushed=flushed) is None, row
            assert why_wrong(crosses[0, i], _true_cross_entropy(ones[i], row), dtype, flushed=flushed) is None, row
            assert why_wrong(crosses[1, i], _true_cross_entropy(other[i], row), dtype, flushed=flushed) is None, row
            assert why_wrong(divergences[i], _true_divergence(row, near[i]), dtype, flushed=flushed) is None, row


def test_logarithm_with_twice_the_digits() -> None:
    from xentjax.pairs import full_log_ratio

    rng = np.random.default_rng(14)
    for dtype, digits in ((np.float32, 46), (np.float64, 103)):
        a = np.exp(rng.uniform(-80, 80, 300)).astype(dtype)
        b = (
            a * np.where(rng.random(300) < 0.7, 1 + 10.0 ** rng.uniform(-7, -1, 300), rng.uniform(1e-5, 2, 300))
        ).astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            high, low = (_exact(part) for part in jax.jit(full_log_ratio)(a, b))
        for x, y, got in zip(_exact(a), _exact(b), (sum(parts) for parts in zip(high, low, strict=True)), strict=True):
            true = mp.log(x / y)
            assert abs(got - true) <= mp.mpf(2) ** -digits * abs(true), (x, y)


@pytest.mark.parametrize("value", [1 / np.e, 0.36787942, 0.3678, 0.38, 0.41, 0.33])
def test_gradient_of_entropy_where_it_vanishes(value: float) -> None:
    p = np.float32([value])
    got = [jax.grad(xj.entropy)(p)[0], -jax.grad(xj.kl_divergence)(p, jnp.ones(1))[0]]
    traced = jax.jit(jax.grad(xj.kl_divergence))(p, np.float32([1]))[0]
    for gradient in (*got, -traced):
        assert why_wrong(gradient, -mp.log(_exact(p)[0]) - 1, np.float32) is None


# -- beyond the range --------------------------------------------------------------------------------------------------


def test_perplexity_of_huge_numbers_is_zero() -> None:
    np.testing.assert_array_equal(xj.perplexity(np.float32([[9e36, 0], [3e38, 3e38]])), 0)


# -- shapes ------------------------------------------------------------------------------------------------------------

_MEASURES: dict[str, Callable[..., Any]] = {
    "entropy": xj.entropy,
    "perplexity": xj.perplexity,
    "joint_entropy": xj.joint_entropy,
    "entropy_of_counts": xj.entropy_of_counts,
    "renyi": lambda p, **k: xj.renyi_entropy(p, 3.0, **k),
    "shannon": lambda p, **k: xj.renyi_entropy(p, 1.0, **k),
    "tsallis": lambda p, **k: xj.tsallis_entropy(p, 0.5, **k),
    "cross_entropy": lambda p, **k: xj.cross_entropy(p, 0.5 * p, **k),
    "kl_divergence": lambda p, **k: xj.kl_divergence(p, 0.5 * p, **k),
    "js_divergence": lambda p, **k: xj.js_divergence(p, 0.5 * p, **k),
}


@pytest.mark.parametrize("name", [*_MEASURES, "conditional_entropy", "mutual_information", "total_correlation"])
def test_an_empty_batch_has_no_values(name: str) -> None:
    measure, none = _MEASURES.get(name) or getattr(xj, name), jnp.zeros((0, 2, 3))
    options = {"axis": (1, 2)} if name == "total_correlation" else {}
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(measure(p, **options)))(none)
    assert value == 0
    assert gradient.shape == none.shape
    assert measure(none, **options).shape == ((0, 2) if name in _MEASURES and name != "joint_entropy" else (0,))


@pytest.mark.parametrize("number", [0.5, 1.5])
@pytest.mark.parametrize("name", _MEASURES)
def test_a_number_is_a_distribution_without_axes(name: str, number: float) -> None:
    measure = _MEASURES[name]
    options = {"axis": 0} if name == "joint_entropy" else {}
    value, gradient = jax.value_and_grad(lambda p: measure(p, axis=None))(number)
    row_value, row_gradient = jax.value_and_grad(lambda p: measure(p, **options))(jnp.array([number]))
    np.testing.assert_array_equal(value, row_value)
    np.testing.assert_array_equal(gradient, row_gradient[0])


# -- counts ------------------------------------------------------------------------------------------------------------


def _true_entropy_of_counts(counts: Any) -> tuple[Any, list[Any], list[Any]]:
    """The value, the gradient, and the size of its terms: log(M/n) and its mean, over N, for the largest count M."""
    n = [x for x in _exact(counts) if x]
    number, largest = mp.fsum(n), max(n)
    value = mp.fsum(x / number * mp.log(number / x) for x in n)
    gradient = [(mp.log(number / x) - value) / number for x in n]
    mean = value - mp.log(number / largest)
    return value, gradient, [max(mp.log(largest / x), mean) / number for x in n]


_COUNTS = [
    [0.3, 1e-16], [0.3, 1e-12], [0.3, 1e-30], [123456.7, 1e-9], [16777217.0, 1e-3, 0.0], [5e-37] * 7, [1e38] * 4,
    [3e38, 2e38, 1.0], [1e-39, 2e-39, 5e-40], [1e-38, 3e-39], [1e38, 1e-40], [3.0, 3.0, 1e-9], [7.0, 0.0],
    [1.0, 2.0, 3.0],
]  # fmt: skip


@pytest.mark.parametrize("counts", _COUNTS)
def test_entropy_of_weighted_counts_of_any_size(counts: list[float]) -> None:
    counts32 = np.float32(counts)
    value, gradient = jax.value_and_grad(xj.entropy_of_counts)(counts32)
    true, true_gradient, sizes = _true_entropy_of_counts(counts32)
    assert why_wrong(value, true, np.float32, flushed=len(counts)) is None
    assert np.all(np.asarray(gradient)[counts32 == 0] == np.inf)
    for got, slope, size in zip(np.asarray(gradient)[counts32 != 0], true_gradient, sizes, strict=True):
        assert why_wrong(got, slope, np.float32, size=size, flushed=len(counts)) is None


@pytest.mark.parametrize("counts", [[2**32 + 5, 5], [3_000_000_000, 1_000_000_000], [2**40, 7, 0]])
def test_counts_beyond_32_bits_are_not_wrapped(counts: list[int]) -> None:
    true = _true_entropy_of_counts(np.float32(counts))[0]
    for given in (counts, np.array(counts), np.array(counts, np.uint64)):
        assert why_wrong(xj.entropy_of_counts(given), true, np.float32) is None
    assert np.isnan(xj.entropy_of_labels(np.array([2**32 + 1, 1]), 2))
    assert np.isnan(xj.entropy_of_labels([2**32, 1], 2))


# -- orders ------------------------------------------------------------------------------------------------------------


def _true_renyi(p: Vector, order: Any) -> tuple[Any, list[Any]]:
    exact = _exact(p)
    power_sum = mp.fsum(x**order for x in exact)
    return mp.log(power_sum) / (1 - order), [order / (1 - order) * x ** (order - 1) / power_sum for x in exact]


@pytest.mark.parametrize("alpha", [0.25, 0.5, 2.0, 3.0, 5.0, 40.0])
def test_gradient_of_renyi_entropy_where_powers_leave_the_range(alpha: float) -> None:
    rng = np.random.default_rng(15)
    rows = rng.dirichlet(np.ones(60), 6)
    rows[1, 0], rows[2, :30] = 1e-10, 1e-20
    rows[3] *= 1e-18
    rows[4] *= 1e6
    rows[5] = rng.permutation(np.r_[np.full(59, 1.1e-8), 2e-8])
    rows = rows.astype(np.float32)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(xj.renyi_entropy(p, alpha))))(rows)
    for row, slopes in zip(rows, np.asarray(gradient), strict=True):
        for got, true in zip(slopes, _true_renyi(row, mp.mpf(alpha))[1], strict=True):
            assert why_wrong(got, true, np.float32) is None


def test_gradient_of_renyi_entropy_of_a_rare_class_among_many() -> None:
    p = np.full(32_000, 1 / 32_000, np.float32)
    p[0] = 1e-10
    gradient = jax.grad(lambda p: xj.renyi_entropy(p, 5.0))(p)
    power_sum = 31_999 * mp.mpf(float(p[1])) ** 5 + mp.mpf(float(p[0])) ** 5
    for i in (0, 1):
        assert why_wrong(gradient[i], -mp.mpf("1.25") * mp.mpf(float(p[i])) ** 4 / power_sum, np.float32) is None


@pytest.mark.parametrize("alpha", [1.5, 3.0, 5.0])
def test_gradient_of_renyi_entropy_of_many_distributions(alpha: float) -> None:
    rows = np.maximum(np.random.default_rng(16).dirichlet(np.full(50, 0.3), 2000), 1e-9).astype(np.float32)
    got = np.asarray(jax.jit(jax.grad(lambda p: jnp.sum(xj.renyi_entropy(p, alpha))))(rows), np.longdouble)
    exact = rows.astype(np.longdouble)
    true = alpha / (1 - alpha) * exact ** (alpha - 1) / np.sum(exact**alpha, -1, keepdims=True)
    size = np.maximum(np.abs(true).astype(np.float64), float(np.finfo(np.float32).tiny))
    allowed = (4 + np.maximum(0, -np.log(size))) * 2.0 ** (np.floor(np.log2(size)) - 23)
    assert np.all(np.abs(got - true) <= allowed + rows.shape[1] * float(np.finfo(np.float32).tiny))
