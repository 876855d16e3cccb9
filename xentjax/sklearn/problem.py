"""What the estimators fit: features, classes and weights as arrays, fitted once for each penalty."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from numbers import Real
from typing import Any

import jax
import numpy as np
from scipy import sparse
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.class_weight import compute_class_weight

from xentjax.models import one_pass
from xentjax.models.logistic import LogisticParams
from xentjax.models.sparse import SparseRows
from xentjax.sklearn.parameters import Penalty, own_solver
from xentjax.training.fit import fit_logistic
from xentjax.training.fit_result import LogisticFit
from xentjax.training.program_cache import keep_programs

#: Covariances of up to this many parameters are kept: they are what is largest in a fitted estimator.
_INFERENCE = 200

#: The words of scikit-learn's own warnings where they are not "... failed to converge": users' filters look for them.
_TOO_FEW_STEPS = {
    "liblinear": "Liblinear failed to converge, increase the number of iterations.",
    "newton-cholesky": "Newton solver did not converge after {} iterations",
    "sag": "The max_iter was reached which means the coef_ did not converge",
    "saga": "The max_iter was reached which means the coef_ did not converge",
}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Coefficients ``[K, d]`` and intercepts ``[K]``, or ``[1, d]`` and ``[1]`` for two classes, and the whole result.

    ``fit`` is None where all weight is in one class, and ``absent`` are the classes that have none.
    """

    coef: Any
    intercept: Any
    fit: LogisticFit | None
    absent: Any

    @property
    def steps(self) -> int:
        return 0 if self.fit is None else int(self.fit.steps)

    def warnings(self, solver: Any, classes: Any) -> list[str]:
        """What a user must know before using it."""
        found = []
        if self.absent.size:
            names = ", ".join(repr(label) for label in classes[self.absent].tolist())
            found.append(f"no sample of class {names} has a weight: its probability is 0, its intercept infinite")
        if self.fit is not None and self.fit.status != "converged":
            name = solver if isinstance(solver, str) and solver != "auto" else self.fit.solver
            status, steps = str(self.fit.status), f"after {self.steps} iteration(s)"
            if status == "max_steps":
                text = _TOO_FEW_STEPS.get(name, f"{name} failed to converge {steps}").format(self.steps)
                found.append(f"{text} ({status}): {self.fit.message}. Increase the number of iterations.")
            else:
                found.append(f"{name} ended {steps}, {status}: {self.fit.message}")
        return found


@dataclasses.dataclass(frozen=True)
class Problem:
    """Features ``[n, d]``, the classes of the rows by number, and their weights; ``name`` is the estimator's."""

    name: str
    x: Any
    y: Any
    num_classes: int
    weights: Any
    fit_intercept: bool
    solver: Any
    tol: float | None
    max_steps: int

    @classmethod
    def of(cls, estimator: Any, x: Any, y: Any, classes: Any, sample_weight: Any) -> Problem:
        """The problem of an estimator's parameters; y are numbers of classes."""
        weights = weights_of_samples(x, sample_weight)
        if estimator.class_weight is not None:
            weights = weights * _factors(estimator.class_weight, y, classes, weights)[y]
        if sparse.issparse(x):
            with jax.enable_x64(True):
                x = SparseRows.of(x, one_pass.block_rows(x.shape[1], x.dtype))
        return cls(
            name=type(estimator).__name__,
            x=x,
            y=y.astype(np.int32),
            num_classes=len(classes),
            weights=weights,
            fit_intercept=bool(estimator.fit_intercept),
            solver=own_solver(estimator.solver),
            tol=None if estimator.tol is None else float(estimator.tol),
            max_steps=int(estimator.max_iter),
        )

    @property
    def total(self) -> float:
        """The sum of the weights."""
        return float(np.sum(self.weights))

    @property
    def _size(self) -> int:
        return (self.x.shape[1] + 1) * (1 if self.num_classes == 2 else self.num_classes)

    @property
    def present(self) -> Any:
        """The classes that have a weight."""
        return np.flatnonzero(np.bincount(self.y, self.weights, self.num_classes) > 0)

    def fitted(self, penalty: Penalty, init: Any = None, *, inference: bool = False) -> Fitted:
        """The minimum for one penalty, found from coefficients and intercepts ``init`` where these are given.

        A class without weight leaves no minimum where there is an intercept: the loss falls as that class's goes to
        minus infinity. The limit is known, the fit to the other classes, and this is it.
        """
        present = self.present
        if self.fit_intercept and len(present) < self.num_classes:
            return self._without_absent(present, penalty, inference)
        return self._solved(*penalty.factors(self.total), init, inference)

    def _solved(self, l1: float, l2: float, init: Any, inference: bool) -> Fitted:
        keep_programs()
        with jax.enable_x64(True), _errors_of(self.name):
            fit = fit_logistic(
                self.x,
                self.y,
                l2=l2,
                l1=l1,
                weights=self.weights,
                fit_intercept=self.fit_intercept,
                solver=self.solver,
                tol=self.tol,
                max_steps=self.max_steps,
                init=self._as_params(init),
                num_classes=None if self.num_classes == 2 else self.num_classes,
                inference=inference and l1 == 0 and self._size <= _INFERENCE,
            )
        # Numbers of NumPy keep their 64 bits whatever JAX's configuration is, in a pickle too.
        fit = jax.device_get(fit)
        weights, bias = fit.params
        if self.num_classes == 2:
            return Fitted(weights[None].copy(), bias[None].copy(), fit, np.arange(0))
        if l1 == 0 == l2:
            weights, bias = weights - weights.mean(axis=1, keepdims=True), bias - bias.mean()
        return Fitted(weights.T.copy(), bias.copy(), fit, np.arange(0))

    def _without_absent(self, present: Any, penalty: Penalty, inference: bool) -> Fitted:
        absent = np.setdiff1d(np.arange(self.num_classes), present)
        coef = np.zeros((self.num_classes, self.x.shape[1]), self.weights.dtype)
        intercept = np.full(self.num_classes, -np.inf, self.weights.dtype)
        intercept[present] = 0
        fit = None
        if len(present) > 1:
            numbers = np.searchsorted(present, self.y)
            rest = dataclasses.replace(self, y=np.where(self.weights > 0, numbers, 0), num_classes=len(present))
            # Two classes have one logit u, in whose place stand ±u/2: they have half of its square, and all of its
            # absolute value.
            both = len(present) == 2
            l1, l2 = penalty.factors(self.total)
            found = rest._solved(l1, l2 / 2 if both else l2, None, inference)
            coef[present] = np.concatenate([-found.coef, found.coef]) / 2 if both else found.coef
            intercept[present] = np.concatenate([-found.intercept, found.intercept]) / 2 if both else found.intercept
            fit = found.fit
        if self.num_classes == 2:
            return Fitted(coef[1:], np.where(present == 1, np.inf, -np.inf).astype(coef.dtype), fit, absent)
        return Fitted(coef, intercept, fit, absent)

    def _as_params(self, init: Any) -> LogisticParams | None:
        if init is None or not all(np.isfinite(part).all() for part in init):
            return None
        coef, intercept = init
        return LogisticParams(coef[0], intercept[0]) if self.num_classes == 2 else LogisticParams(coef.T, intercept)

    def null_model(self) -> tuple[Any, Any]:
        """Coefficients and intercepts of the model without features: where a path starts."""
        rows = 1 if self.num_classes == 2 else self.num_classes
        shares = np.bincount(self.y, self.weights, self.num_classes) / np.sum(self.weights)
        # A class without weight makes it infinite or NaN, and then no start.
        with np.errstate(divide="ignore", invalid="ignore"):
            bias = np.log(shares)
            bias = bias[1:] - bias[:1] if rows == 1 else bias - bias.mean()
        bias = bias if self.fit_intercept else np.zeros(rows)
        dtype = self.weights.dtype
        return np.zeros((rows, self.x.shape[1]), dtype), bias.astype(dtype)


@contextlib.contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Errors about the arguments of ``fit_logistic`` as errors about an estimator's parameters."""
    try:
        yield
    except (TypeError, ValueError) as error:
        text = re.sub(r"^(fit_logistic|minimize): ", f"{name}: ", str(error)).replace("max_steps", "max_iter")
        raise type(error)(text) from error


def weights_of_samples(x: Any, sample_weight: Any) -> Any:
    """The weight of each row, in the dtype of x."""
    n = x.shape[0]
    if sample_weight is None:
        return np.ones(n, x.dtype)
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n, sample_weight)
    weights = check_array(sample_weight, ensure_2d=False, dtype=x.dtype, input_name="sample_weight")
    if weights.ndim != 1:
        raise ValueError(f"sample_weight must be a number or of shape ({n},), got shape {weights.shape}")
    check_consistent_length(x, weights)
    if weights.min() < 0:
        raise ValueError(f"sample_weight must be 0 or more, got {weights.min()}")
    if not weights.any():
        raise ValueError("sample_weight is zero for all samples: there is none to fit to")
    return weights


def _factors(class_weight: Any, y: Any, classes: Any, weights: Any) -> Any:
    """A factor of the weights for each class; "balanced" ones give all classes that have a weight the same."""
    if not isinstance(class_weight, str):
        factors = compute_class_weight(class_weight, classes=classes, y=classes[y])
        if not (np.all(np.isfinite(factors)) and np.all(factors >= 0)):
            raise ValueError(f"class_weight must be finite and 0 or more, got {class_weight!r}")
        return factors.astype(weights.dtype)
    sums = np.bincount(y, weights, len(classes))
    return (np.sum(sums) / (len(classes) * np.where(sums == 0, 1, sums))).astype(weights.dtype)
