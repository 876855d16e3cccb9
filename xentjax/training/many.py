"""A grid of fits, every step size with every seed, as one vmapped program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.solvers.minimize import Solution, advance, in_chunks, start
from xentjax.training import run_folder
from xentjax.training.config import FitConfig, ManyConfig
from xentjax.training.data import load_examples
from xentjax.training.evaluation import Evaluation, evaluate
from xentjax.training.job import (
    Progress,
    compile_clock,
    device_name,
    follow,
    initial_params,
    prepare,
    steps_in_chunk,
    versions,
)
from xentjax.training.solver import make_solver

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Grid:
    """The fits of a grid; arrays are ``[step sizes, seeds]``, the history ``[step sizes, seeds, steps + 1]``."""

    config: FitConfig
    params: LogisticParams
    status: Array
    steps: Array
    value: Array
    gradient_norm: Array
    history: Array
    train: list[list[Evaluation]]
    test: list[list[Evaluation]]
    compile_seconds: float
    run_seconds: float
    device: str

    @property
    def many(self) -> ManyConfig:
        assert self.config.many is not None
        return self.config.many

    def cross_entropy(self, part: list[list[Evaluation]]) -> Array:
        return np.asarray([[one.cross_entropy for one in row] for row in part])

    def ends(self, part: Any) -> dict[str, int]:
        """How the fits of a part of the grid have ended, and how many of them so."""
        names, counts = np.unique(self.status[part], return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each fit."""
        for i, step_size in enumerate(self.many.step_sizes):
            for j, seed in enumerate(self.many.seeds):
                yield {
                    "step_size": step_size,
                    "seed": seed,
                    "status": str(self.status[i, j]),
                    "steps": self.steps[i, j],
                    "objective_nats": self.value[i, j],
                    "gradient_norm": self.gradient_norm[i, j],
                    "train": self.train[i][j].summary(),
                    "test": self.test[i][j].summary() if self.test else None,
                }

    def write(self, folder: Path) -> None:
        """Everything of the run folder but the picture."""
        run_folder.write_config(folder, self.config)
        run_folder.write_params(folder, self.params)
        run_folder.write_json_lines(folder / "metrics.jsonl", self.rows())
        summary = {
            "name": self.config.name,
            "status": "interrupted" if np.any(self.status == "interrupted") else "completed",
            "fits": self.status.size,
            "ended": self.ends(slice(None)),
            "compile_seconds": self.compile_seconds,
            "run_seconds": self.run_seconds,
            "device": self.device,
            "versions": versions(),
        }
        run_folder.write_json(folder / run_folder.MARK, summary)


def fit_grid(config: FitConfig, progress: Callable[[Progress], None] = lambda progress: None) -> Grid:
    """Fit every step size with every seed of ``config.many``; a seed draws the split and the initial values.

    A KeyboardInterrupt while steps are made, from the callback too, ends them with what there is: fits that have not
    ended have the status ``interrupted``.
    """
    many = config.many
    assert many is not None
    with jax.enable_x64(config.precision == "float64"):
        examples = load_examples(config.data)
        prepared = [prepare(examples, config, seed) for seed in many.seeds]
        inits = [
            initial_params(data, config.model.init_scale, seed) for data, seed in zip(prepared, many.seeds, strict=True)
        ]
        init = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inits)
        x, y = (jnp.asarray(np.stack([getattr(data, name) for data in prepared])) for name in ("x", "y"))
        step_sizes = jnp.asarray(many.step_sizes, x.dtype)
        total = config.stop.max_steps
        chunk = steps_in_chunk(x.size * max(init.bias[0].size, 1) * len(step_sizes))

        def problem(step_size: Any, x: Any, y: Any) -> tuple[Any, Any]:
            objective = LogisticObjective(
                x, y, l2=config.model.l2, gradient=config.model.gradient, num_classes=prepared[0].num_classes
            )
            return objective, make_solver(config.solver, total, step_size)

        @over_the_grid
        def begin(step_size: Any, x: Any, y: Any, init: Any, _: None) -> Any:
            objective, solver = problem(step_size, x, y)
            return start(objective, init, solver, tol=config.stop.tol, max_steps=total)

        @over_the_grid
        def go_on(step_size: Any, x: Any, y: Any, _: None, state: Any) -> Any:
            return advance(*problem(step_size, x, y), state, tol=config.stop.tol, max_steps=total, chunk=chunk)

        histories: list[Array] = []

        def see(solution: Solution) -> None:
            histories.append(np.asarray(solution.history.value))
            progress(_progress(solution, total))

        with compile_clock() as clock:
            started = time.perf_counter()
            state = begin(step_sizes, x, y, init, None)
            solution = follow(in_chunks(state, lambda state: go_on(step_sizes, x, y, None, state)), see)
            elapsed = time.perf_counter() - started
        names = solution.status.names
        history = np.concatenate(histories, axis=-1)[..., : int(np.max(solution.steps)) + 1]
        params = jax.tree.map(np.asarray, solution.params)
        fits = [[LogisticParams(w, b) for w, b in zip(*row, strict=True)] for row in zip(*params, strict=True)]
        k = len(examples.classes)
        evaluations = [[evaluate(fit, data.parts, k) for fit, data in zip(row, prepared, strict=True)] for row in fits]

        return Grid(
            config=config,
            params=params,
            status=np.where(names == "running", "interrupted", names),
            steps=np.asarray(solution.steps),
            value=np.asarray(solution.value),
            gradient_norm=np.asarray(solution.gradient_norm),
            history=_filled(history),
            train=[[parts[0] for parts in row] for row in evaluations],
            test=[[parts[1] for parts in row] for row in evaluations] if len(prepared[0].parts) > 1 else [],
            compile_seconds=clock.seconds(),
            run_seconds=max(elapsed - clock.seconds(), 0.0),
            device=device_name(),
        )


def over_the_grid(one: Callable[..., Any]) -> Callable[..., Any]:
    """One fit's function of (step size, x, y, init, state) as that of all fits, ``[step sizes, seeds]``."""
    over_seeds = jax.vmap(one, (None, 0, 0, 0, 0))
    return jax.jit(jax.vmap(over_seeds, (0, None, None, None, 0)))


def _progress(solution: Solution, total: int) -> Progress:
    """The number of steps is that of the fit that has made the most, and the loss is the lowest of all."""
    value = np.asarray(solution.value)
    best = np.unravel_index(np.argmin(np.where(np.isfinite(value), value, np.inf)), value.shape)
    running = int(np.sum(solution.status.names == "running"))
    norm = float(np.asarray(solution.gradient_norm)[best])
    return Progress(int(np.max(solution.steps)), total, float(value[best]), norm, value.size, running)


def _filled(history: Array) -> Array:
    """The history with each fit's last value held to the end."""
    at = np.where(np.isfinite(history), np.arange(history.shape[-1]), 0)
    return np.take_along_axis(history, np.maximum.accumulate(at, axis=-1), axis=-1)
