"""What the estimators' parameters may be, and what they mean to :func:`fit_logistic`."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from xentjax.training.solvers_by_name import PROXIMAL, SOLVERS

#: scikit-learn's names of solvers, and ours for the same method; "auto" stands for one that we have not.
_EQUIVALENT = {
    "lbfgs": "lbfgs",
    "newton-cholesky": "newton",
    "newton-cg": "newton-cg",
    "liblinear": "auto",
    "sag": "auto",
    "saga": "auto",
}

#: Solvers that need a penalty without kinks: those of scikit-learn that do, and ours.
_SMOOTH = {"lbfgs", "newton-cholesky", "newton-cg", "sag", *SOLVERS} - {*PROXIMAL}


class Penalty(NamedTuple):
    """C, or alpha where it is not None, and the share of the L1 norm."""

    C: float
    alpha: float | None
    l1_ratio: float

    def factors(self, total: float) -> tuple[float, float]:
        """The factors l1 and l2 of :func:`fit_logistic` for weights that sum to ``total``."""
        alpha = 1 / (self.C * total) if self.alpha is None else self.alpha
        return self.l1_ratio * alpha, (1 - self.l1_ratio) * alpha

    @property
    def is_none(self) -> bool:
        return bool(np.isinf(self.C)) if self.alpha is None else self.alpha == 0

    def formula(self, total: float) -> str:
        """What is minimized with weights that sum to ``total``, in words and numbers."""
        loss, r = "Σ s ℓ / Σ s", self.l1_ratio
        if self.is_none:
            return f"{loss}, without a penalty"
        terms = {0.0: "½ alpha ‖w‖²", 1.0: "alpha ‖w‖₁"}
        term = terms.get(r, "alpha (½ (1 - r) ‖w‖² + r ‖w‖₁)") + ("" if r in terms else f", r = l1_ratio = {r:g}")
        if self.alpha is None:
            sizes = f"alpha = 1 / (C Σ s) = {1 / (self.C * total):.6g} for C = {self.C:g}, Σ s = {total:g}"
        else:
            sizes = f"alpha = {self.alpha:g} = 1 / (C Σ s) for C = {1 / (self.alpha * total):.6g}, Σ s = {total:g}"
        return f"{loss} + {term}, {sizes}"


def check_parameters(estimator: Any) -> None:
    """ValueError or TypeError for a parameter that is none; all but those of the penalty."""
    for name in ("fit_intercept", "dual", "warm_start", "refit", "use_legacy_attributes"):
        value = getattr(estimator, name, True)
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{_name(estimator)}: {name} must be True or False, got {value!r}")
    _require_number(estimator, "intercept_scaling", "above 0", lambda value: value > 0)
    if estimator.tol is not None:
        _require_number(estimator, "tol", "None, or 0 or more", lambda value: value >= 0)
    steps: Any = estimator.max_iter
    if not isinstance(steps, Integral) or isinstance(steps, bool) or not 0 <= int(steps) < 2**31:
        raise ValueError(f"{_name(estimator)}: max_iter must be a whole number of 0 or more, got {steps!r}")
    given = estimator.class_weight
    if not (given is None or isinstance(given, dict) or (isinstance(given, str) and given == "balanced")):
        raise ValueError(f"{_name(estimator)}: class_weight must be None, 'balanced' or a dict, got {given!r}")
    if isinstance(estimator.solver, str):
        names = dict.fromkeys(("auto", *SOLVERS, *_EQUIVALENT))
        if estimator.solver not in names:
            listed = ", ".join(map(repr, names))
            raise ValueError(f"{_name(estimator)}: solver must be {listed}, or a Solver, got {estimator.solver!r}")
    if estimator.solver != "liblinear" and estimator.dual:
        raise ValueError(f"Solver {estimator.solver} supports only dual=False, got dual={estimator.dual}")


def penalty_of(estimator: Any) -> Penalty:
    """The penalty that an estimator's parameters ask for, those that are deprecated among them."""
    _require_number(estimator, "C", "above 0", lambda value: value > 0)
    alpha = estimator.alpha
    if alpha is not None:
        _require_number(estimator, "alpha", "None, or finite and 0 or more", lambda value: 0 <= value < np.inf)
        if estimator.C != 1:
            raise ValueError(f"{_name(estimator)}: got alpha={alpha} and C={estimator.C}, but takes only one of them")
    C, l1_ratio = estimator.C, estimator.l1_ratio
    if l1_ratio is not None:
        _require_number(estimator, "l1_ratio", "from 0 to 1", lambda value: 0 <= value <= 1)
    elif estimator.penalty == "deprecated":
        warnings.warn(
            "'l1_ratio=None' was deprecated in scikit-learn 1.8. Use a number from 0 to 1.", FutureWarning, stacklevel=3
        )
    if estimator.penalty != "deprecated":
        C, alpha, l1_ratio = _from_name(estimator, C, alpha, l1_ratio)
    # Numbers of Python's: a program is compiled anew for NumPy's.
    penalty = Penalty(float(C), None if alpha is None else float(alpha), 0.0 if l1_ratio is None else float(l1_ratio))
    check_solver(estimator.solver, penalty)
    return penalty


def check_solver(solver: Any, penalty: Penalty) -> None:
    """ValueError for a penalty that a solver cannot take; one of scikit-learn's keeps the limits that it has there."""
    smooth = solver in _SMOOTH if isinstance(solver, str) else not getattr(solver, "handles_l1", False)
    if penalty.l1_ratio != 0 and not penalty.is_none and smooth:
        kind = "l1" if penalty.l1_ratio == 1 else "elasticnet"
        name = solver if isinstance(solver, str) else type(solver).__name__
        raise ValueError(
            f"Solver {name} supports only 'l2' or None penalties, got {kind} penalty. Take 'auto', which supports all."
        )
    if solver == "liblinear":
        if 0 < penalty.l1_ratio < 1:
            raise ValueError("Only 'saga' solver supports elasticnet penalty, got solver=liblinear. So does 'auto'.")
        if penalty.is_none:
            raise ValueError("C=np.inf as well as penalty=None is not supported for the liblinear solver")


def check_classes(solver: Any, classes: Any) -> None:
    """ValueError for fewer classes than two, or more than a solver of scikit-learn can take."""
    if solver == "liblinear" and len(classes) > 2:
        raise ValueError(
            "The 'liblinear' solver does not support multiclass classification (n_classes >= 3). Use another solver, "
            "or wrap the estimator in a OneVsRestClassifier."
        )
    if len(classes) < 2:
        raise ValueError(
            "Logistic regression needs samples of at least 2 classes in the data, but the data contains only one "
            f"class: {classes.tolist()[0]!r}"
        )


def own_solver(solver: Any) -> Any:
    """What :func:`fit_logistic` is to take."""
    return _EQUIVALENT.get(solver, solver) if isinstance(solver, str) else solver


def warn_of_penalty(estimator: Any, stacklevel: int) -> None:
    """FutureWarning for the deprecated parameter ``penalty``, ValueError for what it cannot be."""
    names = ("l1", "l2", "elasticnet", None)
    if estimator.penalty not in names:
        raise ValueError(f"{_name(estimator)}: penalty must be one of {names}, got {estimator.penalty!r}")
    warnings.warn(
        "'penalty' was deprecated in scikit-learn 1.8. Use l1_ratio=0 instead of penalty='l2', l1_ratio=1 instead of "
        "penalty='l1', l1_ratio between 0 and 1 instead of penalty='elasticnet', and C=np.inf instead of penalty=None.",
        FutureWarning,
        stacklevel=stacklevel,
    )


def _from_name(estimator: Any, C: Any, alpha: Any, l1_ratio: Any) -> tuple[Any, Any, Any]:
    """C, alpha and l1_ratio for scikit-learn's deprecated parameter ``penalty``."""
    penalty = estimator.penalty
    warn_of_penalty(estimator, stacklevel=5)
    if penalty == "elasticnet":
        if l1_ratio is None:
            raise ValueError("l1_ratio must be specified when penalty is elasticnet.")
        return C, alpha, l1_ratio
    if l1_ratio is not None and 0 < l1_ratio < 1:
        warnings.warn(
            f"l1_ratio parameter is only used when penalty is 'elasticnet'. Got (penalty={penalty})", stacklevel=4
        )
    if penalty is not None and l1_ratio != float(penalty == "l1"):
        warnings.warn(
            f"Inconsistent values: penalty={penalty} with l1_ratio={l1_ratio}. Please use l1_ratio only.", stacklevel=4
        )
    if penalty is None:
        if C != 1:
            warnings.warn("Setting penalty=None will ignore the C and l1_ratio parameters", stacklevel=4)
        return np.inf, None, 0.0
    return C, alpha, float(penalty == "l1")


def _require_number(estimator: Any, name: str, needed: str, good: Any) -> None:
    value = getattr(estimator, name)
    if not isinstance(value, Real) or isinstance(value, bool) or not good(value):
        raise ValueError(f"{_name(estimator)}: {name} must be {needed}, got {value!r}")


def _name(estimator: Any) -> str:
    return type(estimator).__name__
