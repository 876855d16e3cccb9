"""A training run: data in, steps in chunks with progress told between them, an evaluated model out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xentjax.core import policy
from xentjax.models.logistic import LogisticParams
from xentjax.models.objective import LogisticObjective
from xentjax.models.spread import Spread, on_host
from xentjax.models.streamed import StreamedRows, reading
from xentjax.solvers.kept import kept
from xentjax.solvers.status import Status
from xentjax.training import run_folder
from xentjax.training.blame import write_blame
from xentjax.training.config import FitConfig
from xentjax.training.devices import mesh_of
from xentjax.training.evaluation import Evaluation, evaluations
from xentjax.training.machine import Cost, timed
from xentjax.training.prepared import initial_params, load_examples, require_in_memory, split_and_encode
from xentjax.training.run_state import RunState
from xentjax.training.steps import Ending, Progress, Stand, ended, follow, stands, total_steps, value_and_largest
from xentjax.training.trace import Trace, identity

Array = np.ndarray[Any, Any]


#: So many rows of a file tell how hand-derived and automatic gradients differ.
_FIRST = 4096


@dataclass(frozen=True)
class Fitted(Ending):
    """What a run ends with. Times are in seconds; the steps of the history are numbered from 0, the initial values."""

    config: FitConfig
    model: run_folder.Model
    status: Status
    steps: Array
    value: Array
    gradient_norm: Array
    train: Evaluation
    test: Evaluation | None
    gradient_deviation: float
    cost: Cost
    blame: dict[str, Any] | None = None
    skipped: int = 0
    """How many rows of the table were left out, as something in them was wrong."""

    def summary(self) -> dict[str, Any]:
        return {
            "kind": run_folder.FIT,
            "name": self.config.name,
            "status": str(self.status),
            "message": self.status.message,
            "steps": int(self.steps[-1]),
            "objective_nats": self.value[-1],
            "gradient_norm": self.gradient_norm[-1],
            "gradient_deviation": self.gradient_deviation,
            "skipped_rows": self.skipped,
            "train": self.train.summary(),
            "test": None if self.test is None else self.test.summary(),
            **self.cost.summary(),
        }

    def write(self, folder: Path) -> None:
        """Everything of the run folder but the pictures."""
        run_folder.write_config(folder, self.config)
        self.model.write(folder)
        history = zip(self.steps, self.value, self.gradient_norm, strict=True)
        rows = ({"step": step, "value": value, "gradient_norm": norm} for step, value, norm in history)
        run_folder.write_json_lines(folder / "metrics.jsonl", rows)
        write_blame(self.blame, folder)
        run_folder.write_json(folder / run_folder.MARK, self.summary())


def fit(
    config: FitConfig,
    progress: Callable[[Progress], None] = lambda progress: None,
    kept: RunState | None = None,
) -> Fitted:
    """Run the config. The callback is told of the initial values and of every chunk of steps after them.

    A KeyboardInterrupt while steps are made, from the callback too, ends the run with what there is. The status is
    that of the solution, or ``interrupted``.

    Args:
      kept: where checkpoints are written, and read: the run goes on from the last one, with the same bits at the end.
    """
    with jax.enable_x64(config.precision == "float64"):
        examples = load_examples(config.data)
        data = split_and_encode(examples, config, config.seed)
        mesh = mesh_of(config.mesh)
        for asked, what in ((config.model.gradient == "auto", "model.gradient 'auto'"), (mesh is not None, "mesh")):
            if asked:
                require_in_memory(data, what)
        place = policy.copied if mesh is None else on_host
        x, y, weights = data.x if data.streamed else place(data.x), place(data.y), data.train.weights
        weights = None if weights is None else place(weights.astype(data.x.dtype))
        model = config.model
        objective = LogisticObjective(
            x, y, l2=model.l2, weights=weights, gradient=model.gradient, num_classes=data.num_classes
        )
        init = initial_params(data, model.init_scale, config.seed)
        if mesh is not None:
            spread = Spread.over("fit", mesh)
            objective, init = objective.on(spread), spread.everywhere(init)
        total = total_steps(config, len(data.y))
        trace = Trace(kept, lambda: identity(config, data.digest))

        def see(stand: Stand) -> None:
            trace.add(*stand.history)
            progress(Progress(stand.step, total, stand.value, stand.gradient_norm))

        with timed() as watch, reading(data.x):

            def keep(stand: Stand, stopped: bool) -> None:
                if stand.status == "running":
                    trace.keep(stand.step, stand.run, watch, stopped)

            stand = follow(stands(config, objective, (x, y, weights), init, total, trace.restored, mesh), see, keep)
            if stand.step > trace.history[0][-1]:  # stopped within an epoch
                last = value_and_largest(objective, stand.params)
                trace.add(*(np.asarray([column]) for column in (stand.step, *last)))
        steps, value, gradient_norm = trace.history
        params = jax.tree.map(np.asarray, stand.params)
        parts = evaluations(params, data.parts, len(data.classes))
        return Fitted(
            config=config,
            model=run_folder.Model(data.encoder, data.classes, params),
            status=ended(stand.status),
            steps=steps,
            value=value,
            gradient_norm=gradient_norm,
            train=parts[0],
            test=parts[1] if len(parts) > 1 else None,
            gradient_deviation=gradient_deviation(_in_memory(objective), params),
            cost=watch.cost().and_before(trace.spent),
            blame=None if stand.blame is None else stand.blame.found_in(examples, data.rows),
            skipped=data.skipped,
        )


def _in_memory(objective: LogisticObjective) -> LogisticObjective:
    """The objective; of streamed rows, that on the first of them."""
    if not isinstance(objective.x, StreamedRows):
        return objective
    few: Any = lambda rows: None if rows is None else rows[:_FIRST]
    x: Array = np.empty((min(_FIRST, objective.x.shape[0]), objective.x.shape[1]), objective.x.dtype)
    source: Any = objective.x.source
    source.read(0, x)
    return dataclasses.replace(objective, x=x, y=few(objective.y), weights=few(objective.weights))


def gradient_deviation(objective: Any, params: LogisticParams) -> float:
    """The largest difference between a component of the hand-derived gradient and of the automatic one."""
    hand, auto = (_gradient(dataclasses.replace(objective, gradient=source), params) for source in ("hand", "auto"))
    return max(float(np.max(np.abs(h - a))) for h, a in zip(*jax.device_get((hand, auto)), strict=True))


@kept()
def _gradient(objective: Any, params: Any) -> Any:
    return objective.value_and_gradient(params)[1]
