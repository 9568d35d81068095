"""Plays inputs through a proxy that shares connections to the gateway among its clients."""

import json
from collections.abc import Sequence

from tests.framing.play import wrong_heads
from tests.framing.recording import (
    AUTHORIZATION,
    CHAT_PATH,
    Client,
    Recording,
    is_for_engine,
    wrong_response,
)
from tests.framing.strict import Request, read, read_responses
from tests.gateway.harness import CHAT

_BYSTANDER = "bystander-"


class SharedProxy:
    """A proxy, and a bystander who uses it too."""

    def __init__(self, port: int, recording: Recording) -> None:
        self._port = port
        self._recording = recording
        self._bystander_requests = 0
        # What the gateway was sent whose call of the engine may come yet.
        self._unmatched: list[Request] = []

    async def play(self, pieces: Sequence[bytes]) -> list[str]:
        """Send an input on a connection of its own; return what is wrong."""
        reading = read(b"".join(pieces))
        methods = [each.method for each in reading.requests]
        client = await Client.connect(self._port)
        try:
            await client.send(pieces)
            await client.responses(methods)
            client.finish()
            received = await client.ended()
        except TimeoutError:
            return ["stays open: the connection of the proxy"]
        finally:
            client.close()
        problems = _wrong_responses(reading.requests, received)
        problems += await self.bystander()
        return problems + self.wrong_connections()

    async def bystander(self) -> list[str]:
        """Let the bystander ask something; return what is wrong with the answer."""
        self._bystander_requests += 1
        name = f"{_BYSTANDER}{self._bystander_requests}"
        body = json.dumps({**CHAT, "user": name}).encode()
        headers = (
            (b"host", b"x"),
            (b"authorization", AUTHORIZATION),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", name.encode()),
        )
        request = Request(method=b"POST", target=CHAT_PATH, headers=headers, body=body)
        client = await Client.connect(self._port)
        try:
            lines = b"".join(b"%b: %b\r\n" % each for each in headers)
            await client.send([b"POST %b HTTP/1.1\r\n%b\r\n%b" % (CHAT_PATH, lines, body)])
            responses = await client.responses([b"POST"])
        except TimeoutError:
            return ["no answer: for the bystander"]
        finally:
            client.close()
        if responses is None:
            return [f"no answer: for the bystander, {client.received!r}"]
        problem = wrong_response(request, responses[0])
        return [f"bystander: {problem}"] if problem else []

    def wrong_connections(self) -> list[str]:
        """Compare what the proxy sent with what the application and the engine got."""
        recording, problems = self._recording, []
        for port, sent in list(recording.bytes_read.items()):
            reading, heads = read(bytes(sent)), recording.heads[port]
            problems += wrong_heads(reading, heads)
            self._unmatched += reading.requests
            del sent[: reading.size]
            del heads[: len(reading.requests)]
            if port in recording.ended:
                del recording.bytes_read[port], recording.heads[port]
        recording.ended.clear()
        for call in recording.calls:
            request = next((each for each in self._unmatched if _is_call_of(call, each)), None)
            if request is None:
                problems.append(f"call without a request: {call}")
            else:
                self._unmatched.remove(request)
        recording.calls.clear()
        del self._unmatched[:-20]
        return problems


def _is_call_of(call: Request, request: Request) -> bool:
    same_id = not request.id or request.id == call.id
    same = (call.target, call.body) == (request.target, request.body)
    return same_id and same and is_for_engine(request)


def _wrong_responses(requests: Sequence[Request], received: bytes) -> list[str]:
    try:
        responses = read_responses(received, [each.method for each in requests])
    except ValueError:
        return []  # the proxy broke off, or answered something that is no request
    problems = []
    for index, response in enumerate(responses):
        # The proxy's own errors have no id.
        if not (name := response.headers.get(b"x-request-id")):
            continue
        if name.startswith(_BYSTANDER.encode()):
            problems.append(f"response of another: {response}")
        elif index < len(requests):
            problem = wrong_response(requests[index], response)
            problems += [problem] if problem else []
    return problems
