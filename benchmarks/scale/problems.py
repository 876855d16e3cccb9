"""What is scaled: the evaluation that a Newton step makes of rows that are split, and the step of a head of linear
cross-entropy whose vocabulary is. Both are compiled programs on a mesh, with the numbers that have to travel."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import xentjax as xj
from xentjax.losses.linear import linear_cross_entropy

#: Collectives in a compiled program, and the type of what they give.
_COLLECTIVES = re.compile(
    r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
_BYTES = {"pred": 1, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s64": 8}


@dataclasses.dataclass(frozen=True)
class Newton:
    """Value, gradient and Hessian of a logistic regression of n rows and d features, float32."""

    rows: int
    features: int
    name = "newton"

    @property
    def sizes(self) -> dict[str, int]:
        return {"n": self.rows, "d": self.features}

    @property
    def predicted(self) -> int:
        """Bytes of one all-reduce: the value, the gradient and the Hessian."""
        p = self.features + 1
        return 4 * (1 + p + p * p)

    def weak(self, parts: int) -> Newton:
        return dataclasses.replace(self, rows=self.rows * parts)

    def program(self, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
        """The compiled evaluation, and its arguments; in several processes each has a part of the rows."""
        here = self.rows // jax.process_count()
        rng = np.random.default_rng(jax.process_index())
        x = rng.standard_normal((here, self.features), np.float32)
        y = (x[:, 0] + rng.standard_normal(here) > 0).astype(np.int32)
        objective = xj.LogisticObjective(x, y, l2=1e-3).on(mesh)
        params = jax.device_put(objective.init(), NamedSharding(mesh, PartitionSpec()))
        evaluate = lambda objective, params: objective.value_gradient_hessian(params)
        return jax.jit(evaluate).lower(objective, params).compile(), (objective, params)


@dataclasses.dataclass(frozen=True)
class Head:
    """Loss and gradients of a head, x ``[N, D]`` and w ``[D, V]`` in bfloat16, the vocabulary split over devices."""

    tokens: int
    width: int
    vocabulary: int
    name = "head"

    @property
    def sizes(self) -> dict[str, int]:
        return {"N": self.tokens, "D": self.width, "V": self.vocabulary}

    @property
    def predicted(self) -> int:
        """Bytes of the all-reduces: of each token what :data:`_NUMBERS` says, and the gradient by x, in float32."""
        return 4 * self.tokens * (_NUMBERS + self.width)

    def weak(self, parts: int) -> Head:
        return dataclasses.replace(self, vocabulary=self.vocabulary * parts)

    def program(self, mesh: Mesh) -> tuple[Any, tuple[Any, ...]]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.tokens, self.width), np.float32).astype(jnp.bfloat16)
        labels = rng.integers(0, self.vocabulary, self.tokens).astype(np.int32)
        w = (rng.standard_normal((self.width, self.vocabulary), np.float32) / self.width**0.5).astype(jnp.bfloat16)
        put: Callable[..., Any] = lambda array, *spec: jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        arguments = put(x), put(w, None, AXIS), put(labels)

        def loss(x: Any, w: Any, labels: Any) -> Any:
            return linear_cross_entropy(x, w, labels, axis_name=AXIS, reduction="mean")

        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss, (0, 1)))
            return step.lower(*arguments).compile(), arguments


#: The axis of the meshes here, which rows and vocabularies are split over.
AXIS = "data"

#: Of each token: its largest logit, the device that has it, the sum of the exponentials, and the logit of its label.
_NUMBERS = 4


def sent(text: str) -> int:
    """Bytes of what the collectives in the text of a compiled program give, each counted once."""
    found = 0
    for kind, _ in _COLLECTIVES.findall(text):
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", kind):
            found += _BYTES[dtype] * int(np.prod([int(size) for size in sizes.split(",") if size]))
    return found
