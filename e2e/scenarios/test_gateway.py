"""The gateway that the chart installs: keys, OpenAI clients, a service at zero, a new replica."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain

import aiohttp
import openai
import pytest

from demo.charges import set_price
from demo.cluster import NAMESPACE, InstalledCluster, Json
from demo.protected_streams import protected_streams, run_streams
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.batches import RowCounts, create_shared_claim
from scenarios.commands import run_tessera
from scenarios.gateway import (
    HELLO,
    REPLICA,
    Gateway,
    answered,
    create_key,
    install_with_database,
    is_charged,
    is_refused,
    ready_pods,
)
from scenarios.replay import Answer, Target, failures, stream_until
from scenarios.streams import kubectl_scale, wait_for_replicas
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.resources.api_resources import PODS
from tests.gateway.store.postgresql import postgresql_server
from world import World
from world.testing import eventually

_CONNECTIONS = 6
# A new replica gets so much of the requests in so many seconds after it is ready.
_CLIENTS, _MIN_SHARE, _SHARE_SECONDS = 60, 0.4, 10
# Clients of two gateways for each place of the engine, and for how long once the engine is full.
_CLIENTS_PER_PLACE, _OVERLOAD_SECONDS = 1.2, 12
_KILLED_AFTER_SECONDS = 7
_ROWS = 20
# Streams of ten seconds, so that a late kill comes while they run.
_STREAMS, _TOKENS, _STEP_SECONDS = 12, 100, 0.1


@pytest.fixture(scope="module")
def world(small_world: World) -> World:
    return small_world


async def test_openai_clients_are_answered_and_their_usage_is_counted(gateway: Gateway) -> None:
    await gateway.namespace.apply_service(replicas=1)
    await gateway.namespace.wait_until_ready()
    (replica,) = await gateway.namespace.list_objects(PODS)
    assert await answered(gateway) == replica["metadata"]["name"]

    def answer_synchronously() -> str | None:
        with openai.OpenAI(base_url=gateway.base, api_key=gateway.key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["chat"]
            answer = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=6)
            return answer.choices[0].message.content

    assert await asyncio.to_thread(answer_synchronously)
    async with gateway.client() as client:
        stream = await client.chat.completions.create(
            model="chat", messages=HELLO, max_tokens=8, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert not any(chunk.usage for chunk in chunks)

    async def usage_is_counted() -> None:
        usage = (await gateway.usage()).get("first", {})
        assert (usage.get("requests"), usage.get("outputTokens")) == (3, 4 + 6 + 8)
        assert usage["inputTokens"] > 0

    await eventually(usage_is_counted)


async def test_unknown_keys_and_models_are_refused_and_a_revoked_key_at_once(
    gateway: Gateway,
) -> None:
    await gateway.namespace.apply_service(replicas=1)
    await gateway.namespace.wait_until_ready()
    await answered(gateway)
    async with gateway.client("tsk-nobody") as stranger, gateway.client() as client:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
        with pytest.raises(openai.NotFoundError, match="did you mean `chat`"):
            await client.chat.completions.create(model="chap", messages=HELLO)

        result = await run_tessera(
            gateway.namespace.cluster,
            *("key", "revoke", "first", "--tenant", gateway.namespace.name),
        )
        revoked_at = time.monotonic()
        assert result.code == 0, result.errors

        async def all_are_refused() -> None:
            for _ in range(_CONNECTIONS):
                assert await is_refused(gateway)

        await eventually(all_are_refused)
        seconds = time.monotonic() - revoked_at
    gateway.namespace.cluster.say(f"the revoked key was refused after {seconds:.2f} s")


async def test_a_batch_pays_for_each_row_from_a_limit_of_charges(gateway: Gateway) -> None:
    namespace = gateway.namespace
    cluster = namespace.cluster
    batches = await create_shared_claim(cluster, namespace.name)
    await set_price(cluster, namespace.name, "chat")
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    await eventually(partial(is_charged, gateway))
    limits = [
        {"window": "Month", "amount": "100000"},
        {"window": "Month", "amount": "1000", "basis": "Charge"},
    ]
    path = TENANT_BUDGETS.path(None, namespace.name)
    await cluster.api.patch(path, {"spec": {"limits": limits}})
    batch = await batches.submit("night", rows=_ROWS, tokens=5, service="chat")
    await batch.wait_until_completed()
    assert batch.count_rows() == RowCounts(lost=0, duplicates=0, wrong=())
    address = f"http://{gateway.pod_address}:8080"
    command = ("cost", "--by", "class", "--gateway", address, "--since", "1h", "-o", "json")

    async def each_row_is_paid_for() -> None:
        result = await run_tessera(cluster, *command)
        assert result.code == 0, result.errors
        cluster.say(result.output)
        (row,) = (each for each in result.json["rows"] if each["class"] == "Batch")
        assert row["requests"] == _ROWS
        assert float(row["charge"]) > 0

    await eventually(each_row_is_paid_for)


@pytest.mark.full
async def test_streams_go_on_at_another_replica_when_theirs_is_killed(gateway: Gateway) -> None:
    namespace = gateway.namespace
    env = [{"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": _STEP_SECONDS})}]
    await namespace.apply_service(replicas=2, podTemplate={"env": env})
    await wait_for_replicas(namespace, 2)
    await answered(gateway)
    streams = protected_streams("chat", _STREAMS, _TOKENS)

    async def all_have_begun() -> None:
        assert min(len(stream.pieces) for stream in streams) > 3

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_streams(gateway.base, gateway.key, streams))
        await eventually(all_have_begun)
        killed = streams[0].replica
        namespace.cluster.world.kill(namespace.name, killed, "engine")
    assert [stream.failure for stream in streams if not stream.is_whole] == []
    assert {len(stream.pieces) for stream in streams} == {_TOKENS}
    assert {stream.replica for stream in streams if stream.resumed} == {killed}
    assert all(stream.resumed for stream in streams if stream.replica == killed)


@pytest.mark.full
async def test_a_service_at_zero_starts_for_a_request_which_is_held_and_answered(
    gateway: Gateway,
) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "30s"}}
    await gateway.namespace.apply_service(scaling=scaling)
    await gateway.namespace.wait_for_condition("chat", "Ready", "ScaledToZero")
    await wait_for_replicas(gateway.namespace, 0)
    sent_at = time.monotonic()
    async with gateway.client() as client:
        answer = await client.chat.completions.create(model="chat", messages=HELLO, max_tokens=4)
    seconds = time.monotonic() - sent_at
    gateway.namespace.cluster.say(f"a request at zero was answered after {seconds:.1f} s")
    assert answer.choices[0].message.content


@asynccontextmanager
async def keep_alive_clients(base: str, key: str) -> AsyncIterator[list[tuple[float, str]]]:
    """Run clients that stream one request after the other, each on its own connection.

    Yields when every connection has had two answers: when streams began, and on which replica; a
    stream that waited long, or that no gateway relayed, does not say.
    """
    begun: list[tuple[float, str]] = []
    ended = asyncio.Event()

    async def run_client() -> None:
        async with openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0) as client:
            while not ended.is_set():
                raw = await client.chat.completions.with_raw_response.create(
                    model="chat", messages=HELLO, max_tokens=100, stream=True
                )
                begun.append((time.monotonic(), raw.headers.get(REPLICA, "")))
                async for _ in raw.parse():
                    pass

    async def all_have_begun() -> None:
        assert len(begun) > 2 * _CLIENTS

    async with asyncio.TaskGroup() as clients:
        for _ in range(_CLIENTS):
            clients.create_task(run_client())
        await eventually(all_have_begun)
        yield begun
        ended.set()


@pytest.mark.full
async def test_a_new_replica_gets_its_share_of_clients_that_keep_their_connections(
    gateway: Gateway,
) -> None:
    ref = await gateway.namespace.apply_service(replicas=1)
    await gateway.namespace.wait_until_ready()
    first = await answered(gateway)
    async with keep_alive_clients(gateway.base, gateway.key) as begun:
        await kubectl_scale(gateway.namespace.cluster, ref, 2)
        await wait_for_replicas(gateway.namespace, 2)
        ready_at = time.monotonic()
        await asyncio.sleep(_SHARE_SECONDS)
    counts = Counter(replica for at, replica in begun if at >= ready_at and replica)
    gateway.namespace.cluster.say(f"requests since the new replica was ready: {dict(counts)}")
    assert counts.total() - counts[first] >= _MIN_SHARE * counts.total() > 0


@pytest.mark.full
async def test_without_the_gateway_a_condition_says_that_the_new_replica_stays_idle(
    namespace: ScenarioNamespace,
) -> None:
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    (first,) = await namespace.list_objects(PODS)
    base = await namespace.cluster.address(ref)
    async with keep_alive_clients(f"{base}/v1", "none"):
        await kubectl_scale(namespace.cluster, ref, 2)
        await wait_for_replicas(namespace, 2)
        # A new replica has a minute to get its share.
        condition = await namespace.wait_for_condition("chat", "LoadBalanced", "Unbalanced")
    namespace.cluster.say(condition["message"])
    assert condition["status"] == "False"
    match = re.match(
        r"(\d+) of (\d+) running and waiting requests are on Pod/(\S+), "
        r"while 1 of 2 replicas hold hardly any: ",
        condition["message"],
    )
    assert match is not None, condition["message"]
    fullest, total, pod = match.groups()
    assert pod == first["metadata"]["name"]
    assert _CLIENTS / 2 <= int(fullest) <= int(total)
    assert "Send requests through the gateway" in condition["message"]


@pytest.mark.full
async def test_what_clients_got_is_recorded_when_the_gateway_is_killed_under_streams(
    gateway: Gateway,
) -> None:
    namespace, world = gateway.namespace, gateway.namespace.cluster.world
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    await answered(gateway)

    async def first_request_is_recorded() -> Json:
        usage = await gateway.usage()
        assert "first" in usage
        return usage["first"]

    before = await eventually(first_request_is_recorded)
    headers = {"Authorization": f"Bearer {gateway.key}"}
    target = Target(base=gateway.base, model="chat", headers=headers, keeps_connections=True)
    pod = next(
        container.pod for container in world.containers() if container.container == "gateway"
    )
    ended, begun = asyncio.Event(), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(stream_until(target, ended, 300)) for _ in range(20)]
        await asyncio.sleep(_KILLED_AFTER_SECONDS)
        ended.set()
        world.kill(NAMESPACE, pod, "gateway")

    await ready_pods(namespace.cluster, 1, min_restarts=1)
    answers = list(chain.from_iterable(stream.result() for stream in streams))
    whole = sum(not answer.failure for answer in answers)
    broken = len(answers) - whole
    assert broken > 0
    delivered = sum(answer.pieces for answer in answers)
    requests = before["requests"] + sum(answer.pieces > 0 for answer in answers)
    # At most what the unfinished ones got in their last second is lost.
    lost = broken * delivered / len(streams) / _KILLED_AFTER_SECONDS

    async def all_are_recorded() -> int:
        after = (await gateway.usage())["first"]
        assert after["requests"] >= requests
        recorded = int(after["outputTokens"] - before["outputTokens"])
        assert delivered - lost <= recorded <= delivered + lost
        return recorded

    recorded = await eventually(all_are_recorded)
    namespace.cluster.say(
        f"{whole} whole and {broken} broken streams got {delivered} tokens in "
        f"{time.monotonic() - begun:.0f} s; {recorded} are recorded"
    )


@pytest.fixture
async def gateways(
    cluster: InstalledCluster, namespace: ScenarioNamespace
) -> AsyncIterator[list[Gateway]]:
    """Two pods of the gateway with one database, each with the address of its own."""
    with postgresql_server() as server:
        await install_with_database(cluster, server, 2)
        pods = await ready_pods(cluster, 2)
        async with a_budget(namespace, "100000"):
            key = await create_key(namespace, "first")
            addresses = [pod["status"]["podIP"] for pod in pods]
            yield [
                Gateway(namespace, f"http://{address}:8443/v1", address, key)
                for address in addresses
            ]


@pytest.mark.full
async def test_two_gateways_use_every_place_of_an_engine_and_serve_the_clients_of_both(
    gateways: list[Gateway],
) -> None:
    namespace = gateways[0].namespace
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready()
    (replica,) = await namespace.list_objects(PODS)
    places = (await namespace.service_status())["variant"]["maxNumSeqs"]
    engine = f"http://{replica['status']['podIP']}:8000/metrics"
    targets = [
        Target(
            base=gateway.base,
            model="chat",
            headers={"Authorization": f"Bearer {gateway.key}"},
            keeps_connections=True,
        )
        for gateway in gateways
    ]

    async def engine_is_full() -> float:
        async with aiohttp.ClientSession() as http, http.get(engine) as response:
            metrics = await response.text()
        match = re.search(r"^vllm:num_requests_running\S* (\S+)", metrics, re.M)
        running = float(match[1]) if match else 0.0
        assert running >= 0.95 * places
        return running

    for gateway in gateways:
        await answered(gateway)
    ended, clients = asyncio.Event(), round(places / 2 * _CLIENTS_PER_PLACE)
    async with asyncio.TaskGroup() as tasks:
        streams = [
            [tasks.create_task(stream_until(target, ended, 200)) for _ in range(clients)]
            for target in targets
        ]
        await eventually(engine_is_full)
        await asyncio.sleep(_OVERLOAD_SECONDS)
        running = await eventually(engine_is_full, within=30)
        ended.set()
    answers: list[list[Answer]] = [
        list(chain.from_iterable(task.result() for task in group)) for group in streams
    ]
    counts = [len(group) for group in answers]
    namespace.cluster.say(
        f"{2 * clients} clients on {places} places: {running:.0f} ran, answers by pod {counts}"
    )
    assert failures(chain.from_iterable(answers)) == []
    assert min(counts) >= 0.35 * sum(counts)
