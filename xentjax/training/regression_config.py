"""The configs of regressions: their keys, types and defaults, and what does not go together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat
from pydantic import model_validator as check_model

from xentjax.training.config import DataConfig, ExamplesConfig
from xentjax.training.config_table import Table
from xentjax.training.errors import listed
from xentjax.training.solvers_by_name import PROXIMAL, SOLVERS

Level = Annotated[float, Field(gt=0, lt=1)]

#: The names that the ``[solver]`` table of a regression may have.
REGRESSION_SOLVERS: tuple[str, ...] = ("auto", *SOLVERS)


class RegressionDataConfig(DataConfig):
    """The examples. Features stay in their units: a regression scales them inside, and undoes it."""

    standardize: bool = False


class RegressionSolverConfig(Table):
    """The solver by its name; ``auto`` chooses by the shape of the problem."""

    name: Literal[REGRESSION_SOLVERS] = "auto"  # type: ignore[valid-type]


class RegressionModelConfig(Table):
    """The model: its penalty ½·l2·‖w‖² + l1·‖w‖₁ beside the mean cross-entropy, factors of the classes' weights
    (``"balanced"``, or by the class's name, 1 for others), and whether it has an intercept."""

    l2: NonNegativeFloat = 0.0
    l1: NonNegativeFloat = 0.0
    class_weight: Literal["balanced"] | dict[str, NonNegativeFloat] | None = None
    fit_intercept: bool = True


class RegressionStopConfig(Table):
    """When to stop; by default as the library does: ``tol`` bounds the gradient in units of standardized features."""

    tol: NonNegativeFloat | None = None
    max_steps: int | None = Field(default=None, gt=0, lt=2**31)


class PathConfig(Table):
    """Fits for ``num_lambdas`` penalties λ·((1 − l1_ratio)/2·‖w‖² + l1_ratio·‖w‖₁), from the one that makes all weights
    0 to ``smallest`` times it, and the choice among them by cross-validation: that of the smallest loss (``min``), or
    the largest penalty within one standard error of it (``1se``)."""

    l1_ratio: float = Field(default=1.0, ge=0, le=1)
    num_lambdas: int = Field(default=100, gt=0, le=10_000)
    smallest: float | None = Field(default=None, gt=0, lt=1)
    folds: int = Field(default=5, ge=2, le=1000)
    rule: Literal["min", "1se"] = "1se"


class BootstrapConfig(Table):
    """As many fits to rows drawn with replacement, and the percentile intervals of their coefficients."""

    resamples: int = Field(default=1000, ge=2, le=1_000_000)
    level: Level = 0.95


class InferenceConfig(Table):
    """Errors, tests and intervals of the estimates; ``robust`` ones hold whatever the distribution of the labels."""

    level: Level = 0.95
    robust: bool = False


class RegressionConfig(ExamplesConfig):
    """A logistic or softmax regression that is solved and certified: ``xentjax fit FILE``."""

    precision: Literal["float32", "float64"] = "float64"
    data: RegressionDataConfig
    model: RegressionModelConfig = RegressionModelConfig()
    solver: RegressionSolverConfig = RegressionSolverConfig()
    stop: RegressionStopConfig = RegressionStopConfig()
    inference: InferenceConfig | None = None
    path: PathConfig | None = None
    bootstrap: BootstrapConfig | None = None

    @check_model(mode="after")
    def _fits_together(self) -> RegressionConfig:
        name = self.solver.name
        if self.path is not None:
            for key in ("l2", "l1"):
                if getattr(self.model, key):
                    raise ValueError(f"path tries penalties of its own: leave model.{key} out")
            if name not in ("auto", "proximal-newton"):
                raise ValueError(f"path is fitted by 'proximal-newton': it cannot go with solver.name {name!r}")
            if self.bootstrap is not None:
                raise ValueError("path cannot go with bootstrap: bootstrap a fit with the penalty that the path chose")
            if self.inference is not None:
                raise ValueError(
                    "path cannot go with inference: errors and tests do not hold after a choice by the same data. Fit "
                    "what it chose to other rows"
                )
        if self.bootstrap is not None and self.data.weights is not None:
            raise ValueError("bootstrap draws rows, all alike: it cannot go with data.weights")
        if self.model.l1 and name not in ("auto", *PROXIMAL):
            raise ValueError(f"model.l1 needs solver.name {listed(('auto', *PROXIMAL))}, got {name!r}")
        if self.model.l1 and self.inference is not None:
            raise ValueError(
                "model.l1 cannot go with inference: the covariances that errors and tests are made of are not defined "
                "with it. Take bootstrap"
            )
        return self
