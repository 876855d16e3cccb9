"""Many fits in one program: other data, other weights or other penalties in each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from xentjax.core import policy
from xentjax.models.spread import automatic
from xentjax.models.streamed import StreamedRows
from xentjax.solvers import checks
from xentjax.solvers.compiled import join, separate
from xentjax.solvers.kept import KeptProgram, kept
from xentjax.solvers.minimize import Solver
from xentjax.training import buckets
from xentjax.training.arguments import checked_objective, number_of_classes
from xentjax.training.fit import fit_logistic
from xentjax.training.fit_result import LogisticFit
from xentjax.training.host import Centered, centered, require_held
from xentjax.training.solvers_by_name import require_solver
from xentjax.training.together import Way, fitted_together, most_together, way_of

#: Fits in one call of the program, unless told otherwise, and the most bytes of covariances that are kept unasked.
_CHUNK, _COVARIANCES = 256, 2**28

Progress = Callable[[int, int], object]


def fit_many(
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike | Sequence[ArrayLike],
    *,
    l2: ArrayLike = 0.0,
    l1: ArrayLike = 0.0,
    weights: ArrayLike | Sequence[ArrayLike] | None = None,
    offset: ArrayLike | Sequence[ArrayLike] | None = None,
    fit_intercept: bool = True,
    solver: str | Solver = "auto",
    tol: ArrayLike | None = None,
    max_steps: int = 200,
    num_classes: int | None = None,
    inference: bool | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
    mesh: Mesh | None = None,
) -> LogisticFit:
    r"""Fit k logistic or softmax regressions, each certified: :func:`fit_logistic` for every one of them.

    What has a leading axis k is one for each fit, what lacks it is shared by all:

    ============  ===========================  ==================================================
    argument      shared                       one for each fit
    ============  ===========================  ==================================================
    ``x``         ``[n, d]``                   ``[k, n, d]``
    ``y``         ``[n]``, floats ``[n, K]``   ``[k, n]``, floats ``[k, n, K]``
    ``weights``   ``[n]``                      ``[k, n]``: bootstraps, folds
    ``offset``    ``[n]``                      ``[k, n]``
    ``l2, l1``    a number                     ``[k]``, or by feature ``[k, d]``: grids of penalties
    ============  ===========================  ==================================================

    Groups of unequal sizes are sequences: x of ``[n_i, d]``, y (and weights, offset) of ``[n_i]``. Groups of like size
    share a program, padded with rows of weight 0.

    On a CPU the fits of a chunk run one after the other, each as many steps as it needs, and what a fit works on stays
    in the cache; on an accelerator a chunk runs at once. So it does everywhere where the fits share a table of fewer
    than 32 columns, whose products are made once for all of them; those among them that need more, as a fit whose
    classes are separated, are then made one by one.

    Args:
      x, y, l2, l1, weights, offset: as above.
      fit_intercept, solver, tol, max_steps, num_classes: as in :func:`fit_logistic`.
      inference: whether to compute covariances; by default where all of them have at most 256 MiB.
      chunk: how many fits one call of the program makes; by default 256 at most.
      progress: called with the number of fits done and k after each chunk.
      mesh: devices to deal the fits to, along all of its axes: each makes its own, and nothing travels but results. A
        chunk is then that of all devices together. In a run of several processes each passes the same arguments.

    Returns:
      A :class:`LogisticFit` whose fields have a leading axis k; ``fits[3]`` is one of them, ``fits.status`` the status
      of each. A fit in which a class has no row with a weight is ``separated``.

    Raises:
      ValueError: as in :func:`fit_logistic`, with the number of the fit; nothing has an axis k, or two have different
        ones; there is no fit.
      TypeError: an argument is of the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, xentjax as xj
      >>> x = jax.random.normal(jax.random.key(0), (3, 40, 2))
      >>> y = (x[:, :, 0] + jax.random.normal(jax.random.key(1), (3, 40)) > 0).astype(int)
      >>> fits = xj.fit_many(x, y, l2=0.1)
      >>> fits.params.weights.shape, fits.status.names.tolist()
      ((3, 2), ['converged', 'converged', 'converged'])
    """
    if num_classes is not None:
        num_classes = number_of_classes("fit_many", num_classes)
    if mesh is not None:
        mesh = automatic("fit_many", mesh)
    require_solver("fit_many", solver)
    if isinstance(x, (list, tuple)):
        groups = _Groups(x, y, weights, offset, at_origin=not fit_intercept)
        options: dict[str, Any] = {"fit_intercept": fit_intercept, "solver": solver, "tol": tol}
        options |= {"max_steps": max_steps, "inference": inference, "chunk": chunk, "mesh": mesh}
        return groups.fitted(l2, l1, num_classes, progress, options)
    arrays = {"y": y, "l2": l2, "l1": l1, "weights": weights, "offset": offset}
    for name, values in arrays.items():
        require_held("fit_many", name, values)
    if isinstance(x, StreamedRows):
        raise ValueError("fit_many: x is in a file, but many fits share rows in memory: fit one by one by fit_logistic")
    x = centered("fit_many", x, weights, at_origin=not fit_intercept)
    arrays |= {"x": x.x, "origin": x.origin} if isinstance(x, Centered) else {"x": x}
    arrays = {n: policy.as_array("fit_many", n, v) for n, v in arrays.items() if v is not None}
    if isinstance(l1, (int, float)) and l1 == 0:
        del arrays["l1"]
    if tol is not None:
        checks.require_tolerance(tol, "fit_many")
    many = _number_of_fits(arrays)
    num_classes = _require_sound(arrays, many, num_classes, fit_intercept)
    count = next(arrays[name].shape[0] for name in many)
    own, shared = ({n: a for n, a in arrays.items() if (n in many) == mine} for mine in (True, False))
    size = max(num_classes or 2, 2) * (arrays["x"].shape[-1] + 1)
    if inference is None:
        inference = "l1" not in arrays and 16 * count * size**2 <= _COVARIANCES
    settings = {
        "fit_intercept": fit_intercept,
        "max_steps": checks.number_of_steps(max_steps, "fit_many"),
        "num_classes": num_classes,
        "inference": inference,
    }
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"fit_many: chunk must be at least 1, and a whole number, got {chunk!r}")
    way, most = way_of(arrays, many, solver, settings), chunk or _CHUNK
    if way is not None and jax.default_backend() == "cpu":
        most = min(most, most_together(arrays["x"], num_classes or 2))
    devices = 1 if mesh is None else mesh.size
    each = math.ceil(count / math.ceil(count / (most * devices)))
    each = -(-each // devices) * devices
    made, parts = tuple(sorted(settings.items())), []
    for start in range(0, count, each):
        # The last chunk ends with the last fit again and again, so that all chunks share a program.
        here = {n: _taken(a, start, each) for n, a in own.items()}
        one_by_one = lambda of: _made(_chunk, mesh, of, (shared, solver, tol), made)
        fits = one_by_one(here) if way is None else _together(here, shared, tol, way, mesh, one_by_one)
        new = min(each, count - start)
        parts.append(fits if new == each else jax.tree.map(lambda leaf, new=new: leaf[:new], fits))
        if progress is not None:
            jax.block_until_ready(fits)
            progress(min(start + each, count), count)
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _taken(array: Any, start: int, count: int) -> Any:
    """So many entries from one on, the last one again where there are no more."""
    if start + count <= array.shape[0]:
        return jax.lax.dynamic_slice_in_dim(array, start, count)
    return array[np.minimum(np.arange(start, start + count), array.shape[0] - 1)]


def _made(program: KeptProgram, mesh: Mesh | None, own: dict[str, Any], rest: tuple[Any, ...], settings: Any) -> Any:
    """What a program makes of the fits, on each device of the mesh of its own ones."""
    if mesh is None:
        return program(*separate((own, *rest)), settings)
    return _on_devices(program, mesh, own, *separate(rest), settings)


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 5))
def _on_devices(program: KeptProgram, mesh: Mesh, own: dict[str, Any], static: Any, data: Any, settings: Any) -> Any:
    def of_device(own: dict[str, Any], data: Any) -> Any:
        return program(*separate((own, *join(static, data))), settings)

    by_fits, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
    # Nothing is summed over the devices, so that there is nothing to check of what varies over them.
    mapped = jax.shard_map(of_device, mesh=mesh, in_specs=(by_fits, everywhere), out_specs=by_fits, check_vma=False)
    return jax.lax.with_sharding_constraint(mapped(own, data), NamedSharding(mesh, everywhere))


def _together(
    own: dict[str, Any],
    shared: dict[str, Any],
    tol: Any,
    way: Way,
    mesh: Mesh | None,
    one_by_one: Callable[[dict[str, Any]], LogisticFit],
) -> LogisticFit:
    """Fits made together, and those one by one that need it."""
    fits, alone = _made(fitted_together, mesh, own, (shared, tol), way)
    alone = np.asarray(alone)
    if not alone.any():
        return fits
    # All of the chunk's places are filled with those fits, so that there is one program for any number of them.
    needed = np.flatnonzero(alone)
    again = one_by_one({n: a[np.resize(needed, alone.size)] for n, a in own.items()})
    place = np.where(alone, np.cumsum(alone) - 1, 0)
    chosen = lambda a, b: jnp.where(alone.reshape((-1,) + (1,) * (a.ndim - 1)), a[place], b)
    return jax.tree.map(chosen, again, fits)


@kept(0, 2)
def _chunk(static: Any, data: Any, settings: tuple[tuple[str, Any], ...]) -> LogisticFit:
    own, shared, solver, tol = join(static, data)

    def one(own: dict[str, Any]) -> LogisticFit:
        arrays = own | shared
        x: Any = arrays.pop("x")
        x = Centered(x, arrays.pop("origin")) if "origin" in arrays else x
        return fit_logistic(x, arrays.pop("y"), **arrays, solver=solver, tol=tol, **dict(settings))

    if jax.default_backend() == "cpu":
        return jax.lax.map(one, own)
    return jax.vmap(one)(own)


def _number_of_fits(arrays: dict[str, Any]) -> list[str]:
    """The names of the arguments that have one entry for each fit."""
    x, y = arrays["x"], arrays["y"]
    if x.ndim not in (2, 3):
        raise ValueError(f"fit_many: x has shape {x.shape}, but needs [n, d], or [k, n, d] with one table for each fit")
    n = x.shape[-2]
    is_table = policy.is_float(y) and y.ndim == 2 and y.shape[1] != n
    ranks = {"x": 2, "origin": 1, "y": 2 if is_table or y.ndim == 3 else 1, "weights": 1, "offset": 1, "l2": 0, "l1": 0}
    many = [name for name, array in arrays.items() if array.ndim > ranks[name]]
    if not many:
        raise ValueError(
            f"fit_many: nothing has one entry for each fit: x has shape {x.shape}, y {y.shape}. For a single fit call "
            "fit_logistic"
        )
    first = many[0]
    for name in many:
        if arrays[name].shape[0] != arrays[first].shape[0]:
            raise ValueError(
                f"fit_many: {name} has shape {arrays[name].shape}, but needs {arrays[first].shape[0]} on its first "
                f"axis, as {first} of shape {arrays[first].shape} has one entry for each fit"
            )
    if arrays[first].shape[0] == 0:
        raise ValueError(f"fit_many: {first} has shape {arrays[first].shape}: there is no fit to make")
    return many


def _require_sound(arrays: dict[str, Any], many: list[str], num_classes: int | None, fit_intercept: Any) -> int | None:
    """The number of classes (None for two); errors where a fit's data are no numbers or out of range."""
    if any(isinstance(a, jax.core.Tracer) for a in arrays.values()):
        return num_classes
    y = arrays["y"]
    weights = arrays.get("weights", jnp.ones(()))
    counted = np.broadcast_to(np.asarray(weights != 0), y.shape) if weights.ndim <= y.ndim else np.ones(y.shape, bool)
    if not policy.is_float(y) and num_classes is None and y.size:
        highest = int(np.max(np.asarray(y), where=counted if y.ndim == counted.ndim else True, initial=0))
        num_classes = highest + 1 if highest > 1 else None
    finite = all(bool(jnp.all(jnp.isfinite(a))) for a in arrays.values() if policy.is_float(a))
    empty = bool(jnp.any(jnp.sum(weights, axis=-1) == 0)) if weights.ndim else False
    negative = any(bool(jnp.any(arrays[n] < 0)) for n in ("weights", "l2", "l1", "y") if n in arrays)
    beyond = bool(jnp.any(y > (1 if num_classes is None else num_classes - 1)))
    if finite and not (negative or beyond or empty):
        shapes = {n: a[0] if n in many else a for n, a in arrays.items()}
        _checked_alone(shapes, num_classes, fit_intercept, None)
        return num_classes
    count = arrays[many[0]].shape[0]
    for i in range(count):
        _checked_alone({n: a[i] if n in many else a for n, a in arrays.items()}, num_classes, fit_intercept, i)
    return num_classes


def _checked_alone(arrays: dict[str, Any], num_classes: int | None, fit_intercept: Any, number: int | None) -> None:
    """The errors of one fit, with its number; None stands for what is alike in all of them."""
    arrays = {"l1": 0.0, "weights": None, "offset": None} | arrays
    x, y, l2, l1, weights = (arrays[n] for n in ("x", "y", "l2", "l1", "weights"))
    function = "fit_many" if number is None else f"fit_many: fit {number}"
    options = (None, arrays["offset"], fit_intercept, num_classes)
    checked_objective(function, x, y, l2, l1, weights, *options, complete=False)


def _highest(y: Any, weights: Any) -> int:
    """The highest label of the rows that count; 0 where labels are no integers."""
    if policy.is_float(y):
        return 0
    counted = weights is None or weights.shape != y.shape or np.asarray(weights) != 0
    return int(np.max(np.asarray(y), where=counted, initial=0))


class _Groups:
    """Groups of unequal sizes: those of like size are padded to one."""

    def __init__(self, x: Any, y: Any, weights: Any, offset: Any, *, at_origin: bool):
        if len(x) == 0:
            raise ValueError("fit_many: x is an empty list: there is no fit to make")
        self.columns: dict[str, list[Any]] = {}
        for name, given in (("y", y), ("weights", weights), ("offset", offset)):
            if given is None:
                continue
            if not isinstance(given, (list, tuple)) or len(given) != len(x):
                got = f"{len(given)} of them" if isinstance(given, (list, tuple)) else type(given).__name__
                raise ValueError(f"fit_many: x is a list of {len(x)} groups, so {name} must be one too, got {got}")
            for i, group in enumerate(given):
                require_held("fit_many", f"{name}[{i}]", group)
            self.columns[name] = [policy.as_array("fit_many", f"{name}[{i}]", group) for i, group in enumerate(given)]
        of_groups = self.columns.get("weights", [None] * len(x))
        known = [
            centered(f"fit_many: fit {i}", group, own, at_origin=at_origin)
            for i, (group, own) in enumerate(zip(x, of_groups, strict=True))
        ]
        self.origins = [group.origin if isinstance(group, Centered) else None for group in known]
        known = [group.x if isinstance(group, Centered) else group for group in known]
        self.x = [policy.as_array("fit_many", f"x[{i}]", group) for i, group in enumerate(known)]
        d = self.x[0].shape[-1:]
        for i, group in enumerate(self.x):
            if group.ndim != 2 or group.shape[1:] != d or group.shape[0] == 0:
                needed = ", ".join(("n > 0", *map(str, d)))
                raise ValueError(f"fit_many: x[{i}] has shape {group.shape}, but needs [{needed}]")
            for name, groups in self.columns.items():
                if groups[i].shape[:1] != group.shape[:1] or (name == "weights" and groups[i].ndim != 1):
                    raise ValueError(f"fit_many: {name}[{i}] has shape {groups[i].shape}, but x[{i}] {group.shape}")

    def fitted(self, l2: Any, l1: Any, num_classes: Any, progress: Any, options: dict[str, Any]) -> LogisticFit:
        count = len(self.x)
        for name, penalty in (("l2", l2), ("l1", l1)):
            if np.ndim(penalty) and np.shape(penalty)[0] != count:
                needed = f"{count} on its first axis, one entry for each group"
                raise ValueError(f"fit_many: {name} has shape {np.shape(penalty)}, but needs () or {needed}")
        if num_classes is None:
            highest = max(map(_highest, self.columns["y"], self.columns.get("weights", [None] * count)))
            num_classes = highest + 1 if highest > 1 else None
        sizes = np.array([buckets.bucket(group.shape[0], least=32) for group in self.x])
        found: dict[int, LogisticFit] = {}
        for size in np.unique(sizes):
            members = np.flatnonzero(sizes == size)
            of_members = lambda penalty, at=members: penalty if np.ndim(penalty) == 0 else jnp.asarray(penalty)[at]
            before = len(found)
            tell = None if progress is None else lambda done, _, before=before: progress(before + done, count)
            arrays: dict[str, Any] = {
                name: self._stacked(groups, members, size) for name, groups in self.columns.items()
            }
            # Without weights of its own a group has weight 1 in each row, and the padding 0.
            there = np.arange(size) < np.array([self.x[i].shape[0] for i in members])[:, None]
            weights = arrays.pop("weights", jnp.ones(there.shape)) * there
            features: Any = self._stacked(self.x, members, size)
            origins = [self.origins[i] for i in members]
            if any(origin is not None for origin in origins):
                none = np.zeros(features.shape[2], np.float32)
                features = Centered(features, jnp.stack([none if o is None else o for o in origins]))
            fits = fit_many(
                features,
                arrays.pop("y"),
                l2=of_members(l2),
                l1=of_members(l1),
                weights=weights,
                **arrays,
                num_classes=num_classes,
                progress=tell,
                **options,
            )
            found |= {int(member): fits[i] for i, member in enumerate(members)}
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(found[i] for i in range(count)))

    @staticmethod
    def _stacked(groups: list[Any], members: Any, size: int) -> jax.Array:
        rows = [np.asarray(groups[i]) for i in members]
        return jnp.asarray(np.stack([np.pad(r, [(0, size - len(r))] + [(0, 0)] * (r.ndim - 1)) for r in rows]))
