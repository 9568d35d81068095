"""Replicas and batches go on while devices fill up, change their layout or are lost."""

import asyncio
from collections import Counter

from demo.cluster import Json, condition
from demo.ready_replicas import watch_minimum_ready
from demo.streams import streaming
from promises.installation import MIG, PATIENCE_SECONDS, gateway_for
from scenarios.actions import ScenarioNamespace
from scenarios.batches import RowCounts, attempt_number, create_shared_claim
from scenarios.gateway import answered
from scenarios.streams import kubectl_scale
from scenarios.tiers import (
    BURST,
    FLOOR,
    RESERVED,
    HeldDevices,
    apply_chat,
    broken,
    recording,
    streaming_clients,
    wait_for_counts,
)
from tessera.domain.batch.names import RUNNER
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS
from world.client import RunningContainer
from world.testing import eventually

_CLIENTS, _TOKENS = 4, 20
_RESERVED_NODE = "a100-0"
_MODELS = {"tiny": "Llama-3.2-1B-Instruct", "small": "Llama-3.2-3B-Instruct"}
_LAYOUT = {"3g.40gb": 1, "1g.10gb": 4}
_STREAM_TOKENS = 60
# The nine tenths that are left when its node dies take half a minute: a scene that is late by less
# still finds the batch at work.
_ROWS, _ROW_TOKENS = 300, 120


async def move_between_tiers(namespace: ScenarioNamespace) -> None:
    """What reserved devices cannot take runs on demand, and moves back under streams."""
    cluster, devices = namespace.cluster, HeldDevices(namespace)
    await devices.hold(_RESERVED_NODE, 1)
    await apply_chat(namespace, FLOOR)
    await wait_for_counts(namespace, {RESERVED: FLOOR}, within=PATIENCE_SECONDS)
    async with gateway_for(namespace) as gateway:
        await answered(gateway, within=PATIENCE_SECONDS)
        async with (
            recording(namespace) as recorder,
            streaming_clients(gateway, _CLIENTS, _TOKENS) as streams,
        ):
            await kubectl_scale(cluster, namespace.ref("chat"), FLOOR + 1)
            await wait_for_counts(namespace, {RESERVED: FLOOR, BURST: 1}, within=PATIENCE_SECONDS)
            cluster.say("a replica runs on demand, and a reserved device becomes free")
            await devices.free(_RESERVED_NODE)
            await wait_for_counts(namespace, {RESERVED: FLOOR + 1}, within=PATIENCE_SECONDS)
    cluster.say(recorder.report(streams))
    assert broken(streams) == []
    assert recorder.least_ready >= FLOOR
    reserved, on_demand = recorder.said[RESERVED], recorder.said[BURST]
    assert (reserved["tier"], reserved["perHour"]) == ("Reserved", "0.2397")
    assert (on_demand["tier"], on_demand["perHour"]) == ("OnDemand", "0.5625")
    # An operator that ends within a second of a decision leaves no reason of it.
    assert set(recorder.reasons.get(RESERVED, ())) <= {"LeastCost", "MovedToCheaper"}
    assert set(recorder.reasons.get(BURST, ())) <= {"CheaperFull", "Surplus"}


async def repartition(namespace: ScenarioNamespace) -> None:
    """The node agent gives all GPUs of a pool another layout, and no stream of it breaks."""
    cluster, pool = namespace.cluster, ACCELERATOR_POOLS.path(None, MIG)
    for name, model in _MODELS.items():
        await namespace.apply_service(
            name,
            model={"uri": f"hf://meta-llama/{model}"},
            context={"maxModelLen": 4096},
            placement={"mig": "Auto"},
            scaling={"minReplicas": 1, "maxReplicas": 1},
        )
    for name in _MODELS:
        await namespace.wait_until_ready(name, within=PATIENCE_SECONDS)
    bases = {name: await cluster.address(namespace.ref(name)) for name in _MODELS}

    async def every_service_streams() -> None:
        assert streams.whole >= 2 * len(_MODELS), streams

    async def layout_is_in_use() -> None:
        body = await cluster.api.get(pool)
        assert condition(body, "LayoutReady").get("reason") == "AsPlanned", body["status"]
        assert not body["status"]["mig"].get("units"), body["status"]
        for name in _MODELS:
            status = await namespace.service_status(name)
            assert status["variant"].get("profile") in _LAYOUT, status
            assert (status["replicas"], status["readyReplicas"]) == (1, 1), status
        gpus = await asyncio.to_thread(cluster.world.gpus, MIG)
        assert [_count_slices(gpu) for gpu in gpus] == [_LAYOUT] * len(gpus)

    async with (
        streaming(bases, tokens=_STREAM_TOKENS) as streams,
        watch_minimum_ready(cluster, namespace.name) as minimum,
    ):
        await eventually(every_service_streams, within=PATIENCE_SECONDS)
        mig = {"mode": "Static", "layout": _LAYOUT, "backend": "Agent"}
        await cluster.api.patch(pool, {"spec": {"mig": mig}})
        cluster.say("the pool has another layout")
        await eventually(layout_is_in_use, within=PATIENCE_SECONDS)
    cluster.say(f"{streams.whole} streams, {minimum.started} replicas started")
    assert streams.broken == []
    assert minimum.replicas == dict.fromkeys(_MODELS, 1)
    assert minimum.started == len(_MODELS)


def _count_slices(gpu: Json) -> dict[str, int]:
    return dict(Counter(placed["profile"] for placed in gpu["slices"]))


async def lose_a_batch_node(namespace: ScenarioNamespace) -> None:
    """A spot node dies in the middle of a batch, and every row is published once."""
    world = namespace.cluster.world
    claim = await create_shared_claim(namespace.cluster, namespace.name)
    batch = await claim.submit("night", rows=_ROWS, tokens=_ROW_TOKENS)

    async def tenth_is_done() -> RunningContainer:
        progress, runner = await batch.progress(), batch.running_container(RUNNER)
        assert progress.get("state") == "running", progress
        assert progress["done"] >= _ROWS // 10, progress
        assert runner is not None
        return runner

    runner = await eventually(tenth_is_done, within=PATIENCE_SECONDS)
    await asyncio.to_thread(world.end_node, runner.node)
    namespace.cluster.say(f"{runner.node} ended")
    status = await batch.wait_until_completed()
    assert batch.count_rows() == RowCounts(lost=0, duplicates=0, wrong=())
    record = batch.publication_record()
    assert record is not None
    assert record.attempt == attempt_number(status) > 1
    assert status["progress"]["completed"] == _ROWS
