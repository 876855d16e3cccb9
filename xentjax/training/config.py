"""The configs of training runs and of the tutorial's figures: their keys, types and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo
from pydantic import field_validator as check_field
from pydantic import model_validator as check_model

from xentjax.training.config_table import Table
from xentjax.training.solver import SolverConfig
from xentjax.training.sources import SOURCES

#: Names of files whose target needs no name.
SVMLIGHT = (".svmlight", ".libsvm", ".svm")

Seed = Annotated[int, Field(ge=0, lt=2**32)]


def delimits(text: str) -> str:
    """The text if it can stand between the cells of a CSV file, otherwise ValueError."""
    if len(text) != 1 or not text.isascii() or text in '"\r\n':
        raise ValueError(f"must be one ASCII character, no quote and no line break, got {text!r}")
    return text


Delimiter = Annotated[str, AfterValidator(delimits)]


# -- what to fit -------------------------------------------------------------------------------------------------------


class DataConfig(Table):
    """The examples: a data set out of a package (``source``), or a table of the user's (``path``): a CSV, Parquet,
    Arrow, ``.npy`` or svmlight file, or a folder of such.

    A relative ``path`` is relative to the config file. ``features`` are the columns to learn from (default: every
    column but the target and the weights), ``categorical`` those of them that are one-hot encoded (with ``drop_first``
    without a feature for the first category), ``classes`` the allowed values of the target in their order (default:
    those found, sorted), ``weights`` the column of the examples' weights, which count repetitions. Columns of ``.npy``
    are x0, x1, ...; its target may be another such file, by its name from that of the features on. That of svmlight is
    ``label`` by itself. With ``on_bad_rows = "skip"`` rows in which something is wrong are left out, and counted.

    ``memory = "stream"`` reads the features a chunk at a time in each pass over them, ``"whole"`` has all of them in
    memory, and ``"auto"`` streams what has 512 MiB of files or more. Streamed features that do not stand in their file
    as they are computed with are written to a temporary file in the folder ``cache`` first. All sources of packages
    come with scikit-learn but ``flights``, which the extra of that name brings.
    """

    source: Literal[tuple(SOURCES)] | None = None  # type: ignore[valid-type]
    path: str | None = None
    target: str | None = None
    features: list[str] | None = Field(default=None, min_length=1)
    categorical: list[str] = Field(default=[])
    classes: list[str] | None = Field(default=None, min_length=2)
    weights: str | None = None
    delimiter: Delimiter = ","
    on_bad_rows: Literal["error", "skip"] = "error"
    memory: Literal["auto", "whole", "stream"] = "auto"
    cache: str | None = None
    drop_first: bool = False
    standardize: bool = True
    test_fraction: float = Field(default=0.2, ge=0, lt=1)

    @check_model(mode="after")
    def _one_origin(self) -> DataConfig:
        if (self.source is None) == (self.path is None):
            raise ValueError("needs either source (a data set out of a package) or path (a file with a table)")
        if self.path is not None and self.target is None and not self.path.endswith(SVMLIGHT):
            raise ValueError("needs target, the name of the column to predict")
        own = ("target", "categorical", "classes", "weights", "delimiter", "on_bad_rows", "memory", "cache")
        for name in own:
            if self.source is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"takes {name} with path only, not with source = {self.source!r}")
        for name in ("features", "categorical", "classes"):
            if (twice := _repeated(getattr(self, name) or [])) is not None:
                raise ValueError(f"lists {twice!r} twice in {name}")
        if self.target in [*(self.features or []), *self.categorical]:
            raise ValueError(f"has the target {self.target!r} among the features")
        if self.weights is not None and self.weights in [self.target, *(self.features or []), *self.categorical]:
            raise ValueError(f"has the weights {self.weights!r} among the features or as the target")
        if self.features is not None and (strays := set(self.categorical) - set(self.features)):
            raise ValueError(f"lists {min(strays)!r} in categorical, but not in features")
        return self


class ModelConfig(Table):
    """The model: its penalty ½·l2·‖w‖², where its gradient comes from, and its initial values (0 ± init_scale)."""

    l2: NonNegativeFloat = 0.0
    gradient: Literal["hand", "auto"] = "hand"
    init_scale: float = Field(default=0.0, ge=0, le=1e6)


# -- how to fit it -----------------------------------------------------------------------------------------------------


class StopConfig(Table):
    """When to stop: the largest gradient component is at most ``tol``, or ``max_steps`` are done."""

    tol: NonNegativeFloat = 1e-4
    max_steps: int = Field(default=10_000, gt=0, lt=2**31)


class BatchesConfig(Table):
    """Mini-batches: each of the ``epochs`` visits the shuffled examples once, ``size`` at a time."""

    size: PositiveInt
    epochs: PositiveInt


class CheckpointConfig(Table):
    """When the state of a run is written, so that it goes on from there where it is killed: after ``every_seconds``,
    and, where they are given, after ``every_steps``. The last ``keep`` states stay.
    """

    every_seconds: NonNegativeFloat = 30.0
    every_steps: PositiveInt | None = None
    keep: PositiveInt = 2


class ManyConfig(Table):
    """A grid of fits in one vmapped program: every step size with every seed (split and initial values).

    The step sizes, or learning rates, are those of the grid: the table ``solver`` gives none.
    """

    step_sizes: list[PositiveFloat] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)

    @check_model(mode="after")
    def _distinct(self) -> ManyConfig:
        for name in ("step_sizes", "seeds"):
            if (twice := _repeated(getattr(self, name))) is not None:
                raise ValueError(f"lists {twice!r} twice in {name}")
        return self


class MeshConfig(Table):
    """The devices of a run, ``data`` times ``vocab`` of them: rows are split over the first number, the vocabulary of a
    language model over the second, and many fits over all of them."""

    data: PositiveInt = 1
    vocab: PositiveInt = 1


class RunConfig(Table):
    """What all runs have in common. Without a ``mesh`` they run on one device."""

    name: str = Field(pattern=r"^[\w.+-]*\w[\w.+-]*$")
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"
    mesh: MeshConfig | None = None


class ExamplesConfig(RunConfig):
    """What the runs on examples have in common: training runs and regressions."""

    data: DataConfig


class FitConfig(ExamplesConfig):
    """A training run by steps of a solver: ``xentjax fit FILE``."""

    model: ModelConfig = ModelConfig()
    many: ManyConfig | None = None
    solver: SolverConfig
    stop: StopConfig = StopConfig()
    batches: BatchesConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()

    @check_field("solver")
    @classmethod
    def _one_rate(cls, solver: SolverConfig, info: ValidationInfo) -> SolverConfig:
        solver.require_rate(given_elsewhere=info.data.get("many") is not None)
        return solver

    @check_model(mode="after")
    def _fits_together(self) -> FitConfig:
        if self.many is not None and self.batches is not None:
            raise ValueError("many fits the whole training set in each step: it cannot go with batches")
        if self.solver.searches and self.batches is not None:
            raise ValueError(f"{self.solver.searches} needs the whole training set: it cannot go with batches")
        if self.solver.searches and self.many is not None:
            raise ValueError(f"{self.solver.searches} has no step size: it cannot go with many")
        return self


# -- figures of the tutorial -------------------------------------------------------------------------------------------


class ModelsConfig(Table):
    """Three logistic models ŷ = σ(β₀ + β₁x), each given as [β₀, β₁], and the range of x to draw."""

    first: list[float] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    second: list[float] = Field(default=[0.5, 1.5], min_length=2, max_length=2)
    third: list[float] = Field(default=[-4.0, 3.0], min_length=2, max_length=2)
    x_range: list[float] = Field(default=[-6.0, 6.0], min_length=2, max_length=2)

    @check_field("x_range")
    @classmethod
    def _rises(cls, x_range: list[float]) -> list[float]:
        if not x_range[0] < x_range[1]:
            raise ValueError(f"must rise, got {x_range}")
        return x_range


class SurfaceConfig(Table):
    """The one-feature data set of the loss surface: labels drawn from σ(β₀ + β₁x) with x normal."""

    examples: int = Field(default=60, ge=10, le=100_000)
    truth: list[float] = Field(default=[0.5, 1.5], min_length=2, max_length=2)
    seed: Seed = 0
    start: list[float] = Field(default=[-3.0, -2.0], min_length=2, max_length=2)


_CURVES = (
    {"name": "gradient_descent", "step_size": 1.0},
    {"name": "gradient_descent", "step_size": "lipschitz"},
    {"name": "optax", "transformation": "sgd", "learning_rate": 1.0, "options": {"momentum": 0.9}},
    {"name": "optax", "transformation": "adam", "learning_rate": 0.3},
    {"name": "optax", "transformation": "lbfgs"},
)


class TutorialConfig(Table):
    """The figures: ``xentjax figures FILE``."""

    models: ModelsConfig = ModelsConfig()
    surface: SurfaceConfig = SurfaceConfig()
    stop: StopConfig = StopConfig(tol=1e-5, max_steps=60)
    solvers: list[SolverConfig] = Field(default=list(_CURVES), min_length=1, max_length=8, validate_default=True)

    @check_field("solvers")
    @classmethod
    def _rates(cls, solvers: list[SolverConfig]) -> list[SolverConfig]:
        for solver in solvers:
            solver.require_rate()
        return solvers


def _repeated(values: Sequence[Any]) -> Any:
    """The first value that has come before; None where all are distinct."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
