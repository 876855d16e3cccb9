"""Cross-entropy for JAX: exact, with every derivative derived by hand and proved."""

from xentjax.activations import logistic, normalized_tanh, softmax
from xentjax.core.op import ops
from xentjax.losses.sigmoid import sigmoid_cross_entropy
from xentjax.losses.softmax import softmax_cross_entropy
from xentjax.measures.divergence import cross_entropy, js_divergence, kl_divergence
from xentjax.measures.entropy import (
    binary_entropy,
    binary_entropy_from_logits,
    entropy,
    entropy_of_counts,
    entropy_of_labels,
    perplexity,
)
from xentjax.measures.information import conditional_entropy, joint_entropy, mutual_information, total_correlation
from xentjax.measures.logits import entropy_from_logits, js_divergence_from_logits, kl_divergence_from_logits

__all__ = [
    "binary_entropy",
    "binary_entropy_from_logits",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "entropy_from_logits",
    "entropy_of_counts",
    "entropy_of_labels",
    "joint_entropy",
    "js_divergence",
    "js_divergence_from_logits",
    "kl_divergence",
    "kl_divergence_from_logits",
    "logistic",
    "mutual_information",
    "normalized_tanh",
    "ops",
    "perplexity",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "total_correlation",
]

__version__ = "0.1.0"
