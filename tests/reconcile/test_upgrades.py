"""Cycles before and after an upgrade of the operator, and around the answer of a hub."""

import asyncio
import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest

from tessera.api.reasons import RevisionReason
from tessera.api.template_version import Platform
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import SERVING_GATE, UPDATE_ANNOTATION
from tessera.domain.observed.snapshot import Resolution, RevisionQuery
from tessera.domain.placement.pod_template import UNPLANNED
from tessera.domain.vllm.flag_classes import FlagClass, FlagRule, flag_rules
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tessera.resources.manifest import ObjectKey
from tests.memory_operator import (
    CHAT,
    DEPLOYMENT,
    MemoryOperator,
    add_pool_and_node,
    replica_of,
)

ONE, TWO = "1" * 40, "2" * 40


class ControlledHub:
    """Resolves `main` to a commit; waits with its answer while it is closed."""

    def __init__(self) -> None:
        self.commit: str | None = ONE
        self.open = asyncio.Event()
        self.open.set()
        self.queries: list[RevisionQuery] = []

    async def resolve(self, query: RevisionQuery) -> Resolution:
        self.queries.append(query)
        await self.open.wait()
        reason = RevisionReason.REVISION_RESOLVED if self.commit else RevisionReason.HUB_UNREACHABLE
        return Resolution(self.commit, reason, "the hub's words")


@pytest.fixture
async def hub() -> ControlledHub:
    return ControlledHub()


@pytest.fixture
async def fleet(hub: ControlledHub) -> MemoryOperator:
    memory_operator = MemoryOperator(hub=hub)
    add_pool_and_node(memory_operator)
    return memory_operator


async def reconcile_until_answered(fleet: MemoryOperator) -> None:
    """Run the cycle that asks the hub, and the cycle after the answer."""
    fleet.answered.clear()
    await fleet.reconcile()
    async with asyncio.timeout(60):
        await fleet.answered.wait()
    await fleet.reconcile()


def annotate(fleet: MemoryOperator, value: str) -> None:
    metadata = {**fleet.body(CHAT)["metadata"], "annotations": {UPDATE_ANNOTATION: value}}
    fleet.cluster.put(INFERENCE_SERVICES, {"metadata": metadata}, "kubectl-annotate")


def revision(fleet: MemoryOperator) -> str | None:
    container = fleet.newest_deployment()["spec"]["template"]["spec"]["containers"][0]
    revisions = [argument for argument in container["args"] if argument.startswith("--revision=")]
    return revisions[0].partition("=")[2] if revisions else None


def template(fleet: MemoryOperator) -> dict[str, Any]:
    pod_template: dict[str, Any] = fleet.newest_deployment()["spec"]["template"]
    return pod_template


def update(fleet: MemoryOperator) -> str:
    conditions = fleet.body(CHAT)["status"]["conditions"]
    return str(
        next(
            condition["reason"]
            for condition in conditions
            if condition["type"] == "UpdateAvailable"
        )
    )


async def test_nothing_is_deployed_before_the_hub_has_answered_and_no_cycle_waits(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    hub.open.clear()
    fleet.serve()
    await fleet.reconcile()
    await fleet.reconcile()
    assert DEPLOYMENT not in fleet.cluster.objects
    hub.open.set()
    await reconcile_until_answered(fleet)
    assert revision(fleet) == ONE
    assert len(hub.queries) == 1


async def test_a_pin_removed_from_the_deployment_before_a_status_has_it_is_back(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    """Without memory of it the next plan would take the Deployment for an unpinned one."""
    fleet.serve()
    fleet.cluster.refusals[CHAT] = "503 busy"
    await reconcile_until_answered(fleet)
    before = copy.deepcopy(fleet.body(DEPLOYMENT)["metadata"]["annotations"])
    fleet.at += timedelta(minutes=1)  # until then the answer is forgotten
    await fleet.reconcile()
    fleet.cluster.remove(DEPLOYMENT, "metadata", "annotations")
    await fleet.reconcile()
    assert fleet.body(DEPLOYMENT)["metadata"]["annotations"] == before
    assert (revision(fleet), len(hub.queries)) == (ONE, 1)


async def test_a_restarted_operator_keeps_the_commit_before_a_status_has_it(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    fleet.serve()
    fleet.cluster.refusals[CHAT] = "503 busy"
    await reconcile_until_answered(fleet)
    hub.commit = TWO
    fleet.restart()
    del fleet.cluster.refusals[CHAT]
    await fleet.reconcile()
    assert (revision(fleet), len(hub.queries)) == (ONE, 1)


async def test_a_restarted_operator_keeps_the_commit_and_asks_nothing(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    fleet.serve()
    await reconcile_until_answered(fleet)
    hub.commit = TWO
    fleet.restart()
    await fleet.reconcile()
    await fleet.reconcile()
    assert (revision(fleet), len(hub.queries)) == (ONE, 1)


async def test_the_annotation_pins_again_and_leaves_the_deployment_until_the_answer(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    fleet.serve()
    await reconcile_until_answered(fleet)
    hub.commit = TWO
    hub.open.clear()
    annotate(fleet, "now")
    await fleet.reconcile()
    assert revision(fleet) == ONE
    hub.open.set()
    await reconcile_until_answered(fleet)
    assert revision(fleet) == TWO
    fleet.restart()
    await fleet.reconcile()
    assert (revision(fleet), len(hub.queries)) == (TWO, 2)


async def test_without_an_answer_the_revision_is_used_as_given(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    hub.commit = None
    fleet.serve(model={"uri": "hf://meta-llama/Llama-3.2-1B-Instruct", "revision": "release"})
    await reconcile_until_answered(fleet)
    assert revision(fleet) == "release"
    assert fleet.body(CHAT)["status"]["model"]["reason"] == "HubUnreachable"


async def test_an_upgraded_operator_writes_no_deployment_until_an_update_is_requested(
    fleet: MemoryOperator,
) -> None:
    fleet.serve()
    await reconcile_until_answered(fleet)
    before = template(fleet)
    fleet.builder, fleet.platform = 2, Platform(hub_endpoint="https://hub.example.org")
    fleet.restart()
    await fleet.reconcile()
    assert (template(fleet), update(fleet)) == (before, "NewTemplateAvailable")
    assert fleet.body(CHAT)["status"]["podTemplateVersion"]["builderVersion"] == 1
    annotate(fleet, "now")
    await reconcile_until_answered(fleet)
    assert update(fleet) == "UpToDate"
    await fleet.reconcile()
    assert fleet.body(CHAT)["status"]["podTemplateVersion"]["builderVersion"] == 2
    assert template(fleet) != before


async def test_an_unchanged_fleet_with_a_pinned_revision_costs_no_write(
    fleet: MemoryOperator,
) -> None:
    fleet.serve()
    await reconcile_until_answered(fleet)
    await fleet.reconcile()
    assert (await fleet.reconcile()).writes == 0


async def test_a_cycle_that_changes_the_pods_does_not_report_the_rollout_complete(
    fleet: MemoryOperator,
) -> None:
    fleet.serve(replicas=1)
    await reconcile_until_answered(fleet)
    complete_rollout(fleet)
    await fleet.reconcile()
    assert progressing(fleet) == "RolloutComplete"
    fleet.serve(replicas=1, engine={"extraArgs": ["--max-logprobs=5"]})
    await fleet.reconcile()
    assert progressing(fleet) == "RollingOut"


def progressing(fleet: MemoryOperator) -> str:
    conditions = fleet.body(CHAT)["status"]["conditions"]
    return str(
        next(condition["reason"] for condition in conditions if condition["type"] == "Progressing")
    )


def complete_rollout(fleet: MemoryOperator) -> None:
    """Complete the rollout of the Deployment, as controller and kubelet do."""
    seen = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
    metadata = {"name": DEPLOYMENT.name, "namespace": "team-a"}
    fleet.cluster.put(DEPLOYMENTS, {"metadata": metadata, "status": seen}, "controller")
    ready = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T11:59:00Z"}
        for kind in ("Ready", "ContainersReady", SERVING_GATE)
    ]
    status = {"podIP": "127.0.0.7", "conditions": ready}
    fleet.cluster.put(PODS, {**replica_of(DEPLOYMENT, "chat-0"), "status": status}, "kubelet")


async def test_services_of_one_model_ask_the_hub_once_for_a_while(
    fleet: MemoryOperator, hub: ControlledHub
) -> None:
    fleet.serve()
    await reconcile_until_answered(fleet)
    fleet.serve("twin")
    await fleet.reconcile()
    twin = fleet.body(ObjectKey(CHAT.plural, CHAT.namespace, "twin"))
    assert twin["status"]["model"]["revision"] == ONE
    assert len(hub.queries) == 1
    fleet.at += timedelta(seconds=11)
    await fleet.reconcile()
    fleet.serve("late")
    await reconcile_until_answered(fleet)
    assert len(hub.queries) == 2


@pytest.fixture
def refuses_seed(fleet: MemoryOperator, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return how to restart the operator as one that refuses a flag that it accepted before."""

    def upgrade() -> None:
        rules = cast("dict[str, FlagRule]", flag_rules())
        refused = FlagRule(FlagClass.REFUSED, "changes the size of the cache; remove it")
        monkeypatch.setitem(rules, "seed", refused)
        fleet.restart()

    return upgrade


def accepted(fleet: MemoryOperator) -> tuple[str, str, str]:
    (condition,) = (
        each for each in fleet.body(CHAT)["status"]["conditions"] if each["type"] == "Accepted"
    )
    return condition["status"], condition["reason"], condition["message"]


async def test_a_service_with_a_flag_that_is_newly_refused_goes_on_with_a_warning(
    fleet: MemoryOperator, refuses_seed: Callable[[], None]
) -> None:
    fleet.serve(engine={"extraArgs": ["--enforce-eager", "--seed=1"]}, replicas=1)
    await reconcile_until_answered(fleet)
    before = copy.deepcopy(fleet.newest_deployment())
    refuses_seed()
    await fleet.reconcile()
    assert fleet.newest_deployment()["spec"] == before["spec"]
    status, reason, message = accepted(fleet)
    assert (status, reason) == ("True", "UnsupportedFlags")
    assert "extraArgs: --seed changes the size of the cache; remove it (vLLM 0.32.0). " in message

    fleet.serve(engine={"extraArgs": ["--enforce-eager", "--seed=1"]}, replicas=2)
    await fleet.reconcile()
    assert fleet.newest_deployment()["spec"]["replicas"] == 2, "it is scaled as before"
    assert fleet.newest_deployment()["spec"]["template"] == before["spec"]["template"]


async def test_a_newly_refused_flag_is_refused_in_an_edit_of_the_flags_and_replicas_stay(
    fleet: MemoryOperator, refuses_seed: Callable[[], None]
) -> None:
    fleet.serve(engine={"extraArgs": ["--seed=1"]})
    await reconcile_until_answered(fleet)
    before = copy.deepcopy(fleet.newest_deployment())
    refuses_seed()
    fleet.serve(engine={"extraArgs": ["--seed=1", "--enforce-eager"]})
    await fleet.reconcile()
    assert accepted(fleet)[:2] == ("False", "ReservedFlag")
    assert fleet.newest_deployment()["spec"] == before["spec"]

    fleet.serve(engine={"extraArgs": ["--enforce-eager"]})
    await fleet.reconcile()
    assert accepted(fleet)[:2] == ("True", "Valid")


async def test_a_newly_refused_variable_goes_on_where_it_runs(
    fleet: MemoryOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.serve(podTemplate={"env": [{"name": "OWN", "value": "1"}]})
    await reconcile_until_answered(fleet)
    before = copy.deepcopy(fleet.newest_deployment())
    monkeypatch.setitem(UNPLANNED, "OWN", "the size of the cache; remove it")
    fleet.restart()
    await fleet.reconcile()
    assert accepted(fleet)[:2] == ("True", "UnsupportedFlags")
    assert "spec.podTemplate.env[0]: OWN changes the size of the cache" in accepted(fleet)[2]
    assert fleet.newest_deployment()["spec"] == before["spec"]


async def test_a_new_service_with_a_newly_refused_flag_is_refused(
    fleet: MemoryOperator, refuses_seed: Callable[[], None]
) -> None:
    refuses_seed()
    fleet.serve(engine={"extraArgs": ["--seed=1"]})
    await fleet.reconcile()
    assert accepted(fleet)[:2] == ("False", "ReservedFlag")
    assert not [key for key in fleet.cluster.objects if key.plural == DEPLOYMENTS.plural]
