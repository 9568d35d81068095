"""Edits, quotas, renamed pools, used-up budgets, autoscalers and bursts under 60 streams.

What `tests/floors` plays in memory, in a cluster: what is ready within the floor stays, but for one
replica where a successor needs its device; no stream breaks, and what runs costs least.
"""

import asyncio

import pytest

from demo.cluster import Json, StepError
from scenarios.floors import (
    FULL_POOLS,
    H100,
    ON_DEMAND,
    RESERVED,
    SLICES,
    FloorScene,
    an_edit,
    floor_scene,
    slice_pools,
    streaming,
)
from scenarios.gateway import Gateway
from scenarios.scaling import recording
from tessera.resources.api_resources import DEPLOYMENTS, EVENTS
from world import World
from world.testing import eventually

_NEW = f"{RESERVED}-new"
_WHOLE, _ONE_SLICE = "1gpu", "1g-10gb"
ON_RESERVED = {f"{RESERVED}-{_WHOLE}": 2}
ON_ON_DEMAND = {f"{ON_DEMAND}-{_WHOLE}": 2}
BOTH_FULL = {**ON_RESERVED, **ON_ON_DEMAND}
_BURST_SECONDS = 30
_EDITOR = "editor"
# So many end in about 40 s.
_STREAMS = 450


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@pytest.mark.full
async def test_an_edit_on_two_full_pools_takes_one_replica_at_a_time(gateway: Gateway) -> None:
    async with floor_scene(gateway, FULL_POOLS, BOTH_FULL) as scene:
        async with streaming(scene):
            await scene.edit("two")
            await scene.settle("rolled out", BOTH_FULL, "two")
        await scene.rest_at_least_cost()
        scene.end(away=1)


@pytest.mark.full
async def test_a_bad_template_on_two_full_pools_is_replaced_by_its_fix(gateway: Gateway) -> None:
    """The fix is an edit of all replicas."""
    async with floor_scene(gateway, FULL_POOLS, BOTH_FULL) as scene:
        async with streaming(scene):
            await scene.break_template()
            await eventually(scene.is_starting_badly)
            await scene.repair_template(**an_edit("fixed"))
            await scene.settle("fixed", BOTH_FULL, "fixed")
        await scene.rest_at_least_cost()
        scene.end(away=1)


@pytest.mark.full
async def test_a_bad_template_on_two_full_pools_is_taken_back(gateway: Gateway) -> None:
    """Only the replica that went for the bad one starts again."""
    async with floor_scene(gateway, FULL_POOLS, BOTH_FULL) as scene:
        async with streaming(scene):
            await scene.break_template()
            await eventually(scene.is_starting_badly)
            await scene.outlast(_STREAMS)
            await scene.repair_template()
            await scene.settle("taken back", BOTH_FULL)
        await scene.rest_at_least_cost()
        scene.end(away=1)
        assert scene.minimum.started <= 1


@pytest.mark.full
async def test_an_edit_within_a_quota_of_what_runs_takes_one_replica_at_a_time(
    gateway: Gateway,
) -> None:
    counts = ON_RESERVED
    async with floor_scene(gateway, FULL_POOLS, counts) as scene:
        await scene.limit_gpus(2)
        async with streaming(scene):
            await scene.edit("two")
            await scene.settle("rolled out", counts, "two")
        await scene.rest_at_least_cost()
        scene.end(away=1)


@pytest.mark.full
@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        (
            {"limits": [{"window": "Month", "amount": "0.0001"}]},
            "raise spec.limits[0].amount",
        ),
        ({"gpus": "1"}, "Raise spec.gpus"),
    ],
    ids=["month", "gpus"],
)
async def test_a_used_up_budget_keeps_all_replicas_of_a_pool_that_is_renamed(
    gateway: Gateway, limits: Json, remedy: str
) -> None:
    async with floor_scene(gateway, FULL_POOLS, ON_RESERVED) as scene:
        await scene.use_up_budget(**limits)
        async with streaming(scene):
            await scene.rename_pool(FULL_POOLS[0], _NEW)
            words = ("stay, which no pool offers any more", "see status.scaling.message")
            await scene.namespace.wait_for_condition(
                "chat", "Progressing", "BudgetExhausted", words=words
            )
            assert remedy in (await scene.namespace.service_status())["scaling"]["message"]
            scene.take_time("named")
            await scene.outlast(_STREAMS)
            await scene.check_counts(ON_RESERVED)
            await scene.namespace.check_condition("chat", "Ready", "CompletionSucceeded")
        await scene.rest_at_least_cost()
        scene.end(away=0)
        assert scene.minimum.started == 0


@pytest.mark.full
@pytest.mark.parametrize("others", [{}, ON_ON_DEMAND], ids=["one-pool", "two-pools"])
async def test_a_full_pool_that_is_renamed_gives_up_one_replica_at_a_time(
    gateway: Gateway, others: dict[str, int]
) -> None:
    pools = FULL_POOLS if others else FULL_POOLS[:1]
    async with floor_scene(gateway, pools, {**ON_RESERVED, **others}) as scene:
        async with streaming(scene):
            await scene.rename_pool(FULL_POOLS[0], _NEW)
            await scene.settle("moved", {f"{_NEW}-{_WHOLE}": 2, **others})
        await scene.rest_at_least_cost()
        scene.end(away=1)


@pytest.mark.full
async def test_replicas_that_others_scale_stay_as_they_are(gateway: Gateway) -> None:
    """The autoscaler of the cluster wants one replica, and an editor none."""
    async with floor_scene(gateway, FULL_POOLS, BOTH_FULL) as scene:
        async with streaming(scene):
            await _autoscale_to_one(scene)
            await _scale_as_editor(scene)
            scene.take_time("refused")
            await scene.outlast(_STREAMS)
            await scene.check_counts(BOTH_FULL)
        await scene.rest_at_least_cost()
        scene.end(away=0)
        assert scene.minimum.started == 0


async def _deployments(scene: FloorScene) -> dict[str, int]:
    """Return the replicas of the Deployments of the service by their names."""
    deployments = await scene.namespace.list_objects(DEPLOYMENTS)
    return {each["metadata"]["name"]: each["spec"]["replicas"] for each in deployments}


async def _autoscale_to_one(scene: FloorScene) -> None:
    """Let autoscalers lower all Deployments until each was refused twice."""
    namespace, cluster, before = scene.namespace, scene.cluster, await _deployments(scene)
    scene.begin()
    for name in before:
        await cluster.run(
            *("kubectl", "--namespace", namespace.name, "autoscale", f"deployment/{name}"),
            *("--min=1", "--max=1"),
        )

    async def all_are_refused_twice() -> None:
        path = EVENTS.path(namespace.name)
        events = (await cluster.api.get(path, fieldSelector="reason=FailedRescale"))["items"]
        counts = {each["involvedObject"]["name"]: each.get("count", 1) for each in events}
        assert counts.keys() == before.keys(), events
        assert min(counts.values()) >= 2, counts

    await eventually(all_are_refused_twice)
    assert await _deployments(scene) == before


async def _scale_as_editor(scene: FloorScene) -> None:
    """Scale each Deployment to 0, as somebody who may edit everything in the namespace."""
    namespace, cluster, before = scene.namespace, scene.cluster, await _deployments(scene)
    kubectl = ("kubectl", "--namespace", namespace.name)
    await cluster.run(
        *kubectl, "create", "rolebinding", "edit", "--clusterrole=edit", f"--user={_EDITOR}"
    )
    for name in before:
        with pytest.raises(StepError, match="InferenceService/chat sets its replicas"):
            await cluster.run(
                *kubectl, "scale", f"deployment/{name}", "--replicas=0", "--as", _EDITOR
            )
    assert await _deployments(scene) == before


@pytest.mark.full
@pytest.mark.parametrize("tier", ["OnDemand", "Reserved"])
async def test_a_burst_on_two_slices_leaves_no_dearer_gpu(gateway: Gateway, tier: str) -> None:
    pools, counts = slice_pools(tier), {f"{SLICES}-{_ONE_SLICE}": 2}
    spec = {
        "scaling": {
            "policy": "QueueAndActivity",
            "minReplicas": 2,
            "maxReplicas": 6,
            "scaleUp": {"stabilizationWindow": "1s"},
            "scaleDown": {"stabilizationWindow": "20s"},
        },
        "engine": {"maxNumSeqs": 8},
        "placement": {"pools": [SLICES, H100]},
    }
    async with (
        floor_scene(gateway, pools, counts, **spec) as scene,
        recording(gateway.namespace, "chat") as recorder,
    ):
        async with streaming(scene):
            await asyncio.sleep(_BURST_SECONDS)
            scene.begin()
        # Slow engines look busy with one stream, and by this policy a replica more is needed then.
        await scene.settle("calm", counts)
        await scene.rest_at_least_cost()
        scene.cluster.say(recorder.report("chat"))
        scene.end(away=0)
        assert scene.minimum.started
