"""What a regression ends with: its fit, the choice of a path or a bootstrap, and their tables and files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from xentjax.solvers import status as codes
from xentjax.solvers.status import Status
from xentjax.training import run_folder
from xentjax.training.bootstrap import Bootstrap
from xentjax.training.evaluation import Evaluation
from xentjax.training.fit_result import LogisticFit
from xentjax.training.fit_summary import columns_of, stacked
from xentjax.training.machine import Cost
from xentjax.training.path_result import LogisticPath
from xentjax.training.regression_config import InferenceConfig, RegressionConfig

Array = np.ndarray[Any, Any]

#: Ends of a fit whose coefficients are those of a minimum.
_SOLVED = ("converged", "rank_deficient", "precision_limited")


@dataclass(frozen=True)
class Regression:
    """What a regression ends with. Arrays are of NumPy, times in seconds."""

    config: RegressionConfig
    model: run_folder.Model
    fit: LogisticFit
    path: LogisticPath | None
    chosen: int | None
    """Which penalty of the path is that of the fit."""
    bootstrap: Bootstrap | None
    train: Evaluation
    test: Evaluation | None
    deviations: Array
    """``[d]``, the standard deviation of each feature over the training examples, and 1 for a category."""
    cost: Cost
    skipped: int = 0
    """How many rows of the table were left out, as something in them was wrong."""

    @property
    def names(self) -> list[str]:
        return self.model.encoder.feature_names

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it: of a bootstrap there are fewer resamples than asked for."""
        return self.bootstrap is not None and self.bootstrap.made < self.bootstrap.asked

    @property
    def status(self) -> Status:
        return Status(codes.INTERRUPTED) if self.interrupted else self.fit.status

    @property
    def failure(self) -> str | None:
        """Why the coefficients are not those of a minimum, and what to do; None where they are."""
        return None if self.fit.status.names in _SOLVED else f"{self.fit.status}: {self._explanation()}"

    @property
    def history(self) -> tuple[Array, Array, Array]:
        """Number, objective and gradient norm of each step: those of the solver, and the Newton step after them."""
        steps, history = int(self.fit.steps), self.fit.history
        value = np.append(history.value[:steps], self.fit.objective)
        return np.arange(1, steps + 2), value, np.append(history.gradient_norm[:steps], self.fit.gradient_norm)

    def in_precision(self) -> Any:
        """The block in which JAX computes with as many bits as the fit did."""
        return jax.enable_x64(self.config.precision == "float64")

    def text(self) -> str:
        """The tables of the fit, with those of the path before it, or those of the bootstrap behind."""
        wanted = self.config.inference or InferenceConfig()
        classes = self.model.classes
        with self.in_precision():
            tables = [] if self.path is None else [self.path.summary(), self._choice()]
            table = self.fit.summary(self.names, level=wanted.level, robust=wanted.robust, classes=classes)
            tables.append("\n".join([table, *self._notes()]))
        if self.bootstrap is not None:
            tables.append(self.bootstrap.summary(self.fit.params, self.names, classes))
        return "\n\n".join(tables)

    def _notes(self) -> Iterator[str]:
        """What there is to say below the table of the fit."""
        if self.skipped:
            yield f"left out: {self.skipped} rows with something wrong (data.on_bad_rows = 'skip')"
        if self.config.inference is not None and (test := self._likelihood_ratio()) is not None:
            statistic, degrees, p = test.values()
            freedom = f"{degrees:g} degrees of freedom"
            yield f"likelihood ratio against the null model: {statistic:.6g}, {freedom}, p = {p:.3g}"
        dependent = self.fit.status == "rank_deficient" and any(self.model.encoder.of_categories)
        if dependent and not self.config.data.drop_first:
            yield "data.drop_first = true leaves out the first category of each column, which the others then refer to"

    def _likelihood_ratio(self) -> dict[str, float] | None:
        """The test of all coefficients; None where a penalty holds them, or the null model has no intercept."""
        model, fit = self.config.model, self.fit
        if model.l2 or model.l1 or self.path is not None or not model.fit_intercept:
            return None
        if fit.status not in ("converged", "rank_deficient"):
            return None
        statistic, p = fit.likelihood_ratio_test()
        degrees = float(fit.degrees_of_freedom) - max(len(self.model.classes) - 1, 1)
        return {"statistic": float(statistic), "degrees_of_freedom": degrees, "p_value": float(p)}

    def _choice(self) -> str:
        assert self.path is not None
        assert self.config.path is not None
        rules = {
            "min": "of the smallest cross-validated loss",
            "1se": "the largest of a loss within one standard error of the smallest",
        }
        factor = float(self.path.lambdas[self.chosen])
        return f"λ = {factor:.6g} is taken, {rules[self.config.path.rule]} (path.rule = {self.config.path.rule!r})."

    def coefficients(self) -> Iterator[dict[str, Any]]:
        """One row for each feature, and the intercept, of each class; of two classes those of the second."""
        wanted = self.config.inference or InferenceConfig()
        with self.in_precision():
            columns = columns_of(self.fit, wanted.level, wanted.robust)
        if self.bootstrap is not None:
            low, high = self.bootstrap.interval
            columns |= {"bootstrap_std_err": stacked(self.bootstrap.std_err)}
            columns |= {"bootstrap_low": stacked(low), "bootstrap_high": stacked(high)}
        classes = self.model.classes if columns["coefficient"].shape[1] > 1 else self.model.classes[1:]
        for (c, of_class), (j, name) in itertools.product(enumerate(classes), enumerate([*self.names, None])):
            place = {"class": of_class, "feature": name, "intercept": name is None}
            yield place | {key: values[j, c] for key, values in columns.items()}

    def summary(self) -> dict[str, Any]:
        fit = self.fit
        return {
            "kind": run_folder.FIT,
            "name": self.config.name,
            "status": str(self.status),
            "message": self._message(),
            "solver": fit.solver,
            "reason": fit.reason,
            "steps": int(fit.steps),
            "objective_nats": fit.objective,
            "gradient_norm": fit.gradient_norm,
            "newton_decrement": fit.newton_decrement,
            "observations": fit.num_observations,
            "skipped_rows": self.skipped,
            "degrees_of_freedom": fit.degrees_of_freedom,
            "log_likelihood": fit.log_likelihood,
            "null_log_likelihood": fit.null_log_likelihood,
            "pseudo_r2": fit.pseudo_r2,
            "aic": fit.aic,
            "bic": fit.bic,
            "likelihood_ratio": self._likelihood_ratio(),
            "path": self._path_summary(),
            "bootstrap": self._bootstrap_summary(),
            "train": self.train.summary(),
            "test": None if self.test is None else self.test.summary(),
            **self.cost.summary(),
            "coefficients": list(self.coefficients()),
        }

    def _message(self) -> str:
        return self.status.message if self.interrupted else self._explanation()

    def _explanation(self) -> str:
        return self.fit.explanation(self.names, self.model.classes)

    def _path_summary(self) -> dict[str, Any] | None:
        if self.path is None or self.config.path is None:
            return None
        with self.in_precision():
            best, best_1se = int(self.path.best), int(self.path.best_1se)
        assert self.path.folds is not None
        ends = np.concatenate([self.path.status.names, self.path.folds.status.names.ravel()])
        return {
            "rule": self.config.path.rule,
            "chosen": self.chosen,
            "best": best,
            "best_1se": best_1se,
            "lambda": self.path.lambdas[self.chosen],
            "ended": dict(zip(*np.unique(ends, return_counts=True), strict=True)),
        }

    def _bootstrap_summary(self) -> dict[str, Any] | None:
        if self.bootstrap is None:
            return None
        made = self.bootstrap
        return {
            "resamples": made.made, "asked": made.asked, "used": made.used, "level": made.level, "ended": made.ends,
            "message": made.message,
        }  # fmt: skip

    def path_rows(self) -> Iterator[dict[str, Any]]:
        """One row for each penalty of the path."""
        path: Any = self.path
        with self.in_precision():
            columns = {"lambda": path.lambdas, "nonzero": path.nonzero, "objective_nats": path.objective}
            columns |= {"train_nats": path.train_loss, "cross_validated_nats": path.mean_test_loss}
            columns |= {"error": path.test_loss_error, "gradient_norm": path.gradient_norm, "steps": path.steps}
            columns = {key: np.asarray(values) for key, values in columns.items()}
        for i, status in enumerate(path.status.names):
            yield {key: values[i] for key, values in columns.items()} | {"status": str(status)}

    def write(self, folder: Path) -> None:
        """Everything of the run folder but the pictures."""
        run_folder.write_config(folder, self.config)
        self.model.write(folder)
        rows = (
            {"step": s, "value": value, "gradient_norm": norm} for s, value, norm in zip(*self.history, strict=True)
        )
        run_folder.write_json_lines(folder / "metrics.jsonl", rows)
        if self.path is not None:
            run_folder.write_json_lines(folder / "path.jsonl", self.path_rows())
            arrays = {"lambdas": self.path.lambdas, **self.path.params._asdict()}
            save_file(
                {name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / "path.safetensors"
            )
        if self.bootstrap is not None:
            arrays = self.bootstrap.params._asdict()
            save_file({n: np.asarray(a, order="C") for n, a in arrays.items()}, folder / "bootstrap.safetensors")
        (folder / "summary.txt").write_text(self.text() + "\n", encoding="utf-8")
        run_folder.write_json(folder / run_folder.MARK, self.summary())
