"""Elementwise operations on arbitrary-precision numbers with the rules of IEEE arithmetic for 0, infinity and NaN.

mpmath raises where a float would become infinite or NaN (1/0, log 0) and leaves the reals (log of a negative number);
here every operation does what the same JAX primitive does.  Zeros have no sign.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

#: exp of anything beyond is infinite (or 0) in every float format; mpmath would try to write the number down.
_LARGEST_EXPONENT = 1e8


class _Own(threading.local):
    """Each thread's numbers, as how many digits they have is a setting of all of them."""

    @functools.cached_property
    def mp(self) -> Any:
        try:
            import mpmath  # an optional dependency
        except ImportError as error:
            raise ImportError("arbitrary precision needs mpmath: pip install 'xentjax[cli]'") from error
        return mpmath.MPContext()


_OWN = _Own()


def _mp() -> Any:
    return _OWN.mp


def precision(digits: int) -> Any:
    """While it is open this thread computes with so many digits."""
    return _mp().workdps(digits)


def element(number: Any) -> Any:
    """A Python number as an exact ``mpf``."""
    return _mp().mpf(number)


def elements(function: Callable[..., Any], *arrays: Any) -> np.ndarray:
    """The function of each element, as an object array; the arrays broadcast."""
    with np.errstate(all="ignore"):
        result = np.frompyfunc(function, len(arrays), 1)(*arrays)
    if isinstance(result, np.ndarray):
        return result
    array = np.empty((), object)
    array[()] = result
    return array


def exact(leaf: Any) -> Any:
    """Floats as exact ``mpf`` numbers; integers, booleans and what is exact already as they are."""
    array = np.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return elements(lambda x: element(float(x)), array.astype(np.float64).astype(object))
    return array


def _guarded(function: Callable[[Any], Any], low: float = -math.inf, at_low: float = math.nan) -> Callable[[Any], Any]:
    """A function of one real number that is NaN below ``low`` (and for NaN) and ``at_low`` there."""

    def guarded(x: Any) -> Any:
        if x != x or x < low:
            return element(math.nan)
        return element(at_low) if x == low and not math.isnan(at_low) else function(x)

    return guarded


def _exp(x: Any) -> Any:
    if x > _LARGEST_EXPONENT:
        return element(math.inf)
    return element(0) if x < -_LARGEST_EXPONENT else _mp().exp(x)


def _expm1(x: Any) -> Any:
    return _exp(x) - 1 if abs(x) > 1 else _mp().expm1(x)


def _log1p(x: Any) -> Any:
    return x if x == math.inf else _mp().log1p(x)


def _logistic(x: Any) -> Any:
    return 1 / (1 + _exp(-x)) if x >= 0 else _exp(x) / (1 + _exp(x))


def _tanh(x: Any) -> Any:
    return element(math.copysign(1, x)) if abs(x) > _LARGEST_EXPONENT else _mp().tanh(x)


def _divide(a: Any, b: Any) -> Any:
    if b != 0:
        return a / b
    return element(math.nan) if a == 0 or a != a else element(math.copysign(math.inf, a))


def _power(a: Any, b: Any) -> Any:
    if b == 0 or a == 1:
        return element(1)
    if a != a or b != b or (a < 0 and b != int(b)):
        return element(math.nan)
    if a == 0:
        return element(0) if b > 0 else element(math.inf)
    if abs(b) == math.inf:
        return element(math.inf) if (abs(a) > 1) == (b > 0) else element(0)
    if a == math.inf:
        return element(math.inf) if b > 0 else element(0)
    return a**b


def _larger(a: Any, b: Any) -> Any:
    return a if a != a or (b == b and a >= b) else b


def _smaller(a: Any, b: Any) -> Any:
    return a if a != a or (b == b and a <= b) else b


def _sign(x: Any) -> Any:
    return x if x != x else element((x > 0) - (x < 0))


def _unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda params, a: elements(function, a)


def _binary(function: Callable[[Any, Any], Any], native: Any) -> Callable[..., Any]:
    def apply(params: Any, a: Any, b: Any) -> Any:
        return elements(function, a, b) if a.dtype == object else native(a, b)

    return apply


def _arithmetic(ufunc: Any) -> Callable[..., Any]:
    def apply(params: Any, *operands: Any) -> Any:
        return elements(ufunc, *operands) if operands[0].dtype == object else ufunc(*operands)

    return apply


def _comparison(ufunc: Any) -> Callable[..., Any]:
    return lambda params, a, b: np.asarray(ufunc(a, b), bool)


def _clamp(params: Any, low: Any, x: Any, high: Any) -> Any:
    if x.dtype != object:
        return np.clip(x, low, high)
    return elements(_smaller, elements(_larger, low, x), high)


#: What each primitive does to its operands, ``f(params, *operands)``.
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": _arithmetic(lambda a, b: a + b),
    "add_any": _arithmetic(lambda a, b: a + b),
    "sub": _arithmetic(lambda a, b: a - b),
    "mul": _arithmetic(lambda a, b: a * b),
    "neg": _arithmetic(lambda a: -a),
    "square": _arithmetic(lambda a: a * a),
    "one_minus_square": _arithmetic(lambda a: 1 - a * a),
    "abs": _arithmetic(abs),
    "div": _binary(_divide, lambda a, b: np.trunc(a / b).astype(a.dtype)),
    "max": _binary(_larger, np.maximum),
    "min": _binary(_smaller, np.minimum),
    "pow": _arithmetic(lambda a, b: _power(a, element(b))),
    "integer_pow": lambda params, a: elements(lambda x: _power(x, element(params["y"])), a),
    "exp": _unary(_guarded(_exp)),
    "exp2": _unary(_guarded(lambda x: _power(element(2), x))),
    "expm1": _unary(_guarded(_expm1)),
    "log": _unary(_guarded(lambda x: _mp().log(x), 0, -math.inf)),
    "log1p": _unary(_guarded(_log1p, -1, -math.inf)),
    "logistic": _unary(_guarded(_logistic)),
    "tanh": _unary(_guarded(_tanh)),
    "sqrt": _unary(_guarded(lambda x: _mp().sqrt(x), 0)),
    "rsqrt": _unary(_guarded(lambda x: 1 / _mp().sqrt(x), 0, math.inf)),
    "sign": _arithmetic(_sign),
    "clamp": _clamp,
    "eq": _comparison(np.equal),
    "ne": _comparison(np.not_equal),
    "lt": _comparison(np.less),
    "le": _comparison(np.less_equal),
    "gt": _comparison(np.greater),
    "ge": _comparison(np.greater_equal),
    "and": lambda params, a, b: np.bitwise_and(a, b),
    "or": lambda params, a, b: np.bitwise_or(a, b),
    "xor": lambda params, a, b: np.bitwise_xor(a, b),
    "not": lambda params, a: np.bitwise_not(a),
    "is_finite": lambda params, a: elements(lambda x: abs(x) < math.inf, a).astype(bool),
}
