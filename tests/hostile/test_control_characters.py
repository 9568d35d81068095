"""Ends of lines and other control characters of clients: none stands in what the gateway sends."""

import asyncio
import json

import pytest

from tessera.gateway.usage.logs import access_line
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio
SEQUENCES = {
    "CR LF": "\r\n",
    "LF": "\n",
    "CR": "\r",
    "NUL": "\0",
    "VT": "\v",
    "FF": "\f",
    "ESC": "\x1b[2J",
    "NEL": "\x85",
    "line separator": "\u2028",
    "right to left": "\u202e",
}
TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PLACES = ("x-request-id", "x-tessera-tags", "traceparent", "tracestate", "x-session-id")
FORGED = "x-forged"
PASSED = {"host", "content-type", "content-length", "x-request-id", "traceparent", "tracestate"}


def a_request(place: str, sequence: str) -> bytes:
    """Return a request of which one place has a sequence, and a header that it would forge."""
    text = f"a{sequence}{FORGED}: 1"
    target, body, lines = "/v1/chat/completions", CHAT, list[str]()
    match place:
        case "query":
            target += f"?{text}"
        case "model":
            body = {**CHAT, "model": f"chat{text}"}
        case "traceparent":
            lines.append(f"traceparent: {TRACE_PARENT}{text}")
        case _:
            lines += [f"traceparent: {TRACE_PARENT}", f"{place}: {text}"]
    data = json.dumps(body).encode()
    lines = [
        f"POST {target} HTTP/1.1",
        "host: x",
        f"authorization: Bearer {KEY}",
        f"content-length: {len(data)}",
        "connection: close",
        *lines,
        "\r\n",
    ]
    return "\r\n".join(lines).encode() + data


@pytest.mark.parametrize("place", [*PLACES, "query", "model"])
async def test_no_end_of_a_line_of_a_client_ends_a_line_of_the_gateway(place: str) -> None:
    async with (
        ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):
        for name, sequence in SEQUENCES.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(a_request(place, sequence))
            head = (await reader.read()).partition(b"\r\n\r\n")[0].decode("latin-1")
            writer.close()
            sent: list[object] = [line for line in head.split("\r\n") if not is_line(line)]
            for call in engine.calls:
                sent += [each for each in call.headers.values() if not is_line(each)]
                sent += call.headers.keys() - PASSED
            lines = [access_line(record)[:-1] for record in gateway.records]
            sent += [line for line in lines if any(byte < ord(" ") for byte in line)]
            SCORE.add(len(sent))
            assert not sent, name
            engine.calls.clear()
            gateway.records.clear()


def is_line(text: str) -> bool:
    """Return whether a text is one line of a head that the gateway wrote itself."""
    return text.isascii() and text.isprintable() and not text.startswith(FORGED)
