"""How a linear cross-entropy is computed: which strategy, in blocks of which size, and what that costs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any, Literal, get_args

import jax

from xentjax.losses.linear.arguments import NAME, Problem
from xentjax.losses.linear.vocabulary import Walk

Strategy = Literal["recompute", "gradient_in_forward", "dense"]
STRATEGIES = get_args(Strategy)

#: What was measured on devices, by ``python -m benchmarks blocks``: entries by device, dtype, sizes, strategy.
TABLE = pathlib.Path(__file__).parent / "blocks.json"

_MIB = 2**20
#: Columns at a time where nothing was measured, by platform, for 16-bit operands and for others; tokens at a time.
_COLUMNS = {"cpu": (2048, 1024)}
_TOKENS = {"cpu": 1024}
_ELSEWHERE_COLUMNS, _ELSEWHERE_TOKENS = (8192, 4096), 4096
#: Fewer tokens at a time leave products that are slow; blocks are multiples of so many columns.
_FEWEST_TOKENS, _MULTIPLE = 256, 128
#: Up to so many classes rows are summed class by class, and all logits stored where they take no more than so much.
_FEW_CLASSES, _LITTLE = 512, 32 * _MIB
#: An entry of the table stands for sizes that differ from its own by this factor at most, each.
_ALIKE = 4.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """How it is computed, and what that costs.

    A plan may be given as ``implementation``: a size that is 0 is chosen then.

    Attributes:
      strategy: ``"recompute"``: logits in blocks, computed again for the gradient, none of which is stored (four
        products over the vocabulary); ``"gradient_in_forward"``: a scalar loss by chunks of tokens, each with its
        gradient (three products, the logits of a chunk stored); ``"dense"``: all logits stored (three).
      block: columns of the vocabulary at a time.
      chunk: tokens at a time; all of them but with ``"gradient_in_forward"``.
      why: the reason, in words.
      forward_flop, backward_flop: operations of the matrix products of the loss, and further ones of its gradient by x
        and w.
      temporary_bytes: what value and gradient store beside arguments and results, about.
    """

    strategy: Strategy
    block: int = 0
    chunk: int = 0
    why: str = "asked for"
    forward_flop: int = 0
    backward_flop: int = 0
    temporary_bytes: int = 0

    def walk(self, problem: Problem) -> Walk:
        return Walk(problem.width, problem.classes, self.block, problem.layout, problem.axis_name, problem.shards)

    def __str__(self) -> str:
        tokens = f", {self.chunk:,} tokens" if self.strategy == "gradient_in_forward" else ""
        cost = f"{self.forward_flop / 1e9:,.1f} GFLOP forward, {self.backward_flop / 1e9:,.1f} more with gradients"
        memory = f"{self.temporary_bytes / _MIB:,.1f} MiB"
        return f"{self.strategy}, {self.block:,} columns{tokens} at a time: {self.why}; {cost}, {memory} beside them"


def plan(problem: Problem, memory_budget: int | None = None, implementation: str | Plan | None = None) -> Plan:
    """The way that a problem is computed.

    By default a scalar loss has its gradient in the forward pass, in chunks of tokens that take as much memory as its
    gradients by x and w do in float32 (16-bit ones twice that: one half is their sums). What is not scalar is computed
    again, block by block. Few logits are stored.

    Args:
      problem: the shapes and dtypes.
      memory_budget: bytes that value and gradient may store beside arguments and results.
      implementation: a strategy by its name, or a plan.

    Raises:
      ValueError: an unknown implementation, or one that the outputs do not go with; a budget that no plan keeps to.
    """
    if memory_budget is not None and not memory_budget > 0:
        raise ValueError(f"{NAME}: memory_budget must be positive, in bytes, got {memory_budget}")
    if isinstance(implementation, Plan):
        _require(problem, implementation.strategy)
        return _with_costs(problem, _with_sizes(problem, implementation, memory_budget))
    if implementation is not None:
        if implementation not in STRATEGIES:
            known = ", ".join(map(repr, STRATEGIES))
            raise ValueError(f"{NAME}: implementation must be {known} or a Plan, got {implementation!r}")
        _require(problem, implementation)
        asked: Any = implementation
        return _kept(problem, _with_sizes(problem, Plan(asked), memory_budget), memory_budget)
    return _kept(problem, _chosen(problem, memory_budget), memory_budget)


def _chosen(problem: Problem, memory_budget: int | None) -> Plan:
    budget = _default_budget(problem) if memory_budget is None else memory_budget
    allowed = "the budget of" if memory_budget is not None else "what the gradients take,"
    dense = _with_costs(problem, Plan("dense", problem.width, problem.rows))
    if problem.width <= _FEW_CLASSES and dense.temporary_bytes <= max(_LITTLE, budget):
        return dataclasses.replace(dense, why="few classes")
    in_forward = _with_costs(problem, _with_sizes(problem, Plan("gradient_in_forward"), budget))
    if problem.is_scalar and in_forward.temporary_bytes <= budget:
        return dataclasses.replace(in_forward, why=f"a scalar loss, within {allowed} {budget / _MIB:,.1f} MiB")
    if not problem.is_scalar and dense.temporary_bytes <= budget:
        return dataclasses.replace(dense, why=f"all logits are within {allowed} {budget / _MIB:,.1f} MiB")
    needed = in_forward if problem.is_scalar else dense
    again = _with_sizes(problem, Plan("recompute"), memory_budget)
    return dataclasses.replace(again, why=f"{needed.strategy} needs {needed.temporary_bytes / _MIB:,.1f} MiB")


def _require(problem: Problem, strategy: str) -> None:
    if strategy == "gradient_in_forward" and not problem.is_scalar:
        raise ValueError(
            f"{NAME}: implementation 'gradient_in_forward' needs a scalar loss, reduction='mean' or 'sum' and "
            f"outputs=('loss',), got reduction={problem.reduction!r} and outputs={problem.outputs}"
        )


def _kept(problem: Problem, plan: Plan, memory_budget: int | None) -> Plan:
    plan = _with_costs(problem, plan)
    if memory_budget is not None and plan.temporary_bytes > memory_budget:
        raise ValueError(
            f"{NAME}: memory_budget is {memory_budget} bytes, but {plan.strategy} needs {plan.temporary_bytes} at least"
        )
    return plan


def _default_budget(problem: Problem) -> int:
    gradients = (problem.rows + problem.width) * problem.depth * int(problem.dtype.itemsize)
    return max(gradients + _sums(problem), _LITTLE)


def _sums(problem: Problem) -> int:
    """Bytes of a 16-bit gradient by w as it adds up, in the dtype of computation."""
    wide, narrow = int(problem.dtype.itemsize), int(problem.operands.itemsize)
    return problem.depth * problem.width * wide if narrow < wide else 0


# -- sizes -------------------------------------------------------------------------------------------------------------


def _with_sizes(problem: Problem, plan: Plan, budget: int | None) -> Plan:
    """The plan with what it leaves open: as it was measured on a device of this kind, otherwise by a rule, and no more
    than the budget allows."""
    measured = _measured(problem, plan.strategy)
    if plan.strategy == "dense":
        return dataclasses.replace(plan, block=problem.width, chunk=problem.rows)
    platform = jax.default_backend()
    is_narrow = problem.operands.itemsize == 2
    chunk = plan.chunk or problem.rows
    if plan.strategy == "gradient_in_forward" and not plan.chunk:
        chunk = measured.get("chunk") or _TOKENS.get(platform, _ELSEWHERE_TOKENS)
    most_columns = measured.get("block") or _COLUMNS.get(platform, _ELSEWHERE_COLUMNS)[0 if is_narrow else 1]
    block = plan.block or _even(problem.width, most_columns)
    sized = dataclasses.replace(plan, block=min(block, problem.width), chunk=max(min(chunk, problem.rows), 1))
    if budget is None:
        return sized
    if plan.strategy == "gradient_in_forward" and not plan.chunk:
        sized = _fewer_tokens(problem, sized, budget)
    return sized if plan.block else _fewer_columns(problem, sized, budget)


def _fewer_tokens(problem: Problem, plan: Plan, budget: int) -> Plan:
    """As many tokens at a time as the budget allows, all of them in chunks of nearly the same size."""
    while plan.chunk > _FEWEST_TOKENS and _with_costs(problem, plan).temporary_bytes > budget:
        chunks = -(-problem.rows // plan.chunk) + 1
        plan = dataclasses.replace(plan, chunk=max(-(-problem.rows // chunks), _FEWEST_TOKENS))
    return plan


def _fewer_columns(problem: Problem, plan: Plan, budget: int) -> Plan:
    while plan.block > 1 and _with_costs(problem, plan).temporary_bytes > budget:
        plan = dataclasses.replace(plan, block=_even(problem.width, -(-plan.block // 2)))
    return plan


def _even(width: int, most: int) -> int:
    """The columns of blocks of nearly the same size, a multiple of some where there are as many."""
    if width <= most:
        return width
    even = -(-width // -(-width // most))
    return min(-(-even // _MULTIPLE) * _MULTIPLE, most) if most >= _MULTIPLE else even


@functools.cache
def _table() -> list[dict[str, Any]]:
    return list(json.loads(TABLE.read_text()))


def _measured(problem: Problem, strategy: str) -> dict[str, Any]:
    """The entry of the table for this device, dtype and strategy whose sizes are nearest, if any is near."""
    entries = _table()
    if not entries:
        return {}
    kind = jax.devices()[0].device_kind
    sizes = (problem.rows, problem.depth, problem.width)

    def distance(entry: dict[str, Any]) -> float:
        own = (entry["n"], entry["d"], entry["v"])
        return max(abs(math.log(max(a, 1) / max(b, 1))) for a, b in zip(own, sizes, strict=True))

    key = (kind, problem.operands.name, strategy)
    known = [entry for entry in entries if (entry["device"], entry["dtype"], entry["strategy"]) == key]
    nearest = min(known, key=distance, default=None)
    return nearest if nearest is not None and distance(nearest) <= math.log(_ALIKE) else {}


# -- costs -------------------------------------------------------------------------------------------------------------


def _with_costs(problem: Problem, plan: Plan) -> Plan:
    """The plan with what it costs: products of N x D x V, logits in the dtype of computation, dlogits in that of the
    operands, gradients as they add up."""
    wide, narrow = int(problem.dtype.itemsize), int(problem.operands.itemsize)
    once = 2 * problem.rows * problem.depth * problem.width
    tokens = plan.chunk if plan.strategy == "gradient_in_forward" else problem.rows
    of_tokens = tokens * (problem.depth * (wide + narrow) + 16 * wide)
    of_logits = tokens * (wide + (narrow if narrow < wide else 0))
    if plan.strategy == "dense":
        stored = problem.width * of_logits + of_tokens
    else:
        stored = plan.block * (of_logits + problem.depth * (wide + narrow)) + of_tokens
    if plan.strategy == "gradient_in_forward":
        stored += tokens * problem.width * wide + _sums(problem)
    again = 1 if plan.strategy == "recompute" else 0
    return dataclasses.replace(plan, forward_flop=once, backward_flop=(2 + again) * once, temporary_bytes=stored)
