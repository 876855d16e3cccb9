"""The run of a language model: text in, steps with checkpoints, and what held-out text costs at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xentjax.solvers import status as codes
from xentjax.solvers.status import Status
from xentjax.training.checkpoint import Checkpoint
from xentjax.training.language.baselines import Baselines
from xentjax.training.language.completion import complete
from xentjax.training.language.language_result import LanguageRun
from xentjax.training.language.language_steps import State, Training
from xentjax.training.language.tokenized import Tokenized, tokenize
from xentjax.training.language_config import LanguageConfig
from xentjax.training.machine import device_name, timed, versions
from xentjax.training.steps import Stage, ended, follow

#: How much of a file the model writes at the end.
_TOKENS_OF_A_SAMPLE = 100


def train_language_model(
    config: LanguageConfig, progress: Callable[[Stage], None] = lambda stage: None, checkpoint: Path | None = None
) -> LanguageRun:
    """Run the config. The callback is told what is done next, and of every step.

    A KeyboardInterrupt while steps are made, from the callback too, ends the run with what there is.

    Args:
      checkpoint: the file for the state of the run, written as often as the config says and where the user stops it.
        If it is there the run goes on from it, and ends with the same bits as one that was not stopped.

    Raises:
      UserError: a mistake in the text, or in what is asked of it; or the checkpoint is that of another run.
    """
    with jax.enable_x64(config.precision == "float64"):
        progress(Stage("reading the text"))
        text = tokenize(config)
        training = Training(config, text)
        state, keep = training.initial_state(), None
        if checkpoint is not None:
            keep = Checkpoint(checkpoint, _identity(config, text))
            saved = keep.load(state)
            state = state if saved is None else saved
        progress(Stage("counting tokens, compressing"))
        baselines = Baselines.of(text)
        seconds_before = float(state.seconds)
        with timed() as watch:
            state = _followed(training, state, progress, keep)
        cost = watch.cost()
        with contextlib.suppress(KeyboardInterrupt):  # what is trained is evaluated
            progress(Stage("predicting the held-out text"))
        nats, _ = training.held_out(state.params)
        return LanguageRun(
            config=config,
            text=text,
            params=jax.tree.map(np.asarray, state.params),
            status=ended(state.status) if np.isfinite(nats) else Status(codes.DIVERGED),
            losses=np.asarray(state.losses)[: int(state.step)],
            look_steps=training.looks[~np.isnan(state.looks)],
            looks=np.asarray(state.looks)[~np.isnan(state.looks)],
            held_out_nats=nats,
            baselines=baselines,
            sample=_sample(training, state) if np.isfinite(nats) else "",
            cost=cost._replace(run_seconds=seconds_before + cost.run_seconds),
        )


def _sample(training: Training, state: State) -> str:
    """The beginning of a file as the model writes it, with a sign for what cannot be printed."""
    options: dict[str, Any] = {"context": training.context, "seed": training.config.seed}
    written = complete(state.params, training.text.tokenizer, b"", tokens=_TOKENS_OF_A_SAMPLE, **options)
    text = written.decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() or sign in "\t\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _identity(config: LanguageConfig, text: Tokenized) -> dict[str, Any]:
    """What the bits of a run depend on."""
    return {
        "config": config.model_dump(exclude={"name", "checkpoint"}),
        "text": text.digest,
        "device": device_name(),
        "set of versions": versions("xentjax", "jax", "jaxlib", "optax", "numpy"),
    }


def _followed(training: Training, state: State, progress: Callable[[Stage], None], keep: Checkpoint | None) -> State:
    """The state after all steps, or after those until the user stops it."""
    written = time.monotonic()

    def see(state: State) -> None:
        nonlocal written
        if keep is not None and time.monotonic() - written >= training.config.checkpoint.seconds:
            keep.save(state)
            written = time.monotonic()
        bits = training.recent_bits(state)
        progress(Stage(f"training, {bits:.3f} bits per byte, step", int(state.step), training.total))

    state = follow(training.states(state), see)
    if keep is not None and state.status == "running":
        keep.save(state)
    return state
