"""Cross-entropy for JAX: exact, with every derivative derived by hand and proved."""

import importlib
from typing import TYPE_CHECKING, Any

from xentjax.activations import logistic, normalized_tanh, softmax
from xentjax.core.op import ops
from xentjax.losses.linear import SoftLabels, Teacher, linear_cross_entropy
from xentjax.losses.sigmoid import sigmoid_cross_entropy
from xentjax.losses.softmax import softmax_cross_entropy
from xentjax.measures.counts import entropy_of_counts, entropy_of_labels
from xentjax.measures.divergence import cross_entropy, js_divergence, kl_divergence
from xentjax.measures.entropy import binary_entropy, binary_entropy_from_logits, entropy, perplexity
from xentjax.measures.generalized import renyi_entropy, tsallis_entropy
from xentjax.measures.information import mutual_information, total_correlation
from xentjax.measures.joint import conditional_entropy, joint_entropy
from xentjax.measures.logit_divergences import js_divergence_from_logits, kl_divergence_from_logits
from xentjax.measures.logits import entropy_from_logits
from xentjax.models import forms as _forms  # noqa: F401  (they enter the registry of the check)
from xentjax.models.closed_form import logistic_gradient, logistic_hessian, logistic_hvp
from xentjax.models.logistic import (
    LogisticParams,
    logistic_derivative,
    predict,
    predict_logits,
    predict_proba,
    prediction_gradient,
)
from xentjax.models.loss import logistic_loss
from xentjax.models.objective import LogisticObjective
from xentjax.solvers.gradient_descent import GradientDescent
from xentjax.solvers.minimize import History, Solution, Solver, iterate, minimize
from xentjax.solvers.objective import Objective
from xentjax.solvers.optax import Optax
from xentjax.solvers.status import Status

if TYPE_CHECKING:
    from xentjax.core.gradient import check_gradient
    from xentjax.core.report import GradientReport
    from xentjax.solvers.lbfgs import LBFGS
    from xentjax.solvers.newton import Newton
    from xentjax.solvers.newton_cg import NewtonCG
    from xentjax.solvers.proximal_gradient import ProximalGradient
    from xentjax.solvers.proximal_newton import ProximalNewton
    from xentjax.training.fit import fit_logistic
    from xentjax.training.fit_many import fit_many
    from xentjax.training.fit_result import LogisticFit
    from xentjax.training.minibatch import MinibatchResult, iterate_minibatch, train_minibatch
    from xentjax.training.path import fit_path, lambda_max
    from xentjax.training.path_result import LogisticPath
    from xentjax.training.streams.rows import Rows, open_rows

#: What loads when it is first used, as most programs use none of it.
_LATER = {
    "GradientReport": "xentjax.core.report",
    "LBFGS": "xentjax.solvers.lbfgs",
    "LogisticFit": "xentjax.training.fit_result",
    "LogisticPath": "xentjax.training.path_result",
    "MinibatchResult": "xentjax.training.minibatch",
    "Newton": "xentjax.solvers.newton",
    "NewtonCG": "xentjax.solvers.newton_cg",
    "ProximalGradient": "xentjax.solvers.proximal_gradient",
    "ProximalNewton": "xentjax.solvers.proximal_newton",
    "Rows": "xentjax.training.streams.rows",
    "check_gradient": "xentjax.core.gradient",
    "fit_logistic": "xentjax.training.fit",
    "fit_many": "xentjax.training.fit_many",
    "fit_path": "xentjax.training.path",
    "iterate_minibatch": "xentjax.training.minibatch",
    "lambda_max": "xentjax.training.path",
    "open_rows": "xentjax.training.streams.rows",
    "train_minibatch": "xentjax.training.minibatch",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [  # noqa: RUF022  (sorted as strings: it would put names of capitals first)
    "GradientDescent",
    "GradientReport",
    "History",
    "LBFGS",
    "LogisticFit",
    "LogisticObjective",
    "LogisticParams",
    "LogisticPath",
    "MinibatchResult",
    "Newton",
    "NewtonCG",
    "Objective",
    "Optax",
    "ProximalGradient",
    "ProximalNewton",
    "Rows",
    "SoftLabels",
    "Solution",
    "Solver",
    "Status",
    "Teacher",
    "binary_entropy",
    "binary_entropy_from_logits",
    "check_gradient",
    "conditional_entropy",
    "cross_entropy",
    "entropy",
    "entropy_from_logits",
    "entropy_of_counts",
    "entropy_of_labels",
    "fit_logistic",
    "fit_many",
    "fit_path",
    "iterate",
    "iterate_minibatch",
    "joint_entropy",
    "js_divergence",
    "js_divergence_from_logits",
    "kl_divergence",
    "kl_divergence_from_logits",
    "lambda_max",
    "linear_cross_entropy",
    "logistic",
    "logistic_derivative",
    "logistic_gradient",
    "logistic_hessian",
    "logistic_hvp",
    "logistic_loss",
    "minimize",
    "mutual_information",
    "normalized_tanh",
    "open_rows",
    "ops",
    "perplexity",
    "predict",
    "predict_logits",
    "predict_proba",
    "prediction_gradient",
    "renyi_entropy",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
    "total_correlation",
    "train_minibatch",
    "tsallis_entropy",
]

__version__ = "0.1.0"
