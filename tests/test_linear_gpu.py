"""Linear cross-entropy as it is compiled for an H200, without one: memory, matrix products, and what is between them.

Needs jax-cuda13-plugin and jax-cuda13-pjrt of jax's own version (installed with --no-deps) and nvidia-cuda-nvcc.
XLA chooses products by measuring on a device. Here it cannot: they are cuBLAS's, as XLA is told, with as much memory.
"""

import collections
import dataclasses
import functools
import math
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xentjax import logit_rows
from xentjax.losses.linear import explain, linear_cross_entropy, vocabulary

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


def arguments_of(n, d, v, layout, sharding=None):
    shapes = ((n, d), jnp.bfloat16), ((d, v) if layout == "dv" else (v, d), jnp.bfloat16), ((n,), jnp.int32)
    return [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]


@functools.cache
def planned(n, d, v, strategy, layout="dv"):
    """The plan where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        return explain(*arguments_of(n, d, v, layout), reduction="mean", w_layout=layout, implementation=strategy)


@functools.cache
def compiled(n, d, v, plan, layout="dv"):
    """Value and gradient of a mean by x and w, all in bfloat16."""
    arguments = arguments_of(n, d, v, layout, device())

    def loss(x, w, labels):
        return linear_cross_entropy(x, w, labels, reduction="mean", implementation=plan, w_layout=layout)

    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*arguments)
        found = traced.lower(lowering_platforms=("cuda",)).compile({"xla_gpu_enable_triton_gemm": False})
    return Program(found.as_text(), found.memory_analysis().temp_size_in_bytes)


@dataclasses.dataclass(frozen=True)
class Program:
    """What XLA made: the text of all computations, and bytes beside arguments and results."""

    text: str
    temporary: int

    @functools.cached_property
    def computations(self):
        """The lines of each computation, by name."""
        found, name = collections.defaultdict(list), None
        for line in self.text.splitlines():
            if match := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
                name = match[1]
            elif name and " = " in line:
                found[name].append(line.strip().removeprefix("ROOT "))
        return found

    @functools.cached_property
    def run(self):
        """The instructions that run by themselves, by loop body and entry: not those within a fusion."""
        bodies = re.findall(r"while\(.*body=%([\w.-]+)", self.text)
        entry = re.search(r"^ENTRY %([\w.-]+)", self.text, re.MULTILINE)[1]
        return {name: self.computations[name] for name in (*bodies, entry)}

    @property
    def instructions(self):
        return [line for lines in self.run.values() for line in lines]

    @property
    def products(self):
        """Instructions that are matrix products, wherever: (line, dtypes and shapes of its operands)."""
        lines = [line for lines in self.computations.values() for line in lines]
        shape_of = {line.split(" = ")[0]: line.split(" = ")[1] for line in lines}
        calls = [line for line in lines if re.search(r'custom_call_target="__cublas|\bdot\(|convolution\(', line)]
        found = []
        for line in calls:
            operands = re.findall(r"%[\w.-]+", re.search(r"(?:custom-call|dot|convolution)\(([^)]*)\)", line)[1])
            found.append((line, [re.match(r"\(?(\w+)\[([\d,]*)\]", shape_of[name]).groups() for name in operands]))
        return found


def sizes_of(line):
    """Entries of each array in an instruction's result."""
    result = line.split(" = ")[1]
    result = result[: result.index(")") + 1] if result.startswith("(") else result.split(" ")[0]
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", result)]


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
        program = compiled(n, d, v, plan)
        assert plan.temporary_bytes / 2 <= program.temporary <= plan.temporary_bytes
        if strategy == "recompute":
            assert program.temporary <= 256e6
        elif sizes == (4096, 4096, 128256):
            assert program.temporary <= 1.1e9

    def test_products(self, sizes, strategy):
        """Of bfloat16 operands alone, by cuBLASLt, and no more of them than the strategy says."""
        plan = planned(*sizes, strategy)
        program = compiled(*sizes, plan)
        assert len(program.products) == (4 if plan.strategy == "recompute" else 3)
        for line, operands in program.products:
            assert "__cublas$lt$matmul" in line
            assert [dtype for dtype, _ in operands[:2]] == ["bf16", "bf16"]
            assert [dtype for dtype, _ in operands[2:]] in ([], ["f32"])  # what is added to

    def test_nothing_as_large_as_w_is_moved(self, sizes, strategy):
        """w is not copied, padded, transposed or widened, and its gradient is written in place."""
        n, d, v = sizes
        program = compiled(n, d, v, planned(n, d, v, strategy))
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
        assert "conditional(" not in compiled(*sizes, planned(*sizes, strategy)).text

    def test_passes_over_logits(self, sizes, strategy):
        """Two that read them for the statistics, and one for dlogits, which are written once."""
        n, d, v = sizes
        plan = planned(n, d, v, strategy)
        rows = n if plan.strategy == "recompute" else plan.chunk
        program = compiled(n, d, v, plan)
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
    program = compiled(n, d, v, plan, "vd")
    moved = [line for line in program.instructions if "kind=kLoop" in line and d * plan.block in sizes_of(line)]
    assert not [line for line in moved if "dynamic" in line]
    assert program.temporary <= 200 * MIB


# -- the same numbers on any device ------------------------------------------------------------------------------------

INF, NAN = np.inf, np.nan
ROWS = [[0, 1, 2, 3], [90, 0, 0, -INF], [5, 5, -INF, -INF], [INF, 0, 1, -INF], [INF, INF, 0, 0], [-INF] * 4]
ROWS += [[NAN, 0, 1, 2], [1e30, -1e30, 0, 0], [-INF, -INF, -3, -INF], [0, -20, -30, -40]]


@pytest.mark.parametrize("width", [4, 400])
def test_sums_at_once(width):
    """What sums rows without a branch, elsewhere than on a CPU, gives what is summed there."""
    logits = np.full((len(ROWS), width), -INF, np.float32)
    logits[:, :4] = ROWS
    logits[0, 4:] = 1
    maximum = jnp.max(logits, axis=-1)
    got = logit_rows._sums_at_once(jnp.asarray(logits), maximum, -1)
    expected = logit_rows.rows_of(jnp.asarray(logits), -1)
    np.testing.assert_allclose(got[0], expected.total, rtol=2**-21)
    np.testing.assert_allclose(got[1], expected.rest, rtol=2**-21)


@pytest.mark.parametrize("start", [3, 4])
@pytest.mark.parametrize("adds", ["nowhere", "where blocks overlap", "everywhere"])
def test_columns_placed(adds, start):
    """By bits, as on a CPU, and plainly: the same."""
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((5, 12)), jnp.bfloat16)
    # What no block has been put in is 0, unless there is something everywhere.
    w = w if adds == "everywhere" else w.at[:, start - start % -4 :].set(0)
    part = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
    config = (1, 4, adds, jnp.dtype(jnp.float32))
    by_bits, plainly = (f(config, start, w, part) for f in (vocabulary._placed_by_bits, vocabulary._placed))
    np.testing.assert_array_equal(by_bits, plainly)
