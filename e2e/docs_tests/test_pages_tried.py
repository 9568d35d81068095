"""Pages followed to the letter: the tutorial from an empty machine, tasks on its cluster."""

from collections.abc import Callable, Sequence
from itertools import chain

import pytest

from docs_tests.pages import (
    FIRST_ANSWER,
    MAX_FIRST_ANSWER_SECONDS,
    ROUNDS,
    TASKS,
    TUTORIAL,
    WITHOUT_CLUSTER,
    page_of,
    read_page_steps,
)
from docs_tests.reader import Reader

pytestmark = pytest.mark.world
Tally = Callable[[Reader, str], None]


def test_the_tutorial_leads_from_an_empty_machine_to_its_end(
    newcomer: Reader, tally: Tally
) -> None:
    newcomer.follow(TUTORIAL, read_page_steps(TUTORIAL))
    assert newcomer.ran
    assert newcomer.time_of(FIRST_ANSWER).wall_seconds <= MAX_FIRST_ANSWER_SECONDS
    tally(newcomer, TUTORIAL)


@pytest.mark.parametrize("task", WITHOUT_CLUSTER)
def test_tasks_without_a_cluster_come_out_as_their_pages_say(
    reader_without_cluster: Reader, tally: Tally, task: str
) -> None:
    reader, page = reader_without_cluster, page_of(task)
    reader.follow(page, read_page_steps(page))
    assert reader.ran
    tally(reader, page)


_IN_GROUPS = {*WITHOUT_CLUSTER, *chain.from_iterable(ROUNDS)}


@pytest.mark.parametrize(
    "tasks",
    [
        *(pytest.param(tasks, id="+".join(tasks)) for tasks in ROUNDS),
        *(
            pytest.param((task,), id=task, marks=pytest.mark.full)
            for task in TASKS
            if task not in _IN_GROUPS
        ),
    ],
)
def test_tasks_come_out_as_their_pages_say(
    reader: Reader, tally: Tally, tasks: Sequence[str]
) -> None:
    followed: set[str] = set()
    for task in tasks:
        sections = set(TASKS[task]) - followed
        reader.follow(TUTORIAL, read_page_steps(TUTORIAL, sections))
        followed |= sections
        reader.reset_counts()
        page = page_of(task)
        reader.follow(page, read_page_steps(page))
        assert reader.ran
        tally(reader, page)
