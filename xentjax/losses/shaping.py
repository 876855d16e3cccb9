"""What losses do before the loss: numbers are checked, logits are capped and divided by the temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from xentjax.activations import soft_cap
from xentjax.core import policy

#: What each hyperparameter may be, in words and as a test.
_RANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "label_smoothing": ("from 0 to 1", lambda x: (x >= 0) & (x <= 1)),
    "temperature": ("positive", lambda x: x > 0),
    "softcap": ("positive and finite", lambda x: (x > 0) & (x < np.inf)),
    "z_loss": ("a number", lambda x: x == x),
}


def hyperparameter(function: str, name: str, bound: dict[str, Any], dtype: Any) -> Any:
    """One number, in ``dtype``. ValueError for an array of numbers, and for a Python number that it may not be; what is
    only known as the program runs becomes NaN there."""
    value = bound[name]
    needed, is_right = _RANGES[name]
    if not isinstance(value, (int, float)):
        number = jnp.asarray(value, dtype)
        policy.require_shape(function, name, number.shape, (), "one number")
        return jnp.where(is_right(number), number, jnp.nan)
    if not is_right(value):
        raise ValueError(f"{function}: {name} must be {needed}, got {value}")
    with np.errstate(over="ignore"):
        rounded = np.asarray(value, dtype)
    if not is_right(rounded):
        raise ValueError(f"{function}: {name} must be {needed}, got {value}, which in {rounded.dtype} is {rounded}")
    return jnp.asarray(rounded)


def shaped_logits(function: str, bound: dict[str, Any], keep: Any, dtype: Any, axis: Any = ()) -> Any:
    """c·tanh(z/c)/τ in ``dtype``; the logits as they are where there is neither cap nor temperature.

    Entries that are left out become 0 first, and so do numbers of examples left out that are not finite: they would
    reach a derivative. (A finite one stays: the derivative by a weight of 0 is the loss.)
    """
    logits = bound["logits"]
    if logits.dtype != dtype and not (policy.is_float(logits) and policy.up(logits).dtype == dtype):
        logits = logits.astype(dtype)
    has_cap, has_temperature = bound["softcap"] is not None, policy.is_given(bound["temperature"], 1.0)
    if not has_cap and not has_temperature:
        return logits
    logits = logits.astype(dtype)
    if bound.get("where") is not None:
        logits = jnp.where(bound["where"], logits, 0)
    if keep is not None:
        logits = jnp.where(policy.expand(keep, axis) | jnp.isfinite(logits), logits, 0)
    if has_cap:
        logits = soft_cap(logits, jnp.broadcast_to(hyperparameter(function, "softcap", bound, dtype), logits.shape))
    return logits / hyperparameter(function, "temperature", bound, dtype) if has_temperature else logits
