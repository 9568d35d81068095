"""Turns before and after an upgrade of the operator, and around the answer of a hub."""

import asyncio
from typing import Any

import pytest

from tessera.api.recipe import Platform
from tessera.domain.names import UPDATE_ANNOTATION
from tessera.domain.reasons import Pinned
from tessera.domain.snapshot import Question, Resolution
from tessera.resources.kinds import INFERENCE_SERVICES
from tests.reconcile.test_turns import CHAT, DEPLOYMENT, World, stock

ONE, TWO = "1" * 40, "2" * 40


class Hub:
    """Says what `main` means now; holds its answer back while it is closed."""

    def __init__(self) -> None:
        self.commit: str | None = ONE
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[Question] = []

    async def resolve(self, question: Question) -> Resolution:
        self.asked.append(question)
        await self.open.wait()
        reason = Pinned.COMMIT if self.commit else Pinned.HUB_UNREACHABLE
        return Resolution(question, self.commit, reason, "the hub's words")


@pytest.fixture
async def hub() -> Hub:
    return Hub()


@pytest.fixture
async def world(hub: Hub) -> World:
    made = World(hub=hub)
    stock(made)
    return made


async def answered(world: World) -> None:
    """A turn that asks, and the one after the answer."""
    world.answered.clear()
    await world.turn()
    async with asyncio.timeout(5):
        await world.answered.wait()
    await world.turn()


def annotate(world: World, value: str) -> None:
    metadata = {**world.body(CHAT)["metadata"], "annotations": {UPDATE_ANNOTATION: value}}
    world.cluster.put(INFERENCE_SERVICES, {"metadata": metadata}, "kubectl-annotate")


def revision(world: World) -> str | None:
    container = world.body(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    told = [one for one in container["args"] if one.startswith("--revision=")]
    return told[0].partition("=")[2] if told else None


def template(world: World) -> dict[str, Any]:
    found: dict[str, Any] = world.body(DEPLOYMENT)["spec"]["template"]
    return found


def update(world: World) -> str:
    conditions = world.body(CHAT)["status"]["conditions"]
    return str(next(one["reason"] for one in conditions if one["type"] == "UpdateAvailable"))


async def test_nothing_is_deployed_before_the_hub_has_answered_and_no_turn_waits(
    world: World, hub: Hub
) -> None:
    hub.open.clear()
    world.serve()
    await world.turn()
    await world.turn()
    assert DEPLOYMENT not in world.cluster.objects
    hub.open.set()
    await answered(world)
    assert revision(world) == ONE
    assert len(hub.asked) == 1


async def test_a_restarted_operator_keeps_the_commit_and_asks_nothing(
    world: World, hub: Hub
) -> None:
    world.serve()
    await answered(world)
    hub.commit = TWO
    world.restart()
    await world.turn()
    await world.turn()
    assert (revision(world), len(hub.asked)) == (ONE, 1)


async def test_the_annotation_pins_anew_and_leaves_the_deployment_until_the_answer(
    world: World, hub: Hub
) -> None:
    world.serve()
    await answered(world)
    hub.commit = TWO
    hub.open.clear()
    annotate(world, "now")
    await world.turn()
    assert revision(world) == ONE
    hub.open.set()
    await answered(world)
    assert revision(world) == TWO
    world.restart()
    await world.turn()
    assert (revision(world), len(hub.asked)) == (TWO, 2)


async def test_without_an_answer_the_revision_is_used_as_given(world: World, hub: Hub) -> None:
    hub.commit = None
    world.serve(model={"uri": "hf://meta-llama/Llama-3.2-1B-Instruct", "revision": "release"})
    await answered(world)
    assert revision(world) == "release"
    assert world.body(CHAT)["status"]["model"]["reason"] == "HubUnreachable"


async def test_an_upgraded_operator_writes_no_deployment_until_it_is_asked(world: World) -> None:
    world.serve()
    await answered(world)
    before = template(world)
    world.builder, world.platform = 2, Platform(hub_endpoint="https://hub.example.org")
    world.restart()
    await world.turn()
    assert (template(world), update(world)) == (before, "NewerRecipe")
    assert world.body(CHAT)["status"]["recipe"]["builder"] == 1
    annotate(world, "now")
    await answered(world)
    assert update(world) == "Newest"
    assert world.body(CHAT)["status"]["recipe"]["builder"] == 2


async def test_an_unchanged_fleet_with_a_recipe_and_a_pin_costs_no_write(world: World) -> None:
    world.serve()
    await answered(world)
    await world.turn()
    assert (await world.turn()).writes == 0
