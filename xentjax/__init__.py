"""Cross-entropy for JAX: exact, with every derivative derived by hand and proved."""

from xentjax.activations import logistic, normalized_tanh, softmax
from xentjax.core.op import ops
from xentjax.losses.sigmoid import sigmoid_cross_entropy
from xentjax.losses.softmax import softmax_cross_entropy
from xentjax.measures.entropy import binary_entropy_from_logits, entropy

__all__ = [
    "binary_entropy_from_logits",
    "entropy",
    "logistic",
    "normalized_tanh",
    "ops",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
]

__version__ = "0.1.0"
