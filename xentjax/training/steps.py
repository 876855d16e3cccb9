"""The steps of a run, in chunks: what progress is told, and where a Ctrl-C ends it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xentjax.models.loss import logistic_loss
from xentjax.solvers import status as codes
from xentjax.solvers.kept import kept
from xentjax.solvers.minimize import State, iterate_states
from xentjax.solvers.status import Status
from xentjax.training.blame import Blame, in_a_line, of_batches, of_params, of_step
from xentjax.training.config import BatchesConfig, FitConfig
from xentjax.training.minibatch import MinibatchResult, iterate_minibatch

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


class Terminated(BaseException):
    """The process is to end soon: out of a progress callback it ends a run whose state then is in a checkpoint."""


class Stand(NamedTuple):
    """Where a run stands, and its history since the last stand: steps, objective, largest gradient component.

    Within an epoch, value and gradient norm are those before it.
    """

    params: Any
    status: Status
    step: int
    value: float
    gradient_norm: float
    history: tuple[Array, Array, Array]
    run: Any
    """All that the steps after it depend on: a pytree of arrays, which :func:`stands` can go on from."""
    blame: Blame | None = None
    """What it ended at, where that is no finite number."""


class Ending:
    """What a run that has a status ends with."""

    status: Status
    blame: Mapping[str, Any] | None
    """What made its loss NaN or infinite, where it did."""

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it."""
        return bool(self.status == "interrupted")

    @property
    def failure(self) -> str | None:
        """Why there is no trained model, and what to do; None where there is one, converged or not."""
        if self.status.names not in ("diverged", "not_finite"):
            return None
        return f"{self.status}: {self.status.message}" + (f"; {in_a_line(self.blame)}" if self.blame else "")


def follow(
    stands: Iterator[_Seen],
    see: Callable[[_Seen], None],
    keep: Callable[[_Seen, bool], None] = lambda stand, stopped: None,
) -> _Seen:
    """Show ``see`` each of the stands; the last one, which a KeyboardInterrupt makes that which was seen last.

    ``keep`` is given each of them after that, and whether the run is stopped there; so it is where ``see`` raises
    :class:`Terminated`, which is raised again.
    """
    stand = next(stands)
    while True:
        try:
            see(stand)
        except KeyboardInterrupt:
            keep(stand, True)
            return stand
        except Terminated:
            keep(stand, True)
            raise
        keep(stand, False)
        try:
            stand = next(stands)
        except StopIteration:
            return stand
        except KeyboardInterrupt:
            keep(stand, True)
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


def stands(
    config: FitConfig,
    objective: Any,
    rows: Any,
    init: Any,
    total: int,
    go_on: Callable[[Any], Any] = lambda run: run,
    mesh: Mesh | None = None,
) -> Iterator[Stand]:
    """The initial stand, and one after every chunk of steps and after every epoch.

    Args:
      objective: on a ``mesh`` its rows are split over that.
      rows: x, y and weights as they were before.
      go_on: is given the ``run`` of the initial stand and returns that of the one to start at, whose history is empty
        where it is another one.
    """
    if config.batches is not None:
        yield from _epochs(config, config.batches, objective, rows, init, total, go_on, mesh)
        return
    solver = config.solver.build(total)
    chunk = steps_in_chunk(objective.x.size * max(np.size(init.bias), 1))
    seen = 0  # entries of the history

    def started(start: State) -> State:
        nonlocal seen
        state = go_on(start)
        seen = 0 if state is start else int(state.step) + 1
        return state

    how: dict[str, Any] = {"tol": config.stop.tol, "max_steps": total, "chunk": chunk}
    for state, history in iterate_states(
        objective, init, solver, most=config.checkpoint.every_steps, go_on=started, **how
    ):
        step = int(state.step)
        steps = np.arange(seen, step + 1)
        seen += len(steps)
        # A step that led to a number that is not finite is in the history, but is no step of the run.
        value, norm = (np.asarray(h)[: len(steps)] for h in (history.value, history.gradient_norm))
        status, blame = Status(state.code), None
        if status == "diverged":
            blame = of_step(objective, solver, state)
        elif status == "not_finite":
            blame = of_params(state.point.params, objective, step=0)
        last = float(state.point.value), float(state.norm)
        yield Stand(state.point.params, status, step, *last, (steps, value, norm), state, blame)


def _epochs(
    config: FitConfig,
    batches: BatchesConfig,
    objective: Any,
    rows: Any,
    init: Any,
    total: int,
    go_on: Callable[[Any], Any],
    mesh: Mesh | None,
) -> Iterator[Stand]:
    """Mini-batch training; after each epoch the objective and its gradient on all training examples."""
    x, y, weights = rows
    n, per_epoch = len(y), -(-len(y) // batches.size)
    loss = logistic_loss if config.model.gradient == "hand" else logistic_loss.record.oracle
    iterate = functools.partial(
        iterate_minibatch,
        functools.partial(loss, l2=config.model.l2),
        init,
        (x, y),
        config.solver.transformation_for(total, objective),
        epochs=total // per_epoch,
        batch_size=batches.size,
        seed=config.seed,
        weights=weights,
        mesh=mesh,
    )
    started: list[Any] = []

    def start(first: MinibatchResult) -> MinibatchResult:
        run = {"batches": first, "good": init}
        started[:] = run, go_on(run)
        return started[1]["batches"]

    most = steps_in_chunk(min(batches.size, n) * objective.x.shape[1] * max(np.size(init.bias), 1))
    found = iterate(resume=start, most=min(most, config.checkpoint.every_steps or most))
    is_new = started[0] is started[1]
    before, good = started[1]["batches"], started[1]["good"]
    value, norm = value_and_largest(objective, good)

    def stand(at: MinibatchResult, code: int, of_history: bool) -> Stand:
        step, end = per_epoch * int(at.epochs) + int(at.batches), int(of_history)
        history = np.asarray([step])[:end], np.asarray([value])[:end], np.asarray([norm])[:end]
        run = {"batches": at, "good": good}
        return Stand(at.params, Status(code), step, float(value), float(norm), history, run)

    last = stand(before, codes.RUNNING, is_new)
    if not np.isfinite([value, norm]).all():
        yield last._replace(status=Status(codes.NOT_FINITE), blame=of_params(init, objective, step=0))
        return
    yield last
    for at in found:
        is_whole = int(at.batches) == 0
        after = value_and_largest(objective, at.params) if is_whole else (value, norm)
        if not (np.isfinite(after).all() if is_whole else np.isfinite(at.losses[: int(at.batches)]).all()):
            blame = of_batches(iterate(resume=before, most=1), before, n, batches.size)
            # Where no batch is to blame, an example is that the parameters after the epoch are bad for.
            blame = blame or of_params(at.params, objective, per_epoch * int(at.epochs))
            good_stand = stand(dataclasses.replace(before, params=good, batches=0), codes.DIVERGED, False)
            yield good_stand._replace(blame=blame)
            return
        before, (value, norm) = at, after
        code = codes.RUNNING
        if is_whole:
            good, step = at.params, per_epoch * int(at.epochs)
            code = codes.COMPLETED if step >= total else code
            code = codes.CONVERGED if norm <= config.stop.tol else code
        yield stand(at, code, is_whole)
        if code != codes.RUNNING:
            return


@kept()
def value_and_largest(objective: Any, params: Any) -> tuple[Any, Any]:
    """The objective, and the largest component of its gradient."""
    value, gradient = objective.value_and_gradient(params)
    return value, jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in gradient]))


def ended(status: Status) -> Status:
    """The status of runs that nothing goes on with: those that were running have been interrupted."""
    return Status(np.where(np.asarray(status.code) == codes.RUNNING, codes.INTERRUPTED, status.code))
