"""The arbitrary-precision reference against numbers known from elsewhere."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from xentjax.core.arithmetic import element
from xentjax.core.reference import Formula


def loss(z):
    return jax.nn.logsumexp(z) - z[0]


def naive_binary_entropy(x):
    p = 1 / (1 + jnp.exp(-x))
    return -p * jnp.log(p) - (1 - p) * jnp.log(1 - p)


def test_seventy_digits_of_a_loss_that_float64_rounds_to_zero():
    z = np.array([50.0, 0.0, 0.0])
    got = Formula(loss, z).evaluate(z, digits=120)[()]
    with mpmath.workdps(120):
        true = mpmath.log1p(2 * mpmath.exp(-50))
        assert abs(got - true) < mpmath.mpf(10) ** -70 * true
        assert mpmath.nstr(got, 8) == "3.8574997e-22"
    assert float(loss(jnp.array(z, jnp.float32))) == 0


def test_truth_takes_as_many_digits_as_the_formula_loses():
    z = np.array([700.0, 0.0, 0.0])
    (high, low), (slope, _) = Formula(lambda z: (loss(z), jax.grad(loss)(z)), z).truth(z)
    with mpmath.workdps(50):
        true = 2 * mpmath.exp(-700)
        assert abs(element(float(high)) + element(float(low)) - true) < true * mpmath.mpf(10) ** -15
        assert slope[0] == -float(true)


def test_gradient_far_beyond_the_first_attempts_digits():
    x = np.array(3000.0)
    formula = Formula(jax.grad(lambda x: naive_binary_entropy(x) * jnp.exp(2900.0)), np.array(0.0))
    assert float(formula.truth(x)[0]) == pytest.approx(-3000 * np.exp(-100.0), rel=1e-12)


def test_differences_owe_nothing_to_automatic_differentiation():
    @jax.custom_jvp
    def wrong(x):
        return x**3

    wrong.defjvp(lambda x, t: (wrong(*x), 0 * t[0]))
    x = np.array([0.5, 2.0])
    (high, low) = Formula(wrong, x).slope((x,), (np.ones(2),))
    np.testing.assert_array_equal(high, [0.75, 12.0])
    assert np.max(np.abs(low)) < 1e-16


def test_limits_at_an_edge_are_those_from_inside():
    def entropy(p):
        return -jnp.sum(jnp.where(p == 0, 0, p * jnp.log(jnp.where(p == 0, 1, p))))

    p = np.array([0.0, 0.25, 0.75])
    formula = Formula(jax.grad(entropy), p)
    assert formula.truth(p)[0][0] == 0  # the derivative of the case, not of the entropy
    high, _ = formula.truth(p, inward=(np.array([1, 0, 0]),))
    assert high[0] == np.inf
    np.testing.assert_allclose(high[1:], -np.log(p[1:]) - 1, rtol=4 * 2**-52)


def test_what_depends_on_the_path_has_no_limit():
    x = np.array([0.0]), np.array([0.0])
    high, _ = Formula(lambda a, b: a / b, *x).truth(*x, inward=(np.array([1]), np.array([1])))
    assert np.isnan(high[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.log_softmax(x, axis=0),
        lambda x: jnp.take_along_axis(x, jnp.argmax(x, 0)[None], 0),
        lambda x: jax.grad(lambda x: jnp.sum(jnp.sort(x, axis=1)[:, 1:] ** 2))(x)[jnp.argsort(x[:, 0])],
        lambda x: jnp.cumsum(x, 1) @ x.T + jnp.pad(x, 1)[1:-1, 1:-1] @ x.T,
        lambda x: jnp.stack([jnp.tanh(x), jax.nn.sigmoid(x), jnp.expm1(x), x**2.5, x**-3, jnp.sqrt(x), abs(x)]),
        lambda x: jnp.where(x > 1, jnp.log1p(x), jnp.clip(x, 0.2, 0.8)).max(1) + jnp.min(x) + jnp.sum(jnp.sign(x)),
        lambda x: jax.lax.cond(jnp.all(x > 0), jnp.log, jnp.exp, x)[::-1, 1:],
        lambda x: jax.grad(lambda x: jnp.sum(x[jnp.array([0, 2, 0]), jnp.array([1, 1, 3])] ** 2))(x),
        lambda x: jax.hessian(lambda x: jax.nn.logsumexp(x))(x),
        lambda x: jax.checkpoint(jax.scipy.special.xlogy)(x, x),
    ],
)
def test_agrees_with_float64_on_well_conditioned_functions(function):
    x = np.random.default_rng(0).uniform(0.1, 2, (3, 4))
    with jax.enable_x64(True):
        got, _ = Formula(function, x).truth(x)
        np.testing.assert_allclose(np.asarray(function(x)), got, rtol=1e-13)


def test_infinities_and_nan_follow_ieee():
    with np.errstate(all="ignore"):
        a = np.array([np.inf, -np.inf, np.nan, 0.0, 1.0, -2.0])
        x, y = np.repeat(a, 6), np.tile(a, 6)

        def every(x, y):
            return (
                *(x + y, x - y, x * y, jnp.maximum(x, y), jnp.minimum(x, y), jnp.exp(x), jnp.log(x), jnp.log1p(x)),
                *(jnp.tanh(x), jax.nn.sigmoid(x), jnp.sqrt(x), jnp.where(y == 0, 1.0, x / y), jnp.expm1(x)),
                *(jnp.isfinite(x), jnp.sign(x), abs(x)),
            )

        with jax.enable_x64(True):
            expected = [np.asarray(v, np.float64) for v in every(x, y)]
        for got, true in zip(Formula(every, x, y).evaluate(x, y), expected, strict=True):
            np.testing.assert_allclose(got.astype(np.float64), true, rtol=1e-15)


def test_an_unknown_primitive_is_named():
    x = np.ones(3)
    formula = Formula(jax.scipy.special.erf, x)
    with pytest.raises(NotImplementedError, match="'erf'"):
        formula.evaluate(x)
