"""Arguments of a benchmark in torch: the same numbers, on the device that JAX has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np


def tensor(value: np.ndarray) -> Any:
    """A tensor of the same numbers on the processor; class indices as torch wants them, in int64."""
    import torch

    if value.dtype == jnp.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value.astype(np.int64) if value.dtype == np.int32 else value)


def tensor_on_gpu(value: np.ndarray) -> Any:
    return tensor(value).cuda()


def waiting(on_gpu: bool) -> Callable[[Any], Any]:
    """What returns once a result is there."""
    import torch

    return (lambda _: torch.cuda.synchronize()) if on_gpu else (lambda result: result)
