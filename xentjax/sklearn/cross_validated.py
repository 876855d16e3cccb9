"""Logistic regression whose penalty is chosen by cross-validation, as an estimator of scikit-learn."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn import config_context, get_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import Bunch, metadata_routing
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.validation import validate_data

from xentjax.sklearn.estimator import LogisticRegression, encoded
from xentjax.sklearn.parameters import Penalty, check_parameters, check_solver, warn_of_penalty
from xentjax.sklearn.problem import Fitted, Problem, weights_of_samples


class LogisticRegressionCV(LogisticRegression):
    r"""Logistic and softmax regression with the penalty of the best score in cross-validation.

    The problem of each fold and penalty is that of :class:`LogisticRegression`, with the weights of the fold's own
    samples in :math:`\alpha = 1/(C\sum_i s_i)`. Each path over C starts at the model without features and goes on from
    one minimum to the next; a fold is the whole data with weight 0 outside, so that all folds share one compiled
    program. A class that a fold lacks has probability 0 there.

    Args:
      Cs: values of C, or how many to take between 1e-4 and 1e4.
      l1_ratios: values of ``l1_ratio``; None for 0 alone.
      fit_intercept, dual, penalty, solver, tol, max_iter, class_weight, intercept_scaling, random_state, verbose: as in
        :class:`LogisticRegression`; ``"balanced"`` weights are those of all data.
      cv: the folds: a number, a splitter, or an iterable of splits; by default five, stratified, or fewer where no
        class has five samples.
      scoring: the name of a score, or a scorer; None for the accuracy. By default the log-likelihood
        ``"neg_log_loss"``, as in scikit-learn from 1.11 on.
      n_jobs: without effect: JAX uses the cores by itself.
      refit: whether the result is a fit to all data with the best penalty, rather than the mean of the folds' best.
      use_legacy_attributes: whether attributes have the layout that scikit-learn had before 1.10.

    Attributes:
      classes_, coef_, intercept_, result_, formula_, n_features_in_, feature_names_in_: as in
        :class:`LogisticRegression`; ``result_`` and ``formula_`` are those of the refit, None without one.
      Cs_, l1_ratios_: the values tried.
      C_, l1_ratio_: the best of them (their means over the folds without ``refit``).
      scores_: ``[folds, l1_ratios, Cs]``.
      coefs_paths_: ``[folds, l1_ratios, Cs, K, d + 1]``, intercepts last (without intercept d; two classes: K = 1).
      n_iter_: steps, ``[folds, l1_ratios, Cs]``.

    The legacy layout has dictionaries by class of ``[folds, Cs, l1_ratios]`` and ``[folds, Cs, l1_ratios, d + 1]``
    (without the axis of l1_ratios where that is None), ``n_iter_`` of ``[1, folds, Cs, l1_ratios]``, and C and l1_ratio
    once for each class.

    Example:
      >>> from sklearn.datasets import load_iris
      >>> from xentjax.sklearn import LogisticRegressionCV
      >>> x, y = load_iris(return_X_y=True)
      >>> model = LogisticRegressionCV(Cs=[0.01, 1.0, 100.0]).fit(x, y)
      >>> model.C_, model.scores_.shape, round(model.score(x, y), 3)
      (100.0, (5, 1, 3), -0.042)
    """

    # The scorer asks for weights, not the method: sample_weight of ``score`` is routed to it.
    __metadata_request__score = {"sample_weight": metadata_routing.UNUSED}  # noqa: RUF012

    def __init__(
        self,
        *,
        Cs: int | Sequence[float] = 10,
        l1_ratios: Sequence[float] | None = None,
        fit_intercept: bool = True,
        cv: Any = None,
        dual: bool = False,
        penalty: str = "deprecated",
        scoring: Any = "neg_log_loss",
        solver: Any = "auto",
        tol: float | None = None,
        max_iter: int = 1000,
        class_weight: dict | str | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1.0,
        random_state: Any = None,
        use_legacy_attributes: bool = False,
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.dual = dual
        self.penalty = penalty
        self.scoring = scoring
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.refit = refit
        self.intercept_scaling = intercept_scaling
        self.random_state = random_state
        self.use_legacy_attributes = use_legacy_attributes

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> LogisticRegressionCV:
        """Fit all folds and penalties, and then all data with the best penalty.

        Args:
          X, y, sample_weight: as in :class:`LogisticRegression`; the weights go to the scorer, too (with metadata
            routing, if it asks for them).
          **params: what splitter and scorer ask for, with metadata routing.
        """
        check_parameters(self)
        penalties = self._penalties()
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], order="C")
        sample_weight = None if sample_weight is None else weights_of_samples(X, sample_weight)
        problem, classes = encoded(self, X, y, sample_weight)
        routed = self._routed("fit", sample_weight, params)
        # Stratified folds need as many samples in some class.
        cv = max(2, min(5, np.bincount(problem.y).max())) if self.cv is None else self.cv
        folds = list(check_cv(cv, y, classifier=True).split(X, y, **routed.splitter.split))
        scorer = _with_classes(self._get_scorer(), classes)
        # [folds][l1_ratios][Cs]
        found = [_paths(problem, train, penalties) for train, _ in folds]
        scores = np.array(
            [
                _scores(paths, scorer, classes, X[test], y[test], _taken(routed.scorer.score, test, len(y)))
                for (_, test), paths in zip(folds, found, strict=True)
            ]
        )
        self.classes_ = classes
        self.Cs_ = np.array([penalty.C for penalty in penalties[0]])
        self.l1_ratios_ = np.array([row[0].l1_ratio for row in penalties])
        self._choose(problem, penalties, found, scores)
        self._lay_out(found, scores)
        messages = [m for paths in found for path in paths for one in path for m in one.warnings(self.solver, classes)]
        for message in dict.fromkeys(messages):
            warnings.warn(f"{message} ({messages.count(message)} fits)", ConvergenceWarning, stacklevel=2)
        return self

    def _penalties(self) -> list[list[Penalty]]:
        """The penalties of each l1_ratio, by C."""
        ratios = self.l1_ratios
        if self.penalty != "deprecated":
            warn_of_penalty(self, stacklevel=4)
            if self.penalty == "elasticnet" and ratios is None:
                raise ValueError("LogisticRegressionCV: penalty='elasticnet' needs l1_ratios, numbers between 0 and 1")
            ratios = ratios if self.penalty == "elasticnet" else [float(self.penalty == "l1")]
        Cs: Any = self.Cs
        if isinstance(Cs, Integral) and not isinstance(Cs, bool):
            Cs = np.logspace(-4, 4, max(int(Cs), 0))
        ratios = [0.0] if ratios is None else ratios
        self._require_numbers("l1_ratios", ratios, "numbers between 0 and 1", lambda value: 0 <= value <= 1)
        self._require_numbers("Cs", Cs, "numbers above 0, or how many", lambda value: value > 0)
        penalties = [[Penalty(float(C), None, float(ratio)) for C in Cs] for ratio in ratios]
        for row in penalties:
            for penalty in row:
                check_solver(self.solver, penalty)
        return penalties

    def _require_numbers(self, name: str, values: Any, needed: str, good: Any) -> None:
        numbers = list(values) if isinstance(values, Iterable) else []
        real = lambda value: isinstance(value, Real) and not isinstance(value, bool)
        if not numbers or not all(real(value) and good(value) for value in numbers):
            raise ValueError(f"{type(self).__name__}: {name} must be {needed}; got {name}={getattr(self, name)!r}")

    def _choose(self, problem: Problem, penalties: Any, found: Any, scores: Any) -> None:
        """The best penalty and its coefficients, in scikit-learn's order: the first C, then the first l1_ratio."""
        by_c = scores.swapaxes(1, 2)
        if self.refit:
            c, ratio = np.unravel_index(np.argmax(by_c.sum(axis=0)), by_c.shape[1:])
            self.C_: Any = float(self.Cs_[c])
            self.l1_ratio_: Any = float(self.l1_ratios_[ratio])
            start = [np.mean([getattr(paths[ratio][c], part) for paths in found], axis=0) for part in _PARTS]
            refitted = problem.fitted(penalties[ratio][c], start, inference=True)
            self._keep(refitted, penalties[ratio][c].formula(problem.total))
            for message in refitted.warnings(self.solver, self.classes_):
                warnings.warn(message, ConvergenceWarning, stacklevel=3)
            return
        best = [np.unravel_index(np.argmax(fold), fold.shape) for fold in by_c]
        chosen = [paths[ratio][c] for paths, (c, ratio) in zip(found, best, strict=True)]
        self.coef_, self.intercept_ = (np.mean([getattr(one, part) for one in chosen], axis=0) for part in _PARTS)
        self.C_ = float(np.mean([self.Cs_[c] for c, _ in best]))
        self.l1_ratio_ = float(np.mean([self.l1_ratios_[ratio] for _, ratio in best]))
        self.result_ = self.formula_ = None

    def _lay_out(self, found: Any, scores: Any) -> None:
        """The attributes of all folds and penalties."""
        self.scores_: Any
        self.coefs_paths_: Any
        rows = lambda one: np.column_stack([one.coef, one.intercept] if self.fit_intercept else [one.coef])
        coefs = np.array([[[rows(one) for one in path] for path in paths] for paths in found])
        steps = np.array([[[one.steps for one in path] for path in paths] for paths in found], np.int32)
        if not self.use_legacy_attributes:
            self.scores_, self.coefs_paths_, self.n_iter_ = scores, coefs, steps
            return
        classes = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        scores, steps, coefs = scores.swapaxes(1, 2), steps.swapaxes(1, 2), coefs.swapaxes(1, 2)
        if self.l1_ratios is None:
            scores, steps, coefs = scores[:, :, 0], steps[:, :, 0], coefs[:, :, 0]
        self.scores_ = dict.fromkeys(classes, scores)
        self.coefs_paths_ = {label: coefs[..., k, :] for k, label in enumerate(classes)}
        self.n_iter_ = steps[None]
        self.C_, self.l1_ratio_ = np.full(len(classes), self.C_), np.full(len(classes), self.l1_ratio_)

    # -- scores --------------------------------------------------------------------------------------------------------

    def score(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> float:
        """The score of ``scoring`` on these data."""
        return self._get_scorer()(self, X, y, **self._routed("score", sample_weight, params).scorer.score)

    def _get_scorer(self) -> Any:
        return get_scorer("accuracy" if self.scoring is None else self.scoring)

    def _routed(self, method: str, sample_weight: Any, params: dict[str, Any]) -> Any:
        given = params if sample_weight is None else {**params, "sample_weight": sample_weight}
        if get_config()["enable_metadata_routing"]:
            # The weights of fit are its own argument; scorer and splitter get them where they ask for them.
            return process_routing(self, method, **given)
        if params:
            raise ValueError(
                f"LogisticRegressionCV.{method}: passing {sorted(params)} is only supported if "
                "enable_metadata_routing=True: sklearn.set_config(enable_metadata_routing=True)"
            )
        return Bunch(splitter=Bunch(split={}), scorer=Bunch(score=given))

    def get_metadata_routing(self) -> MetadataRouter:
        """What fit and score hand on to splitter and scorer."""
        of_scorer = MethodMapping().add(caller="score", callee="score").add(caller="fit", callee="score")
        return (
            MetadataRouter(owner=self)
            .add_self_request(self)
            .add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))
            .add(scorer=self._get_scorer(), method_mapping=of_scorer)
        )


_PARTS = ("coef", "intercept")


def _paths(problem: Problem, train: Any, penalties: Any) -> list[list[Fitted]]:
    """The fits of one fold, by l1_ratio and C."""
    counts = np.bincount(np.arange(problem.x.shape[0])[train], minlength=problem.x.shape[0])
    fold = dataclasses.replace(problem, weights=problem.weights * counts.astype(problem.weights.dtype))
    if not fold.weights.any():
        raise ValueError("sample_weight is zero for all training samples of a fold: there is none to fit to")
    paths = []
    for row in penalties:
        start, path = fold.null_model(), []
        for penalty in row:
            one = fold.fitted(penalty, start)
            start = one.coef, one.intercept
            path.append(one)
        paths.append(path)
    return paths


def _scores(paths: Any, scorer: Any, classes: Any, X: Any, y: Any, params: dict[str, Any]) -> list[list[float]]:
    """The scores of one fold, by l1_ratio and C."""
    model = LogisticRegression()
    model.classes_, model.n_features_in_ = classes, X.shape[1]
    scores: list[list[float]] = []
    for path in paths:
        scores.append([])
        for one in path:
            model.coef_, model.intercept_ = one.coef, one.intercept
            scores[-1].append(scorer(model, X, y, **params))
    return scores


def _with_classes(scorer: Any, classes: Any) -> Any:
    """A scorer that knows of all classes, where its score takes them: a fold's own samples may lack one."""
    takes = inspect.signature(scorer._score_func).parameters if hasattr(scorer, "_score_func") else {}
    if "labels" not in takes:
        return scorer
    known = {"labels": classes}
    if len(classes) == 2 and "pos_label" in takes:
        known["pos_label"] = classes[1]

    def score(model: Any, X: Any, y: Any, **params: Any) -> Any:
        # Scorers take further arguments only so.
        with config_context(enable_metadata_routing=True):
            return scorer(model, X, y, **known, **params)

    return score


def _taken(params: dict[str, Any], indices: Any, n: int) -> dict[str, Any]:
    """Parameters that have something for each sample, for these samples."""
    is_of_samples = lambda value: hasattr(value, "__len__") and not isinstance(value, str) and len(value) == n
    return {name: np.asarray(v)[indices] if is_of_samples(v) else v for name, v in params.items()}
