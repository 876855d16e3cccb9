"""scikit-learn's own tests of its logistic regression, run against ours.

They are its tests as they stand, with our estimators in the place of its own. It is a long run, most of it compilation:
``make sklearn``.
"""

import importlib.util
import os
from unittest import mock

import jax
import pytest
import sklearn.linear_model
import sklearn.linear_model.tests.test_logistic as theirs

import xentjax.sklearn
from xentjax.training import fit

#: What does not apply: a test, or the beginning of its name with parameters, and the reason.
_PRIVATE = "it tests a private function of scikit-learn, which no estimator of ours is made of"
_TEXT = "it tests the wording of one solver's warning; ours names the solver, the status, and what to do"
_DEFAULT = "it tests the warning that a default will change; ours is already what it will be"
_ARRAYS = "arrays of other libraries than NumPy are not taken: attributes are NumPy's"
_START = "it tests that a start has probabilities of 0.5; ours is the model without features"
_CALLBACKS = "the steps are one compiled loop, in which no callback is called"
NOT_APPLICABLE = {
    "test_logistic_regression_path": _PRIVATE,
    "test_logistic_cv_multinomial_score": _PRIVATE,
    "test_get_default_scorer": _PRIVATE,
    "test_logreg_predict_proba_multinomial": "it calls the private _predict_proba_lr, the one-versus-rest formula",
    "test_newton_cholesky_fallback_to_lbfgs": "it tests that one solver takes another's place; ours needs none",
    "test_liblinear_dual_random_state": "it tests that results depend on the random state; ours do not",
    "test_max_iter[liblinear": _TEXT,
    "test_max_iter[sag": _TEXT,
    "test_max_iter[newton-cholesky": _TEXT,
    "test_dtype_match[csr_matrix-False-liblinear]": "it tests that liblinear widens float32; here it stands for auto",
    "test_dtype_match[csr_matrix-True-liblinear]": "it tests that liblinear widens float32; here it stands for auto",
    "test_dtype_match[csr_array-False-liblinear]": "it tests that liblinear widens float32; here it stands for auto",
    "test_dtype_match[csr_array-True-liblinear]": "it tests that liblinear widens float32; here it stands for auto",
    "test_large_sparse_matrix[csr_matrix-liblinear]": "it tests that 64-bit indices are refused; ours are taken",
    "test_large_sparse_matrix[csr_matrix-sag": "it tests that 64-bit indices are refused; ours are taken",
    "test_large_sparse_matrix[csr_array-liblinear]": "it tests that 64-bit indices are refused; ours are taken",
    "test_large_sparse_matrix[csr_array-sag": "it tests that 64-bit indices are refused; ours are taken",
    "test_liblinear_with_large_values": "it tests that 1e100 is refused; features of any size are solved here",
    "test_zero_max_iter[newton": _START,
    "test_zero_max_iter[liblinear": _START,
    "test_zero_max_iter[sag": _START,
    "test_l1_ratio_None_deprecated": _DEFAULT,
    "test_logisticregressioncv_warns_with_use_legacy_attributes": _DEFAULT,
    "test_lr_scoring_warns": _DEFAULT,
    "test_logistic_regression_array_api": _ARRAYS,
    "test_logistic_regression_callback": _CALLBACKS,
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
    for name, reason in NOT_APPLICABLE.items():
        if request.node.name.startswith(name):
            pytest.skip(reason)


@pytest.fixture(autouse=True)
def _few_programs():
    """A compiled program takes some 80 memory maps, of which Linux gives a process 65,530: more end it."""
    yield
    if fit._solved._cache_size() > 100:
        jax.clear_caches()


@pytest.fixture
def global_random_seed():
    """The seed that scikit-learn takes by default."""
    return 42
