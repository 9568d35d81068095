"""Scenes play at once, are told in order, and a scene that fails ends the others."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from demo.cluster import InstalledCluster, StepError
from demo.scene import Narrator, Scene, play

Play = Callable[[InstalledCluster], Awaitable[str]]


async def _nothing(_: InstalledCluster) -> str:
    return ""


def _scene(title: str, play_scene: Play = _nothing) -> Scene:
    return Scene(title=title, expected=f"{title} happens.", play=play_scene)


def _cluster() -> InstalledCluster:
    return InstalledCluster(cast("Any", None), cast("Any", None), print)


def test_lines_of_a_later_scene_wait_for_its_turn() -> None:
    written: list[str] = []
    narrator = Narrator([_scene("first"), _scene("second")], lambda: 1.5, written.append, 80)
    narrator.say(1, "early")
    narrator.end(1, "second was seen")
    narrator.say(0, "now")
    narrator.end(0, "first was seen")
    assert written == [
        "\n1/2 first",
        "Watch: first happens.",
        "[  1.5 s] now",
        "[  1.5 s] Seen: first was seen",
        "\n2/2 second",
        "Watch: second happens.",
        "[  1.5 s] early",
        "[  1.5 s] Seen: second was seen",
    ]


def test_a_scene_that_fails_before_its_turn_shows_what_it_said() -> None:
    written: list[str] = []
    narrator = Narrator([_scene("first"), _scene("second")], lambda: 0.0, written.append, 80)
    narrator.say(1, "early")
    narrator.fail(1)
    assert written[-3:] == ["\n2/2 second", "Watch: second happens.", "[  0.0 s] early"]


def test_sentences_fit_the_terminal_and_tables_stay_as_they_are() -> None:
    written: list[str] = []
    narrator = Narrator([_scene("first")], lambda: 0.0, written.append, 30)
    narrator.say(0, "a sentence that is longer than a line")
    narrator.say(0, "\n| a table that is longer than a line |")
    assert written[2:] == [
        "[  0.0 s] a sentence that is\n          longer than a line",
        "[  0.0 s] \n| a table that is longer than a line |",
    ]


async def test_chains_play_at_once_and_acts_one_after_the_other() -> None:
    met = asyncio.Barrier(2)
    order: list[str] = []

    def meeting(name: str) -> Play:
        async def meet(_: InstalledCluster) -> str:
            await met.wait()
            order.append(name)
            return f"{name} was seen"

        return meet

    async def last(_: InstalledCluster) -> str:
        order.append("last")
        return "the last was seen"

    acts = (((_scene("a", meeting("a")),), (_scene("b", meeting("b")),)), ((_scene("c", last),),))
    async with asyncio.timeout(5):
        steps = await play(_cluster(), acts, lambda _: None)
    assert (sorted(order[:2]), order[2]) == (["a", "b"], "last")
    assert [step.title for step in steps] == ["a", "b", "c"]
    assert steps[1].seen == "b was seen"


async def test_a_failed_scene_says_what_was_expected_and_seen_and_ends_the_others() -> None:
    ended: list[str] = []

    async def fail(_: InstalledCluster) -> str:
        raise StepError("3 rows are missing")

    async def go_on(_: InstalledCluster) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("other")
        return ""

    acts = (((_scene("other", go_on),), (_scene("batch", fail),)),)
    sentence = "step 2, batch: expected: batch happens. Seen: 3 rows are missing"
    with pytest.raises(StepError, match=sentence):
        await play(_cluster(), acts, lambda _: None)
    assert ended == ["other"]
