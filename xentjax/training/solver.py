"""From the config's ``[solver]`` table to a solver."""

from __future__ import annotations

from typing import Any

import optax

from xentjax.solvers.gradient_descent import GradientDescent
from xentjax.solvers.optax import Optax
from xentjax.training.config import GradientDescentConfig, OptaxConfig, ScheduleConfig


def make_solver(config: GradientDescentConfig | OptaxConfig, total_steps: int, step_size: Any = None) -> Any:
    """The solver that the config describes.

    Args:
      config: the ``[solver]`` table.
      total_steps: what a schedule stretches over unless it says how many steps itself.
      step_size: takes the place of the config's step size or learning rate; may be traced.
    """
    if isinstance(config, GradientDescentConfig):
        if step_size is None:
            step_size = None if config.step_size == "lipschitz" else config.step_size
        return GradientDescent(step_size)
    return Optax(_transformation(config, total_steps, config.learning_rate if step_size is None else step_size))


def make_transformation(config: GradientDescentConfig | OptaxConfig, total_steps: int, objective: Any) -> Any:
    """The same as an optax transformation, for mini-batches; the step 1/L is that of the whole ``objective``."""
    if isinstance(config, GradientDescentConfig):
        step_size = 1 / float(objective.lipschitz()) if config.step_size == "lipschitz" else config.step_size
        return optax.sgd(step_size)
    return _transformation(config, total_steps, config.learning_rate)


def _transformation(config: OptaxConfig, total_steps: int, rate: Any) -> Any:
    if config.schedule is not None:
        rate = _schedule(config.schedule, rate, total_steps)
    transformation = getattr(optax, config.transformation)(rate, **config.options)
    if config.clip_norm is not None:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), transformation)
    return transformation


def _schedule(config: ScheduleConfig, rate: Any, total_steps: int) -> optax.Schedule:
    """A linear rise from rate/warmup_steps, then the decay from ``rate`` to ``final · rate``."""
    steps = max((config.steps or total_steps) - config.warmup_steps, 1)
    if config.name == "cosine":
        decay = optax.cosine_decay_schedule(rate, steps, alpha=config.final)
    elif config.name == "linear":
        decay = optax.linear_schedule(rate, config.final * rate, steps)
    else:
        decay = optax.exponential_decay(rate, steps, config.final, end_value=config.final * rate)
    if config.warmup_steps == 0:
        return decay
    rise = optax.linear_schedule(rate / config.warmup_steps, rate, config.warmup_steps)
    return optax.join_schedules([rise, decay], [config.warmup_steps])


def label(config: GradientDescentConfig | OptaxConfig) -> str:
    """What a legend calls the solver."""
    if isinstance(config, GradientDescentConfig):
        return "gradient descent, step " + ("1/L" if config.step_size == "lipschitz" else f"{config.step_size:g}")
    details = [f"{name} {value:g}" for name, value in config.options.items()]
    if config.learning_rate is not None:
        details.insert(0, f"rate {config.learning_rate:g}")
    if config.schedule is not None:
        details.append(f"{config.schedule.name} schedule")
    name = {"lbfgs": "L-BFGS", "sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}.get(
        config.transformation, config.transformation
    )
    return ", ".join([name, *details])
