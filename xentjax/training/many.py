"""A grid of fits, every step size with every seed, as one vmapped program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.solvers import status as codes
from xentjax.solvers.minimize import History, Solution, State, advance, in_chunks, solution, start
from xentjax.solvers.status import Status
from xentjax.training import run_folder
from xentjax.training.config import FitConfig, ManyConfig
from xentjax.training.devices import mesh_of
from xentjax.training.evaluation import Evaluation, evaluations
from xentjax.training.machine import Cost, Stopwatch, timed
from xentjax.training.prepared import Part, Prepared, initial_params, load_examples, require_in_memory, split_and_encode
from xentjax.training.run_state import RunState
from xentjax.training.steps import Progress, ended, follow, steps_in_chunk
from xentjax.training.trace import Trace, identity

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


def fit_grid(
    config: FitConfig,
    progress: Callable[[Progress], None] = lambda progress: None,
    kept: RunState | None = None,
) -> Grid:
    """Fit every step size with every seed of ``config.many``; a seed draws the split and the initial values.

    A KeyboardInterrupt while steps are made, from the callback too, ends them with what there is: fits that have not
    ended have the status ``interrupted``.

    Args:
      kept: where checkpoints are written, and read: the grid goes on from the last one, with the same bits at the end.
    """
    assert config.many is not None
    with jax.enable_x64(config.precision == "float64"):
        examples = load_examples(config.data)
        prepared = [split_and_encode(examples, config, seed) for seed in config.many.seeds]
        require_in_memory(prepared[0], "many")
        digests = [data.digest for data in prepared] if kept is not None else []
        trace = Trace(kept, lambda: identity(config, " ".join(digests)), columns=1)
        with timed() as watch:
            ends = _minimize_all(config, config.many, prepared, progress, trace, watch)
        (history,) = trace.history
        params = jax.tree.map(np.asarray, ends.params)
        fits = [[LogisticParams(w, b) for w, b in zip(*row, strict=True)] for row in zip(*params, strict=True)]
        k = len(examples.classes)
        parts = [[evaluations(fit, data.parts, k) for fit, data in zip(row, prepared, strict=True)] for row in fits]
        return Grid(
            config=config,
            params=params,
            status=ended(ends.status),
            steps=np.asarray(ends.steps),
            value=np.asarray(ends.value),
            gradient_norm=np.asarray(ends.gradient_norm),
            history=_filled(history[..., : int(np.max(ends.steps)) + 1]),
            train=[[of[0] for of in row] for row in parts],
            test=[[of[1] for of in row] for row in parts] if len(prepared[0].parts) > 1 else [],
            cost=watch.cost().and_before(trace.spent),
        )


def _minimize_all(
    config: FitConfig,
    many: ManyConfig,
    prepared: list[Prepared],
    progress: Callable[[Progress], None],
    trace: Trace,
    watch: Stopwatch,
) -> Solution:
    """Where the fits end, and in the trace the history of their objectives; fields are ``[step sizes, seeds, ...]``."""
    pairs = zip(prepared, many.seeds, strict=True)
    inits = [initial_params(data, config.model.init_scale, seed) for data, seed in pairs]
    init = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inits)
    x, y, weights = (_stacked([getattr(data.train, name) for data in prepared]) for name in Part._fields)
    data = x, y, weights
    # The last one again and again, where the devices do not divide their number.
    mesh, count = mesh_of(config.mesh), len(many.step_sizes)
    devices = 1 if mesh is None else mesh.size
    of_all = [many.step_sizes[min(i, count - 1)] for i in range(-(-count // devices) * devices)]
    step_sizes = jnp.asarray(of_all, x.dtype)
    tol, max_steps = config.stop.tol, config.stop.max_steps
    chunk = steps_in_chunk(x.size * max(init.bias[0].size, 1) * len(step_sizes))

    def problem(step_size: Any, data: Any) -> tuple[Any, Any]:
        x, y, weights = data
        objective = LogisticObjective(
            x, y, config.model.l2, weights, gradient=config.model.gradient, num_classes=prepared[0].num_classes
        )
        return objective, config.solver.build(max_steps, step_size)

    @functools.partial(over_the_grid, mesh=mesh)
    def begin(step_size: Any, data: Any, init: Any, _: None) -> Any:
        objective, solver = problem(step_size, data)
        return start(objective, init, solver, tol=tol, max_steps=max_steps)

    @functools.partial(over_the_grid, mesh=mesh)
    def go_on(step_size: Any, data: Any, _: None, state: Any) -> Any:
        at_once = min(chunk, config.checkpoint.every_steps or chunk)
        how: dict[str, Any] = {"tol": tol, "max_steps": max_steps, "chunk": chunk, "most": at_once}
        return advance(*problem(step_size, data), state, **how)

    def see(found: tuple[State, History]) -> None:
        state, history = found
        new = int(np.max(state.step)) + 1 - trace.length
        trace.add(np.asarray(history.value)[:count, ..., :new])
        progress(_progress(solution(*found), max_steps))

    def keep(found: tuple[State, History], stopped: bool) -> None:
        state, _ = found
        if np.any(np.asarray(state.code) == codes.RUNNING):
            trace.keep(int(np.max(state.step)), state, watch, stopped)

    state = trace.restored(begin(step_sizes, data, init, None))
    found = solution(*follow(in_chunks(state, lambda state: go_on(step_sizes, data, None, state)), see, keep))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], found)


def _stacked(arrays: list[Any]) -> Any:
    return None if arrays[0] is None else jnp.asarray(np.stack(arrays))


def over_the_grid(one: Callable[..., Any], mesh: Mesh | None = None) -> Callable[..., Any]:
    """One fit's function of (step size, data, init, state) as that of all fits, ``[step sizes, seeds]``, the step sizes
    dealt to the devices of a mesh."""
    over_seeds = jax.vmap(one, (None, 0, 0, 0))
    of_all = jax.vmap(over_seeds, (0, None, None, 0))
    if mesh is None:
        return jax.jit(of_all)
    dealt, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
    specs = (dealt, everywhere, everywhere, dealt)
    # Nothing is summed over the devices, so that there is nothing to check of what varies over them.
    return jax.jit(jax.shard_map(of_all, mesh=mesh, in_specs=specs, out_specs=dealt, check_vma=False))


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
