"""The run of a language model: text in, steps with checkpoints, and what held-out text costs at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from xentjax.solvers import status as codes
from xentjax.solvers.status import Status
from xentjax.training.language.baselines import Baselines
from xentjax.training.language.completion import complete
from xentjax.training.language.language_result import LanguageRun
from xentjax.training.language.language_steps import State, Training
from xentjax.training.language.tokenized import tokenize
from xentjax.training.language_config import LanguageConfig
from xentjax.training.machine import timed
from xentjax.training.run_state import RunState
from xentjax.training.steps import Stage, ended, follow
from xentjax.training.trace import Trace, identity

#: How much of a file the model writes at the end.
_TOKENS_OF_A_SAMPLE = 100


def train_language_model(
    config: LanguageConfig,
    progress: Callable[[Stage], None] = lambda stage: None,
    kept: RunState | None = None,
) -> LanguageRun:
    """Run the config. The callback is told what is done next, and of every step.

    A KeyboardInterrupt while steps are made, from the callback too, ends the run with what there is.

    Args:
      kept: where checkpoints are written, and read: the run goes on from the last one, with the same bits at the end.

    Raises:
      UserError: a mistake in the text, or in what is asked of it; or the checkpoint is that of another run.
    """
    with jax.enable_x64(config.precision == "float64"):
        progress(Stage("reading the text"))
        text = tokenize(config)
        training = Training(config, text)
        trace = Trace(kept, lambda: identity(config, text.digest), columns=0)
        start = trace.restored(training.initial_state())
        progress(Stage("counting tokens, compressing"))
        baselines = Baselines.of(text)

        def see(state: State) -> None:
            bits = training.recent_bits(state)
            progress(Stage(f"training, {bits:.3f} bits per byte, step", int(state.step), training.total))

        def keep(state: State, stopped: bool) -> None:
            if state.status == "running":
                trace.keep(int(state.step), state, watch, stopped)

        with timed() as watch:
            state = follow(training.states(start), see, keep)
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
            cost=watch.cost().and_before(trace.spent),
            blame=training.blame,
        )


def _sample(training: Training, state: State) -> str:
    """The beginning of a file as the model writes it, with a sign for what cannot be printed."""
    options: dict[str, Any] = {"context": training.context, "seed": training.config.seed}
    written = complete(state.params, training.text.tokenizer, b"", tokens=_TOKENS_OF_A_SAMPLE, **options)
    text = written.decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() or sign in "\t\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)
