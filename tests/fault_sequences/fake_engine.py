"""An engine of a batch that answers one row after another, and can be busy, broken or frozen."""

import asyncio
import json
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from tests.batch_runner.simulated_servers import HttpConnection

EngineMode = Literal["well", "busy", "unavailable", "half", "frozen", "huge"]
_HUGE = 10**18
# From the begin of a row to its answer.
_ROW_SECONDS = 0.4


@dataclass(slots=True)
class EngineState:
    """How all engines of a fleet behave; a fault changes it."""

    mode: EngineMode = "well"
    sent: int = 0
    """Rows that reached an engine and were not refused."""


class _EngineConnection(HttpConnection):
    def __init__(self, state: EngineState, queue: "asyncio.Queue[object]") -> None:
        super().__init__()
        self._state = state
        self._queue = queue

    @override
    def take(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            self.answer(200, b"")
        elif self._state.mode == "busy":
            self.answer(429, b'{"error":{"message":"too many requests","code":429}}', "5")
        elif self._state.mode == "unavailable":
            self.answer(503, b'{"error":{"message":"overloaded","code":503}}', "5")
        else:
            self._state.sent += 1
            self._queue.put_nowait((self, body))


async def serve_engine(host: str, port: int, state: EngineState) -> int:
    """Serve until the process ends."""
    queue: asyncio.Queue[object] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: _EngineConnection(state, queue), host, port)
    while True:
        item = await queue.get()
        assert isinstance(item, tuple)
        connection, body = item
        await asyncio.sleep(_ROW_SECONDS)
        while state.mode == "frozen":  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(1)
        connection.answer(200, _answer(body, state.mode))


def _answer(body: bytes, mode: EngineMode) -> bytes:
    """Return an answer that repeats the prompt."""
    prompt = json.loads(body)["messages"][-1]["content"]
    tokens = _HUGE if mode == "huge" else 7
    text = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": prompt},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": tokens, "completion_tokens": 11, "total_tokens": tokens},
        }
    ).encode()
    return text[: len(text) // 2] if mode == "half" else text
