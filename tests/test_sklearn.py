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
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

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


def test_names_of_features_and_the_summary():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(CANCER[0], columns=[f"size {j}" for j in range(8)])
    model = LogisticRegression().fit(frame, CANCER[1])
    assert model.feature_names_in_.tolist() == list(frame.columns)
    summary = model.summary()
    assert "size 7" in summary
    assert f"{model.coef_[0, 7]:.5g}" in summary
    assert summary.count("\n") > 15


def test_it_can_be_pickled_cloned_and_dumped(tmp_path):
    x, y = IRIS
    model = LogisticRegression(C=2.0, alpha=None).fit(x, y)
    joblib.dump(model, tmp_path / "model")
    for other in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model")):
        np.testing.assert_array_equal(other.predict_log_proba(x), model.predict_log_proba(x))
        np.testing.assert_array_equal(other.result_.std_err.weights, model.result_.std_err.weights)
        assert str(other.result_.status) == "converged"
    assert clone(model).get_params() == model.get_params()


def test_searches_in_pipelines_and_few_programs_for_many_sizes():
    x, y = IRIS
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [0.1, 1, 10]}
    )
    search.fit(x, y)
    theirs = GridSearchCV(
        make_pipeline(StandardScaler(), Theirs(solver="newton-cholesky", tol=1e-10)),
        {"logisticregression__C": [0.1, 1, 10]},
    ).fit(x, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])
    before = fit._solved._cache_size()
    for n in (97, 101, 110, 119, 128):
        LogisticRegression(C=n / 100).fit(x[-n:, : 3 + n % 2], y[-n:])
    cross_val_score(LogisticRegression(), x, y, cv=7)
    assert fit._solved._cache_size() <= before + 2


def test_a_warm_start_goes_on_from_the_last_fit():
    x, y = IRIS
    model = LogisticRegression(warm_start=True).fit(x, y)
    coef = model.coef_
    assert model.n_iter_[0] > 3
    assert model.fit(x, y).n_iter_[0] <= 1
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-12)
    with pytest.raises(ValueError, match=r"coef_ has shape \(3, 4\), but these data need \(3, 3\)"):
        model.fit(x[:, :3], y)


def test_what_is_not_converged_is_a_warning_with_the_reason():
    x, y = CANCER
    apart = IRIS[0][:100], IRIS[1][:100]
    with pytest.warns(ConvergenceWarning, match="separated.*Add l2"):
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
    with pytest.raises(ValueError, match="only samples of one class, 'a', have a weight"):
        LogisticRegression().fit(x, names, sample_weight=(y == 0).astype(float))


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
        ({"penalty": "l3"}, "penalty must be one of"),
    ],
)
def test_parameters_that_are_none(parameters, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegression(**parameters).fit(*IRIS)
    with pytest.raises(TypeError, match="fit_intercept must be True or False"):
        LogisticRegression(fit_intercept="yes").fit(*IRIS)


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
    code = "import sys, xentjax; before = 'sklearn' in sys.modules; import xentjax.sklearn; print(before)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"False"
