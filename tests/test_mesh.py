"""Fits over the devices of a mesh: the same results as on one device, and what travels between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse

import xentjax as xj
from xentjax.models.spread import Spread
from xentjax.training import fit as fitting

pytestmark = pytest.mark.usefixtures("compiled_fast", "float64")

N, D = 203, 4

#: Collectives of a compiled program, and the type of what they give.
COLLECTIVES = re.compile(r"= (\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def mesh_of(data, vocab=1):
    return jax.make_mesh((data, vocab), ("data", "vocab"), devices=jax.devices()[: data * vocab])


@pytest.fixture(scope="module")
def rows():
    """Features of different means and sizes, labels of two and of three classes, weights with zeros, offsets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) * [1, 10, 0.1, 3] + [0, 5, 100, 1]
    two = (x[:, 0] + rng.normal(size=N) > 0).astype(int)
    weights = rng.uniform(size=N) * (rng.uniform(size=N) > 0.2)
    return {"x": x, "two": two, "three": two + (x[:, 3] > 2), "weights": weights, "offset": rng.normal(size=N)}


def assert_same(one, many, digits=1e-11):
    """Parameters, errors, values and statuses of two fits agree, NaN where NaN is, beside their largest."""
    assert np.array_equal(one.status.names, many.status.names)
    assert np.array_equal(one.dependent, many.dependent)
    assert np.array_equal(one.completely_separated, many.completely_separated)
    wanted = [one.params, one.objective, one.log_likelihood, one.direction, one.num_observations]
    got = [many.params, many.objective, many.log_likelihood, many.direction, many.num_observations]
    if one.covariance is not None:
        wanted, got = [*wanted, one.std_err, one.robust_covariance], [*got, many.std_err, many.robust_covariance]
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        largest = np.nanmax(np.abs(a), initial=1e-300) if not np.isnan(a).all() else 1
        np.testing.assert_allclose(b, a, rtol=0, atol=digits * largest)


#: Labels and options of fits, by what they are about.
FITS = {
    "newton": ("two", {}),
    "weights": ("two", {"weights": True}),
    "offset": ("two", {"offset": True, "l2": 0.01}),
    "three classes": ("three", {"solver": "newton"}),
    "balanced": ("three", {"solver": "newton", "class_weight": "balanced", "l2": 0.1}),
    "no intercept": ("two", {"fit_intercept": False}),
    "l-bfgs": ("two", {"solver": "lbfgs"}),
    "newton-cg": ("two", {"solver": "newton-cg"}),
    "from a subsample": ("two", {"solver": xj.Newton(subsample=4), "inference": False}),
    "l-bfgs with a metric": ("two", {"solver": xj.LBFGS(metric="hessian", subsample=4), "inference": False}),
    "gradient descent": ("two", {"solver": xj.GradientDescent(), "l2": 0.1, "inference": False}),
    "optax": ("two", {"solver": xj.Optax(optax.lbfgs()), "inference": False}),
    "proximal newton": ("two", {"l1": 0.01}),
    "proximal gradient": ("two", {"l1": 0.01, "solver": "proximal-gradient"}),
}


@pytest.mark.parametrize("devices", [4, 1, 2, 8])
@pytest.mark.parametrize("name", FITS)
def test_a_fit_is_that_of_one_device(rows, name, devices):
    labels, options = FITS[name]
    options = {key: rows[key] if value is True else value for key, value in options.items()}
    one = xj.fit_logistic(rows["x"], rows[labels], **options)
    many = xj.fit_logistic(rows["x"], rows[labels], mesh=mesh_of(devices), **options)
    assert_same(one, many)
    assert many.params.weights.sharding.is_fully_replicated


@pytest.mark.parametrize("kind", ["separated", "dependent", "a class short of rows", "sparse", "one row each"])
def test_what_is_special_is_found_on_many_devices(rows, kind):
    x, y, options = rows["x"], rows["two"], {}
    if kind == "separated":
        x = np.column_stack([np.where(y, 1, -1) * (1 + rows["weights"]), x])
    elif kind == "dependent":
        x = np.column_stack([x, 2 * x[:, 0] + x[:, 1], np.ones(N)])
    elif kind == "a class short of rows":
        y = (np.arange(N) == 7).astype(int)
        options = {"l2": 0.1}
    elif kind == "sparse":
        x, options = scipy.sparse.random(N, 30, 0.1, random_state=0, format="csr"), {"l2": 0.01}
    else:
        x, y, options = x[:8], np.arange(8) % 2, {"l2": 1.0}
    one, many = xj.fit_logistic(x, y, **options), xj.fit_logistic(x, y, mesh=mesh_of(8), **options)
    assert_same(one, many, digits=1e-9)  # what is dependent is determined by a pseudo-inverse
    if kind in ("separated", "dependent"):
        assert str(many.status) == {"separated": "separated", "dependent": "rank_deficient"}[kind]


def test_other_axes_of_a_mesh_repeat_the_rows_and_explicit_axes_do_as_well(rows):
    one = xj.fit_logistic(rows["x"], rows["two"])
    assert_same(one, xj.fit_logistic(rows["x"], rows["two"], mesh=mesh_of(2, 4)))
    assert_same(one, xj.fit_logistic(rows["x"], rows["two"], mesh=jax.make_mesh((8,), ("data",))))
    explicit = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    assert_same(one, xj.fit_logistic(rows["x"], rows["two"], mesh=explicit))


def test_float32_keeps_the_digits_of_columns_far_from_zero(rows):
    with jax.enable_x64(False):
        x = rows["x"] + 1e6
        one, many = xj.fit_logistic(x, rows["two"]), xj.fit_logistic(x, rows["two"], mesh=mesh_of(4))
        # Sums of 203 terms in another order: their rounding, in a problem of condition 10.
        assert_same(one, many, digits=1e-4)


def test_paths_and_their_folds_are_those_of_one_device(rows):
    options = {"num_lambdas": 6, "folds": 3, "tol": 1e-12}
    one = xj.fit_path(rows["x"], rows["two"], **options)
    many = xj.fit_path(rows["x"], rows["two"], mesh=mesh_of(4), **options)
    np.testing.assert_allclose(many.lambdas, one.lambdas, rtol=1e-13)
    np.testing.assert_allclose(many.params.weights, one.params.weights, rtol=0, atol=1e-9)
    np.testing.assert_allclose(many.folds.test_loss, one.folds.test_loss, rtol=1e-10)
    assert np.array_equal(many.folds.weights, one.folds.weights)


@pytest.mark.parametrize("what", ["bootstraps", "penalties", "groups"])
def test_many_fits_are_dealt_to_all_devices(rows, what):
    x, y = rows["x"], rows["two"]
    if what == "bootstraps":
        options = {"weights": np.random.default_rng(1).poisson(1, (5, N)).astype(float)}
    elif what == "penalties":
        options = {"l1": np.geomspace(1e-4, 1, 3)}
    else:
        cuts = [slice(0, 40), slice(40, 140), slice(140, N)]
        x, y, options = [x[cut] for cut in cuts], [y[cut] for cut in cuts], {"l2": 0.1}
    one, many = xj.fit_many(x, y, **options), xj.fit_many(x, y, mesh=mesh_of(2, 2), **options)
    assert_same(one, many)
    assert many.params.weights.sharding.is_fully_replicated


@pytest.mark.parametrize("mesh", [(4, 1), (3, 2)], ids=str)
def test_batches_are_those_of_one_device(rows, mesh):
    init = xj.LogisticParams(jnp.zeros(D), jnp.zeros(()))
    data, settings = (rows["x"], rows["two"]), {"epochs": 2, "batch_size": 30, "weights": rows["weights"], "seed": 3}
    one = xj.train_minibatch(xj.logistic_loss, init, data, optax.adam(0.05), **settings)
    many = xj.train_minibatch(xj.logistic_loss, init, data, optax.adam(0.05), mesh=mesh_of(*mesh), **settings)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(many.history, one.history, rtol=1e-12)


def test_minimize_and_iterate_on_a_mesh(rows):
    objective = xj.LogisticObjective(rows["x"], rows["two"], l2=0.1)
    one = xj.minimize(objective, objective.init(), xj.Newton(), tol=1e-9)
    many = xj.minimize(objective, objective.init(), xj.Newton(), tol=1e-9, mesh=mesh_of(4))
    *_, last = xj.iterate(objective, objective.init(), xj.Newton(), tol=1e-9, chunk=2, mesh=mesh_of(4))
    for found in (many, last):
        assert found.status == one.status
        np.testing.assert_allclose(found.params.weights, one.params.weights, rtol=1e-12, atol=1e-13)
    with pytest.raises(TypeError, match=r"minimize: mesh needs an objective with on\(mesh\)"):
        xj.minimize(lambda p: p**2, jnp.ones(()), xj.Newton(), mesh=mesh_of(4))


def test_rows_that_are_no_numbers_or_too_few_are_errors_as_on_one_device(rows):
    x = rows["x"].copy()
    x[5, 1] = np.nan
    with pytest.raises(ValueError, match=r"fit_logistic: x\[5, 1\] is nan"):
        xj.fit_logistic(x, rows["two"], mesh=mesh_of(4))
    with pytest.raises(ValueError, match="there is no row to fit to"):
        xj.fit_logistic(x[:0], rows["two"][:0], mesh=mesh_of(4))
    with pytest.raises(TypeError, match=r"mesh must be a jax\.sharding\.Mesh, got int"):
        xj.fit_logistic(rows["x"], rows["two"], mesh=4)
    with pytest.raises(ValueError, match="rows are split over one named 'data'"):
        xj.fit_logistic(rows["x"], rows["two"], mesh=jax.make_mesh((2,), ("rows",), devices=jax.devices()[:2]))


# -- what travels ------------------------------------------------------------------------------------------------------


def numbers_in(kind):
    """How many numbers a type of XLA's has."""
    return sum(int(np.prod([int(n) for n in sizes.split(",") if n])) for sizes in re.findall(r"\[([\d,]*)\]", kind))


@pytest.mark.parametrize("what", ["value_and_gradient", "value_gradient_hessian"])
@pytest.mark.parametrize("classes", [2, 3])
def test_one_reduction_adds_up_all_that_is_evaluated(rows, what, classes):
    objective = xj.LogisticObjective(rows["x"], rows["two" if classes == 2 else "three"], weights=rows["weights"])
    objective = objective.on(mesh_of(4))
    evaluate = jax.jit(lambda objective, params: getattr(objective, what)(params))
    text = evaluate.lower(objective, objective.init()).compile().as_text()
    size = (D + 1) * (1 if classes == 2 else 3)
    pairs = 1 if classes == 2 else 6  # of classes, whose Hessians are symmetric to each other
    hessian = pairs * (D + 1) ** 2 if what == "value_gradient_hessian" else 0
    assert [(kind, numbers_in(size)) for size, kind in COLLECTIVES.findall(text)] == [
        ("all-reduce", 1 + size + hessian)
    ]


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "newton-cg", "proximal-newton"])
def test_features_never_move(rows, solver, monkeypatch):
    """In a whole fit nothing but sums travels, the largest of them the two matrices of the covariances."""
    seen, solved = [], fitting._solved
    monkeypatch.setattr(fitting, "_solved", lambda *arguments: seen.append(arguments) or solved(*arguments))
    xj.fit_logistic(rows["x"], rows["two"], mesh=mesh_of(4), solver=solver, l1=0.01 if "prox" in solver else 0.0)
    text = solved.jitted.lower(*seen[0]).compile().as_text()
    found = COLLECTIVES.findall(text)
    assert {kind for _, kind in found} == {"all-reduce"}
    assert max(numbers_in(size) for size, _ in found) <= 2 * (1 + (D + 1) + (D + 1) ** 2)


def test_parts_of_sparse_rows_are_those_rows():
    matrix = scipy.sparse.random(23, 7, 0.3, random_state=1, format="csr")
    objective = xj.LogisticObjective(matrix.toarray(), np.arange(23) % 2)
    fit = xj.fit_logistic(matrix, objective.y, l2=0.1, mesh=mesh_of(4))
    assert_same(xj.fit_logistic(matrix.toarray(), objective.y, l2=0.1), fit)


def test_parts_are_equal_and_filled_up_with_nothing():
    spread = Spread.over("test", mesh_of(4))
    each = spread.equal_parts(10)
    placed = spread.placed(np.arange(10.0), each)
    assert (each, placed.shape, spread.own_parts) == (3, (12,), 4)
    assert np.array_equal(placed, [*range(10), 0, 0])
    assert np.array_equal(spread.places(10, each), np.arange(10))
