"""The one home of PuLP: solvers by name, and programs solved to a value, none, or not in time."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

from janus.errors import JanusError, known

SOLVERS = {"HiGHS": "HiGHS", "CBC": "PULP_CBC_CMD"}  # ours: PuLP's
OPTIMAL, INFEASIBLE = 1, -1
# A whole number from a solver may be off by its tolerance; costs are multiples of a cent or of one GPU
TOLERANCE = 1e-6


class Unsolved(Exception):
    """The time ran out before the solver could tell."""


def solver_name(name: str) -> str:
    """A solver that is there: the one named, or for ``"auto"`` the first of `SOLVERS` that is.

    Raises:
        JanusError: ``scale.solver``: PuLP or the solver is missing, or the name is unknown.
    """
    known(name, ("auto", *SOLVERS), "solver", "scale.solver")
    if find_spec("pulp") is None:
        raise JanusError("scale.solver", "method='milp' needs PuLP: pip install 'pulp>=3.3,<4'; or use 'exhaustive'")
    import pulp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 3.3 says so of the CBC it ships, 4 will drop it
        have = pulp.listSolvers(onlyAvailable=True)
    usable = [ours for ours, theirs in SOLVERS.items() if theirs in have]
    if not usable or (name != "auto" and name not in usable):
        remedy = "pip install 'janus-moe[highs]' brings HiGHS; or use method='exhaustive'"
        raise JanusError("scale.solver", f"solver {name!r} is not installed; there are: {usable or 'none'}; {remedy}")
    return usable[0] if name == "auto" else name


def minimise(program: Any, solver: str, seconds: float | None) -> float | None:
    """Least value of a program's objective; None when nothing meets its constraints.

    Args:
        program: a `pulp.LpProblem`; its variables hold the solution afterwards.
        solver: a name from `solver_name`.
        seconds: there are, or None.

    Raises:
        Unsolved: not in time.
    """
    import pulp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        engine = pulp.getSolver(SOLVERS[solver], msg=False, timeLimit=seconds, gapRel=0.0)  # HiGHS stops at 1e-4
        status = program.solve(engine)
    if status == INFEASIBLE:
        return None
    if status != OPTIMAL or program.sol_status != OPTIMAL:
        raise Unsolved
    return float(pulp.value(program.objective))
