"""Linear and integer programmes, solved by HiGHS; nobody else knows the solver.

One thread, one seed and limits in nodes instead of seconds: equal programmes get equal answers on
any machine, so that this is as pure as the planner that asks. The package is loaded on first use,
since most processes never plan layouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

INFINITY = float("inf")
# Rows with their coefficients.
Coefficients: TypeAlias = Sequence[tuple[int, float]]


class SolverMissingError(Exception):
    """HiGHS is not installed."""


@dataclass(frozen=True, slots=True)
class LinearSolution:
    """The optimum when fractions are allowed."""

    value: float
    duals: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IntegerSolution:
    """The best whole numbers found, and what no whole numbers can be below."""

    value: float
    bound: float
    columns: tuple[int, ...]


class IntegerProgram:
    """A minimisation that grows by columns; rows come first."""

    def __init__(self) -> None:
        self._highs = _new_highs()
        self._columns = 0

    def add_row(self, low: float, high: float = INFINITY) -> None:
        """A constraint, to which columns are added later."""
        self._highs.addRow(low, high, 0, [], [])

    def add_column(
        self, cost: float, entries: Coefficients, low: float = 0, high: float = INFINITY
    ) -> int:
        """Its number."""
        rows, values = [row for row, _ in entries], [float(value) for _, value in entries]
        self._highs.addCol(cost, low, high, len(rows), rows, values)
        self._columns += 1
        return self._columns - 1

    def solve_relaxed(self) -> LinearSolution | None:
        """None when it has no solution."""
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
        """All columns as whole numbers; None when none of at most a value were found within the
        nodes.

        It ends early at the target, or when less than a step of cost is left to gain.
        """
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


# HiGHS' number for a solution that keeps all constraints.
_FEASIBLE = 2


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
