"""What the client of `tessera bench` takes itself: processor for a request and for a chunk.

A server in a process of its own sends canned streams, one chunk of each stream in every step as an
engine does, so that the client wakes for each chunk. The difference between long and short answers
is the price of a chunk. The last line is `BENCH` and the figures as JSON.
"""

import asyncio
import json
import subprocess
import sys
from typing import Any

from figures import benchmark

STEP_SECONDS = 0.005
# Chunks of an answer.
SHORT, LONG = 1, 200
PLACES = 50


def measure(requests: int = 1000) -> dict[str, float]:
    """Measure the client beside a server of its own."""
    server = subprocess.Popen(
        [sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        url = next(iter(server.stdout or ())).strip()
        short, long = _cpu_ms(url, SHORT, requests), _cpu_ms(url, LONG, requests)
    finally:
        server.terminate()
        server.wait()
    chunk = (long - short) / (LONG - SHORT)
    request = short - SHORT * chunk
    return {
        "client_cpu_ms_per_request": round(request, 3),
        "client_cpu_us_per_chunk": round(chunk * 1e3, 1),
        "client_limit_requests_per_s_at_200_tokens": round(1e3 / (request + 200 * chunk)),
        "client_limit_tokens_per_s": round(1e6 / (chunk * 1e3)),
    }


def _cpu_ms(url: str, chunks: int, requests: int) -> float:
    """Processor for one request with an answer of so many chunks, in milliseconds."""
    words = ("--prompts", str(requests), "--concurrency", str(PLACES), "--warmup", str(PLACES))
    command = (sys.executable, "-m", "tessera.cli.main", "bench", url, *words, "--json")
    done = subprocess.run(
        [*command, "--output-tokens", str(chunks)], capture_output=True, text=True, check=True
    )
    level = json.loads(done.stdout)["levels"][0]
    if level["requests"]["completed"] != requests:
        sys.exit(f"not all were answered: {level['requests']}")
    return float(level["client"]["cpuMsPerRequest"])


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Steps:
    """All streams under way: each gets a chunk in every step."""

    def __init__(self) -> None:
        self.left: dict[asyncio.StreamWriter, int] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(STEP_SECONDS)
            for writer, left in list(self.left.items()):
                end = "length" if left == 1 else None
                choice = {"index": 0, "delta": {"content": " word"}, "finish_reason": end}
                parts = [_event({"id": "chatcmpl-0", "model": "canned", "choices": [choice]})]
                self.left[writer] = left - 1
                if end:
                    del self.left[writer]
                    usage = {"prompt_tokens": 512, "completion_tokens": 1, "total_tokens": 513}
                    parts += [_event({"choices": [], "usage": usage}), b"0\r\n\r\n"]
                writer.write(b"".join(parts))


def _event(body: Any) -> bytes:
    data = b"data: %b\n\n" % json.dumps(body).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve() -> None:
    steps = _Steps()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            if head.startswith(b"GET /v1/models"):
                _whole(writer, b"200 OK", b'{"data": [{"id": "canned"}]}')
            elif head.startswith(b"GET"):
                _whole(writer, b"404 Not Found", b"{}")
            else:
                body = json.loads(await reader.readexactly(_length(head)))
                writer.write(_HEAD)
                steps.left[writer] = body["max_tokens"]

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print("http://{}:{}".format(*server.sockets[0].getsockname()), flush=True)
    await steps.run()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def _length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    header = next(line for line in lines if line.startswith(b"content-length:"))
    return int(header.partition(b":")[2])


def _whole(writer: asyncio.StreamWriter, status: bytes, body: bytes) -> None:
    writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(_serve())
    else:
        benchmark(measure, 44, short={"requests": 10})
