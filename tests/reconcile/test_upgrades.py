"""Turns before and after an upgrade of the operator, and around the answer of a hub."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.reasons import RevisionReason
from tessera.api.recipe import Platform
from tessera.domain.names import SERVING_GATE, UPDATE_ANNOTATION
from tessera.domain.observed.snapshot import Resolution, RevisionQuery
from tessera.resources.api_resources import DEPLOYMENTS, INFERENCE_SERVICES, PODS
from tessera.resources.manifest import ObjectKey
from tests.memory_operator import CHAT, DEPLOYMENT, MemoryOperator, add_pool_and_node

ONE, TWO = "1" * 40, "2" * 40


class Hub:
    """Says what `main` means now; holds its answer back while it is closed."""

    def __init__(self) -> None:
        self.commit: str | None = ONE
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[RevisionQuery] = []

    async def resolve(self, question: RevisionQuery) -> Resolution:
        self.asked.append(question)
        await self.open.wait()
        reason = RevisionReason.REVISION_RESOLVED if self.commit else RevisionReason.HUB_UNREACHABLE
        return Resolution(self.commit, reason, "the hub's words")


@pytest.fixture
async def hub() -> Hub:
    return Hub()


@pytest.fixture
async def fleet(hub: Hub) -> MemoryOperator:
    made = MemoryOperator(hub=hub)
    add_pool_and_node(made)
    return made


async def answered(fleet: MemoryOperator) -> None:
    """A turn that asks, and the one after the answer."""
    fleet.answered.clear()
    await fleet.reconcile()
    async with asyncio.timeout(5):
        await fleet.answered.wait()
    await fleet.reconcile()


def annotate(fleet: MemoryOperator, value: str) -> None:
    metadata = {**fleet.body(CHAT)["metadata"], "annotations": {UPDATE_ANNOTATION: value}}
    fleet.cluster.put(INFERENCE_SERVICES, {"metadata": metadata}, "kubectl-annotate")


def revision(fleet: MemoryOperator) -> str | None:
    container = fleet.body(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    told = [one for one in container["args"] if one.startswith("--revision=")]
    return told[0].partition("=")[2] if told else None


def template(fleet: MemoryOperator) -> dict[str, Any]:
    found: dict[str, Any] = fleet.body(DEPLOYMENT)["spec"]["template"]
    return found


def update(fleet: MemoryOperator) -> str:
    conditions = fleet.body(CHAT)["status"]["conditions"]
    return str(next(one["reason"] for one in conditions if one["type"] == "UpdateAvailable"))


async def test_nothing_is_deployed_before_the_hub_has_answered_and_no_turn_waits(
    fleet: MemoryOperator, hub: Hub
) -> None:
    hub.open.clear()
    fleet.serve()
    await fleet.reconcile()
    await fleet.reconcile()
    assert DEPLOYMENT not in fleet.cluster.objects
    hub.open.set()
    await answered(fleet)
    assert revision(fleet) == ONE
    assert len(hub.asked) == 1


async def test_a_restarted_operator_keeps_the_commit_and_asks_nothing(
    fleet: MemoryOperator, hub: Hub
) -> None:
    fleet.serve()
    await answered(fleet)
    hub.commit = TWO
    fleet.restart()
    await fleet.reconcile()
    await fleet.reconcile()
    assert (revision(fleet), len(hub.asked)) == (ONE, 1)


async def test_the_annotation_pins_anew_and_leaves_the_deployment_until_the_answer(
    fleet: MemoryOperator, hub: Hub
) -> None:
    fleet.serve()
    await answered(fleet)
    hub.commit = TWO
    hub.open.clear()
    annotate(fleet, "now")
    await fleet.reconcile()
    assert revision(fleet) == ONE
    hub.open.set()
    await answered(fleet)
    assert revision(fleet) == TWO
    fleet.restart()
    await fleet.reconcile()
    assert (revision(fleet), len(hub.asked)) == (TWO, 2)


async def test_without_an_answer_the_revision_is_used_as_given(
    fleet: MemoryOperator, hub: Hub
) -> None:
    hub.commit = None
    fleet.serve(model={"uri": "hf://meta-llama/Llama-3.2-1B-Instruct", "revision": "release"})
    await answered(fleet)
    assert revision(fleet) == "release"
    assert fleet.body(CHAT)["status"]["model"]["reason"] == "HubUnreachable"


async def test_an_upgraded_operator_writes_no_deployment_until_it_is_asked(
    fleet: MemoryOperator,
) -> None:
    fleet.serve()
    await answered(fleet)
    before = template(fleet)
    fleet.builder, fleet.platform = 2, Platform(hub_endpoint="https://hub.example.org")
    fleet.restart()
    await fleet.reconcile()
    assert (template(fleet), update(fleet)) == (before, "NewTemplateAvailable")
    assert fleet.body(CHAT)["status"]["podTemplateVersion"]["builderVersion"] == 1
    annotate(fleet, "now")
    await answered(fleet)
    assert update(fleet) == "UpToDate"
    assert fleet.body(CHAT)["status"]["podTemplateVersion"]["builderVersion"] == 2


async def test_an_unchanged_fleet_with_a_recipe_and_a_pin_costs_no_write(
    fleet: MemoryOperator,
) -> None:
    fleet.serve()
    await answered(fleet)
    await fleet.reconcile()
    assert (await fleet.reconcile()).writes == 0


async def test_a_turn_that_changes_the_pods_does_not_call_them_settled(
    fleet: MemoryOperator,
) -> None:
    fleet.serve(replicas=1)
    await answered(fleet)
    run(fleet)
    await fleet.reconcile()
    assert progressing(fleet) == "RolloutComplete"
    fleet.serve(replicas=1, engine={"extraArgs": ["--max-logprobs=5"]})
    await fleet.reconcile()
    assert progressing(fleet) == "Starting"


def progressing(fleet: MemoryOperator) -> str:
    conditions = fleet.body(CHAT)["status"]["conditions"]
    return str(next(one["reason"] for one in conditions if one["type"] == "Progressing"))


def run(fleet: MemoryOperator) -> None:
    """What controller and kubelet do with the Deployment as it is now."""
    deployment = fleet.body(DEPLOYMENT)
    seen = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
    metadata = {"name": DEPLOYMENT.name, "namespace": "team-a"}
    fleet.cluster.put(DEPLOYMENTS, {"metadata": metadata, "status": seen}, "controller")
    labels = {**deployment["spec"]["template"]["metadata"]["labels"], "pod-template-hash": "one"}
    ready = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T11:59:00Z"}
        for kind in ("Ready", "ContainersReady", SERVING_GATE)
    ]
    pod = {
        "metadata": {
            "name": "chat-0",
            "namespace": "team-a",
            "labels": labels,
            "creationTimestamp": "2026-11-20T11:58:00Z",
        },
        "status": {"podIP": "127.0.0.7", "conditions": ready},
    }
    fleet.cluster.put(PODS, pod, "kubelet")


async def test_services_of_one_model_ask_the_hub_once_for_a_while(
    fleet: MemoryOperator, hub: Hub
) -> None:
    fleet.serve()
    await answered(fleet)
    fleet.serve("twin")
    await fleet.reconcile()
    twin = fleet.body(ObjectKey(CHAT.plural, CHAT.namespace, "twin"))
    assert twin["status"]["model"]["revision"] == ONE
    assert len(hub.asked) == 1
    fleet.at += timedelta(seconds=11)
    await fleet.reconcile()
    fleet.serve("late")
    await answered(fleet)
    assert len(hub.asked) == 2
