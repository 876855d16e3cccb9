"""The ``[solver]`` table: each kind of solver with its keys, what it builds, and what a legend calls it.

A new kind is a :class:`SolverTable` with a ``name`` that no other has, and a place in ``_Kinds``; everything else finds
it by itself.
"""

from __future__ import annotations

import functools
import inspect
from typing import Annotated, Any, ClassVar, Literal, get_args

import optax
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic import field_validator as check_field
from pydantic import model_validator as check_model

from xentjax.solvers.gradient_descent import GradientDescent
from xentjax.solvers.optax import Optax
from xentjax.training.config_table import Table
from xentjax.training.errors import did_you_mean

Number = int | float | bool


class SolverTable(Table):
    """What a kind of solver says of itself beside its keys and its ``name: Literal["..."]``."""

    #: What the solver is called where it searches along a line, and so has no step size.
    searches: ClassVar[str] = ""
    #: The key of its step size, if it has one, which a grid of step sizes stands in for.
    rate_key: ClassVar[str] = ""

    def build(self, total_steps: int, step_size: Any = None) -> Any:
        """The solver for a run of so many steps; ``step_size``, which may be traced, stands in for the config's."""
        raise NotImplementedError

    def transformation_for(self, total_steps: int, objective: Any) -> optax.GradientTransformation:
        """The same for mini-batches of the data of ``objective``."""
        raise NotImplementedError

    def label(self) -> str:
        """What a legend calls the solver."""
        raise NotImplementedError

    def require_rate(self, given_elsewhere: bool = False) -> None:
        """ValueError where a step size stands here too though the grid has its own."""
        if given_elsewhere and self.rate_key and getattr(self, self.rate_key) is not None:
            raise ValueError(f"takes its {self.rate_key} from many.step_sizes: leave it out")


class GradientDescentConfig(SolverTable):
    """Gradient descent by a fixed step, or (the default) by 1/L, L being the Lipschitz constant of the gradient."""

    name: Literal["gradient_descent"]
    step_size: PositiveFloat | Literal["lipschitz"] | None = None

    rate_key: ClassVar[str] = "step_size"

    def build(self, total_steps: int, step_size: Any = None) -> GradientDescent:
        if step_size is None and self.step_size != "lipschitz":
            step_size = self.step_size
        return GradientDescent(step_size)

    def transformation_for(self, total_steps: int, objective: Any) -> optax.GradientTransformation:
        # The step 1/L is that of the whole objective.
        fixed = isinstance(self.step_size, float)
        return optax.sgd(self.step_size if fixed else 1 / float(objective.lipschitz()))

    def label(self) -> str:
        return "gradient descent, step " + (f"{self.step_size:g}" if isinstance(self.step_size, float) else "1/L")


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

    def of(self, rate: Any, total_steps: int) -> optax.Schedule:
        """A linear rise from rate/warmup_steps, then the decay from ``rate`` to ``final · rate``."""
        steps = max((self.steps or total_steps) - self.warmup_steps, 1)
        if self.name == "cosine":
            decay = optax.cosine_decay_schedule(rate, steps, alpha=self.final)
        elif self.name == "linear":
            decay = optax.linear_schedule(rate, self.final * rate, steps)
        else:
            decay = optax.exponential_decay(rate, steps, self.final, end_value=self.final * rate)
        if self.warmup_steps == 0:
            return decay
        rise = optax.linear_schedule(rate / self.warmup_steps, rate, self.warmup_steps)
        return optax.join_schedules([rise, decay], [self.warmup_steps])


class OptaxConfig(SolverTable):
    """Any optax optimizer by its name, with its own options: ``{name="optax", transformation="adam", ...}``."""

    rate_key: ClassVar[str] = "learning_rate"

    name: Literal["optax"]
    transformation: str
    learning_rate: PositiveFloat | None = None
    schedule: ScheduleConfig | None = None
    clip_norm: PositiveFloat | None = None
    options: dict[str, Number] = Field(default={})

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
        return self

    @property
    def searches(self) -> str:  # type: ignore[override]  # of this kind it depends on the keys
        return "solver.transformation 'lbfgs'" if self.transformation == "lbfgs" else ""

    def require_rate(self, given_elsewhere: bool = False) -> None:
        super().require_rate(given_elsewhere)
        if self.learning_rate is None and not given_elsewhere and not self.searches:
            raise ValueError("needs learning_rate")

    def build(self, total_steps: int, step_size: Any = None) -> Optax:
        # A schedule stretches over the whole run unless it says how many steps itself.
        return Optax(self._made(total_steps, self.learning_rate if step_size is None else step_size))

    def transformation_for(self, total_steps: int, objective: Any) -> optax.GradientTransformation:
        return self._made(total_steps, self.learning_rate)

    def _made(self, total_steps: int, rate: Any) -> optax.GradientTransformation:
        if self.schedule is not None:
            rate = self.schedule.of(rate, total_steps)
        made = getattr(optax, self.transformation)(rate, **self.options)
        return made if self.clip_norm is None else optax.chain(optax.clip_by_global_norm(self.clip_norm), made)

    def label(self) -> str:
        details = [f"{name} {value:g}" for name, value in self.options.items()]
        if self.learning_rate is not None:
            details.insert(0, f"rate {self.learning_rate:g}")
        if self.schedule is not None:
            details.append(f"{self.schedule.name} schedule")
        names = {"lbfgs": "L-BFGS", "sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
        return ", ".join([names.get(self.transformation, self.transformation), *details])


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


#: Every kind of solver.
_Kinds = GradientDescentConfig | OptaxConfig
SolverConfig = Annotated[_Kinds, Field(discriminator="name")]
#: The names that a ``[solver]`` table may have.
SOLVER_NAMES: tuple[str, ...] = tuple(get_args(kind.model_fields["name"].annotation)[0] for kind in get_args(_Kinds))
