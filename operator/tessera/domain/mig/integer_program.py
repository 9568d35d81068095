"""Linear and integer programs, solved by HiGHS; no other module uses the solver.

One thread, one seed and limits in nodes instead of seconds give equal programs equal solutions on
any machine, so that the planner stays pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

INFINITY = float("inf")
# Row indexes with their coefficients.
Coefficients: TypeAlias = Sequence[tuple[int, float]]
# HiGHS' number of a primal solution that satisfies all constraints.
_FEASIBLE = 2


class SolverMissingError(Exception):
    """HiGHS is not installed."""


@dataclass(frozen=True, slots=True)
class LinearSolution:
    """The optimum of the relaxed program, with the dual prices of its rows."""

    value: float
    duals: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IntegerSolution:
    """The best integer solution of a search, and its lower bound."""

    value: float
    bound: float
    columns: tuple[int, ...]


class IntegerProgram:
    """A minimization program; rows are added first, columns at any time."""

    def __init__(self) -> None:
        self._highs = _new_highs()
        self._columns = 0

    def add_row(self, low: float, high: float = INFINITY) -> None:
        """Add a constraint without coefficients, which come with the columns."""
        self._highs.addRow(low, high, 0, [], [])

    def add_column(
        self, cost: float, entries: Coefficients, low: float = 0, high: float = INFINITY
    ) -> int:
        """Add a variable and return its index."""
        rows, values = [row for row, _ in entries], [float(value) for _, value in entries]
        self._highs.addCol(cost, low, high, len(rows), rows, values)
        self._columns += 1
        return self._columns - 1

    def solve_relaxed(self) -> LinearSolution | None:
        """Solve the program with fractions allowed; None if it has no solution."""
        self._highs.run()
        if str(self._highs.getModelStatus()) != "HighsModelStatus.kOptimal":
            return None
        duals = tuple(map(float, self._highs.getSolution().row_dual))
        return LinearSolution(self._highs.getInfo().objective_function_value, duals)

    def solve_integer(
        self,
        max_nodes: int,
        *,
        target: float = -INFINITY,
        step: float = 0.0,
        objective_bound: float = INFINITY,
    ) -> IntegerSolution | None:
        """Solve the program with all columns as integers.

        The search stops early at the target value, or when it can gain less than a step of cost.
        None if no solution up to `objective_bound` appears within `max_nodes` nodes.
        """
        # Loading the solver takes time and most processes never plan layouts.
        import highspy  # noqa: PLC0415 - the solver is loaded on first use

        highs = self._highs
        variable_types = [highspy.HighsVarType.kInteger] * self._columns
        highs.changeColsIntegrality(self._columns, list(range(self._columns)), variable_types)
        highs.setOptionValue("mip_max_nodes", max_nodes)
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", max(step * 0.999, 1e-6))
        if objective_bound < INFINITY:
            highs.setOptionValue("objective_bound", objective_bound)
        if target > -INFINITY:
            highs.setOptionValue("objective_target", target)
        highs.run()
        info = highs.getInfo()
        if (
            info.primal_solution_status != _FEASIBLE
            or info.objective_function_value > objective_bound
        ):
            return None
        columns = tuple(round(float(value)) for value in highs.getSolution().col_value)
        return IntegerSolution(info.objective_function_value, info.mip_dual_bound, columns)


def _new_highs() -> Any:
    try:
        import highspy  # noqa: PLC0415 - see above
    except ImportError as error:
        raise SolverMissingError from error
    highs = highspy.Highs()  # type: ignore[no-untyped-call] # the package types it by half
    highs.silent()
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("random_seed", 0)
    return highs
