"""The gradient check: what is right passes, planted errors are caught, also where JAX's own checker is blind."""

import dataclasses
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

import xentjax as xj
from xentjax.core.check import check_records
from xentjax.core.gradient import GradientError
from xentjax.core.op import ops

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 5)).astype(np.float32), RNG.standard_normal(20).astype(np.float32)
W, B = RNG.standard_normal(5).astype(np.float32), np.float32(0.3)


def loss(w, b, x, y):
    return jnp.mean((x @ w + b - y) ** 2)


def by_hand(w, b, x, y):
    r = 2 * (x @ w + b - y) / len(y)
    return r @ x, jnp.sum(r)


PLANTED = {
    "sign": lambda g: (-g[0], g[1]),
    "factor": lambda g: (g[0], g[1] * (1 + 1e-3)),
    "one element": lambda g: (g[0].at[3].multiply(1.01), g[1]),
    "missing argument": lambda g: g[:1],
    "not a tuple": lambda g: g[0],
    "extra axis": lambda g: (g[0][None], g[1]),
    "wrong broadcast": lambda g: (jnp.broadcast_to(g[0][:1], g[0].shape), g[1]),
    "summed away": lambda g: (jnp.sum(g[0]), g[1]),
    "wrong dtype": lambda g: (g[0].astype(jnp.bfloat16), g[1]),
    "nan": lambda g: (g[0] * jnp.nan, g[1]),
    "none": lambda g: (None, g[1]),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_right_gradient_passes(dtype):
    args = [jnp.asarray(a, dtype) for a in (W, B, X, Y)]
    report = xj.check_gradient(loss, *args, wrt=("w", "b"), gradient=by_hand)
    report.raise_if_failed()
    assert report.passed
    assert report.max_ulp < 4
    assert report.compared == 12
    assert report.skipped == 0


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_are_caught(error):
    report = xj.check_gradient(loss, W, B, X, Y, wrt=(0, 1), gradient=lambda *a: PLANTED[error](by_hand(*a)))
    assert not report.passed
    with pytest.raises(GradientError, match="FAILED"):
        report.raise_if_failed()
    if error == "one element":
        assert report.worst[:2] == ("w", (3,))
        assert report.worst.got == pytest.approx(1.01 * report.worst.expected, rel=1e-5)
        assert "w[3]" in str(report)
    if error == "missing argument":
        assert "tuple of 2 gradients (w, b)" in str(report)


def test_one_wrong_element_of_a_million():
    z = RNG.standard_normal(10**6).astype(np.float32)

    def total(z):
        return jnp.sum(jnp.logaddexp(z, 0))

    def wrong(z):
        return jax.nn.sigmoid(z).at[123_456].multiply(1 + 1e-3)

    report = xj.check_gradient(total, z, gradient=wrong)
    assert report.worst[:2] == ("z", (123_456,))
    assert not report.passed


def test_jax_checks_pass_what_this_one_catches():
    # check_grads compares forward mode along one random direction and multiplies its tolerance by the array's size.
    n = 300

    @jax.custom_jvp
    def square(x):
        return x**2

    @square.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return square(x), 3 * x * t  # 50 % too much

    x = jnp.asarray(RNG.uniform(0.5, 1.0, n), jnp.float32)
    jax.test_util.check_grads(square, (x,), order=1, modes=["fwd"])
    assert not xj.check_gradient(square, x).passed

    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda x, t: (cube(*x), 3 * x[0] ** 2 * t[0] * jnp.where(jnp.arange(n) == 7, 1.1, 1.0)))
    jax.test_util.check_grads(cube, (x,), order=1, modes=["fwd"])
    report = xj.check_gradient(cube, x)
    assert report.worst[:2] == ("x", (7,))
    assert not report.passed


class Layer(NamedTuple):
    weights: jax.Array
    steps: jax.Array


def test_pytrees_with_integers_among_them():
    def model(params, x):
        return jnp.sum(jnp.tanh(x @ params["layers"][0].weights) * params["scale"]) * params["layers"][0].steps

    params = {
        "scale": jnp.float32(2),
        "layers": [Layer(jnp.asarray(RNG.standard_normal((5, 2)), jnp.float32), jnp.array(3))],
    }

    def gradient(params, x):
        w, n = params["layers"][0]
        a = jnp.tanh(x @ w)
        return {"scale": jnp.sum(a) * n, "layers": [Layer(x.T @ (1 - a**2) * params["scale"] * n, None)]}

    assert xj.check_gradient(model, params, X, wrt="params", gradient=gradient).passed
    report = xj.check_gradient(
        model, params, X, wrt=0, gradient=lambda p, x: jax.tree.map(lambda g: 2 * g, gradient(p, x))
    )
    assert report.worst.argument.startswith("params[")
    assert xj.check_gradient(model, params, X).passed


def test_numpy_gradients_odd_shapes_and_scalars():
    def total(x):
        return jnp.sum(jnp.sin(x))

    for shape in ((), (1,), (0, 3), (2, 0), (3, 1, 2)):
        x = RNG.standard_normal(shape).astype(np.float32)
        report = xj.check_gradient(total, x, gradient=lambda x: np.cos(np.asarray(x)))
        assert report.passed == (x.size > 0), str(report)


def test_a_gradient_more_exact_than_the_formula_passes():
    # At z = 50 the formula's gradient is 0 in float64; the exact one is 3.9e-22, within the formula's rounding error.
    def naive(z):
        return jax.nn.logsumexp(z) - z[0]

    def exact(z):
        e = jnp.exp(z - z[0])
        rest = jnp.sum(e[1:])
        return jnp.concatenate([-rest[None], e[1:]]) / (1 + rest)

    z = jnp.array([50.0, 0.0, 0.0], jnp.float32)
    assert xj.check_gradient(naive, z, gradient=exact).passed


def test_kinks_are_not_errors():
    x = jnp.array([0.0, 1.0, -1.0], jnp.float32)
    report = xj.check_gradient(lambda x: jnp.sum(jax.nn.relu(x)), x)
    assert report.passed, str(report)
    assert report.skipped > 0


def test_reverse_mode_only_functions_are_noted():
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, g: (g * jnp.cos(x),))
    report = xj.check_gradient(f, jnp.arange(4.0))
    assert report.passed
    assert any("reverse" in note for note in report.notes)


def test_array_valued_functions_through_random_cotangents():
    assert xj.check_gradient(lambda z: jax.nn.softmax(z), jnp.arange(4.0)).passed
    assert xj.check_gradient(xj.softmax, jnp.array([[1.0, 2.0, 0.0]])).passed


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match="wrt names 'v', but the arguments are w, b, x, y"):
        xj.check_gradient(loss, W, B, X, Y, wrt="v")
    with pytest.raises(TypeError, match="x must be real"):
        xj.check_gradient(lambda x: jnp.sum(abs(x)), jnp.ones(2, jnp.complex64))
    with pytest.raises(TypeError, match="holds no floats"):
        xj.check_gradient(lambda n, x: n * x, 3, 2.0, wrt=0)


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_table():
    return check_records("binary_entropy_from_logits", dtypes=("float32", "float64"), timed=True)


def test_check_records_reports_each_order_and_dtype(one_table):
    assert one_table.passed, str(one_table)
    assert {(r.order, r.dtype) for r in one_table.rows} == {
        (o, d) for o in ("gradient", "jvp", "hessian") for d in ("float32", "float64")
    }
    assert all(r.compared > 0 for r in one_table.rows)
    (timed,) = [r for r in one_table.rows if r.hand_seconds is not None]
    assert timed.automatic_seconds > 0


def test_check_tables_print_and_serialise(one_table):
    data = json.loads(one_table.to_json())
    assert data["passed"] is True
    assert data["rows"][0]["record"] == "binary_entropy_from_logits"
    failed = dataclasses.replace(one_table.rows[0], passed=False)
    text = str(dataclasses.replace(one_table, rows=[failed, *one_table.rows[1:]]))
    assert "FAIL binary_entropy_from_logits / logit" in text


WRONG_PARTIALS = {
    "sign": lambda g: -g,
    "factor": lambda g: g * (1 + 1e-3),
    "one element": lambda g: g.at[0].multiply(1.001),
    "wrong broadcast": lambda g: jnp.broadcast_to(g.reshape(-1)[:1], g.shape),
    "zero": jnp.zeros_like,
}


@pytest.mark.parametrize("error", WRONG_PARTIALS)
def test_errors_planted_into_a_record_are_caught(error, monkeypatch):
    record = next(r for r in ops() if r.name == "normalized_tanh")
    right = record._partials["z"]
    monkeypatch.setitem(record._partials, "z", lambda *a, **k: WRONG_PARTIALS[error](right(*a, **k)))
    jax.clear_caches()
    table = check_records("normalized_tanh", dtypes=("float64",), timed=False)
    failed = {r.order for r in table.rows if not r.passed}
    jax.clear_caches()
    assert {"gradient", "jvp"} <= failed, str(table)


def test_a_name_that_is_no_record_is_refused():
    with pytest.raises(ValueError, match="no record is named 'entropie'"):
        check_records("entropie")


def test_the_check_leaves_no_plain_formula_in_jaxs_caches():
    """The same compiled function, before and after a check that traces it as its plain formula."""
    compiled = jax.jit(lambda z: xj.softmax_cross_entropy(z, 0))
    assert xj.check_gradient(lambda z: compiled(z), jnp.array([0.3, -1.2, 2.0])).passed
    assert compiled(jnp.array([50.0, 0.0, 0.0])) > 0
    again = jax.jit(lambda z: xj.softmax_cross_entropy(z, 0))
    assert again(jnp.array([50.0, 0.0, 0.0])) > 0
    assert xj.check_gradient(again, jnp.array([0.3, -1.2, 2.0])).passed
