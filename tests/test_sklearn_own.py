"""scikit-learn's own tests of its logistic regression, run against ours."""

import importlib.util
from unittest import mock

import pytest
import sklearn.linear_model
import sklearn.linear_model.tests.test_logistic as theirs

import xentjax.sklearn


def _with_ours():
    """Their module once more, made with our estimators in the place of theirs."""
    found = importlib.util.spec_from_file_location("test_logistic_with_ours", theirs.__file__)
    module = importlib.util.module_from_spec(found)
    names = ("LogisticRegression", "LogisticRegressionCV")
    with mock.patch.multiple(sklearn.linear_model, **{name: getattr(xentjax.sklearn, name) for name in names}):
        found.loader.exec_module(module)
    return module


OWN = _with_ours()
pytestmark = [OWN.pytestmark]
globals().update({name: test for name, test in vars(OWN).items() if name.startswith("test_")})


@pytest.fixture
def global_random_seed():
    """The seed that scikit-learn takes by default."""
    return 42
