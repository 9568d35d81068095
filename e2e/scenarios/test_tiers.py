"""Streams while a service uses on-demand and spot devices beside reserved ones."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from demo.cluster import condition
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.streams import kubectl_scale
from scenarios.tiers import (
    BURST,
    FLOOR,
    RESERVED,
    SLICES,
    SPOT,
    HeldDevices,
    announce_end,
    apply_chat,
    broken,
    burst_pools,
    end_node,
    final_children,
    killing_at_writes,
    list_pods,
    pool_path,
    recording,
    streaming_clients,
    takes_requests,
    wait_for_counts,
)
from world import World
from world.object_comparison import differences
from world.testing import eventually

_TOKENS = 20
_LONGEST_WAIT_SECONDS = 30
# Processors of a node, and those that an engine requests.
_NODE_CPU, _ENGINE_CPU = 96, 2
# Of the notice; that of AWS is two minutes.
_NOTICE_SECONDS = 15


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


@pytest.fixture
async def tiers(gateway: Gateway) -> AsyncIterator[Gateway]:
    async with burst_pools(gateway.namespace.cluster):
        yield gateway
        await gateway.namespace.delete_service()


async def burst(gateway: Gateway, devices: HeldDevices) -> None:
    """Have three replicas where reserved devices are for two, until there is a third one."""
    namespace = gateway.namespace
    await kubectl_scale(namespace.cluster, namespace.ref("chat"), 3)
    await wait_for_counts(namespace, {RESERVED: 2, BURST: 1})
    await devices.free()
    await wait_for_counts(namespace, {RESERVED: 3}, within=600)


async def serve_on_reserved(gateway: Gateway, devices: HeldDevices) -> None:
    await devices.leave(free=2)
    await apply_chat(gateway.namespace, 2)
    await wait_for_counts(gateway.namespace, {RESERVED: 2})
    await answered(gateway)


@pytest.mark.parametrize("clients", [12, pytest.param(100, marks=pytest.mark.full)])
async def test_a_full_reserved_pool_is_left_for_on_demand_and_come_back_to(
    tiers: Gateway, clients: int
) -> None:
    namespace, devices = tiers.namespace, HeldDevices(tiers.namespace)
    await serve_on_reserved(tiers, devices)
    async with (
        recording(namespace) as recorder,
        streaming_clients(tiers, clients, _TOKENS) as streams,
    ):
        await burst(tiers, devices)
    namespace.cluster.say(recorder.report(streams))
    assert broken(streams) == []
    assert recorder.least_ready >= FLOOR
    assert recorder.longest_wait < _LONGEST_WAIT_SECONDS
    reserved, on_demand = recorder.said[RESERVED], recorder.said[BURST]
    assert (reserved["tier"], reserved["perHour"]) == ("Reserved", "0.2397")
    assert (on_demand["tier"], on_demand["perHour"]) == ("OnDemand", "0.5625")
    assert recorder.reasons[RESERVED][-1] == "MovedToCheaper"
    assert recorder.reasons[BURST] == ["CheaperFull", "Surplus"]


@pytest.mark.full
async def test_killed_at_every_write_of_a_burst_the_operator_ends_it_equally(
    tiers: Gateway,
) -> None:
    namespace, devices = tiers.namespace, HeldDevices(tiers.namespace)
    await serve_on_reserved(tiers, devices)
    await burst(tiers, devices)
    undisturbed = await final_children(namespace)
    await namespace.delete_service()

    async def replicas_are_gone() -> None:
        assert await list_pods(namespace) == []

    await eventually(replicas_are_gone)
    await devices.clear()
    await serve_on_reserved(tiers, devices)
    async with (
        recording(namespace) as recorder,
        streaming_clients(tiers, 40, _TOKENS) as streams,
        killing_at_writes(namespace) as killer,
    ):
        await burst(tiers, devices)
    kills = "\n".join(f"  {count} x {write}" for write, count in sorted(killer.kills.items()))
    namespace.cluster.say(f"{recorder.report(streams)}\nkilled at:\n{kills}")
    assert {write.split()[1] for write in killer.kills} >= {"deployments", "pods"}
    assert broken(streams) == []
    assert recorder.least_ready >= FLOOR
    assert recorder.longest_wait < _LONGEST_WAIT_SECONDS

    async def ends_equally() -> None:
        different = differences(undisturbed, await final_children(namespace))
        assert not different, "\n".join(different)

    await eventually(ends_equally)


@pytest.mark.full
async def test_a_replica_that_no_node_takes_goes_to_the_next_variant(tiers: Gateway) -> None:
    """A free reserved device is on a node whose processors are taken."""
    namespace, devices = tiers.namespace, HeldDevices(tiers.namespace)
    await devices.leave(free=3, cpu=_NODE_CPU - 2 * _ENGINE_CPU - 1)
    await apply_chat(namespace, 2)
    await wait_for_counts(namespace, {RESERVED: 2})
    await answered(tiers)
    async with (
        recording(namespace) as recorder,
        streaming_clients(tiers, 20, _TOKENS) as streams,
    ):
        await burst(tiers, devices)
    namespace.cluster.say(recorder.report(streams))
    assert broken(streams) == []
    assert recorder.least_ready >= FLOOR
    assert 15 <= recorder.longest_wait < _LONGEST_WAIT_SECONDS
    assert "PendingTimeout" in recorder.reasons[RESERVED]


@pytest.mark.full
async def test_replicas_leave_a_spot_node_before_it_is_reclaimed(tiers: Gateway) -> None:
    """Those of its streams that are longer than the notice go on elsewhere."""
    namespace, devices = tiers.namespace, HeldDevices(tiers.namespace)
    await devices.leave(free=1)
    placement = {"pools": [RESERVED, BURST, SPOT], "tiers": ["Reserved", "OnDemand", "Spot"]}
    await apply_chat(namespace, 4, **{"class": "Standard"}, placement=placement)
    await wait_for_counts(namespace, {RESERVED: 1, BURST: 1, SPOT: 2})
    await answered(tiers)
    try:
        async with (
            recording(namespace) as recorder,
            streaming_clients(tiers, 100, 5 * _TOKENS) as streams,
        ):
            await recorder.wait_for_ready(SPOT, 2)
            noticed_at = recorder.second
            await announce_end(namespace.cluster, SPOT)
            await recorder.wait_for_ready(BURST, 3)
            seconds = recorder.second - noticed_at
            await asyncio.sleep(max(0, _NOTICE_SECONDS - seconds))
            await end_node(namespace.cluster, SPOT)
            await wait_for_counts(namespace, {RESERVED: 1, BURST: 3})
    finally:
        namespace.cluster.world.wake(SPOT)
    say = namespace.cluster.say
    say(f"replaced {seconds:.1f} s after the notice; {recorder.report(streams)}")
    assert seconds < _NOTICE_SECONDS
    assert broken(streams) == []
    assert any(stream.resumed for stream in streams)
    assert recorder.least_ready >= FLOOR
    assert recorder.longest_wait < _LONGEST_WAIT_SECONDS


@pytest.mark.full
async def test_two_services_on_too_few_devices_keep_their_floors_and_streams(
    tiers: Gateway,
) -> None:
    """They want the last device at once, then all on-demand nodes go, and in the end the pool."""
    namespace, devices = tiers.namespace, HeldDevices(tiers.namespace)
    cluster = namespace.cluster
    await devices.leave(free=2)
    await devices.hold(BURST, SLICES - 1)
    await apply_chat(namespace, 2, placement={})
    await wait_for_counts(namespace, {RESERVED: 2})
    await answered(tiers)
    try:
        async with (
            recording(namespace) as recorder,
            streaming_clients(tiers, 40, _TOKENS) as streams,
        ):
            scaling = {"minReplicas": 1, "maxReplicas": 6}
            await asyncio.gather(
                kubectl_scale(cluster, namespace.ref("chat"), 3),
                apply_chat(namespace, 1, name="rival", placement={}, scaling=scaling),
            )
            await wait_for_placed(namespace, ["Placed", "Unschedulable"])
            await wait_for_nodes(namespace, {"a100-1": 2, BURST: 1})
            await devices.free(BURST)
            await wait_for_placed(namespace, ["Placed", "Placed"])
            await wait_for_nodes(namespace, {"a100-1": 2, BURST: 2})

            await end_node(cluster, BURST)
            await wait_for_placed(namespace, ["Unschedulable", "Unschedulable"])
            cluster.world.wake(BURST)
            await wait_for_placed(namespace, ["Placed", "Placed"])
            await wait_for_nodes(namespace, {"a100-1": 2, BURST: 2})
            await wait_for_counts(namespace, {RESERVED: 2, BURST: 1})
            least_ready, recorder.least_ready = recorder.least_ready, 3

            await cluster.api.delete(pool_path(BURST))
            await wait_for_placed(namespace, ["Unschedulable", "Unschedulable"])
            assert (await nodes_of_both(namespace))[BURST] == 2
            await devices.free()
            await wait_for_counts(namespace, {RESERVED: 3})
            await wait_for_nodes(namespace, {"a100-1": 4})
    finally:
        cluster.world.wake(BURST)
    cluster.say(recorder.report(streams))
    assert broken(streams) == []
    assert least_ready >= FLOOR
    assert recorder.least_ready >= 3


async def nodes_of_both(namespace: ScenarioNamespace) -> Counter[str]:
    """Return how many replicas of both services take requests on each node."""
    pods = [pod for name in ("chat", "rival") for pod in await list_pods(namespace, name)]
    return Counter(pod["spec"]["nodeName"] for pod in pods if takes_requests(pod))


async def wait_for_nodes(namespace: ScenarioNamespace, expected: dict[str, int]) -> None:
    async def are_on_nodes() -> None:
        assert await nodes_of_both(namespace) == expected

    await eventually(are_on_nodes)


async def wait_for_placed(namespace: ScenarioNamespace, expected: list[str]) -> None:
    """Wait for the reasons of the condition Placed of both services, whichever has which."""

    async def have_reasons() -> None:
        services = [await namespace.service_status(name) for name in ("chat", "rival")]
        placed = [condition({"status": each}, "Placed") for each in services]
        assert sorted(each.get("reason", "") for each in placed) == expected, placed

    await eventually(have_reasons)
