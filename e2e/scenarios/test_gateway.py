"""The gateway that the chart installs: keys, OpenAI clients, a service at zero, a new replica."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from demo.cluster import NAMESPACE, InstalledCluster, Json, install
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.commands import run_tessera
from scenarios.lifecycle import write_fleet
from scenarios.streams import kubectl_scale, wait_for_replicas
from tessera.resources.api_resources import PODS
from world import World, start
from world.testing import eventually, is_ready

_HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
_REPLICA = "x-tessera-replica"
_CONNECTIONS = 6
# A new replica gets so much of the requests in so many seconds after it is ready.
_CLIENTS, _MIN_SHARE, _SHARE_SECONDS = 60, 0.4, 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@dataclass(frozen=True, slots=True)
class Gateway:
    """The only pod of the gateway, and the tenant of a namespace with its first key."""

    namespace: ScenarioNamespace
    address: str
    key: str

    @property
    def base(self) -> str:
        return f"http://{self.address}:8443/v1"

    def client(self, key: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self.base, api_key=key or self.key, max_retries=0, timeout=180
        )

    async def usage(self) -> dict[str, Json]:
        """Return the sums of the tenant by key, as `tessera usage` has them."""
        result = await run_tessera(
            self.namespace.cluster,
            *("usage", "--gateway", f"http://{self.address}:8080", "--by", "key"),
            *("--tenant", self.namespace.name, "--output", "json"),
        )
        assert result.code == 0, result.errors
        return {row["key"]: row for row in result.json["rows"]}


@pytest.fixture
async def gateway(
    cluster: InstalledCluster, namespace: ScenarioNamespace
) -> AsyncIterator[Gateway]:
    """The gateway with SQLite, and a tenant that may use it."""
    await install(cluster, "gateway.enabled=true")

    async def ready_pods() -> list[Json]:
        selector = "app.kubernetes.io/name=tessera-gateway"
        pods = await cluster.api.get(PODS.path(NAMESPACE), labelSelector=selector)
        return [pod for pod in pods["items"] if is_ready(pod)]

    (pod,) = await eventually(ready_pods, bool, within=120)
    async with a_budget(namespace, "100000"):
        yield Gateway(namespace, pod["status"]["podIP"], await create_key(namespace, "first"))


async def create_key(namespace: ScenarioNamespace, name: str) -> str:
    """Create a key of the namespace's tenant at the command line; return it."""
    result = await run_tessera(
        namespace.cluster,
        *("key", "create", name, "--tenant", namespace.name, "--output", "json"),
    )
    assert result.code == 0, result.errors
    key: str = result.json["key"]
    return key


async def answered(gateway: Gateway, model: str = "chat") -> str:
    """Send a request until the gateway knows its key and its model; return the replica."""
    async with gateway.client() as client:

        async def send() -> str:
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model=model, messages=_HELLO, max_tokens=4
                )
            except openai.APIStatusError as error:
                return str(error)
            return raw.headers[_REPLICA]

        return await eventually(send, lambda text: text.startswith(model), within=90)


async def is_refused(gateway: Gateway) -> bool:
    """Return whether a new connection, to any of the workers, is refused by its key."""
    async with gateway.client() as client:
        try:
            await client.models.list()
        except openai.AuthenticationError:
            return True
    return False


async def test_openai_clients_are_answered_and_their_usage_is_counted(gateway: Gateway) -> None:
    await gateway.namespace.apply_service(replicas=1)
    await gateway.namespace.wait_until_ready(within=60)
    (replica,) = await gateway.namespace.list_objects(PODS)
    assert await answered(gateway) == replica["metadata"]["name"]

    def answer_synchronously() -> str | None:
        with openai.OpenAI(base_url=gateway.base, api_key=gateway.key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["chat"]
            answer = client.chat.completions.create(model="chat", messages=_HELLO, max_tokens=6)
            return answer.choices[0].message.content

    assert await asyncio.to_thread(answer_synchronously)
    async with gateway.client() as client:
        stream = await client.chat.completions.create(
            model="chat", messages=_HELLO, max_tokens=8, stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert not any(chunk.usage for chunk in chunks)

    usage = await eventually(
        gateway.usage, lambda rows: rows.get("first", {}).get("requests") == 3, within=90
    )
    assert usage["first"]["outputTokens"] == 4 + 6 + 8
    assert usage["first"]["inputTokens"] > 0


async def test_unknown_keys_and_models_are_refused_and_a_revoked_key_at_once(
    gateway: Gateway,
) -> None:
    await gateway.namespace.apply_service(replicas=1)
    await gateway.namespace.wait_until_ready(within=60)
    await answered(gateway)
    async with gateway.client("tsk-nobody") as stranger, gateway.client() as client:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
        with pytest.raises(openai.NotFoundError, match="did you mean `chat`"):
            await client.chat.completions.create(model="chap", messages=_HELLO)

        result = await run_tessera(
            gateway.namespace.cluster,
            *("key", "revoke", "first", "--tenant", gateway.namespace.name),
        )
        revoked_at = time.monotonic()
        assert result.code == 0, result.errors

        async def refused() -> bool:
            return all([await is_refused(gateway) for _ in range(_CONNECTIONS)])

        await eventually(refused, bool, within=90)
        seconds = time.monotonic() - revoked_at
    gateway.namespace.cluster.say(f"the revoked key was refused after {seconds:.2f} s")


async def test_a_service_at_zero_starts_for_a_request_which_is_held_and_answered(
    gateway: Gateway,
) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "30s"}}
    await gateway.namespace.apply_service(scaling=scaling)
    await gateway.namespace.wait_for_condition("chat", "Ready", "ScaledToZero", within=240)
    await wait_for_replicas(gateway.namespace, 0)
    sent_at = time.monotonic()
    async with gateway.client() as client:
        answer = await client.chat.completions.create(model="chat", messages=_HELLO, max_tokens=4)
    seconds = time.monotonic() - sent_at
    gateway.namespace.cluster.say(f"a request at zero was answered after {seconds:.1f} s")
    assert answer.choices[0].message.content


@pytest.mark.full
async def test_a_new_replica_gets_its_share_of_clients_that_keep_their_connections(
    gateway: Gateway,
) -> None:
    ref = await gateway.namespace.apply_service(replicas=1)
    await gateway.namespace.wait_until_ready(within=60)
    first = await answered(gateway)
    begun: list[tuple[float, str]] = []
    ended = asyncio.Event()

    async def run_client() -> None:
        async with gateway.client() as client:
            while not ended.is_set():
                raw = await client.chat.completions.with_raw_response.create(
                    model="chat", messages=_HELLO, max_tokens=100, stream=True
                )
                # Without a replica it had to wait, and began with a comment.
                begun.append((time.monotonic(), raw.headers.get(_REPLICA, "")))
                async for _ in raw.parse():
                    pass

    async def count_begun() -> int:
        return len(begun)

    async with asyncio.TaskGroup() as clients:
        for _ in range(_CLIENTS):
            clients.create_task(run_client())
        # Every connection has had an answer of the first replica.
        await eventually(count_begun, lambda count: count > 2 * _CLIENTS, within=120)
        await kubectl_scale(gateway.namespace.cluster, ref, 2)
        await wait_for_replicas(gateway.namespace, 2, within=120)
        ready_at = time.monotonic()
        await asyncio.sleep(_SHARE_SECONDS)
        ended.set()
    counts = Counter(replica for at, replica in begun if at >= ready_at and replica)
    gateway.namespace.cluster.say(f"requests since the new replica was ready: {dict(counts)}")
    assert counts.total() - counts[first] >= _MIN_SHARE * counts.total() > 0
