"""What else the cluster in memory does as Kubernetes does it: nodes, kubelets, gates, clocks."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tessera.api.ref import Ref
from tessera.resources.api_resources import HORIZONTAL_POD_AUTOSCALERS
from tests.floors.fleet import NAMESPACE, FloorFleet, add_gpus

CHAT = Ref(NAMESPACE, "chat")


@pytest.fixture
async def fleet() -> AsyncIterator[FloorFleet]:
    """Serve two replicas on two nodes of a full pool."""
    fleet = FloorFleet.begin()
    add_gpus(fleet, "a100", 1)
    fleet.add_node("a100", whole=1, name="other")
    fleet.serve("chat", 2)
    await fleet.settle()
    assert fleet.healthy("chat") == 2, fleet.describe()
    yield fleet
    await fleet.close()


async def test_pods_of_a_silent_node_are_not_ready_after_50_s_and_serve_on_when_it_is_back(
    fleet: FloorFleet,
) -> None:
    names = {key.name for key, _ in fleet.kube.pods()}
    fleet.kube.node_lifecycle.leave("other")
    await fleet.run(40)
    assert fleet.healthy("chat") == 2
    await fleet.run(60)
    assert (fleet.healthy("chat"), fleet.kube.node("other").kubelet_ready) == (1, False)
    fleet.kube.node_lifecycle.come_back("other")
    await fleet.run(5)
    assert (fleet.healthy("chat"), fleet.judge.findings) == (2, [])
    assert {key.name for key, _ in fleet.kube.pods()} == names


async def test_pods_of_a_silent_node_are_evicted_after_5_minutes_and_end_with_its_return(
    fleet: FloorFleet,
) -> None:
    (evicted,) = [key for key, pod in fleet.kube.pods() if pod.node == "other"]
    fleet.kube.node_lifecycle.leave("other")
    await fleet.run(600)
    assert fleet.kube.pod(evicted).terminating
    fleet.kube.node_lifecycle.come_back("other")
    await fleet.settle()
    assert (fleet.healthy("chat"), fleet.judge.findings) == (2, [])
    assert evicted not in fleet.kube.objects


async def test_a_pod_that_fails_is_replaced_and_holds_no_device(fleet: FloorFleet) -> None:
    key = next(key for key, _ in fleet.kube.pods())
    fleet.kube.fail(key)
    await fleet.settle()
    assert (fleet.healthy("chat"), fleet.judge.findings) == (2, [])
    assert fleet.kube.has_ended(key)


async def test_a_quota_does_not_count_a_pod_that_failed(fleet: FloorFleet) -> None:
    fleet.set_quota(2)
    fleet.kube.fail(next(key for key, _ in fleet.kube.pods()))
    await fleet.settle()
    assert fleet.healthy("chat") == 2, fleet.describe()


async def test_an_engine_that_exits_starts_again_in_its_pod(fleet: FloorFleet) -> None:
    names = {key.name for key, _ in fleet.kube.pods()}
    fleet.kube.crash(next(key for key, _ in fleet.kube.pods()))
    await fleet.run(5)
    assert fleet.healthy("chat") == 1
    await fleet.settle()
    assert (fleet.healthy("chat"), fleet.judge.findings) == (2, [])
    assert {key.name for key, _ in fleet.kube.pods()} == names


async def test_a_taker_has_each_device_that_becomes_free(fleet: FloorFleet) -> None:
    fleet.kube.takers.add("a100")
    fleet.kube.fail(next(key for key, _ in fleet.kube.pods()))
    await fleet.settle()
    assert (fleet.healthy("chat"), fleet.taken_labels()) == (1, ["a100"])
    fleet.kube.takers.clear()
    fleet.free_devices("a100")
    await fleet.settle()
    assert fleet.healthy("chat") == 2


async def test_an_autoscaler_that_ends_leaves_the_number_its_own(fleet: FloorFleet) -> None:
    (deployment,) = fleet.deployments("chat")
    fleet.autoscale(deployment, 1)
    assert fleet.objects(HORIZONTAL_POD_AUTOSCALERS)
    await fleet.kube.step()
    fleet.end_autoscaler(deployment)
    assert not fleet.objects(HORIZONTAL_POD_AUTOSCALERS)
    fields = fleet.kube.wire_body(deployment)["metadata"]["managedFields"]
    owners = {entry["manager"] for entry in fields if "f:replicas" in entry["fieldsV1"]["f:spec"]}
    assert owners == {"kube-controller-manager"}


async def test_a_step_of_the_clock_lets_no_time_pass(fleet: FloorFleet) -> None:
    before = fleet.kube.steady
    fleet.kube.step_clock(timedelta(hours=-1))
    await fleet.run(60)
    assert fleet.kube.steady - before == timedelta(seconds=60)
    assert fleet.healthy("chat") == 2


async def test_the_operator_learns_late_of_what_changes(fleet: FloorFleet) -> None:
    fleet.kube.watch_lag = timedelta(seconds=30)
    fleet.add_pool("late", "OnDemand")
    await fleet.run(20)
    key = next(key for key in fleet.kube.objects if key.name == "late")
    assert "status" not in fleet.kube.objects[key]
    await fleet.run(20)
    assert "status" in fleet.kube.objects[key]


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [({}, "RolloutComplete"), ({"verdict": "Failed"}, "RolledBack")],
    ids=["passed", "failed"],
)
async def test_jobs_of_a_gate_ask_both_versions_and_judge(
    verdict: dict[str, object], outcome: str
) -> None:
    fleet = FloorFleet.begin()
    add_gpus(fleet, "a100", 2)
    fleet.kube.gate_verdict = verdict
    fleet.serve_gated("chat", 1)
    await fleet.settle()
    fleet.edit_version("chat", 7)
    await fleet.run(600)
    assert fleet.condition("chat", "Progressing")["reason"] == outcome, fleet.describe()
    assert (fleet.healthy("chat"), fleet.judge.findings) == (1, [])
    await fleet.close()
