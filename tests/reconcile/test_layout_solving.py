"""When layouts are solved, and how the solution is used."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest

from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.ports import LayoutPlanningError
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.observe import Observations
from tests.builders import at
from tests.layout_builders import a_fleet, a_mig_service, an_empty_node, layout_problem_of

GROUNDS = [an_empty_node(1)]
ONE = layout_problem_of(a_fleet(a_mig_service("chat"), mig_nodes=GROUNDS), GROUNDS)
TWO = layout_problem_of(a_fleet(a_mig_service("code"), mig_nodes=GROUNDS), GROUNDS)


@dataclass
class ControlledPlanner:
    """Answers when a test allows it, or fails."""

    error: Exception | None = None
    problems: list[LayoutProblem] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def solve(self, problem: LayoutProblem) -> LayoutSolution:
        self.problems.append(problem)
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return LayoutSolution(problem=problem, pools={})


@dataclass
class PlannerHarness:
    planner: ControlledPlanner = field(default_factory=ControlledPlanner)
    observations: Observations = field(default_factory=Observations)
    seconds: float = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def background_planner(self) -> BackgroundPlanner:
        clock: Callable[[], datetime] = lambda: at(self.seconds)  # noqa: E731 - it is one line
        return BackgroundPlanner(self.planner, self.observations, clock, self.woken.set)

    async def wait_for_solution(self) -> None:
        self.planner.may_answer.set()
        async with asyncio.timeout(60):
            await self.woken.wait()
        self.woken.clear()


async def test_a_problem_is_solved_once_and_its_solution_wakes_the_loop() -> None:
    harness = PlannerHarness()
    background = harness.background_planner()
    background.start(ONE)
    background.start(ONE)
    await harness.wait_for_solution()
    background.start(replace(ONE))
    assert harness.planner.problems == [ONE]
    assert harness.observations.layouts.solution == LayoutSolution(problem=ONE, pools={})


async def test_a_new_problem_is_solved_after_the_current_one() -> None:
    harness = PlannerHarness()
    background = harness.background_planner()
    background.start(ONE)
    background.start(TWO)
    await harness.wait_for_solution()
    background.start(TWO)
    await harness.wait_for_solution()
    assert harness.planner.problems == [ONE, TWO]


@pytest.mark.parametrize("error", [LayoutPlanningError("no solver"), KeyError("a100")])
async def test_a_failure_is_reported_keeps_the_last_solution_and_is_tried_again_later(
    error: Exception,
) -> None:
    harness = PlannerHarness()
    background = harness.background_planner()
    background.start(ONE)
    await harness.wait_for_solution()
    harness.planner.error = error
    background.start(TWO)
    await harness.wait_for_solution()
    assert str(error) in (harness.observations.layouts.error or "")
    assert harness.observations.layouts.solution == LayoutSolution(problem=ONE, pools={})
    background.start(TWO)
    assert harness.planner.problems == [ONE, TWO]
    harness.seconds, harness.planner.error = 31, None
    background.start(TWO)
    await harness.wait_for_solution()
    assert harness.planner.problems == [ONE, TWO, TWO]
    assert not harness.observations.layouts.error


async def test_nothing_is_solved_without_pools_to_plan() -> None:
    harness = PlannerHarness()
    harness.background_planner().start(LayoutProblem(observed_layouts={}))
    harness.background_planner().start(None)
    assert harness.planner.problems == []


async def test_stopping_ends_the_current_solve() -> None:
    harness = PlannerHarness()
    background = harness.background_planner()
    background.start(ONE)
    await asyncio.sleep(0)
    await background.stop()
    assert harness.observations.layouts.solution is None
