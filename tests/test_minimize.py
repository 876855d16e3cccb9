"""The driver and its solvers: optima found independently, every status, the history, jit, vmap and chunks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from sklearn.datasets import load_breast_cancer

import xentjax as xj
from xentjax import GradientDescent, LogisticObjective, LogisticParams, Optax, minimize
from xentjax.solvers.minimize import advance, in_chunks, iterate_states, solution, start
from xentjax.solvers.objective import evaluate

L2 = 0.1
ADAM, LBFGS = optax.adam(0.1), optax.lbfgs()
SCHEDULED = optax.sgd(optax.cosine_decay_schedule(0.5, 600), momentum=0.5)
SOLVERS = {
    "lipschitz": GradientDescent(),
    "fixed": GradientDescent(0.2),
    "adam": Optax(ADAM),
    "schedule": Optax(SCHEDULED),
    "lbfgs": Optax(LBFGS),
}


def table(rows: int, seed: int = 0):
    x, y = load_breast_cancer(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0))[:, :6]
    pick = np.random.default_rng(seed).permutation(len(x))[:rows]
    return x[pick], y[pick]


X, Y = table(120)
DATA = LogisticObjective(jnp.asarray(X, jnp.float32), jnp.asarray(Y), L2)
ZERO = DATA.init()


pytestmark = pytest.mark.usefixtures("compiled_fast", "strict_dtypes")


def gradient64(params, x=X, y=Y, l2=L2):
    """The gradient's infinity-norm in float64 numpy."""
    w, b = (np.asarray(p, np.float64) for p in params)
    r = (1 / (1 + np.exp(-(x @ w + b))) - y) / len(x)
    return max(np.abs(r @ x + l2 * w).max(), abs(r.sum()))


def optimum(x=X, y=Y, l2=L2):
    def value(p):
        z = x @ p[:-1] + p[-1]
        return np.mean(np.logaddexp(0, z) - y * z) + l2 / 2 * p[:-1] @ p[:-1]

    def gradient(p):
        r = (1 / (1 + np.exp(-(x @ p[:-1] + p[-1]))) - y) / len(x)
        return np.append(r @ x + l2 * p[:-1], r.sum())

    start = scipy.optimize.minimize(value, np.zeros(x.shape[1] + 1), jac=gradient, method="BFGS").x
    found = scipy.optimize.root(gradient, start, tol=1e-14)
    assert np.abs(gradient(found.x)).max() < 1e-12
    return value(found.x), found.x


def equal(a, b):
    return all(np.array_equal(p, q, equal_nan=True) for p, q in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_reaches_the_optimum_that_scipy_finds(solver):
    value, params = optimum()
    for gradient in ("hand", "auto"):
        objective = LogisticObjective(DATA.x, DATA.y, L2, gradient=gradient)
        solution = minimize(objective, ZERO, SOLVERS[solver], tol=1e-5, max_steps=600)
        assert solution.status == "converged"
        assert solution.gradient_norm <= 1e-5
        assert gradient64(solution.params) <= 1.05e-5
        np.testing.assert_allclose(solution.value, value, rtol=1e-6)
        # The loss is l2-strongly convex in the weights: they are off by at most |gradient| / l2.
        np.testing.assert_allclose(solution.params.weights, params[:-1], atol=3e-5 / L2)


def test_float64_reaches_what_float32_cannot():
    with jax.enable_x64(True):
        objective = LogisticObjective(jnp.asarray(X), jnp.asarray(Y), L2)
        solution = minimize(objective, objective.init(), Optax(LBFGS), tol=1e-11, max_steps=100)
        assert solution.status == "converged"
        assert gradient64(solution.params) <= 1.01e-11
        np.testing.assert_allclose(solution.params.weights, optimum()[1][:-1], atol=1e-9)


def test_hand_derived_and_automatic_gradient_take_the_same_path():
    runs = [
        minimize(LogisticObjective(DATA.x, DATA.y, L2, gradient=g), ZERO, GradientDescent(0.2), tol=0.0, max_steps=50)
        for g in ("hand", "auto")
    ]
    np.testing.assert_allclose(runs[0].history.value, runs[1].history.value, rtol=2e-6)
    np.testing.assert_allclose(runs[0].params.weights, runs[1].params.weights, rtol=1e-5, atol=1e-6)


def test_gradient_descent_is_the_textbook_recursion():
    w, b, values = np.zeros(6), 0.0, []
    for _ in range(11):
        z = X @ w + b
        values.append(np.mean(np.logaddexp(0, z) - Y * z) + L2 / 2 * w @ w)
        r = (1 / (1 + np.exp(-z)) - Y) / len(X)
        w, b = w - 0.5 * (r @ X + L2 * w), b - 0.5 * r.sum()
    history = minimize(DATA, ZERO, GradientDescent(0.5), tol=0.0, max_steps=10).history
    np.testing.assert_allclose(history.value, values, rtol=1e-6)


def test_the_lipschitz_step_never_increases_the_loss():
    solution = minimize(DATA, LogisticParams(ZERO.weights + 3, ZERO.bias), GradientDescent(), max_steps=200)
    falls = np.diff(np.asarray(solution.history.value)[: int(solution.steps) + 1])
    assert np.all(falls <= 1e-6)


# -- status ------------------------------------------------------------------------------------------------------------


def test_converged_at_the_start_takes_no_step():
    start = minimize(DATA, ZERO, GradientDescent(), max_steps=600).params
    solution = minimize(DATA, start, GradientDescent(1e9), tol=1e-5, max_steps=600)
    assert (int(solution.steps), str(solution.status)) == (0, "converged")
    assert minimize(DATA, ZERO, GradientDescent(), max_steps=0).status == "max_steps"


def test_separable_data_does_not_converge():
    separable = LogisticObjective(jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1]))
    solution = minimize(separable, separable.init(), GradientDescent(), tol=1e-6, max_steps=300)
    assert solution.status == "max_steps"
    assert solution.status != "converged"
    assert solution.gradient_norm > 1e-6
    assert "separable" in solution.message


def test_a_huge_step_diverges_and_keeps_the_last_finite_parameters():
    solution = minimize(DATA, ZERO, GradientDescent(1e4), max_steps=100)
    steps = int(solution.steps)
    assert solution.status == "diverged"
    assert "smaller step" in solution.message
    assert all(np.all(np.isfinite(p)) for p in solution.params)
    assert solution.value == solution.history.value[steps]
    assert not np.isfinite(solution.history.value[steps + 1])


@pytest.mark.parametrize(
    "bad",
    [
        LogisticObjective(DATA.x.at[3, 1].set(jnp.nan), DATA.y, L2),
        LogisticObjective(DATA.x, DATA.y.at[3].set(2), L2, num_classes=None),
    ],
    ids=["feature", "label"],
)
def test_bad_data_is_not_finite_from_the_start(bad):
    for solver in (GradientDescent(0.1), Optax(LBFGS)):
        solution = minimize(bad, ZERO, solver, max_steps=100)
        assert (str(solution.status), int(solution.steps)) == ("not_finite", 0)
        assert equal(solution.params, ZERO)


def test_a_tolerance_below_the_noise_stalls():
    solution = minimize(DATA, ZERO, GradientDescent(), tol=1e-13, max_steps=20_000)
    assert solution.status == "stalled"
    assert int(solution.steps) < 20_000
    assert gradient64(solution.params) < 1e-6
    assert "float64" in solution.message


def test_a_gradient_that_rounds_to_zero_is_not_called_converged():
    """Two equal rows with opposite labels: at 0 the float32 gradient is exactly 0, its rounding error is not."""
    objective = LogisticObjective(jnp.array([[1e4], [1e4]]), jnp.array([0, 1]))
    assert minimize(objective, objective.init(), GradientDescent(), tol=1e-6, max_steps=5).status == "stalled"
    assert minimize(objective, objective.init(), GradientDescent(), tol=1e-2, max_steps=5).status == "converged"


def test_status_compares_prints_and_travels():
    status = xj.Status(1)
    assert status == "converged"
    assert status != "stalled"
    assert not status == "no such name"  # noqa: SIM201
    assert str(status) == f"{status}" == "converged"
    assert status in {"converged"}
    assert jax.tree.leaves(status) == [1]
    many = xj.Status(jnp.array([1, 2, 4]))
    assert (many == "converged").tolist() == [True, False, False]
    assert (many != "converged").tolist() == [False, True, True]
    assert many.names.tolist() == ["converged", "max_steps", "diverged"]
    assert many[1] == "max_steps"
    assert many.message.count("1 × ") == 3
    assert jax.jit(lambda s: s == "max_steps")(many).tolist() == [False, True, False]


# -- history, chunks, transformations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_steps", [1, 2, 9, 10, 40])
def test_history_has_a_fixed_length_and_ends_at_the_solution(max_steps):
    solution = minimize(DATA, ZERO, GradientDescent(0.2), tol=0.02, max_steps=max_steps)
    steps = int(solution.steps)
    for recorded, last in zip(
        (solution.history.value, solution.history.gradient_norm), (solution.value, solution.gradient_norm), strict=True
    ):
        assert recorded.shape == (max_steps + 1,)
        assert recorded[steps] == last
        assert np.isnan(recorded).tolist() == [i > steps for i in range(max_steps + 1)]


@pytest.mark.parametrize("solver", ["lipschitz", "lbfgs"])
def test_chunks_are_bit_identical_to_one_run(solver, optimized):
    whole = minimize(DATA, ZERO, SOLVERS[solver], tol=1e-5, max_steps=600)
    chunks = list(xj.iterate(DATA, ZERO, SOLVERS[solver], tol=1e-5, max_steps=600, chunk=7))
    assert equal(dataclasses.replace(chunks[-1], history=whole.history), whole)
    assert {str(c.status) for c in chunks[:-1]} == {"running"}
    assert [int(c.steps) for c in chunks[:-1]] == [7 * i for i in range(len(chunks) - 1)]
    assert {c.history.value.shape for c in chunks} == {(1,), (7,)}
    for name in ("value", "gradient_norm"):
        together = np.concatenate([getattr(c.history, name) for c in chunks])[:601]
        np.testing.assert_array_equal(together, getattr(whole.history, name)[: len(together)])


@pytest.mark.parametrize("solver", ["lipschitz", "lbfgs"])
def test_a_run_goes_on_from_any_of_its_states(solver, optimized):
    how = {"tol": 1e-5, "max_steps": 600, "chunk": 7}
    whole = [state for state, _ in iterate_states(DATA, ZERO, SOLVERS[solver], **how)]
    for most in (7, 3, 100):
        parts = [state for state, _ in iterate_states(DATA, ZERO, SOLVERS[solver], most=most, **how)]
        assert int(parts[1].step) == min(most, 7)
        middle = parts[len(parts) // 2]
        again = iterate_states(DATA, ZERO, SOLVERS[solver], go_on=lambda start, at=middle: at, **how)
        states = [state for state, _ in again]
        assert equal(states[0], middle)
        assert equal(states[-1], whole[-1])


def test_many_runs_go_on_chunk_by_chunk():
    """start and advance under vmap, as a grid of fits uses them: runs that have ended wait unchanged."""
    solver, how = GradientDescent(jnp.array([0.01, 0.2, 1e4])), {"tol": 1e-3, "max_steps": 200}
    whole = jax.vmap(lambda s: minimize(DATA, ZERO, s, **how))(solver)
    begin = jax.jit(jax.vmap(lambda s: start(DATA, ZERO, s, **how)))
    go_on = jax.jit(jax.vmap(lambda s, state: advance(DATA, s, state, chunk=15, **how)))
    chunks = [solution(*found) for found in in_chunks(begin(solver), lambda state: go_on(solver, state))]
    assert chunks[-1].status.names.tolist() == whole.status.names.tolist() == ["max_steps", "converged", "diverged"]
    assert chunks[-1].steps.tolist() == whole.steps.tolist()
    assert len(chunks) == 1 + -(-200 // 15)
    np.testing.assert_allclose(chunks[-1].params.weights, whole.params.weights, rtol=1e-5, atol=1e-6)
    together = np.concatenate([c.history.value for c in chunks], axis=1)[:, :201]
    np.testing.assert_allclose(together, whole.history.value, rtol=1e-5)


def test_a_bound_that_is_never_reached_costs_nothing():
    chunks = list(xj.iterate(DATA, ZERO, GradientDescent(0.2), tol=1e-2, max_steps=10**8, chunk=50))
    assert chunks[-1].status == "converged"


def test_jit_of_minimize():
    run = jax.jit(lambda data, step: minimize(data, ZERO, GradientDescent(step), tol=1e-4, max_steps=300))
    inside, outside = run(DATA, 0.2), minimize(DATA, ZERO, GradientDescent(0.2), tol=1e-4, max_steps=300)
    assert inside.status == "converged"
    np.testing.assert_allclose(inside.params.weights, outside.params.weights, rtol=1e-5, atol=1e-6)


def test_vmap_over_step_sizes_and_starts_equals_single_runs():
    steps = jnp.array([0.01, 0.2, 1e4])
    starts = LogisticParams(jnp.arange(18.0).reshape(3, 6) / 10, jnp.zeros(3))

    def run(step, start):
        return minimize(DATA, start, GradientDescent(step), tol=1e-3, max_steps=200)

    many = jax.vmap(run)(steps, starts)
    assert many.status.names.tolist() == ["max_steps", "converged", "diverged"]
    for i in range(3):
        one = run(steps[i], jax.tree.map(lambda p, i=i: p[i], starts))
        assert many.status[i] == one.status
        assert many.steps[i] == one.steps
        np.testing.assert_allclose(many.params.weights[i], one.params.weights, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(many.history.value[i], one.history.value, rtol=1e-4)


@pytest.mark.parametrize("solver", [GradientDescent(), Optax(LBFGS)], ids=["lipschitz", "lbfgs"])
def test_vmap_over_data_and_penalty_equals_single_runs(solver):
    tables = [table(40, seed) for seed in (1, 2)]
    x, y = (jnp.asarray(np.stack(part)) for part in zip(*tables, strict=True))
    data = LogisticObjective(x.astype(jnp.float32), y, jnp.array([0.1, 0.3]))
    many = jax.vmap(lambda o: minimize(o, ZERO, solver, tol=1e-5, max_steps=400))(data)
    assert (many.status == "converged").all()
    for i, (rows, labels) in enumerate(tables):
        value, _ = optimum(rows, labels, float(data.l2[i]))
        np.testing.assert_allclose(many.value[i], value, rtol=1e-6)
        assert gradient64(jax.tree.map(lambda p, i=i: p[i], many.params), rows, labels, float(data.l2[i])) < 1.05e-5


def test_vmap_over_learning_rates_and_over_what_a_function_closes_over():
    def run(rate, center):
        return minimize(lambda p: jnp.sum((p - center) ** 2), jnp.zeros(2), Optax(optax.sgd(rate)), max_steps=200)

    rates, centers = jnp.array([0.1, 0.4, 2.0]), jnp.array([1.0, -2.0, 3.0])
    for mapped in (jax.vmap(run), jax.jit(jax.vmap(run))):
        many = mapped(rates, centers)
        assert many.status.names.tolist() == ["converged", "converged", "diverged"]
        np.testing.assert_allclose(many.params[:2], [[1, 1], [-2, -2]], rtol=1e-6)
        # Again with other numbers: nothing of the first call may stay behind.
        again = mapped(rates[::-1], -centers)
        np.testing.assert_allclose(again.params[1:], [[2, 2], [-3, -3]], rtol=1e-6)


def test_the_gradient_given_is_the_one_that_is_used():
    """Also by line searches, which differentiate the value: this value's automatic derivative is wrong on purpose."""

    def value(p):
        return jnp.sum(jax.lax.stop_gradient(p - 3) ** 2)

    objective = xj.Objective(value, gradient=lambda p: 2 * (p - 3), lipschitz_constant=2.0)
    for solver in (GradientDescent(), Optax(LBFGS)):
        solution = minimize(objective, jnp.zeros(2), solver, max_steps=50)
        assert solution.status == "converged"
        np.testing.assert_allclose(solution.params, 3, rtol=1e-6)


# -- solvers and objectives of the user's ------------------------------------------------------------------------------


def registered(name, *fields, **methods):
    """A frozen dataclass, registered as a pytree, with these fields and methods."""
    made = dataclasses.make_dataclass(name, fields, frozen=True, namespace=methods)
    return jax.tree_util.register_dataclass(made)


def descent_by(factor):
    """A solver of one field that goes by so much of its step size."""

    def step(self, objective, point, state):
        return evaluate(objective, point.params - factor * self.step_size * point.gradient), state

    return registered("Descent", "step_size", init=lambda self, objective, point: (), step=step)


def test_dataclasses_of_equal_fields_run_their_own_programs():
    """JAX takes their pytree structures for equal: the key of what is compiled has to tell them apart."""
    square = registered("Square", "c", value_and_gradient=lambda o, p: (jnp.sum((p - o.c) ** 2), 2 * (p - o.c)))
    mirror = registered("Mirror", "c", value_and_gradient=lambda o, p: (jnp.sum((p + o.c) ** 2), 2 * (p + o.c)))
    assert jax.tree.structure(square(3.0)) == jax.tree.structure(mirror(3.0))
    zero, solver = jnp.zeros(2), GradientDescent(0.25)
    for kind, center in ((square, 3), (mirror, -3), (square, 3)):
        for found in (minimize(kind(3.0), zero, solver), *list(xj.iterate(kind(3.0), zero, solver))[-1:]):
            np.testing.assert_allclose(found.params, center, rtol=1e-6)
        inside = jax.jit(lambda c, kind=kind: minimize(kind(c), zero, solver))(3.0)
        np.testing.assert_allclose(inside.params, center, rtol=1e-6)


def test_solvers_of_equal_fields_make_their_own_steps():
    def square(p):
        return jnp.sum((p - 3) ** 2)

    whole, half = descent_by(1.0), descent_by(0.5)
    steps = {}
    for kind in (GradientDescent, whole, half, whole, GradientDescent):
        solution = minimize(square, jnp.zeros(2), kind(0.25), tol=1e-3, max_steps=100)
        assert steps.setdefault(kind, int(solution.steps)) == int(solution.steps)
    # The error falls by 1/2 or by 3/4 a step, from 3 to half of the tolerance.
    assert steps[GradientDescent] == steps[whole] == np.ceil(np.log(6 / 1e-3) / np.log(2))
    assert steps[half] == np.ceil(np.log(6 / 1e-3) / np.log(4 / 3))


def test_parameters_of_equal_fields_keep_their_types():
    """The chance that JAX confuses two is about one in a hundred: none of many pairs may be."""

    def value(p):
        return (p.c - p.center) ** 2

    for i in range(25):
        kinds = [registered(f"Params{i}", "c", center=property(lambda _, c=c: c)) for c in (1.0, -1.0)]
        for kind, center in zip(kinds, (1, -1), strict=True):
            solution = minimize(value, kind(jnp.zeros(())), GradientDescent(0.5), max_steps=3)
            assert solution.params.c == center


def test_switches_and_names_in_a_solver_decide_on_the_program():
    def step(self, objective, point, state):
        sign = {"down": 1, "up": -1}[self.way] if self.moves else 0
        return evaluate(objective, point.params - sign * self.step_size * point.gradient), state

    kind = registered("Switched", "step_size", "moves", "way", init=lambda *_: (), step=step)
    for solver, status in (
        (kind(0.25, True, "down"), "converged"),
        (kind(0.25, False, "down"), "stalled"),
        (kind(9.0, True, "up"), "diverged"),
    ):
        assert minimize(lambda p: (p - 1) ** 2, jnp.zeros(()), solver, max_steps=200).status == status


def test_a_step_that_changes_dtypes_or_shapes_is_told_with_the_name_of_its_solver():
    def square(p):
        return jnp.sum((p - 3) ** 2)

    def run(init, step, start=()):
        kind = registered("Mine", "rate", init=lambda *_: start, step=step)
        return minimize(square, init, kind(jnp.float32(0.1)), max_steps=5)

    def plain(self, objective, point, state):
        params = point.params.astype(jnp.float32) - self.rate * point.gradient.astype(jnp.float32)
        return evaluate(objective, params), state

    with pytest.raises(TypeError, match=r"Mine.step changed point.params from bfloat16\[2\] to float32\[2\]"):
        run(jnp.zeros(2, jnp.bfloat16), plain)
    assert run(jnp.zeros(2), plain).params.dtype == jnp.float32
    with pytest.raises(TypeError, match=r"Mine.step changed state from float32\[2\] to float32\[\]"):
        run(jnp.zeros(2), lambda self, o, point, state: (point, jnp.sum(state)), jnp.zeros(2))
    with pytest.raises(TypeError, match=r"Mine.step must return the next point and the next state"):
        run(jnp.zeros(2), lambda self, o, point, state: (point.params, state))
    # A number of Python's in the state may become one of any dtype.
    assert run(jnp.zeros(2), lambda self, o, point, state: (plain(self, o, point, 0)[0], state + 0.5), 0).steps == 5


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objective": lambda p: p}, ValueError, r"real scalar, got shape \(2,\) and dtype float32"),
        ({"objective": lambda p: 3}, ValueError, r"real scalar, got shape \(\) and dtype int32"),
        ({"objective": lambda p: None}, ValueError, "real scalar, got NoneType"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be a whole number, not traced, got 1.5"),
        ({"max_steps": "5"}, TypeError, "max_steps must be a whole number, not traced, got '5'"),
        ({"max_steps": 2**31}, ValueError, "max_steps must not be negative, nor .* got 2147483648"),
        ({"tol": "a"}, TypeError, "tol must be a number, got 'a'"),
        ({"tol": jnp.ones(2)}, TypeError, r"tol must be one real number, got shape \(2,\)"),
        ({"tol": float("nan")}, ValueError, "tol must be 0 or more, got nan"),
        ({"tol": -1e-3}, ValueError, "tol must be 0 or more, got -0.001"),
        ({"solver": None}, TypeError, r"must have init\(objective, point\) and step\(.*\), got NoneType"),
        ({"solver": optax.sgd(0.1)}, TypeError, r"pass Optax\(transformation\)"),
        ({"solver": GradientDescent}, TypeError, r"the class GradientDescent, but needs .*: GradientDescent\(\)"),
    ],
)
def test_mistakes_are_named(change, error, message):
    arguments = {"objective": lambda p: jnp.sum(p**2), "init": jnp.ones(2), "solver": GradientDescent(0.1), **change}
    for run in (minimize, lambda **arguments: list(xj.iterate(**arguments))):
        with pytest.raises(error, match=message):
            run(**arguments)


def test_steps_and_tolerance_may_be_arrays():
    how = {"max_steps": jnp.array(5), "tol": np.float32(1e-3)}
    assert minimize(lambda p: p**2, 1.0, GradientDescent(0.5), **how).status == "converged"


def test_wrong_arguments_are_named():
    def square(p):
        return p**2

    with pytest.raises(ValueError, match="step_size is None"):
        minimize(square, 1.0, GradientDescent())
    with pytest.raises(ValueError, match=r"real scalar, got shape \(2,\)"):
        minimize(xj.Objective(square, gradient=square), jnp.ones(2), GradientDescent(0.1))
    with pytest.raises(ValueError, match=r"leaf of shape \(\), but needs \(2,\)"):
        minimize(xj.Objective(jnp.sum, gradient=jnp.sum), jnp.ones(2), GradientDescent(0.1))
    with pytest.raises(TypeError, match="got int"):
        minimize(3, 1.0, GradientDescent(0.1))
    with pytest.raises(ValueError, match=r"max_steps must not be negative, nor .* got -1"):
        minimize(square, 1.0, GradientDescent(0.1), max_steps=-1)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        next(xj.iterate(square, 1.0, GradientDescent(0.1), chunk=0))
    assert minimize(square, 3, GradientDescent(0.25)).params.dtype == jnp.float32


def test_a_solver_that_is_no_pytree_says_so_where_its_numbers_are_traced():
    @dataclasses.dataclass(frozen=True)
    class Unregistered:
        step_size: object

        def init(self, objective, point):
            return ()

        def step(self, objective, point, state):
            return evaluate(objective, point.params - self.step_size * point.gradient), state

    def run(step_size):
        return minimize(lambda p: (p - 1) ** 2, jnp.zeros(()), Unregistered(step_size), max_steps=60)

    assert run(0.25).status == "converged"
    with pytest.raises(TypeError, match="Unregistered holds traced numbers"):
        jax.vmap(run)(jnp.array([0.25, 0.5]))
