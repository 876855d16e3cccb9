"""The result of a fit: parameters, certificate, and what statistics makes of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from xentjax.models import inference
from xentjax.models.logistic import LogisticParams
from xentjax.solvers.minimize import History
from xentjax.solvers.status import Status, entries
from xentjax.training.fit_summary import summary_of


def _as_the_fit(method: Callable[..., Any]) -> Callable[..., Any]:
    """For a fit whose fields are arrays of NumPy: computed with their own bits, whatever JAX's configuration, and given
    as arrays of NumPy."""

    @functools.wraps(method)
    def run(self: LogisticFit, *args: Any, **options: Any) -> Any:
        if not isinstance(self.objective, (np.ndarray, np.generic)):
            return method(self, *args, **options)
        with jax.enable_x64(True):
            return jax.device_get(method(self, *args, **options))

    return run


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogisticFit:
    """A fitted logistic or softmax regression; ``print(fit.summary())`` is a table of it.

    A pytree: under ``vmap`` every field has a leading axis, and so has what is computed from it. ``jax.device_get``
    makes one of NumPy's arrays, which keeps 64 bits where JAX is not configured for them.

    Attributes:
      params: coefficients and bias for the features as given.
      objective: the penalized mean loss in nats.
      gradient_norm: the gradient's largest component, in units of standardized features.
      newton_decrement: by how much the objective could still fall, as a share of it: gᵀH⁻¹g / 2 over the objective.
      steps: of the solver.
      status: how it ended; ``message`` says it in words.
      history: objective and gradient norm of each step.
      dependent: ``[d]``, columns that are combinations of those before them, or constant.
      direction: parameters along which the classes are separated, the largest weight 1; NaN where nothing does so.
      completely_separated: whether no row lies between the classes.
      log_likelihood: of the rows with their weights, without the penalty.
      null_log_likelihood: the same of the model without features.
      num_observations: the sum of the weights.
      degrees_of_freedom: the number of parameters that are determined; with a quadratic penalty their effective number,
        with an L1 penalty the number of those that are not 0.
      covariance: of the raveled parameters (weights, then bias), ``[p, p]``; None if it was not asked for.
      robust_covariance: the same, whatever the distribution of y (HC0).
      solver: its name.
      reason: why it was this one.
      with_l1: whether there is an L1 penalty; there are no covariances then.
    """

    params: LogisticParams
    objective: jax.Array
    gradient_norm: jax.Array
    newton_decrement: jax.Array
    steps: jax.Array
    status: Status
    history: History
    dependent: jax.Array
    direction: LogisticParams
    completely_separated: jax.Array
    log_likelihood: jax.Array
    null_log_likelihood: jax.Array
    num_observations: jax.Array
    degrees_of_freedom: jax.Array
    covariance: jax.Array | None
    robust_covariance: jax.Array | None
    solver: str = dataclasses.field(metadata={"static": True})
    reason: str = dataclasses.field(default="", metadata={"static": True})
    with_l1: bool = dataclasses.field(default=False, metadata={"static": True})

    def __getitem__(self, index: Any) -> LogisticFit:
        """Of many fits the one with this number, or some of them."""
        return entries(self, index, np.shape(self.status.code))

    @property
    def precision(self) -> str:
        """The dtype that the fit was computed in."""
        return str(self.objective.dtype)

    # -- inference ---------------------------------------------------------------------------------------------------

    @property
    def message(self) -> str:
        """The status in words, with what to do, and the columns or classes that are concerned."""
        return self.explanation()

    def explanation(self, names: Sequence[str] | None = None, classes: Sequence[str] | None = None) -> str:
        """The message with the names of features and classes, by default their numbers."""
        text = self.status.message
        if np.ndim(self.status.code) == 0:
            if self.status == "rank_deficient":
                text += f". Columns that depend on others: {_named(np.flatnonzero(np.asarray(self.dependent)), names)}"
            if self.status == "separated":
                text += ". " + self._separation(names, classes)
        return text

    def _separation(self, names: Sequence[str] | None, classes: Sequence[str] | None) -> str:
        weights = np.abs(np.asarray(self.direction.weights))
        if np.isnan(weights).any() or weights.size == 0:
            return "A class has no row with a weight above 0"
        how = "completely" if bool(self.completely_separated) else "but for ties"
        of_features = weights if weights.ndim == 1 else weights.max(axis=1)
        text = f"Separated {how} by columns {_named(np.flatnonzero(of_features), names)}"
        if weights.ndim == 2:
            table = np.vstack([np.asarray(self.direction.weights), np.asarray(self.direction.bias)])
            apart = np.flatnonzero(np.abs(table - np.median(table, axis=1, keepdims=True)).max(axis=0) > 1e-6)
            text += f" (classes {_named(apart, classes)})"
        return text

    @property
    @_as_the_fit
    def std_err(self) -> LogisticParams:
        """Standard errors from the model; NaN for what is not determined.

        Raises:
          ValueError: the fit was made without covariances, as every one with an L1 penalty is.
        """
        return self._deviations(self.covariance)

    @property
    @_as_the_fit
    def robust_std_err(self) -> LogisticParams:
        """Standard errors that hold whatever the distribution of y (HC0)."""
        return self._deviations(self.robust_covariance)

    def _required(self, covariance: Any) -> jax.Array:
        if covariance is None and self.with_l1:
            raise ValueError(
                "the fit has no covariances: with an L1 penalty they are not defined. Fit the features that it chose "
                "without l1 on other rows, or bootstrap"
            )
        if covariance is None:
            raise ValueError("the fit has no covariances: ask for them with fit_logistic(..., inference=True)")
        return covariance

    def _deviations(self, covariance: Any) -> LogisticParams:
        covariance = self._required(covariance)
        variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
        # A parameter that is 0 by its definition, as those of class 0, has no error.
        deviations = jnp.sqrt(jnp.where(variance > 0, variance, jnp.nan))
        shape, cut = self.params.weights.shape, deviations.shape[-1] - self._biases
        return LogisticParams(
            deviations[..., :cut].reshape(shape), deviations[..., cut:].reshape(jnp.shape(self.params.bias))
        )

    @property
    def _biases(self) -> int:
        return int(np.prod(jnp.shape(self.params.bias)[jnp.ndim(self.status.code) :], dtype=int))

    @property
    @_as_the_fit
    def z_values(self) -> LogisticParams:
        """Parameters over their standard errors."""
        return jax.tree.map(lambda p, s: p / s, self.params, self.std_err)

    @property
    @_as_the_fit
    def p_values(self) -> LogisticParams:
        """The probability of a z at least as large where the parameter is 0: erfc(|z|/√2)."""
        return jax.tree.map(inference.two_sided, self.z_values)

    @_as_the_fit
    def confidence_interval(
        self, level: float = 0.95, *, robust: bool = False
    ) -> tuple[LogisticParams, LogisticParams]:
        """Lower and upper ends of Wald intervals.

        Raises:
          ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"confidence_interval: level must be between 0 and 1, got {level}")
        deviations = self.robust_std_err if robust else self.std_err
        reach = -jax.scipy.special.ndtri((1 - level) / 2)
        low = jax.tree.map(lambda p, s: p - reach * s, self.params, deviations)
        high = jax.tree.map(lambda p, s: p + reach * s, self.params, deviations)
        return low, high

    @_as_the_fit
    def wald_test(self, restriction: Any, value: Any = 0.0, *, robust: bool = False) -> tuple[jax.Array, jax.Array]:
        """Statistic and p-value of the hypothesis R β = r for the raveled parameters β (weights, then bias).

        Args:
          restriction: R ``[q, p]`` or ``[p]``.
          value: r, a number or ``[q]``.
          robust: whether to use the robust covariance.

        Raises:
          ValueError: R or r have another shape, or a row of R follows from the others.
        """
        covariance = self._required(self.robust_covariance if robust else self.covariance)
        rows = jnp.atleast_2d(jnp.asarray(restriction, covariance.dtype))
        parameters = ravel_pytree(self.params)[0]
        if rows.shape[1] != parameters.size:
            raise ValueError(
                f"wald_test: restriction has shape {rows.shape}, but needs [q, {parameters.size}], a column a parameter"
            )
        if np.shape(value) not in ((), rows.shape[:1]):
            raise ValueError(f"wald_test: value has shape {np.shape(value)}, but needs () or {rows.shape[:1]}")
        if not isinstance(rows, jax.core.Tracer) and np.linalg.matrix_rank(np.asarray(rows)) < rows.shape[0]:
            raise ValueError("wald_test: a row of restriction follows from the others: leave it out")
        # What no row asks about may be undetermined.
        asked = jnp.any(rows != 0, axis=0)
        covariance = jnp.where(asked[:, None] & asked, covariance, 0)
        distance = rows @ parameters - value
        statistic = distance @ jnp.linalg.solve(rows @ covariance @ rows.T, distance)
        return statistic, inference.chi_squared_tail(statistic, rows.shape[0])

    @_as_the_fit
    def likelihood_ratio_test(self, smaller: LogisticFit | None = None) -> tuple[jax.Array, jax.Array]:
        """Statistic and p-value of a smaller model, fitted to the same rows, against this one.

        By default the smaller one is that without features. For fits without a penalty.

        Raises:
          ValueError: it has as many parameters as this one, or more.
        """
        other = self.null_log_likelihood if smaller is None else smaller.log_likelihood
        fewer = (self._biases - (self._biases > 1)) if smaller is None else smaller.degrees_of_freedom
        statistic = 2 * (self.log_likelihood - other)
        more = self.degrees_of_freedom - fewer
        if smaller is not None and not isinstance(more, jax.core.Tracer) and np.any(np.asarray(more) <= 0):
            raise ValueError("likelihood_ratio_test: the smaller model needs fewer parameters than this one")
        return statistic, inference.chi_squared_tail(statistic, more)

    @property
    @_as_the_fit
    def pseudo_r2(self) -> jax.Array:
        """McFadden's: 1 - log-likelihood over that of the model without features."""
        return 1 - self.log_likelihood / self.null_log_likelihood

    @property
    @_as_the_fit
    def aic(self) -> jax.Array:
        """2 k - 2 log-likelihood, k being the degrees of freedom."""
        return 2 * self.degrees_of_freedom - 2 * self.log_likelihood

    @property
    @_as_the_fit
    def bic(self) -> jax.Array:
        """k log(number of observations) - 2 log-likelihood."""
        return self.degrees_of_freedom * jnp.log(self.num_observations) - 2 * self.log_likelihood

    @_as_the_fit
    def summary(
        self, names: Any = None, *, level: float = 0.95, robust: bool = False, classes: Sequence[str] | None = None
    ) -> str:
        """A table of the fit: how it ended, how well it fits, and each coefficient with its error.

        Args:
          names: of the features, by default x0, x1, ...
          level: of the confidence intervals.
          robust: whether errors are those that hold whatever the distribution of y.
          classes: their names, by default their numbers.

        Raises:
          ValueError: it is not one fit but many, or there is not a name for each feature or class.
        """
        return summary_of(self, names, level, robust, classes)


def _named(indices: Any, names: Sequence[str] | None) -> str:
    shown = ", ".join(str(i if names is None else names[i]) for i in indices[:10])
    return shown + (f" and {len(indices) - 10} more" if len(indices) > 10 else "")
