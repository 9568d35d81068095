"""What clients who attack do with their requests."""

import asyncio
import http.client
import io
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

from typing_extensions import override

from tests.gateway.harness import (
    KEY,
    ROLE,
    Answer,
    EngineCall,
    a_delta,
)
from tests.hostile.paths import (
    ADDRESS,
    HONEST,
    OTHER_KEY,
    OTHER_MODEL,
    Attack,
    Point,
    Scene,
    silent,
    soon,
)

_LETTERS = "y" * 16_000
FORGED = {
    "x-tessera-tenant": "team-b",
    "x-tessera-key": "other",
    "x-forwarded-for": "10.0.0.1",
    "x-forwarded-user": "admin",
    "x-original-url": "/v1/load_lora_adapter",
    "x-http-method-override": "DELETE",
    "forwarded": "for=10.0.0.1",
    "openai-organization": "team-b",
    "connection": "authorization, content-length",
    "cookie": "tenant=team-b",
    "proxy-authorization": "Basic eA==",
    "traceparent": "00-" + "f" * 32 + "-" + "f" * 16 + "-01",
    "x-session-id": "of another tenant",
}


# --- bytes that no library of a client sends


def _request(
    scene: Scene, *lines: str, body: bytes | None = None, suffix: str = "", keys: Sequence[str] = ()
) -> bytes:
    data = json.dumps(scene.body).encode() if body is None else body
    fields = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(data)}",
        f"x-request-id: {scene.request_id}{suffix}",
        *(f"authorization: Bearer {key}" for key in keys or [KEY]),
        *(f"{name}: {value}" for name, value in scene.path.headers.items()),
        *lines,
    ]
    return "\r\n".join([*fields, "", ""]).encode() + data


class _Received(io.BytesIO):
    """What came on a connection, from which one answer after the other is read."""

    def makefile(self, _mode: str) -> "_Received":
        return self

    @override
    def close(self) -> None:
        """Stay open for the next answer."""


async def _connected(scene: Scene) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    stage = scene.stage
    return await asyncio.open_connection(ADDRESS, stage.gateway.port, ssl=stage.trusted)


async def _exchange(scene: Scene, *requests: bytes) -> list[Answer]:
    """Send requests at once, and read all answers."""
    reader, writer = await _connected(scene)
    writer.write(b"".join(requests))
    received = _Received(await reader.read())
    writer.transport.abort()
    answers = []
    for _ in requests:
        response = http.client.HTTPResponse(cast(Any, received), method="POST")
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        answers.append(Answer(status=response.status, headers=headers, body=response.read()))
    assert not received.read()
    return answers


def _with_keys(*keys: str) -> Callable[[Scene], Coroutine[Any, Any, Answer]]:
    async def send(scene: Scene) -> Answer:
        (answer,) = await _exchange(scene, _request(scene, "connection: close", keys=keys))
        return answer

    return send


async def _two_at_once(scene: Scene) -> Answer:
    answers = await _exchange(
        scene, _request(scene, suffix="-a"), _request(scene, "connection: close", suffix="-b")
    )
    return next((each for each in answers if each.status != 200), answers[0])


async def _with_a_request_in_its_body(scene: Scene) -> Answer:
    inner = _request(scene, suffix="-inner").decode()
    body = json.dumps({**scene.body, "user": inner}, ensure_ascii=False).encode()
    (answer,) = await _exchange(scene, _request(scene, "connection: close", body=body))
    return answer


async def _without_json(scene: Scene) -> Answer:
    (answer,) = await _exchange(scene, _request(scene, "connection: close", body=b'{"model":'))
    return answer


async def _leaves_in_its_body(scene: Scene) -> None:
    _, writer = await _connected(scene)
    writer.write(_request(scene)[:-20])
    await writer.drain()
    await soon(lambda: bool(scene.stage.gateway.held_bytes))
    writer.transport.abort()


async def _reads_nothing(scene: Scene) -> None:
    """Leave an answer unread until the gateway takes no more of it."""
    _, writer = await _connected(scene)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(_request(scene))
    await soon(lambda: scene.reached and scene.stage.gateway.held_bytes > 2**19)
    writer.transport.abort()


def _with_headers(**headers: str) -> Callable[[Scene], Coroutine[Any, Any, Answer]]:
    async def send(scene: Scene) -> Answer:
        stage, fields = scene.stage, {**scene.path.headers, **headers}
        return await stage.post(scene.body, scene.request_id, **fields)

    return send


async def _with_a_long_id(scene: Scene) -> Answer:
    request_id = scene.request_id.ljust(128, "-")
    return await scene.stage.post(scene.body, request_id, **scene.path.headers)


# --- engines of which a client wants no more


async def _begins(call: EngineCall) -> None:
    await call.begin()
    await call.chunk(ROLE + a_delta(HONEST))
    await call.gone.wait()


async def _floods(call: EngineCall) -> None:
    await call.begin()
    await call.chunk(ROLE)
    while not call.gone.is_set():
        await call.chunk(a_delta(_LETTERS))


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


CLIENTS: Mapping[str, Attack] = {
    "forged headers": Attack(send=_with_headers(**FORGED), status=200),
    "an id of 128 characters": Attack(send=_with_a_long_id, status=200),
    "a request in its body": Attack(send=_with_a_request_in_its_body, status=200),
    "two requests at once": Attack(send=_two_at_once, status=200, requests=2),
    "a foreign model": Attack(body={"model": OTHER_MODEL}, status=404, reaches=False),
    "a foreign key": Attack(send=_with_keys("tsk-team-a-1"), status=401, reaches=False),
    "a foreign key and its own": Attack(send=_with_keys(OTHER_KEY, KEY), status=401, reaches=False),
    "its own key and a foreign one": Attack(
        send=_with_keys(KEY, OTHER_KEY), status=401, reaches=False
    ),
    "its own key twice": Attack(send=_with_keys(KEY, KEY), status=401, reaches=False),
    "a schema of 33 levels": Attack(
        body={"response_format": _nested(33)}, status=400, reaches=False, shared=True
    ),
    "a foreign field": Attack(
        body={"kv_transfer_params": {"a": 1}}, status=400, reaches=False, shared=True
    ),
    "no JSON": Attack(send=_without_json, status=400, reaches=False),
    "a wrong word": Attack(
        send=_with_headers(**{"x-tessera-sheddable": "yes"}), status=400, reaches=False
    ),
    "leaves in its body": Attack(send=_leaves_in_its_body, reaches=False),
    "reads nothing": Attack(send=_reads_nothing, answer=_floods),
}


def leavers(points: Sequence[Point]) -> Mapping[str, Attack]:
    """Return the clients that leave at these points."""
    attacks = {
        Point.QUEUE: Attack(leaves=Point.QUEUE, reaches=False),
        Point.ENGINE: Attack(leaves=Point.ENGINE, answer=silent),
        Point.DECODE: Attack(leaves=Point.DECODE, answer=_begins),
        Point.JOINT: Attack(leaves=Point.JOINT, counts=silent, reaches=False),
    }
    return {f"leaves {point}": attacks[point] for point in points}
