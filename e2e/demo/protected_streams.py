"""Streams of clients of the gateway that go on at another replica when theirs is lost."""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from demo.cluster import Json

_RESUMABLE, _RESUMED = b": x-tessera-resumable: ", b": x-tessera-resumed: "
_SECONDS = 300


@dataclass(kw_only=True)
class ProtectedStream:
    """One stream, as its client sees it."""

    path: str
    """`completions` or `chat/completions`."""
    body: Json
    replica: str = ""
    """Where it began."""
    is_resumable: bool = False
    """The gateway says so, and did not take it back."""
    resumed: int = 0
    """How often it went on elsewhere."""
    pieces: list[str] = field(default_factory=list)
    piece_times: list[float] = field(default_factory=list)
    """On the monotonic clock."""
    usage: Json = field(default_factory=dict)
    finish_reason: str = ""
    is_done: bool = False
    failure: str = ""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        return self.is_done and bool(self.finish_reason) and not self.failure

    @property
    def is_lost(self) -> bool:
        """Return whether it broke although the gateway said that it is protected."""
        return self.is_resumable and not self.is_whole

    @property
    def longest_gap(self) -> float:
        """Return the longest time between two of its pieces in seconds."""
        return max(later - sooner for sooner, later in itertools.pairwise(self.piece_times))

    async def run(self, session: aiohttp.ClientSession, base: str) -> None:
        """Send the request to the API at a URL, and read its stream to the end."""
        try:
            async with session.post(f"{base}/{self.path}", json=self.body) as response:
                self.replica = response.headers.get("x-tessera-replica", "")
                self.is_resumable = response.headers.get("x-tessera-resumable") == "true"
                if response.status != 200:
                    self.failure = await response.text()
                async for line in response.content:
                    self._take(line)
        except (aiohttp.ClientError, OSError) as error:
            self.failure = repr(error)

    def _take(self, line: bytes) -> None:
        if line.startswith(_RESUMABLE):
            self.is_resumable = line.removeprefix(_RESUMABLE).strip() == b"true"
        elif line.startswith(_RESUMED):
            self.resumed = int(line.removeprefix(_RESUMED))
        elif line.startswith(b"data: [DONE]"):
            self.is_done = True
        elif line.startswith(b"data: "):
            self._take_event(json.loads(line.removeprefix(b"data: ")))

    def _take_event(self, event: Any) -> None:
        if "error" in event:
            self.failure = str(event["error"])
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            piece = choice.get("text") or choice.get("delta", {}).get("content")
            if piece:
                self.pieces.append(piece)
                self.piece_times.append(time.monotonic())


def protected_streams(model: str, count: int, tokens: int, **fields: Any) -> list[ProtectedStream]:
    """Return so many different streams, every second one of which is a chat."""
    common = {
        "model": model,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    streams = []
    for number in range(count):
        prompt: Json
        text = f"Tell me everything about tile {number}."
        if number % 2:
            path, prompt = "chat/completions", {"messages": [{"role": "user", "content": text}]}
        else:
            path, prompt = "completions", {"prompt": text}
        streams.append(ProtectedStream(path=path, body={**common, **prompt}))
    return streams


async def run_streams(base: str, key: str, streams: Sequence[ProtectedStream]) -> None:
    """Run all at once, each on its own connection."""
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=_SECONDS),
        ) as session,
        asyncio.TaskGroup() as tasks,
    ):
        for stream in streams:
            tasks.create_task(stream.run(session, base))


def percentile_95(values: Sequence[float]) -> float:
    """Return the value that 95 of 100 do not exceed."""
    return sorted(values)[-(-len(values) * 95 // 100) - 1]
