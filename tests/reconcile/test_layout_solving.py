"""When layouts are planned, and what becomes of the answer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from tessera.domain.layout.problem import LayoutProblem, LayoutSolution
from tessera.ports import LayoutPlanningError
from tessera.reconcile.layout_solving import BackgroundPlanner
from tessera.reconcile.observe import Observations
from tests.builders import at
from tests.layout_builders import a_fleet, a_wishing, asked, empty

GROUNDS = [empty(1)]
ONE = asked(a_fleet(a_wishing("chat"), grounds=GROUNDS), GROUNDS)
TWO = asked(a_fleet(a_wishing("code"), grounds=GROUNDS), GROUNDS)


@dataclass
class Planner:
    """Answers when it is let, or fails."""

    fails: bool = False
    asked: list[LayoutProblem] = field(default_factory=list)
    let: asyncio.Event = field(default_factory=asyncio.Event)

    async def solve(self, question: LayoutProblem) -> LayoutSolution:
        self.asked.append(question)
        await self.let.wait()
        if self.fails:
            raise LayoutPlanningError("no solver")
        return LayoutSolution(problem=question, pools={})


@dataclass
class Scene:
    planner: Planner = field(default_factory=Planner)
    senses: Observations = field(default_factory=Observations)
    seconds: float = 0
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def planning(self) -> BackgroundPlanner:
        clock: Callable[[], datetime] = lambda: at(self.seconds)  # noqa: E731 - it is one line
        return BackgroundPlanner(self.planner, self.senses, clock, self.woken.set)

    async def answered(self) -> None:
        self.planner.let.set()
        async with asyncio.timeout(5):
            await self.woken.wait()
        self.woken.clear()


async def test_a_question_is_asked_once_and_its_answer_wakes_the_loop() -> None:
    scene = Scene()
    planning = scene.planning()
    planning.start(ONE)
    planning.start(ONE)
    await scene.answered()
    planning.start(replace(ONE))
    assert scene.planner.asked == [ONE]
    assert scene.senses.memory.layouts.solution == LayoutSolution(problem=ONE, pools={})


async def test_a_new_question_is_asked_after_the_one_under_way() -> None:
    scene = Scene()
    planning = scene.planning()
    planning.start(ONE)
    planning.start(TWO)
    await scene.answered()
    planning.start(TWO)
    await scene.answered()
    assert scene.planner.asked == [ONE, TWO]


async def test_a_failure_is_told_keeps_the_last_answer_and_is_tried_again_later() -> None:
    scene = Scene()
    planning = scene.planning()
    planning.start(ONE)
    await scene.answered()
    scene.planner.fails = True
    planning.start(TWO)
    await scene.answered()
    assert scene.senses.memory.layouts.solver_error == "no solver"
    assert scene.senses.memory.layouts.solution == LayoutSolution(problem=ONE, pools={})
    planning.start(TWO)
    assert scene.planner.asked == [ONE, TWO]
    scene.seconds, scene.planner.fails = 31, False
    planning.start(TWO)
    await scene.answered()
    assert scene.planner.asked == [ONE, TWO, TWO]
    assert not scene.senses.memory.layouts.solver_error


async def test_nothing_is_asked_without_pools_to_plan() -> None:
    scene = Scene()
    scene.planning().start(LayoutProblem(layouts={}))
    scene.planning().start(None)
    assert scene.planner.asked == []


async def test_stopping_ends_what_is_under_way() -> None:
    scene = Scene()
    planning = scene.planning()
    planning.start(ONE)
    await asyncio.sleep(0)
    await planning.stop()
    assert scene.senses.memory.layouts.solution is None
