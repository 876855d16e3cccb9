"""The accuracy contract as numbers: how far a result may lie from the truth, both given exactly.

The library counts errors with a ruler of its own, ``xentjax.core.ulp``, in float64 and on whole arrays. This one owes
it nothing: it is written down again, from the contract, in arbitrary precision and for one number; a test compares the
two.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import mpmath as mp
import numpy as np

mp.mp.prec = 300


def ulp(size: Any, dtype: Any) -> mp.mpf:
    """The distance of two neighbouring numbers of the dtype at a given size."""
    info = jnp.finfo(dtype)
    smallest = mp.mpf(2) ** (int(info.minexp) - int(info.nmant))
    size = abs(mp.mpf(size))
    if size == 0:
        return smallest
    return max(mp.mpf(2) ** (int(mp.floor(mp.log(size, 2))) - int(info.nmant)), smallest)


def allowed_ulp(size: Any, dtype: Any) -> mp.mpf:
    """K: 0.51 in 16 bits; otherwise 4, and |ln t| more for a true size t below 1 (an argument rounded before exp)."""
    if jnp.finfo(dtype).bits == 16:
        return mp.mpf("0.51")
    size = abs(mp.mpf(size))
    return mp.mpf(4) + (abs(mp.log(size)) if 0 < size < 1 else 0)


def why_wrong(got: Any, true: Any, dtype: Any, *, size: Any = None, flushed: Any = 0) -> str | None:
    """None where ``got`` keeps the contract, otherwise what is wrong with it.

    ``size`` is the size of the terms that the truth is the difference of (by default its own). ``flushed`` is how many
    of the smallest normal numbers may be missing: results below it may be zero, terms below it lost in the sum.
    """
    got, true = float(got), mp.mpf(true)
    if mp.isnan(true) or np.isnan(got):
        return None if mp.isnan(true) and np.isnan(got) else f"got {got}, true {mp.nstr(true, 8)}"
    info = jnp.finfo(dtype)
    if mp.isinf(true) or np.isinf(got):
        beyond = abs(true) >= mp.mpf(float(info.max)) and np.isinf(got) and mp.sign(true) == np.sign(got)
        return None if beyond else f"got {got}, true {mp.nstr(true, 8)}"
    size = abs(true) if size is None else abs(mp.mpf(size))
    unit, error = ulp(size, dtype), abs(mp.mpf(got) - true)
    if error <= allowed_ulp(size, dtype) * unit + mp.mpf(flushed) * mp.mpf(float(info.tiny)):
        return None
    if got == 0 and abs(true) < mp.mpf(float(info.tiny)):
        return None
    return f"got {got!r}, true {mp.nstr(true, 12)}: {mp.nstr(error / unit, 4)} ULP"
