"""A grid of fits, every step size with every seed, as one vmapped program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.solvers import status as codes
from xentjax.solvers.minimize import Solution, advance, in_chunks, start
from xentjax.solvers.status import Status
from xentjax.training import run_folder
from xentjax.training.config import FitConfig, ManyConfig
from xentjax.training.evaluation import Evaluation, evaluations
from xentjax.training.machine import Cost, timed
from xentjax.training.prepared import Part, Prepared, initial_params, load_examples, require_in_memory, split_and_encode
from xentjax.training.steps import Progress, ended, follow, steps_in_chunk

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Grid:
    """The fits of a grid; arrays are ``[step sizes, seeds]``, the history ``[step sizes, seeds, steps + 1]``."""

    config: FitConfig
    params: LogisticParams
    status: Status
    steps: Array
    value: Array
    gradient_norm: Array
    history: Array
    train: list[list[Evaluation]]
    test: list[list[Evaluation]]
    cost: Cost

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it before every fit had ended."""
        return bool(np.any(self.status == "interrupted"))

    @property
    def failure(self) -> None:
        """None: fits that fail are what a grid is to find."""

    @property
    def many(self) -> ManyConfig:
        assert self.config.many is not None
        return self.config.many

    def cross_entropy(self, part: list[list[Evaluation]]) -> Array:
        return np.asarray([[one.cross_entropy for one in row] for row in part])

    def ends(self, part: Any) -> dict[str, int]:
        """How the fits of a part of the grid have ended, and how many of them so."""
        names, counts = np.unique(self.status.names[part], return_counts=True)
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
            "kind": run_folder.GRID,
            "name": self.config.name,
            "status": str(Status(codes.INTERRUPTED if self.interrupted else codes.COMPLETED)),
            "fits": self.steps.size,
            "ended": self.ends(slice(None)),
            **self.cost.summary(),
        }
        run_folder.write_json(folder / run_folder.MARK, summary)


def fit_grid(config: FitConfig, progress: Callable[[Progress], None] = lambda progress: None) -> Grid:
    """Fit every step size with every seed of ``config.many``; a seed draws the split and the initial values.

    A KeyboardInterrupt while steps are made, from the callback too, ends them with what there is: fits that have not
    ended have the status ``interrupted``.
    """
    assert config.many is not None
    with jax.enable_x64(config.precision == "float64"):
        examples = load_examples(config.data)
        prepared = [split_and_encode(examples, config, seed) for seed in config.many.seeds]
        require_in_memory(prepared[0], "many")
        with timed() as watch:
            solution, history = _minimize_all(config, config.many, prepared, progress)
        params = jax.tree.map(np.asarray, solution.params)
        fits = [[LogisticParams(w, b) for w, b in zip(*row, strict=True)] for row in zip(*params, strict=True)]
        k = len(examples.classes)
        parts = [[evaluations(fit, data.parts, k) for fit, data in zip(row, prepared, strict=True)] for row in fits]
        return Grid(
            config=config,
            params=params,
            status=ended(solution.status),
            steps=np.asarray(solution.steps),
            value=np.asarray(solution.value),
            gradient_norm=np.asarray(solution.gradient_norm),
            history=_filled(history[..., : int(np.max(solution.steps)) + 1]),
            train=[[of[0] for of in row] for row in parts],
            test=[[of[1] for of in row] for row in parts] if len(prepared[0].parts) > 1 else [],
            cost=watch.cost(),
        )


def _minimize_all(
    config: FitConfig, many: ManyConfig, prepared: list[Prepared], progress: Callable[[Progress], None]
) -> tuple[Solution, Array]:
    """Where the fits end, and the history of their objectives; every field ``[step sizes, seeds, ...]``."""
    pairs = zip(prepared, many.seeds, strict=True)
    inits = [initial_params(data, config.model.init_scale, seed) for data, seed in pairs]
    init = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inits)
    x, y, weights = (_stacked([getattr(data.train, name) for data in prepared]) for name in Part._fields)
    data = x, y, weights
    step_sizes = jnp.asarray(many.step_sizes, x.dtype)
    tol, max_steps = config.stop.tol, config.stop.max_steps
    chunk = steps_in_chunk(x.size * max(init.bias[0].size, 1) * len(step_sizes))

    def problem(step_size: Any, data: Any) -> tuple[Any, Any]:
        x, y, weights = data
        objective = LogisticObjective(
            x, y, config.model.l2, weights, gradient=config.model.gradient, num_classes=prepared[0].num_classes
        )
        return objective, config.solver.build(max_steps, step_size)

    @over_the_grid
    def begin(step_size: Any, data: Any, init: Any, _: None) -> Any:
        objective, solver = problem(step_size, data)
        return start(objective, init, solver, tol=tol, max_steps=max_steps)

    @over_the_grid
    def go_on(step_size: Any, data: Any, _: None, state: Any) -> Any:
        return advance(*problem(step_size, data), state, tol=tol, max_steps=max_steps, chunk=chunk)

    histories: list[Array] = []

    def see(solution: Solution) -> None:
        histories.append(np.asarray(solution.history.value))
        progress(_progress(solution, max_steps))

    state = begin(step_sizes, data, init, None)
    solution = follow(in_chunks(state, lambda state: go_on(step_sizes, data, None, state)), see)
    return solution, np.concatenate(histories, axis=-1)


def _stacked(arrays: list[Any]) -> Any:
    return None if arrays[0] is None else jnp.asarray(np.stack(arrays))


def over_the_grid(one: Callable[..., Any]) -> Callable[..., Any]:
    """One fit's function of (step size, data, init, state) as that of all fits, ``[step sizes, seeds]``."""
    over_seeds = jax.vmap(one, (None, 0, 0, 0))
    return jax.jit(jax.vmap(over_seeds, (0, None, None, 0)))


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
