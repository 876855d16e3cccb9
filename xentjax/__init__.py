"""Cross-entropy for JAX: exact, with every derivative derived by hand and proved."""

from xentjax.core.op import ops
from xentjax.measures.entropy import binary_entropy_from_logits, entropy

__version__ = "0.1.0"

__all__ = ["binary_entropy_from_logits", "entropy", "ops"]
