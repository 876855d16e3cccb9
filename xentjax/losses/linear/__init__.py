"""Linear cross-entropy: the loss of x @ w, of which no more is stored than a part, but where it is small."""

from xentjax.losses.linear.labels import SoftLabels, Teacher
from xentjax.losses.linear.loss import explain, linear_cross_entropy
from xentjax.losses.linear.outputs import TopClasses
from xentjax.losses.linear.plan import STRATEGIES, Explanation, Plan

__all__ = [
    "STRATEGIES",
    "Explanation",
    "Plan",
    "SoftLabels",
    "Teacher",
    "TopClasses",
    "explain",
    "linear_cross_entropy",
]
