"""A training run: data in, steps in chunks with progress told between them, an evaluated model out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from xentjax.models.logistic import LogisticParams, logistic_loss
from xentjax.models.objective import LogisticObjective
from xentjax.solvers.minimize import iterate
from xentjax.solvers.status import CONVERGED, DIVERGED, Status
from xentjax.training import run_folder
from xentjax.training.config import BatchesConfig, FitConfig
from xentjax.training.data import Encoder, Examples, load_examples, split
from xentjax.training.evaluation import Evaluation, evaluate
from xentjax.training.minibatch import iterate_minibatch
from xentjax.training.solver import make_solver, make_transformation

Array = np.ndarray[Any, Any]
_Seen = TypeVar("_Seen")

#: Multiply-adds of one chunk of steps: a third of a second on a laptop, so that progress and Ctrl-C come through.
_CHUNK_WORK = 1e9


class Progress(NamedTuple):
    """How far a run is: what the progress callback gets. In a grid of fits the numbers are those of the best one."""

    step: int
    total_steps: int
    value: float
    gradient_norm: float
    fits: int = 1
    running: int = 1


@dataclass(frozen=True)
class Prepared:
    """Training and test examples as arrays, and how they were encoded."""

    encoder: Encoder
    classes: tuple[str, ...]
    x: Array
    y: Array
    x_test: Array
    y_test: Array

    @property
    def parts(self) -> list[tuple[Array, Array]]:
        """The training examples, and the test examples if there are any."""
        parts = [(self.x, self.y), (self.x_test, self.y_test)]
        return parts if len(self.y_test) else parts[:1]

    @property
    def num_classes(self) -> int | None:
        """The K of the objective: None for a binary model."""
        return None if len(self.classes) == 2 else len(self.classes)


@dataclass(frozen=True)
class Fitted:
    """What a run ends with. Times are in seconds; the steps of the history are numbered from 0, the initial values."""

    config: FitConfig
    model: run_folder.Model
    status: str
    message: str
    steps: Array
    value: Array
    gradient_norm: Array
    train: Evaluation
    test: Evaluation | None
    gradient_deviation: float
    compile_seconds: float
    run_seconds: float
    device: str

    def summary(self) -> dict[str, Any]:
        return {
            "name": self.config.name,
            "status": self.status,
            "message": self.message,
            "steps": int(self.steps[-1]),
            "objective_nats": self.value[-1],
            "gradient_norm": self.gradient_norm[-1],
            "gradient_deviation": self.gradient_deviation,
            "train": self.train.summary(),
            "test": None if self.test is None else self.test.summary(),
            "compile_seconds": self.compile_seconds,
            "run_seconds": self.run_seconds,
            "device": self.device,
            "versions": versions(),
        }

    def write(self, folder: Path) -> None:
        """Everything of the run folder but the pictures."""
        run_folder.write_config(folder, self.config)
        self.model.write(folder)
        history = zip(self.steps, self.value, self.gradient_norm, strict=True)
        rows = ({"step": step, "value": value, "gradient_norm": norm} for step, value, norm in history)
        run_folder.write_json_lines(folder / "metrics.jsonl", rows)
        run_folder.write_json(folder / run_folder.MARK, self.summary())


def fit(config: FitConfig, progress: Callable[[Progress], None] = lambda progress: None) -> Fitted:
    """Run the config. The callback is told of the initial values and of every chunk of steps after them.

    A KeyboardInterrupt while steps are made, from the callback too, ends the run with what there is. The status is
    that of the solution, or ``interrupted``.
    """
    with jax.enable_x64(config.precision == "float64"):
        data = prepare(load_examples(config.data), config, config.seed)
        objective = LogisticObjective(
            jnp.asarray(data.x),
            jnp.asarray(data.y),
            l2=config.model.l2,
            gradient=config.model.gradient,
            num_classes=data.num_classes,
        )
        init = initial_params(data, config.model.init_scale, config.seed)
        with compile_clock() as clock:
            started = time.perf_counter()
            total = total_steps(config, len(data.y))
            trace: list[tuple[Array, Array, Array]] = []

            def see(stand: _Stand) -> None:
                trace.append(stand.history)
                progress(Progress(stand.step, total, stand.value, stand.gradient_norm))

            stand = follow(_stands(config, objective, init, total), see)
            steps, value, gradient_norm = (np.concatenate(column) for column in zip(*trace, strict=True))
            status, message = stand.status, stand.message
            if status == "running":
                status, message = "interrupted", f"stopped by the user after {stand.step} of at most {total} steps"
            elapsed = time.perf_counter() - started
        compiling = clock.seconds()
        params = jax.tree.map(np.asarray, stand.params)
        evaluations = evaluate(params, data.parts, len(data.classes))
        return Fitted(
            config=config,
            model=run_folder.Model(data.encoder, data.classes, params),
            status=status,
            message=message,
            steps=steps,
            value=value,
            gradient_norm=gradient_norm,
            train=evaluations[0],
            test=evaluations[1] if len(evaluations) > 1 else None,
            gradient_deviation=gradient_deviation(objective, params),
            compile_seconds=compiling,
            run_seconds=max(elapsed - compiling, 0.0),
            device=device_name(),
        )


def prepare(examples: Examples, config: FitConfig, seed: int) -> Prepared:
    """Split the examples by the seed, and encode them by what the training examples say."""
    train, test = split(examples, config.data.test_fraction, seed)
    encoder = Encoder.learn(examples, train, config.data, config.precision)
    matrix = encoder.matrix(examples)
    labels = examples.labels
    return Prepared(encoder, examples.classes, matrix[train], labels[train], matrix[test], labels[test])


def initial_params(data: Prepared, scale: float, seed: int) -> LogisticParams:
    """Weights from the normal distribution with this standard deviation, and bias 0."""
    classes = () if data.num_classes is None else (data.num_classes,)
    # Another stream than that of the split, which has the same seed.
    weights = np.random.default_rng([seed, 1]).standard_normal((data.x.shape[1], *classes)) * scale
    return LogisticParams(jnp.asarray(weights, data.x.dtype), jnp.zeros(classes, data.x.dtype))


def gradient_deviation(objective: Any, params: LogisticParams) -> float:
    """The largest difference between a component of the hand-derived gradient and of the automatic one."""
    hand, auto = (_gradient(dataclasses.replace(objective, gradient=source), params) for source in ("hand", "auto"))
    return max(float(jnp.max(jnp.abs(h - a))) for h, a in zip(hand, auto, strict=True))


@jax.jit
def _gradient(objective: Any, params: Any) -> Any:
    return objective.value_and_gradient(params)[1]


# -- steps -------------------------------------------------------------------------------------------------------------


class _Stand(NamedTuple):
    """Where a run stands, and its history since the last stand: steps, objective, largest gradient component."""

    params: Any
    status: str
    message: str
    step: int
    value: float
    gradient_norm: float
    history: tuple[Array, Array, Array]


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


def _stands(config: FitConfig, objective: Any, init: Any, total: int) -> Iterator[_Stand]:
    """The initial stand, and one after every chunk of steps or after every epoch."""
    if config.batches is not None:
        yield from _epochs(config, config.batches, objective, init, total)
        return
    solver = make_solver(config.solver, total)
    chunk = steps_in_chunk(objective.x.size * max(np.size(init.bias), 1))
    seen = 0  # entries of the history
    for solution in iterate(objective, init, solver, tol=config.stop.tol, max_steps=total, chunk=chunk):
        steps = np.arange(seen, int(solution.steps) + 1)
        seen += len(steps)
        # A step that led to a number that is not finite is in the solution's history, but is no step of the run.
        value, norm = (np.asarray(h)[: len(steps)] for h in (solution.history.value, solution.history.gradient_norm))
        yield _Stand(
            solution.params,
            str(solution.status),
            solution.message,
            int(solution.steps),
            float(solution.value),
            float(solution.gradient_norm),
            (steps, value, norm),
        )


def _epochs(config: FitConfig, batches: BatchesConfig, objective: Any, init: Any, total: int) -> Iterator[_Stand]:
    """Mini-batch training; after each epoch the objective and its gradient on all training examples."""
    per_epoch = -(-len(objective.y) // batches.size)
    loss = logistic_loss if config.model.gradient == "hand" else logistic_loss.record.oracle

    def stand(params: Any, how: tuple[str, str], step: int, value: Any, norm: Any) -> _Stand:
        history = np.asarray([step]), np.asarray([value]), np.asarray([norm])
        return _Stand(params, *how, step, float(value), float(norm), history)

    last = stand(init, ("running", ""), 0, *_value_and_largest(objective, init))
    yield last
    epochs = iterate_minibatch(
        functools.partial(loss, l2=config.model.l2),
        init,
        (objective.x, objective.y),
        make_transformation(config.solver, total, objective),
        epochs=total // per_epoch,
        batch_size=batches.size,
        seed=config.seed,
    )
    for epoch in epochs:
        value, norm = _value_and_largest(objective, epoch.params)
        if not np.isfinite([value, norm]).all():
            nothing = np.zeros(0, int), np.zeros(0, value.dtype), np.zeros(0, norm.dtype)
            yield last._replace(status="diverged", message=Status(DIVERGED).message, history=nothing)
            return
        step = per_epoch * int(epoch.epochs)
        if norm <= config.stop.tol:
            how = "converged", Status(CONVERGED).message
        elif step >= total:
            how = "completed", f"all {total // per_epoch} epochs are done"
        else:
            how = "running", ""
        last = stand(epoch.params, how, step, value, norm)
        yield last
        if last.status != "running":
            return


@jax.jit
def _value_and_largest(objective: Any, params: Any) -> tuple[Any, Any]:
    value, gradient = objective.value_and_gradient(params)
    return value, jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in gradient]))


# -- the machine -------------------------------------------------------------------------------------------------------


class _Clock:
    """The time that JAX spent tracing and compiling: the union of the spans that it reports."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

    def seconds(self) -> float:
        total, end = 0.0, -np.inf
        for start, stop in sorted(self._spans):
            total += max(stop - max(start, end), 0.0)
            end = max(end, stop)
        return total


@contextlib.contextmanager
def compile_clock() -> Iterator[_Clock]:
    """Measures what is traced and compiled inside the block."""
    clock = _Clock()
    jax.monitoring.register_event_duration_secs_listener(clock)
    try:
        yield clock
    finally:
        jax.monitoring.unregister_event_duration_listener(clock)


def versions() -> dict[str, str]:
    """What the run was computed with; a source tree that is not installed has no version."""
    try:
        own = metadata.version("xentjax")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {"xentjax": own, "jax": jax.__version__, "numpy": np.__version__}


def device_name() -> str:
    device = jax.devices()[0]
    return f"cpu, {os.cpu_count()} cores" if device.platform == "cpu" else f"{device.device_kind} ({device.platform})"
