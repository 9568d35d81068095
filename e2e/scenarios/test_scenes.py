"""The demo's scenes, played as tests: what `make demo` shows cannot rot."""

import pytest

from demo.__main__ import SHOWS
from demo.stage import EXAMPLES, Stage, all_ready, apply_examples


@pytest.fixture
async def examples(stage: Stage) -> Stage:
    """The examples, applied as a newcomer would."""
    await apply_examples(stage)
    await all_ready(stage)
    return stage


async def test_all_scenes_come_out_as_they_must(examples: Stage) -> None:
    for _, scene in SHOWS["main"]:
        await scene(examples)
    for manifest in ("10-team-a.yaml", "20-team-b.yaml"):
        await examples.run("kubectl", "delete", "--wait", "-f", str(EXAMPLES / manifest))


async def test_the_budget_show_comes_out_as_it_must(stage: Stage) -> None:
    for _, scene in SHOWS["budget"]:
        await scene(stage)
    await stage.run("kubectl", "delete", "--wait", "inferenceservice", "-n", "team-a", "chat")


async def test_the_batch_show_comes_out_as_it_must(stage: Stage) -> None:
    for _, scene in SHOWS["batch"]:
        await scene(stage)
