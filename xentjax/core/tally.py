"""The worst element of many comparisons: one row of a table."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from xentjax.core import ulp


class Tally:
    """The worst element so far, by the ratio of its error to the error allowed.

    Attributes:
      ratio: its error over the error allowed; at most 1 where the row passes.
      ulp: its error, in units in the last place of its size (of the result itself in 16 bits).
      allowed: the error allowed, in the same units.
      worst: where it is, what it is and what it should be.
      compared: how many elements were compared.
      skipped: how many have no finite truth, and were not the same infinity.
      problems: what is wrong beside numbers.
    """

    def __init__(self) -> None:
        self.ratio, self.ulp, self.allowed, self.worst = -1.0, 0.0, math.nan, ""
        self.compared = self.skipped = 0
        self.problems: list[str] = []

    def add(
        self,
        place: str,
        got: Any,
        truth: Any,
        size: Any,
        flushed: float,
        dtype: Any,
        steps: int = 1,
        *,
        products: bool = False,
    ) -> None:
        """Compare an array elementwise.

        Args:
          place: what the array is, for people.
          got: the array.
          truth: a pair of float64 arrays whose sum is the truth.
          size: the size of the terms whose difference each element is.
          flushed: how many of the smallest normal numbers underflow may cost.
          dtype: what ``got`` was computed in.
          steps: how many times the contract's tolerance is allowed.
          products: whether it is a matrix product of 16-bit operands where the dtype has 16 bits.
        """
        high, low = truth
        got = np.asarray(got, np.float64)
        if got.shape != high.shape:
            self.problems.append(f"{place}: shape {got.shape}, expected {high.shape}")
            return
        error = ulp.deviation(got, high, low, dtype)
        size = np.maximum(np.abs(high), np.where(np.isfinite(size), size, 0))
        limit = steps * ulp.tolerance(high, size, flushed, dtype, products)
        unit = ulp.spacing(high if jnp.finfo(dtype).bits == 16 else size, dtype)
        known = np.isfinite(high) | ((error == 0) & ~np.isnan(high))
        self.compared += int(np.sum(known))
        self.skipped += int(np.sum(~known))
        ratio = np.where(known, error / limit, 0)
        if ratio.size and ratio.max() > self.ratio:
            i = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
            self.ratio = float(ratio[i])
            with np.errstate(over="ignore"):
                self.ulp, self.allowed = float(error[i] / unit[i]), float(limit[i] / unit[i])
            index = ", ".join(map(str, map(int, i)))
            self.worst = f"{place}[{index}]: got {got[i]}, expected {high[i]}"

    @property
    def passed(self) -> bool:
        return self.ratio <= 1 and self.compared > 0 and not self.problems

    @property
    def report(self) -> str:
        """Where the worst element is, or what is wrong altogether."""
        return "; ".join(dict.fromkeys(self.problems)) or (self.worst if self.compared else "nothing could be compared")
