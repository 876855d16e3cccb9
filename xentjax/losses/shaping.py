"""What losses do to logits before the loss: the soft cap and the temperature."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from xentjax.activations import soft_cap
from xentjax.core import policy


def shaped_logits(bound: dict[str, Any], keep: Any, dtype: Any, axis: Any = ()) -> Any:
    """c·tanh(z/c)/τ in ``dtype``; the logits as they are where there is neither cap nor temperature.

    Entries and examples that are left out become 0 first, so that what stands there reaches no derivative.
    """
    logits, cap, temperature = bound["logits"], bound["softcap"], bound["temperature"]
    if logits.dtype != dtype and not (policy.is_float(logits) and policy.up(logits).dtype == dtype):
        logits = logits.astype(dtype)
    has_temperature = policy.is_given(temperature, 1.0)
    if cap is None and not has_temperature:
        return logits
    logits = logits.astype(dtype)
    if bound.get("where") is not None:
        logits = jnp.where(bound["where"], logits, 0)
    if keep is not None:
        logits = jnp.where(policy.expand(keep, axis), logits, 0)
    if cap is not None:
        logits = soft_cap(logits, jnp.broadcast_to(jnp.asarray(cap, dtype), logits.shape))
    return logits / jnp.asarray(temperature, dtype) if has_temperature else logits
