"""200 streams while a node dies, or while replicas leave and their streams are moved."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

import pytest

from demo.cluster import Json
from demo.protected_streams import (
    ProtectedStream,
    percentile_95,
    protected_streams,
    run_streams,
)
from scenarios.gateway import Gateway, answered
from scenarios.silent_network import end_silence, silence_network
from scenarios.streams import kubectl_scale, wait_for_replicas
from tessera.domain.names import LEAVING_LABEL
from tessera.resources.api_resources import PODS
from world import World, start
from world.testing import eventually

_STREAMS, _UNPROTECTED, _TOKENS = 200, 10, 120
_REPLICAS, _NODES, _SLICES = 4, 4, 2
# Of a replica.
_PLACES = 100
# Seconds of a step: a stream takes 30 s.
_STEP_SECONDS = 0.25
_DRAIN_SECONDS = 240


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    a100 = {"product": "NVIDIA-A100-SXM4-80GB", "tier": "Reserved", "cloud": "aws"}
    gpus = [["1g.10gb"] * _SLICES]
    nodes = [
        {"name": "control", "kind": "cpu"},
        {"name": "a100", "count": _NODES, "gpus": gpus, **a100},
    ]
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    with start(fleet=path) as world:
        yield world


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas of the service that has the streams, and a gateway before them."""

    gateway: Gateway
    nodes: dict[str, str]
    """Their nodes, by pod."""

    async def pods(self) -> dict[str, Json]:
        """Return their pods, by name."""
        pods = await self.gateway.namespace.list_objects(PODS)
        named = {pod["metadata"]["name"]: pod for pod in pods}
        return {name: pod for name, pod in named.items() if name.startswith("chat-")}

    async def wait_until_gone(self, names: Collection[str]) -> None:
        """Wait for the end of some of the pods."""

        async def are_gone() -> None:
            assert (await self.pods()).keys() & set(names) == set()

        await eventually(are_gone, within=_DRAIN_SECONDS)


async def apply_chat(gateway: Gateway, **environment: str) -> None:
    """Apply the service, whose replicas have room for all streams even without one of them."""
    environment["TESSERA_SIM_SPEED"] = json.dumps({"weights": _STEP_SECONDS})
    env = [{"name": name, "value": value} for name, value in environment.items()]
    await gateway.namespace.apply_service(
        replicas=_REPLICAS,
        podTemplate={"env": env},
        drain={"timeout": f"{_DRAIN_SECONDS}s", "moveStreams": True},
        slo={"itlP95": "1s"},
        context={"maxModelLen": 1024, "typicalInputTokens": 50, "typicalOutputTokens": _TOKENS},
        engine={"maxNumSeqs": _PLACES},
    )


@pytest.fixture
async def replicas(gateway: Gateway) -> Replicas:
    await apply_chat(gateway)
    await wait_for_replicas(gateway.namespace, _REPLICAS)
    await answered(gateway)
    pods = await gateway.namespace.list_objects(PODS)
    nodes = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in pods}
    assert len(set(nodes.values())) > 1
    return Replicas(gateway, nodes)


@asynccontextmanager
async def streaming(replicas: Replicas, *sets: Sequence[ProtectedStream]) -> AsyncIterator[None]:
    """Run streams, and enter the block when each has several tokens; return after their end."""
    gateway, streams = replicas.gateway, [stream for each in sets for stream in each]

    async def all_have_begun() -> None:
        assert min(len(stream.pieces) for stream in streams) >= 8

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_streams(gateway.base, gateway.key, streams))
        await eventually(all_have_begun)
        assert max(len(stream.pieces) for stream in streams) < _TOKENS / 2
        yield


def report(replicas: Replicas, what: str, streams: Sequence[ProtectedStream], text: str) -> None:
    """Say what became of the streams."""
    resumed = [stream for stream in streams if stream.resumed]
    gaps = [stream.longest_gap for stream in resumed]
    lost = sum(stream.is_lost for stream in streams)
    times = dict(Counter(stream.resumed for stream in streams))
    replicas.gateway.namespace.cluster.say(
        f"{what}: {text}; {len(resumed)} of {len(streams)} streams went on elsewhere "
        f"(by how often: {times}); resume_gap_s P50 {median(gaps):.2f}, "
        f"P95 {percentile_95(gaps):.2f}, longest {max(gaps):.2f}, of which a step takes "
        f"{_STEP_SECONDS} s; streams_lost {lost} of {len(streams)}"
    )


async def check_whole(replicas: Replicas, streams: Sequence[ProtectedStream]) -> None:
    """Check that all are whole, with the texts that an engine gives without any fault."""
    assert [(stream.failure, stream.text[-40:]) for stream in streams if not stream.is_whole] == []
    assert {stream.usage["completion_tokens"] for stream in streams} == {_TOKENS}
    namespace = replicas.gateway.namespace
    await namespace.delete_service()
    await namespace.apply_service("reference", replicas=1)
    await namespace.wait_until_ready("reference")
    await answered(replicas.gateway, "reference")
    references = protected_streams("reference", len(streams), _TOKENS)
    await run_streams(replicas.gateway.base, replicas.gateway.key, references)
    for stream, reference in zip(streams, references, strict=True):
        assert stream.text == reference.text
        assert stream.usage["prompt_tokens"] == reference.usage["prompt_tokens"]


@pytest.mark.full
@pytest.mark.parametrize("manner", ["reset", "silent"])
async def test_no_protected_stream_is_lost_with_a_node(replicas: Replicas, manner: str) -> None:
    """Its processes are killed, which resets connections, or its network is silent."""
    gateway, world = replicas.gateway, replicas.gateway.namespace.cluster.world

    async def earlier_request_is_charged() -> Json:
        rows = await gateway.usage()
        assert "first" in rows
        return rows["first"]

    before = await eventually(earlier_request_is_charged)
    streams = protected_streams("chat", _STREAMS, _TOKENS)
    unprotected = protected_streams("chat", _UNPROTECTED, _TOKENS, logprobs=1)
    for stream in unprotected:
        if stream.path == "chat/completions":
            stream.body["logprobs"] = True
    node = Counter(replicas.nodes.values()).most_common()[-1][0]
    on_node = {name for name in replicas.nodes if replicas.nodes[name] == node}
    end: Callable[[], None]
    async with streaming(replicas, streams, unprotected):
        if manner == "reset":
            world.end_node(node)

            def end() -> None:
                world.wake(node)
        else:
            (pid,) = (each.pid for each in world.containers() if each.container == "gateway")
            assert pid is not None
            listening = silence_network(world, pid, node)
            assert len(listening) == len(on_node)

            def end() -> None:
                end_silence(world, node, listening)

    end()
    affected = [stream for stream in streams if stream.replica in on_node]
    marked = [stream for stream in unprotected if stream.replica in on_node]
    report(replicas, manner, streams, f"{len(on_node)} of {_REPLICAS} replicas were on {node}")
    assert affected
    assert all(stream.is_resumable for stream in streams)
    assert {stream.resumed > 0 for stream in affected} == {True}
    assert not any(stream.is_resumable for stream in unprotected)
    assert [stream for stream in unprotected if not stream.is_whole] == marked
    everything = [*streams, *unprotected]
    pieces = sum(len(stream.pieces) for stream in everything)
    whole_prompts = sum(stream.usage["prompt_tokens"] for stream in everything if stream.is_whole)

    async def all_are_charged() -> None:
        row = (await gateway.usage())["first"]
        assert row["requests"] - before["requests"] == len(everything)
        assert row["outputTokens"] - before["outputTokens"] == pieces
        charged = row["inputTokens"] - before["inputTokens"]
        # What a broken stream is charged for its prompt is estimated.
        assert whole_prompts <= charged <= whole_prompts + 100 * len(marked)

    await eventually(all_are_charged)
    await check_whole(replicas, streams)


@pytest.mark.full
async def test_a_scale_down_moves_streams_and_ends_long_before_its_drain_timeout(
    replicas: Replicas,
) -> None:
    streams = protected_streams("chat", _STREAMS, _TOKENS)
    async with streaming(replicas, streams):
        namespace = replicas.gateway.namespace
        await kubectl_scale(namespace.cluster, namespace.ref("chat"), _REPLICAS - 1)

        async def drain_has_begun() -> list[str]:
            pods = await replicas.pods()
            leaving = [name for name in pods if LEAVING_LABEL in pods[name]["metadata"]["labels"]]
            assert leaving != []
            return leaving

        (name,) = await eventually(drain_has_begun)
        began_at = time.monotonic()
        await replicas.wait_until_gone([name])
        seconds = time.monotonic() - began_at
        still_running = sum(not stream.is_done for stream in streams)
    report(replicas, "scale-down", streams, f"the drain took {seconds:.1f} s of {_DRAIN_SECONDS}")
    moved = [stream for stream in streams if stream.replica == name]
    assert moved
    assert {stream.resumed > 0 for stream in moved} == {True}
    assert still_running > _STREAMS / 2
    await check_whole(replicas, streams)


@pytest.mark.full
async def test_a_rolled_template_moves_streams_and_breaks_none(replicas: Replicas) -> None:
    streams = protected_streams("chat", _STREAMS, 3 * _TOKENS)
    async with streaming(replicas, streams):
        began_at = time.monotonic()
        await apply_chat(replicas.gateway, REASON="another template of the same engine")
        await replicas.wait_until_gone(replicas.nodes)
        seconds = time.monotonic() - began_at
        still_running = sum(not stream.is_done for stream in streams)
    report(replicas, "rollout", streams, f"{_REPLICAS} replicas were replaced in {seconds:.1f} s")
    assert [stream.failure for stream in streams if not stream.is_whole] == []
    assert still_running > _STREAMS / 2
