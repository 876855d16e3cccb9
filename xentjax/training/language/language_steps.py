"""The steps by which a language model is trained, and its looks at the held-out text."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from xentjax.solvers import status as codes
from xentjax.solvers.status import Status
from xentjax.training.blame import LOSS, PARAMETERS, all_finite
from xentjax.training.devices import mesh_of
from xentjax.training.language.batches import covering_windows, require_enough, training_starts, training_windows
from xentjax.training.language.network import LanguageParams, context, initial_params, losses
from xentjax.training.language.split import Split
from xentjax.training.language.tokenized import Tokenized
from xentjax.training.language_config import LanguageConfig

Array = np.ndarray[Any, Any]

#: How often the held-out text is looked at while steps are made, and at how many of its tokens then.
_LOOKS, _TOKENS_OF_A_LOOK = 20, 16_384


class State(NamedTuple):
    """Where a run stands: all that the steps after it depend on, and its history."""

    params: LanguageParams
    optimizer: Any
    step: Array
    """How many steps are made."""
    code: Array
    """That of the status."""
    losses: Array
    """``[max_steps]``, the mean nats per token of each step's batch, before the step; NaN for those not made."""
    looks: Array
    """``[looks]``, the mean nats per token of a part of the held-out text; NaN for those to come."""

    @property
    def status(self) -> Status:
        return Status(int(self.code))


class Training:
    """What the config says is to be done with a text.

    Raises:
      UserError: the text is too short for a batch.
    """

    def __init__(self, config: LanguageConfig, text: Tokenized):
        self.config, self.text = config, text
        self.total = config.stop.max_steps
        self.context = context(config.model)
        require_enough(text.train.tokens, config.batches, self.context)
        self.transformation = config.solver.build(self.total).transformation
        self.split = Split(mesh_of(config.mesh))
        #: What the run has ended at, where its loss was not finite.
        self.blame: dict[str, Any] | None = None
        #: The steps after which the held-out text is looked at.
        self.looks = np.unique(np.linspace(0, self.total, _LOOKS + 1).astype(int)[1:])

    def initial_state(self) -> State:
        config = self.config
        counts = np.bincount(self.text.train.tokens[1:], minlength=config.vocabulary.size)
        params = self.split.params(initial_params(config.model, counts, config.seed, config.precision))
        return State(
            params=params,
            optimizer=self.transformation.init(params),
            step=np.asarray(0),
            code=np.asarray(codes.RUNNING),
            losses=np.full(self.total, np.nan),
            looks=np.full(len(self.looks), np.nan),
        )

    def states(self, state: State) -> Iterator[State]:
        """The state, and the one after each step until the run ends.

        A state is shown when the loss of the next batch is known to be finite. Where it is not, the last one that was
        shown ends the run.
        """
        shown = state
        while state.status == "running":
            after, loss = self._after(state)
            if not np.isfinite(loss):
                self.blame = self._blame(state)
                yield shown._replace(code=np.asarray(codes.DIVERGED if state.step else codes.NOT_FINITE))
                return
            yield state
            shown, state = state, after
        yield state

    def _blame(self, state: State) -> dict[str, Any]:
        """The batch after a state, whose loss is not finite; or the one before it, where it has led to parameters that
        are not."""
        is_finite = all_finite(state.params)
        step = int(state.step) if is_finite else int(state.step) - 1
        part, batches = self.text.train, self.config.batches
        starts = training_starts(len(part.tokens), step, batches, self.context, self.config.seed) + self.context
        files = part.files_at(starts)
        windows = [
            {"file": file, "first_token": start, "tokens": batches.length}
            for file, start in zip(files, starts.tolist(), strict=True)
        ]
        why = LOSS if is_finite else PARAMETERS
        return {"why": why, "step": step, "examples": len(windows), "windows": windows}

    def _after(self, state: State) -> tuple[State, float]:
        """The state after one more step, and the loss of its batch before."""
        step = int(state.step)
        windows = training_windows(self.text.train.tokens, step, self.config.batches, self.context, self.config.seed)
        with self.split.set():
            params, optimizer, loss = _step(self.transformation, self.split, state.params, state.optimizer, windows)
        after = State(
            params=params,
            optimizer=optimizer,
            step=np.asarray(step + 1),
            code=np.asarray(codes.RUNNING if step + 1 < self.total else codes.COMPLETED),
            losses=np.where(np.arange(self.total) == step, loss, state.losses),
            looks=np.where(self.looks == step + 1, self._look(step + 1, params), state.looks),
        )
        return after, float(loss)

    def _look(self, step: int, params: LanguageParams) -> float:
        """The mean nats per token of a part of the held-out text, NaN after steps where there is no look."""
        if step not in self.looks:
            return np.nan
        batch = self.config.batches.size * self.config.batches.length
        nats, tokens = self.held_out(params, max(_TOKENS_OF_A_LOOK // batch, 1))
        return nats / tokens

    def held_out(self, params: LanguageParams, batches: int | None = None) -> tuple[float, int]:
        """The cross-entropy of the held-out text in nats, and of how many tokens: all, or those of so many batches."""
        nats, tokens = 0.0, 0
        for windows, counts in covering_windows(self.text.test.tokens, self.config.batches, self.context, batches):
            with self.split.set():
                of_tokens = np.asarray(_losses(self.split, params, windows, counts), np.float64)
            nats += float(np.sum(of_tokens))
            tokens += int(np.sum(counts))
        return nats, tokens

    def recent_bits(self, state: State) -> float:
        """The mean bits per byte of the last 20 batches; NaN before the first."""
        done, train = int(state.step), self.text.train
        recent = state.losses[max(done - 20, 0) : done]
        return train.bits_per_byte(float(np.mean(recent)) * train.predicted) if done else np.nan


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(
    transformation: optax.GradientTransformation, split: Split, params: LanguageParams, optimizer: Any, windows: Any
) -> tuple[LanguageParams, Any, jax.Array]:
    """Parameters and state of the optimizer after a step, and the mean loss of its batch before."""
    windows = split.windows(windows)
    params = split.params(params)  # wherever a checkpoint has put them
    of = lambda p: losses(p, windows, split, reduction="mean")
    loss, gradient = jax.value_and_grad(of)(params)
    update = optax.with_extra_args_support(transformation).update
    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        updates, optimizer = update(gradient, optimizer, params, value=loss, grad=gradient, value_fn=of)
        params = optax.apply_updates(params, updates)
    return split.params(params), optimizer, loss


@functools.partial(jax.jit, static_argnums=0)
def _losses(split: Split, params: LanguageParams, windows: Any, counts: Any) -> jax.Array:
    """The nats of each token, 0 for those that do not count."""
    return losses(params, split.windows(windows), split, weights=counts.astype(params.bias.dtype))
