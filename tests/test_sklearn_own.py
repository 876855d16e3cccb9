"""scikit-learn's own tests of its logistic regression, run against ours.

They are its tests as they stand, with our estimators in the place of its own. It is a long run, most of it compilation:
``make sklearn``.
"""

import importlib.util
import os
import re
from unittest import mock

import jax
import pytest
import sklearn.linear_model
import sklearn.linear_model.tests.test_logistic as theirs

import xentjax.sklearn
from xentjax.training import fit

_PRIVATE = "it calls a private function of scikit-learn's, which no estimator of ours is made of"
_LIMIT = "it tests a limit of one of scikit-learn's solvers, in whose place ours has none (tests/test_sklearn.py)"
_START = "it tests that the first step starts at probabilities of 0.5; ours starts at the shares of the classes"
_MEMORY = "it tests that steps have no memory; a trust region has one, its radius"
_DEFAULT = "it tests the warning that a default will change; ours is already what it will be"
_ARRAYS = "arrays that stay in other libraries than NumPy are an option of estimators, which ours do not declare"
_CALLBACKS = "callbacks are an option of estimators, which ours do not declare: their steps are one compiled loop"
#: What does not apply: the beginning of a test's name with its parameters, as a regular expression, and the reason.
NOT_APPLICABLE = {
    r"test_logistic_regression_path": _PRIVATE,
    r"test_logistic_cv_multinomial_score": _PRIVATE,
    r"test_get_default_scorer": _PRIVATE,
    r"test_logreg_predict_proba_multinomial": _PRIVATE,
    r"test_newton_cholesky_fallback_to_lbfgs": _LIMIT + ": singular systems",
    r"test_liblinear_dual_random_state": _LIMIT + ": results that depend on the random state",
    r"test_liblinear_with_large_values": _LIMIT + ": features of 1e100 are refused",
    r"test_dtype_match\[.*-liblinear\]": _LIMIT + ": float32 is widened",
    r"test_large_sparse_matrix\[.*-(liblinear|saga?)\]": _LIMIT + ": 64-bit indices are refused",
    r"test_zero_max_iter\[(newton|liblinear|sag)": _START,
    r"test_warm_start_newton_solver\[.*-newton-cg\]": _MEMORY,
    r"test_l1_ratio_None_deprecated": _DEFAULT,
    r"test_logisticregressioncv_warns_with_use_legacy_attributes": _DEFAULT,
    r"test_lr_scoring_warns": _DEFAULT,
    r"test_logistic_regression_array_api_\w+\[(?!numpy)": _ARRAYS,
    r"test_logistic_regression_callback": _CALLBACKS,
}


def _with_ours():
    """Their module once more, made with our estimators in the place of theirs."""
    found = importlib.util.spec_from_file_location("test_logistic_with_ours", theirs.__file__)
    module = importlib.util.module_from_spec(found)
    names = ("LogisticRegression", "LogisticRegressionCV")
    with mock.patch.multiple(sklearn.linear_model, **{name: getattr(xentjax.sklearn, name) for name in names}):
        found.loader.exec_module(module)
    return module


OWN = _with_ours()
pytestmark = [
    OWN.pytestmark,
    pytest.mark.usefixtures("module_compiled_fast"),
    pytest.mark.skipif(not os.environ.get("XENTJAX_SKLEARN_OWN"), reason="a long run: make sklearn"),
]
globals().update({name: test for name, test in vars(OWN).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def _applies(request):
    for pattern, reason in NOT_APPLICABLE.items():
        if re.match(pattern, request.node.name):
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def _few_programs():
    """A compiled program takes some 80 memory maps, of which Linux gives a process 65,530: more end it."""
    yield
    if fit._solved.jitted._cache_size() > 100:
        jax.clear_caches()


@pytest.fixture
def global_random_seed():
    """The seed that scikit-learn takes by default."""
    return 42
