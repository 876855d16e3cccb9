"""What computes a linear cross-entropy: XLA, or a device's kernels where a problem is one that they are written for."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from xentjax.core import policy
from xentjax.losses.linear.arguments import Problem
from xentjax.losses.linear.outputs import output
from xentjax.losses.linear.vocabulary import LANES, Arrays, Kernels, Walk

KERNELS = get_args(Kernels)
#: Devices that there are kernels for, as JAX names what it compiles for.
Device = Literal["cuda", "tpu"]

#: On a GPU: what D, the classes on a device, and the columns of a block are multiples of, and the tokens of a chunk:
#: tiles in shared memory have rows of 128 bytes, in groups of 8.
ALIGNED, ALIGNED_TOKENS = 64, 8
#: Columns of a tile at least, each of which leaves so many numbers in float32 of a row at most.
TILE, NUMBERS = 192, 4
#: On a TPU: the bytes of a row of x at most, so that whole rows of x and w are in its fast memory.
BYTES_OF_ROW = 2**16
#: Generations of TPUs with less of it than that takes.
_EARLY = ("TPU v2", "TPU v3", "TPU v4")

_OPTIONS = {"bias": "a bias", "class_weights": "class weights", "softcap": "a soft cap", "temperature": "a temperature"}


def unmet(problem: Problem, block: int, tokens: int) -> str | None:
    """Why no kernels compute a problem in such blocks; None if they do: those of the device that is here, on a CPU
    those of any.

    Args:
      problem: the shapes, dtypes and options.
      block: columns at a time.
      tokens: at a time.
    """
    if jax.__version_info__ < (0, 12):
        return f"kernels need jax 0.12 or later, not {jax.__version__}"
    if problem.labels not in ("indices", None):
        return "kernels need class indices as labels"
    if other := {name for name in problem.outputs if not output(name).is_of_kernels}:
        return f"kernels do not give {', '.join(sorted(other))}"
    if given := [words for name, words in _OPTIONS.items() if name in problem.options]:
        return f"kernels do not take {', '.join(given)}"
    chunks = -(-problem.rows // max(tokens, 1))
    tokens = -(-problem.rows // max(chunks, 1))
    here: dict[str, tuple[Device, ...]] = {"gpu": ("cuda",), "tpu": ("tpu",)}
    devices = here.get(jax.default_backend(), get_args(Device))
    sizes = problem.operands, problem.features, problem.width, block
    reasons = [
        _of_this(device) or unmet_sizes(device, problem.rows, *sizes) or unmet_sizes(device, tokens, *sizes)
        for device in devices
    ]
    return None if None in reasons else reasons[0]


def _of_this(device: Device) -> str | None:
    """Why the kernels of a kind of device do not run on this one of them."""
    here = jax.devices()[0]
    capability = getattr(here, "compute_capability", None)
    if device == "cuda" and capability not in (None, "9.0"):
        return f"kernels need a GPU of compute capability 9.0 (H100, H200), not {capability}"
    if device == "tpu" and here.device_kind.startswith(_EARLY):
        return f"kernels need a TPU v5e or a later one, not {here.device_kind}"
    return None


def unmet_sizes(device: Device, rows: int, dtype: Any, features: int, width: int, block: int) -> str | None:
    """Why a device's kernels do not take so many rows of x, in such a dtype, and a w of such sizes in such blocks; None
    if they do."""
    name, itemsize = jnp.dtype(dtype).name, jnp.dtype(dtype).itemsize
    if policy.is_symbol(rows) or rows == 0:
        return f"kernels need a number of tokens that is known and not 0, not {rows}"
    if device == "tpu":
        if name not in ("bfloat16", "float32"):
            return f"kernels need x and w in bfloat16 or float32, not {name}"
        if features % LANES:
            return f"kernels need D to be a multiple of {LANES}, not {features}"
        if features * itemsize > BYTES_OF_ROW:
            return f"kernels need D to be at most {BYTES_OF_ROW // itemsize:,}, not {features:,}"
        return None
    if itemsize != 2:
        return f"kernels need x and w in 16 bits, not {name}"
    for what, size in {"D": features, "V": width, "block": block}.items():
        if size % ALIGNED:
            return f"kernels need {what} to be a multiple of {ALIGNED}, not {size}"
    if rows % ALIGNED_TOKENS:
        return f"kernels need N and tokens at a time to be multiples of {ALIGNED_TOKENS}, not {rows}"
    return None


def devices_with(walk: Walk, arrays: Arrays) -> tuple[Device, ...]:
    """The devices whose kernels take x and w of such sizes, where a walk is to be theirs."""
    if walk.kernels != "mosaic":
        return ()
    x = arrays["x"]
    sizes = x.shape[0], x.dtype, x.shape[1], walk.width, walk.block
    return tuple(device for device in get_args(Device) if unmet_sizes(device, *sizes) is None)


def give_dlogits(kernels: Kernels) -> bool:
    """Whether the dlogits of a block are theirs, too: on a GPU."""
    return kernels == "mosaic" and jax.default_backend() != "tpu"


def bytes_of_parts(problem: Problem, tokens: int) -> int:
    """What they leave of so many tokens: of the tiles of all columns; on a TPU of each lane, beside a row of lanes for
    each label."""
    if jax.default_backend() == "tpu":
        return tokens * LANES * (NUMBERS + 1) * 4
    return tokens * -(-problem.width // TILE) * NUMBERS * 4
