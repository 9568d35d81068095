"""What clients of the gateway try: stolen keys, models of others, forged requests, and masses."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_to_bytes

import aiohttp
import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.access import tenant_models
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.limits.fair_queue import QueueBounds
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.relay.sent import Sent
from tessera.gateway.usage.logs import access_line
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    Answer,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
    no_tokens,
)
from tests.hostile.score import SCORE
from world.testing import eventually

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 120
OTHER_KEY, STOLEN_KEY = "tsk-other", "tsk-stolen"
OTHER = {"authorization": f"Bearer {OTHER_KEY}"}


def assert_equal(hostile: Any, peaceful: Any) -> None:
    """Compare what a scene shows with its twin, and count it."""
    SCORE.add(int(hostile != peaceful))
    assert hostile == peaceful


async def test_a_stolen_key_shows_its_address_and_ends_with_its_revocation() -> None:
    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await release.wait()
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    async def all_are_recorded() -> None:
        assert len(gateway.records) == 3

    release = asyncio.Event()
    keys = (an_api_key(STOLEN_KEY, name="laptop"), an_api_key(OTHER_KEY, name="server"))
    async with ScriptedEngine(script) as engine, AsyncExitStack() as stack:
        model = a_model(a_replica(engine.address))
        gateway = await stack.enter_async_context(
            a_gateway(a_directory(model, keys=keys), identifier=Authenticator(no_tokens))
        )
        thief = await stack.enter_async_context(
            aiohttp.ClientSession(
                headers={"authorization": f"Bearer {STOLEN_KEY}"},
                connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0)),
            )
        )
        url = f"{gateway.url}/v1/chat/completions"
        async with thief.post(url, json=STREAM) as stream:
            await stream.content.readuntil(b"\n\n")
            gateway.admission.update(a_directory(model, keys=keys[1:]))
            async with thief.post(url, json=STREAM) as refused:
                assert (refused.status, len(engine.calls)) == (401, 1)
            release.set()
            assert (await stream.content.read()).endswith(DONE)
        answer = await gateway.post(STREAM, **OTHER)
        assert answer.status == 200
        await eventually(all_are_recorded, within=WAIT_SECONDS)
        lines = [json.loads(access_line(record)) for record in gateway.records]
    assert_equal(
        {(line["clientAddress"], line["key"], line["status"]) for line in lines},
        {
            ("127.0.0.2", "laptop", 401),
            ("127.0.0.2", "laptop", 200),
            ("127.0.0.1", "server", 200),
        },
    )


FOREIGN = ("secret", "secret-alias", "secret-lora")
ASKED = ("/v1/chat/completions", "/v1/embeddings", "/tokenize")


async def answers_about(gateway: RunningGateway, names: Sequence[str], **headers: str) -> list[Any]:
    """Return all that the gateway says of models, without the ids of requests."""
    answers: list[Any] = []
    for name in names:
        posts = [await gateway.post({**CHAT, "model": name}, path, **headers) for path in ASKED]
        async with gateway.client.get(f"{gateway.url}/v1/models/{name}", headers=headers) as model:
            posts.append(
                Answer(status=model.status, headers=model.headers, body=await model.read())
            )
        answers += [_comparable(answer, name) for answer in posts]
    async with gateway.client.get(f"{gateway.url}/v1/models", headers=headers) as models:
        answers.append(("models", await models.json()))
    return answers


def _comparable(answer: Answer, name: str) -> Any:
    differing = ("date", "x-request-id", "content-length")
    headers = {key: value for key, value in answer.headers.items() if key.lower() not in differing}
    return answer.status, headers, answer.body.replace(name.encode(), b"NAME")


@pytest.mark.parametrize("models", [(), ("chat",), ("secret",)])
async def test_a_foreign_model_is_answered_as_one_that_does_not_exist(
    models: tuple[str, ...],
) -> None:
    """By every path and name, for a key of all models, of one, and of the foreign one."""
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        own = a_model(a_replica(engine.address))
        foreign = a_model(
            a_replica(engine.address, "secret-1"),
            uid="uid-secret",
            names=FOREIGN[:2],
            adapters=FOREIGN[2:],
            tenant="team-b",
        )
        keys = (an_api_key(models=models), an_api_key(OTHER_KEY, tenant="team-b"))
        beside, alone = a_directory(own, foreign, keys=keys), a_directory(own, keys=keys)
        async with a_gateway(beside) as gateway, a_gateway(alone) as twin:
            hostile = await answers_about(gateway, FOREIGN)
            assert_equal(hostile, await answers_about(twin, FOREIGN))
            unknown = await answers_about(gateway, ("quartz", "quartz-alias", "quartz-lora"))
            assert [answer for answer in hostile if answer[0] != 404] == unknown[-1:]
            assert [answer[0] for answer in unknown[:-1]] == [404] * 12
            assert not engine.calls
            served = await gateway.post({**CHAT, "model": FOREIGN[1]}, **OTHER)
            assert served.status == 200
    # Equal values decide, so the time that it takes says nothing either.
    assert tenant_models(beside, "team-a") == tenant_models(alone, "team-a")


FORGED = {
    "x-tessera-tenant": "team-b",
    "x-tessera-key": "server",
    "x-tessera-service": "team-b/secret",
    "x-forwarded-for": "10.0.0.1",
    "x-forwarded-user": "admin",
    "x-real-ip": "10.0.0.1",
    "x-original-url": "/v1/load_lora_adapter",
    "x-http-method-override": "DELETE",
    "x-auth-request-user": "admin",
    "forwarded": "for=10.0.0.1",
    "openai-organization": "team-b",
    "openai-project": "team-b",
    "connection": "authorization, content-length",
    "cookie": "tenant=team-b",
    "proxy-authorization": "Basic eA==",
}


async def test_forged_headers_change_neither_the_sender_nor_what_the_engine_gets() -> None:
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        directory = a_directory(a_model(a_replica(engine.address)))
        async with a_gateway(directory) as gateway, a_gateway(directory) as twin:
            await gateway.post(CHAT, **FORGED, **{"x-request-id": "one"})
            await twin.post(CHAT, **{"x-request-id": "one"})
            hostile, peaceful = await gateway.record(), await twin.record()
    requests = [(call.path, call.headers, call.body) for call in engine.calls]
    assert_equal(requests[0], requests[1])
    for field in ("tenant", "team", "user", "key", "service", "client_address", "tags"):
        assert getattr(hostile, field) == getattr(peaceful, field)


HEAD = b"host: x\r\nauthorization: Bearer tsk-team-a\r\ncontent-type: application/json\r\n"
INNER = b"POST /v1/load_lora_adapter HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
BODY = json.dumps({**CHAT, "user": f"Zoë\r\n\r\n{INNER.decode()}"}, ensure_ascii=False).encode()
# Of requests that look like two to somebody.
PATHS = (
    b"/v1/chat/completions?a=%0d%0a%0d%0aPOST%20/v1/load_lora_adapter",
    b"/v1/chat/completions?a=\x0bb",
    b"/v1/chat/completions?a=\xe2\x84\x8d",
    b"/v1/chat%2Fcompletions",
    b"/v1/chat/completions%0d%0ax-a:%20b",
    b"/v1/chat/completions/../load_lora_adapter",
    b"//v1/chat/completions",
    b"http://evil/v1/chat/completions",
)


@pytest.mark.parametrize("path", PATHS)
async def test_whatever_a_request_line_says_an_engine_gets_one_request_or_none(path: bytes) -> None:
    response, requests = await requests_for(path)
    assert response.count(b"HTTP/1.1 ") == 1
    expected = [("/v1/chat/completions", BODY)] * response.startswith(b"HTTP/1.1 200 ")
    assert_equal(requests, expected)


_for_engine = Sent.for_engine


def _with_decoded_query(request: Sent, address: str) -> bytes:
    query = unquote_to_bytes(request.identified.query)
    changed = replace(request, identified=replace(request.identified, query=query))
    return _for_engine(changed, address)


def _with_length_in_characters(request: Sent, address: str) -> bytes:
    size, characters = len(request.body), len(request.body.decode())
    length = b"Content-Length: %d"
    return _for_engine(request, address).replace(length % size, length % characters)


@pytest.mark.parametrize("fault", [_with_decoded_query, _with_length_in_characters])
async def test_a_gateway_that_sends_an_engine_something_else_is_seen(
    fault: Callable[[Sent, str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plant a fault by which the engine reads another request, or more than one."""
    monkeypatch.setattr(Sent, "for_engine", fault)
    _, requests = await requests_for(PATHS[0])
    assert requests != [("/v1/chat/completions", BODY)]


async def requests_for(path: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Send a request for the path; return the response, and the paths and bodies at the engine."""
    length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(BODY)
    async with (
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
        asyncio.timeout(WAIT_SECONDS),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST " + path + b" HTTP/1.1\r\n" + HEAD + length + BODY)
        response = await reader.read()
        writer.close()
        # Whatever the engine is sent for it comes before this.
        await gateway.post(CHAT)
    *calls, _ = engine.calls
    return response, [(call.path.partition("?")[0], call.body) for call in calls]


# Requests that the engine has at once, and that may wait of one tenant.
RUNNING, PLACES, OTHERS = 2, 20, 5


async def served_in_order(masses: int) -> tuple[list[str], list[Any]]:
    """Let a tenant send requests while another waits with many, or with those that run alone.

    Returns the order in which the engine gets what waited, and what the tenant is answered.
    """

    async def script(call: EngineCall) -> None:
        arrived.put_nowait(call.json["user"])
        await turns.acquire()
        await call.whole(COMPLETION)

    def send(user: str, **headers: str) -> asyncio.Task[Answer]:
        return asyncio.create_task(gateway.post({**CHAT, "user": user}, **headers))

    async def others_are_refused() -> None:
        assert [task.done() for task in greedy].count(True) == masses - RUNNING - queued

    arrived, turns = asyncio.Queue[str](), asyncio.Semaphore(0)
    keys = (an_api_key(), an_api_key(OTHER_KEY, name="server", tenant="team-b"))
    limits = RateLimitsSpec(requests=PeriodLimits(per_day=1000))
    tenants = {"team-b": TenantLimits(name="team-b", namespaces=("team-b",), limits=limits)}
    bounds = QueueBounds(requests=PLACES + OTHERS, requests_per_tenant=PLACES)
    async with ScriptedEngine(script) as engine, asyncio.timeout(WAIT_SECONDS):
        model = a_model(a_replica(engine.address, max_num_seqs=1), public=True, tenant="team-c")
        directory = a_directory(model, keys=keys, tenants=tenants)
        async with a_gateway(directory, queue_bounds=bounds) as gateway:
            greedy = [send("greedy") for _ in range(masses)]
            for _ in range(RUNNING):
                await arrived.get()
            queued = min(masses - RUNNING, PLACES)
            await gateway.wait_for_queue(queued)
            await eventually(others_are_refused, within=WAIT_SECONDS)
            others = []
            for number in range(1, OTHERS + 1):
                others.append(send(f"other-{number}", **OTHER))
                await gateway.wait_for_queue(queued + number)
            order = []
            for _ in range(queued + OTHERS):
                turns.release()
                order.append(await arrived.get())
            for _ in range(RUNNING):
                turns.release()
            statuses = Counter([(await task).status for task in greedy])
            answers = [await task for task in others]
    assert statuses == Counter({200: RUNNING + queued, 429: masses - RUNNING - queued})
    limit = "x-ratelimit-limit-requests"
    return order, [(answer.status, answer.headers[limit]) for answer in answers]


async def test_a_greedy_tenant_changes_neither_order_nor_limits_of_another() -> None:
    order, answers = await served_in_order(RUNNING + PLACES + 10)
    peaceful_order, peaceful_answers = await served_in_order(RUNNING)
    others = [user for user in order if user != "greedy"]
    assert_equal((others, answers), (peaceful_order, peaceful_answers))
    # Each waited for one request of the greedy tenant, and not for all that came before.
    assert set(order[: 2 * OTHERS]) >= set(others)
