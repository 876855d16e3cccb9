"""Linear cross-entropy as it is compiled for an H200, without one: memory, matrix products, and what is between them.

Needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's own version (installed with --no-deps) and nvidia-cuda-nvcc.
XLA chooses products by measuring on a device. Here it cannot: they are cuBLAS's, as XLA is told, with as much memory.
"""

import functools
import os
import pathlib
import re

import compiled
import jax
import pytest
from compiled import Program, arguments_of, sizes_of, value_and_gradients

TARGET = pathlib.Path(__file__).parent / "data" / "h200.textproto"
MIB = 2**20
#: N, D, V of language models, and the columns at a time with "recompute": they divide V where multiples of 8 do.
COLUMNS = {(4096, 4096, 128256): 5344, (8192, 2304, 256000): 2560, (8192, 1024, 50257): 3072}
STRATEGIES = ("recompute", "gradient_in_forward")


# -- compiled for a GPU ------------------------------------------------------------------------------------------------


@functools.cache
def device():
    """One H200 that is not there; the test is skipped where it cannot be compiled for."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs jax-cuda13-plugin and jax-cuda13-pjrt")
    nvcc = pytest.importorskip("nvidia.cu13", reason="needs nvidia-cuda-nvcc")
    if jax.__version_info__ < (0, 11):
        pytest.skip("needs jax 0.11 or later, which knows devices that are not there")
    os.environ["PATH"] = os.pathsep.join([*(f"{path}/bin" for path in nvcc.__path__), os.environ["PATH"]])
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET.read_text(), topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


planned = functools.partial(compiled.planned, "gpu")


@functools.cache
def program_of(n, d, v, plan, layout="dv"):
    """Value and gradient of a mean by x and w, all in bfloat16."""
    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
        traced = jax.jit(value_and_gradients(plan, layout)).trace(*arguments_of(n, d, v, layout, device()))
        found = traced.lower(lowering_platforms=("cuda",)).compile({"xla_gpu_enable_triton_gemm": False})
    return Program(found.as_text(), found.memory_analysis().temp_size_in_bytes)


@pytest.mark.parametrize("sizes", COLUMNS, ids=str)
def test_blocks(sizes):
    """Of a size that products take as they are; in the forward pass all columns at once where 8 divides them."""
    again, in_forward = (planned(*sizes, strategy) for strategy in STRATEGIES)
    assert again.block == COLUMNS[sizes]
    assert again.temporary_bytes <= 3.5e8
    assert (in_forward.block, in_forward.chunk) == (sizes[2] if sizes[2] % 8 == 0 else 3072, 1024)
    assert in_forward.keeps_dlogits == (2 * sizes[0] < 4 * sizes[1])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sizes", COLUMNS, ids=str)
class TestProgram:
    def test_memory(self, sizes, strategy):
        """What the plan says, at most, and no less than half of it."""
        n, d, v = sizes
        plan = planned(n, d, v, strategy)
        program = program_of(n, d, v, plan)
        assert plan.temporary_bytes / 2 <= program.temporary <= plan.temporary_bytes
        if strategy == "recompute":
            assert program.temporary <= 256e6
        elif sizes == (4096, 4096, 128256):
            assert program.temporary <= 1.1e9

    def test_products(self, sizes, strategy):
        """Of bfloat16 operands alone, by cuBLASLt, and no more of them than the strategy says."""
        plan = planned(*sizes, strategy)
        program = program_of(*sizes, plan)
        assert len(program.products) == (4 if plan.strategy == "recompute" else 3)
        for line, operands in program.products:
            assert "__cublas$lt$matmul" in line
            assert [dtype for dtype, _ in operands[:2]] == ["bf16", "bf16"]
            assert [dtype for dtype, _ in operands[2:]] in ([], ["f32"])  # what is added to

    def test_nothing_as_large_as_w_is_moved(self, sizes, strategy):
        """w is not copied, padded, transposed or widened, and its gradient is written in place."""
        n, d, v = sizes
        program = program_of(n, d, v, planned(n, d, v, strategy))
        for line in program.instructions:
            if d * v not in sizes_of(line) or re.search(r"(get-tuple-element|bitcast|parameter|tuple|while)\(", line):
                continue
            in_place = "dynamic_update_slice_fusion" in line or "cublas" in line or "dynamic_slice_fusion" in line
            starts = "broadcast_fusion" in line or "AllocateBuffer" in line
            rounded = "convert" in line and line.split(" = ")[1].startswith(f"bf16[{d},{v}]")
            assert in_place or starts or (rounded and strategy != "recompute"), line
        assert not re.search(r" (pad|transpose)\(", "".join(program.instructions))
        assert "pad" not in "".join(line.split("(")[0] for line in program.instructions)

    def test_no_branch(self, sizes, strategy):
        """The host waits for nothing that a device has to say, but for the counters of loops."""
        assert "conditional(" not in program_of(*sizes, planned(*sizes, strategy)).text

    def test_passes_over_logits(self, sizes, strategy):
        """Two that read them for the statistics, and one for dlogits, which are written once."""
        n, d, v = sizes
        plan = planned(n, d, v, strategy)
        rows = n if plan.strategy == "recompute" else plan.chunk
        program = program_of(n, d, v, plan)
        whole = rows * plan.block
        reads = [line for line in program.instructions if "kind=kInput" in line and _reads(program, line, whole)]
        assert len(reads) == 2
        writes = [line for line in program.instructions if _is_dlogits(line, plan, rows, n, v)]
        assert len(writes) == 1


def _reads(program, line, entries):
    """Whether a fusion has an argument of so many entries."""
    called = re.search(r"calls=%([\w.-]+)", line)[1]
    return any("parameter(" in inner and entries in sizes_of(inner) for inner in program.computations[called])


def _is_dlogits(line, plan, rows, n, v):
    shapes = {f"bf16[{rows},{plan.block}]", f"bf16[{n},{v}]"} if plan.block == v else {f"bf16[{rows},{plan.block}]"}
    is_of_w = line.startswith("%loop_dynamic_slice_fusion")
    return "kind=kLoop" in line and not is_of_w and line.split(" = ")[1].split("{")[0] in shapes


def test_rows_of_w_are_read_and_written_in_place():
    """With w_layout="vd" and blocks that divide the vocabulary products take rows of w where they are."""
    n, d, v = 4096, 4096, 128256
    plan = planned(n, d, v, "recompute", "vd")
    program = program_of(n, d, v, plan, "vd")
    moved = [line for line in program.instructions if "kind=kLoop" in line and d * plan.block in sizes_of(line)]
    assert not [line for line in moved if "dynamic" in line]
    assert program.temporary <= 200 * MIB
