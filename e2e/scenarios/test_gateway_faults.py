"""Two pods of the gateway with a certificate and one database: streams, limits, renewals."""

import asyncio
import hashlib
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from demo.cluster import NAMESPACE, InstalledCluster, Json, Ref
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.commands import run_tessera
from scenarios.gateway import (
    Gateway,
    answered,
    create_key,
    install_with_database,
    ready_pods,
    service_address,
)
from scenarios.streams import kubectl_scale, wait_for_replicas
from tessera.api.key_record import KEYS_TYPE, TENANT_LABEL
from tessera.domain.names import LEAVING_LABEL, keys_namespace
from tessera.resources.api_resources import PODS
from tests.gateway.store.postgresql import PostgresqlServer, postgresql_server
from world import World, start
from world.api import SECRETS
from world.keys import Authority
from world.testing import eventually

_CLIENTS, _REVOKED_CLIENTS, _WAKING_CLIENTS = 180, 20, 10
_TOKENS = 30
# Seconds of a step, so that 200 streams take little of this machine.
_SPEED = {"weights": 0.5}
_NODES, _SLICES = 4, 2
_PODS = 2
_CONNECTIONS = 8
_LIMIT = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Nodes with so many GPUs that their kubelets may be late, as beside other tests they are."""
    gpus = [["1g.10gb"] * _SLICES, *[["7g.80gb"]] * 6]
    a100 = {"product": "NVIDIA-A100-SXM4-80GB", "tier": "Reserved", "cloud": "aws", "gpus": gpus}
    nodes = [{"name": "control", "kind": "cpu"}, {"name": "a100", "count": _NODES, **a100}]
    path = tmp_path_factory.mktemp("fleet") / "fleet.yaml"
    path.write_text(json.dumps({"nodes": nodes}), encoding="utf-8")
    with start(fleet=path) as world:
        yield world


@dataclass(frozen=True, slots=True)
class Certificates:
    """The authority that clients trust, and the Secret of the gateway's certificate."""

    cluster: InstalledCluster
    authority: Authority

    async def issue(self, name: str, address: str) -> int:
        """Write a certificate for an address into the Secret; return its serial number."""
        pair = self.authority.server(name, address)
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "gateway-tls", "namespace": NAMESPACE},
            "type": "kubernetes.io/tls",
            "stringData": {
                "tls.crt": pair.certificate.read_text(),
                "tls.key": pair.key.read_text(),
            },
        }
        await self.cluster.api.apply(SECRETS.path(NAMESPACE, "gateway-tls"), body, "kubectl")
        return x509.load_pem_x509_certificate(pair.certificate.read_bytes()).serial_number


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "keys")


@pytest.fixture
async def certificates(cluster: InstalledCluster, authority: Authority) -> Certificates:
    return Certificates(cluster, authority)


@pytest.fixture
async def gateway(
    cluster: InstalledCluster,
    namespace: ScenarioNamespace,
    certificates: Certificates,
    postgresql: PostgresqlServer,
) -> AsyncIterator[Gateway]:
    """Two pods of the gateway with one PostgreSQL database, which have a certificate."""
    await install_with_database(cluster, postgresql, _PODS, "gateway.tls.secretName=gateway-tls")
    address = await service_address(cluster)
    await certificates.issue("first", address)
    pods = await ready_pods(cluster, _PODS)
    async with a_budget(namespace, "100000"):
        yield Gateway(
            namespace,
            f"https://{address}/v1",
            pods[0]["status"]["podIP"],
            await create_key(namespace, "first"),
            ssl.create_default_context(cafile=str(certificates.authority.own.certificate)),
        )


@dataclass(kw_only=True)
class Stream:
    """One stream as its client saw it."""

    key: str
    model: str
    started_at: float
    status: int = 0
    replica: str = ""
    pieces: int = 0
    is_done: bool = False
    is_resumed: bool = False
    """It went on at another replica."""
    error: Json = field(default_factory=dict)
    broken: str = ""
    ended_at: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.is_done and self.pieces == _TOKENS and not self.error and not self.broken

    @property
    def is_refused(self) -> bool:
        return self.status == 401

    def is_of(self, replicas: Collection[str]) -> bool:
        """Return whether one of the replicas had it; a stream that waited names it in its error."""
        message = self.error.get("message", "")
        return self.replica in replicas or any(name in message for name in replicas)

    def spans(self, moment: float) -> bool:
        return self.started_at < moment < self.ended_at

    def take(self, line: bytes) -> None:
        """Take one line of the response."""
        if line.startswith(b"data: [DONE]"):
            self.is_done = True
        elif line.startswith(b": x-tessera-resumed: "):
            self.is_resumed = True
        elif line.startswith(b"data: "):
            event = json.loads(line.removeprefix(b"data: "))
            self.error = event.get("error", self.error)
            self.pieces += sum(bool(choice["text"]) for choice in event.get("choices", ()))


@dataclass(kw_only=True)
class Clients:
    """Clients that keep their connection, and send again when a stream has ended."""

    gateway: Gateway
    streams: list[Stream] = field(default_factory=list)
    ending: bool = False

    async def run(self, key: str, model: str, requests: int | None = None) -> None:
        """Stream until the key is refused, or all are to end."""
        connector = aiohttp.TCPConnector(limit=1, ssl=self.gateway.tls or True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not self.ending and requests != 0:
                stream = Stream(key=key, model=model, started_at=time.monotonic())
                self.streams.append(stream)
                await self._stream(session, stream)
                stream.ended_at = time.monotonic()
                if stream.is_refused:
                    return
                requests = None if requests is None else requests - 1

    async def _stream(self, session: aiohttp.ClientSession, stream: Stream) -> None:
        body = {
            "model": stream.model,
            "prompt": "tell me everything",
            "max_tokens": _TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"Authorization": f"Bearer {stream.key}"}
        try:
            async with session.post(
                f"{self.gateway.base}/completions", json=body, headers=headers
            ) as response:
                stream.status = response.status
                stream.replica = response.headers.get("x-tessera-replica", "")
                if response.status != 200:
                    stream.error = (await response.json())["error"]
                async for line in response.content:
                    stream.take(line)
        except (aiohttp.ClientError, OSError) as error:
            stream.broken = repr(error)

    async def have_begun(self, count: int) -> None:
        """Assert that so many streams have a first token."""
        assert sum(stream.pieces > 0 for stream in self.streams) >= count


@dataclass(kw_only=True)
class Changes:
    """What happened to the fleet, and when."""

    gateway: Gateway
    chat: Ref
    drained: str = ""
    lost: frozenset[str] = frozenset()
    """Replicas of the dead node."""
    at: dict[str, float] = field(default_factory=dict)

    async def roll_gateway(self) -> None:
        cluster = self.gateway.namespace.cluster
        command = ("kubectl", "--namespace", NAMESPACE, "rollout")
        self.at["roll"] = time.monotonic()
        await cluster.run(*command, "restart", "deployment/tessera-gateway")
        await cluster.run(*command, "status", "deployment/tessera-gateway", "--timeout=300s")
        await ready_pods(cluster, _PODS)
        self.at["rolled"] = time.monotonic()

    async def revoke(self) -> None:
        namespace = self.gateway.namespace
        result = await run_tessera(
            namespace.cluster, "key", "revoke", "second", "--tenant", namespace.name
        )
        self.at["revoke"] = time.monotonic()
        assert result.code == 0, result.errors

    async def drain_and_lose(self, replicas: int) -> None:
        """Remove a replica, and while it drains let the node of another one die."""
        namespace = self.gateway.namespace
        await kubectl_scale(namespace.cluster, self.chat, replicas - 1)

        async def replica_is_leaving() -> list[str]:
            metas = [pod["metadata"] for pod in await namespace.list_objects(PODS)]
            leaving = [meta["name"] for meta in metas if LEAVING_LABEL in meta["labels"]]
            assert leaving != []
            return leaving

        (self.drained,) = await eventually(replica_is_leaving)
        self.at["drain"] = time.monotonic()
        pods = await namespace.list_objects(PODS)
        node_of = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in pods}
        node = next(
            node
            for name, node in node_of.items()
            if name.startswith("chat-") and node not in (None, node_of[self.drained])
        )
        self.lost = frozenset(name for name in node_of if node_of[name] == node)
        namespace.cluster.world.end_node(node)


@pytest.mark.full
async def test_streams_outlast_a_rolling_gateway_a_drain_a_dead_node_and_a_revoked_key(
    gateway: Gateway,
) -> None:
    namespace = gateway.namespace
    env = [{"name": "TESSERA_SIM_SPEED", "value": json.dumps(_SPEED)}]
    replicas = 5
    asleep = {"minReplicas": 0, "maxReplicas": 1, "idle": {"after": "30s"}}
    await namespace.apply_service("sleeper", scaling=asleep)
    chat = await namespace.apply_service(replicas=replicas, podTemplate={"env": env})
    await wait_for_replicas(namespace, replicas)
    await namespace.wait_for_condition("sleeper", "Ready", "ScaledToZero")
    second = await create_key(namespace, "second")
    await answered(gateway)

    clients, changes = Clients(gateway=gateway), Changes(gateway=gateway, chat=chat)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_CLIENTS):
            tasks.create_task(clients.run(gateway.key, "chat"))
        for _ in range(_REVOKED_CLIENTS):
            tasks.create_task(clients.run(second, "chat"))
        everyone = _CLIENTS + _REVOKED_CLIENTS
        await eventually(partial(clients.have_begun, everyone))
        for _ in range(_WAKING_CLIENTS):
            tasks.create_task(clients.run(gateway.key, "sleeper", requests=1))
        await asyncio.gather(
            changes.roll_gateway(), changes.revoke(), changes.drain_and_lose(replicas)
        )
        clients.ending = True
    streams, at = clients.streams, changes.at
    whole = [stream for stream in streams if stream.is_whole]
    resumed = [stream for stream in whole if stream.is_resumed]
    refused = [stream for stream in streams if stream.is_refused]
    failed = [stream for stream in streams if not stream.is_whole and not stream.is_refused]
    namespace.cluster.say(
        f"{len(streams)} streams, {len(whole)} whole, of which {len(resumed)} went on at "
        f"another replica, {len(refused)} refused, {len(failed)} failed "
        f"with {Counter(stream.error.get('code') for stream in failed)}; the gateway rolled in "
        f"{at['rolled'] - at['roll']:.0f} s"
    )
    # A stream with a revoked key does not go on elsewhere.
    assert [stream for stream in failed if stream.key != second] == []
    for stream in failed:
        assert stream.is_of(changes.lost)
        assert (stream.status, stream.broken, stream.is_done) == (200, "", False)
        assert (stream.error["type"], stream.error["code"]) == ("server_error", "stream_broken")
    assert resumed
    assert {stream.replica for stream in resumed if stream.replica} <= changes.lost
    assert Counter(stream.key for stream in refused) == {second: _REVOKED_CLIENTS}
    assert any(stream.spans(at["revoke"]) for stream in whole if stream.key == second)
    assert any(stream.spans(at["drain"]) for stream in whole if stream.replica == changes.drained)
    assert sum(stream.spans(at["roll"]) for stream in whole) > _CLIENTS / 2
    assert sum(stream.model == "sleeper" for stream in whole) == _WAKING_CLIENTS


@pytest.mark.full
async def test_a_renewed_certificate_is_used_for_new_connections_and_ends_no_stream(
    gateway: Gateway, certificates: Certificates
) -> None:
    namespace = gateway.namespace
    env = [{"name": "TESSERA_SIM_SPEED", "value": json.dumps(_SPEED)}]
    await namespace.apply_service(replicas=1, podTemplate={"env": env})
    await namespace.wait_until_ready(within=120)
    await answered(gateway)
    async with aiohttp.ClientSession() as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(f"{gateway.base}/models")

    address = await service_address(namespace.cluster)
    clients = Clients(gateway=gateway)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_WAKING_CLIENTS):
            tasks.create_task(clients.run(gateway.key, "chat"))
        await eventually(partial(clients.have_begun, _WAKING_CLIENTS))
        serial = await certificates.issue("renewed", address)

        async def certificate_is_shown() -> None:
            # At most likely by all pods.
            for _ in range(_CONNECTIONS):
                assert await _shown_serial(gateway, address) == serial

        await eventually(certificate_is_shown)
        shown_at = time.monotonic()
        clients.ending = True
    assert [stream for stream in clients.streams if not stream.is_whole] == []
    assert any(stream.spans(shown_at) for stream in clients.streams)


async def _shown_serial(gateway: Gateway, address: str) -> int:
    """Return the serial number that a new connection sees."""
    _, writer = await asyncio.open_connection(address, 443, ssl=gateway.tls)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).serial_number


@dataclass(kw_only=True)
class LimitedClient:
    """Sends requests with a limited key to the pods of the gateway, each on a new connection."""

    gateway: Gateway
    key: str
    name: str
    """In the certificate."""
    admitted: Counter[str] = field(default_factory=Counter)
    """By pod."""
    refusals: list[tuple[Mapping[str, str], Json]] = field(default_factory=list)
    """Headers and errors."""

    async def is_known(self, pods: Sequence[str]) -> None:
        """Assert that every pod knows the key, by a request that counts for no limit."""
        for pod in pods:
            async with self._request("GET", pod, "models") as response:
                assert response.status == 200, await response.text()

    async def send_to_all(self, pods: Sequence[str], requests: int) -> None:
        """Send so many requests to each pod at once; a wait repeats none that fails."""
        async with asyncio.TaskGroup() as tasks:
            for pod in pods:
                for _ in range(requests):
                    tasks.create_task(self._send(pod))

    async def _send(self, pod: str) -> None:
        body = {"model": "chat", "prompt": "a", "max_tokens": 2}
        async with self._request("POST", pod, "completions", json=body) as response:
            answer = await response.json()
            if response.status == 200:
                self.admitted[pod] += 1
            else:
                assert response.status == 429, answer
                self.refusals.append((response.headers, answer["error"]))

    @asynccontextmanager
    async def _request(
        self, method: str, pod: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.key}"}) as session,
            session.request(
                method,
                f"https://{pod}:8443/v1/{path}",
                ssl=self.gateway.tls or True,
                server_hostname=self.name,
                **options,
            ) as response,
        ):
            yield response


@pytest.mark.full
async def test_two_gateways_together_admit_no_more_than_a_limit(gateway: Gateway) -> None:
    namespace = gateway.namespace
    await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready(within=120)
    await answered(gateway)
    key = "tsk-of-a-repository"
    record = {
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "rateLimits": {"requests": {"perDay": _LIMIT}},
    }
    secret_name = f"keys-of-{namespace.name}"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name,
            "namespace": keys_namespace(NAMESPACE),
            "labels": {TENANT_LABEL: namespace.name},
        },
        "type": KEYS_TYPE,
        "stringData": {"limited": json.dumps(record)},
    }
    path = SECRETS.path(keys_namespace(NAMESPACE), secret_name)
    await namespace.cluster.api.apply(path, secret, "kubectl")
    name = await service_address(namespace.cluster)
    client = LimitedClient(gateway=gateway, key=key, name=name)
    pods = [pod["status"]["podIP"] for pod in await ready_pods(namespace.cluster, _PODS)]
    await eventually(partial(client.is_known, pods))
    began_at = time.monotonic()

    # What one pod has borrowed and not used, the others get a second later.
    async def limit_is_reached() -> None:
        await client.send_to_all(pods, _CONNECTIONS)
        assert client.admitted.total() >= _LIMIT

    await eventually(limit_is_reached)
    refused_before = len(client.refusals)
    await client.send_to_all(pods, _CONNECTIONS)
    namespace.cluster.say(f"admitted of a limit of {_LIMIT} a day: {dict(client.admitted)}")
    refilled_seconds = time.monotonic() - began_at
    assert client.admitted.total() == _LIMIT
    assert set(client.admitted) == set(pods)
    assert len(client.refusals) - refused_before == _CONNECTIONS * _PODS
    for headers, error in client.refusals[refused_before:]:
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert (
            f"Key/{namespace.name}/limited: limit {_LIMIT} requests per day, remaining 0"
            in error["message"]
        )
        assert headers["x-ratelimit-limit-requests"] == str(_LIMIT)
        assert headers["x-ratelimit-remaining-requests"] == "0"
        # One request is refilled in a fortieth of a day, whichever gateway took the last.
        request_seconds = 86_400 / _LIMIT
        assert request_seconds - refilled_seconds <= int(headers["retry-after"]) <= request_seconds
    await namespace.cluster.api.delete(path)
