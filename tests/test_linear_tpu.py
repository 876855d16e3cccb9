"""Linear cross-entropy as it is compiled for TPUs, without one: memory, matrix products, and what is between them.

Needs libtpu in the version that jax's extra "tpu" names, which may be installed with --no-deps on any machine.
"""

import functools
import os
import re

import compiled
import jax
import pytest
from compiled import Program, arguments_of, value_and_gradients

#: Of language models, by a TPU that has memory for them: N, D, V, and the columns at a time with "recompute".
COLUMNS = {
    ("v6e", 4096, 4096, 128256): 5344,
    ("v5e", 4096, 2048, 128256): 5344,
    ("v5e", 8192, 1024, 50257): 2688,
}
STRATEGIES = ("recompute", "gradient_in_forward")
CASES = [(sizes, layout) for sizes in COLUMNS for layout in ("dv", "vd")]

planned = functools.partial(compiled.planned, "tpu")


@functools.cache
def device(kind):
    """One TPU that is not there; the test is skipped where it cannot be compiled for."""
    pytest.importorskip("libtpu", reason="needs libtpu")
    # It looks for the TPUs of a cloud's machine otherwise.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    from jax.experimental import topologies

    one = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:2x2").devices[:1]
    return jax.sharding.NamedSharding(jax.sharding.Mesh(one, ("x",)), jax.sharding.PartitionSpec())


@functools.cache
def program_of(kind, n, d, v, plan, layout):
    """Value and gradient of a mean by x and w, all in bfloat16."""
    arguments = arguments_of(n, d, v, layout, device(kind))
    found = jax.jit(value_and_gradients(plan, layout)).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    memory = found.memory_analysis()
    # What is called temporary there counts what is in a loop twice.
    temporary = memory.peak_memory_in_bytes - memory.argument_size_in_bytes - memory.output_size_in_bytes
    return Program(found.as_text(), temporary)


@pytest.mark.parametrize("sizes", COLUMNS, ids=str)
def test_blocks(sizes):
    """As many columns as leave a block's logits in fast memory; where that divides V, such that it does."""
    assert planned(*sizes[1:], "recompute").block == COLUMNS[sizes]


@pytest.mark.parametrize(("sizes", "layout"), CASES, ids=str)
def test_logits_stay_in_fast_memory(sizes, layout):
    """Those of a block, in float32, leave nothing to write and to read where they are not stored."""
    _, n, d, v = sizes
    plan = planned(n, d, v, "recompute", layout)
    logits = rf"f32\[(?:{n},{plan.block}|{plan.block},{n})\](\{{[^}}]*\}})"
    instructions = program_of(*sizes, plan, layout).instructions
    places = [at for line in instructions for at in re.findall(logits, line.split(" = ")[1].split("fusion(")[0])]
    assert places
    assert all("S(1)" in place for place in places)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("sizes", "layout"), CASES, ids=str)
class TestProgram:
    def test_memory(self, sizes, layout, strategy):
        """At most what is predicted; where logits are not stored, less than a byte for each."""
        _, n, d, v = sizes
        plan = planned(n, d, v, strategy, layout)
        program = program_of(*sizes, plan, layout)
        assert program.temporary <= plan.temporary_bytes
        if strategy == "recompute":
            assert program.temporary <= n * v

    def test_products(self, sizes, layout, strategy):
        """Of bfloat16 operands alone, and no more of them than the strategy says."""
        program = program_of(*sizes, planned(*sizes[1:], strategy, layout), layout)
        assert len(program.products) == (4 if strategy == "recompute" else 3)
        for _, operands in program.products:
            assert [dtype for dtype, _ in operands] == ["bf16", "bf16"]

    def test_nothing_as_large_as_w_is_moved(self, sizes, layout, strategy):
        """w is not copied, padded, transposed or widened, and its gradient is written in place."""
        _, n, d, v = sizes
        plan = planned(n, d, v, strategy, layout)
        program = program_of(*sizes, plan, layout)
        w = f"[{d},{v}]" if layout == "dv" else f"[{v},{d}]"
        is_sum = strategy == "gradient_in_forward" and not plan.keeps_dlogits
        for line in program.instructions:
            name, result = line.split(" = ")
            operation = re.search(r" ([\w-]+)\(", result)[1]
            if w not in result.split(f" {operation}(")[0]:
                continue
            is_there = operation in ("get-tuple-element", "bitcast", "parameter", "tuple", "while", "custom-call")
            is_put = operation == "dynamic-update-slice" or "kind=kOutput" in line
            # All of the gradient was in fast memory.
            is_put |= (
                operation in ("copy-start", "copy-done") and "S(1)" in program.results[name.replace("done", "start")]
            )
            # Zeros to add to, where blocks overlap and where the gradient is a sum, which is rounded in the end.
            starts = operation == "broadcast" and (is_sum or v % plan.block)
            of = re.search(r"\((%[\w.-]+)\)", result)
            rounds = is_sum and result.startswith("bf16") and of and program.results[of[1]].startswith("f32")
            assert is_there or is_put or starts or rounds, line
        assert not re.search(r" (pad|transpose)\(", "".join(program.instructions))

    def test_no_branch(self, sizes, layout, strategy):
        assert "conditional(" not in program_of(*sizes, planned(*sizes[1:], strategy, layout), layout).text
