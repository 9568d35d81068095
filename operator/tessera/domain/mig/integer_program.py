"""Linear and integer programs, solved by HiGHS; no other module uses the solver.

One thread, one seed and limits in nodes instead of seconds give equal programs equal solutions on
any machine, so that the planner stays pure.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

INFINITY = float("inf")
# Names of rows with their coefficients.
Coefficients: TypeAlias = Iterable[tuple[Hashable, float]]
# HiGHS' number of a primal solution that satisfies all constraints.
_FEASIBLE = 2


class SolverMissingError(Exception):
    """HiGHS is not installed."""


@dataclass(frozen=True, slots=True)
class LinearSolution:
    """The optimum of the relaxed program, with the dual prices of its rows by name."""

    value: float
    duals: Mapping[Hashable, float]


@dataclass(frozen=True, slots=True)
class IntegerSolution:
    """The best integer solution of a search, and its lower bound."""

    value: float
    bound: float
    columns: tuple[int, ...]


class IntegerProgram:
    """A minimization program; rows are added first, columns at any time."""

    def __init__(self) -> None:
        # Loading the solver takes time and most processes never plan layouts.
        try:
            import highspy  # noqa: PLC0415 - the solver is loaded on first use
        except ImportError as error:
            raise SolverMissingError from error
        self._integer = highspy.HighsVarType.kInteger
        self._highs: Any = highspy.Highs()  # type: ignore[no-untyped-call] # the package types it by half
        self._highs.silent()
        self._highs.setOptionValue("threads", 1)
        self._highs.setOptionValue("random_seed", 0)
        self._rows: dict[Hashable, int] = {}
        self._columns = 0

    def add_row(self, low: float, high: float = INFINITY, *, name: Hashable = None) -> None:
        """Add a constraint without coefficients, which come with the columns.

        A row without another name has its index as its name.
        """
        index = len(self._rows)
        self._rows[index if name is None else name] = index
        self._highs.addRow(low, high, 0, [], [])

    def add_column(
        self, cost: float, entries: Coefficients, low: float = 0, high: float = INFINITY
    ) -> None:
        """Add a variable; what it has of rows that do not exist is left out."""
        known = [(self._rows[row], float(value)) for row, value in entries if row in self._rows]
        rows, values = [row for row, _ in known], [value for _, value in known]
        self._highs.addCol(cost, low, high, len(rows), rows, values)
        self._columns += 1

    def solve_relaxed(self) -> LinearSolution | None:
        """Solve the program with fractions allowed; None if it has no solution."""
        self._highs.run()
        if str(self._highs.getModelStatus()) != "HighsModelStatus.kOptimal":
            return None
        duals = map(float, self._highs.getSolution().row_dual)
        value = self._highs.getInfo().objective_function_value
        return LinearSolution(value, dict(zip(self._rows, duals, strict=True)))

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
        highs, indexes = self._highs, list(range(self._columns))
        highs.changeColsIntegrality(self._columns, indexes, [self._integer] * self._columns)
        highs.setOptionValue("mip_max_nodes", max_nodes)
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", max(step * 0.999, 1e-6))
        highs.setOptionValue("objective_bound", objective_bound)
        highs.setOptionValue("objective_target", target)
        highs.run()
        info = highs.getInfo()
        value = info.objective_function_value
        if info.primal_solution_status != _FEASIBLE or value > objective_bound:
            return None
        columns = tuple(round(float(column)) for column in highs.getSolution().col_value)
        return IntegerSolution(value, info.mip_dual_bound, columns)
