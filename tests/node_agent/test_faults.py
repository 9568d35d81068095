"""An agent that dies before or after any call is followed by one that brings it to its end."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from fakegpu.gpu_driver import ProfilePlacement
from tests.node_agent.nodes import GpuNode

Layout = Sequence[ProfilePlacement]

TRANSITIONS: dict[str, tuple[Layout, Layout]] = {
    "one goes": ([("3g.40gb", 4)], []),
    "one comes": ([("3g.40gb", 0)], [("3g.40gb", 0), ("3g.40gb", 4)]),
    "another in its place": ([("7g.80gb", 0)], [("4g.40gb", 0), ("3g.40gb", 4)]),
    "beside one that is held": (
        [("3g.40gb", 4), ("2g.20gb", 0), ("1g.10gb", 2)],
        [("3g.40gb", 4), ("3g.40gb", 0)],
    ),
    "small ones for a big one": ([("1g.10gb", start) for start in range(7)], [("7g.80gb", 0)]),
    "a big one for small ones": ([("7g.80gb", 0)], [("1g.10gb", start) for start in range(7)]),
    "media engines move": (
        [("1g.10gb+me", 0), ("2g.20gb", 2)],
        [("1g.20gb", 0), ("2g.20gb", 2), ("1g.10gb+me", 6)],
    ),
}


class KilledError(BaseException):
    """The process is gone."""


async def settled(node: GpuNode) -> int:
    """Turns that a new agent needs until nothing is left to do."""
    agent = node.agent()
    for turn in range(1, 8):
        await agent.reconcile()
        told = node.status
        if told.observed_generation == node.own.layout.generation and not told.gpus[0].fault:
            return turn
    raise AssertionError(node.status)


def a_node(before: Layout, after: Layout) -> tuple[GpuNode, str | None]:
    """Whatever is kept is held by a pod that computes on it."""
    node = GpuNode(before)
    kept = None
    for name, start in before:
        if (name, start) in after:
            kept = node.hold(start, "team-a/chat-0")
            node.gpu_driver.attach(kept, 4711)
    node.want(after)
    return node, kept


def killer(number: int, moment: str) -> Callable[[str], None]:
    """Raises at the given call, whoever makes it."""
    calls = 0

    def called(when: str) -> None:
        nonlocal calls
        if when == "before":
            calls += 1
        if (calls, when) == (number, moment):
            raise KilledError

    return called


def _driver_call(called: Callable[[str], None], _number: int, _name: str, when: str) -> None:
    called(when)


def _api_call(called: Callable[[str], None], _name: str, when: str) -> None:
    called(when)


async def killed_everywhere(before: Layout, after: Layout) -> int:
    """How many times the agent was killed, until there was no further call to kill it at."""
    kills = 0
    for moment in ("before", "after"):
        number = 0
        while True:
            number += 1
            node, kept = a_node(before, after)
            called = killer(number, moment)
            node.gpu_driver.on_call = partial(_driver_call, called)
            node.own.on_call = partial(_api_call, called)
            try:
                await settled(node)
            except KilledError:
                kills += 1
            else:
                break
            node.gpu_driver.on_call = lambda _number, _name, _when: None
            node.own.on_call = lambda _name, _when: None
            await settled(node)
            spots = {(spot.profile, spot.start) for spot in node.layout()}
            assert spots == set(after), (moment, number)
            uuids = [one.uuid for one in node.gpu_driver.gpus[0].instances]
            assert kept is None or kept in uuids, (moment, number)
    return kills


@pytest.mark.parametrize("name", ["another in its place", "beside one that is held"])
async def test_wherever_it_dies_the_next_one_ends_in_the_wanted_layout(name: str) -> None:
    assert await killed_everywhere(*TRANSITIONS[name]) > 100


@pytest.mark.long
async def test_so_it_is_with_every_transition() -> None:
    kills = 0
    for before, after in TRANSITIONS.values():
        kills += await killed_everywhere(before, after)
    assert kills > 1000
