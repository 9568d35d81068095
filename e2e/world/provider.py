"""An outside provider for tests: HTTPS on loopback, in three protocols, that fails as scripts say.

What it answers is as its protocol has it, with counts of tokens; what it was asked stays readable.
"""

import asyncio
import contextlib
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world.keys import Authority

KEY = "sk-world-provider-0123456789"
_SSE, _JSON = "text/event-stream", "application/json"
_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_CREATED = 1_700_000_000
_READING_SECONDS = 0.05


@dataclass(kw_only=True)
class ProviderCall:
    """A request as the provider got it, and its end of the connection."""

    path: str
    headers: Mapping[str, str]
    """By names in lower case."""
    body: Any
    writer: asyncio.StreamWriter = field(repr=False)
    usage: tuple[int, int] | None = None
    """Tokens of the prompt and of the answer, once they are counted."""
    is_whole: bool = False
    """All of its answer was sent."""
    closed: asyncio.Event = field(repr=False)
    """Set once the connection ended."""

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()
        # A connection that was lost takes all there is, and the loop learns of that later.
        await asyncio.sleep(0)

    async def head(self, status: int, content_type: str = _JSON, **headers: str) -> None:
        """Send the head of a response in chunks; `_` in names of headers stands for `-`."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        if data:
            await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        self.is_whole = True
        await self.send(b"0\r\n\r\n")

    async def whole(self, body: object, status: int = 200, **headers: str) -> None:
        await self.head(status, **headers)
        await self.chunk(body if isinstance(body, bytes) else json.dumps(body).encode())
        await self.end()

    def cut(self) -> None:
        """Close the connection where it is."""
        self.writer.transport.abort()


Script = Callable[[ProviderCall], Awaitable[None]]


class Provider:
    """Answers as `script` says; calls for which `scripts` has one take the next of those."""

    def __init__(self, folder: Path, *, key: str = KEY, names: Sequence[str] = ()) -> None:
        """Make an authority in a new folder, whose certificate clients have to trust."""
        authority = Authority(folder)
        pair = authority.server("provider", "127.0.0.1", *names)
        self.authority = authority.own.certificate
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(pair.certificate, pair.key)
        self.key: str | None = key
        """The key that it takes; None for none any more."""
        self.script: Script = answer()
        self.scripts = deque[Script]()
        self.calls: list[ProviderCall] = []
        self._called = asyncio.Condition()
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> "Provider":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers.values():
            writer.transport.abort()
        if self._writers:
            await asyncio.wait(self._writers)

    @property
    def base_url(self) -> str:
        return f"https://localhost:{self.port}/v1"

    async def has_calls(self, count: int) -> None:
        """Wait until so many requests came."""
        async with self._called:
            await self._called.wait_for(lambda: len(self.calls) >= count)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._writers[task] = writer
        task.add_done_callback(self._writers.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        closed = asyncio.Event()
        watching = asyncio.create_task(_watch(writer, closed))
        try:
            while not closed.is_set():
                call = await _read(reader, writer, closed)
                self.calls.append(call)
                async with self._called:
                    self._called.notify_all()
                await self._script_of(call)(call)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            await watching

    def _script_of(self, call: ProviderCall) -> Script:
        key = call.headers.get("authorization", "").removeprefix("Bearer ")
        sent = key or call.headers.get("x-api-key") or call.headers.get("api-key")
        if sent != self.key:
            # As real ones do, with a part of what was sent.
            return refuse(401, f"Incorrect API key provided: {sent}", "invalid_api_key")
        return self.scripts.popleft() if self.scripts else self.script


async def _read(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, closed: asyncio.Event
) -> ProviderCall:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    lines = (line.partition(": ") for line in head[1:] if line)
    headers = {name.lower(): value for name, _, value in lines}
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    return ProviderCall(
        path=head[0].split()[1], headers=headers, body=body, writer=writer, closed=closed
    )


async def _watch(writer: asyncio.StreamWriter, closed: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    closed.set()


# How it answers.


def answer(
    tokens: int = 8, *, gap_seconds: float = 0.0, times: float = 1, cut_after: int | None = None
) -> Script:
    """Answer with so many tokens, or as many as may be; with `times` as many in the counts.

    It closes the connection after so many parts of a stream.
    """

    async def script(call: ProviderCall) -> None:
        asked = [call.body[name] for name in _OUTPUT_LIMITS if call.body.get(name)]
        output = min([tokens, *asked])
        call.usage = round(count(call.body) * times), round(output * times)
        speak = next(each for path, each in _PROTOCOLS.items() if call.path.endswith(path))
        if not call.streams:
            await asyncio.sleep(gap_seconds * output)
            await call.whole(speak(call, output)[0])
            return
        await call.head(200, _SSE)
        for number, event in enumerate(speak(call, output)):
            if number == cut_after:
                # A reset drops what the client has not read.
                await asyncio.sleep(_READING_SECONDS if number else 0)
                call.cut()
                return
            name = f"event: {event['type']}\n" if "type" in event else ""
            await call.chunk(f"{name}data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(gap_seconds)
        if call.path.endswith("/chat/completions"):
            await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    return script


def refuse(
    status: int, message: str = "no", code: str | None = None, retry_after: str | None = None
) -> Script:
    """Refuse a request with a status, and say when it may be sent again."""

    async def script(call: ProviderCall) -> None:
        error = {"message": message, "type": "error", "param": None, "code": code}
        headers = {} if retry_after is None else {"retry_after": retry_after}
        await call.whole({"error": error}, status, **headers)

    return script


async def say_nothing(call: ProviderCall) -> None:
    """Take a request and send no byte."""
    await call.closed.wait()


async def stall(call: ProviderCall) -> None:
    """Begin a stream, and send nothing more."""
    await call.head(200, _SSE)
    await call.chunk(b": hello\n\n")
    await call.closed.wait()


async def hang_up(call: ProviderCall) -> None:
    """Close the connection without a byte."""
    call.cut()


async def redirect(call: ProviderCall) -> None:
    """Send the client to the metadata of a cloud's machine."""
    await call.whole(b"", 307, location="http://169.254.169.254/latest/meta-data/")


async def send_page(call: ProviderCall) -> None:
    """Answer with a page for people, as a proxy in between does."""
    await call.head(200, "text/html")
    await call.chunk(b"<html><title>Log in</title></html>")
    await call.end()


async def flood(call: ProviderCall) -> None:
    """Send bytes without end."""
    await call.head(200, _SSE if call.streams else _JSON)
    while not call.closed.is_set():
        await call.chunk(b"x" * 2**16)


def filtered(call: ProviderCall) -> Awaitable[None]:
    """Refuse a request by its content, as Azure does."""
    return refuse(400, "The response was filtered", "content_filter")(call)


def count(body: Mapping[str, Any]) -> int:
    """Return the tokens of a prompt: its words."""
    return sum(len(text.split()) for text in _texts(body))


def _texts(value: object) -> Iterator[str]:
    match value:
        case {"content": str() as text} | {"input": str() as text} | {"text": str() as text}:
            yield text
        case dict():
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
        case _:
            pass


# What it says in each protocol: whole, or as events of a stream, with its counts.


def _words(output: int) -> list[str]:
    return [f"word{number} " for number in range(output)]


def _chat(call: ProviderCall, output: int) -> Sequence[Mapping[str, Any]]:
    prompt, answered = call.usage or (0, 0)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
    }
    shared = {"id": "chatcmpl-1", "created": _CREATED, "model": call.body["model"]}
    if not call.streams:
        message = {"role": "assistant", "content": "".join(_words(output))}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return [{**shared, "object": "chat.completion", "choices": [choice], "usage": usage}]
    shared["object"] = "chat.completion.chunk"

    def chunk(delta: Mapping[str, str], finish: str | None = None) -> Mapping[str, Any]:
        return {**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    chunks = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": word}) for word in _words(output)),
        chunk({}, "stop"),
    ]
    if (call.body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**shared, "choices": [], "usage": usage})
    return chunks


def _messages(call: ProviderCall, output: int) -> Sequence[Mapping[str, Any]]:
    prompt, answered = call.usage or (0, 0)
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": call.body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt, "output_tokens": 1},
    }
    text, usage = "".join(_words(output)), {"input_tokens": prompt, "output_tokens": answered}
    if not call.streams:
        content = [{"type": "text", "text": text}]
        return [message | {"content": content, "stop_reason": "end_turn", "usage": usage}]
    block = {"type": "text", "text": ""}
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        for word in _words(output)
    ]
    ending = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": answered}},
        {"type": "message_stop"},
    ]


def _responses(call: ProviderCall, output: int) -> Sequence[Mapping[str, Any]]:
    prompt, answered = call.usage or (0, 0)
    usage = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + answered,
    }
    part = {"type": "output_text", "text": "".join(_words(output)), "annotations": []}
    item = {
        "id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
        "content": [part],
    }  # fmt: skip
    shared = {
        "id": "resp_1", "object": "response", "created_at": _CREATED, "model": call.body["model"],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
    }  # fmt: skip
    begun = {**shared, "status": "in_progress", "output": []}
    whole = {**shared, "status": "completed", "output": [item], "usage": usage}
    if not call.streams:
        return [whole]
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item | {"status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **where, "part": part | {"text": ""}},
        *(
            {"type": "response.output_text.delta", **where, "delta": word, "logprobs": []}
            for word in _words(output)
        ),
        {"type": "response.output_text.done", **where, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **where, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [event | {"sequence_number": number} for number, event in enumerate(events)]


_PROTOCOLS: Mapping[str, Callable[[ProviderCall, int], Sequence[Mapping[str, Any]]]] = {
    "/chat/completions": _chat,
    "/messages": _messages,
    "/responses": _responses,
}
