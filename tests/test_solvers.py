"""Newton's method, NewtonCG and L-BFGS: minima found independently, singular and unbounded problems, noise, vmap."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_matrix

import xentjax as xj
from xentjax import LBFGS, LogisticObjective, LogisticParams, Newton, NewtonCG, minimize
from xentjax.models import one_pass
from xentjax.models.one_pass import scaling_of
from xentjax.models.sparse import SparseRows
from xentjax.solvers.conjugate_gradients import conjugate_gradients
from xentjax.solvers.line_search import search
from xentjax.solvers.objective import evaluate, linearized
from xentjax.training import fit as fitting
from xentjax.training.solvers_by_name import chosen_solver

SOLVERS = {
    "newton": Newton(),
    "newton, half digits": Newton("float32"),
    "newton, subsample": Newton("float32", subsample=3),
    "newton-cg": NewtonCG(),
    "newton-cg, identity": NewtonCG("identity"),
    "newton-cg, blocks": NewtonCG("blocks"),
    "lbfgs": LBFGS(),
    "lbfgs, identity": LBFGS(memory=5, metric="identity"),
    "lbfgs, subsample": LBFGS(metric="hessian", subsample=3),
    "lbfgs, subsampled blocks": LBFGS(metric="blocks", subsample=2),
    "lbfgs, refreshed": LBFGS(metric="blocks", refresh=3),
}
#: One of each, where how they precondition does not matter.
EACH = ("newton", "newton-cg", "lbfgs")

pytestmark = pytest.mark.usefixtures("module_compiled_fast")


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def problem(classes: int, n: int = 90, d: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ (np.eye(d) + 0.5 * rng.standard_normal((d, d)))
    logits = x @ rng.standard_normal((d, classes)) + 2 * rng.gumbel(size=(n, classes))
    return x, np.argmax(logits, axis=1)


def derivatives(parameters, x, y, l2, share):
    """Gradient and Hessian in numpy, of a table [d + 1, K] for K classes and [d + 1] for two."""
    x1 = np.c_[x, np.ones(len(x))]
    penalty = np.append(np.broadcast_to(l2, x.shape[1]), 0.0)
    if parameters.ndim == 1:
        p = 1 / (1 + np.exp(-x1 @ parameters))
        return x1.T @ (share * (p - y)) + penalty * parameters, (x1.T * share * p * (1 - p)) @ x1 + np.diag(penalty)
    z = x1 @ parameters
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    k = parameters.shape[1]
    gradient = x1.T @ (share[:, None] * (p - np.eye(k)[y])) + penalty[:, None] * parameters
    curvature = share[:, None, None] * (p[:, :, None] * np.eye(k) - p[:, :, None] * p[:, None, :])
    hessian = np.einsum("ncd,nj,nk->jckd", curvature, x1, x1).reshape(parameters.size, -1)
    return gradient.ravel(), hessian + np.diag(np.repeat(penalty, k))


def truth(x, y, l2, classes=1, share=None):
    """The minimum by plain Newton steps, of minimum norm where the classes have one parameter too many."""
    share = np.full(len(x), 1 / len(x)) if share is None else share
    parameters = np.zeros((x.shape[1] + 1, classes)[: 1 if classes == 1 else 2])
    for _ in range(30):
        gradient, hessian = derivatives(parameters, x, y, l2, share)
        parameters = parameters - np.linalg.lstsq(hessian, gradient, rcond=1e-12)[0].reshape(parameters.shape)
    gradient, hessian = derivatives(parameters, x, y, l2, share)
    assert np.abs(gradient).max() < 1e-14
    return parameters, hessian


def table(params):
    table = np.concatenate([np.asarray(params.weights), np.asarray(params.bias)[None]])
    return table if table.ndim == 1 else np.c_[table[:-1].T, (table[-1] - table[-1].mean())].T


@pytest.mark.parametrize(
    ("solver", "classes"),
    [
        ("newton", 3),
        ("newton, half digits", 1),
        ("newton-cg, identity", 1),
        ("newton-cg, blocks", 3),
        ("lbfgs", 3),
        ("lbfgs, identity", 1),
        ("lbfgs, subsample", 1),
        ("lbfgs, subsampled blocks", 3),
        ("lbfgs, refreshed", 1),
    ],
)
def test_the_minimum_is_found(solver, classes):
    x, y = problem(max(classes, 2))
    expected, hessian = truth(x, y, 0.01, classes)
    objective = LogisticObjective(jnp.asarray(x), jnp.asarray(y), 0.01)
    solution = minimize(objective, objective.init(), SOLVERS[solver], tol=1e-10, max_steps=200)
    assert solution.status == "converged"
    # The distance to the minimum is at most the gradient over the least curvature that is not 0 by its form.
    least = np.linalg.eigvalsh(hessian)[0 if classes == 1 else 1]
    atol = 2 * np.sqrt(expected.size) * 1e-10 / least
    np.testing.assert_allclose(table(solution.params), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_the_valley_of_rosenbrock(solver):
    def rosenbrock(p):
        return 100 * (p["y"] - p["x"] ** 2) ** 2 + (1 - p["x"]) ** 2

    start = {"x": jnp.array([-1.2, 0.0]), "y": jnp.array([1.0, 1.0])}
    assert jax.hessian(rosenbrock)({"x": 0.0, "y": 1.0})["x"]["x"] == -398  # where the second run starts
    run = lambda init: minimize(rosenbrock, init, SOLVERS[solver], tol=1e-9, max_steps=100)
    solution = jax.vmap(run)(start)
    assert np.all(solution.status == "converged")
    # The least curvature at (1, 1) is 0.4.
    np.testing.assert_allclose([solution.params["x"], solution.params["y"]], 1, atol=2e-9 / 0.39)


def test_newton_on_a_plain_function_gets_its_hessian_from_jax():
    """A convex function of two arrays whose minimum is known: exp(u) - u c, at log c."""
    c = jnp.array([0.1, 2.0, 30.0])
    objective = lambda p: jnp.sum(jnp.exp(p["u"]) - c * p["u"]) + (p["v"] - 3) ** 4 + (p["v"] - 3) ** 2
    solution = minimize(objective, {"u": jnp.zeros(3), "v": 0.0}, Newton(), tol=1e-11, max_steps=100)
    assert solution.status == "converged"
    np.testing.assert_allclose(solution.params["u"], np.log(c), atol=1.1e-11 / 0.1)
    np.testing.assert_allclose(solution.params["v"], 3, atol=1e-11)


@pytest.mark.parametrize("solver", ["newton", "newton-cg"])
def test_singular_problems_reach_the_least_value(solver):
    """A column twice, a column of zeros, nothing penalized: the value is that without them."""
    x, y = problem(2)
    doubled = np.c_[x, x[:, 0], np.zeros(len(x))]
    expected, _ = truth(x, y, 0.0)
    z = np.c_[x, np.ones(len(x))] @ expected
    objective = LogisticObjective(jnp.asarray(doubled), jnp.asarray(y))
    solution = minimize(objective, objective.init(), SOLVERS[solver], tol=1e-10, max_steps=200)
    assert solution.status == "converged"
    np.testing.assert_allclose(solution.value, np.mean(np.logaddexp(0, z) - y * z), rtol=1e-14)
    weights = np.asarray(solution.params.weights)
    np.testing.assert_allclose(weights[0] + weights[4], expected[0], rtol=1e-7)
    assert weights[5] == 0


# -- rounding, and problems without a minimum --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "dtype"), [*((solver, "float32") for solver in EACH), ("lbfgs, identity", "float64")]
)
def test_what_cannot_be_reached_stalls_at_the_noise(solver, dtype):
    x, y = problem(2, n=500)
    objective = LogisticObjective(jnp.asarray(x, dtype), jnp.asarray(y), jnp.asarray(0.01, dtype))
    solution = minimize(objective, objective.init(), SOLVERS[solver], tol=0.0, max_steps=1000)
    assert solution.status == "stalled"
    assert int(solution.steps) < 300
    exact = derivatives(
        np.float64(table(solution.params)), np.float64(objective.x), y, np.float64(objective.l2), 1 / 500
    )
    assert np.abs(exact[0]).max() <= 4 * float(objective.gradient_error(solution.params))


@pytest.mark.parametrize("solver", ["newton-cg", "lbfgs"])
def test_unbounded_problems_do_not_converge(solver):
    solution = minimize(lambda p: jnp.sum(p), jnp.zeros(3), SOLVERS[solver], max_steps=50)
    assert solution.status != "converged"
    assert np.isfinite(solution.value)
    assert solution.value <= -100


@pytest.mark.parametrize("solver", EACH)
def test_values_that_are_no_numbers(solver):
    """Beyond 0 it is NaN: steps are shortened until they stay where it is finite. A start there is told."""
    wall = lambda p: jnp.sum(p - jnp.log(p))
    run = lambda init: minimize(wall, init, SOLVERS[solver], tol=1e-9, max_steps=100)
    solution = jax.vmap(run)(jnp.array([[50.0, 0.1], [1.0, -1.0]]))
    assert solution.status.names.tolist() == ["converged", "not_finite"]
    np.testing.assert_allclose(solution.params[0], 1, atol=2e-9)
    assert solution.params[1].tolist() == [1, -1]


# -- transformations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["newton", "newton-cg, blocks", "lbfgs, subsample"])
def test_vmap_over_data_and_penalties_equals_single_runs(solver):
    pairs = [problem(2, seed=seed) for seed in range(3)]
    x, y = (jnp.asarray(np.stack(part)) for part in zip(*pairs, strict=True))
    l2 = jnp.array([1e-3, 0.1, 10.0])

    def run(x, y, l2):
        objective = LogisticObjective(x, y, l2)
        return minimize(objective, objective.init(), SOLVERS[solver], tol=1e-9, max_steps=100)

    many = jax.vmap(run)(x, y, l2)
    assert np.all(many.status == "converged")
    for i, (own_x, own_y) in enumerate(pairs):
        expected, hessian = truth(own_x, own_y, float(l2[i]))
        found = table(jax.tree.map(lambda leaf, i=i: leaf[i], many.params))
        atol = 2e-9 * np.sqrt(5) / np.linalg.eigvalsh(hessian)[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_switches_are_static_and_solvers_are_pytrees_without_numbers():
    for solver in SOLVERS.values():
        assert jax.tree.leaves(solver) == []
        assert hash(solver) == hash(dataclasses.replace(solver))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LBFGS(memory=0), "memory must be at least 1, got 0"),
        (lambda: LBFGS(subsample=0), "LBFGS: subsample must be None or at least 1, got 0"),
        (lambda: LBFGS(refresh=0), "LBFGS: refresh must be None or at least 1, got 0"),
        (lambda: Newton(subsample=0), "Newton: subsample must be None or at least 1, got 0"),
        (lambda: LBFGS(metric="diag"), "metric must be one of 'identity', .*, got 'diag'"),
        (lambda: NewtonCG("full"), "metric must be one of 'identity', .*, got 'full'"),
        (lambda: minimize(jnp.sum, jnp.ones(2), LBFGS(subsample=4)), r"an objective with subsample\(stride\)"),
        (lambda: LogisticObjective(jnp.ones((2, 1)), jnp.ones(2)).subsample(0), "stride must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- what they are made of ---------------------------------------------------------------------------------------------


def objectives():
    rng = np.random.default_rng(1)
    x, y = problem(2, n=150)
    weights = np.where(rng.random(150) < 0.2, 0.0, rng.random(150))
    unknown = np.where(weights[:, None] == 0, np.nan, x)
    offset = rng.standard_normal(150)
    x3, _ = problem(3, n=150)
    masses = rng.random((150, 3))
    scaling = scaling_of(jnp.asarray(x))
    return {
        "weights, offset, factors": LogisticObjective(unknown, y, np.arange(4.0), weights, offset),
        "scaled": LogisticObjective(x, y, 0.3, scaling=scaling),
        "no intercept": LogisticObjective(x, y, 0.3, fit_intercept=False),
        "classes, masses": LogisticObjective(x3, masses, np.arange(4.0), weights, offset[:, None] * np.arange(3)),
    }


@pytest.mark.parametrize("name", objectives())
def test_products_diagonal_and_blocks_are_those_of_the_hessian(name, monkeypatch):
    monkeypatch.setattr(one_pass, "_CACHED", 0)  # blocks of 64 rows
    objective = jax.tree.map(jnp.asarray, objectives()[name])
    rng = np.random.default_rng(2)
    params, direction = (
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), objective.init()) for _ in "ab"
    )
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    held = objective.weights is not None
    plain = (
        objective
        if not held
        else dataclasses.replace(objective, x=jnp.where(objective.weights[:, None] == 0, 0, objective.x))
    )
    hessian = np.asarray(jax.hessian(lambda p: plain.value(unravel(p)))(flat))
    expected = hessian @ jax.flatten_util.ravel_pytree(direction)[0]
    for product in (objective.linearized(params)(direction), objective.hvp(params, direction)):
        np.testing.assert_allclose(jax.flatten_util.ravel_pytree(product)[0], expected, rtol=1e-12, atol=1e-14)
    if objective.fit_intercept:
        np.testing.assert_allclose(objective.hessian_diagonal(params), np.diag(hessian), rtol=1e-12)
        k = params.bias.size
        blocks = np.stack([hessian[c::k, c::k] for c in range(k)])
        np.testing.assert_allclose(objective.hessian_blocks(params), blocks, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(objective.hessian_blocks(params, "float32"), blocks, rtol=1e-5, atol=1e-6)
    else:
        # What is solved with them leaves the bias where it is.
        assert not np.any(objective.hessian_blocks(params)[:, -1, :-1])


def test_half_the_digits_give_way_where_columns_nearly_depend_on_each_other():
    x, y = problem(2, n=300)
    x = np.c_[x, x[:, 0] + 1e-5 * np.random.default_rng(1).standard_normal(len(x))]
    objective = LogisticObjective(jnp.asarray(x), jnp.asarray(y))
    runs = [minimize(objective, objective.init(), solver, tol=1e-12) for solver in (Newton(), Newton("float32"))]
    assert [str(run.status) for run in runs] == ["converged", "converged"]
    assert int(runs[1].steps) <= int(runs[0].steps) + 6
    exact, point = runs[0].params, runs[1].params
    # Along the direction that is hardly determined, 1e-12 of the gradient is 1e-1 of a coefficient of 1e4.
    np.testing.assert_allclose(point.weights, exact.weights, atol=1e-3 * np.abs(exact.weights).max())


def test_a_subsample_is_every_so_many_rows():
    objective = jax.tree.map(jnp.asarray, objectives()["classes, masses"])
    few = objective.subsample(7)
    params = jax.tree.map(jnp.ones_like, objective.init())
    mask = (jnp.arange(150) % 7 == 0) * objective.weights
    # A prior by which the logit of the farthest row is known to ±10.
    l2 = objective.l2 + np.max(np.abs(objective.x[::7]), axis=0) ** 2 / (100 * few.x.shape[0])
    expected = dataclasses.replace(objective, weights=mask, l2=l2).value_and_gradient(params)
    for gradient in ("hand", "auto"):
        few = dataclasses.replace(objective, gradient=gradient).subsample(7)
        for a, b in zip(jax.tree.leaves(few.value_and_gradient(params)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(few.value(params), expected[0], rtol=1e-13)
    assert float(few.lipschitz()) > 0
    np.testing.assert_array_equal(few.subsample(3).x.dense(), objective.x[::21])


def test_linearized_takes_what_an_objective_offers():
    class WithProducts:
        value_and_gradient = jax.value_and_grad(lambda p: jnp.sum(p**4))

        def hvp(self, params, direction):
            return 12 * params**2 * direction

    at, along = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    for objective in (WithProducts(), xj.Objective(lambda p: jnp.sum(p**4))):
        np.testing.assert_allclose(linearized(objective, at)(along), [36.0, -48.0])


@pytest.mark.parametrize("far", [1e-6, 1.0, 30.0, 1e6])
def test_a_line_search_fulfils_the_wolfe_conditions(far):
    """Along φ(t) = √(1 + (t/far - 1)²), whose minimum may be far before or behind the first trial."""
    value = lambda p: jnp.sqrt(1 + (p / far - 1) ** 2)
    point = evaluate(xj.Objective(value), jnp.zeros(()))
    slope = point.gradient
    found, is_found = search(xj.Objective(value), point, jnp.ones(1), slope, jnp.ones(()))
    assert is_found
    assert found.gradient >= 0.9 * slope
    assert found.value <= point.value + 1e-4 * found.params * slope


def test_a_line_search_sees_by_slopes_what_values_do_not_tell():
    """1 + (p - 3)²·1e-20 is flat to its last digit; from 0 along 1 the slope vanishes at 3."""
    objective = xj.Objective(lambda p: 1 + 1e-20 * (p - 3) ** 2, gradient=lambda p: 2e-20 * (p - 3))
    point = evaluate(objective, jnp.zeros(()))
    found, is_found = search(objective, point, jnp.ones(1), point.gradient, jnp.asarray(100.0))
    assert is_found
    assert 0.3 <= found.params <= 5.4  # where the slope is between -0.9 and 0.8 of the first one


def test_a_line_search_that_finds_nothing_says_so():
    objective = xj.Objective(lambda p: jnp.abs(p), gradient=lambda p: -jnp.ones_like(p))
    point = evaluate(objective, jnp.ones(()))
    found, is_found = search(objective, point, jnp.ones(1), point.gradient, jnp.ones(()))
    assert not is_found
    assert found.params == 1


def test_conjugate_gradients_solve_and_keep_to_the_region():
    rng = np.random.default_rng(3)
    factor = rng.standard_normal((8, 8))
    matrix, metric, right = factor @ factor.T + np.eye(8), rng.random(8) + 0.5, rng.standard_normal(8)
    run = lambda **how: conjugate_gradients(lambda v: matrix @ v, right, lambda v: v / metric, **how)
    made = run(tol=1e-12)
    expected = np.linalg.solve(matrix, right)
    np.testing.assert_allclose(made.solution, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(made.decrease, right @ expected / 2, rtol=1e-10)
    np.testing.assert_allclose(made.length, np.sqrt(metric @ expected**2), rtol=1e-10)
    assert not made.at_border
    radius = 0.3 * float(made.length)
    short = run(tol=1e-12, radius=radius)
    step = np.asarray(short.solution)
    assert short.at_border
    np.testing.assert_allclose([short.length, np.sqrt(metric @ step**2)], radius, rtol=1e-12)
    np.testing.assert_allclose(short.decrease, right @ step - step @ matrix @ step / 2, rtol=1e-10)
    down = conjugate_gradients(lambda v: -v, jnp.asarray(right), lambda v: v, tol=1e-3, radius=2.0)
    np.testing.assert_allclose(down.solution, 2 * right / np.linalg.norm(right), rtol=1e-12)
    assert int(run(tol=1e-30, most=3).products) == 3


# -- fits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "auto"])
def test_one_in_ten_thousand_has_the_same_coefficients_with_every_solver(solver):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100_000, 3)), np.zeros(100_000, int)
    y[:10] = 1
    x[:10] += 1
    fit = xj.fit_logistic(x, y, l2=1e-5, solver=solver, inference=False)
    assert fit.status == "converged"
    # From 80-bit arithmetic.
    expected = [0.8035762144090682, 0.8280391778360551, 0.7702392661297535, -10.169790413935482]
    np.testing.assert_allclose(np.append(fit.params.weights, fit.params.bias), expected, rtol=1e-9)


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
def test_penalties_of_all_sizes_are_no_obstacle(solver):
    """Columns from 1e-4 to 1e4 in size with one penalty: the curvature varies over ten orders of magnitude."""
    x, y = problem(2)
    sizes = np.array([1e-4, 1e-2, 1.0, 1e4])
    expected, _ = truth(x, y, 0.01 / sizes**2)
    fit = xj.fit_logistic(x * sizes, y, l2=0.01, solver=solver, inference=False)
    assert fit.status == "converged"
    np.testing.assert_allclose(np.append(fit.params.weights * sizes, fit.params.bias), expected, rtol=1e-9)
    assert fit.reason == "as asked for"
    assert "solver: " + solver + ", as asked for" in fit.summary()


def test_without_a_hessian_the_result_is_as_good(monkeypatch):
    monkeypatch.setattr(fitting, "_DENSE", 1)
    x, y = problem(3)
    expected, _ = truth(x, y, 0.0, 3)
    fit = xj.fit_logistic(x, y, solver="lbfgs", inference=False)
    assert fit.status == "converged"
    np.testing.assert_allclose(fit.params.weights, (expected - expected[:, :1])[:-1], rtol=1e-9, atol=1e-9)
    assert 0 <= fit.newton_decrement < 1e-20


def test_without_a_hessian_separation_is_found(monkeypatch):
    monkeypatch.setattr(fitting, "_DENSE", 1)
    x, _ = problem(2)
    fit = xj.fit_logistic(x, (x[:, 0] > 0.1).astype(int), solver="newton-cg", inference=False)
    assert fit.status == "separated"
    assert bool(fit.completely_separated)


def test_the_choice_of_a_solver_says_why():
    def choice(n, d, k, sparse=False):
        shape = (d, k)[: 1 if k == 1 else 2]
        x = SparseRows.of(csr_matrix((n, d)), 64) if sparse else jax.ShapeDtypeStruct((n, d), jnp.float64)
        params = LogisticParams(jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape[1:], x.dtype))
        name, solver, reason = chosen_solver("fit_logistic", "auto", LogisticObjective(x, None), params)
        assert str((d + 1) * k) in reason
        return name, solver

    assert choice(569, 30, 1) == ("newton", Newton())
    assert choice(5_000, 57, 1) == ("newton", Newton("float32"))
    assert choice(300_000, 54, 1) == ("newton", Newton("float32", subsample=8))
    assert choice(1_000_000, 400, 1) == ("lbfgs", LBFGS(metric="hessian", subsample=8))
    assert choice(100_000, 400, 1) == ("lbfgs", LBFGS(metric="blocks", refresh=16))
    assert choice(5_000, 200, 1, sparse=True) == ("newton", Newton("float32"))
    assert choice(6435, 36, 6) == ("lbfgs", LBFGS(metric="hessian", subsample=8))
    assert choice(300_000, 54, 1, sparse=True) == ("newton-cg", NewtonCG("blocks"))
    assert choice(1797, 64, 10) == ("lbfgs", LBFGS(metric="blocks", refresh=32))
    assert choice(2000, 10_000, 1) == ("newton-cg", NewtonCG("diagonal"))


def test_within_a_program_no_metric_is_taken_again():
    names = []

    def fit(x, y):
        fit = xj.fit_logistic(x, y, l2=0.1, num_classes=3, inference=False)
        names.append(fit.solver)
        return fit.params.weights

    x, y = problem(3, d=8)
    traced = jax.jit(fit)(x, y)
    np.testing.assert_allclose(traced, fit(x, y), atol=1e-9)
    assert names == ["newton-cg", "lbfgs"]


def test_a_metric_is_taken_again_where_it_is_out_of_date():
    rng = np.random.default_rng(0)
    x = np.exp(rng.standard_normal((400, 12)))  # logits far apart: the Hessian is that of few rows in the end
    y = rng.random(400) < 1 / (1 + np.exp(40 - 4 * x.sum(axis=1)))
    objective = LogisticObjective(jnp.asarray(x), jnp.asarray(y, int), 1e-3)
    run = lambda refresh: minimize(objective, objective.init(), LBFGS(metric="blocks", refresh=refresh), tol=1e-10)
    old, new = run(None), run(8)
    assert [str(s.status) for s in (old, new)] == ["converged", "converged"]
    assert int(new.steps) < 0.7 * int(old.steps)
    np.testing.assert_allclose(new.params.weights, old.params.weights, rtol=1e-5)
