"""The solvers of fits by name, and which of them ``"auto"`` is."""

from __future__ import annotations

from typing import Any

from xentjax.solvers import checks
from xentjax.solvers.newton import Newton

SOLVERS: dict[str, Any] = {"newton": Newton}


def chosen_solver(function: str, solver: Any, objective: Any, parameters: int) -> tuple[str, Any]:
    """The solver that a name stands for, with what to call it."""
    if isinstance(solver, str):
        if solver == "auto":
            solver = "newton"
        if solver not in SOLVERS:
            names = ", ".join(repr(name) for name in ("auto", *SOLVERS))
            raise ValueError(f"{function}: solver must be one of {names} or a Solver, got {solver!r}")
        return solver, SOLVERS[solver]()
    checks.require_solver(solver)
    return type(solver).__name__, solver
