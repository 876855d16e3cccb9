"""The tables of a fit: how it ended, and each coefficient with its error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xentjax.models import inference
from xentjax.models.logistic import LogisticParams

if TYPE_CHECKING:
    from xentjax.training.fit_result import LogisticFit


def summary_of(fit: LogisticFit, names: Any, level: float, robust: bool, classes: Sequence[str] | None) -> str:
    """The table that :meth:`LogisticFit.summary` gives."""
    if np.ndim(fit.status.code):
        raise ValueError("summary: these are many fits: take one of them, fits[i]")
    weights, bias = np.asarray(fit.params.weights), np.asarray(fit.params.bias)
    names = [f"x{j}" for j in range(len(weights))] if names is None else list(names)
    if len(names) != len(weights):
        raise ValueError(f"summary: got {len(names)} names for {len(weights)} features")
    if classes is not None and len(classes) != max(bias.size, 2):
        raise ValueError(f"summary: got {len(classes)} names for {max(bias.size, 2)} classes")
    kind = "Logistic regression" if weights.ndim == 1 else f"Softmax regression, {bias.size} classes"
    if classes is not None and weights.ndim == 1:
        kind += f" of {classes[1]} against {classes[0]}"
    labels = Labels.of(names)
    width = labels.width + 62
    head = [
        ("status", str(fit.status), "observations", f"{float(fit.num_observations):.10g}"),
        ("solver", fit.solver, "degrees of freedom", f"{float(fit.degrees_of_freedom):.6g}"),
        ("steps", str(int(fit.steps)), "log-likelihood", f"{float(fit.log_likelihood):.6g}"),
        ("objective", f"{float(fit.objective):.8g}", "of the null model", f"{float(fit.null_log_likelihood):.6g}"),
        ("gradient", f"{float(fit.gradient_norm):.2e}", "pseudo-R²", f"{float(fit.pseudo_r2):.4g}"),
        ("decrement", f"{float(fit.newton_decrement):.2e}", "AIC, BIC", f"{float(fit.aic):.6g}, {float(fit.bic):.6g}"),
    ]
    lines = [kind, "=" * width]
    lines += [f"{a:<11}{b:<26}{c:<20}{d:>{width - 57}}" for a, b, c, d in head]
    lines += ["-" * width, *_coefficients(fit, labels, level, robust, classes), "=" * width]
    lines += [f"solver: {fit.solver}, {fit.reason}", computed_in(fit.precision)]
    if fit.status != "converged":
        lines += [f"{fit.status}: {fit.explanation(names, classes)}"]
    return "\n".join(lines)


def computed_in(precision: str) -> str:
    """The line of a summary that says how many digits there are to expect."""
    hint = "" if precision == "float64" else "; in float64 after jax.config.update('jax_enable_x64', True)"
    return f"computed in {precision}{hint}"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The first column of a table of coefficients: a name for each feature and ``(intercept)``, all of one width."""

    texts: list[str]
    width: int

    @classmethod
    def of(cls, names: Sequence[Any]) -> Labels:
        shorter = [name if len(name) <= 32 else name[:31] + "…" for name in map(str, names)]
        width = max(16, *map(len, shorter)) + 2 if shorter else 18
        return cls([f"{name:<{width}}" for name in [*shorter, "(intercept)"]], width)

    def rows(
        self, columns: Iterable[Any], formats: Sequence[str], classes: Sequence[str], is_reference: Any
    ) -> Iterator[str]:
        """A line for each coefficient, of columns ``[d + 1, K]``; of K > 1 classes one after the other, but for those
        that the others refer to, ``[K]``."""
        columns = list(columns)
        for c, reference in enumerate(is_reference):
            if len(is_reference) > 1:
                yield classes[c] + (" (reference)" if reference else "")
                if reference:
                    continue
            for j, text in enumerate(self.texts):
                yield text + "".join(format(column[j, c], spec) for column, spec in zip(columns, formats, strict=True))


def stacked(params: LogisticParams) -> np.ndarray[Any, Any]:
    """Weights with the bias below them ``[d + 1, K]``; K is 1 for two classes."""
    bias = np.asarray(params.bias).reshape(1, -1)
    return np.vstack([np.asarray(params.weights).reshape(-1, bias.size), bias])


def _coefficients(
    fit: LogisticFit, labels: Labels, level: float, robust: bool, classes: Sequence[str] | None
) -> list[str]:
    table = stacked(fit.params)
    of_classes = [f"class {c}" for c in range(table.shape[1])] if classes is None else list(classes)
    if fit.covariance is None:
        rows = [" " * labels.width + "".join(f"{c[:11]:>12}" for c in of_classes)] if table.shape[1] > 1 else []
        return rows + [
            label + "".join(f"{v:>12.5g}" for v in row) for label, row in zip(labels.texts, table, strict=True)
        ]
    columns = columns_of(fit, level, robust)
    kind = "robust err" if robust else "std err"
    title = f"{'coefficient':>12}{kind:>11}{'z':>9}{'P>|z|':>8}{f'[{100 * level:g}%':>11}{'interval]':>11}"
    formats = (">12.5g", ">11.4g", ">9.3f", ">8.3f", ">11.4g", ">11.4g")
    is_reference = np.isnan(columns["std_err"]).all(axis=0) & ~table.any(axis=0)
    return [" " * labels.width + title, *labels.rows(columns.values(), formats, of_classes, is_reference)]


def columns_of(fit: LogisticFit, level: float, robust: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Coefficients as :func:`stacked`, and where there are covariances their errors, z, p-values and intervals."""
    columns = {"coefficient": stacked(fit.params)}
    if fit.covariance is None:
        return columns
    errors = stacked(fit.robust_std_err if robust else fit.std_err)
    z = columns["coefficient"] / errors
    low, high = map(stacked, fit.confidence_interval(level, robust=robust))
    p_value = np.asarray(inference.two_sided(z))
    return columns | {"std_err": errors, "z": z, "p_value": p_value, "low": low, "high": high}
