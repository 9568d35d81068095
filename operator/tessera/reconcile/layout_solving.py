"""Solve layout problems beside the reconcile cycles; a solution enters a later cycle."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.domain.steps import error_text
from tessera.ports import Clock, LayoutPlanningError
from tessera.reconcile.observe import Observations, SolvedLayouts

# Delay until a problem whose planning failed is tried again.
_RETRY_AFTER = timedelta(seconds=30)


class LayoutPlanner(Protocol):
    """The solver of MIG layouts."""

    async def solve(self, problem: LayoutProblem) -> LayoutSolution:
        """Return layouts that meet the demand; LayoutPlanningError if there are none."""


class BackgroundPlanner:
    """Solves the newest layout problem without a solution, one at a time."""

    def __init__(
        self,
        planner: LayoutPlanner,
        observations: Observations,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._planner = planner
        self._observations = observations
        self._clock = clock
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._last_failure: tuple[LayoutProblem, datetime] | None = None

    def start(self, problem: LayoutProblem | None) -> None:
        """Begin to solve the problem, unless that is done, failed just now or another is solved.

        The end of the task wakes a cycle, which calls this again with the problem of that time.
        """
        if problem is None or not problem.terms or self._task is not None:
            return
        solution = self._observations.layouts.solution
        if solution is not None and (solution.problem is problem or solution.problem == problem):
            return
        if (
            self._last_failure is not None
            and self._last_failure[0] == problem
            and self._clock() - self._last_failure[1] < _RETRY_AFTER
        ):
            return
        self._task = asyncio.create_task(self._solve(problem), name="layouts")
        self._task.add_done_callback(self._end_task)

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _solve(self, problem: LayoutProblem) -> None:
        try:
            solution = await self._planner.solve(problem)
        except LayoutPlanningError as error:
            self._fail(problem, str(error))
        except Exception as error:  # noqa: BLE001 - tried again later, as any other failure
            self._fail(problem, f"planning layouts raised {error_text(error)}")
        else:
            # The solution came from another process with a copy of the problem. Cycles compare by
            # identity first, which is much faster.
            self._observations.layouts = SolvedLayouts(replace(solution, problem=problem))

    def _fail(self, problem: LayoutProblem, message: str) -> None:
        self._observations.layouts = replace(self._observations.layouts, error=message)
        self._last_failure = (problem, self._clock())

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            self._wake()
