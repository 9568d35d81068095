"""Pages followed to the letter: the tutorial from an empty machine, tasks on its cluster."""

from collections.abc import Callable

import pytest

from docs_tests.pages import (
    FIRST_ANSWER,
    MAX_FIRST_ANSWER_SECONDS,
    TASKS,
    TUTORIAL,
    page_of,
    read_page_steps,
)
from docs_tests.reader import Reader

pytestmark = pytest.mark.world
Tally = Callable[[Reader], None]


def test_the_tutorial_leads_from_an_empty_machine_to_its_end(
    newcomer: Reader, tally: Tally
) -> None:
    newcomer.follow(TUTORIAL, read_page_steps(TUTORIAL))
    assert newcomer.ran
    assert newcomer.time_of(FIRST_ANSWER).wall_seconds <= MAX_FIRST_ANSWER_SECONDS
    tally(newcomer)


@pytest.mark.full
@pytest.mark.parametrize("task", TASKS)
def test_a_task_comes_out_as_its_page_says(reader: Reader, tally: Tally, task: str) -> None:
    reader.follow(TUTORIAL, read_page_steps(TUTORIAL, TASKS[task]))
    reader.reset_counts()
    reader.follow(page_of(task), read_page_steps(page_of(task)))
    assert reader.ran
    tally(reader)
