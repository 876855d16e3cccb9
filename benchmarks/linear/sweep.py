"""Value and gradients by every strategy with blocks of several sizes: what the table of blocks is made from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Implementation, Run, Task, digits, jax_implementation, run_all
from benchmarks.linear import methods
from benchmarks.linear.problems import Shape, draw
from benchmarks.machine import cache_bytes
from xentjax.losses.linear import STRATEGIES, Plan, linear_cross_entropy

Row = dict[str, Any]

#: Classes at a time and tokens at a time that are tried, on a processor and elsewhere.
BLOCKS = {True: (512, 1024, 2048, 4096, 8192), False: (4096, 8192, 16384)}
CHUNKS = {True: (128, 256, 512, 1024), False: (2048, 4096, 8192)}
TINY = (32, 64)
#: As far as kernels may be from XLA.
ROUNDINGS = 4


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A strategy with its classes at a time and its tokens at a time; None where it has no such number, or chooses it.
    ``kernels`` is what is to compute on a GPU or a TPU."""

    strategy: str
    block: int | None = None
    chunk: int | None = None
    kernels: str = "xla"

    @property
    def plan(self) -> str | Plan:
        """What the function is asked for."""
        own = (("block", self.block), ("chunk", self.chunk), ("kernels", self.kernels))
        given = {name: value for name, value in own if value not in (None, "xla")}
        return Plan(self.strategy, **given) if given else self.strategy  # type: ignore[arg-type]


def candidates(shape: Shape, on_cpu: bool, tiny: bool = False) -> list[Candidate]:
    """Blocks of fewer classes than there are, chunks of no more tokens than there are; other strategies as they are."""
    blocks, chunks = (TINY, TINY) if tiny else (BLOCKS[on_cpu], CHUNKS[on_cpu])
    of = {
        "recompute": [Candidate("recompute", block=block) for block in blocks if block < shape.v],
        "gradient_in_forward": [Candidate("gradient_in_forward", chunk=chunk) for chunk in chunks if chunk <= shape.n],
    }
    if not on_cpu or tiny:
        for strategy in methods.KERNEL_STRATEGIES:
            of[strategy] += [Candidate(strategy, kernels="mosaic")]
    return [candidate for strategy in STRATEGIES for candidate in of.get(strategy, [Candidate(strategy)])]


def rows(
    shapes: Sequence[Shape], dtypes: Sequence[str], seconds: float, tiny: bool = False
) -> Iterator[dict[str, Any]]:
    """One row for each candidate; those of a shape and dtype run in turn with each other."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    for shape in shapes:
        for dtype in dtypes:
            found = candidates(shape, on_cpu, tiny)
            kept = [c for c in found if c.kernels == "xla" or methods.is_by_kernels(c.plan, shape, dtype)]
            tried = {str(candidate): candidate for candidate in kept}
            arguments = draw(shape, dtype)
            agrees = functools.partial(_agrees, functools.cache(functools.partial(_by_xla, arguments)))
            task = Task(
                labels={},
                arguments=arguments,
                implementations=tuple(_implementation(name, candidate, agrees) for name, candidate in tried.items()),
                moved=lambda result: 0,
            )
            for name, run in run_all(task, cache_bytes(device), seconds).items():
                place = {"device": device.device_kind, "dtype": dtype, "n": shape.n, "d": shape.d, "v": shape.v}
                row = {"kind": "block", **place, **dataclasses.asdict(tried[name])}
                if isinstance(run, Run):
                    yield row | measured(run)
                else:
                    yield {"kind": "skipped", "name": f"{shape} {dtype} {name}", "why": run}


def measured(run: Run) -> dict[str, float]:
    temp = {} if run.program is None else {"temp_bytes": run.program.temp_bytes}
    return {"milliseconds": digits(float(np.median(run.times)) * 1e3), **temp}


def _implementation(name: str, candidate: Candidate, agrees: Callable[[Any], dict[str, float]]) -> Implementation:
    """What kernels give has to agree with XLA's, or is no candidate."""
    check = agrees if candidate.kernels == "mosaic" else None
    return jax_implementation(name, _value_and_grad(candidate.plan), check=check, may_fail=True)


def _value_and_grad(plan: str | Plan) -> Callable[..., Any]:
    return methods.MODES["value_and_grad"](
        functools.partial(linear_cross_entropy, reduction="mean", implementation=plan)
    )


def _by_xla(arguments: tuple[Any, ...]) -> Any:
    return jax.jit(_value_and_grad("recompute"))(*arguments)


def _agrees(by_xla: Callable[[], Any], result: Any) -> dict[str, float]:
    """Nothing, but an error where a number is further from XLA's than a few roundings of the largest of its array."""
    for found, expected in zip(jax.tree.leaves(result), jax.tree.leaves(by_xla()), strict=True):
        off, most = _largest(found, expected)
        if not off <= ROUNDINGS * float(jnp.finfo(found.dtype).eps) * most:
            raise ValueError(f"kernels give numbers that are {off:.1e} from XLA's, which are {most:.1e} at most")
    return {}


@jax.jit
def _largest(found: jax.Array, expected: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = expected.astype(jnp.float32)
    return jnp.max(jnp.abs(found.astype(jnp.float32) - wide)), jnp.max(jnp.abs(wide))
