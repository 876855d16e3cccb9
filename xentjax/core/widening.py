"""bfloat16 as float32 in a linear rule, so that its transpose, which rounds gradients to bfloat16, costs little.

The transpose of an ordinary conversion is an ordinary conversion, and that to bfloat16 has a select on XLA:CPU, behind
which loops over a few classes are not vectorized: they take five times as long.  So the two conversions are a
pair of linear primitives, each the other's transpose, and on a CPU the one to bfloat16 rounds the bits as integers.
On other devices both are the ordinary ones.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from xentjax.core import policy

if TYPE_CHECKING:
    from jax.extend.core import Primitive


def widened(x: Any) -> Any:
    """The numbers in their dtype of computation, as a linear function."""
    return _conversions()[0].bind(x) if x.dtype == jnp.bfloat16 else policy.up(x)


def narrowed(x: Any, dtype: Any) -> Any:
    """The numbers rounded to a dtype, as a linear function."""
    return _conversions()[1].bind(x) if (x.dtype, dtype) == (jnp.float32, jnp.bfloat16) else x.astype(dtype)


def rounded_to_bfloat16(x: Any) -> Any:
    """float32 to the nearest bfloat16, ties to even, ±inf beyond its range, NaN for NaN, by integer arithmetic on the
    bits, without a select."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign, size = bits & np.uint32(0x80000000), bits & np.uint32(0x7FFFFFFF)
    is_odd = (bits >> np.uint32(16)) & np.uint32(1)
    # Past infinity the difference wraps: its highest bit moves to that of the fraction, which no rounding loses.
    size |= ((np.uint32(0x7F800000) - size) >> np.uint32(31)) << np.uint32(22)
    nearest = jnp.minimum(size + np.uint32(0x7FFF) + is_odd, np.uint32(0x7FFFFFFF))
    return jax.lax.bitcast_convert_type(((nearest | sign) >> np.uint32(16)).astype(jnp.uint16), jnp.bfloat16)


@cache
def _conversions() -> tuple[Primitive, Primitive]:
    """To float32 and to bfloat16; made when first used, as jax.extend takes long to import."""
    widen = _linear_primitive("widen_bfloat16", lambda x: x.astype(jnp.float32), jnp.float32)
    narrow = _linear_primitive("narrow_to_bfloat16", lambda x: x.astype(jnp.bfloat16), jnp.bfloat16)
    mlir.register_lowering(narrow, mlir.lower_fun(rounded_to_bfloat16, multiple_results=False), platform="cpu")
    _transposed_by(widen, narrow)
    _transposed_by(narrow, widen)
    return widen, narrow


def _linear_primitive(name: str, convert: Any, dtype: Any) -> Primitive:
    from jax.extend.core import Primitive

    primitive = Primitive(name)
    primitive.def_impl(jax.jit(convert))
    primitive.def_abstract_eval(lambda x: x.update(dtype=jnp.dtype(dtype), weak_type=False))
    batching.defvectorized(primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(convert, multiple_results=False))
    return primitive


def _transposed_by(primitive: Primitive, transpose: Primitive) -> None:
    def rule(cotangent: Any, x: Any) -> list[Any]:
        return [ad.Zero(x.aval) if isinstance(cotangent, ad.Zero) else transpose.bind(cotangent)]

    ad.deflinear2(primitive, rule)
