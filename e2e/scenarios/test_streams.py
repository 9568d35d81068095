"""Scaling down loses no stream; `kubectl scale` works; a dead engine shows."""

import asyncio
from dataclasses import dataclass, field

import httpx
import pytest

from demo.load import steady_load
from demo.stage import Json, condition
from scenarios.actions import Place
from scenarios.commands import explained
from scenarios.streams import TOKENS, kubectl_scale, stream, until_replicas
from tessera.resources.api_resources import INFERENCE_SERVICES, PODS
from world.testing import eventually


async def test_scaling_down_lets_every_stream_end(place: Place) -> None:
    ref = await place.serve()
    await place.until_ready()
    await kubectl_scale(place.stage, ref, 2)
    await until_replicas(place, 2)
    base = await place.stage.address(ref)
    streams = [asyncio.create_task(stream(base, ref.name)) for _ in range(8)]
    await asyncio.wait(streams, timeout=1)
    assert not any(one.done() for one in streams)
    await kubectl_scale(place.stage, ref, 1)
    await until_replicas(place, 1)
    ends = await asyncio.gather(*streams)
    assert ends == [(TOKENS, "length")] * 8
    scaling = (await place.status())["scaling"]
    assert (scaling["desiredReplicas"], scaling["reason"]) == (1, "SetByUser")


async def test_the_emptiest_replica_leaves(place: Place) -> None:
    ref = await place.serve(replicas=2)
    await place.until_ready()
    await until_replicas(place, 2)
    pods = {one["metadata"]["name"]: one["status"]["podIP"] for one in await place.all(PODS)}
    busy, idle = sorted(pods)
    long = 3 * TOKENS
    base = f"http://{pods[busy]}:8000"
    streams = [asyncio.create_task(stream(base, ref.name, long)) for _ in range(4)]
    prometheus = f"{place.stage.world.prometheus_url}/api/v1/query"

    async def running() -> list[str]:
        query = f'vllm:num_requests_running{{pod="{busy}"}}'
        async with httpx.AsyncClient() as http:
            rows = (await http.get(prometheus, params={"query": query})).json()["data"]["result"]
        return [row["value"][1] for row in rows]

    await eventually(running, lambda values: values == ["4"])
    # The operator reads every five seconds; the streams outlast that.
    await asyncio.wait(streams, timeout=5.5)
    await kubectl_scale(place.stage, ref, 1)

    async def names() -> list[str]:
        found = await place.all(PODS)
        return [
            one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"]
        ]

    assert await eventually(names, lambda left: len(left) == 1, within=30) == [busy]
    assert idle not in await names()
    assert await asyncio.gather(*streams) == [(long, "length")] * 4


async def test_ready_means_that_an_answer_came_and_falls_with_the_engine(place: Place) -> None:
    await place.serve(replicas=1)
    await place.until_ready()
    (pod,) = await place.all(PODS)
    place.stage.world.kill(place.namespace, pod["metadata"]["name"], "engine")
    await place.until_condition("chat", "Ready", "NoReplicaReady", within=20)
    await place.until_ready(within=40)


async def test_an_engine_that_cannot_start_is_told_with_its_last_words(place: Place) -> None:
    await place.serve(replicas=1, engine={"image": "world/sh:1", "extraArgs": []})
    told = await place.until_condition("chat", "Progressing", "EngineFailed", within=40)
    assert "chat-" in told["message"]


async def test_a_missing_image_is_told(place: Place) -> None:
    await place.serve(replicas=1, engine={"image": "nowhere/engine:1"})
    told = await place.until_condition("chat", "Progressing", "ImagePullFailed", within=30)
    assert "nowhere/engine:1" in told["message"]


@dataclass(slots=True)
class Course:
    """What was seen of a rollout, look by look."""

    alive: set[int] = field(default_factory=set)
    """Replicas that were not told to stop."""
    ready: set[int] = field(default_factory=set)
    messages: set[str] = field(default_factory=set)


async def until_rolled(place: Place, old: set[str], count: int) -> Course:
    """Wait until none of the old pods is left and the service is settled."""
    seen = Course()

    async def look() -> tuple[bool, str]:
        pods = await place.all(PODS)
        alive = [one for one in pods if "deletionTimestamp" not in one["metadata"]]
        service = await place.stage.api.get(INFERENCE_SERVICES.path(place.namespace, "chat"))
        told = condition(service, "Progressing")
        if told.get("reason") == "RollingOut":
            seen.messages.add(told["message"].partition("; ")[2])
        seen.alive.add(len(alive))
        seen.ready.add(sum(_is_ready(one) for one in alive))
        left = old & {one["metadata"]["uid"] for one in pods}
        return not left and len(alive) == count, str(told.get("reason"))

    await eventually(look, lambda one: one == (True, "RolloutComplete"), within=150)
    return seen


async def until_explained(place: Place) -> Json:
    """What `tessera explain` says of the rollout."""

    async def rollout() -> Json:
        found: Json = (await explained(place))["rollout"]
        return found

    return await eventually(rollout, lambda told: told["reason"] == "RollingOut", within=60)


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


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
    place: Place, replicas: int, words: str, manner: str, alive: set[int], ready: set[int]
) -> None:
    """There are four slices: three replicas leave room for just one more, four leave none."""
    ref = await place.serve(replicas=replicas)
    await place.until_ready()
    await until_replicas(place, replicas)
    old = {one["metadata"]["uid"] for one in await place.all(PODS)}
    base = await place.stage.address(ref)
    streams = [asyncio.create_task(stream(base, ref.name)) for _ in range(8)]
    async with steady_load(base, ref.name, clients=4, tokens=40) as load:
        await asyncio.wait(streams, timeout=1)
        assert not any(one.done() for one in streams)
        await place.serve(replicas=replicas, engine={"extraArgs": ["--max-logprobs=5"]})
        seen, told = await asyncio.gather(
            until_rolled(place, old, replicas), until_explained(place)
        )
    assert await asyncio.gather(*streams) == [(TOKENS, "length")] * 8
    assert load.failures == []
    assert load.finished > 50
    assert len(seen.messages) == 1
    assert words in next(iter(seen.messages))
    assert seen.alive <= alive
    assert seen.ready <= ready
    assert words in told["message"]
    assert told["numbers"]["strategy"].startswith(manner)
