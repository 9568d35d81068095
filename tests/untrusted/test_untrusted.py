"""Whatever a client sends or an engine answers: errors have names, and a bystander sees nothing."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from tessera.domain.picking.engine_page import engine_load
from tessera.gateway.refusals import REFUSALS, RequestError
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from tests.untrusted.bodies import a_body
from tests.untrusted.pages import a_page, metrics_page

pytestmark = pytest.mark.anyio
SHORT, FULL, BETWEEN = 400, 100_000, 10
COUNTS = pytest.mark.parametrize("count", [SHORT, pytest.param(FULL, marks=pytest.mark.full)])
OTHER_KEY, OTHER_MODEL = "tsk-team-b", "quiet"
NAMED = {RequestError(reason, *"????????").code for reason in REFUSALS}
# What a second half may leave behind, of an allocator that is not exact.
GROWTH_BYTES = 16 * 2**20


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def _no_defect(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What raises in the gateway has a line of the server."""
    caplog.set_level(logging.ERROR)
    yield
    assert not caplog.get_records("call")


class Played:
    """A gateway between a hostile and a quiet tenant."""

    def __init__(
        self, gateway: RunningGateway, hostile: ScriptedEngine, quiet: ScriptedEngine
    ) -> None:
        self.gateway = gateway
        self._hostile, self._quiet = hostile, quiet
        self._half = 0

    def renew(self, number: int) -> None:
        """Give the hostile model a replica that has never failed, and forget what was."""
        for seen in (self.gateway.records, self._hostile.calls, self._quiet.calls):
            seen.clear()
        other = a_model(
            a_replica(self._quiet.address, "quiet-1"),
            names=(OTHER_MODEL,),
            uid="uid-quiet",
            tenant="team-b",
        )
        hostile = a_model(a_replica(self._hostile.address, f"chat-{number}"), max_model_len=8192)
        keys = (an_api_key(), an_api_key(OTHER_KEY, name="other", tenant="team-b"))
        self.gateway.admission.update(a_directory(hostile, other, keys=keys))

    async def send(self, path: str, body: bytes) -> str | None:
        """Send a hostile request; return what is wrong with the response."""
        headers = {"content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(60),
                self.gateway.client.post(
                    self.gateway.url + path, data=body, headers=headers
                ) as answer,
            ):
                content = await answer.read()
        except aiohttp.ClientPayloadError:
            # An answer that breaks off is seen as one.
            return None
        return _wrong(answer.status, content)

    async def bystander(self) -> str | None:
        """Send a request of the other tenant; return what is wrong with the response."""
        body = {**CHAT, "model": OTHER_MODEL}
        answer = await self.gateway.post(body, authorization=f"Bearer {OTHER_KEY}")
        is_right = answer.status == 200 and json.loads(answer.body) == COMPLETION
        return None if is_right else f"bystander: {answer}"

    def growth(self, number: int, count: int) -> int:
        """Return how far the process grew in the second half."""
        resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
        if number == count // 2:
            self._half = resident
        return resident - self._half if self._half else 0


def _wrong(status: int, content: bytes) -> str | None:
    if status < 400:
        return None
    try:
        code = json.loads(content)["error"]["code"]
    except (ValueError, TypeError, KeyError):
        # An engine's own words for a refusal.
        return None if status < 500 else f"{status}: {content[:300]!r}"
    return None if status < 500 or code in NAMED else f"{status}: {code}"


@asynccontextmanager
async def playing(hostile: Callable[[EngineCall], Any]) -> AsyncIterator[Played]:
    async def answer(call: EngineCall) -> None:
        await call.whole(COMPLETION)

    async with (
        ScriptedEngine(hostile) as hostile_engine,
        ScriptedEngine(answer) as quiet_engine,
        a_gateway(a_directory()) as gateway,
    ):
        played = Played(gateway, hostile_engine, quiet_engine)
        yield played


async def _play(played: Played, count: int, next_input: Callable[[int], tuple[str, bytes]]) -> None:
    grown = 0
    for number in range(count):
        played.renew(number)
        path, body = next_input(number)
        wrong = await played.send(path, body)
        assert wrong is None, (number, path, body[:500])
        if number % BETWEEN == 0:
            assert await played.bystander() is None, number
            grown = played.growth(number, count)
    assert grown < GROWTH_BYTES


@COUNTS
async def test_no_body_ends_in_an_unnamed_error_or_reaches_another(count: int) -> None:
    async def answer(call: EngineCall) -> None:
        await call.whole(COMPLETION)

    async with playing(answer) as played:
        random = Random(f"bodies-{count}")  # noqa: S311 - a seeded choice
        await _play(played, count, lambda _: a_body(random, "chat"))


@COUNTS
async def test_no_answer_of_an_engine_ends_in_an_unnamed_error_or_reaches_another(
    count: int,
) -> None:
    random = Random(f"pages-{count}")  # noqa: S311 - a seeded choice

    async def answer(call: EngineCall) -> None:
        for piece in a_page(random, streams=bool(call.json.get("stream"))):
            await call.send(piece)
        raise ConnectionError

    def next_input(number: int) -> tuple[str, bytes]:
        return "/v1/chat/completions", json.dumps({**CHAT, "stream": number % 2 == 0}).encode()

    async with playing(answer) as played:
        await _play(played, count, next_input)


@COUNTS
def test_no_metrics_page_raises(count: int) -> None:
    random = Random(f"metrics-{count}")  # noqa: S311 - a seeded choice
    for number in range(count):
        load = engine_load(metrics_page(random), float(number))
        assert load is None or (load.running >= 0 and load.waiting >= 0), number
