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
from xentjax.core.op import ops
from xentjax.core.report import GradientError

pytestmark = pytest.mark.usefixtures("compiled_fast")

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


def test_numpy_gradients_and_empty_arrays():
    def total(x, y):
        return jnp.sum(jnp.sin(x)) + jnp.sum(y)

    def gradient(x, y):
        return np.cos(np.asarray(x)), np.ones(y.shape, y.dtype)

    for shape in ((), (3, 1, 2)):
        x = RNG.standard_normal(shape).astype(np.float32)
        report = xj.check_gradient(total, x, np.ones((0, 3), np.float32), gradient=gradient)
        assert report.passed, str(report)
        assert report.compared == 3 * x.size - x.size
        assert any("not traceable" in note for note in report.notes)
    with pytest.raises(GradientError, match="x, y: no elements"):
        xj.check_gradient(total, np.ones(0), np.ones((0, 3)), gradient=gradient).raise_if_failed()


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


def test_an_error_at_a_kink_is_one():
    def wrong(x):
        return jnp.where(x > 0, 1.0, jnp.where(x < 0, 0.0, 1.5))  # from 0 to 1 any slope at 0 is right

    x = jnp.array([0.0, 1.0, -1.0], jnp.float32)
    report = xj.check_gradient(lambda x: jnp.sum(jax.nn.relu(x)), x, gradient=wrong)
    assert report.worst[:3] == ("x", (0,), 1.5)
    assert not report.passed


Z = jnp.array([[1.0, 2.0, 2.0], [0.5, -1.0, 3.0]], jnp.float32)  # with a tie
MASK = jnp.array([[True, True, True], [True, False, True]])


def masked_lse(z):
    return jnp.sum(jax.nn.logsumexp(z, axis=-1, where=MASK))


def masked_softmax(z):
    return jax.nn.softmax(z, axis=-1, where=MASK)


def with_slope(function, slope):
    """The function under a rule of our making: forward mode, and from it reverse mode."""
    ruled = jax.custom_jvp(function)
    ruled.defjvp(lambda x, t: (ruled(*x), jnp.sum(slope(*x) * t[0])))
    return ruled


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (lambda z, p: p * jnp.where(jnp.sum(z == jnp.max(z, -1, keepdims=True), -1, keepdims=True) > 1, 1.01, 1), 0),
        (lambda z, p: jnp.where(MASK, p, 1e-3), 1),
        (lambda z, p: jnp.where(MASK, p, jnp.nan), 1),
        (lambda z, p: jax.lax.stop_gradient(p) * jnp.where(z < 0, 1.01, 1) + jnp.where(z < 0, 1e-3, 0), 1),
    ],
    ids=["only at a tie", "only for a masked entry", "nan for a masked entry", "only for one sign"],
)
def test_errors_in_few_elements_are_found_and_placed(error, place):
    gradient = lambda z: error(z, masked_softmax(z))
    by_hand = xj.check_gradient(masked_lse, Z, gradient=gradient)
    by_rule = xj.check_gradient(with_slope(masked_lse, gradient), Z)
    for report in (by_hand, by_rule):
        assert not report.passed
        assert report.worst.argument == "z"
        assert report.worst.index[0] == place


def test_an_error_in_one_dtype_only():
    gradient = lambda z: masked_softmax(z) * jnp.where(z.dtype == jnp.float16, jnp.asarray(1.01, z.dtype), 1)
    assert xj.check_gradient(masked_lse, Z, gradient=gradient).passed
    report = xj.check_gradient(masked_lse, Z.astype(jnp.float16), gradient=gradient)
    assert not report.passed
    assert not any("float64" in problem for problem in report.problems)


def test_a_rule_that_ignores_an_argument():
    product = jax.custom_jvp(lambda a, b: jnp.sum(a * b))
    product.defjvp(lambda x, t: (product(*x), jnp.sum(t[0] * x[1])))
    report = xj.check_gradient(product, X, 2 * X)
    assert report.worst.argument == "b"
    assert not report.passed
    assert xj.check_gradient(product, X, 2 * X, wrt="a").passed


def test_a_wrong_second_derivative():
    frozen = with_slope(masked_lse, lambda z: jax.lax.stop_gradient(masked_softmax(z)))
    assert xj.check_gradient(frozen, Z).passed
    report = xj.check_gradient(frozen, Z, order=2)
    assert "the Hessian along a direction" in str(report)
    assert not report.passed
    assert xj.check_gradient(with_slope(masked_lse, masked_softmax), Z, order=2).passed
    assert xj.check_gradient(masked_lse, Z, gradient=masked_softmax, order=2).passed


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
    with pytest.raises(TypeError, match=r"x\['b'\] must be real, got dtype complex64"):
        xj.check_gradient(lambda x: x["a"], {"a": 1.0, "b": jnp.ones(2, jnp.complex64)})
    with pytest.raises(TypeError, match="real value, got dtype complex"):
        xj.check_gradient(lambda x: x * 1j, 1.0)
    with pytest.raises(TypeError, match="none of the arguments n holds floats"):
        xj.check_gradient(lambda n: n, 3)
    with pytest.raises(TypeError, match="holds no floats"):
        xj.check_gradient(lambda n, x: n * x, 3, 2.0, wrt=0)


def test_what_is_no_question_is_refused():
    with pytest.raises(TypeError, match="fn must return floats, got None"):
        xj.check_gradient(lambda x: None, 1.0)
    with pytest.raises(TypeError, match="fn must return floats, got int"):
        xj.check_gradient(lambda x: jnp.sum(x > 0), jnp.ones(2))
    with pytest.raises(TypeError, match="fn must be a function, got int"):
        xj.check_gradient(3, 1.0)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        xj.check_gradient(jnp.sum, 1.0, order=3)
    for wrt, message in (((0, 0), "'w' twice"), ((), "no argument"), (1.5, "1.5, but the arguments are w, b, x, y")):
        with pytest.raises(TypeError, match=f"wrt names {message}"):
            xj.check_gradient(loss, W, B, X, Y, wrt=wrt)


def test_floats_beside_integers_are_checked():
    report = xj.check_gradient(lambda x: (jnp.sum(x**2), jnp.arange(3)), W, gradient=lambda x: 2 * x)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("function", "gradient", "right"),
    [
        (jnp.log, lambda x: 1 / x, True),
        (jnp.log, lambda x: jnp.where(x == 0, 0, 1 / x), False),
        (jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x), True),
        (jnp.sqrt, lambda x: jnp.where(x == 0, -jnp.inf, 0.5 / jnp.sqrt(x)), False),
        (jnp.sqrt, lambda x: jnp.where(x == 0, jnp.nan, 0.5 / jnp.sqrt(x)), False),
    ],
)
def test_where_the_true_derivative_is_infinite_the_gradient_must_be(function, gradient, right):
    report = xj.check_gradient(lambda x: jnp.sum(function(x)), jnp.array([0.0, 1.0]), gradient=gradient)
    assert report.passed == right
    if right:
        assert (report.compared, report.skipped) == (2, 2)  # in two dtypes


def test_nothing_but_nan_is_no_check_that_passed():
    report = xj.check_gradient(lambda x: jnp.sum(x * jnp.nan), jnp.ones(10), gradient=lambda x: x * jnp.nan)
    assert not report.passed
    assert report.compared == 0
    assert "no element has a finite derivative" in str(report)


# Sums that cancel, and functions of them: an element's rounding error is that of the terms that were added up.
LAYERS = [RNG.standard_normal(s).astype(np.float32) for s in ((20, 50), (50, 60), (60, 3))]


def squared_product(x, w, v):
    return jnp.mean((x @ w) ** 2) + 0 * jnp.sum(v)


def network(x, w, v):
    return jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ v) ** 2)


@pytest.mark.parametrize("function", [squared_product, network])
@pytest.mark.parametrize("seed", range(3))
def test_right_gradients_of_products_of_matrices_pass(function, seed):
    layers = [np.random.default_rng(seed).permutation(layer.ravel()).reshape(layer.shape) for layer in LAYERS]
    gradient = jax.grad(function, (0, 1, 2))
    xj.check_gradient(function, *layers, gradient=gradient).raise_if_failed()


@pytest.mark.parametrize("seed", range(3))
def test_right_gradients_with_cancelling_factors_pass(seed):
    x = 2 * np.random.default_rng(seed).standard_normal(3000).astype(np.float32)
    total = lambda x: jnp.sum(jnp.tanh(x) ** 2)
    xj.check_gradient(total, x, gradient=jax.grad(total)).raise_if_failed()


def test_sums_of_sorted_terms_that_cancel_pass():
    """Half of the terms of one sign, then half of the other: the partial sums are far larger than the sum."""
    x = np.random.default_rng(0).uniform(0.5, 1, (4000, 3)).astype(np.float32)
    r = np.sign(np.arange(4000) - 1999.5).astype(np.float32)
    function = lambda w, x, r: jnp.sum((r - x @ w) ** 2)
    by_hand = lambda w, x, r: 2 * (x @ w - r) @ x
    xj.check_gradient(function, np.zeros(3, np.float32), x, r, wrt="w", gradient=by_hand).raise_if_failed()


@pytest.mark.parametrize(("factor", "dtype"), [(1 + 1e-6, "float64"), (1 + 1e-3, "float32")])
def test_small_errors_in_one_element_of_a_network_are_still_caught(factor, dtype):
    right = jax.grad(network, 1)
    wrong = lambda x, w, v: right(x, w, v).at[9, 33].multiply(factor if w.dtype == dtype else 1)
    report = xj.check_gradient(network, *LAYERS, wrt="w", gradient=wrong)
    assert not report.passed
    assert report.worst[:2] == ("w", (9, 33))


# -- the registry ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_table(module_compiled_fast):
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
    "nan": lambda g: g * jnp.nan,
}


@pytest.fixture
def rows_of_altered(monkeypatch):
    """Alter something of a record, and check it with all that is compiled already forgotten."""

    def check(name, container, key, replacement, **options):
        record = next(r for r in ops() if r.name == name)
        if container is None:
            monkeypatch.setattr(record, key, replacement(getattr(record, key)))
        else:
            monkeypatch.setitem(getattr(record, container), key, replacement(getattr(record, container)[key]))
        jax.clear_caches()
        return {(r.order, r.dtype): r for r in check_records(name, timed=False, **options).rows}

    yield check
    jax.clear_caches()


@pytest.mark.parametrize("error", WRONG_PARTIALS)
def test_errors_planted_into_a_record_are_caught(error, rows_of_altered):
    wrong = WRONG_PARTIALS[error]
    rows = rows_of_altered(
        *("normalized_tanh", "_partials", "z", lambda right: lambda *a, **k: wrong(right(*a, **k))), dtypes=["float64"]
    )
    assert not rows["gradient", "float64"].passed
    assert not rows["jvp", "float64"].passed


def test_a_wrong_hessian_alone_is_caught(rows_of_altered):
    def doubled(right):
        return lambda *a, **k: tuple(2 * t for t in right(*a, **k))

    rows = rows_of_altered("normalized_tanh", None, "_second", doubled, dtypes=["float64"])
    assert {order for (order, _), row in rows.items() if not row.passed} == {"hessian"}


def test_an_error_at_a_tie_or_in_one_dtype_alone_is_caught(rows_of_altered):
    def at_zero(right):
        return lambda saved, z: right(saved, z) * jnp.where(z == 0, 1.01, 1).astype(z.dtype)

    rows = rows_of_altered("normalized_tanh", "_partials", "z", at_zero, dtypes=["float64"])
    assert rows["gradient", "float64"].worst.startswith(("ties", "corner"))

    def in_float16(right):
        def altered(options, active, arrays):
            value, partials = right(options, active, arrays)
            return value, tuple(p * (1.01 if arrays["logits"].dtype == jnp.float16 else 1) for p in partials)

        return altered

    rows = rows_of_altered("softmax", None, "_value_and_partials", in_float16, dtypes=["bfloat16", "float16"])
    assert {key for key, row in rows.items() if not row.passed} >= {("gradient", "float16"), ("jvp", "float16")}
    assert all(row.passed for (_, dtype), row in rows.items() if dtype == "bfloat16")


def test_an_error_for_masked_entries_alone_is_caught(rows_of_altered):
    # What ``where`` leaves out must have slope 0, not that of what stands there.
    unmasked = lambda right: lambda partial, where, keep, axes, name: right(partial, None, keep, axes, name)
    rows = rows_of_altered("binary_entropy", None, "_masked", unmasked, dtypes=["float64"])
    assert not rows["gradient", "float64"].passed


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
