"""Every way in which a minimization or a training run can stand or end, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

RUNNING, CONVERGED, MAX_STEPS, STALLED, DIVERGED, NOT_FINITE, COMPLETED, INTERRUPTED = range(8)
SEPARATED, RANK_DEFICIENT, PRECISION_LIMITED = range(8, 11)

#: Name and advice, in the order of the codes.
_MEANINGS = (
    ("running", "not finished: ask the iterator for the next chunk"),
    ("converged", "the largest component of the gradient is at most tol"),
    (
        "max_steps",
        "stopped after max_steps with a gradient above tol: raise max_steps or tol, take another step size or solver, "
        "standardize the features, or add l2 (on separable data the loss has no minimum without it)",
    ),
    (
        "stalled",
        "the gradient cannot be brought to tol in this precision, or cannot be told from its rounding error: raise "
        "tol, or compute in float64 (jax.config.update('jax_enable_x64', True))",
    ),
    (
        "diverged",
        "a step led to a value or gradient that is not finite; the parameters before it are kept: take a smaller step",
    ),
    (
        "not_finite",
        "the value or gradient at the initial parameters is not finite: look for NaN or infinite data, labels out of "
        "range, or initial parameters that are too large",
    ),
    ("completed", "all epochs are done, with a gradient above tol"),
    ("interrupted", "stopped by the user before it ended"),
    (
        "separated",
        "a combination of the features separates the classes, completely or but for ties: the loss has no minimum, and "
        "the coefficients given are where the search ended. Add l2 (or l1), merge classes, or drop the features named",
    ),
    (
        "rank_deficient",
        "some columns are combinations of others (or constant), so that many coefficients are equally good: these are "
        "the ones of minimum norm. Drop the columns named, or add l2",
    ),
    (
        "precision_limited",
        "solved as well as the precision allows, but not to tol: raise tol, or compute in float64 "
        "(jax.config.update('jax_enable_x64', True))",
    ),
)
NAMES = tuple(name for name, _ in _MEANINGS)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Status:
    """How a minimization stands: an integer code that compares equal to its name.

    Under ``jit`` and ``vmap`` it is an array of codes: ``status == "converged"`` is then an array of booleans, and
    ``status[3]`` the status of run 3.  The names are ``running`` (only from the iterator), ``converged``,
    ``max_steps``, ``stalled``, ``diverged`` and ``not_finite``, for training runs ``completed`` and ``interrupted``,
    and for fits ``separated``, ``rank_deficient`` and ``precision_limited``; ``message`` says what each means and what
    to do.

    Example:
      >>> from xentjax.solvers.status import Status
      >>> Status(1) == "converged", str(Status(2)), Status(4).message[:29]
      (True, 'max_steps', 'a step led to a value or grad')
    """

    code: Any

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        return (self.code,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any]) -> Status:
        return cls(children[0])

    def __eq__(self, other: object) -> Any:
        if isinstance(other, str):
            # No code is -1: a name that does not exist equals no status.
            return _plain(self.code == (NAMES.index(other) if other in NAMES else -1))
        return _plain(self.code == other.code) if isinstance(other, Status) else NotImplemented

    def __ne__(self, other: object) -> Any:
        equal = self.__eq__(other)
        if equal is NotImplemented:
            return NotImplemented
        return not equal if isinstance(equal, bool) else ~equal

    def __hash__(self) -> int:
        return hash(str(self))

    def __getitem__(self, index: Any) -> Status:
        return entries(self, index, np.shape(self.code))

    @property
    def names(self) -> Any:
        """The name, or an array of names."""
        names = np.asarray(NAMES)[np.asarray(self.code)]
        return str(names) if names.ndim == 0 else names

    @property
    def message(self) -> str:
        """What the status means and what can be done about it; for an array, each one that occurs with its count."""
        codes, counts = np.unique(np.asarray(self.code), return_counts=True)
        if np.ndim(self.code) == 0:
            return _MEANINGS[int(codes[0])][1]
        return "\n".join(f"{n} × {NAMES[c]}: {_MEANINGS[c][1]}" for c, n in zip(codes, counts, strict=True))

    def __str__(self) -> str:
        return str(self.names) if _is_concrete(self.code) else f"<{type(self.code).__name__}>"

    def __repr__(self) -> str:
        return f"Status({self.names!r})" if _is_concrete(self.code) else f"Status({self.code!r})"


def entries(tree: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Arrays of the first axes ``shape`` at an index of these.

    Raises:
      IndexError: it is beyond them, where JAX would take the last entry, and a loop over all of them would not end.
    """
    if not any(isinstance(part, jax.core.Tracer) for part in jax.tree.leaves(index)):
        np.broadcast_to(False, shape)[index]
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _is_concrete(code: Any) -> bool:
    return isinstance(code, (int, np.integer, np.ndarray)) or (
        isinstance(code, jax.Array) and not isinstance(code, jax.core.Tracer)
    )


def _plain(equal: Any) -> Any:
    """A Python bool for one concrete status, otherwise the array."""
    return bool(equal) if _is_concrete(equal) and np.ndim(equal) == 0 else equal
