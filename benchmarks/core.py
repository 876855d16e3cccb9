"""The suite over the records: each one's value and gradient, in float32 and bfloat16, from 2 classes to 32,000."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import in_torch, peers
from benchmarks.harness import Implementation, Task, jax_implementation
from xentjax.core.domains import Labels, Logits
from xentjax.core.op import Record, ops

CLASSES = (2, 10, 128, 1024, 32_000)
QUICK_CLASSES = (10, 1024)
DTYPES = ("float32", "bfloat16")
FEWEST_ROWS = 64

#: The sizes of letters other than the batch's B and the classes' K.
FIXED = {"J": 32, "D": 64}

#: Numbers drawn at most; a larger batch repeats them (never zeros: a processor takes less power for those).
DRAWN = 2**23


def elements_for(platform: str, quick: bool) -> int:
    """The size of the largest argument: enough to fill the memory bandwidth of the device."""
    full = 4_000_000 if platform == "cpu" else 256_000_000
    return full // 8 if quick else full


def tasks(elements: int, only: str | None = None, quick: bool = False) -> Iterator[Task]:
    """Every task of the suite, record after record; ``only`` is a record's name or a regular expression of it."""
    # A function that is all of a matrix product has a suite of its own.
    known = [r for r in ops() if r.public and not r.is_whole]
    records = [r for r in known if (only is None or re.fullmatch(only, r.name))]
    if not records:
        names = ", ".join(r.name for r in known)
        raise SystemExit(f"--only {only!r} matches no public record; there are: {names}")
    for record in records:
        for variant in peers.variants(record.name):
            for sizes in shapes(record, elements, QUICK_CLASSES if quick else CLASSES):
                for batch in variant.batches:
                    arrays = draw(record, variant, sizes, batch)
                    for dtype in DTYPES:
                        for mode in ("value", "value_and_grad") if moving(record, variant, arrays) else ("value",):
                            yield task(record, variant, sizes, batch, arrays, dtype, mode)


def shapes(record: Record, elements: int, classes: tuple[int, ...]) -> Iterator[dict[str, int]]:
    """Sizes by letter: a batch B such that the record's largest argument has about ``elements`` elements."""
    letters = {d for kind in record.domain.kinds.values() for d in kind.shape.split() if d.isalpha()}
    widths: list[dict[str, int]]
    if "K" not in letters:
        widths = [{}]
    elif "J" in letters or "D" in letters:
        widths = [{"K": 32}]
    else:
        widths = [{"K": k} for k in classes]
    for width in widths:
        sizes = {n: FIXED.get(n, 1) for n in sorted(letters)} | width
        rows = [math.prod(kind.dims(sizes | {"B": 1})) for kind in record.domain.kinds.values() if "B" in kind.shape]
        if "B" in letters:
            sizes["B"] = max(FEWEST_ROWS, elements // max(rows))
        else:
            side = round(elements ** (1 / max(len(letters), 1)))
            sizes = dict.fromkeys(sorted(letters), side)
        yield sizes


def draw(record: Record, variant: peers.Variant, sizes: dict[str, int], batch: str) -> dict[str, Any]:
    """The arguments by name, in float64. In a dominated batch every other row's class leads by 25."""
    kinds = record.domain.kinds
    width = max((math.prod(kind.dims(sizes | {"B": 1})) for kind in kinds.values() if "B" in kind.shape), default=1)
    drawn = min(sizes.get("B", 1), max(FEWEST_ROWS, DRAWN // width))
    options = {**record.domain.options[0], **variant.options}
    case = record.domain.case(np.random.default_rng(0), "unit", options, **(sizes | {"B": drawn}))
    arrays: dict[str, Any] = dict(case.arrays)
    if batch == "dominated":
        for name, kind in kinds.items():
            if isinstance(kind, Logits):
                arrays[name] = dominate(arrays[name], arrays.get("labels"))
    if drawn < sizes.get("B", 1):
        times = math.ceil(sizes["B"] / drawn)
        batched = {n for n, kind in kinds.items() if kind.shape.startswith("B")}
        repeat = lambda a: np.concatenate([a] * times)[: sizes["B"]] if len(a) == drawn else a
        arrays = {n: repeat(a) if n in batched else a for n, a in arrays.items()}
    return arrays | case.options


def dominate(logits: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """25 added to the right class of every other row (the likeliest class, or the first, where none is given)."""
    logits = logits.copy()
    if logits.ndim == 1:
        right = np.ones_like(logits) if labels is None else np.where(labels > 0.5, 1.0, -1.0)
        logits[::2] += 25 * right[::2]
        return logits
    if labels is None:
        classes = np.zeros(len(logits), np.int64)
    else:
        classes = labels.astype(np.int64) if labels.ndim == 1 else labels.argmax(-1)
    rows = np.arange(len(logits))[::2]
    logits[rows, classes[::2]] += 25
    return logits


def moving(record: Record, variant: peers.Variant, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The arguments that the gradient is taken with respect to: neither labels nor options."""
    kinds = {n: kind for n, kind in record.domain.kinds.items() if not isinstance(kind, Labels)}
    return tuple(n for n in (variant.wrt or record.wrt) if n in arguments and n in kinds)


def task(
    record: Record,
    variant: peers.Variant,
    sizes: dict[str, int],
    batch: str,
    arguments: dict[str, Any],
    dtype: str,
    mode: str,
) -> Task:
    arrays = {n: cast(v, dtype) for n, v in arguments.items() if is_array(v)}
    options = {n: v for n, v in arguments.items() if not is_array(v)}
    wrt = moving(record, variant, arguments) if mode == "value_and_grad" else ()
    names = tuple(arrays)
    reduced = "reduction" in record.signature.parameters
    ours = lambda *a: record.function(**dict(zip(names, a, strict=True)), **options, **mean_of(reduced))
    plain = lambda *a: record.oracle(**dict(zip(names, a, strict=True)), **options, **mean_of(reduced))
    places = tuple(names.index(n) for n in wrt)
    implementations = [differentiated("xentjax", ours, places)]
    for name, peer in variant.peers.items():
        implementations.append(differentiated(name, averaged(peer) if reduced else peer, places))
    implementations.append(differentiated("plain formula", plain, places))
    if variant.torch is not None:
        implementations.append(torch_implementation(variant.torch, places, reduced))
    written = sum(leaf.nbytes for n in wrt for leaf in jax.tree.leaves(arrays[n]))
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    labels: dict[str, Any] = {
        "suite": "core",
        "record": record.name,
        "variant": variant.name,
        "batch": batch,
        "mode": mode,
    }
    labels |= {"dtype": dtype, "wrt": wrt, "sizes": sizes}
    moved = lambda result: read + written + (0 if wrt else sum(x.nbytes for x in jax.tree.leaves(result)))
    return Task(labels, tuple(arrays.values()), tuple(implementations), moved)


def is_array(value: Any) -> bool:
    return any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(value))


def cast(value: Any, dtype: str) -> Any:
    """Float arrays rounded to the dtype; integers stay."""
    return jax.tree.map(lambda a: a.astype(jnp.dtype(dtype)) if a.dtype == np.float64 else a, value)


def mean_of(reduced: bool) -> dict[str, str]:
    return {"reduction": "mean"} if reduced else {}


def averaged(peer: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arrays: jnp.mean(peer(*arrays))


def differentiated(name: str, function: Callable[..., Any], places: tuple[int, ...]) -> Implementation:
    """The function itself, or its value and gradients: of its mean, or of its mean square where it is as large as its
    argument (the mean of a softmax is constant)."""
    if not places:
        return jax_implementation(name, function)

    def scalar(*arrays: Any) -> jax.Array:
        result = function(*arrays)
        vector = result.ndim > 1 and result.shape == getattr(arrays[0], "shape", None)
        return jnp.mean(result * result if vector else result)

    return jax_implementation(name, jax.value_and_grad(scalar, places))


def torch_implementation(function: Callable[..., Any], places: tuple[int, ...], reduced: bool) -> Implementation:
    """The same in torch, on as many threads: value, or value and backward pass."""
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()

    def run(*tensors: Any) -> Any:
        tensors = tuple(t.detach().requires_grad_(i in places) for i, t in enumerate(tensors))
        with torch.set_grad_enabled(bool(places)):
            result = function(*tensors)
            result = result.mean() if reduced or places else result
            return (result, *torch.autograd.grad(result, [tensors[i] for i in places])) if places else result

    place = in_torch.tensor_on_gpu if on_gpu else in_torch.tensor
    return Implementation("torch", lambda arguments: (run, None), place, in_torch.waiting(on_gpu))
