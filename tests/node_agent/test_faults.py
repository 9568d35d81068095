"""An agent that dies before or after any call is followed by one that completes the work."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from fakegpu.gpu_driver import ProfilePlacement
from tests.cases import full
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


class AgentKilledError(BaseException):
    """The agent process ends here."""


async def reconcile_until_settled(node: GpuNode) -> int:
    """Run cycles of a new agent until nothing is left to do; return their number."""
    agent = node.agent()
    for cycle in range(1, 8):
        await agent.reconcile()
        status = node.status
        if (
            status.observed_generation == node.own_layout.layout.generation
            and not status.gpus[0].fault
        ):
            return cycle
    raise AssertionError(node.status)


def a_node(before: Layout, after: Layout) -> tuple[GpuNode, str | None]:
    """Create a node on which a pod uses the instance that both layouts have."""
    node = GpuNode(before)
    used_uuid = None
    for name, start in before:
        if (name, start) in after:
            used_uuid = node.assign_pod(start, "team-a/chat-0")
            node.gpu_driver.attach(used_uuid, 4711)
    node.set_spec(after)
    return node, used_uuid


def kill_at(number: int, moment: str) -> Callable[[str], None]:
    """Return a hook that raises at the given call."""
    calls = 0

    def on_call(when: str) -> None:
        nonlocal calls
        if when == "before":
            calls += 1
        if (calls, when) == (number, moment):
            raise AgentKilledError

    return on_call


def _driver_call(called: Callable[[str], None], _number: int, _name: str, when: str) -> None:
    called(when)


def _api_call(called: Callable[[str], None], _name: str, when: str) -> None:
    called(when)


async def kill_everywhere(before: Layout, after: Layout, each: int = 1) -> int:
    """Kill the agent at each so many calls, one per run; return the number of kills."""
    kills = 0
    for moment in ("before", "after"):
        for number in itertools.count(1, each):
            node, used_uuid = a_node(before, after)
            on_call = kill_at(number, moment)
            node.gpu_driver.on_call = partial(_driver_call, on_call)
            node.own_layout.on_call = partial(_api_call, on_call)
            try:
                await reconcile_until_settled(node)
            except AgentKilledError:
                kills += 1
            else:
                break
            node.gpu_driver.on_call = lambda _number, _name, _when: None
            node.own_layout.on_call = lambda _name, _when: None
            await reconcile_until_settled(node)
            placements = {(placement.profile, placement.start) for placement in node.layout()}
            assert placements == set(after), (moment, number)
            uuids = [instance.uuid for instance in node.gpu_driver.gpus[0].instances]
            assert used_uuid is None or used_uuid in uuids, (moment, number)
    return kills


@pytest.mark.parametrize("name", ["another in its place", "beside one that is held"])
async def test_wherever_an_agent_dies_the_next_one_reaches_the_desired_layout(name: str) -> None:
    assert await kill_everywhere(*TRANSITIONS[name]) > 100


@pytest.mark.long
@pytest.mark.parametrize("each", [10, *full(1)])
async def test_every_transition_is_completed_after_every_kill(each: int) -> None:
    kills = 0
    for before, after in TRANSITIONS.values():
        kills += await kill_everywhere(before, after, each)
    assert kills > 1000 // each
