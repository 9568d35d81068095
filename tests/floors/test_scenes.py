"""Directed scenes: the shortest way to each known loss of healthy replicas, and what must hold."""

import json
from collections.abc import AsyncIterator, Callable

import pytest

from tessera.api.ref import Ref
from tessera.resources.api_resources import JOBS, PODS
from tests.floors.fleet import GPU, NAMESPACE, SLICE, FloorFleet, add_gpus, add_h100
from tests.floors.kube import PodTimes
from tests.reconcile.test_precision_files import AWQ, FILES, report_of, shape_of_files

FAST, SLOW = PodTimes(start=(10, 30)), PodTimes(start=(60, 100), end=(20, 25))
MINUTE = 60.0
CHAT = Ref(NAMESPACE, "chat")


@pytest.fixture
async def begin() -> AsyncIterator[Callable[..., FloorFleet]]:
    """Begin fleets that end with the test."""
    fleets: list[FloorFleet] = []

    def start(times: PodTimes = FAST, late_controllers: float = 0.0) -> FloorFleet:
        fleets.append(FloorFleet.begin(1, times, late_controllers=late_controllers))
        return fleets[-1]

    yield start
    for fleet in fleets:
        await fleet.close()


async def _serve(fleet: FloorFleet, floor: int, **spec: object) -> FloorFleet:
    """Serve chat with this floor, until all of it is healthy."""
    fleet.serve("chat", floor, **spec)
    await fleet.settle()
    assert fleet.healthy("chat") == floor, fleet.describe()
    return fleet


def _assert_floor_held(fleet: FloorFleet, floor: int) -> None:
    judge = fleet.judge
    lowest, seconds = judge.lowest[CHAT], 5 * judge.ticks_below_floor
    assert not judge.findings, f"{lowest} of {floor}, {seconds} s below: {judge.findings[:3]}"
    assert fleet.healthy("chat") >= floor, "\n".join(fleet.describe())


# F1


async def _broken_rollout(fleet: FloorFleet, variants: int) -> FloorFleet:
    """Return a fleet whose service of 4 replicas on so many full pools got a bad template."""
    for index, size in enumerate({1: (4,), 2: (2, 2), 3: (2, 1, 1)}[variants]):
        add_gpus(fleet, f"a100-{index}", size, "OnDemand" if index else "Reserved")
    await _serve(fleet, 4)
    fleet.break_template("chat")
    await fleet.run(5 * MINUTE)
    return fleet


@pytest.mark.parametrize("restart", [False, True], ids=["same", "restarted"])
@pytest.mark.parametrize("pools", [1, 2, 3])
async def test_a_bad_template_is_replaced_by_its_fix(
    pools: int, restart: bool, begin: Callable[..., FloorFleet]
) -> None:
    fleet = await _broken_rollout(begin(), pools)
    fleet.edit_template("chat", "fixed")
    if restart:
        await fleet.restart_operator()
    await fleet.run(30 * MINUTE)
    _assert_floor_held(fleet, 4)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize("pools", [1, 2, 3])
async def test_a_bad_template_is_taken_back(pools: int, begin: Callable[..., FloorFleet]) -> None:
    fleet = await _broken_rollout(begin(), pools)
    fleet.edit("chat", engine=None)
    await fleet.run(30 * MINUTE)
    _assert_floor_held(fleet, 4)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


# F2


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1)),
        pytest.param((2, 2)),
        pytest.param((1, 1, 1)),
    ],
    ids=str,
)
async def test_a_rollout_in_full_pools_takes_one_replica_at_a_time(
    sizes: tuple[int, ...], begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin()
    for index, size in enumerate(sizes):
        add_gpus(fleet, f"a100-{index}", size, "OnDemand" if index else "Reserved")
    await _serve(fleet, sum(sizes))
    fleet.edit_template("chat", "two")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, sum(sizes))
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize(
    ("floor", "times"),
    [
        pytest.param(2, FAST),
        pytest.param(4, SLOW),
    ],
    ids=["2", "4-slow-engines"],
)
async def test_a_quota_of_what_runs_takes_one_replica_at_a_time(
    floor: int, times: PodTimes, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin(times)
    add_gpus(fleet, "a100", floor)
    add_gpus(fleet, "a100-od", 2, "OnDemand")
    await _serve(fleet, floor)
    fleet.set_quota(floor)
    fleet.edit_template("chat", "two")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, floor)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


async def test_late_controllers_take_one_replica_at_a_time(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 2)
    add_gpus(fleet, "a100-od", 2, "OnDemand")
    await _serve(fleet, 2)
    fleet.late_controllers = 1.0
    fleet.edit_template("chat", "two")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, 2)


# F3


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [
        pytest.param(
            [{"window": "Month", "amount": "0.01", "tier": "OnDemand"}],
            None,
            id="tier",
        ),
        pytest.param([{"window": "Month", "amount": "0.01"}], None, id="month"),
        pytest.param([{"window": "Month", "amount": "100000"}], "0.5", id="gpus"),
    ],
)
@pytest.mark.parametrize("floor", [1, 2])
async def test_a_used_up_budget_keeps_the_floor_while_a_reserved_gpu_becomes_free(
    floor: int,
    limits: list[dict[str, str]],
    gpus: str | None,
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 1)
    add_gpus(fleet, "a100-od", 2, "OnDemand")
    fleet.take_devices("a100")
    await fleet.run(5)
    await _serve(fleet, floor)
    fleet.set_budget(limits, gpus)
    await fleet.run(2 * MINUTE)
    fleet.free_devices("a100")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, floor)


# F4, F9


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [
        ([{"window": "Month", "amount": "0.01"}], None),
        ([{"window": "Month", "amount": "100000"}], "1"),
    ],
    ids=["month", "gpus"],
)
async def test_a_used_up_budget_keeps_the_floor_while_a_pool_is_renamed(
    limits: list[dict[str, str]], gpus: str | None, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 4)
    add_gpus(fleet, "a100-od", 2, "OnDemand")
    await _serve(fleet, 2)
    fleet.set_budget(limits, gpus)
    await fleet.run(MINUTE)
    fleet.rename_pool("a100", "a100-new")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, 2)


async def test_a_full_quota_keeps_the_floor_while_a_pool_is_renamed(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 3)
    await _serve(fleet, 2)
    fleet.set_quota(2)
    fleet.rename_pool("a100", "a100-new")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, 2)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize(
    "floor",
    [
        pytest.param(2),
        pytest.param(4),
    ],
)
async def test_a_full_pool_that_is_renamed_gives_up_one_replica_at_a_time(
    floor: int, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", floor)
    await _serve(fleet, floor)
    fleet.rename_pool("a100", "a100-new")
    await fleet.run(15 * MINUTE)
    _assert_floor_held(fleet, floor)


# F5


async def test_an_autoscaler_of_somebody_else_does_not_hold_a_service_below_its_floor(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 6)
    await _serve(fleet, 6)
    (deployment,) = fleet.deployments("chat")
    fleet.autoscale(deployment, 1)
    standing = 0
    for _ in range(240):
        await fleet.tick()
        desired = fleet.kube.strategy(deployment).replicas
        standing += desired < 6
    # The operator answers each write in its next cycle: every third tick.
    assert standing <= 80, f"1 of 6 stands in {standing} of 240 ticks"


async def test_an_autoscaler_on_an_older_template_stops_a_rollout_and_is_named(
    begin: Callable[..., FloorFleet],
) -> None:
    """What leaves there would be started again, on the device of its successor."""
    fleet = begin()
    add_gpus(fleet, "a100", 1)
    await _serve(fleet, 1)
    (deployment,) = fleet.deployments("chat")
    fleet.autoscale(deployment, 3)
    await fleet.run(MINUTE)
    fleet.edit_template("chat", "two")
    await fleet.run(30 * MINUTE)
    _assert_floor_held(fleet, 1)
    progressing = fleet.condition("chat", "Progressing")
    assert progressing["reason"] == "FieldManagerConflict"
    assert "the newest template waits until HorizontalPodAutoscaler/" in progressing["message"]
    fleet.kube.autoscalers.clear()
    await fleet.run(30 * MINUTE)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"


# F6


async def test_a_rollout_whose_freed_gpu_is_taken_ends(begin: Callable[..., FloorFleet]) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 2)
    add_gpus(fleet, "a100-od", 2, "OnDemand")
    await _serve(fleet, 2)
    fleet.take_devices("a100-od")
    await fleet.run(10)
    fleet.edit_template("chat", "two")
    fleet.take_devices("a100", priority=100)
    await fleet.run(30 * MINUTE)
    _assert_floor_held(fleet, 2)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete", fleet.describe()
    assert fleet.condition("chat", "Placed")["status"] == "True"


# F10


async def test_a_surge_that_a_quota_refuses_becomes_in_place(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    add_gpus(fleet, "a100", 4)
    await _serve(fleet, 2)
    fleet.set_quota(2)
    fleet.edit_template("chat", "two")
    messages = set[str]()
    for _ in range(24):
        await fleet.tick()
        messages.add(fleet.condition("chat", "Progressing")["message"].lower())
    await fleet.run(30 * MINUTE)
    _assert_floor_held(fleet, 2)
    assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete", fleet.describe()
    assert any("quota" in message for message in messages), messages


# F11, S1-1, S1-2


def _slices(fleet: FloorFleet, label: str, count: int, tier: str, price: str) -> None:
    fleet.add_pool(label, tier, price)
    fleet.add_node(label, slices=count)


async def test_idle_slices_on_demand_are_not_replaced_by_a_dearer_gpu(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    _slices(fleet, "a100-od", 2, "OnDemand", "3.36")
    await _serve(fleet, 2)
    add_h100(fleet, "h100", 2)
    await fleet.run(30 * MINUTE)
    assert fleet.counts("chat") == {"a100-od-1g-10gb": 2}, fleet.describe()
    _assert_floor_held(fleet, 2)


@pytest.mark.parametrize("added", ["before", "later"])
async def test_a_burst_keeps_the_reserved_floor(
    added: str, begin: Callable[..., FloorFleet]
) -> None:
    fleet = begin()
    _slices(fleet, "a100", 2, "Reserved", "1.68")
    if added == "before":
        add_h100(fleet, "h100", 2)
    await _serve(fleet, 2, scaling={"maxReplicas": 6})
    if added == "later":
        add_h100(fleet, "h100", 2)
    fleet.waiting["chat"] = 30
    await fleet.run(30)
    fleet.waiting["chat"] = 0
    await fleet.run(20 * MINUTE)
    _assert_floor_held(fleet, 2)
    assert fleet.counts("chat") == {"a100-1g-10gb": 2}, fleet.describe()


async def test_new_precisions_do_not_start_an_idle_replica_on_a_dear_gpu(
    begin: Callable[..., FloorFleet],
) -> None:
    fleet = begin()
    _slices(fleet, "a100", 3, "Reserved", "1.68")
    add_h100(fleet, "h100", 2)
    fleet.take_devices("a100", resource=SLICE)
    await fleet.run(5)
    await _serve(fleet, 1)
    files = {"precision": "awq-int4", "uri": FILES}
    fleet.edit("chat", precision={"variants": [{"precision": "fp8"}, files]})
    dear = 0
    for tick in range(240):
        await fleet.tick()
        if tick == 6:
            _report_shapes(fleet)
        dear += any(pod.devices.get(GPU) for _, pod in fleet.kube.pods())
    _assert_floor_held(fleet, 1)
    assert not dear, f"{dear} of 240 ticks on an H100"


def _report_shapes(fleet: FloorFleet) -> None:
    """End the Jobs that read models, with what they found."""
    report = report_of(shape_of_files(quantization_config=AWQ))
    for key, job in list(fleet.kube.objects.items()):
        if key.plural != JOBS.plural:
            continue
        message = json.dumps({"phase": "shape", **report})
        ended = {"exitCode": 0, "finishedAt": fleet.kube.moment, "message": message}
        owner = {"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}
        meta = {
            "name": f"{key.name}-x",
            "namespace": key.namespace,
            "creationTimestamp": fleet.kube.moment,
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "ownerReferences": [owner],
        }
        status = {"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": ended}}]}
        spec = {"nodeSelector": {}, "containers": [], "nodeName": "a100-0"}
        fleet.kube.put(PODS, {"metadata": meta, "spec": spec, "status": status}, "kubelet")
