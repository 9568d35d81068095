"""What courses are made of: bytes of clients, scripts of engines, and a fleet."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tessera.domain.gateway.directory import Directory, EngineReplica
from tests.gateway.course.paths import BODIES, answer_of, stream_of
from tests.gateway.course.play import Course, PlayedEngine, Script, Step, whole_answer
from tests.gateway.harness import KEY, a_directory, a_model, a_replica, an_api_key

CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"
FIRST, SECOND, THIRD = (f"192.0.2.{number}:8000" for number in (101, 102, 103))
CHUNKED = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
Json = dict[str, Any]


# --- what clients send


def request(
    path: str,
    body: Any,
    *,
    method: str = "POST",
    key: str | None = KEY,
    **headers: str,
) -> bytes:
    """Return the bytes of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": "gateway", "content-type": "application/json", "x-request-id": "r-1"}
    if key is not None:
        lines["authorization"] = f"Bearer {key}"
    lines["content-length"] = str(len(data))
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def sent(data: bytes, *then: Step, seconds: float = 0.0113) -> Script:
    return (Step(seconds, "send", data), *then)


def streamed(path: str, **fields: Any) -> Json:
    return {**BODIES[path], "stream": True, **fields}


# --- what engines do


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: object, status: int = 200, seconds: float = 0.0517, **options: Any) -> Script:
    return (Step(seconds, "send", whole_answer(body, status, **options)),)


def streaming(events: Sequence[bytes], gap: float = 0.0151, *, end: bool = True) -> Script:
    """Send a stream, event by event."""
    steps = [Step(0.0053, "send", CHUNKED)]
    steps += [
        Step(gap + 0.0001 * number, "send", chunk(each)) for number, each in enumerate(events)
    ]
    if end:
        steps.append(Step(0.0031, "send", LAST_CHUNK))
    return tuple(steps)


def whole_stream(path: str, gap: float = 0.0151) -> Script:
    return streaming([each for part in stream_of(path) for each in part], gap)


def begun(path: str, tokens: int = 2) -> list[bytes]:
    before, words, _ = stream_of(path)
    return [*before, *words[:tokens]]


def answering(path: str, *, stream: bool) -> Script:
    return whole_stream(path) if stream else whole(answer_of(path))


# --- the fleet


def replicas(*addresses: str, **changes: Any) -> list[EngineReplica]:
    known = [
        a_replica(address, f"chat-{number}", **changes)
        for number, address in enumerate(addresses, 1)
    ]
    # The counter of turns begins with 1, so the last one gets the first request.
    return [*known[-1:], *known[:-1]]


def directory(*addresses: str, **changes: Any) -> Directory:
    replica = changes.pop("replica", {})
    keys = changes.pop("keys", (an_api_key(),))
    of_directory = "tenants", "default_limits", "prices"
    others = {name: changes.pop(name) for name in of_directory if name in changes}
    model = a_model(*replicas(*addresses, **replica), **changes)
    return a_directory(model, keys=keys, **others)


def a_course(
    name: str, *clients: Script, engines: Mapping[str, PlayedEngine], **others: Any
) -> Course:
    known = others.pop("directory", None) or directory(*engines)
    return Course(name=name, directory=known, engines=engines, clients=clients, **others)


def engine(*answers: Script, **others: Any) -> PlayedEngine:
    return PlayedEngine(answers=answers, **others)


def with_leaving(known: Directory, name: str) -> Directory:
    models = []
    for model in known.models:
        changed = [
            replace(each, leaving=each.leaving or each.pod.name == name) for each in model.replicas
        ]
        models.append(replace(model, replicas=tuple(changed)))
    return replace(known, models=tuple(models))


# A replica with `max_num_seqs` of 1 has no room beside these, for 0.4 s.
FILLERS = tuple(
    sent(
        request(CHAT_PATH, {**BODIES[CHAT_PATH], "max_tokens": 5}, x_request_id=f"filler-{number}"),
        seconds=0.0011 * number,
    )
    for number in (1, 2)
)
BUSY = whole(answer_of(CHAT_PATH), seconds=0.4127)
