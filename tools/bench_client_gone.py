"""How soon an engine is stopped whose client left, by the size of the request.

A gateway runs as in a pod, and an engine says nothing. Each client closes its connection once the
engine has its request, sent at once or in pieces; the time ends when the gateway closes that of the
engine. The last line is `BENCH` and the figures as JSON.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path

from figures import benchmark
from gateway_process import running
from tests.gateway.harness import (
    KEY,
    MODEL,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_model,
    a_replica,
)

SIZES = (1_000, 65_000, 150_000, 200_000, 400_000, 600_000, 1_000_000, 2_000_000, 8_000_000)
PIECE_BYTES = 16_384
# What takes longer is not noticed at all.
MOST_SECONDS = 10.0


async def measure(times: int = 3) -> dict[str, float]:
    """Print the worst of so many clients of each kind."""
    return {"client_gone_seconds": await gone_seconds(times)}


async def gone_seconds(times: int = 3) -> float:
    """Return the worst of all, and print the worst of each size."""
    calls: asyncio.Queue[EngineCall] = asyncio.Queue()

    async def script(call: EngineCall) -> None:
        calls.put_nowait(call)
        await call.gone.wait()

    worst = 0.0
    print(f"{'bytes':>10} {'at once':>8} {'in pieces':>10} {'stream':>8}")
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        async with ScriptedEngine(script) as engine:
            directory = a_directory(a_model(a_replica(engine.address), max_model_len=131_072))
            async with running(Path(folder), directory) as (address, _):
                for size in SIZES:
                    row = []
                    for pieces, stream in ((False, False), (True, False), (False, True)):
                        request = _request(size, stream=stream)
                        step = PIECE_BYTES if pieces else len(request)
                        seconds = [
                            await _gone_after(address, request, step, calls) for _ in range(times)
                        ]
                        row.append(max(seconds))
                    print(f"{size:10} {row[0]:8.3f} {row[1]:10.3f} {row[2]:8.3f}")
                    worst = max(worst, *row)
    return round(worst, 3)


def _request(size: int, *, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "x" * size}]
    body = json.dumps({"model": MODEL, "stream": stream, "messages": messages}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
        b"content-length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
    )


async def _gone_after(
    address: str, request: bytes, step: int, calls: asyncio.Queue[EngineCall]
) -> float:
    host, _, port = address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    for start in range(0, len(request), step):
        writer.write(request[start : start + step])
        await writer.drain()
    call = await calls.get()
    left_at = time.monotonic()
    writer.close()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            await call.gone.wait()
    except TimeoutError:
        call.cut()
    return time.monotonic() - left_at


if __name__ == "__main__":
    benchmark(measure)
