"""The measures: facts of information theory, policies, accuracy against mpmath, relations between them."""

from __future__ import annotations

import functools
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


def _distributions(rng: np.random.Generator, shape: tuple[int, ...], concentration: float = 1.0) -> Vector:
    p = rng.dirichlet(np.full(shape[-1], concentration), shape[:-1])
    return np.maximum(p, 1e-30).astype(np.float32)


# -- facts -------------------------------------------------------------------------------------------------------------


def test_entropy_of_a_binary_variable_is_one_bit_at_most() -> None:
    p = np.linspace(0, 1, 101, dtype=np.float32)
    h = np.asarray(xj.binary_entropy(p, base=2))
    assert h[0] == h[-1] == 0
    assert h[50] == 1
    assert np.all(np.diff(h[:51]) > 0)
    assert np.all(np.diff(h[50:]) < 0)
    np.testing.assert_array_equal(xj.entropy_of_labels([0, 0, 0], 2), 0)
    np.testing.assert_array_equal(xj.entropy_of_labels([0, 1, 1, 0], 2, base=2), 1)


def test_entropy_lies_between_zero_and_that_of_the_uniform_distribution() -> None:
    p = _distributions(np.random.default_rng(0), (50, 8), 0.3)
    h = np.asarray(xj.entropy(p))
    assert np.all((h > 0) & (h < np.log(8)))
    assert xj.entropy(np.full(8, 0.125), base=2) == 3
    assert xj.entropy(np.eye(8)[2]) == 0


def test_cross_entropy_is_entropy_plus_divergence() -> None:
    rng = np.random.default_rng(1)
    p, q = (_distributions(rng, (50, 6)) for _ in range(2))
    h, cross, kl = xj.entropy(p), xj.cross_entropy(p, q), xj.kl_divergence(p, q)
    np.testing.assert_allclose(cross, h + kl, rtol=8 * np.finfo(np.float32).eps)
    np.testing.assert_allclose(xj.cross_entropy(p, p), h, rtol=4 * np.finfo(np.float32).eps)
    assert np.all(cross > h), "Gibbs' inequality"
    assert np.any(cross < xj.entropy(q)), "it need not exceed the prediction's entropy"
    assert np.all(np.abs(cross - xj.cross_entropy(q, p)) > 1e-4), "the order matters"
    js = np.asarray(xj.js_divergence(p, q))
    np.testing.assert_array_equal(js, xj.js_divergence(q, p))
    assert np.all((js > 0) & (js < np.log(2)))


def test_divergences_of_equal_distributions_are_exactly_zero() -> None:
    p = _distributions(np.random.default_rng(2), (20, 30), 0.2)
    assert np.all(np.asarray(xj.kl_divergence(p, p)) == 0)
    assert np.all(np.asarray(xj.js_divergence(p, p)) == 0)


def test_an_impossible_observation_costs_infinitely_much() -> None:
    p, q = jnp.array([0.5, 0.5, 0.0]), jnp.array([1.0, 0.0, 0.0])
    for measure in (xj.cross_entropy, xj.kl_divergence):
        assert measure(p, q) == jnp.inf
        assert jnp.isfinite(measure(q, p)), "nothing that was observed is impossible"
    gradient = jax.grad(xj.cross_entropy, argnums=1)(p, q)
    np.testing.assert_array_equal(gradient, [-0.5, -jnp.inf, 0])


def test_cross_entropy_grows_as_the_prediction_moves_away() -> None:
    q1 = np.linspace(0.3, 0.999, 30, dtype=np.float32)
    cross = xj.cross_entropy(np.tile(np.float32([0.3, 0.7]), (30, 1)), np.stack([q1, 1 - q1], -1))
    assert np.all(np.diff(np.asarray(cross)) > 0)


def test_miller_madow_adds_its_term() -> None:
    counts = jnp.array([3, 0, 5, 2])
    difference = xj.entropy_of_counts(counts, "miller-madow") - xj.entropy_of_counts(counts)
    np.testing.assert_allclose(difference, 2 / 20, rtol=1e-5)
    assert jnp.isnan(xj.entropy_of_counts(jnp.zeros(3)))


def test_labels_outside_the_classes_give_nan() -> None:
    labels = np.array([[0, 1, 2, 200], [0, 1, 2, 3], [0, 1, 2, 4]], np.uint8)
    entropy = np.asarray(xj.entropy_of_labels(labels, 4))
    np.testing.assert_array_equal(np.isnan(entropy), [True, False, True])
    np.testing.assert_array_equal(np.isnan(xj.entropy_of_labels(np.array([0, -1]), 2)), True)


# -- policies ----------------------------------------------------------------------------------------------------------

_OF_ONE: dict[str, Callable[..., Any]] = {
    "entropy": xj.entropy,
    "perplexity": xj.perplexity,
    "entropy_of_counts": xj.entropy_of_counts,
    "renyi": lambda p, **k: xj.renyi_entropy(p, 0.5, **k),
    "tsallis": lambda p, **k: xj.tsallis_entropy(p, 2.0, **k),
}
_OF_TWO: dict[str, Callable[..., Any]] = {
    "cross_entropy": xj.cross_entropy,
    "kl_divergence": xj.kl_divergence,
    "js_divergence": xj.js_divergence,
}
_OF_TABLES: dict[str, Callable[..., Any]] = {
    "joint_entropy": xj.joint_entropy,
    "conditional_entropy": xj.conditional_entropy,
    "mutual_information": xj.mutual_information,
    "total_correlation": xj.total_correlation,
}


@pytest.mark.parametrize("name", [*_OF_ONE, *_OF_TWO])
def test_a_masked_entry_is_as_good_as_dropped(name: str) -> None:
    measure, arity = {**_OF_ONE, **_OF_TWO}[name], 1 if name in _OF_ONE else 2
    rng = np.random.default_rng(3)
    where = np.array([True, False, True, True, False, False])
    dropped = [_distributions(rng, (3,)) for _ in range(arity)]
    masked = []
    for p in dropped:
        masked.append(np.float32([0, np.nan, 0, 0, np.inf, 0.25]))
        masked[-1][where] = p
    indices = tuple(range(arity))
    with_mask = jax.jit(lambda where, *p: jax.value_and_grad(lambda *p: measure(*p, where=where), indices)(*p))
    value, gradients = with_mask(where, *masked)
    true_value, true_gradients = jax.jit(jax.value_and_grad(measure, indices))(*dropped)
    assert value == true_value
    for gradient, true in zip(gradients, true_gradients, strict=True):
        np.testing.assert_array_equal(gradient[where], true)
        np.testing.assert_array_equal(gradient[~where], 0)
    value, gradients = with_mask(np.zeros_like(where), *masked)
    assert value == 0
    np.testing.assert_array_equal(np.stack(gradients), 0)


@pytest.mark.parametrize("name", _OF_TABLES)
def test_a_masked_column_is_as_good_as_dropped(name: str) -> None:
    measure = _OF_TABLES[name]
    dropped = _distributions(np.random.default_rng(4), (6,)).reshape(3, 2)
    table = np.stack([dropped[:, 0], np.full(3, np.nan, np.float32), dropped[:, 1]], 1)
    where = np.isfinite(table)
    with_mask = jax.jit(lambda where, table: jax.value_and_grad(lambda t: measure(t, where=where))(table))
    value, gradient = with_mask(where, table)
    true_value, true_gradient = jax.jit(jax.value_and_grad(measure))(dropped)
    assert value == true_value
    np.testing.assert_array_equal(gradient[where].reshape(3, 2), true_gradient)
    np.testing.assert_array_equal(gradient[~where], 0)
    assert with_mask(np.zeros_like(where), table)[0] == 0


@pytest.mark.parametrize("name", ["entropy", "js_divergence"])
def test_axis_keepdims_base_and_dtype(name: str) -> None:
    measure, arity = {**_OF_ONE, **_OF_TWO}[name], 1 if name in _OF_ONE else 2
    rng = np.random.default_rng(5)
    rows = [_distributions(rng, (3, 4)) for _ in range(arity)]
    value = np.asarray(measure(*rows))
    assert value.shape == (3,)
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, measure(*(p.T for p in rows), axis=0))
    np.testing.assert_array_equal(value[:, None], measure(*rows, keepdims=True))
    np.testing.assert_array_equal(measure(*(p[0] for p in rows), axis=None), value[0])
    np.testing.assert_allclose(measure(*rows, base=2) * np.log(2), value, rtol=1e-6)
    for dtype in (jnp.float16, jnp.bfloat16):
        cast = [jnp.asarray(p, dtype) for p in rows]
        assert measure(*cast).dtype == dtype
        wide = measure(*(p.astype(jnp.float32) for p in cast))
        np.testing.assert_array_equal(measure(*cast), wide.astype(dtype))


def test_errors_name_the_argument() -> None:
    p = jnp.ones((2, 3)) / 3
    with pytest.raises(ValueError, match=r"kl_divergence: q has shape \(3,\), but needs \(2, 3\)"):
        xj.kl_divergence(p, p[0])
    with pytest.raises(ValueError, match=r"entropy: p has shape \(2, 0\): axis 1 is empty"):
        xj.entropy(jnp.zeros((2, 0)))
    with pytest.raises(ValueError, match="axis 2 does not exist: p has shape"):
        xj.entropy(p, axis=2)
    with pytest.raises(ValueError, match=r"where has shape \(3,\)"):
        xj.js_divergence(p, p, where=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="base must be"):
        xj.entropy(p, base=1)
    with pytest.raises(ValueError, match="correction must be None or 'miller-madow', got 'jackknife'"):
        xj.entropy_of_counts(p, "jackknife")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha must be a number of at least 0, got -1"):
        xj.renyi_entropy(p, -1)
    with pytest.raises(ValueError, match="axis must be a tuple of two axes"):
        xj.mutual_information(p, axis=(0,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels must be integers"):
        xj.entropy_of_labels(p, 3)
    with pytest.raises(TypeError, match="no derivative with respect to 'alpha'"):
        jax.grad(lambda alpha: xj.renyi_entropy(p[0], alpha))(2.0)


def test_negative_entries_give_nan() -> None:
    @jax.jit
    def values(p: Any, q: Any) -> Any:
        of_one = [xj.entropy(p), xj.renyi_entropy(p, 0.5), xj.mutual_information(jnp.stack([p, q]))]
        return of_one + [jnp.stack([measure(p, q), measure(q, p)]) for measure in _OF_TWO.values()]

    assert all(np.all(np.isnan(value)) for value in values(jnp.array([1.5, -0.5]), jnp.array([0.5, 0.5])))


# -- accuracy ----------------------------------------------------------------------------------------------------------


def _log(x: Any) -> Any:
    return mp.log(x) if x > 0 else mp.mpf("-inf")


def _true_terms(name: str, p: Any, q: Any) -> Any:
    """Value, gradients, and the sizes of the gradients' terms, of one pair of numbers (0·log 0 = 0)."""
    if name == "entropy":
        return (-p * _log(p) if p else 0), (-_log(p) - 1, None)
    if name == "cross_entropy":
        return (-p * _log(q) if p else 0), (-_log(q), -p / q)
    if name == "kl_divergence":
        return (p * _log(p / q) if p else 0), (_log(p / q) + 1, -p / q)
    m = (p + q) / 2
    value = ((p * _log(p / m) if p else 0) + (q * _log(q / m) if q else 0)) / 2
    return value, (_log(p / m) / 2, _log(q / m) / 2)


def _pairs(situation: str, size: int, rng: np.random.Generator) -> tuple[Vector, Vector]:
    p, q = (_distributions(rng, (3, size)) for _ in range(2))
    if situation == "near":
        q = (p * (1 + 2.0**-12 * rng.standard_normal(p.shape))).astype(np.float32)
    if situation == "nearer":
        q = np.where(rng.random(p.shape) < 0.5, np.nextafter(p, np.float32(1)), p)
    if situation == "corner":
        p, q = _distributions(rng, (3, size), 0.02), _distributions(rng, (3, size), 0.02)
        p[:, 0] = 0
    if situation == "unnormalised":
        p, q = 4 * p, 3 * q
    if situation == "tiny":
        p, q = p * np.float32(1e-30), q * np.float32(1e-25)
    if situation == "huge":
        p, q = p * np.float32(1e25), q * np.float32(1e-10)
    return p, q


@functools.cache
def _value_and_gradients(measure: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once for all situations."""

    @jax.jit
    def both(*arguments: Any) -> Any:
        values, pull = jax.vjp(measure, *arguments)
        return values, pull(jnp.ones_like(values))

    return both


@pytest.mark.parametrize("situation", ["unit", "near", "nearer", "corner", "unnormalised", "tiny", "huge"])
@pytest.mark.parametrize("size", [2, 40])
@pytest.mark.parametrize("name", ["entropy", *_OF_TWO])
def test_value_and_gradients_are_those_of_mpmath(name: str, situation: str, size: int) -> None:
    p, q = _pairs(situation, size, np.random.default_rng(6))
    measure = getattr(xj, name)
    arguments = (p,) if name == "entropy" else (p, q)
    values, gradients = _value_and_gradients(measure)(*arguments)
    flushed = size * (200 if name == "entropy" else 1)
    for row in range(p.shape[0]):
        exact = [_true_terms(name, mp.mpf(float(a)), mp.mpf(float(b))) for a, b in zip(p[row], q[row], strict=True)]
        assert why_wrong(values[row], mp.fsum(value for value, _ in exact), np.float32, flushed=flushed) is None
        for i, gradient in enumerate(gradients):
            for got, (_, true) in zip(np.asarray(gradient[row]), exact, strict=True):
                assert why_wrong(got, true[i], np.float32, flushed=size) is None, (name, row, i)


def _true_mutual_information(table: Vector) -> Any:
    exact = [[mp.mpf(float(x)) for x in row] for row in table]
    rows, columns = [mp.fsum(row) for row in exact], [mp.fsum(column) for column in zip(*exact, strict=True)]
    return mp.fsum(
        x * mp.log(x / (rows[i] * columns[j])) for i, row in enumerate(exact) for j, x in enumerate(row) if x
    )


@pytest.mark.parametrize("deviation", [1.0, 2.0**-10, 2.0**-18, 0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 300.0])
def test_mutual_information_of_almost_independent_variables(deviation: float, scale: float) -> None:
    rng = np.random.default_rng(7)
    rows, columns = rng.dirichlet(np.ones(5), 4)[..., None], rng.dirichlet(np.ones(6), 4)[:, None, :]
    noise = np.clip(rng.standard_normal((4, 5, 6)), -0.9, 0.9)
    tables = (rows * columns * (1 + deviation * noise) * scale).astype(np.float32)
    got = xj.mutual_information(tables)
    for value, table in zip(np.asarray(got), tables, strict=True):
        assert why_wrong(value, _true_mutual_information(table), np.float32, flushed=30) is None


def test_float64_keeps_its_digits() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(8)
        p = rng.dirichlet(np.ones(9))
        q = p * (1 + 1e-9 * rng.standard_normal(9))
        for name, arguments in {"entropy": (p,), "kl_divergence": (p, q), "js_divergence": (p, q)}.items():
            pairs = zip(p.tolist(), q.tolist(), strict=True)
            true = mp.fsum(_true_terms(name, mp.mpf(a), mp.mpf(b))[0] for a, b in pairs)
            assert why_wrong(getattr(xj, name)(*arguments), true, np.float64) is None, name
        table = np.outer(p, q) * (1 + 1e-9 * rng.standard_normal((9, 9)))
        assert why_wrong(xj.mutual_information(table), _true_mutual_information(table), np.float64) is None


@pytest.mark.parametrize("size", [32_000, 2**20])
def test_long_sums_keep_their_digits(size: int) -> None:
    rng = np.random.default_rng(9)
    p, q = (rng.exponential(size=size).astype(np.float32) / np.float32(size) for _ in range(2))
    p64, q64 = p.astype(np.longdouble), q.astype(np.longdouble)
    true = {
        "entropy": -np.sum(p64 * np.log(p64)),
        "cross_entropy": -np.sum(p64 * np.log(q64)),
        "kl_divergence": np.sum(p64 * np.log(p64 / q64)),
        "js_divergence": np.sum(p64 * np.log(2 * p64 / (p64 + q64)) + q64 * np.log(2 * q64 / (p64 + q64))) / 2,
    }
    for name, expected in true.items():
        got = getattr(xj, name)(*((p,) if name == "entropy" else (p, q)))
        assert why_wrong(got, mp.mpf(float(expected)), np.float32) is None, name
    perplexity = mp.exp(mp.mpf(float(true["entropy"])))
    assert why_wrong(xj.perplexity(p), perplexity, np.float32) is None


def _sixteen_bits(dtype: Any) -> Any:
    return jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), dtype)


def _assert_nearest(got: Any, true: Vector, dtype: Any, unless: Vector) -> None:
    """Within 0.51 ULP of the truth; below the smallest normal number 0 is right too."""
    info = jnp.finfo(dtype)
    got, size = np.asarray(got, np.float64), np.abs(true)
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.maximum(np.floor(np.log2(size)), info.minexp)
        close = np.abs(got - true) <= 0.51 * 2.0 ** (exponent - info.nmant)
    right = close | (got == true) | (np.isnan(got) & np.isnan(true)) | ((got == 0) & (size < float(info.tiny))) | unless
    assert np.all(right), (np.flatnonzero(~right)[:5], got[~right][:5], true[~right][:5])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_binary_entropy_of_every_sixteen_bit_number(dtype: Any) -> None:
    p = _sixteen_bits(dtype)
    x = np.asarray(p, np.float64)
    with np.errstate(all="ignore"):
        inside = (x >= 0) & (x <= 1)
        value = np.where((x == 0) | (x == 1), 0, -x * np.log(x) - (1 - x) * np.log1p(-x))
        gradient = np.where(x == 0.5, 0, np.log1p(-x) - np.log(x))
    got, slope = jax.jit(lambda p: jax.jvp(xj.binary_entropy, (p,), (jnp.ones_like(p),)))(p)
    assert got.dtype == slope.dtype == dtype
    subnormal = (x != 0) & (np.abs(x) < float(jnp.finfo(jnp.float32).tiny))
    _assert_nearest(got, np.where(inside, value, np.nan), dtype, subnormal)
    _assert_nearest(np.asarray(slope)[inside], gradient[inside], dtype, subnormal[inside])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_binary_entropy_of_every_sixteen_bit_logit(dtype: Any) -> None:
    logit = _sixteen_bits(dtype)
    x = np.asarray(logit, np.float64)
    with np.errstate(all="ignore"):
        a = np.abs(x)
        q = 1 / (1 + np.exp(a))
        value = np.where(q == 0, 0, np.log1p(np.exp(-a)) + a * q)
        gradient = np.where(q == 0, 0, -x * q * (1 - q))
    got, slope = jax.jit(lambda z: jax.jvp(xj.binary_entropy_from_logits, (z,), (jnp.ones_like(z),)))(logit)
    assert got.dtype == slope.dtype == dtype
    none = np.zeros(x.shape, bool)
    _assert_nearest(got, value, dtype, none)
    _assert_nearest(slope, gradient, dtype, none)


def test_second_derivative_of_binary_entropy_of_a_logit() -> None:
    x = np.float32([-np.inf, -50, -3, -1e-3, 0, 0.5, 2.4, 20, 80, np.inf])
    second = jax.vmap(jax.grad(jax.grad(xj.binary_entropy_from_logits)))(x)
    for got, z in zip(np.asarray(second), x, strict=True):
        exact, size = mp.mpf(0), mp.mpf(0)
        if np.isfinite(z):
            s, z = 1 / (1 + mp.exp(-mp.mpf(float(z)))), mp.mpf(float(z))
            size = s * (1 - s) * (1 + abs(z))
            exact = s * (1 - s) * (z * mp.tanh(z / 2) - 1)
        assert why_wrong(got, exact, np.float32, size=size, flushed=1) is None


# -- relations ---------------------------------------------------------------------------------------------------------


def test_relations_of_joint_tables() -> None:
    table = _distributions(np.random.default_rng(10), (2, 12)).reshape(2, 3, 4)
    eps = np.finfo(np.float32).eps
    joint, rows, columns = xj.joint_entropy(table), xj.entropy(table.sum(2)), xj.entropy(table.sum(1))
    np.testing.assert_allclose(joint, rows + xj.conditional_entropy(table), rtol=8 * eps)
    np.testing.assert_allclose(joint, columns + xj.conditional_entropy(table, axis=(-1, -2)), rtol=8 * eps)
    np.testing.assert_allclose(xj.mutual_information(table), rows + columns - joint, atol=16 * eps)
    np.testing.assert_array_equal(xj.mutual_information(table), xj.total_correlation(table, axis=(1, 2)))
    cube = (table / 2).astype(np.float64)
    marginals = [cube.sum(other) for other in ((1, 2), (0, 2), (0, 1))]
    true = np.sum(cube * np.log(cube)) - sum(np.sum(p * np.log(p)) for p in marginals)
    np.testing.assert_allclose(xj.total_correlation(table / 2), true, rtol=4 * eps)


def test_perplexity_is_the_exponential_of_entropy() -> None:
    p = _distributions(np.random.default_rng(11), (5, 100))
    np.testing.assert_allclose(xj.perplexity(p), np.exp(np.asarray(xj.entropy(p), np.float64)), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999, 1.0, 1 + 1e-7, 2.0, 30.0, 2000.0])
def test_renyi_and_tsallis_entropies_are_those_of_mpmath(alpha: float) -> None:
    dyadic = np.float32([[0.5, 0.25, 0.125, 0.125, 0], [1 - 2.0**-18, 2.0**-18, 0, 0, 0]])
    p = np.concatenate([dyadic, _distributions(np.random.default_rng(12), (3, 5))])
    renyi, tsallis = xj.renyi_entropy(p, alpha), xj.tsallis_entropy(p, alpha)
    order = mp.mpf(alpha)
    for row, (r, t) in enumerate(zip(np.asarray(renyi), np.asarray(tsallis), strict=True)):
        exact = [mp.mpf(float(x)) for x in p[row] if x > 0]
        if alpha == 1:
            true = [mp.fsum(-x * mp.log(x) for x in exact)] * 2
        else:
            power_sum = mp.fsum(x**order for x in exact)
            true = [mp.log(power_sum) / (1 - order), (1 - power_sum) / (order - 1)]
        assert why_wrong(r, true[0], np.float32) is None, (row, "Rényi")
        assert why_wrong(t, true[1], np.float32) is None, (row, "Tsallis")


def test_limits_of_the_order() -> None:
    p = jnp.array([0.5, 0.25, 0.25, 0.0])
    orders = jnp.array([0.0, 1 - 2.0**-20, 1.0, 1 + 2.0**-20, 2.0, jnp.inf])
    renyi, tsallis = jax.jit(jax.vmap(lambda a: (xj.renyi_entropy(p, a), xj.tsallis_entropy(p, a))))(orders)
    shannon = 1.5 * np.log(2)
    true_renyi = [np.log(3), shannon, shannon, shannon, np.log(8 / 3), np.log(2)]
    np.testing.assert_allclose(renyi, true_renyi, rtol=2e-6)
    np.testing.assert_allclose(tsallis, [2, shannon, shannon, shannon, 0.625, 0], rtol=2e-6)
    ties = jax.grad(lambda p: xj.renyi_entropy(p, np.inf))(jnp.array([0.4, 0.4, 0.2]))
    np.testing.assert_array_equal(ties, [-1.25, -1.25, 0])
