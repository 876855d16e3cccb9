"""How a linear cross-entropy is computed: which strategy, in blocks of which size, and what that costs."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import numpy as np

from xentjax.core import policy
from xentjax.losses.linear import measured
from xentjax.losses.linear.arguments import NAME, Problem
from xentjax.losses.linear.kernels import ALIGNED, KERNELS, bytes_of_parts, give_dlogits, unmet
from xentjax.losses.linear.vocabulary import Kernels, Walk

Strategy = Literal["recompute", "gradient_in_forward", "dense"]
STRATEGIES = get_args(Strategy)

_MIB = 2**20
#: Tokens at a time where nothing was measured, half of all at most; fewer than the least leave products that are slow.
_TOKENS, _FEWEST_TOKENS = 1024, 256
#: Where their number is a symbol.
_MANY_TOKENS = 8192
#: The budget where none is given: so many times what the gradients by x and w take in the dtype of computation.
_GENEROUS = 3
#: Columns at a time where nothing was measured: on a CPU, by the bytes of an operand; elsewhere as many as have logits
#: and dlogits of so many bytes, between the least and the most.
_CPU_COLUMNS = {2: 2048, 4: 1024, 8: 1024}
_BLOCK_BYTES, _FEWEST_COLUMNS, _MOST_COLUMNS = 128 * _MIB, 3072, 8192
#: Few columns still leave a TPU's products fast, and the logits of a block in its fast memory.
_FEWEST_ON_TPU = 1024
#: Blocks are multiples of so many columns on a CPU, and elsewhere where that lets them divide the vocabulary; and what
#: products of a GPU's library work in.
_MULTIPLE, _ALIGNED, _WORKSPACE = 128, 8, 32 * _MIB
#: Up to so many classes rows are summed class by class, and all logits stored where they take no more than so much.
_FEW_CLASSES, _LITTLE = 512, 32 * _MIB


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a linear cross-entropy is to be computed, as ``implementation``: a size that is 0 is chosen.

    Attributes:
      strategy: ``"recompute"``: logits in blocks, computed again for the gradient, none of which is stored (four
        products over the vocabulary); ``"gradient_in_forward"``: a scalar loss by chunks of tokens, each with its
        gradient (three products, the logits of a chunk stored); ``"dense"``: all logits stored (three).
      block: columns of the vocabulary at a time; all of them with ``"dense"``.
      chunk: tokens at a time; all of them but with ``"gradient_in_forward"``.
      kernels: what computes on a GPU or a TPU: ``"xla"``, or ``"mosaic"``, kernels that leave no logits in memory but
        those that are stored to be used again: of values and gradients for compute capability 9.0 (H100, H200), of
        values for TPUs from v5e on. XLA computes on other devices, forward mode, and derivatives of the gradient; and
        problems that the kernels are not for.
    """

    strategy: Strategy
    block: int = 0
    chunk: int = 0
    kernels: Kernels = "xla"

    def __post_init__(self) -> None:
        for name, known in (("strategy", STRATEGIES), ("kernels", KERNELS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Plan: {name} must be {', '.join(map(repr, known))}, got {value!r}")
        for name in ("block", "chunk"):
            size = getattr(self, name)
            if not isinstance(size, (int, np.integer)) or size < 0:
                raise ValueError(f"Plan: {name} must be a whole number, 0 for one to be chosen, got {size!r}")

    def walk(self, problem: Problem) -> Walk:
        over = problem.layout, problem.axis_name, problem.shards
        return Walk(problem.width, problem.classes, self.block, *over, self.kernels)


@dataclasses.dataclass(frozen=True)
class Explanation(Plan):
    """A plan with all of its sizes, why it is taken, and what it costs; it may be given as ``implementation``, too.

    Attributes:
      why: the reason, in words; and why the kernels that were asked for do not compute, where they do not.
      forward_flop, backward_flop: operations of the matrix products of the loss, and further ones of its gradient by x
        and w.
      temporary_bytes: what value and gradient store beside arguments and results, about.
      keeps_dlogits: of several chunks the gradient by w is a sum in float32. Where they take less memory than that, the
        dlogits of all tokens are stored in bfloat16, and the gradients by w and x are one product each.
    """

    # What is not compared makes no other program.
    why: str = dataclasses.field(default="asked for", compare=False)
    forward_flop: int = dataclasses.field(default=0, compare=False)
    backward_flop: int = dataclasses.field(default=0, compare=False)
    temporary_bytes: int = dataclasses.field(default=0, compare=False)
    keeps_dlogits: bool = False

    def __str__(self) -> str:
        tokens = f", {self.chunk:,} tokens" if self.strategy == "gradient_in_forward" else ""
        kernels = ", by kernels" if self.kernels == "mosaic" else ""
        dlogits = ", all dlogits in 16 bits" if self.keeps_dlogits else ""
        cost = f"{self.forward_flop / 1e9:,.1f} GFLOP forward, {self.backward_flop / 1e9:,.1f} more with gradients"
        sizes = f"{self.block:,} columns{tokens} at a time"
        return (
            f"{self.strategy}, {sizes}{kernels}{dlogits}: {self.why}; {cost}, {_mib(self.temporary_bytes)} beside them"
        )


def plan(problem: Problem, memory_budget: int | None = None, implementation: str | Plan | None = None) -> Explanation:
    """The way that a problem is computed.

    By default a scalar loss has its gradient in the forward pass, in chunks of tokens, half of them at most where they
    are many, if it takes three times the memory of its gradients by x and w at most. What is not scalar is computed
    again, block by block. The logits of few classes are stored, and those of what is not scalar where they are few.

    Args:
      problem: the shapes and dtypes.
      memory_budget: bytes that value and gradient may store beside arguments and results.
      implementation: a strategy by its name, or a plan.

    Raises:
      ValueError: an unknown implementation, or one that the outputs do not go with; a budget that no plan keeps to.
    """
    if not isinstance(memory_budget, (int, float, type(None))):
        raise TypeError(f"{NAME}: memory_budget must be a number of bytes, got {memory_budget!r}")
    if memory_budget is not None and not memory_budget > 0:
        raise ValueError(f"{NAME}: memory_budget must be positive, in bytes, got {memory_budget}")
    asked = None if implementation is None else _asked(problem, implementation)
    if policy.is_symbol(problem.rows):
        return _for_any_rows(problem, memory_budget, asked)
    found = _chosen(problem, memory_budget) if asked is None else _explained(problem, asked, memory_budget, "asked for")
    if memory_budget is not None and found.temporary_bytes > memory_budget:
        needed = f"{found.strategy} needs {found.temporary_bytes} at least"
        raise ValueError(f"{NAME}: memory_budget is {memory_budget} bytes, but {needed}")
    return found


def _asked(problem: Problem, implementation: str | Plan) -> Plan:
    """What is asked for, if it goes with the outputs."""
    if isinstance(implementation, Plan):
        sizes = implementation.block, implementation.chunk
        asked = Plan(implementation.strategy, *sizes, implementation.kernels)
    elif implementation in STRATEGIES:
        asked = _as_measured(problem, implementation)  # type: ignore[arg-type]
    else:
        known = ", ".join(map(repr, STRATEGIES))
        raise ValueError(f"{NAME}: implementation must be {known} or a Plan, got {implementation!r}")
    if asked.strategy == "gradient_in_forward" and not problem.is_scalar:
        raise ValueError(
            f"{NAME}: implementation 'gradient_in_forward' needs a scalar loss, reduction='mean' or 'sum' and "
            f"outputs=('loss',), got reduction={problem.reduction!r} and outputs={problem.outputs}"
        )
    return asked


def _chosen(problem: Problem, memory_budget: int | None) -> Explanation:
    little = _LITTLE if memory_budget is None else memory_budget
    budget = _default_budget(problem) if memory_budget is None else memory_budget
    allowed = "the budget of" if memory_budget is not None else "three times what the gradients take,"
    dense = _explained(problem, Plan("dense"), None, "few classes")
    if problem.width <= _FEW_CLASSES and dense.temporary_bytes <= max(little, budget):
        return dense
    if problem.is_scalar:
        why = f"a scalar loss, within {allowed} {_mib(budget)}"
        wanted = _explained(problem, _as_measured(problem, "gradient_in_forward"), budget, why)
    else:
        budget, why = little, f"all logits are within {_mib(little)}"
        wanted = dataclasses.replace(dense, why=why)
    if wanted.temporary_bytes <= budget:
        return wanted
    why = f"{wanted.strategy} needs {_mib(wanted.temporary_bytes)}"
    return _explained(problem, _as_measured(problem, "recompute"), memory_budget, why)


def _for_any_rows(problem: Problem, memory_budget: int | None, asked: Plan | None) -> Explanation:
    """The plan where N is a symbol, of ``jax.export``: sizes and costs are those of many tokens."""
    if memory_budget is not None:
        raise ValueError(f"{NAME}: memory_budget needs N to be a number, got {problem.rows}; give a Plan with a block")
    if asked is not None and asked.strategy == "gradient_in_forward":
        raise ValueError(f"{NAME}: implementation 'gradient_in_forward' needs N to be a number, got {problem.rows}")
    why = "asked for" if asked is not None else "N is a symbol"
    asked = asked or Plan("dense" if problem.width <= _FEW_CLASSES else "recompute")
    return _explained(dataclasses.replace(problem, rows=_MANY_TOKENS), asked, None, why)


def _mib(size: float) -> str:
    return f"{size / _MIB:,.1f} MiB"


def _default_budget(problem: Problem) -> int:
    gradients = (problem.rows + problem.width) * problem.features * int(problem.dtype.itemsize)
    return max(_GENEROUS * gradients, _LITTLE)


def _bytes_each(problem: Problem) -> tuple[int, int]:
    """Of a number as it is computed, and of one as products take it."""
    return int(problem.dtype.itemsize), int(problem.operands.itemsize)


# -- sizes -------------------------------------------------------------------------------------------------------------


def _as_measured(problem: Problem, strategy: Strategy) -> Plan:
    """The plan of a strategy, by what was fastest on a device of this kind."""
    return Plan(strategy, kernels=measured.nearest(problem, strategy).get("kernels", "xla"))


def _explained(problem: Problem, plan: Plan, budget: int | None, why: str) -> Explanation:
    """The plan with what it leaves open, and its costs; by XLA where it asks for kernels of another problem."""
    sized = _sized(problem, plan, budget)
    if plan.kernels == "mosaic" and (reason := unmet(problem, sized.block, sized.chunk)):
        return _explained(problem, dataclasses.replace(plan, kernels="xla"), budget, f"{why}; {reason}")
    return _with_costs(problem, sized, why)


def _sized(problem: Problem, plan: Plan, budget: int | None) -> Plan:
    """Sizes as they were measured on a device of this kind, otherwise by a rule, and no more than the budget allows."""
    if plan.strategy == "dense":
        return dataclasses.replace(plan, block=problem.width, chunk=max(problem.rows, 1))
    found = measured.nearest(problem, plan.strategy)
    if found.get("kernels", "xla") != plan.kernels:
        found = {}
    chunk = problem.rows
    if plan.strategy == "gradient_in_forward":
        rule = min(_TOKENS, max(-(-problem.rows // 2), _FEWEST_TOKENS))
        chunk = plan.chunk or found.get("chunk") or rule
    block = plan.block or found.get("block") or _columns(problem, plan)
    sized = dataclasses.replace(plan, block=min(block, problem.width), chunk=max(min(chunk, problem.rows), 1))
    if budget is None:
        return sized
    if plan.strategy == "gradient_in_forward" and not plan.chunk:
        sized = _fewer_tokens(problem, sized, budget)
    return sized if plan.block else _fewer_columns(problem, sized, budget)


def _columns(problem: Problem, plan: Plan) -> int:
    """The columns of a block, by the rule."""
    wide, narrow = _bytes_each(problem)
    if _is_cpu():
        return _even(problem.width, _CPU_COLUMNS[narrow])
    aligned = ALIGNED if give_dlogits(plan.kernels) else _ALIGNED
    if plan.strategy == "gradient_in_forward" and problem.width % aligned == 0:
        # The logits of a chunk are stored: those of all columns at a time, as products can take them.
        return problem.width
    of_logit = narrow if give_dlogits(plan.kernels) else wide + narrow
    most = _BLOCK_BYTES // (max(problem.rows, 1) * of_logit)
    fewest = _FEWEST_ON_TPU if jax.default_backend() == "tpu" else _FEWEST_COLUMNS
    most = min(max(most, fewest), _MOST_COLUMNS * (wide + narrow) // of_logit)
    dividing = [c for c in range(most - most % aligned, most // 2, -aligned) if problem.width % c == 0]
    return dividing[0] if dividing and problem.width > most else _even(problem.width, most)


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _fewer_tokens(problem: Problem, plan: Plan, budget: int) -> Plan:
    """As many tokens at a time as the budget allows, all of them in chunks of nearly the same size."""
    while plan.chunk > _FEWEST_TOKENS and _with_costs(problem, plan, "").temporary_bytes > budget:
        chunks = -(-problem.rows // plan.chunk) + 1
        plan = dataclasses.replace(plan, chunk=max(-(-problem.rows // chunks), _FEWEST_TOKENS))
    return plan


def _fewer_columns(problem: Problem, plan: Plan, budget: int) -> Plan:
    while plan.block > 1 and _with_costs(problem, plan, "").temporary_bytes > budget:
        plan = dataclasses.replace(plan, block=_even(problem.width, -(-plan.block // 2)))
    return plan


def _even(width: int, most: int) -> int:
    """The columns of blocks of nearly the same size, a multiple of some where there are as many."""
    if width <= most:
        return width
    even = -(-width // -(-width // most))
    return min(-(-even // _MULTIPLE) * _MULTIPLE, most) if most >= _MULTIPLE else even


# -- costs -------------------------------------------------------------------------------------------------------------


def _with_costs(problem: Problem, plan: Plan, why: str) -> Explanation:
    """The plan with what it costs: products of N x D x V, logits in the dtype of computation, dlogits in that of the
    operands, gradients as they add up. A teacher's logits are computed twice for the loss and again for the gradient,
    in blocks of as many columns; it has no gradient itself."""
    wide, narrow = _bytes_each(problem)
    once, taught = (2 * problem.rows * d * problem.width for d in (problem.features, problem.teacher_features))
    is_in_forward = plan.strategy == "gradient_in_forward"
    tokens = plan.chunk if is_in_forward else problem.rows
    of_tokens = tokens * (problem.features * (wide + narrow) + 16 * wide)
    of_logits = tokens * (wide + (narrow if narrow < wide else 0))
    of_block = plan.block * (of_logits + (2 * tokens * wide if problem.teacher_features else 0))
    if plan.kernels == "mosaic" and not _is_cpu():
        of_parts = bytes_of_parts(problem, tokens)
        if give_dlogits(plan.kernels):
            # Dlogits and a block of w or of its gradient, which XLA has where logits were.
            of_block = plan.block * (tokens + problem.features) * narrow if plan.strategy == "recompute" else of_block
        # In turn, but where logits are stored.
        of_block = max(of_block, of_parts) if plan.strategy == "recompute" else of_block + of_parts
    stored = of_block + of_tokens
    if not _is_cpu():
        stored += _WORKSPACE
    elif plan.strategy != "dense":
        # A block of w and of its gradient, which elsewhere are read and written where they are.
        stored += plan.block * (problem.features + problem.teacher_features) * (wide + narrow)
    keeps_dlogits = False
    if is_in_forward and plan.block < problem.width:
        stored += tokens * problem.width * wide
    if is_in_forward and plan.chunk < problem.rows:
        # The teacher's x of a chunk.
        stored += tokens * problem.teacher_features * narrow
    if is_in_forward and plan.chunk < problem.rows and narrow < wide:
        of_sums, of_dlogits = problem.features * problem.width * wide, problem.rows * problem.width * narrow
        keeps_dlogits = problem.operands.name == "bfloat16" and of_dlogits < of_sums
        stored += of_dlogits if keeps_dlogits else of_sums
    again = 1 if plan.strategy == "recompute" else 0
    return Explanation(
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(Plan)},
        why=why,
        forward_flop=once + 2 * taught,
        backward_flop=(2 + again) * once + taught,
        temporary_bytes=stored,
        keeps_dlogits=keeps_dlogits,
    )
