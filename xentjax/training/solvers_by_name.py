"""The solvers of fits by name, and which of them ``"auto"`` is."""

from __future__ import annotations

import functools
from typing import Any

from xentjax.solvers import checks
from xentjax.solvers.newton import Newton
from xentjax.solvers.proximal_gradient import ProximalGradient
from xentjax.solvers.proximal_newton import ProximalNewton

SOLVERS: dict[str, Any] = {
    "newton": Newton,
    # Where gradients are float64 a Hessian of float32 takes half the time, and no more steps.
    "proximal_newton": functools.partial(ProximalNewton, "float32"),
    "proximal_gradient": ProximalGradient,
}

#: Up to this many parameters, whose Hessian then is 128 MiB in float64, ``"auto"`` is a method with a Hessian.
_HESSIAN = 4096


def chosen_solver(function: str, solver: Any, objective: Any, parameters: int) -> tuple[str, Any]:
    """The solver that a name stands for, with what to call it."""
    if isinstance(solver, str):
        if solver == "auto":
            solver = "newton"
            if objective.l1 is not None:
                solver = "proximal_newton" if parameters <= _HESSIAN else "proximal_gradient"
        if solver not in SOLVERS:
            names = ", ".join(repr(name) for name in ("auto", *SOLVERS))
            raise ValueError(f"{function}: solver must be one of {names} or a Solver, got {solver!r}")
        return solver, SOLVERS[solver]()
    checks.require_solver(solver)
    return type(solver).__name__, solver
