"""Inputs to check on: for each kind of argument the situations in which a formula can lose its digits.

A ``Domain`` names the kind of every array argument of a record, with its shape in letters (``"B K"``: a batch of B
rows over K entries), and the option sets to try. It yields ``Case`` objects with float64 arrays; whoever uses them
rounds to the dtype at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

#: The situations that every kind is asked for; a kind without a meaning for one gives its ordinary draw.
SITUATIONS = ("tiny", "unit", "large", "huge", "offset", "ties", "dominant", "corner", "near")
SIZES = {"B": 4, "K": 7, "J": 3, "D": 5}


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments to call a record with: ``arrays`` by name (float64 or integer), ``options`` by name."""

    situation: str
    arrays: dict[str, Any]
    options: dict[str, Any]

    def cast(self, dtype: Any) -> dict[str, Any]:
        """All arguments by name, the float arrays rounded to ``dtype``."""
        return {n: _cast(v, dtype) for n, v in self.arrays.items()} | dict(self.options)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype(dtype) if value.dtype == np.float64 else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(v, dtype) for v in value))
    return value


def _drawn(kind: Kind, *how: Any) -> Any:
    """A draw as an array, of shape () too, which NumPy gives as a number."""
    value = kind.draw(*how)
    return value if hasattr(value, "_fields") else np.asarray(value)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of argument; ``shape`` is its shape in letters.

    Attributes:
      is_index: integers of this kind are classes: they are not converted to floats, and out of range they stay so.
      named: the NamedTuple that holds its arrays, where an argument is no single one.
    """

    is_index: ClassVar[bool] = False
    named: ClassVar[type | None] = None

    shape: str = ""

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(int(d) if d.isdigit() else sizes[d] for d in self.shape.split())

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        """One argument; ``drawn`` holds those of the same kind that were drawn before it."""
        raise NotImplementedError


class Logits(Kind):
    """Real numbers over classes on the last axis: sd 1e-3 to 1e3, offsets, ties, a class that dominates, -inf."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        scale = {"tiny": 1e-3, "large": 30.0, "huge": 1e3}.get(situation, 1.0)
        z = rng.standard_normal(self.dims(sizes)) * scale
        if situation == "offset":
            z = np.round(z * 64) / 64 + 1e4 * np.where(rng.random((*z.shape[:-1], 1)) < 0.5, -1, 1)
        if situation == "ties":
            z = np.round(z)
        if situation == "dominant" and z.shape[-1] > 1:
            np.put_along_axis(z, rng.integers(0, z.shape[-1], (*z.shape[:-1], 1)), rng.uniform(5, 60), -1)
        if situation == "corner" and z.shape[-1] > 1:
            z[..., -1] = -np.inf
        if situation == "near" and drawn:
            first = next(iter(drawn.values()))
            if first.shape == z.shape:
                return first + np.round(z * 16) / 2**14
        return z


class Logit(Logits):
    """Real numbers, each one a logit by itself: both signs, 1e-3 to 1e3, 0 among the ties, infinities in the corner."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        if situation in ("dominant", "near"):
            return np.where(rng.random(self.dims(sizes)) < 0.5, -1, 1) * rng.uniform(5, 60, self.dims(sizes))
        z = np.array(super().draw("unit" if situation == "corner" else situation, rng, sizes, {}))
        flat = z.reshape(-1)
        if situation == "ties" and z.ndim:
            flat[: max(z.size // 2, 1)] = 0.0
        if situation == "corner" and z.ndim:
            flat[:1], flat[1:2] = -np.inf, np.inf
        return z


class Probabilities(Kind):
    """Distributions on the last axis: flat, near a corner of the simplex, at a corner, close to the first one."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        shape = self.dims(sizes)
        concentration = {"large": 0.3, "huge": 0.05, "dominant": 0.05, "tiny": 100.0}.get(situation, 1.0)
        p = rng.dirichlet(np.full(shape[-1], concentration), shape[:-1])
        p = np.maximum(p, 1e-30)
        if situation == "corner" and shape[-1] > 1:
            p[..., -1] = 0.0
        if situation == "ties":
            p = np.full(shape, 1 / shape[-1])
        if situation == "near" and drawn:
            first = next(iter(drawn.values()))
            if first.shape == shape:
                wobble = np.round(rng.standard_normal(shape) * 4) / 2**12
                return first * (1 + wobble)
        return p


class Probability(Kind):
    """Numbers in [0, 1], each one a probability by itself."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        p = rng.random(self.dims(sizes))
        if situation in ("dominant", "huge"):
            p = np.where(p < 0.5, p * 1e-6, 1 - p * 2**-12)
        if situation in ("corner", "ties"):
            p = np.round(p * 2) / 2
        return p


class JointTable(Kind):
    """Joint distributions over all named axes but the batch's ``B``: dependent, nearly independent, with zeros."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        shape = self.dims(sizes)
        batch = self.shape.split().count("B")
        table = rng.dirichlet(np.ones(int(np.prod(shape[batch:]))), shape[:batch]).reshape(shape)
        if situation == "near":
            rows, columns = table.sum(-1, keepdims=True), table.sum(-2, keepdims=True)
            table = rows * columns * (1 + np.round(rng.standard_normal(shape) * 4) / 2**12)
        if situation == "corner":
            table[..., 0, 0] = 0.0
        return table


class Counts(Kind):
    """Non-negative whole numbers, as floats, on the last axis; zeros in the corner."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        high = {"huge": 10_000, "large": 1_000}.get(situation, 20)
        counts = rng.integers(1, high, self.dims(sizes)).astype(np.float64)
        if situation == "corner":
            counts[..., -1] = 0.0
        return counts


@dataclasses.dataclass(frozen=True)
class Labels(Kind):
    """Class indices below the size that ``classes`` names."""

    is_index = True
    classes: str = "K"

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        return rng.integers(0, sizes[self.classes], self.dims(sizes)).astype(np.int32)


class BinaryLabels(Kind):
    """Labels 0 and 1."""

    is_index = True

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        return rng.integers(0, 2, self.dims(sizes)).astype(np.int32)


class Real(Kind):
    """Real numbers of the size of one, whatever the situation."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        return rng.standard_normal(self.dims(sizes))


class Mask(Kind):
    """Booleans that keep the first entry of every row, and leave out the very last one."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        mask = rng.random(self.dims(sizes)) < 0.7
        mask.reshape(-1)[-1:] = False
        mask[..., 0] = True
        return mask


@dataclasses.dataclass(frozen=True, init=False)
class Domain:
    """The kinds of a record's arguments, and the option sets to try (each a dict; a ``Kind`` in it is drawn too)."""

    kinds: dict[str, Kind]
    options: tuple[dict[str, Any], ...]

    def __init__(self, *, options: tuple[dict[str, Any], ...] = ({},), **kinds: Kind):
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "options", options)

    def kinds_of(self, name: str) -> tuple[Kind, ...]:
        """The kinds that an argument may be of: the ordinary one, and those of the option sets."""
        found = (self.kinds.get(name), *(options.get(name) for options in self.options))
        return tuple(kind for kind in found if isinstance(kind, Kind))

    def case(
        self, rng: np.random.Generator, situation: str = "unit", options: Mapping[str, Any] | None = None, **sizes: int
    ) -> Case:
        """One draw of every argument; sizes are given by letter (``B=1024, K=32000``)."""
        known = SIZES | sizes
        arrays: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            alike = {n: v for n, v in arrays.items() if type(self.kinds[n]) is type(kind)}
            arrays[name] = _drawn(kind, situation, rng, known, alike)
        plain = {}
        for name, value in dict(options or {}).items():
            if isinstance(value, Kind):
                arrays[name] = _drawn(value, situation, rng, known, {})
            else:
                plain[name] = value
        return Case(situation, arrays, plain)

    def cases(self, seed: int = 0, **sizes: int) -> Iterator[Case]:
        """Every situation under the first option set, and every further option set in the ordinary situation."""
        rng = np.random.default_rng(seed)
        for situation in SITUATIONS:
            yield self.case(rng, situation, self.options[0], **sizes)
        for options in self.options[1:]:
            yield self.case(rng, "unit", options, **sizes)
