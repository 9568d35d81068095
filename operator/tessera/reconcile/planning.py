"""Layouts are planned beside the turns; what comes of it enters a later turn."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.domain.repartition.question import Question
from tessera.ports import Clock, LayoutPlanner, LayoutPlanningError
from tessera.reconcile.observe import Senses

_AGAIN = timedelta(seconds=30)
"""A question that could not be answered is asked again so late."""


class Planning:
    """Asks the newest question that is not answered yet, one at a time."""

    def __init__(
        self, layouts: LayoutPlanner, senses: Senses, clock: Clock, wake: Callable[[], None]
    ) -> None:
        self._layouts = layouts
        self._senses = senses
        self._clock = clock
        self._wake = wake
        self._task: asyncio.Task[None] | None = None
        self._failed: tuple[Question, datetime] | None = None

    def start(self, question: Question | None) -> None:
        """Plan for it, unless that is done, under way or failed just now.

        A question that comes while another one is under way is asked by the turn that the answer
        wakes, if it still holds then.
        """
        if question is None or not question.terms or self._task is not None:
            return
        solved = self._senses.solved
        if solved is not None and (solved.question is question or solved.question == question):
            return
        if (
            self._failed is not None
            and self._failed[0] == question
            and self._fresh(self._failed[1])
        ):
            return
        self._task = asyncio.create_task(self._solve(question), name="layouts")
        self._task.add_done_callback(self._done)

    def _fresh(self, failed: datetime) -> bool:
        return self._clock() - failed < _AGAIN

    async def stop(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _solve(self, question: Question) -> None:
        try:
            found = await self._layouts.solve(question)
        except LayoutPlanningError as error:
            self._senses.unsolved = str(error)
            self._failed = (question, self._clock())
        else:
            self._senses.unsolved = None
            self._senses.solved = replace(found, question=question)  # compared by identity first

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            self._wake()
