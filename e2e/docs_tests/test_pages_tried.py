"""Pages followed to the letter: the tutorial from an empty machine, tasks on the tutorial's cluster."""

from collections.abc import Iterable, Sequence

import pytest

from demo.stage import ROOT
from docs_tests.blocks import Step, steps
from docs_tests.reader import Reader

TUTORIAL = "docs/tutorial.md"
SERVED = ("Start a cluster", "Install Tessera", "Say what hardware there is", "Serve a model")
"""The sections of the tutorial after which a task can begin."""
TASKS: dict[str, Sequence[str]] = {
    "serve": SERVED,
    "scale": SERVED,
    "pools": SERVED[:2],
    "set-a-budget": SERVED,
    "read-the-bill": SERVED,
    "run-a-batch": (*SERVED, "The input"),
    "troubleshoot": SERVED,
}
"""Each task that is tried, and what one has done before."""

pytestmark = [pytest.mark.world, pytest.mark.usefixtures("tally")]


def of(page: str, sections: Iterable[str] | None = None) -> list[Step]:
    """The steps of a page, or those of some sections, which must be there."""
    found = steps((ROOT / page).read_text(encoding="utf-8"))
    if sections is None:
        return found
    wanted = set(sections)
    assert wanted <= {step.section for step in found}, f"{page} has lost a section"
    return [step for step in found if step.section in wanted]


def test_the_tutorial(reader: Reader) -> None:
    reader.follow(TUTORIAL, of(TUTORIAL))
    assert reader.ran


@pytest.mark.parametrize("task", TASKS)
def test_task(reader: Reader, task: str) -> None:
    reader.follow(TUTORIAL, of(TUTORIAL, TASKS[task]))
    reader.begin()
    page = f"docs/tasks/{task}.md"
    reader.follow(page, of(page))
    assert reader.ran
