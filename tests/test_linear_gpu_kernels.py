"""The kernels for Hopper GPUs as they are compiled for an H200, without one; what is needed is test_linear_gpu.py's."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from test_linear_gpu import COLUMNS, device, planned, program_of

from xentjax.losses.linear import Plan

if jax.__version_info__ < (0, 12):
    pytest.skip("the kernels need jax 0.12 or later", allow_module_level=True)

from xentjax.losses.linear import gpu_kernels

#: N, D, V, layout and dtype: of language models, with partial tiles of tokens and columns in the end; and small ones.
LARGE = [
    (4096, 4096, 128256, "dv", jnp.bfloat16),
    (4096, 4096, 128256, "vd", jnp.float16),
    (8192, 2304, 256000, "vd", jnp.bfloat16),
    (12008, 3584, 151936, "dv", jnp.bfloat16),
]
SMALL = [(1000, 192, 320, "dv", jnp.float16), (8, 64, 64, "vd", jnp.bfloat16)]


def compile_kernel(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(*shape, sharding=device()) for shape in shapes]
    kind = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()


def arguments_of(n, d, v, layout, dtype):
    return ((n, d), dtype), ((d, v) if layout == "dv" else (v, d), dtype)


def statistics_of(case, asked):
    """A kernel, and what it takes."""
    tiles = gpu_kernels.FOR_PRODUCTS if "products" in asked else gpu_kernels.FOR_STATISTICS
    tiles = gpu_kernels.FOR_SPREAD if "spread" in asked else tiles
    flags = dict.fromkeys(asked, True)
    function = functools.partial(gpu_kernels.tile_statistics, layout=case[3], tiles=tiles, **flags)
    return function, *arguments_of(*case), ((case[0],), jnp.int32), ((), jnp.int32)


def dlogits_of(case, more):
    n, _, v, layout, _ = case
    names = ("maximum", "log_total", "scale", "label", "scale_at", "at", *more)
    dtypes = {"label": jnp.int32, "is_lost": jnp.bool_}
    sizes = {"columns": min(10688, v), "layout": layout, "tiles": gpu_kernels.FOR_DLOGITS}

    def function(x, w, start, fresh, *rows):
        return gpu_kernels.dlogits(x, w, start, fresh, dict(zip(names, rows, strict=True)), **sizes)

    of_rows = [((n,), dtypes.get(name, jnp.float32)) for name in names]
    return function, *arguments_of(*case), ((), jnp.int32), ((2,), jnp.int32), *of_rows


KERNELS = [(statistics_of, *asked) for asked in [(), ("spread",), ("products",), ("spread", "products")]]
KERNELS += [(dlogits_of, *more) for more in [(), ("shift", "is_lost")]]
KERNELS = {"-".join([function.__name__, *options]): (function, options) for function, *options in KERNELS}


@pytest.mark.parametrize("case", LARGE, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_register_is_spilled(capfd, monkeypatch, kernel, case):
    device()
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    function, options = KERNELS[kernel]
    compile_kernel(*function(case, options))
    text = "".join(capfd.readouterr())
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", text)
    assert "spilled" not in text


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_partial_tiles(kernel, case):
    """Matrices that are smaller than tiles: what the interpreter runs, the compiler takes."""
    function, options = KERNELS[kernel]
    assert compile_kernel(*function(case, options)).memory_analysis().temp_size_in_bytes <= 2**16


@pytest.mark.parametrize("sizes", [sizes for sizes in COLUMNS if sizes[2] % 64 == 0], ids=str)
class TestProgram:
    def test_recompute(self, sizes):
        """The products of the gradients are cuBLAS's; no logits are in memory, dlogits in 16 bits of a block alone."""
        n, _, v = sizes
        plan = planned(*sizes, Plan("recompute", kernels="mosaic"))
        assert plan.kernels == "mosaic"
        assert v % plan.block == 0
        program = program_of(*sizes, plan)
        assert len(program.products) == 2
        assert len(kernels_of(program)) == 2
        assert plan.temporary_bytes / 2 <= program.temporary <= min(plan.temporary_bytes, 256e6)
        # The bits of the kernels' programs are in the text too.
        assert not re.search(rf"f32\[{n},({v}|{plan.block})\]", program.text)

    def test_gradient_in_forward(self, sizes):
        """The logits of a chunk are stored by the kernel."""
        plan = planned(*sizes, Plan("gradient_in_forward", kernels="mosaic"))
        program = program_of(*sizes, plan)
        assert len(program.products) == 2
        assert len(kernels_of(program)) == 1
        assert program.temporary <= plan.temporary_bytes


def kernels_of(program):
    """Lines of the text, as the programs of kernels among its attributes have lines of their own."""
    return [line for line in program.text.splitlines() if 'custom_call_target="mosaic_gpu' in line]
