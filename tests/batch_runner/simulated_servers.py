"""A simulated engine and API server in a process: python simulated_servers.py PORT [options]

They do no more than a runner needs. Words in a request make the engine misbehave, and every request
that reaches it is logged: that is what a provider would charge for.
"""

import argparse
import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from typing_extensions import override

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *(\S+)", re.IGNORECASE)
_ECHO = re.compile(rb"echo ([\w-]+)")
_USAGE = re.compile(rb"please count ([\w.-]+)")
_WRITES = re.compile(rb"please write (\d+)")
_FITS = re.compile(rb"please fit (\d+)")
_MAX_TOKENS = re.compile(rb'"max_tokens":(\d+)')
_ANSWER = (
    b'{"id":"chatcmpl-%s","object":"chat.completion","created":1,"model":"tiny","choices":[{"index"'
    b':0,"message":{"role":"assistant","content":"%s%s"},"finish_reason":"stop"}],"usage":{'
    b'"prompt_tokens":7,"completion_tokens":11,"total_tokens":18}}'
)


class HttpConnection(asyncio.Protocol):
    """One connection, whose requests are sequential."""

    def __init__(self) -> None:
        self._read = bytearray()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @override
    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, rest = bytes(self._read).partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if end else None
        if not end or len(rest) < (size := int(length[1]) if length else 0):
            return
        self._read = bytearray(rest[size:])
        self.take(head, rest[:size])

    def take(self, head: bytes, body: bytes) -> None:
        """Answer a request, now or later."""
        raise NotImplementedError

    def answer(self, status: int, body: bytes, retry_after: str = "") -> None:
        """Send a reply of JSON."""
        form = b"HTTP/1.1 %d So\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
        header = b"Retry-After: %s\r\n" % retry_after.encode() if retry_after else b""
        self._transport.write(form % (status, header, len(body), body))


class SimulatedConnection(HttpConnection):
    """A connection to the simulated engine and API server."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._options = options
        self._seen: dict[bytes, int] = options.seen
        self._filler = b" word" * options.words

    @override
    def take(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        if path.startswith(b"/apis/"):
            self._object()
        elif method == b"GET":
            self._answer(200, b"")
        else:
            self._row(head, body)

    def _object(self) -> None:
        text = self._options.object.read_bytes()
        self._answer(int(text) if text.isdigit() else 200, text)

    def _row(self, head: bytes, body: bytes) -> None:
        match = _REQUEST_ID.search(head)
        name = match[1].split(b"-")[0] if match else b""
        self._seen[name] = self._seen.get(name, 0) + 1
        if self._options.log is not None:
            os.write(self._options.log, b"%s\n" % name)
        if self._is_in_trouble():
            self._answer_in_trouble()
        elif b"please crash" in body:
            os.kill(os.getpid(), signal.SIGKILL)
        elif b"please hang" in body or (b"hang once" in body and self._seen[name] == 1):
            return
        elif b"please refuse with 429" in body:
            self._answer(429, b'{"error":{"message":"too many"}}')
        elif b"please refuse" in body:
            self._answer(400, b'{"error":{"message":"the prompt is wrong","code":400}}')
        elif b"please fail" in body or (b"fail once" in body and self._seen[name] == 1):
            self._answer(500, b'{"error":{"message":"out of luck","code":500}}')
        elif b"please mumble" in body:
            self._answer(200, b"mumble")
        elif match := _USAGE.search(body):
            self._answer(200, b'{"usage":{"prompt_tokens":%s,"completion_tokens":1}}' % match[1])
        else:
            self._answer_within_limit(name, body)

    def _answer_within_limit(self, name: bytes, body: bytes) -> None:
        limit, answer = _MAX_TOKENS.search(body), _ANSWER % (name, b"", b"")
        most = int(limit[1]) if limit else None
        if (fits := _FITS.search(body)) is not None:
            is_too_much = most is not None and most > int(fits[1])
            self._answer(400 if is_too_much else 200, b"{}" if is_too_much else answer)
        elif (writes := _WRITES.search(body)) is not None:
            if most is not None and most < int(writes[1]):
                answer = answer.replace(b'"stop"', b'"length"')
            tokens = min(int(writes[1]), most or int(writes[1]))
            self._answer(200, answer.replace(b":11,", b":%d," % tokens))
        else:
            echo = _ECHO.search(body)
            self._later(_ANSWER % (name, echo[1] if echo else b"", self._filler))

    def _is_in_trouble(self) -> bool:
        options = self._options
        if not options.trouble or sum(self._seen.values()) <= options.trouble_after:
            return False
        now = asyncio.get_running_loop().time()
        options.trouble_since = options.trouble_since or now
        return bool(now - options.trouble_since < options.trouble_seconds)

    def _answer_in_trouble(self) -> None:
        if self._options.trouble == "cut":
            self._answer(200, _ANSWER[:60])
        else:
            self._answer(int(self._options.trouble), b'{"error":{"message":"overloaded"}}')

    def _later(self, answer: bytes) -> None:
        if self._options.delay:
            loop = asyncio.get_running_loop()
            loop.call_later(self._options.delay, self._answer, 200, answer)
        else:
            self._answer(200, answer)

    def _answer(self, status: int, body: bytes) -> None:
        self.answer(status, body, self._options.retry_after if status in (429, 503) else "")


def batch_object(attempt: int, uid: str) -> str:
    """Return a BatchInference with the fields that a fence reads."""
    body: dict[str, Any] = {"metadata": {"uid": uid}, "status": {"attempt": {"number": attempt}}}
    return json.dumps(body)


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SimulatedConnection(options), "127.0.0.1", options.port
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--object", type=Path, help="what the API server shows, or a status code")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds to an answer")
    parser.add_argument("--words", type=int, default=1, help="of an answer")
    parser.add_argument("--trouble", default="", help="a status, or cut for half of an answer")
    parser.add_argument("--trouble-after", type=int, default=0, help="requests before it")
    parser.add_argument("--trouble-seconds", type=float, default=0.0)
    parser.add_argument("--retry-after", default="", help="header of 429 and 503")
    parser.add_argument("--log", type=Path, help="ids of requests that came")
    options = parser.parse_args()
    options.seen = {}
    options.trouble_since = None
    if options.log is not None:
        options.log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main()
