"""Requests that run, as `tessera top requests` shows them."""

import asyncio
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from tessera.api.ref import Ref
from tessera.cli.cluster import Reader
from tessera.cli.gateway_port import get
from tessera.cli.top.requests import report_lines
from tessera.domain.explain.request import RequestExplanations
from tessera.domain.gateway.requests import RunningPhase, RunningRequest
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.cli.test_usage import NAMESPACE, NO_OTHERS, TokenApi, review
from tests.gateway.harness import (
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from world.testing import eventually

WAIT_SECONDS = 120


def a_request(age_seconds: float = 3.0, **changes: Any) -> RunningRequest:
    values = {
        "request_id": f"request-{age_seconds:g}",
        "tenant": "team-a",
        "key": "ci",
        "service": "team-a/chat",
        "model": "chat",
        "replica": "chat-1",
        "phase": RunningPhase.DECODE,
        "age_seconds": age_seconds,
        "output_tokens": 8,
    }
    return RunningRequest(**{**values, **changes})


async def test_each_request_is_in_its_phase_and_nothing_of_its_text_is_listed() -> None:
    async def script(call: EngineCall) -> None:
        if call.json["user"] == "decode":
            await call.begin()
            await call.chunk(ROLE + a_delta("secret") + a_delta("secret"))
        arrived.put_nowait(call.json["user"])
        await release.wait()
        if call.json["user"] == "decode":
            await call.chunk(END + USAGE + DONE)
            await call.finish()
        else:
            await call.whole(COMPLETION)

    async def nothing_runs() -> None:
        assert gateway.app.running(10) == ([], 0)

    def send(user: str, **fields: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(gateway.post({**STREAM, "user": user, **fields}))

    arrived, release = asyncio.Queue[str](), asyncio.Event()
    async with asyncio.timeout(WAIT_SECONDS), ScriptedEngine(script) as engine:
        directory = a_directory(
            a_model(a_replica(engine.address, max_num_seqs=1), ttft_seconds=0.0),
            a_model(
                service=Ref("team-a", "night"),
                uid="night",
                names=("night",),
                may_sleep=True,
                ttft_seconds=3600.0,
            ),
        )
        async with a_gateway(directory) as gateway:
            tasks = []
            for user in ("decode", "prefill"):
                tasks.append(send(user))
                await arrived.get()
            await gateway.wait_for_tokens(2)
            tasks.append(send("queued", stream=False))
            await gateway.wait_for_queue(1)
            night_request = send("held", model="night")
            await gateway.woken.wait()
            requests, total = gateway.app.running(10)
            awaiting = gateway.app.awaiting()
            oldest, _ = gateway.app.running(2)
            night_request.cancel()
            tasks[0].cancel()
            await arrived.get()
            after, _ = gateway.app.running(10)
            release.set()
            await asyncio.gather(*tasks, night_request, return_exceptions=True)
            await eventually(nothing_runs, within=WAIT_SECONDS)
    assert total == 4
    # Streams without a token: the one in prefill is overdue, and the held one is not yet.
    chat, night = (awaiting[Ref("team-a", name)] for name in ("chat", "night"))
    assert (chat.overdue, night.overdue) == (1, 0)
    assert chat.oldest_seconds > night.oldest_seconds > 0
    assert [(each.phase, each.output_tokens, each.replica, each.service) for each in requests] == [
        (RunningPhase.DECODE, 2, "chat-1", "team-a/chat"),
        (RunningPhase.PREFILL, 0, "chat-1", "team-a/chat"),
        (RunningPhase.QUEUED, 0, None, "team-a/chat"),
        (RunningPhase.HELD, 0, None, "team-a/night"),
    ]
    assert RunningPhase.RUNNING in {each.phase for each in after}
    assert [each.request_id for each in oldest] == [each.request_id for each in requests[:2]]
    assert {(each.tenant, each.key) for each in requests} == {("team-a", "ci")}
    assert "secret" not in repr(requests)


PRINTED = """
SERVICE      TENANT  KEY  MODEL  PHASE   AGE   TOKENS  REPLICA  REQUEST
team-a/chat  team-a  ci   chat   Decode  2h    8       chat-1   request-7200
team-a/chat  team-a  -    chat   Held    119m  -       -        request-7199
Note: these are of the oldest 500 of 502 requests
"""


async def test_only_a_reader_gets_the_list_and_the_command_prints_it() -> None:
    waiting = {"key": None, "phase": RunningPhase.HELD, "replica": None, "output_tokens": 0}
    many = [a_request(7200.0), a_request(7199.0, **waiting), *map(a_request, range(500))]
    store: Any = None

    class Requests:
        def running(self, limit: int) -> tuple[list[RunningRequest], int]:
            return many[:limit], len(many)

        def explain(self, request_id: str) -> RequestExplanations:
            raise AssertionError(request_id)

    api = InternalApi(
        GatewayMetrics(), store, review, NAMESPACE, dict, Requests(), others=NO_OTHERS
    )
    async with TestServer(api.application()) as server, aiohttp.ClientSession() as session:
        url = str(server.make_url("/requests"))
        async with session.get(url) as refused:
            assert (refused.status, await refused.json()) == (401, {"error": "no bearer token"})
        answer = await get(Reader(TokenApi()), NAMESPACE, url, {})
    assert "\n".join(report_lines(answer["requests"][:2], answer)) == PRINTED.strip()
