"""What made the loss of a run NaN or infinite: the step, its batch, and the examples in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xentjax.models import _rows, one_pass
from xentjax.solvers.minimize import State
from xentjax.training import run_folder
from xentjax.training.data import Examples
from xentjax.training.minibatch import MinibatchResult, rows_of_batch
from xentjax.training.streams.scan import Scanned

Array = np.ndarray[Any, Any]

#: The file in the run folder, and of how many examples it says at most where they are.
FILE, _MOST_ROWS = "not_finite.json", 1000

#: How it comes about.
LOSS, PARAMETERS = "a loss that is not finite", "a step to parameters that are not finite"


class Blame(NamedTuple):
    """What a run has stopped at: the step, counted from 0, and in mini-batches the epoch and its batch, too."""

    why: str
    step: int
    rows: Array
    """Which training examples: those of a full step that have such a loss, or all of a batch."""
    epoch: int | None = None
    batch: int | None = None

    def found_in(self, examples: Examples | Scanned, training: Array) -> dict[str, Any]:
        """The same in words and numbers for :func:`write_blame`, with lines and rows as the user finds them.

        Args:
          training: which ones of all examples are trained on.
        """
        rows = training[self.rows[:_MOST_ROWS]].tolist()
        table = examples.table
        counted_in, places = ("examples", [row + 1 for row in rows]) if table is None else table.located(rows)
        told = {
            "why": self.why,
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "examples": len(self.rows),
            "file": None if table is None else str(table.path),
            "counted_in": counted_in,
            "rows": places,
        }
        return {key: value for key, value in told.items() if value is not None}


def of_step(objective: Any, solver: Any, state: State) -> Blame:
    """What one more step of all examples leads to."""
    point = jax.jit(lambda: solver.step(objective, state.point, state.solver)[0])()
    return of_params(point.params, objective, int(state.step))


def of_params(params: Any, objective: Any, step: int) -> Blame:
    """The examples whose loss is not finite at these parameters."""
    wrong = ~np.isfinite(_losses(objective, params))
    return Blame(LOSS if all_finite(params) else PARAMETERS, step, np.flatnonzero(wrong))


def of_batches(results: Iterator[MinibatchResult], before: MinibatchResult, n: int, size: int) -> Blame | None:
    """The first batch, of results after one batch each, whose loss is not finite, or the parameters after it.

    Args:
      before: the result that they go on from.
      n: how many examples there are, ``size`` of which are in a batch.
    """
    epoch, batch, per_epoch = int(before.epochs), int(before.batches), len(before.losses)
    for result in results:
        is_finite = bool(np.isfinite(result.losses[batch]))
        if not (is_finite and all_finite(result.params)):
            rows = np.asarray(rows_of_batch(before.key, epoch, batch, n, size))
            return Blame(PARAMETERS if is_finite else LOSS, epoch * per_epoch + batch, rows, epoch, batch)
        batch += 1
        if batch == per_epoch:
            return None
    return None


@jax.jit
def _losses(objective: Any, params: Any) -> Any:
    """The cross-entropy of each example."""
    return one_pass.each_row(lambda block: _rows.losses(block.z, block.y), params, objective.rows)


def all_finite(tree: Any) -> bool:
    """Whether all numbers of a pytree are."""
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def write_blame(told: Mapping[str, Any] | None, folder: Path) -> None:
    if told is not None:
        run_folder.write_json(folder / FILE, told)


def in_a_line(told: Mapping[str, Any]) -> str:
    """What a run has stopped at, and where more is said."""
    at = f"step {told['step']}"
    if "epoch" in told:
        at += f", batch {told['batch']} of epoch {told['epoch']}"
    places, what = told.get("rows", []), told.get("counted_in", "")
    if "windows" in told:
        places, what = sorted({window["file"] for window in told["windows"]}), "in"
    shown = ", ".join(map(str, places[:5])) + (", ..." if len(places) > 5 else "")
    of = f" of {told['file']}" if "file" in told else ""
    which = f" ({what} {shown}{of})" if shown else ""
    if not told["examples"]:
        return f"{at} brings {told['why']}, though that of each example is: the penalty is too large"
    return f"{at} brings {told['why']}: {told['examples']} examples{which}; {FILE} says where they are"
