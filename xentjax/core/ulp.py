"""Errors in units in the last place, and the number of them that the library allows.

The accuracy contract: a result of true size t is within K ULP of the truth, K = 4 + |ln t| below 1 and 4 above (an
argument that is rounded once before exp costs |ln t|/2), plus tiny, the smallest normal number, for each of the V
entries that it sums over: a term below it may be flushed to zero (of an entropy 200·tiny: p log p is that much larger).
Results in 16 bits are computed in float32 and rounded once: 0.51 ULP.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

#: ULP allowed where a 16-bit result is a float32 result, rounded.
ROUNDED_ONCE = 0.51

#: What a matrix product of 16-bit operands may be off, in ULP of the size of its terms: each has been rounded, by half
#: an ULP, and their size is known from some patterns of signs to about half.
OF_PRODUCTS = 2.0


def spacing(size: Any, dtype: Any) -> np.ndarray:
    """The distance between neighbouring numbers of ``dtype`` at ``size``, as float64: one ULP.

    Below the smallest normal number it is that of the subnormal numbers. (At the largest number it does not overflow.)
    """
    info = jnp.finfo(dtype)
    size = np.abs(np.asarray(size, np.float64))
    capped = np.minimum(np.where(np.isnan(size), 0, size), float(info.max))
    _, exponent = np.frexp(np.maximum(capped, float(info.tiny)))
    return np.ldexp(1.0, exponent - 1 - info.nmant)


def allowed(size: Any) -> np.ndarray:
    """K of the accuracy contract for results of true size ``size``."""
    size = np.maximum(np.abs(np.asarray(size, np.float64)), 5e-324)
    return 4 + np.maximum(0, -np.log(np.where(np.isfinite(size), size, 1)))


def tolerance(truth: Any, size: Any, flushed: float, dtype: Any, products: bool = False) -> np.ndarray:
    """The error allowed for each element, absolute.

    Args:
      truth: the true results.
      size: their sizes: the truth's own, or that of the terms whose difference it is.
      flushed: how many of the smallest normal numbers may be missing: ``underflow`` for each entry of a sum.
      dtype: what the results are given in.
      products: whether they are matrix products of operands of that dtype.
    """
    narrow = jnp.finfo(dtype).bits == 16
    compute = jnp.float32 if narrow else dtype
    wide = allowed(truth) * spacing(size, compute) + flushed * float(jnp.finfo(compute).tiny)
    if not narrow:
        return wide
    return wide + ROUNDED_ONCE * spacing(truth, dtype) + (OF_PRODUCTS * spacing(size, dtype) if products else 0)


def deviation(got: Any, high: Any, low: Any, dtype: Any) -> np.ndarray:
    """|got − truth| with the truth as a sum of two float64 arrays; 0 where both are the same infinity or both NaN.

    Where the truth lies beyond the range of ``dtype``, any number of its sign from half of the largest one is right.
    """
    got, high, low = (np.asarray(a, np.float64) for a in (got, high, low))
    with np.errstate(all="ignore"):
        largest = float(jnp.finfo(dtype).max)
        half_beyond = largest + spacing(largest, dtype) / 2
        beyond = np.isfinite(high) & (np.abs(high) >= half_beyond)
        high = np.where(beyond, np.copysign(np.inf, high), high)
        error = np.abs((got - high) - np.where(np.isfinite(high), low, 0))
        same = (got == high) | (np.isnan(got) & np.isnan(high))
        same &= ~np.isfinite(got)
        same |= beyond & (np.sign(got) == np.sign(high)) & (np.abs(got) >= largest / 2)
        return np.where(same, 0, np.where(np.isnan(error), np.inf, error))
