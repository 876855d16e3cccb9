"""The configs of training runs and of the tutorial's figures: their keys, types and defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import optax
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic import field_validator as check_field
from pydantic import model_validator as check_model

from xentjax.training.errors import did_you_mean

Number = int | float | bool
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def delimits(text: str) -> str:
    """The text if it can stand between the cells of a CSV file, otherwise ValueError."""
    if len(text) != 1 or not text.isascii() or text in '"\r\n':
        raise ValueError(f"must be one ASCII character, no quote and no line break, got {text!r}")
    return text


Delimiter = Annotated[str, AfterValidator(delimits)]


class Table(BaseModel):
    """A table of the config: unknown keys, wrong types, NaN and infinity are refused, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# -- what to fit -------------------------------------------------------------------------------------------------------


class DataConfig(Table):
    """The examples: a data set that scikit-learn ships (``source``) or a CSV or Parquet file of the user's (``path``).

    A relative ``path`` is relative to the config file. ``features`` are the columns to learn from (default: every
    column but the target), ``categorical`` those of them that are one-hot encoded, ``classes`` the allowed values of
    the target in their order (default: those found, sorted).
    """

    source: Literal["digits", "breast_cancer", "iris", "wine"] | None = None
    path: str | None = None
    target: str | None = None
    features: list[str] | None = Field(default=None, min_length=1)
    categorical: list[str] = []
    classes: list[str] | None = Field(default=None, min_length=2)
    delimiter: Delimiter = ","
    standardize: bool = True
    test_fraction: float = Field(default=0.2, ge=0, lt=1)

    @check_model(mode="after")
    def _one_origin(self) -> DataConfig:
        if (self.source is None) == (self.path is None):
            raise ValueError("needs either source (a data set of scikit-learn's) or path (a CSV or Parquet file)")
        if self.path is not None and self.target is None:
            raise ValueError("needs target, the name of the column to predict")
        for name in ("target", "features", "categorical", "classes", "delimiter"):
            if self.source is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"takes {name} with path only, not with source = {self.source!r}")
        for name in ("features", "categorical", "classes"):
            if (twice := _repeated(getattr(self, name) or [])) is not None:
                raise ValueError(f"lists {twice!r} twice in {name}")
        if self.target in [*(self.features or []), *self.categorical]:
            raise ValueError(f"has the target {self.target!r} among the features")
        if self.features is not None and (strays := set(self.categorical) - set(self.features)):
            raise ValueError(f"lists {min(strays)!r} in categorical, but not in features")
        return self


class ModelConfig(Table):
    """The model: its penalty ½·l2·‖w‖², where its gradient comes from, and its initial values (0 ± init_scale)."""

    l2: NonNegativeFloat = 0.0
    gradient: Literal["hand", "auto"] = "hand"
    init_scale: float = Field(default=0.0, ge=0, le=1e6)


# -- how to fit it -----------------------------------------------------------------------------------------------------


class GradientDescentConfig(Table):
    """Gradient descent by a fixed step, or by the step 1/L of the Lipschitz constant L of the gradient."""

    name: Literal["gradient_descent"]
    step_size: PositiveFloat | Literal["lipschitz"] = "lipschitz"


class ScheduleConfig(Table):
    """How the learning rate changes: over ``steps`` (default: all of them) to ``final`` times its first value."""

    name: Literal["cosine", "linear", "exponential"]
    steps: PositiveInt | None = None
    warmup_steps: int = Field(default=0, ge=0)
    final: float = Field(default=0.01, ge=0, le=1)

    @check_model(mode="after")
    def _exponential_has_a_limit(self) -> ScheduleConfig:
        if self.name == "exponential" and self.final == 0:
            raise ValueError("an exponential schedule never reaches final = 0.0")
        if self.steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be less than steps ({self.steps})")
        return self


class OptaxConfig(Table):
    """Any optax optimizer by its name, with its own options: ``{name="optax", transformation="adam", ...}``."""

    name: Literal["optax"]
    transformation: str
    learning_rate: PositiveFloat | None = None
    schedule: ScheduleConfig | None = None
    clip_norm: PositiveFloat | None = None
    options: dict[str, Number] = {}

    @check_field("transformation")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in (names := _optimizers()):
            raise ValueError(f"must be an optimizer of optax, got {name!r}{did_you_mean(name, names)}")
        return name

    @check_model(mode="after")
    def _options_exist(self) -> OptaxConfig:
        allowed = _optimizers()[self.transformation]
        for key in self.options:
            if key not in allowed:
                raise ValueError(f"optax.{self.transformation} has no option {key!r}{did_you_mean(key, allowed)}")
        if self.transformation == "lbfgs" and (self.schedule or self.clip_norm):
            raise ValueError("transformation 'lbfgs' searches along a line: it takes neither schedule nor clip_norm")
        if self.learning_rate is None and self.transformation != "lbfgs":
            raise ValueError("needs learning_rate")
        return self


@functools.cache
def _optimizers() -> dict[str, list[str]]:
    """The optimizers of optax that have a learning rate, with the other numbers that each can be given."""
    found = {}
    for name in dir(optax):
        function = getattr(optax, name)
        if name.islower() and inspect.isfunction(function):
            parameters = list(inspect.signature(function).parameters)
            # sm3 wants arrays of two axes, noisy_sgd a random key.
            if parameters[:1] == ["learning_rate"] and name not in ("sm3", "noisy_sgd"):
                found[name] = parameters[1:]
    return found


SolverConfig = Annotated[GradientDescentConfig | OptaxConfig, Field(discriminator="name")]


class StopConfig(Table):
    """When to stop: the largest gradient component is at most ``tol``, or ``max_steps`` are done."""

    tol: NonNegativeFloat = 1e-4
    max_steps: int = Field(default=10_000, gt=0, lt=2**31)


class BatchesConfig(Table):
    """Mini-batches: each of the ``epochs`` visits the shuffled examples once, ``size`` at a time."""

    size: PositiveInt
    epochs: PositiveInt


class ManyConfig(Table):
    """A grid of fits in one vmapped program: every step size with every seed (split and initial values)."""

    step_sizes: list[PositiveFloat] = Field(min_length=1)
    seeds: list[Seed] = Field(min_length=1)

    @check_model(mode="after")
    def _distinct(self) -> ManyConfig:
        for name in ("step_sizes", "seeds"):
            if (twice := _repeated(getattr(self, name))) is not None:
                raise ValueError(f"lists {twice!r} twice in {name}")
        return self


class FitConfig(Table):
    """A training run: ``xentjax fit FILE``."""

    name: str = Field(pattern=r"^[\w.+-]*\w[\w.+-]*$")
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    solver: SolverConfig
    stop: StopConfig = StopConfig()
    batches: BatchesConfig | None = None
    many: ManyConfig | None = None

    @check_model(mode="after")
    def _fits_together(self) -> FitConfig:
        if self.many is not None and self.batches is not None:
            raise ValueError("many fits the whole training set in each step: it cannot go with batches")
        if isinstance(self.solver, OptaxConfig) and self.solver.transformation == "lbfgs":
            if self.batches is not None:
                raise ValueError(
                    "solver.transformation 'lbfgs' needs the whole training set: it cannot go with batches"
                )
            if self.many is not None:
                raise ValueError("solver.transformation 'lbfgs' has no step size: it cannot go with many")
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


def _repeated(values: Sequence[Any]) -> Any:
    return next((value for i, value in enumerate(values) if value in values[:i]), None)
