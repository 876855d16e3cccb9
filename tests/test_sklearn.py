"""The estimators with scikit-learn's contract: the contract itself, and numbers against independent truths."""

import os
import pickle
import subprocess
import sys
import warnings

import jax
import joblib
import mpmath
import numpy as np
import pytest
from optimality import unmet
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.metrics import get_scorer, log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from test_fit import PROBLEMS, assert_relative, data_of

import xentjax as xj
from xentjax.sklearn import LogisticRegression, LogisticRegressionCV
from xentjax.training import fit

pytestmark = pytest.mark.usefixtures("module_compiled_fast")

#: A search over real data of 569 rows, 8 of its columns: separable enough for all labels and scales.
CANCER = tuple(part[:, :8] if part.ndim == 2 else part for part in load_breast_cancer(return_X_y=True))
IRIS = load_iris(return_X_y=True)


def gradient(model, x, y, weights=None, penalty=None):
    """The gradient of scikit-learn's objective, Σ s loss + ‖w‖²/2C, by NumPy: of the weights, intercepts last."""
    weights = np.ones(len(y)) if weights is None else weights
    p = model.predict_proba(x)
    residual = weights[:, None] * (p - (y[:, None] == model.classes_))
    residual = residual[:, 1:] if len(model.classes_) == 2 else residual
    of_weights = residual.T @ x + model.coef_ * (1 / model.C if penalty is None else penalty)
    return np.column_stack([of_weights, residual.sum(axis=0)])


def run(code):
    """What a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not os.environ.get("XENTJAX_SKLEARN_OWN"), reason="a long run: make sklearn")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(estimator, check, id=f"{type(estimator).__name__}-{getattr(check, 'func', check).__name__}")
        for made in (LogisticRegression(), LogisticRegressionCV())
        for estimator, check in estimator_checks_generator(made)
    ],
)
def test_the_contract_of_estimators(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(estimator)


@pytest.mark.parametrize("data", [CANCER, IRIS], ids=["two classes", "three classes"])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_the_coefficients_are_those_of_scikit_learn(data, C):
    x, y = data
    scaled = StandardScaler().fit_transform(x)
    ours = LogisticRegression(C=C).fit(scaled, y)
    theirs = Theirs(C=C, solver="newton-cholesky", tol=1e-14, max_iter=1000).fit(scaled, y)
    size = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=0, atol=1e-9 * size)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=0, atol=1e-9 * size)
    assert str(ours.result_.status) == "converged"


@pytest.mark.parametrize("name", PROBLEMS)
def test_solutions_of_reference_from_raw_data_at_default_settings(name):
    x, y = data_of(name)
    problem = PROBLEMS[name]
    model = LogisticRegression(C=1 / (problem["lam"] * len(y)) if problem["lam"] else np.inf).fit(x, y)
    assert str(model.result_.status) == "converged"
    coef, intercept = model.coef_, model.intercept_
    if problem["lam"] == 0 and len(coef) > 1:
        coef, intercept = coef - coef[0], intercept - intercept[0]  # the reference has class 0 at 0
    assert_relative(coef, np.atleast_2d(problem["coef"]), 1e-9)
    assert_relative(intercept, np.atleast_1d(problem["intercept"]), 1e-9)
    if "std_err" in problem:
        errors = np.array(problem["std_err"], float), np.array(problem["std_err_intercept"], float)
        found = model.result_.std_err
        for got, expected in zip((found.weights.T, found.bias), errors, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-7)
        np.testing.assert_allclose(model.result_.log_likelihood, problem["llf"], rtol=1e-12)


def test_the_minimum_of_columns_of_any_mean_and_size():
    """Truth: Newton's method in 50 digits on the features as they are, 1e6 ± 1 and 1e-3."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 2)) * [1, 1e-3] + [1e6, 0]
    y = (rng.random(30) < 0.5).astype(int)
    model = LogisticRegression(C=0.5).fit(x, y)
    with mpmath.workdps(50):
        rows = mpmath.matrix(np.column_stack([x, np.ones(30)]).tolist())
        held = mpmath.diag([2, 2, 0])
        beta = mpmath.matrix([0, 0, 0])
        for _ in range(30):
            p = [1 / (1 + mpmath.exp(-(rows[i, :] * beta)[0])) for i in range(30)]
            slope = rows.T * mpmath.matrix([p[i] - int(y[i]) for i in range(30)]) + held * beta
            beta -= mpmath.lu_solve(rows.T * mpmath.diag([q * (1 - q) for q in p]) * rows + held, slope)
        truth = np.array([float(b) for b in beta])
    np.testing.assert_allclose(np.append(model.coef_, model.intercept_), truth, rtol=1e-9)


def test_an_unpenalized_fit_of_three_classes_has_no_gradient_and_sums_to_0():
    x, y = IRIS
    y = np.random.default_rng(0).permutation(y)  # not separable
    model = LogisticRegression(C=np.inf).fit(x, y)
    assert np.abs(gradient(model, x, y)).max() < 1e-8 * len(y)
    assert np.abs(model.coef_.sum(axis=0)).max() < 1e-12
    assert abs(model.intercept_.sum()) < 1e-12
    assert model.coef_.shape == (3, 4)


def test_minima_with_an_l1_penalty_and_with_an_elastic_net():
    x, y = CANCER
    x = (x - x.mean(0)) / x.std(0)
    for ratio in (1.0, 0.3):
        model = LogisticRegression(C=0.05, l1_ratio=ratio).fit(x, y)
        alpha = 1 / (0.05 * len(y))
        params = xj.LogisticParams(model.coef_[0], model.intercept_[0])
        assert unmet(params, x, y, ratio * alpha, (1 - ratio) * alpha) <= 1e-8
        assert (model.coef_ == 0).any() == (ratio == 1)
        assert str(model.result_.status) == "converged"
        assert "with few enough parameters" in model.summary()


def test_labels_of_any_kind():
    x, y = CANCER
    numbers = LogisticRegression().fit(x, y)
    for labels in (np.array(["no", "yes"])[y], y.astype(bool), y * 2.0 - 1, np.array(["no", "yes"], object)[y]):
        model = LogisticRegression().fit(x, labels)
        np.testing.assert_array_equal(model.coef_, numbers.coef_)
        np.testing.assert_array_equal(model.predict(x), np.unique(labels)[numbers.predict(x)])
        assert model.score(x, labels) == numbers.score(x, y)


def test_weights_count_repetitions_of_samples_and_classes():
    x, y = CANCER
    times = np.random.default_rng(0).integers(0, 3, len(y))
    weighted = LogisticRegression().fit(x, y, sample_weight=times)
    repeated = LogisticRegression().fit(np.repeat(x, times, axis=0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-9)
    hidden = np.where((times == 0)[:, None], 1e300, x)
    np.testing.assert_allclose(LogisticRegression().fit(hidden, y, times).coef_, weighted.coef_, rtol=1e-9)

    balanced = LogisticRegression(class_weight="balanced").fit(x, y, sample_weight=times)
    sums = np.bincount(y, times)
    factors = sums.sum() / (2 * sums)
    by_hand = LogisticRegression(class_weight={0: factors[0], 1: factors[1]}).fit(x, y, sample_weight=times)
    np.testing.assert_allclose(balanced.coef_, by_hand.coef_, rtol=1e-9)
    assert np.abs(gradient(balanced, x, y, times * factors[y])[:, -1]).max() < 1e-6


def test_alpha_is_C_in_other_units():
    x, y = CANCER
    weights = np.linspace(0.5, 1.5, len(y))
    model = LogisticRegression(C=0.1).fit(x, y, weights)
    other = LogisticRegression(alpha=1 / (0.1 * weights.sum())).fit(x, y, weights)
    np.testing.assert_allclose(model.coef_, other.coef_, rtol=1e-10)
    free = LogisticRegression(alpha=0.0).fit(x, y)
    np.testing.assert_allclose(free.coef_, LogisticRegression(C=np.inf).fit(x, y).coef_, rtol=1e-10)
    with pytest.raises(ValueError, match="takes only one of them"):
        LogisticRegression(alpha=0.1, C=2.0).fit(x, y)


def test_the_dtype_is_that_of_the_features_whatever_jax_is_told():
    assert not jax.config.jax_enable_x64
    x, y = CANCER
    double, single = LogisticRegression().fit(x, y), LogisticRegression().fit(x.astype(np.float32), y)
    for model, dtype in ((double, np.float64), (single, np.float32)):
        parts = (model.coef_, model.intercept_, model.predict_proba(x.astype(dtype)), model.result_.std_err.weights)
        assert all(type(part) is np.ndarray and part.dtype == dtype for part in parts)
    assert double.result_.params.weights.dtype == np.float64
    # The gradient is known to 1e-4 of the curvature.
    np.testing.assert_allclose(single.coef_, double.coef_, atol=1e-3 * np.abs(double.coef_).max())
    assert LogisticRegression().fit(x.astype(np.float16).astype(int), y).coef_.dtype == np.float64
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("logits", [[[800.0]], [[-1e4]], [[0.0]], [[-3e-17]], [[40.0]]])
def test_probabilities_and_their_logarithms_at_extreme_logits(logits):
    two, three = LogisticRegression(), LogisticRegression()
    two.classes_, two.coef_, two.intercept_, two.n_features_in_ = np.arange(2), np.ones((1, 1)), np.zeros(1), 1
    three.classes_, three.n_features_in_ = np.arange(3), 1
    three.coef_, three.intercept_ = np.array([[1.0], [0.0], [-1.0]]), np.array([0.0, 0.25, 0.0])
    with mpmath.workdps(400):
        z = mpmath.mpf(logits[0][0])
        for model, of_class in ((two, [mpmath.mpf(0), z]), (three, [z, mpmath.mpf("0.25"), -z])):
            total = mpmath.fsum(mpmath.exp(v) for v in of_class)
            logs = [v - mpmath.log(total) for v in of_class]
            np.testing.assert_allclose(model.predict_log_proba(logits)[0], [float(v) for v in logs], rtol=1e-15)
            p = [float(mpmath.exp(v)) for v in logs]
            np.testing.assert_allclose(model.predict_proba(logits)[0], p, rtol=4e-16 * max(abs(logits[0][0]), 2))


@pytest.mark.parametrize("K", [2, 3])
def test_sparse_features_give_the_same_as_dense_ones(K):
    rng = np.random.default_rng(K)
    x = np.where(rng.random((3000, 40)) < 0.1, rng.standard_normal((3000, 40)) + 3, 0)
    y = np.argmax(x[:, :K] + rng.gumbel(size=(3000, K)), axis=1)
    dense = LogisticRegression().fit(x, y)
    for form in (sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix):
        model = LogisticRegression().fit(form(x), y)
        np.testing.assert_allclose(model.coef_, dense.coef_, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(model.decision_function(form(x)), dense.decision_function(x), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(model.result_.std_err.weights, dense.result_.std_err.weights, rtol=1e-9)


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg"])
def test_sparse_features_are_not_made_dense(solver, monkeypatch):
    """What the compiled programs of a fit are given, and what they take beside it."""
    taken = []

    def measured(program):
        def call(*arguments):
            size = program.jitted.lower(*arguments).compile().memory_analysis()
            taken.append(size.argument_size_in_bytes + size.temp_size_in_bytes)
            return program(*arguments)

        return call

    for name in ("_solved", "_explained", "_with_covariances"):
        monkeypatch.setattr(fit, name, measured(getattr(fit, name)))
    rng = np.random.default_rng(0)
    x = sparse.random_array((50_000, 150), density=0.01, format="csr", rng=rng)
    model = LogisticRegression(solver=solver).fit(x, x[:, [0]].toarray()[:, 0] + rng.logistic(size=50_000) > 0)
    assert str(model.result_.status) == "converged"
    assert len(taken) == 2
    assert max(taken) < 50_000 * 150 * 8 / 4


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_of_features_and_the_summary(library):
    names = [f"size {j}" for j in range(8)]
    frame = pytest.importorskip(library).DataFrame(dict(zip(names, CANCER[0].T, strict=True)))
    model = LogisticRegression().fit(frame, CANCER[1])
    assert model.feature_names_in_.tolist() == names
    np.testing.assert_array_equal(model.coef_, LogisticRegression().fit(*CANCER).coef_)
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[names[::-1]])
    summary = model.summary()
    assert "size 7" in summary
    assert f"{model.coef_[0, 7]:.5g}" in summary
    assert summary.count("\n") > 15


def test_the_formula_is_told_and_printed(capsys):
    x, y = IRIS
    of_l2 = LogisticRegression(C=2.0, verbose=1).fit(x, y)
    assert of_l2.formula_ == "Σ s ℓ / Σ s + ½ alpha ‖w‖², alpha = 1 / (C Σ s) = 0.00333333 for C = 2, Σ s = 150"
    assert capsys.readouterr().out == f"minimizes {of_l2.formula_}\n{of_l2.result_.summary()}\n"
    of_both = LogisticRegression(alpha=0.01, l1_ratio=0.5).fit(x, y)
    assert of_both.formula_ == (
        "Σ s ℓ / Σ s + alpha (½ (1 - r) ‖w‖² + r ‖w‖₁), r = l1_ratio = 0.5, "
        "alpha = 0.01 = 1 / (C Σ s) for C = 0.666667, Σ s = 150"
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("model", [LogisticRegression(C=2.0), LogisticRegressionCV(Cs=[0.1, 1.0], cv=2)], ids=repr)
def test_it_can_be_pickled_cloned_and_dumped(tmp_path, model):
    x, y = IRIS
    names = np.array(["a", "b", "c"])[y]
    model = clone(model).fit(x, names)
    joblib.dump(model, tmp_path / "model")
    for other in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model")):
        np.testing.assert_array_equal(other.predict_log_proba(x), model.predict_log_proba(x))
        np.testing.assert_array_equal(other.result_.std_err.weights, model.result_.std_err.weights)
        assert str(other.result_.status) == "converged"
        assert other.summary() == model.summary()
    assert clone(model).get_params() == model.get_params()


def test_what_was_pickled_is_used_by_a_process_with_another_configuration(tmp_path):
    x, y = IRIS
    model = LogisticRegression().fit(x, y)
    joblib.dump((model, x), tmp_path / "model")
    code = f"""
import jax, joblib
model, x = joblib.load({str(tmp_path / "model")!r})
print(repr(float(model.predict_log_proba(x)[0, 2])), repr(float(model.result_.std_err.weights[0, 0])))
"""
    log_p, error = map(float, run(code).split())
    assert log_p == model.predict_log_proba(x)[0, 2]
    assert error == pytest.approx(model.result_.std_err.weights[0, 0], rel=1e-15)


def test_searches_in_pipelines_and_processes():
    x, y = IRIS
    grid = {"logisticregression__C": [0.1, 1, 10]}
    search = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), grid).fit(x, y)
    theirs = GridSearchCV(make_pipeline(StandardScaler(), Theirs(solver="newton-cholesky", tol=1e-10)), grid).fit(x, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])
    pipeline = clone(search.best_estimator_).set_params(logisticregression__alpha=0.01, logisticregression__C=1.0)
    alone = cross_val_score(pipeline, x, y, cv=2, scoring="neg_log_loss")
    np.testing.assert_allclose(cross_val_score(pipeline, x, y, cv=2, scoring="neg_log_loss", n_jobs=2), alone)


@pytest.mark.parametrize(
    ("options", "form", "buckets"),
    [
        ({}, np.asarray, (192, 256, 384, 512)),
        ({"l1_ratio": 0.5}, np.asarray, (192, 256, 384, 512)),
        ({}, sparse.csr_array, (128,)),
    ],
    ids=["dense", "elastic net", "sparse"],
)
def test_small_fits_of_any_size_share_few_programs(options, form, buckets):
    """Sizes that rows are padded to; 3 and 4 columns are padded to 4. Nothing else compiles anew."""
    compiled = []
    listen = lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    rng = np.random.default_rng(0)

    def fit_and_predict(n, d):
        x = rng.standard_normal((n, d))
        y, x = x[:, 0] + rng.logistic(size=n) > 0, form(x)
        model = LogisticRegression(C=n / 100, **options).fit(x, y)
        model.predict(x), model.predict_proba(x), model.predict_log_proba(x)

    for n in buckets:
        fit_and_predict(n, 3), fit_and_predict(n, 4)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for n in rng.permutation(np.arange(buckets[0] - 24, buckets[-1], 7)):
            fit_and_predict(n, 4 - n % 2)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_a_warm_start_goes_on_from_the_last_fit():
    x, y = IRIS
    model = LogisticRegression(warm_start=True).fit(x, y)
    coef = model.coef_
    assert model.n_iter_[0] > 3
    assert model.fit(x, y).n_iter_[0] <= 1
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-12)
    with pytest.raises(ValueError, match=r"coef_ has shape \(3, 4\), but these data need \(3, 3\)"):
        model.fit(x[:, :3], y)


def test_a_warm_start_with_an_l1_penalty_and_sparse_coefficients():
    x, y = CANCER
    model = LogisticRegression(C=0.1, l1_ratio=1, warm_start=True).fit(x, y)
    coef = model.coef_
    assert model.sparsify().fit(x, y).n_iter_[0] <= 1
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-9)


def test_what_is_not_converged_is_a_warning_with_the_reason():
    x, y = CANCER
    apart = IRIS[0][:100], IRIS[1][:100]
    with pytest.warns(ConvergenceWarning, match="newton ended after .* separated: .*Add l2"):
        assert str(LogisticRegression(C=np.inf).fit(*apart).result_.status) == "separated"
    with pytest.warns(ConvergenceWarning, match="max_steps.*Increase the number of iterations"):
        assert LogisticRegression(max_iter=1).fit(x, y).n_iter_[0] == 1
    twice = np.column_stack([x[:, :2], x[:, 1]])
    with pytest.warns(ConvergenceWarning, match="Columns that depend on others: 2"):
        model = LogisticRegression(C=np.inf).fit(twice, y)
    np.testing.assert_allclose(model.coef_[0, 1], model.coef_[0, 2], rtol=1e-6)


def test_a_class_without_weight_has_probability_0():
    x, y = IRIS
    names = np.array(["a", "b", "c"])[y]
    with pytest.warns(ConvergenceWarning, match="no sample of class 'b' has a weight"):
        model = LogisticRegression(class_weight={"a": 1, "b": 0, "c": 1}).fit(x, names)
    two = LogisticRegression(C=1).fit(x[y != 1], names[y != 1])
    # Two classes of K have coefficients ±w/2, with half the penalty of w.
    half = LogisticRegression(C=2).fit(x[y != 1], names[y != 1])
    p = model.predict_proba(x)
    assert not p[:, 1].any()
    assert two.coef_.shape == (1, 4)
    np.testing.assert_allclose(p[:, 2], half.predict_proba(x)[:, 1], rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen = LogisticRegressionCV(Cs=[0.1, 1.0]).fit(x, names, sample_weight=(y != 1).astype(float))
    assert not chosen.predict_proba(x)[:, 1].any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0}, "C must be above 0"),
        ({"C": "1"}, "C must be above 0"),
        ({"alpha": -1}, "alpha must be None, or finite and 0 or more"),
        ({"l1_ratio": 2}, "l1_ratio must be from 0 to 1"),
        ({"tol": -1}, "tol must be None, or 0 or more"),
        ({"max_iter": 1.5}, "max_iter must be a whole number"),
        ({"solver": "lbgfs"}, "solver must be 'auto', 'newton'"),
        ({"class_weight": "even"}, "class_weight must be None, 'balanced' or a dict"),
        ({"solver": "lbfgs", "l1_ratio": 1}, "Solver lbfgs supports only 'l2' or None penalties"),
        ({"solver": xj.Newton(), "l1_ratio": 1}, "Solver Newton supports only 'l2' or None penalties"),
        ({"penalty": "l3"}, "penalty must be one of"),
    ],
)
def test_parameters_that_are_none(parameters, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegression(**parameters).fit(*IRIS)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fit_intercept": "yes"}, "LogisticRegression: fit_intercept must be True or False"),
        ({"solver": xj.Newton}, "LogisticRegression: solver is the class Newton"),
        ({"solver": 3}, r"LogisticRegression: solver must have init\(objective, point\)"),
    ],
)
def test_parameters_of_another_type(parameters, message):
    with pytest.raises(TypeError, match=message):
        LogisticRegression(**parameters).fit(*IRIS)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"Cs": []}, "LogisticRegressionCV: Cs must be numbers above 0, or how many; got Cs="),
        ({"Cs": -1}, "LogisticRegressionCV: Cs must be numbers above 0, or how many; got Cs=-1"),
        ({"Cs": 0.5}, "LogisticRegressionCV: Cs must be"),
        ({"Cs": [1, -1]}, "LogisticRegressionCV: Cs must be"),
        ({"l1_ratios": 1}, "LogisticRegressionCV: l1_ratios must be numbers between 0 and 1; got l1_ratios=1"),
        ({"l1_ratios": [0.5], "solver": "newton"}, "Solver newton supports only 'l2'"),
        ({"scoring": "best"}, "'best' is not a valid scoring value"),
    ],
)
def test_parameters_of_the_cross_validation_that_are_none(parameters, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegressionCV(**parameters).fit(*IRIS)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(150), "sample_weight must be 0 or more, got -1.0"),
        (np.zeros(150), "sample_weight is zero for all samples"),
        (np.full(150, np.nan), "sample_weight contains NaN"),
        (np.ones((150, 2)), "sample_weight must be a number or of shape"),
        (np.ones(149), "inconsistent numbers of samples"),
        (IRIS[1] == 2, "only samples of one class, 2, have a weight above 0"),
    ],
    ids=str,
)
def test_weights_that_are_none(weights, message):
    for model in (LogisticRegression(), LogisticRegressionCV(Cs=2)):
        with pytest.raises(ValueError, match=message):
            model.fit(*IRIS, sample_weight=weights)


def test_a_fold_whose_samples_have_no_weight():
    weights = (np.arange(150) % 50 < 25).astype(float)
    with pytest.raises(ValueError, match="sample_weight is zero for all training samples of a fold"):
        LogisticRegressionCV(Cs=2, cv=2).fit(*IRIS, sample_weight=weights)


# -- limits of scikit-learn's solvers that ours do not have ------------------------------------------------------------


def test_indices_of_64_bits_are_those_of_32():
    x, y = CANCER
    for model in (LogisticRegression(solver="liblinear"), LogisticRegression(solver="saga", l1_ratio=0.5)):
        rows = sparse.csr_array(x)
        coef = clone(model).fit(rows, y).coef_
        rows.indices, rows.indptr = rows.indices.astype(np.int64), rows.indptr.astype(np.int64)
        np.testing.assert_array_equal(model.fit(rows, y).coef_, coef)


def test_features_of_any_size_with_a_solver_that_refuses_them():
    x, y = CANCER
    small = LogisticRegression(solver="liblinear", C=1e5).fit(x, y)
    large = LogisticRegression(solver="liblinear", C=1e5 / 1e200).fit(x * 1e100, y)
    np.testing.assert_allclose(large.coef_ * 1e100, small.coef_, rtol=1e-9)


def test_a_minimum_that_first_order_steps_do_not_reach_is_no_convergence():
    """At C = 1e30 the loss at the minimum is some 1e-30."""
    x, y = make_classification(n_samples=10, n_features=20, random_state=42)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        model = LogisticRegression(solver="lbfgs", C=1e30).fit(x, y)
    assert model.result_.status == "max_steps"
    np.testing.assert_array_equal(model.predict(x), y)


@pytest.mark.parametrize("solver", ["newton-cholesky", "newton-cg", "auto"])
def test_more_features_than_samples_and_hardly_any_penalty(solver):
    x, y = make_classification(n_samples=10, n_features=20, random_state=42)
    model = LogisticRegression(solver=solver, C=1e30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(x, y)
    assert np.abs(gradient(model, x, y)).max() < 1e-7
    np.testing.assert_array_equal(model.predict(x), y)


def test_nothing_depends_on_the_random_state():
    fits = [LogisticRegression(solver="liblinear", dual=True, random_state=seed).fit(*CANCER) for seed in (0, 1)]
    np.testing.assert_array_equal(fits[0].coef_, fits[1].coef_)


def test_float32_stays_float32_with_a_solver_that_widens_it():
    x, y = CANCER
    assert LogisticRegression(solver="liblinear").fit(np.float32(x), y).coef_.dtype == np.float32


# -- what its tests ask of private functions ---------------------------------------------------------------------------


def test_softmax_is_better_than_one_against_the_rest():
    x, y = make_classification(n_samples=10, n_features=20, n_classes=3, n_informative=10, random_state=42)
    together, apart = LogisticRegression().fit(x, y), OneVsRestClassifier(LogisticRegression()).fit(x, y)
    assert log_loss(y, together.predict_proba(x)) < log_loss(y, apart.predict_proba(x))


@pytest.mark.parametrize("scoring", ["accuracy", "precision_macro", "f1_weighted", "neg_log_loss", "recall_macro"])
def test_scores_of_cross_validation_with_three_classes(scoring):
    x, y = make_classification(n_samples=100, n_classes=3, n_informative=6, random_state=42)
    folds = [(np.arange(80), np.arange(80, 100))]
    found = LogisticRegressionCV(Cs=[1.0], cv=folds, scoring=scoring).fit(x, y)
    one = LogisticRegression().fit(x[:80], y[:80])
    assert found.scores_[0, 0, 0] == pytest.approx(get_scorer(scoring)(one, x[80:], y[80:]), rel=1e-9)


def test_the_deprecated_l1_ratio_of_none():
    with pytest.warns(FutureWarning, match="'l1_ratio=None' was deprecated"):
        model = LogisticRegression(l1_ratio=None).fit(*IRIS)
    np.testing.assert_array_equal(model.coef_, LogisticRegression().fit(*IRIS).coef_)


@pytest.mark.parametrize("library", ["jax.numpy", "torch"])
def test_arrays_of_other_libraries_are_taken_and_numpys_given(library):
    asarray = pytest.importorskip(library).asarray
    x, y = IRIS
    model = LogisticRegression().fit(asarray(x), asarray(y), asarray(np.ones(150)))
    assert type(model.coef_) is np.ndarray
    # JAX makes float32 of them.
    np.testing.assert_allclose(model.coef_, LogisticRegression().fit(x, y).coef_, atol=1e-4)
    np.testing.assert_allclose(model.predict_proba(asarray(x)), model.predict_proba(x), atol=1e-6)


def test_cross_validation_scores_and_choice():
    x, y = IRIS
    cv = StratifiedKFold(4)
    model = LogisticRegressionCV(Cs=[0.01, 1.0, 30.0], cv=cv).fit(x, y)
    search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0, 30.0]}, cv=cv, scoring="neg_log_loss").fit(x, y)
    folds = np.array([search.cv_results_[f"split{i}_test_score"] for i in range(4)])
    np.testing.assert_allclose(model.scores_[:, 0], folds, rtol=1e-9)
    assert search.best_params_["C"] == model.C_
    np.testing.assert_allclose(model.coef_, search.best_estimator_.coef_, rtol=1e-8)
    assert model.coefs_paths_.shape == (4, 1, 3, 3, 5)
    assert model.n_iter_.shape == (4, 1, 3)
    assert model.score(x, y) == pytest.approx(search.score(x, y), rel=1e-9)
    accuracy = LogisticRegressionCV(Cs=2, cv=cv, scoring=None, refit=False, use_legacy_attributes=True).fit(x, y)
    assert accuracy.scores_[2].shape == (4, 2)
    assert accuracy.coefs_paths_[0].shape == (4, 2, 5)
    assert accuracy.C_.shape == (3,)


def test_scikit_learn_loads_with_the_estimators_alone():
    assert (
        run("import sys, xentjax; before = 'sklearn' in sys.modules; import xentjax.sklearn; print(before)") == "False"
    )
