"""Linear and integer programmes, solved by HiGHS; nobody else knows the solver.

One thread, one seed and limits in nodes instead of seconds: equal programmes get equal answers on
any machine, so that this is as pure as the planner that asks. The package is loaded on first use,
since most processes never plan layouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

INFINITE = float("inf")
Entries: TypeAlias = Sequence[tuple[int, float]]
"""Rows with their coefficients."""


class SolverMissingError(Exception):
    """HiGHS is not installed."""


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The optimum when fractions are allowed."""

    value: float
    duals: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Whole:
    """The best whole numbers found, and what no whole numbers can be below."""

    value: float
    bound: float
    columns: tuple[int, ...]


class Programme:
    """A minimisation that grows by columns; rows come first."""

    def __init__(self) -> None:
        self._highs = _highs()
        self._columns = 0

    def row(self, low: float, high: float = INFINITE) -> None:
        """A constraint, to which columns are added later."""
        self._highs.addRow(low, high, 0, [], [])

    def column(self, cost: float, entries: Entries, low: float = 0, high: float = INFINITE) -> int:
        """Its number."""
        rows, values = [row for row, _ in entries], [float(value) for _, value in entries]
        self._highs.addCol(cost, low, high, len(rows), rows, values)
        self._columns += 1
        return self._columns - 1

    def relaxed(self) -> Relaxed | None:
        """None when it has no solution."""
        self._highs.run()
        if str(self._highs.getModelStatus()) != "HighsModelStatus.kOptimal":
            return None
        duals = tuple(map(float, self._highs.getSolution().row_dual))
        return Relaxed(self._highs.getInfo().objective_function_value, duals)

    def whole(
        self, nodes: int, *, target: float = -INFINITE, step: float = 0.0, most: float = INFINITE
    ) -> Whole | None:
        """All columns as whole numbers; None when none of at most a value were found within the
        nodes.

        It ends early at the target, or when less than a step of cost is left to gain.
        """
        import highspy  # noqa: PLC0415 - the solver is loaded on first use

        highs = self._highs
        kinds = [highspy.HighsVarType.kInteger] * self._columns
        highs.changeColsIntegrality(self._columns, list(range(self._columns)), kinds)
        highs.setOptionValue("mip_max_nodes", nodes)
        highs.setOptionValue("mip_rel_gap", 0.0)
        highs.setOptionValue("mip_abs_gap", max(step * 0.999, 1e-6))
        if most < INFINITE:
            highs.setOptionValue("objective_bound", most)
        if target > -INFINITE:
            highs.setOptionValue("objective_target", target)
        highs.run()
        info = highs.getInfo()
        if info.primal_solution_status != _FEASIBLE or info.objective_function_value > most:
            return None
        columns = tuple(round(float(value)) for value in highs.getSolution().col_value)
        return Whole(info.objective_function_value, info.mip_dual_bound, columns)


_FEASIBLE = 2
"""HiGHS' number for a solution that keeps all constraints."""


def _highs() -> Any:
    try:
        import highspy  # noqa: PLC0415 - see above
    except ImportError as error:
        raise SolverMissingError from error
    highs = highspy.Highs()  # type: ignore[no-untyped-call] # the package types it by half
    highs.silent()
    highs.setOptionValue("threads", 1)
    highs.setOptionValue("random_seed", 0)
    return highs
