"""Logistic regression as an estimator of scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from xentjax.sklearn.parameters import check_classes, check_parameters, penalty_of
from xentjax.sklearn.problem import Fitted, Problem


class LogisticRegression(ClassifierMixin, BaseEstimator):
    r"""Logistic and softmax regression with scikit-learn's contract, by :func:`xentjax.fit_logistic`.

    It minimizes, with weights :math:`s_i` that are those of the samples times those of their classes,

    .. math::
      \frac{1}{\sum_i s_i}\sum_i s_i\,\ell_i(x_i w + b)
      + \alpha\Bigl(\frac{1 - r}{2}\|w\|_2^2 + r\,\|w\|_1\Bigr), \qquad \alpha = \frac{1}{C \sum_i s_i}

    with r the ``l1_ratio``; the intercept b is not penalized. This is scikit-learn's problem, and ``l2`` of
    ``fit_logistic`` is :math:`(1 - r)\,\alpha`, its ``l1`` is :math:`r\,\alpha`. Features are centred and scaled
    inside, so that the result does not depend on their means and units but as the penalty does.

    It computes in float64 whatever JAX's configuration is, and in float32 where X is float32. Attributes are arrays of
    NumPy.

    Args:
      penalty: ``"l1"``, ``"l2"``, ``"elasticnet"`` or None: deprecated in scikit-learn 1.8, as here; ``l1_ratio`` and
        ``C`` say the same.
      C: the inverse of the penalty's size, above 0; ``np.inf`` for none.
      alpha: α itself, in the place of C; 0 for none.
      l1_ratio: r, from 0 (L2) to 1 (L1).
      dual: only for ``solver="liblinear"``, where it has no effect.
      tol: bound of the gradient's largest component, of the mean loss and in units of standardized features (in
        scikit-learn each solver has its own meaning of it). By default as in ``fit_logistic``: 1e-8 in float64, 1e-4
        in float32, less for rare classes.
      fit_intercept: whether there is an intercept.
      intercept_scaling: without effect: no solver here penalizes the intercept.
      class_weight: factors of the weights, ``{label: factor}``, or ``"balanced"`` for equal weights of all classes.
      random_state: without effect: nothing here is random.
      solver: ``"auto"``, a name of ``fit_logistic``'s, a Solver, or one of scikit-learn's names: ``"lbfgs"``,
        ``"newton-cholesky"`` (``"newton"``) and ``"newton-cg"`` choose the same method, ``"liblinear"``, ``"sag"`` and
        ``"saga"`` stand for ``"auto"``. scikit-learn's keep the limits that they have there.
      max_iter: the most steps of the solver.
      verbose: whether ``fit`` prints :meth:`summary`.
      warm_start: whether ``fit`` starts at the coefficients of the last one.
      n_jobs: without effect.

    Attributes:
      classes_: the labels, sorted.
      coef_: ``[K, d]``, or ``[1, d]`` for two classes. Those of K classes sum to 0 where nothing but an L2 penalty
        holds them.
      intercept_: ``[K]`` or ``[1]``; infinite for a class without weight.
      n_iter_: ``[1]``, the number of steps.
      result_: the :class:`xentjax.LogisticFit` with status, certificate and inference, its arrays NumPy's; covariances
        of up to 200 parameters. Without a penalty its parameters of K classes are relative to class 0.
      formula_: what was minimized, with its numbers.
      n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    ``fit`` warns (``ConvergenceWarning``) wherever the status is not ``converged``: separated classes, dependent
    columns and the like, with the fit's message.

    Example:
      >>> from sklearn.datasets import load_iris
      >>> from xentjax.sklearn import LogisticRegression
      >>> x, y = load_iris(return_X_y=True)
      >>> model = LogisticRegression().fit(x, y)
      >>> model.predict(x[:2]), model.predict_proba(x[:1]).round(4), round(model.score(x, y), 4)
      (array([0, 0]), array([[0.9816, 0.0184, 0.    ]]), 0.9733)
      >>> str(model.result_.status), model.predict_log_proba(x[:1]).round(2)
      ('converged', array([[ -0.02,  -3.99, -18.05]]))
    """

    def __init__(
        self,
        penalty: str | None = "deprecated",
        *,
        C: float = 1.0,
        alpha: float | None = None,
        l1_ratio: float = 0.0,
        dual: bool = False,
        tol: float | None = None,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: dict | str | None = None,
        random_state: Any = None,
        solver: Any = "auto",
        max_iter: int = 1000,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticRegression:
        """Fit the model.

        Args:
          X: features ``[n, d]``, dense or sparse.
          y: a label for each row, of any type that can be sorted.
          sample_weight: a weight for each row, 0 or more; weight 2 is the same row twice, weight 0 none.

        Returns:
          The estimator itself.

        Raises:
          ValueError: a parameter is out of range, data hold NaN or infinities, lengths differ, a weight is negative,
            or only one class has a weight.
        """
        check_parameters(self)
        penalty = penalty_of(self)
        if self.n_jobs is not None:
            warnings.warn(f"'n_jobs' has no effect, got n_jobs={self.n_jobs}", FutureWarning, stacklevel=2)
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], order="C")
        problem, classes = encoded(self, X, y, sample_weight)
        found = problem.fitted(penalty, self._warm_start(problem), inference=True)
        self.classes_ = classes
        self._keep(found, penalty.formula(problem.total))
        for message in found.warnings(self.solver, classes):
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    def _warm_start(self, problem: Problem) -> Any:
        if not (self.warm_start and hasattr(self, "coef_")):
            return None
        coef = self.coef_.toarray() if sparse.issparse(self.coef_) else np.asarray(self.coef_)
        needed = (1 if problem.num_classes == 2 else problem.num_classes, problem.x.shape[1])
        if coef.shape != needed:
            raise ValueError(f"warm_start: coef_ has shape {coef.shape}, but these data need {needed}")
        return coef, np.asarray(self.intercept_)

    def _keep(self, found: Fitted, formula: Any) -> None:
        """The attributes of a fit, printed where ``verbose`` asks for it."""
        self.coef_, self.intercept_ = found.coef, found.intercept
        self.n_iter_: Any = np.array([found.steps], np.int32)
        self.result_, self.formula_ = found.fit, formula
        if self.verbose and self.result_ is not None:
            print(self.summary())

    # -- prediction ----------------------------------------------------------------------------------------------------

    def decision_function(self, X: Any) -> Any:
        """The logits, ``[n, K]``; for two classes those of ``classes_[1]``, ``[n]``."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", reset=False)
        logits = safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: Any) -> Any:
        """The most probable label of each row."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, ``[n, K]``, in the order of ``classes_``."""
        logits = self.decision_function(X)
        # 1 - p has no digits left where p is nearly 1: each class has its own.
        return np.stack([expit(-logits), expit(logits)], axis=1) if logits.ndim == 1 else softmax(logits, axis=1)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of the probability of each class: exact, also where the probability underflows."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return -np.stack([np.logaddexp(0, logits), np.logaddexp(0, -logits)], axis=1)
        # Relative to the largest logit, whose own logarithm is that of 1 + the sum of the others.
        rows, largest = np.arange(len(logits)), logits.argmax(axis=1)
        distance = logits - logits[rows, largest][:, None]
        others = np.exp(distance)
        others[rows, largest] = 0
        return distance - np.log1p(others.sum(axis=1))[:, None]

    def summary(self, *, level: float = 0.95, robust: bool = False) -> str:
        """The formula that was minimized, and :meth:`xentjax.LogisticFit.summary` with the names of the features.

        Without a penalty, coefficients of K classes are those relative to ``classes_[0]``, which have errors.

        Raises:
          ValueError: there is no single fit: all weight was in one class, or cross-validation did not ``refit``.
        """
        check_is_fitted(self)
        if self.result_ is None:
            raise ValueError(
                f"{type(self).__name__}.summary: there is no single fit: all weight was in one class, or refit=False"
            )
        table = self.result_.summary(getattr(self, "feature_names_in_", None), level=level, robust=robust)
        return f"minimizes {self.formula_}\n{table}"

    # -- sparse coefficients -------------------------------------------------------------------------------------------

    def sparsify(self) -> LogisticRegression:
        """Turn ``coef_`` into a sparse matrix, which takes less where an L1 penalty made most of it 0."""
        check_is_fitted(self)
        self.coef_ = sparse.csr_matrix(self.coef_)
        return self

    def densify(self) -> LogisticRegression:
        """Turn ``coef_`` back into an array."""
        check_is_fitted(self)
        self.coef_ = self.coef_.toarray() if sparse.issparse(self.coef_) else self.coef_
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_class = self.solver != "liblinear"
        return tags


def encoded(estimator: Any, x: Any, y: Any, sample_weight: Any) -> tuple[Problem, Any]:
    """The problem with classes by number, and the labels that the numbers stand for."""
    check_classification_targets(y)
    classes, numbers = np.unique(y, return_inverse=True)
    check_classes(estimator.solver, classes)
    problem = Problem.of(estimator, x, numbers, classes, sample_weight)
    if len(problem.present) < 2:
        only = classes.tolist()[problem.present[0]]
        raise ValueError(f"{problem.name}: only samples of one class, {only!r}, have a weight above 0")
    return problem, classes
