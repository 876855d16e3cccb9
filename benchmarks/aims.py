"""What measurements are meant to come to, and what stands in the way: of regressions, how many times faster than the
best peer each problem is solved; of linear cross-entropy, time over another's, and memory."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Aim:
    """``obstacle`` is what the report says where the aim is missed: why, and what was tried."""

    times: float
    obstacle: str = "not looked into, as it was reached"


AIMS = {
    "flights": Aim(2.5),
    "synthetic": Aim(1.0),
    "ill-conditioned": Aim(1.0),
    "magic": Aim(
        2.8,
        "its few columns make every pass over the rows one of memory and exponentials, of which there are six: for the "
        "scaling, the start, two steps, and the last one; part of the time goes by outside of the program, in "
        "checks. Tried: the optimum of every 8th row to start from (fewer steps, kept), of every 4th (no better), "
        "a Hessian in float32 (no faster below 32 columns), one pass for the scaling in the place of two (kept)",
    ),
    "spambase": Aim(
        2.4,
        "nine Hessians of 58 columns are nearly all of the time, and peers make as many. Tried: their products in "
        "float32 (kept), the last step with the Hessian before it (one less, kept), the optimum of every 4th or 8th "
        "row to start from (fewer steps at best, for the same time)",
    ),
    "breast cancer": Aim(
        5.0,
        "a call checks its arguments, pads them to the size of a program that fits of like size share, and places its "
        "result, which takes longer than the fit itself; inside of jax.jit (its own line on the page of all methods) "
        "none of that happens. Tried: NumPy for all that is done outside of the program (kept), "
        "arrays handed to the program as they are (kept), no padding (somewhat faster, but compiled for each n)",
    ),
    "digits": Aim(
        1.0,
        "610 parameters are too many for Hessians, and each of ten blocks of it says nothing of the other classes. "
        "Tried: Newton-CG, with tighter and looser systems (slower), L-BFGS with the diagonal of the Hessian, or with "
        "its blocks, as metric (slower), or with blocks that are taken again after 8 to 64 steps (32 kept), products "
        "in float32 (hardly faster, as ten classes are few), logits with the classes first (no faster)",
    ),
    "satimage": Aim(1.9),
    "L1 spambase": Aim(1.0),
    "1000 tables": Aim(10.0),
    "1000 bootstraps": Aim(
        25.0,
        "what is left of each fit are a few passes over the rows. Tried: one product for the Hessians of all fits "
        "(kept), the optimum for the mean of the weights to start from (kept), as many fits at once as a cache holds "
        "(kept), bounds of rounding errors in the place of passes over the rows (kept)",
    ),
    "100 penalties in 5 folds": Aim(10.0),
}


@dataclasses.dataclass(frozen=True)
class LinearAim:
    """What ``method`` takes is at most ``at_most`` times what ``against`` does, or MiB of temporary memory.

    ``against`` is a method, "copies" (the time in which the bytes that must move are copied) or "MiB". ``sizes``,
    ``dtype`` and ``mode`` say where; None: wherever it is measured. ``obstacle`` is as for :class:`Aim`.
    """

    against: str
    at_most: float
    sizes: tuple[int, ...] | None = None
    dtype: str | None = None
    mode: str | None = None
    method: str = "xentjax"
    obstacle: str = Aim.obstacle


_CHUNKS = (
    "three products of x and w are nearly all of the time, for every method. With a gradient in the forward pass that "
    "of w is a sum over two chunks of tokens, which is read and written once more. Tried: one chunk of all tokens "
    "(faster by the spread of the rounds at most, and all logits stored), blocks of more columns (no faster), smaller "
    "chunks (slower)"
)
_ONE_PRODUCT = (
    "one product of x and w is most of the time, for every method, and spreads from round to round by more than what "
    "is missing. Tried: blocks of more and of fewer columns (no faster)"
)
_FEW_COLUMNS = (
    "with so few columns the products are slow for every method. In bfloat16 ours keeps the logits in float32, and "
    "rounds the gradient by x after its product, not in it, where a CPU may add up in 16 bits. Tried: the product with "
    "x transposed the other way around (kept), x stored transposed (faster with jaxlib 0.10, slower with 0.12), logits "
    "in blocks (no faster)"
)

LINEAR_AIMS = (
    # On a processor.
    LinearAim("optax", 0.95, (2048, 512, 32768), "float32", "value_and_grad", obstacle=_CHUNKS),
    LinearAim("optax", 0.7, (2048, 512, 32768), "bfloat16", "value_and_grad"),
    LinearAim("optax", 0.85, (2048, 512, 32768), mode="value", obstacle=_ONE_PRODUCT),
    LinearAim("optax", 1.0, (1024, 512, 50257), mode="value_and_grad", obstacle=_CHUNKS),
    LinearAim("optax", 1.0, (8192, 64, 10), obstacle=_FEW_COLUMNS),
    LinearAim("optax", 1.0, (4096, 256, 1000), obstacle=_FEW_COLUMNS),
    # Everywhere.
    LinearAim("tokamax chunked_xla", 1.0),
    LinearAim("jax-cce", 1.0),
    # On an H200.
    LinearAim("products alone", 1 / 0.95, (4096, 4096, 128256), mode="value_and_grad"),
    LinearAim("products alone", 1 / 0.95, (16384, 4096, 128256), mode="value_and_grad"),
    LinearAim("products alone", 1 / 0.9, (8192, 2304, 256000), mode="value_and_grad"),
    LinearAim("MiB", 1.1e9 / 2**20, (4096, 4096, 128256)),
    LinearAim("MiB", 256e6 / 2**20, (4096, 4096, 128256), method="xentjax recompute"),
    LinearAim("copies", 1 / 0.85, (8192, 131072)),
)
