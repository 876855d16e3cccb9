"""The methods in torch: logits that are stored, compiled or not, and the fused losses that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import in_torch
from benchmarks.harness import Implementation, Program
from benchmarks.linear.methods import PRODUCTS
from benchmarks.linear.truth import Picked, Truth, errors

Loss = Callable[..., Any]

#: Kernels that run on a GPU alone, by the names of their modules, and what they are installed with.
PACKAGES = {"liger_kernel": "liger-kernel", "cut_cross_entropy": "cut-cross-entropy"}


def absent(on_gpu: bool) -> dict[str, str]:
    """Why a peer in torch takes no part."""
    if not importlib.util.find_spec("torch"):
        return {"torch": "pip install torch"}
    found = {} if hasattr(_functional(), "linear_cross_entropy") else {"torch chunked": "torch 2.13 or later has it"}
    for module, name in PACKAGES.items():
        if not on_gpu:
            found[name] = "its kernels run on a GPU"
        elif not importlib.util.find_spec(module):
            found[name] = f"pip install {name}"
    return found


def losses(on_gpu: bool, compiled: bool) -> dict[str, Loss]:
    """The mean loss of x [N, D], w [V, D], labels [N], by name; ``compiled``: the dense one by torch.compile."""
    import torch

    dense = {"torch.compile": torch.compile(_dense, dynamic=False)} if compiled else {"torch": _dense}
    found: dict[str, Loss] = {**dense}
    if hasattr(_functional(), "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["torch chunked"] = lambda x, w, labels: _functional().linear_cross_entropy(x, w, labels, options=options)
    if on_gpu and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["Liger"] = liger_fused_linear_cross_entropy
    if on_gpu and importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        exact = lambda x, w, labels: linear_cross_entropy(x, w, labels, filter_eps=None)
        found |= {"cut-cross-entropy, exact": exact, "cut-cross-entropy, filtered": linear_cross_entropy}
    return found


def implementations(mode: str, true: Truth, on_gpu: bool, compiled: bool = False) -> Iterator[Implementation]:
    """Every method of torch that is installed; none without torch. ``compiled``: as for the losses."""
    if not importlib.util.find_spec("torch"):
        return
    place = in_torch.tensor_on_gpu if on_gpu else in_torch.tensor
    check = lambda result: errors(_pick(result, true), true)
    for name, loss in losses(on_gpu, compiled).items():
        run = _with_gradients(loss) if mode == "value_and_grad" else _alone(loss)
        yield Implementation(
            name, _prepared(run, on_gpu), place, in_torch.waiting(on_gpu), _transposed, check, may_fail=True
        )


def products(mode: str, on_gpu: bool) -> Implementation:
    """The products alone, as :func:`benchmarks.linear.methods.products` has them all at once."""

    def run(x: Any, w: Any, labels: Any) -> Any:
        logits = x @ w
        return logits if mode == "value" else (logits @ w.T, x.T @ logits)

    place = in_torch.tensor_on_gpu if on_gpu else in_torch.tensor
    return Implementation(PRODUCTS, _prepared(run, on_gpu), place, in_torch.waiting(on_gpu))


def _transposed(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    x, w, labels = arguments
    return x, w.T.contiguous(), labels


def _functional() -> Any:
    import torch

    return torch.nn.functional


def _dense(x: Any, w: Any, labels: Any) -> Any:
    """Logits that are stored, and their loss in float32, as training loops have it."""
    functional = _functional()
    return functional.cross_entropy(functional.linear(x, w).float(), labels)


def _alone(loss: Loss) -> Loss:
    import torch

    def run(*tensors: Any) -> Any:
        with torch.no_grad():
            return loss(*tensors)

    return run


def _with_gradients(loss: Loss) -> Loss:
    import torch

    def run(x: Any, w: Any, labels: Any) -> Any:
        x, w = (tensor.detach().requires_grad_() for tensor in (x, w))
        value = loss(x, w, labels)
        return value, torch.autograd.grad(value, (x, w))

    return run


def _prepared(run: Loss, on_gpu: bool) -> Callable[[Sequence[Any]], tuple[Loss, Program | None]]:
    """What is timed after a first call, which compiles it and shows what memory it takes beside its result."""

    def compile_(arguments: Sequence[Any]) -> tuple[Loss, Program | None]:
        if not on_gpu:
            return run, None
        import torch

        run(*arguments)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = run(*arguments)
        torch.cuda.synchronize()
        kept = torch.cuda.memory_allocated() - before
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return run, Program(max(peak - kept, 0))

    return compile_


def _pick(result: Any, true: Truth) -> Picked:
    """The parts of a result that are compared; w's gradient is [V, D] here."""
    import torch

    host = lambda part: part.detach().float().cpu().numpy()
    if not isinstance(result, tuple):
        return host(result), None, None
    loss, (dx, dw) = result
    at = lambda places: torch.from_numpy(np.asarray(places)).to(dx.device)
    return host(loss), host(dx[at(true.tokens)]), host(dw[at(true.classes)]).T
