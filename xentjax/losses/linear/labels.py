"""What examples of a linear cross-entropy are labelled with: class indices, a few classes each, or a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xentjax.core.domains import Kind, Labels


class SoftLabels(NamedTuple):
    """Distributions over the vocabulary of which few entries are not zero: class indices and what each class has.

    Attributes:
      indices: ``[..., k]``, integers. A class may be named twice.
      probabilities: ``[..., k]``, not renormalized.
    """

    indices: Any
    probabilities: Any


class Teacher(NamedTuple):
    """Another model whose predictions are the labels; its logits are not stored either.

    Its logits are ``x @ w + bias``, capped by ``softcap``, over the same vocabulary and divided by the same
    temperature; w is in the same layout.

    Attributes:
      x: ``[..., D']``, its activations.
      w: ``[D', V]``, or ``[V, D']`` with ``w_layout="vd"``.
      bias: ``[V]``, or None.
      softcap: a number, or None.
    """

    x: Any
    w: Any
    bias: Any = None
    softcap: Any = None


class SomeIgnored(Labels):
    """Class indices of the domain; that of the first example is -1, to be ignored."""

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        indices = super().draw(situation, rng, sizes, drawn)
        indices.reshape(-1)[:1] = -1
        return indices


@dataclasses.dataclass(frozen=True)
class FewClasses(Kind):
    """Soft labels of the domain, of classes whose number ``classes`` names; a class is named twice here and there."""

    is_index: ClassVar[bool] = True
    named: ClassVar[type | None] = SoftLabels
    classes: str = "K"

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        shape = self.dims(sizes)
        indices = rng.integers(0, sizes[self.classes], shape).astype(np.int32)
        return SoftLabels(indices, rng.dirichlet(np.ones(shape[-1]), shape[:-1]))


@dataclasses.dataclass(frozen=True)
class Teachers(Kind):
    """Teachers of the domain; the shape is that of their activations."""

    named: ClassVar[type | None] = Teacher
    classes: str = "K"

    def draw(self, situation: str, rng: np.random.Generator, sizes: Mapping[str, int], drawn: dict[str, Any]) -> Any:
        n, d = self.dims(sizes)
        classes = sizes[self.classes]
        x, w, bias = (rng.standard_normal(shape) for shape in ((n, d), (d, classes), (classes,)))
        return Teacher(x, w, bias, np.asarray(3.0))
