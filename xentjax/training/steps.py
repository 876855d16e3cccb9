"""The steps of a run, in chunks: what progress is told, and where a Ctrl-C ends it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from xentjax.models.loss import logistic_loss
from xentjax.solvers import status as codes
from xentjax.solvers.kept import kept
from xentjax.solvers.minimize import iterate
from xentjax.solvers.status import Status
from xentjax.training.config import BatchesConfig, FitConfig
from xentjax.training.minibatch import iterate_minibatch

Array = np.ndarray[Any, Any]
_Seen = TypeVar("_Seen")

#: Multiply-adds of one chunk of steps: a third of a second on a laptop, so that progress and Ctrl-C come through.
_CHUNK_WORK = 2e9


class Progress(NamedTuple):
    """How far a run is: what the progress callback gets. In a grid of fits the numbers are those of the best one."""

    step: int
    total_steps: int
    value: float
    gradient_norm: float
    fits: int = 1
    running: int = 1


class Stage(NamedTuple):
    """What a run is at, and how much of it is done, where that can be told."""

    what: str
    done: int = 0
    total: int | None = None


class Stand(NamedTuple):
    """Where a run stands, and its history since the last stand: steps, objective, largest gradient component."""

    params: Any
    status: Status
    step: int
    value: float
    gradient_norm: float
    history: tuple[Array, Array, Array]


class Ending:
    """What a run that has a status ends with."""

    status: Status

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it."""
        return bool(self.status == "interrupted")

    @property
    def failure(self) -> str | None:
        """Why there is no trained model, and what to do; None where there is one, converged or not."""
        return f"{self.status}: {self.status.message}" if self.status.names in ("diverged", "not_finite") else None


def follow(stands: Iterator[_Seen], see: Callable[[_Seen], None]) -> _Seen:
    """Show ``see`` each of the stands; the last one, which a KeyboardInterrupt makes that which was seen last."""
    stand = next(stands)
    try:
        see(stand)
        for stand in stands:
            see(stand)
    except KeyboardInterrupt:
        pass
    return stand


def steps_in_chunk(work: int) -> int:
    """How many steps of so many multiply-adds are made before Python is asked again."""
    return int(np.clip(_CHUNK_WORK / max(work, 1), 1, 500))


def total_steps(config: FitConfig, examples: int) -> int:
    """The most steps that the run can make; in mini-batches, those of whole epochs."""
    if config.batches is None:
        return config.stop.max_steps
    batches = -(-examples // config.batches.size)
    return batches * min(config.batches.epochs, -(-config.stop.max_steps // batches))


def stands(config: FitConfig, objective: Any, init: Any, total: int) -> Iterator[Stand]:
    """The initial stand, and one after every chunk of steps or after every epoch."""
    if config.batches is not None:
        yield from _epochs(config, config.batches, objective, init, total)
        return
    solver = config.solver.build(total)
    chunk = steps_in_chunk(objective.x.size * max(np.size(init.bias), 1))
    seen = 0  # entries of the history
    for solution in iterate(objective, init, solver, tol=config.stop.tol, max_steps=total, chunk=chunk):
        steps = np.arange(seen, int(solution.steps) + 1)
        seen += len(steps)
        # A step that led to a number that is not finite is in the solution's history, but is no step of the run.
        value, norm = (np.asarray(h)[: len(steps)] for h in (solution.history.value, solution.history.gradient_norm))
        yield Stand(
            solution.params,
            solution.status,
            int(solution.steps),
            float(solution.value),
            float(solution.gradient_norm),
            (steps, value, norm),
        )


def _epochs(config: FitConfig, batches: BatchesConfig, objective: Any, init: Any, total: int) -> Iterator[Stand]:
    """Mini-batch training; after each epoch the objective and its gradient on all training examples."""
    per_epoch = -(-len(objective.y) // batches.size)
    loss = logistic_loss if config.model.gradient == "hand" else logistic_loss.record.oracle

    def stand(params: Any, code: int, step: int, value: Any, norm: Any) -> Stand:
        history = np.asarray([step]), np.asarray([value]), np.asarray([norm])
        return Stand(params, Status(code), step, float(value), float(norm), history)

    last = stand(init, codes.RUNNING, 0, *_value_and_largest(objective, init))
    yield last
    epochs = iterate_minibatch(
        functools.partial(loss, l2=config.model.l2),
        init,
        (objective.x, objective.y),
        config.solver.transformation_for(total, objective),
        epochs=total // per_epoch,
        batch_size=batches.size,
        seed=config.seed,
        weights=objective.weights,
    )
    for epoch in epochs:
        value, norm = _value_and_largest(objective, epoch.params)
        if not np.isfinite([value, norm]).all():
            nothing = np.zeros(0, int), np.zeros(0, value.dtype), np.zeros(0, norm.dtype)
            yield last._replace(status=Status(codes.DIVERGED), history=nothing)
            return
        step = per_epoch * int(epoch.epochs)
        if norm <= config.stop.tol:
            code = codes.CONVERGED
        elif step >= total:
            code = codes.COMPLETED
        else:
            code = codes.RUNNING
        last = stand(epoch.params, code, step, value, norm)
        yield last
        if last.status != "running":
            return


@kept()
def _value_and_largest(objective: Any, params: Any) -> tuple[Any, Any]:
    value, gradient = objective.value_and_gradient(params)
    return value, jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in gradient]))


def ended(status: Status) -> Status:
    """The status of runs that nothing goes on with: those that were running have been interrupted."""
    return Status(np.where(np.asarray(status.code) == codes.RUNNING, codes.INTERRUPTED, status.code))
