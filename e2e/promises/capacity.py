"""Replicas and batches go on while devices fill up, change their layout or are lost."""

import asyncio

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
from tessera.resources.api_resources import ACCELERATOR_POOLS
from world.testing import eventually

_CLIENTS, _TOKENS = 4, 20
_RESERVED_NODE = "a100-0"
_MODELS = {"tiny": "Llama-3.2-1B-Instruct", "small": "Llama-3.2-3B-Instruct"}
_STREAM_TOKENS, _SCRAPES = 60, 20
_ROWS, _ROW_TOKENS = 300, 40


async def move_between_tiers(namespace: ScenarioNamespace) -> None:
    """What reserved devices cannot take runs on demand, and moves back under streams."""
    cluster, devices = namespace.cluster, HeldDevices(namespace)
    await devices.hold(_RESERVED_NODE, 1)
    await apply_chat(namespace, FLOOR)
    await wait_for_counts(namespace, {RESERVED: FLOOR}, within=PATIENCE_SECONDS)
    async with gateway_for(namespace) as gateway:
        await answered(gateway)
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
    assert recorder.reasons[RESERVED][-1] == "MovedToCheaper"
    assert recorder.reasons[BURST] == ["CheaperFull", "Surplus"]


async def repartition(namespace: ScenarioNamespace) -> None:
    """The node agent gives a pool the layout that its services need, and no stream breaks."""
    cluster = namespace.cluster
    for name, model in _MODELS.items():
        await namespace.apply_service(
            name,
            model={"uri": f"hf://meta-llama/{model}"},
            slo={"ttftP95": "5s", "itlP95": "200ms"},
            context={"maxModelLen": 4096},
            placement={"mig": "Auto"},
            scaling={"minReplicas": 1, "maxReplicas": 2},
            **{"class": "Standard"},
        )
    for name in _MODELS:
        await namespace.wait_until_ready(name, within=PATIENCE_SECONDS)
    pool = ACCELERATOR_POOLS.path(None, MIG)
    bases = {name: await cluster.address(namespace.ref(name)) for name in _MODELS}

    async def engines_were_read() -> None:
        # A plan without measurements would be another one, and stay for minutes.
        load = f'vllm:num_requests_running{{namespace="{namespace.name}"}}'
        query = f"count(count_over_time({load}[2m]) >= {_SCRAPES})"
        samples = await namespace.query_prometheus(query)
        assert [sample["value"][1] for sample in samples] == [str(len(_MODELS))]

    async def pool_is_laid_out() -> Json:
        body = await cluster.api.get(pool)
        mig = body["status"].get("mig", {})
        assert condition(body, "LayoutReady").get("reason") == "AsPlanned", mig
        assert not mig.get("units"), mig
        assert mig["target"]["gpusAfter"] < len(_MODELS), mig
        for assignment in mig["target"]["services"]:
            status = await namespace.service_status(assignment["service"].partition("/")[2])
            assert status["variant"].get("profile") == assignment["profile"]
            assert status["replicas"] == status["readyReplicas"]
        target: Json = mig["target"]
        return target

    async with (
        streaming(bases, tokens=_STREAM_TOKENS) as streams,
        watch_minimum_ready(cluster, namespace.name) as minimum,
    ):
        await eventually(engines_were_read, within=PATIENCE_SECONDS)
        mode = {"mode": "Auto", "backend": "Agent"}
        await cluster.api.patch(pool, {"spec": {"mig": mode}})
        cluster.say("the pool plans its layout")
        target = await eventually(pool_is_laid_out, within=2 * PATIENCE_SECONDS)
    cluster.say(f"{streams.whole} streams; {target}")
    assert streams.broken == []
    assert {name: minimum.replicas[name] >= 1 for name in _MODELS} == dict.fromkeys(_MODELS, True)
    gpus = await asyncio.to_thread(cluster.world.gpus, MIG)
    cluster.say(str(gpus))


async def lose_a_batch_node(namespace: ScenarioNamespace) -> None:
    """A spot node dies in the middle of a batch, and every row is published once."""
    world = namespace.cluster.world
    claim = await create_shared_claim(namespace.cluster, namespace.name)
    batch = await claim.submit("night", rows=_ROWS, tokens=_ROW_TOKENS)
    await batch.wait_for_rows(_ROWS // 10)
    runner = batch.running_container(RUNNER)
    assert runner is not None
    await asyncio.to_thread(world.end_node, runner.node)
    namespace.cluster.say(f"{runner.node} ended")
    status = await batch.wait_until_completed()
    assert batch.count_rows() == RowCounts(lost=0, duplicates=0, wrong=())
    record = batch.publication_record()
    assert record is not None
    assert record.attempt == attempt_number(status) > 1
    assert status["progress"]["completed"] == _ROWS
