"""How a linear cross-entropy is computed: which strategy, with blocks of which size, and what that costs."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from xentjax.losses.linear.arguments import NAME, Problem
from xentjax.losses.linear.vocabulary import Walk

Strategy = Literal["recompute", "dense"]
STRATEGIES = get_args(Strategy)

#: Up to so many bytes of logits are stored: less than a copy of w and its gradient takes at most sizes.
_DENSE = 2**25
#: Bytes of a block of logits, at most; and columns, at least, for products that are fast.
_BLOCK = 2**24
_LEAST = 128


@dataclasses.dataclass(frozen=True)
class Plan:
    """How it is computed, and what that costs.

    Attributes:
      strategy: ``"recompute"``: logits in blocks, computed again for the gradient, none of which is stored (four
        products over the vocabulary); ``"dense"``: all logits, stored for the gradient (three).
      block: columns of the vocabulary at a time.
      why: the reason, in words.
      forward_flop, backward_flop: operations of the matrix products of the loss, and of its gradient by x and w.
      temporary_bytes: what is stored beside arguments and gradients, about.
    """

    strategy: Strategy
    block: int
    why: str = "asked for"
    forward_flop: int = 0
    backward_flop: int = 0
    temporary_bytes: int = 0

    def walk(self, problem: Problem) -> Walk:
        return Walk(problem.width, problem.classes, self.block, problem.layout, problem.axis_name, problem.shards)

    def __str__(self) -> str:
        cost = f"{self.forward_flop / 1e9:,.1f} GFLOP forward, {self.backward_flop / 1e9:,.1f} backward"
        memory = f"{self.temporary_bytes / 2**20:,.1f} MiB"
        return f"{self.strategy}, {self.block:,} columns at a time: {self.why}; {cost}, {memory} of temporary memory"


def plan(problem: Problem, memory_budget: int | None = None, implementation: str | Plan | None = None) -> Plan:
    """The way that a problem is computed.

    Args:
      problem: the shapes and dtypes.
      memory_budget: bytes that may be stored beside arguments and gradients.
      implementation: a strategy by its name, or a plan as it is, with another block, say.

    Raises:
      ValueError: an unknown implementation; a budget that no plan keeps to.
    """
    if isinstance(implementation, Plan):
        if not 1 <= implementation.block <= problem.width:
            raise ValueError(f"{NAME}: the plan's block must be from 1 to {problem.width}, got {implementation.block}")
        return _costs(problem, implementation)
    if implementation is not None and implementation not in STRATEGIES:
        known = ", ".join(map(repr, STRATEGIES))
        raise ValueError(f"{NAME}: implementation must be {known} or a Plan, got {implementation!r}")
    everything = _costs(problem, Plan("dense", problem.width))
    if memory_budget is not None and not memory_budget > 0:
        raise ValueError(f"{NAME}: memory_budget must be positive, in bytes, got {memory_budget}")
    limit = _DENSE if memory_budget is None else memory_budget
    fits = everything.temporary_bytes <= limit
    if implementation == "dense" or (implementation is None and fits):
        why = "asked for" if implementation else f"all logits fit into {limit / 2**20:,.0f} MiB"
        return dataclasses.replace(everything, why=why)
    block = _block(problem, _BLOCK if memory_budget is None else memory_budget)
    chosen = _costs(problem, Plan("recompute", block))
    if memory_budget is not None and chosen.temporary_bytes > memory_budget:
        least = chosen.temporary_bytes
        raise ValueError(f"{NAME}: memory_budget of {memory_budget} bytes is too little: it needs {least}")
    why = "asked for" if implementation else f"all logits need {everything.temporary_bytes / 2**20:,.0f} MiB"
    return dataclasses.replace(chosen, why=why)


def _block(problem: Problem, budget: int) -> int:
    """Columns at a time: so many blocks of equal size, each a multiple of the least where it can be."""
    of_column = _of_column(problem)
    most = max((budget - _fixed(problem)) // of_column, 1)
    if most >= problem.width:
        return problem.width
    blocks = -(-problem.width // most)
    even = -(-problem.width // blocks)
    rounded = -(-even // _LEAST) * _LEAST
    return rounded if rounded <= most else even


def _itemsize(problem: Problem) -> int:
    return int(problem.dtype.itemsize)


def _of_column(problem: Problem) -> int:
    """Bytes that a column of a block takes: its logits, dlogits, and the part of w and of its gradient."""
    narrow = int(problem.operands.itemsize)
    return problem.rows * (_itemsize(problem) + narrow) + problem.depth * (narrow + _itemsize(problem))


def _fixed(problem: Problem) -> int:
    """Bytes that any block size takes: the gradient by x as it adds up, and some numbers for each example."""
    return problem.rows * (problem.depth + 16) * _itemsize(problem)


def _costs(problem: Problem, plan: Plan) -> Plan:
    one = 2 * problem.rows * problem.depth * problem.width
    again = 0 if plan.strategy == "dense" else 1
    size = plan.block * _of_column(problem) + _fixed(problem)
    return dataclasses.replace(plan, forward_flop=one, backward_flop=(2 + again) * one, temporary_bytes=size)
