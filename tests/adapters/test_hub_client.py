"""A hub's response becomes a commit, or a reason why there is none."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tessera.adapters.hub_client import HttpHub
from tessera.api.template_version import Platform
from tessera.domain.observed.snapshot import Resolution, RevisionQuery

COMMIT = "0123456789abcdef" * 2 + "01234567"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def a_hub(handler: Handler, seconds: float = 60) -> AsyncIterator[HttpHub]:
    """Start a server on its own address, and yield the client that asks it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.9", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    hub = HttpHub(Platform(hub_endpoint=f"http://{host}:{port}/"), seconds)
    try:
        yield hub
    finally:
        await hub.close()
        await runner.cleanup()


def respond_with(status: int = 200, body: object = None, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=json.dumps(body), headers=headers)

    return answer


async def resolve(handler: Handler, revision: str = "main", seconds: float = 60) -> Resolution:
    async with a_hub(handler, seconds) as hub:
        return await hub.resolve(RevisionQuery("org/name", revision))


async def test_the_commit_is_the_sha_of_the_revision() -> None:
    seen: list[tuple[str, bool]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.raw_path, "Authorization" in request.headers))
        return web.json_response({"id": "org/name", "sha": COMMIT, "siblings": []})

    resolution = await resolve(answer, "refs/pr/1")
    assert (resolution.commit, resolution.reason) == (COMMIT, "RevisionResolved")
    assert seen == [("/api/models/org/name/revision/refs%2Fpr%2F1", False)]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "TokenRequired"),
        (403, "TokenRequired"),
        (404, "RevisionNotFound"),
        (503, "HubUnreachable"),
        (599, "HubUnreachable"),
    ],
)
async def test_a_refusal_has_its_reason_and_its_number(status: int, reason: str) -> None:
    resolution = await resolve(respond_with(status, {"error": "no"}))
    assert (resolution.commit, resolution.reason) == (None, reason)
    assert str(status) in resolution.message


@pytest.mark.parametrize("body", [{}, [], "text", {"sha": None}, {"sha": "main"}, {"sha": 7}])
async def test_an_answer_without_a_commit_is_none(body: object) -> None:
    resolution = await resolve(respond_with(200, body))
    assert (resolution.commit, resolution.reason) == (None, "HubUnreachable")


async def test_a_model_that_was_renamed_is_followed() -> None:
    async def answer(request: web.Request) -> web.Response:
        if "/org/name/" in request.path:
            raise web.HTTPTemporaryRedirect("/api/models/org/renamed/revision/main")
        return web.json_response({"sha": COMMIT})

    assert (await resolve(answer)).commit == COMMIT


async def test_a_silent_hub_is_given_up() -> None:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with asyncio.timeout(60):
        resolution = await resolve(answer, seconds=0.3)
    assert (resolution.commit, resolution.reason) == (None, "HubUnreachable")


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        try:
            while True:
                await stream.write(b" " * 2**20)
        except ConnectionError:
            return stream

    async with asyncio.timeout(60):
        resolution = await resolve(answer)
    assert resolution.commit is None


async def test_an_answer_that_unpacks_to_more_is_no_answer() -> None:
    encodings: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        encodings.append(request.headers["Accept-Encoding"])
        packed = gzip.compress(json.dumps({"sha": COMMIT}).encode())
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    assert (await resolve(answer)).commit is None
    assert encodings == ["identity"]


async def test_an_unreachable_hub_is_reported() -> None:
    hub = HttpHub(Platform(hub_endpoint="http://127.0.0.9:1"), seconds=2)
    resolution = await hub.resolve(RevisionQuery("org/name", "main"))
    await hub.close()
    assert (resolution.commit, resolution.reason) == (None, "HubUnreachable")
    assert "/api/models/org/name" in resolution.message
