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
from jax.sharding import Mesh

from xentjax.models.spread import Spread, on_host
from xentjax.models.streamed import StreamedRows
from xentjax.solvers.compiled import types_in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MinibatchResult:
    """Where mini-batch training stands after ``epochs`` epochs, and ``batches`` of the one after them.

    ``history`` has the fixed length of the run: the mean loss of each epoch, before the update of each batch, with
    NaN for epochs that are not done. ``key`` is the random key that all epochs' orders are derived from. ``losses``
    and ``totals`` are those of each batch of an epoch, before its update: its loss and the sum of its weights. Of
    batches that are not done in this epoch they are those of the last one.
    """

    params: Any
    optimizer_state: Any
    history: jax.Array
    epochs: jax.Array
    key: jax.Array
    batches: jax.Array
    losses: jax.Array
    totals: jax.Array


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
    mesh: Mesh | None = None,
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
      mesh: devices to split the rows over, along its axis ``data``, and those of each batch, which are the same ones as
        on a single device: the rows of a batch travel to where they count, and its gradient is added up. In a run of
        several processes each passes its own rows; their numbers are those of all of them one after the other.

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
    run = _Run.over("train_minibatch", loss, transformation, data, weights, batch_size, mesh)
    state = _initial("train_minibatch", run, init, epochs, seed)
    return _epochs(run.static(state.params), state, run.data, run.weights, run.places, epochs)


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
    resume: MinibatchResult | Callable[[MinibatchResult], MinibatchResult] | None = None,
    most: int | None = None,
    mesh: Mesh | None = None,
) -> Iterator[MinibatchResult]:
    """:func:`train_minibatch` epoch by epoch: yields the result so far after each.

    The same loop runs, so that the last result is that of ``train_minibatch``, bit by bit.  ``resume`` goes on from a
    result of the same loss, data and transformation, as if it had not been interrupted; its parameters and key stand
    in place of ``init`` and ``seed``. It may be a function, which is given the result before the first batch and
    returns the one to go on from.  With ``most`` there is a result after so many batches too, which changes no bit.

    Example:
      >>> import jax.numpy as jnp, optax, xentjax as xj
      >>> x, y = jnp.array([[-1.0], [1.0]]), jnp.array([0, 1])
      >>> arguments = (xj.logistic_loss, xj.LogisticParams(jnp.zeros(1), jnp.zeros(())), (x, y), optax.sgd(0.5))
      >>> [int(r.epochs) for r in xj.iterate_minibatch(*arguments, epochs=3, batch_size=1)]
      [1, 2, 3]
    """
    run = _Run.over("iterate_minibatch", loss, transformation, data, weights, batch_size, mesh)
    state = _initial("iterate_minibatch", run, init, epochs, seed)
    if most is not None and most < 1:
        raise ValueError(f"iterate_minibatch: most must be at least 1, got {most}")
    if resume is not None:
        found = resume(state) if callable(resume) else resume
        kept = found.history[:epochs]
        state = dataclasses.replace(found, history=state.history.at[: kept.shape[0]].set(kept))
    return _in_parts(run, state, epochs, most)


def rows_of_batch(key: Any, epoch: int, batch: int, n: int, size: int) -> jax.Array:
    """The rows of a batch, counted from 0 as its epoch is, in a run on n of them."""
    return _order(key, epoch, n, size)[batch * size : min((batch + 1) * size, n)]


def _in_parts(run: _Run, state: MinibatchResult, epochs: int, most: int | None) -> Iterator[MinibatchResult]:
    static, per_epoch = run.static(state.params), len(state.losses)
    at_once = min(most or per_epoch, per_epoch)
    while int(state.epochs) < epochs:
        order = _order(state.key, state.epochs, run.n, run.batch_size, run.places)
        for done in range(int(state.batches), per_epoch, at_once):
            state = _batches(static, state, order, run.data, run.weights, min(done + at_once, per_epoch))
            yield state


@dataclasses.dataclass(frozen=True)
class _Run:
    loss: Callable[..., Any]
    transformation: optax.GradientTransformation
    data: Any
    weights: Any
    places: Any
    """Where in the arrays each row is, where they are spread over devices, ``[n]``."""
    n: int
    batch_size: int
    spread: Spread | None

    @classmethod
    def over(
        cls,
        function: str,
        loss: Callable[..., Any],
        transformation: optax.GradientTransformation,
        data: Any,
        weights: Any,
        batch_size: int,
        mesh: Mesh | None,
    ) -> _Run:
        if mesh is None:
            data, weights, n = _rows(data, weights, batch_size, jnp.asarray)
            return cls(loss, transformation, data, weights, None, n, min(batch_size, n), None)
        spread = Spread.over(function, mesh)
        data, weights, n = _rows(data, weights, batch_size, on_host, spread.count)
        each = spread.equal_parts(len(weights))
        places = spread.places(len(weights), each)
        data, weights = jax.tree.map(lambda rows: spread.placed(rows, each), (data, weights))
        return cls(loss, transformation, data, weights, places, n, min(batch_size, n), spread)

    def static(self, params: Any) -> tuple[Any, ...]:
        kinds = types_in(jax.tree.structure((params, self.data)))
        return self.loss, self.transformation, self.n, self.batch_size, self.spread, kinds


def _rows(
    data: Any,
    weights: Any,
    batch_size: int,
    convert: Callable[[Any], Any],
    count: Callable[[int], int] = lambda n: n,
) -> tuple[Any, Any, int]:
    """The data as arrays, a weight for each row, and the number of all rows, which ``count`` tells from these."""
    data = tuple(array if isinstance(array, StreamedRows) else convert(array) for array in data)
    if not data or data[0].ndim == 0:
        raise ValueError("minibatch: data must be a tuple of arrays with at least one row")
    here = data[0].shape[0]
    n = count(here)
    if n == 0:
        raise ValueError("minibatch: data must be a tuple of arrays with at least one row")
    for i, array in enumerate(data):
        if array.ndim == 0 or array.shape[0] != here:
            raise ValueError(f"minibatch: data[{i}] has shape {array.shape}, but needs {here} rows as data[0] has")
    if batch_size < 1:
        raise ValueError(f"minibatch: batch_size must be at least 1, got {batch_size}")
    if weights is None:
        floats = [a.dtype for a in data if jnp.issubdtype(a.dtype, jnp.floating)]
        weights = np.ones(here, jnp.result_type(jnp.float32, *floats))
    weights = convert(weights)
    if weights.shape != (here,):
        raise ValueError(
            f"minibatch: weights has shape {weights.shape}, but needs {(here,)}, one for each row of the data"
        )
    return data, weights, n


def _initial(function: str, run: _Run, init: Any, epochs: int, seed: Any) -> MinibatchResult:
    if epochs < 1:
        raise ValueError(f"{function}: epochs must be at least 1, got {epochs}")
    key = seed if jnp.issubdtype(jnp.result_type(seed), jax.dtypes.prng_key) else jax.random.key(seed)
    init = jax.tree.map(jnp.asarray, init)
    init, key = (init, key) if run.spread is None else run.spread.everywhere((init, key))
    arrays = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in run.data)
    value = jax.eval_shape(run.loss, init, *arrays, weights=run.weights)
    batches = -(-run.n // run.batch_size)
    state = MinibatchResult(
        params=init,
        optimizer_state=run.transformation.init(init),
        history=jnp.full((epochs,), jnp.nan, value.dtype),
        epochs=jnp.zeros((), jnp.int32),
        key=key,
        batches=jnp.zeros((), jnp.int32),
        losses=jnp.full((batches,), jnp.nan, value.dtype),
        totals=jnp.zeros((batches,), jnp.sum(run.weights[:0]).dtype),
    )
    return state if run.spread is None else run.spread.everywhere(state)


@functools.partial(jax.jit, static_argnums=0)
def _epochs(static: Any, state: MinibatchResult, data: Any, weights: Any, places: Any, limit: Any) -> MinibatchResult:
    """Whole epochs up to number ``limit``."""
    n, size, per_epoch = static[2], static[3], state.losses.shape[0]

    def one_epoch(state: MinibatchResult) -> MinibatchResult:
        order = _order(state.key, state.epochs, n, size, places)
        return _batches(static, state, order, data, weights, per_epoch)

    return jax.lax.while_loop(lambda state: state.epochs < limit, one_epoch, state)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _order(key: Any, epoch: Any, n: int, size: int, places: Any = None) -> jax.Array:
    """The order of the rows in an epoch, filled up to whole batches: their numbers, or their ``places``."""
    order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
    return jnp.pad(order if places is None else places[order], (0, -n % size))


@functools.partial(jax.jit, static_argnums=0)
def _batches(static: Any, state: MinibatchResult, order: Any, data: Any, weights: Any, limit: Any) -> MinibatchResult:
    """Batches of an epoch up to number ``limit``; the last one ends the epoch."""
    loss, transformation, n, size, spread, _ = static
    per_epoch = state.losses.shape[0]
    update = optax.with_extra_args_support(transformation).update
    # Rows of weight 0 make a batch one that the devices divide.
    more = 0 if spread is None else -size % spread.parts
    split = (lambda rows: rows) if spread is None else spread.constrained

    def one_batch(state: MinibatchResult) -> MinibatchResult:
        first = state.batches * size
        rows = jax.lax.dynamic_slice_in_dim(order, first, size)
        counts = first + jnp.arange(size) < n
        rows, counts = (jnp.pad(of_batch, (0, more)) for of_batch in (rows, counts))
        here = [array.take(rows) if isinstance(array, StreamedRows) else split(array[rows]) for array in data]
        # Under vmap over seeds a padded row is the same row 0 for all, and counts nothing.
        weight = split(jnp.where(counts, weights[rows], 0))

        def of(p: Any) -> Any:
            return loss(p, *here, weights=weight)

        value, gradient = jax.value_and_grad(of)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax counts on it
            line = {"value": value, "grad": gradient, "value_fn": of}
            updates, inside = update(gradient, state.optimizer_state, state.params, **line)
            params = optax.apply_updates(state.params, updates)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=state.batches, axis=0)
        losses, totals = put(state.losses, value.astype(state.losses.dtype)), put(state.totals, jnp.sum(weight))
        batches = state.batches + 1
        return dataclasses.replace(
            state, params=params, optimizer_state=inside, batches=batches, losses=losses, totals=totals
        )

    state = jax.lax.while_loop(lambda state: state.batches < limit, one_batch, state)
    total = jnp.sum(state.totals)
    mean = jnp.sum(jnp.where(state.totals == 0, 0, state.losses * state.totals)) / jnp.where(total == 0, 1, total)
    ended = state.batches == per_epoch
    history = state.history.at[state.epochs].set(mean.astype(state.history.dtype))
    state = dataclasses.replace(
        state,
        history=jnp.where(ended, history, state.history),
        epochs=jnp.where(ended, state.epochs + 1, state.epochs),
        batches=jnp.where(ended, 0, state.batches),
    )
    return state if spread is None else spread.everywhere(state)
