"""Scaling down loses no stream, `kubectl scale` works, and a dead engine is reported."""

import asyncio
from dataclasses import dataclass, field

import pytest

from demo.cluster import Json, condition
from demo.load import steady_load
from scenarios.actions import ScenarioNamespace
from scenarios.commands import explain
from scenarios.lifecycle import list_replicas
from scenarios.streams import TOKENS, kubectl_scale, stream_completion, wait_for_replicas
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import PODS
from world.testing import eventually, is_ready


async def test_scaling_down_lets_every_stream_end(namespace: ScenarioNamespace) -> None:
    ref = await namespace.apply_service()
    await namespace.wait_until_ready()
    await kubectl_scale(namespace.cluster, ref, 2)
    await wait_for_replicas(namespace, 2)
    base = await namespace.cluster.address(ref)
    streams = [asyncio.create_task(stream_completion(base, ref.name)) for _ in range(8)]
    await asyncio.wait(streams, timeout=1)
    assert not any(task.done() for task in streams)
    await kubectl_scale(namespace.cluster, ref, 1)
    await wait_for_replicas(namespace, 1)
    ends = await asyncio.gather(*streams)
    assert ends == [(TOKENS, "length")] * 8
    scaling = (await namespace.service_status())["scaling"]
    assert (scaling["desiredReplicas"], scaling["reason"]) == (1, "SetByUser")


@pytest.mark.full
async def test_the_replica_with_the_fewest_requests_is_removed(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready()
    await wait_for_replicas(namespace, 2)
    pods = {
        pod["metadata"]["name"]: pod["status"]["podIP"]
        for pod in await namespace.list_objects(PODS)
    }
    busy, idle = sorted(pods)
    long = 6 * TOKENS
    base = f"http://{pods[busy]}:8000"
    streams = [asyncio.create_task(stream_completion(base, ref.name, long)) for _ in range(4)]

    async def streams_are_running() -> None:
        query = f'vllm:num_requests_running{{pod="{busy}"}}'
        samples = await namespace.query_prometheus(query)
        assert [sample["value"][1] for sample in samples] == ["4"]

    async def replica_is_removed() -> list[str]:
        names = [pod["metadata"]["name"] for pod in await list_replicas(namespace)]
        assert len(names) == 1, names
        return names

    await eventually(streams_are_running)
    # The operator reads every five seconds; the streams outlast that.
    await asyncio.wait(streams, timeout=5.5)
    await kubectl_scale(namespace.cluster, ref, 1)
    assert await eventually(replica_is_removed) == [busy]
    assert idle not in await replica_is_removed()
    assert await asyncio.gather(*streams) == [(long, "length")] * 4


async def test_ready_means_that_an_answer_came_and_falls_with_the_engine(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    (pod,) = await namespace.list_objects(PODS)
    namespace.cluster.world.kill(namespace.name, pod["metadata"]["name"], "engine")
    await namespace.wait_for_condition("chat", "Ready", "NoReplicaReady")
    await namespace.wait_until_ready(within=90)


async def test_an_engine_that_cannot_start_is_reported_with_its_termination_message(
    namespace: ScenarioNamespace,
) -> None:
    await namespace.apply_service(replicas=1, engine={"image": "world/sh:1", "extraArgs": []})
    await namespace.wait_for_condition("chat", "Progressing", "EngineFailed", words=("chat-",))


async def test_a_missing_image_is_reported(namespace: ScenarioNamespace) -> None:
    await namespace.apply_service(replicas=1, engine={"image": "nowhere/engine:1"})
    words = ("nowhere/engine:1",)
    await namespace.wait_for_condition("chat", "Progressing", "ImagePullFailed", words=words)


@dataclass(slots=True)
class RolloutObservation:
    """What was observed of a rollout, over all readings."""

    alive: set[int] = field(default_factory=set)
    """Counts of replicas that were not terminating."""
    ready: set[int] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)


async def wait_until_rolled_out(
    namespace: ScenarioNamespace, old: set[str], count: int
) -> RolloutObservation:
    """Wait until no old pod exists and the rollout is complete; return what was observed."""
    observation = RolloutObservation()

    async def is_rolled_out() -> None:
        pods = await namespace.list_objects(PODS)
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        service = await namespace.cluster.api.get(INFERENCE_SERVICES.path(namespace.name, "chat"))
        progressing = condition(service, "Progressing")
        if progressing.get("reason") == "RollingOut":
            observation.messages.add(progressing["message"].partition("; ")[2])
        observation.alive.add(len(alive))
        observation.ready.add(sum(is_ready(pod) for pod in alive))
        assert old & {pod["metadata"]["uid"] for pod in pods} == set()
        assert len(alive) == count
        assert progressing.get("reason") == "RolloutComplete", progressing

    await eventually(is_rolled_out)
    return observation


async def wait_until_explained(namespace: ScenarioNamespace) -> Json:
    """Wait until `tessera explain` reports the rollout; return its decision."""

    async def is_explained() -> Json:
        await namespace.check_condition("chat", "Progressing", "RollingOut")
        rollout: Json = (await explain(namespace))["rollout"]
        assert rollout["reason"] == "RollingOut", rollout
        return rollout

    return await eventually(is_explained)


@pytest.mark.parametrize(
    ("replicas", "words", "manner", "alive", "ready"),
    [
        (3, "a new replica starts before an old one stops", "surge: ", {3, 4}, {3, 4}),
        pytest.param(
            *(4, "in place, an old replica stops first", "in place: ", {3, 4}, {3, 4}),
            marks=pytest.mark.full,
        ),
    ],
    ids=["surge", "in place"],
)
async def test_a_rollout_loses_no_request_and_lets_every_stream_end(
    namespace: ScenarioNamespace,
    replicas: int,
    words: str,
    manner: str,
    alive: set[int],
    ready: set[int],
) -> None:
    """There are four slices: three replicas leave room for just one more, four leave none."""
    ref = await namespace.apply_service(replicas=replicas)
    await namespace.wait_until_ready()
    await wait_for_replicas(namespace, replicas)
    old = {pod["metadata"]["uid"] for pod in await namespace.list_objects(PODS)}
    base = await namespace.cluster.address(ref)
    streams = [asyncio.create_task(stream_completion(base, ref.name)) for _ in range(8)]
    async with steady_load(base, ref.name, clients=4, tokens=40) as load:
        await asyncio.wait(streams, timeout=1)
        assert not any(task.done() for task in streams)
        # The command takes seconds to start on a busy machine, in which a rollout may be over.
        explained = asyncio.create_task(wait_until_explained(namespace))
        await namespace.apply_service(replicas=replicas, engine={"extraArgs": ["--max-logprobs=5"]})
        observation = await wait_until_rolled_out(namespace, old, replicas)
        rollout = await explained
    assert await asyncio.gather(*streams) == [(TOKENS, "length")] * 8
    assert load.failures == []
    assert load.finished > 50
    assert len(observation.messages) == 1
    assert words in next(iter(observation.messages))
    assert observation.alive <= alive
    assert observation.ready <= ready
    assert words in rollout["message"]
    assert rollout["numbers"]["strategy"].startswith(manner)
