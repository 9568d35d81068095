"""A tenant who may write pods: labels taken off, decoys, orphans, notebooks on slices."""

from typing import Any

import pytest

from tessera.domain.cost.device_use import CostState
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.manifest import ObjectKey
from tests.hostile.twin import HOSTILE, PERIOD, Fleet, Twins

SLICE = "nvidia.com/mig-1g.10gb"


def serve(fleet: Fleet) -> None:
    """Let a neighbor and the hostile tenant serve on an A100 in seven slices."""
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_pool("h100", "10")
    fleet.add_node("h100-0", "h100", whole=8, product="NVIDIA-H100-80GB-HBM3")
    for namespace in ("team-a", HOSTILE):
        fleet.add_budget(namespace, "1000")
        fleet.serve("chat", namespace, replicas=2)


def unlabel(fleet: Fleet, _: int) -> None:
    """Take the labels off that no selector needs, from every pod as soon as it exists."""
    for key in fleet.pods_of(HOSTILE):
        labels = fleet.cluster.objects[key]["metadata"]["labels"]
        for name in ("app.kubernetes.io/component", "app.kubernetes.io/managed-by"):
            labels.pop(name, None)
        fleet.cluster.touch(key)


async def charge(twins: Twins) -> None:
    """Charge both to the same moment: where a node changed, all time until then is charged."""
    while any(fleet.bill.as_of == fleet.at - PERIOD for fleet in twins.both):
        await twins.run(1)
    for fleet in twins.both:
        fleet.add_node("a100-1", "a100", {"1g.10gb": 7})
    await twins.run(1)


async def test_pods_without_their_labels_cost_and_count_as_before() -> None:
    twins = Twins(serve)
    await twins.run(20, unlabel)
    await charge(twins)
    twins.assert_equal()
    assert twins.hostile.spent(HOSTILE) == twins.peaceful.spent(HOSTILE) > 0
    assert twins.hostile.bill.lines == twins.peaceful.bill.lines


def released(fleet: Fleet, cycle: int) -> None:
    """Take a label off that the ReplicaSet selects by, which releases the pod."""
    if cycle != 10:
        return
    key = fleet.pods_of(HOSTILE)[0]
    meta = fleet.cluster.objects[key]["metadata"]
    del meta["labels"]["tessera.dev/service"], meta["ownerReferences"]
    fleet.cluster.touch(key)


async def test_a_pod_that_its_replica_set_released_is_charged_until_it_ends() -> None:
    twins = Twins(serve)
    await twins.run(30, released)
    await charge(twins)
    twins.assert_equal()
    hostile, peaceful = twins.both
    assert hostile.spent(HOSTILE) > peaceful.spent(HOSTILE) * 1.2
    lines = {line: nanos for line, nanos in hostile.bill.lines.items() if nanos}
    assert {line.namespace for line in lines if line.state is CostState.UNMANAGED} == {HOSTILE}


DECOY = {
    "app.kubernetes.io/component": "engine",
    "tessera.dev/service": "chat",
    "tessera.dev/variant": "a100-1g-10gb",
    "pod-template-hash": "two",
}


async def decoys(devices: dict[str, int], owner: dict[str, Any] | None = None) -> Fleet:
    """Let him add 14 pods that no node takes, then a neighbor a service; compare with the twin."""

    def act(fleet: Fleet, cycle: int) -> None:
        for index in range(14 if cycle == 3 else 0):
            fleet.run_pod(
                f"d{index}",
                labels=DECOY,
                devices=devices,
                node_selector={"pool": "nowhere"},
                owner=owner,
            )
        if cycle == 6:
            for each in twins.both:
                each.serve("later", "team-a", replicas=2)

    twins = Twins(serve)
    await twins.run(12, act)
    await charge(twins)
    twins.assert_equal()
    later = twins.hostile.body(ObjectKey("inferenceservices", "team-a", "later"))
    assert later["status"]["variant"]["pool"] == "a100"
    return twins.hostile


@pytest.mark.parametrize("devices", [{}, {SLICE: 1}], ids=["without devices", "never bound"])
async def test_decoys_hold_no_room_and_get_no_gate(devices: dict[str, int]) -> None:
    fleet = await decoys(devices)
    status = fleet.body(ObjectKey("pods", HOSTILE, "d0"))["status"]
    types = {condition["type"] for condition in status.get("conditions", ())}
    assert "tessera.dev/serving" not in types
    chat = fleet.body(ObjectKey("inferenceservices", HOSTILE, "chat"))["status"]
    assert "14" not in str(chat["conditions"])


async def test_pods_of_a_replica_set_that_is_named_alike_hold_no_room() -> None:
    name = "chat-a100-1g-10gb-two"
    owner = {"kind": "ReplicaSet", "name": name, "uid": "uid-two", "controller": True}
    await decoys({SLICE: 1}, owner)


async def test_slices_of_a_notebook_are_billed_and_not_offered() -> None:
    fleet = Fleet()
    serve(fleet)
    for _ in range(4):
        await fleet.cycle()
    for index in range(2):
        fleet.run_pod(f"notebook-{index}", devices={SLICE: 1}, node_selector={"pool": "a100"})
    for _ in range(4):
        await fleet.cycle()
    fleet.serve("later", "team-a", replicas=2)
    for _ in range(4):
        await fleet.cycle()
    status = fleet.body(ObjectKey("inferenceservices", "team-a", "later"))["status"]
    # Of seven slices four serve and two are the notebooks'.
    assert status["variant"]["pool"] == "h100"
    lines = fleet.bill.lines
    assert {line.namespace for line in lines if line.state is CostState.UNMANAGED} == {HOSTILE}


def orphan(fleet: Fleet) -> ObjectKey:
    """`kubectl delete inferenceservice chat --cascade=orphan`."""
    fleet.cluster.discard(ObjectKey(INFERENCE_SERVICES.plural, HOSTILE, "chat"))
    objects = fleet.cluster.objects
    (deployment,) = [key for key in objects if key[:2] == ("deployments", HOSTILE)]
    del objects[deployment]["metadata"]["ownerReferences"]
    fleet.cluster.touch(deployment)
    return deployment


def hold(fleet: Fleet) -> ObjectKey:
    """Delete the service, which a finalizer of his own keeps."""
    service = ObjectKey(INFERENCE_SERVICES.plural, HOSTILE, "chat")
    meta = fleet.cluster.objects[service]["metadata"]
    meta |= {"finalizers": ["evil/x"], "deletionTimestamp": "2026-11-20T12:00:30Z"}
    fleet.cluster.touch(service)
    (deployment,) = [key for key in fleet.cluster.objects if key[:2] == ("deployments", HOSTILE)]
    return deployment


@pytest.mark.parametrize("remove", [orphan, hold])
async def test_what_outlives_its_service_is_drained_even_when_scaled(remove: Any) -> None:
    deployments: list[ObjectKey] = []

    def act(fleet: Fleet, cycle: int) -> None:
        if cycle == 10:
            deployments.append(remove(fleet))
        if cycle in (12, 20):
            fleet.cluster.objects[deployments[0]]["spec"]["replicas"] = 5
            fleet.cluster.touch(deployments[0])

    twins = Twins(serve)
    await twins.run(40, act)
    await charge(twins)
    twins.assert_equal()
    assert twins.hostile.replicas_of(HOSTILE) == 0
    assert twins.hostile.pods_of(HOSTILE) == []


async def test_a_service_that_a_finalizer_keeps_terminates_in_all_of_its_conditions() -> None:
    fleet = Fleet()
    serve(fleet)
    for cycle in range(20):
        if cycle == 10:
            hold(fleet)
        await fleet.cycle()
    status = fleet.body(ObjectKey("inferenceservices", HOSTILE, "chat"))["status"]
    reasons = {each["type"]: each["reason"] for each in status["conditions"]}
    assert (reasons["Ready"], reasons["Progressing"]) == ("Terminating", "Terminating")
    assert status["replicas"] == 0
    await fleet.cycle()
    assert fleet.outcome is not None
    assert fleet.outcome.writes == 0


async def test_a_budget_without_services_says_that_it_is_exhausted() -> None:
    fleet = Fleet()
    serve(fleet)
    fleet.run_pod("notebook", devices={SLICE: 1}, node_selector={"pool": "a100"})
    for _ in range(10):
        await fleet.cycle()
    fleet.cluster.discard(ObjectKey(INFERENCE_SERVICES.plural, HOSTILE, "chat"))
    fleet.add_budget(HOSTILE, "0.0001")
    await fleet.cycle()
    status = fleet.body(ObjectKey("tenantbudgets", "", HOSTILE))["status"]
    (condition,) = [each for each in status["conditions"] if each["type"] == "WithinBudget"]
    assert (condition["status"], condition["reason"]) == ("False", "BudgetExhausted")


async def test_what_only_costs_is_in_the_forecast_and_held_against_new_replicas() -> None:
    fleet = Fleet()
    serve(fleet)
    fleet.run_pod("notebook", "team-b", devices={SLICE: 1}, node_selector={"pool": "a100"})
    await fleet.cycle()
    fleet.add_budget("team-b", "5")
    await fleet.cycle()
    assert fleet.outcome is not None
    view = next(each for each in fleet.outcome.plan.budgets if each.budget.name == "team-b")
    assert view.state is not None
    (window,) = view.state.current_windows
    # 12 hours are left of the day, and a 1g.10gb slice costs 15/112 of the GPU's 2 USD an hour.
    assert window.min_replicas_cost == pytest.approx(12 * 2 * 15 / 112 * 1e9, rel=0.01)
    assert window.forecast == window.spent + window.min_replicas_cost
