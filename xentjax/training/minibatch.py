"""Mini-batch training: shuffled epochs as scans over batches, the same for the same seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xentjax.models.streamed import StreamedRows
from xentjax.solvers.compiled import types_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinibatchResult:
    """Where mini-batch training stands after ``epochs`` epochs.

    ``history`` has the fixed length of the run: the mean loss of each epoch, before the update of each batch, with
    NaN for epochs that are not done. ``key`` is the random key that all epochs' orders are derived from.
    """

    params: Any
    optimizer_state: Any
    history: jax.Array
    epochs: jax.Array
    key: jax.Array


def train_minibatch(
    loss: Callable[..., Any],
    init: Any,
    data: Any,
    transformation: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int | jax.Array = 0,
    weights: Any = None,
) -> MinibatchResult:
    r"""Train on shuffled mini-batches with any optax transformation.

    Every epoch draws an order of the n rows from the seed and its own number, and takes
    :math:`\lceil n / b\rceil` steps on b rows each. The last batch is filled up with rows of weight 0, so that each
    row is used exactly once.

    Args:
      loss: ``loss(params, *batch, weights=w)``, the weighted mean loss of a batch, such as :func:`logistic_loss`.
        A row of weight 0 must not count.
      init: initial parameters, a pytree of float arrays.
      data: a tuple of arrays with n rows each, such as ``(x, y)``. Rows of a file (:func:`open_rows`) may be among
        them: each row of a batch is read where it stands, in the order of arrays in memory.
      transformation: an optax transformation; its schedules count batches.
      epochs: how many epochs.
      batch_size: b; more than n means n.
      seed: an integer (one may ``vmap`` over it) or a key of ``jax.random.key``.
      weights: example weights ``[n]``. A batch's loss is divided by the sum of its own weights; the epoch's loss in the
        history weighs each batch with that sum.

    Returns:
      A :class:`MinibatchResult`. The same seed gives the same numbers, bit by bit.

    Raises:
      ValueError: the arrays differ in their rows, there are none, or epochs or batch_size are not positive.

    Example:
      >>> import jax.numpy as jnp, optax, xentjax as xj
      >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0], [3.0]]), jnp.array([0, 0, 1, 1, 1])
      >>> init = xj.LogisticParams(jnp.zeros(1), jnp.zeros(()))
      >>> result = xj.train_minibatch(xj.logistic_loss, init, (x, y), optax.sgd(0.5), epochs=3, batch_size=2)
      >>> bool(jnp.all(jnp.diff(result.history) < 0)), xj.predict(result.params, x)
      (True, Array([0, 0, 1, 1, 1], dtype=int32))
    """
    run = _Run(loss, transformation, *_rows(data, weights, batch_size))
    state = _initial("train_minibatch", run, init, epochs, seed)
    return _epochs(run.static(state.params), state, run.data, run.weights, epochs)


def iterate_minibatch(
    loss: Callable[..., Any],
    init: Any,
    data: Any,
    transformation: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int | jax.Array = 0,
    weights: Any = None,
    resume: MinibatchResult | None = None,
) -> Iterator[MinibatchResult]:
    """:func:`train_minibatch` epoch by epoch: yields the result so far after each.

    The same compiled loop runs, so that the last result is that of ``train_minibatch``, bit by bit.  ``resume`` goes
    on from a result of the same loss, data and transformation, as if it had not been interrupted; its parameters and
    key stand in place of ``init`` and ``seed``.

    Example:
      >>> import jax.numpy as jnp, optax, xentjax as xj
      >>> x, y = jnp.array([[-1.0], [1.0]]), jnp.array([0, 1])
      >>> arguments = (xj.logistic_loss, xj.LogisticParams(jnp.zeros(1), jnp.zeros(())), (x, y), optax.sgd(0.5))
      >>> [int(r.epochs) for r in xj.iterate_minibatch(*arguments, epochs=3, batch_size=1)]
      [1, 2, 3]
    """
    run = _Run(loss, transformation, *_rows(data, weights, batch_size))
    state = _initial("iterate_minibatch", run, init, epochs, seed)
    if resume is not None:
        kept = resume.history[:epochs]
        history = state.history.at[: kept.shape[0]].set(kept)
        state = dataclasses.replace(resume, history=history)
    for done in range(int(state.epochs) + 1, epochs + 1):
        state = _epochs(run.static(state.params), state, run.data, run.weights, done)
        yield state


@dataclasses.dataclass(frozen=True)
class _Run:
    loss: Callable[..., Any]
    transformation: optax.GradientTransformation
    data: Any
    weights: jax.Array
    batch_size: int

    def static(self, params: Any) -> tuple[Any, ...]:
        return self.loss, self.transformation, self.batch_size, types_in(jax.tree.structure((params, self.data)))


def _rows(data: Any, weights: Any, batch_size: int) -> tuple[Any, jax.Array, int]:
    """The data as arrays, a weight for each row, and the size of a batch."""
    data = tuple(array if isinstance(array, StreamedRows) else jnp.asarray(array) for array in data)
    if not data or data[0].ndim == 0 or data[0].shape[0] == 0:
        raise ValueError("minibatch: data must be a tuple of arrays with at least one row")
    n = data[0].shape[0]
    for i, array in enumerate(data):
        if array.ndim == 0 or array.shape[0] != n:
            raise ValueError(f"minibatch: data[{i}] has shape {array.shape}, but needs {n} rows as data[0] has")
    if batch_size < 1:
        raise ValueError(f"minibatch: batch_size must be at least 1, got {batch_size}")
    if weights is None:
        floats = [a.dtype for a in data if jnp.issubdtype(a.dtype, jnp.floating)]
        weights = jnp.ones(n, jnp.result_type(jnp.float32, *floats))
    weights = jnp.asarray(weights)
    if weights.shape != (n,):
        raise ValueError(
            f"minibatch: weights has shape {weights.shape}, but needs {(n,)}, one for each row of the data"
        )
    return data, weights, min(batch_size, n)


def _initial(function: str, run: _Run, init: Any, epochs: int, seed: Any) -> MinibatchResult:
    if epochs < 1:
        raise ValueError(f"{function}: epochs must be at least 1, got {epochs}")
    key = seed if jnp.issubdtype(jnp.result_type(seed), jax.dtypes.prng_key) else jax.random.key(seed)
    init = jax.tree.map(jnp.asarray, init)
    arrays = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in run.data)
    value = jax.eval_shape(run.loss, init, *arrays, weights=run.weights)
    return MinibatchResult(
        params=init,
        optimizer_state=run.transformation.init(init),
        history=jnp.full((epochs,), jnp.nan, value.dtype),
        epochs=jnp.zeros((), jnp.int32),
        key=key,
    )


@functools.partial(jax.jit, static_argnums=0)
def _epochs(static: Any, state: MinibatchResult, data: Any, weights: Any, limit: Any) -> MinibatchResult:
    """Epochs up to number ``limit``."""
    loss, transformation, size, _ = static
    n = weights.shape[0]
    batches = -(-n // size)
    update = optax.with_extra_args_support(transformation).update

    def one_batch(carry: Any, batch: Any) -> Any:
        params, inside = carry
        rows, counts = batch
        here = [array.take(rows) if isinstance(array, StreamedRows) else array[rows] for array in data]
        # Under vmap over seeds a padded row is the same row 0 for all, and counts nothing.
        weight = jnp.where(counts, weights[rows], 0)

        def of(p: Any) -> Any:
            return loss(p, *here, weights=weight)

        value, gradient = jax.value_and_grad(of)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            updates, inside = update(gradient, inside, params, value=value, grad=gradient, value_fn=of)
            params = optax.apply_updates(params, updates)
        return (params, inside), (value, jnp.sum(weight))

    def one_epoch(state: MinibatchResult) -> MinibatchResult:
        order = jax.random.permutation(jax.random.fold_in(state.key, state.epochs), n)
        padded = jnp.pad(order, (0, batches * size - n)).reshape(batches, size)
        counts = (np.arange(batches * size) < n).reshape(batches, size)
        carry = (state.params, state.optimizer_state)
        (params, inside), (values, totals) = jax.lax.scan(one_batch, carry, (padded, counts))
        total = jnp.sum(totals)
        mean = jnp.sum(jnp.where(totals == 0, 0, values * totals)) / jnp.where(total == 0, 1, total)
        history = state.history.at[state.epochs].set(mean.astype(state.history.dtype))
        return MinibatchResult(params, inside, history, state.epochs + 1, state.key)

    return jax.lax.while_loop(lambda state: state.epochs < limit, one_epoch, state)
