"""Estimators with scikit-learn's contract: its parameters, its attributes, its place in pipelines and searches."""

from xentjax.sklearn.cross_validated import LogisticRegressionCV
from xentjax.sklearn.estimator import LogisticRegression

__all__ = ["LogisticRegression", "LogisticRegressionCV"]
