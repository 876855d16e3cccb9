"""Linear cross-entropy as it is compiled for TPUs, without one: memory, matrix products, and what is between them.

Needs libtpu in the version that jax's extra "tpu" names, which may be installed with --no-deps on any machine.
"""

import functools
import os
import re

import compiled
import jax
import jax.numpy as jnp
import pytest
from compiled import Program, arguments_of, value_and_gradients

from xentjax.losses.linear import Plan, linear_cross_entropy

#: Of language models, by a TPU that has memory for them: N, D, V, and the columns at a time with "recompute".
COLUMNS = {
    ("v6e", 4096, 4096, 128256): 5344,
    ("v5e", 4096, 2048, 128256): 5344,
    ("v5e", 8192, 1024, 50257): 2688,
}
by_kernels = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the kernels need jax 0.12 or later")
RECOMPUTE, IN_FORWARD = (
    [Plan(strategy), pytest.param(Plan(strategy, kernels="mosaic"), marks=by_kernels)]
    for strategy in ("recompute", "gradient_in_forward")
)
named = lambda value: f"{value.strategy}-{value.kernels}" if isinstance(value, Plan) else str(value)
CASES = [(sizes, layout) for sizes in COLUMNS for layout in ("dv", "vd")]

planned = functools.partial(compiled.planned, "tpu")


@functools.cache
def topology(kind):
    """Four TPUs that are not there; the test is skipped where they cannot be compiled for."""
    pytest.importorskip("libtpu", reason="needs libtpu")
    # It looks for the TPUs of a cloud's machine otherwise.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:2x2").devices


def device(kind):
    """One of them."""
    return jax.sharding.NamedSharding(jax.sharding.Mesh(topology(kind)[:1], ("x",)), jax.sharding.PartitionSpec())


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


@pytest.mark.parametrize("asked", RECOMPUTE, ids=named)
@pytest.mark.parametrize(("sizes", "layout"), CASES, ids=str)
def test_logits_stay_in_fast_memory(sizes, layout, asked):
    """Those of a block, in float32, leave nothing to write and to read where they are not stored."""
    _, n, d, v = sizes
    plan = planned(n, d, v, asked, layout)
    logits = rf"f32\[(?:{n},{plan.block}|{plan.block},{n})\](\{{[^}}]*\}})"
    instructions = program_of(*sizes, plan, layout).instructions
    places = [at for line in instructions for at in re.findall(logits, line.split(" = ")[1].split("fusion(")[0])]
    assert places
    assert all("S(1)" in place for place in places)


@pytest.mark.parametrize("asked", [*RECOMPUTE, *IN_FORWARD], ids=named)
@pytest.mark.parametrize(("sizes", "layout"), CASES, ids=str)
class TestProgram:
    def test_memory(self, sizes, layout, asked):
        """At most what is predicted; where logits are not stored, less than a byte for each."""
        _, n, d, v = sizes
        plan = planned(n, d, v, asked, layout)
        program = program_of(*sizes, plan, layout)
        assert program.temporary <= plan.temporary_bytes
        if plan.strategy == "recompute":
            assert program.temporary <= n * v

    def test_products(self, sizes, layout, asked):
        """Of bfloat16 operands alone, and no more of them than the strategy says; the first one is a kernel's."""
        program = program_of(*sizes, planned(*sizes[1:], asked, layout), layout)
        kernels = [line for line in program.instructions if 'custom_call_target="tpu_custom_call"' in line]
        assert len(kernels) == (asked.kernels == "mosaic")
        assert len(program.products) + len(kernels) == (4 if asked.strategy == "recompute" else 3)
        for _, operands in program.products:
            assert [dtype for dtype, _ in operands] == ["bf16", "bf16"]

    def test_nothing_as_large_as_w_is_moved(self, sizes, layout, asked):
        """w is not copied, padded, transposed or widened, and its gradient is written in place."""
        _, n, d, v = sizes
        plan = planned(n, d, v, asked, layout)
        program = program_of(*sizes, plan, layout)
        w = f"[{d},{v}]" if layout == "dv" else f"[{v},{d}]"
        is_sum = plan.strategy == "gradient_in_forward" and not plan.keeps_dlogits
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

    def test_no_branch(self, sizes, layout, asked):
        assert "conditional(" not in program_of(*sizes, planned(*sizes[1:], asked, layout), layout).text


@by_kernels
@pytest.mark.parametrize("asked", [(), ("spread", "products")], ids=str)
@pytest.mark.parametrize("kind", ["v5e", "v6e"])
@pytest.mark.parametrize(
    "case",
    [
        (4096, 4096, 128256, "dv", jnp.bfloat16),
        (1000, 8192, 50257, "dv", jnp.bfloat16),
        (1000, 2048, 50257, "vd", jnp.float32),
        (4096, 32768, 2048, "dv", jnp.bfloat16),
        (4096, 16384, 2048, "vd", jnp.float32),
        (1, 128, 71, "vd", jnp.bfloat16),
    ],
    ids=str,
)
def test_kernel(kind, case, asked):
    """Tiles of all sizes are in fast memory, partial ones too; what is beside them is a few numbers of each row."""
    from xentjax.losses.linear import tpu_kernels

    n, d, v, layout, dtype = case
    tiles = tpu_kernels.Tiles.of(n, d, v, dtype)
    function = functools.partial(tpu_kernels.lane_statistics, layout=layout, tiles=tiles, **dict.fromkeys(asked, True))
    shapes = ((n, d), dtype), ((d, v) if layout == "dv" else (v, d), dtype), ((n,), jnp.int32), ((), jnp.int32)
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=device(kind)) for shape in shapes]
    found = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    assert found.memory_analysis().temp_size_in_bytes <= 2**20 + 6 * n * 128 * 4


@by_kernels
def test_kernel_of_a_vocabulary_on_many_devices():
    """Each has the kernel for its own columns; rows of numbers travel, one for each token."""
    n, d, v = 1024, 2048, 50304
    mesh = jax.sharding.Mesh(topology("v5e"), ("vocabulary",))
    spec = jax.sharding.PartitionSpec

    def loss(x, w, labels):
        options = {"implementation": Plan("recompute", kernels="mosaic"), "axis_name": "vocabulary"}
        of_device = functools.partial(linear_cross_entropy, reduction="mean", **options)
        specs = (spec(), spec(None, "vocabulary"), spec())
        return jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=spec())(x, w, labels)

    sharded = [jax.sharding.NamedSharding(mesh, own) for own in (spec(), spec(None, "vocabulary"), spec())]
    arguments = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=own)
        for a, own in zip(arguments_of(n, d, v, "dv"), sharded, strict=True)
    ]
    found = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    assert 'custom_call_target="tpu_custom_call"' in found.as_text()
    assert found.memory_analysis().temp_size_in_bytes <= n * v
