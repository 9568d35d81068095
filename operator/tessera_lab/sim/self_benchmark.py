"""Cost of the simulator: the speed of the bare engine, the time to import, and ten engines.

The engines are in one process, and each has one stream.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tessera.domain.perf.step import StepTime
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineLimits, EngineRequest

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
INSTANCES = 10
PORT = 18431
# Chunks of each stream over which memory and CPU are taken.
CHUNKS = 200
_DEADLINE_SECONDS = 60


async def measure(steps: int = 20_000, chunks: int = CHUNKS) -> dict[str, float]:
    """Return all figures, of so many steps of the bare engine and chunks of each stream."""
    figures: dict[str, float] = {
        f"sequence_steps_per_cpu_second_at_{batch}": round(_sequence_steps(batch, steps))
        for batch in (1, 8, 64, 256)
    }
    return figures | await measure_processes(chunks)


def _sequence_steps(batch: int, steps: int) -> float:
    """Return the tokens per CPU second of the bare engine, always with `batch` running requests."""
    limits = EngineLimits(
        max_model_len=8192, max_num_seqs=batch, max_num_batched_tokens=2048, blocks=30_000
    )
    engine = EngineCore(limits, StepTime(weights=1e-2, kv_token=1e-7, token=7e-5))
    arrivals = iter(range(10**9))
    tokens, started = 0, time.process_time()
    for _ in range(steps):
        while engine.running + engine.waiting < batch + 2:
            number = next(arrivals)
            engine.submit(
                EngineRequest(
                    id=number,
                    prompt_tokens=500 + number % 7 * 200,
                    output_tokens=150 + number % 11 * 20,
                )
            )
        step = engine.step()
        tokens += len(step.emitted) if step else 0
    return tokens / (time.process_time() - started)


async def measure_processes(chunks: int) -> dict[str, float]:
    """Return import time, and memory and CPU of ten engines while each has a stream."""
    started = time.monotonic()
    await (await _start_python("-c", "pass")).wait()
    bare_ended = time.monotonic()
    await (await _start_python("-c", "import tessera_lab.sim.main")).wait()
    import_seconds = time.monotonic() - bare_ended - (bare_ended - started)
    arguments = (MODEL, "--instances", str(INSTANCES), "--port", str(PORT))
    process = await _start_python("-m", "tessera_lab.sim.main", *arguments)
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            await _wait_until_started(process)
            measured = await _measure_streams(process.pid, chunks)
    finally:
        process.terminate()
        await process.communicate()
    return {"import_seconds": round(import_seconds, 3), **measured}


async def _wait_until_started(process: asyncio.subprocess.Process) -> None:
    """Wait for ten logged addresses: an engine logs its own once its port is open."""
    open_ports = 0
    while process.stderr is not None and open_ports < INSTANCES:
        open_ports += b"http://" in await process.stderr.readline()


async def _measure_streams(pid: int, chunks: int) -> dict[str, float]:
    """Return memory and CPU of the process while each of its engines has one stream."""
    streams = [await _open_stream(f"127.0.1.{number + 1}") for number in range(INSTANCES)]
    await _read(streams, 1)
    started, cpu = time.monotonic(), _cpu_seconds(pid)
    await _read(streams, chunks)
    wall, cpu_used = time.monotonic() - started, _cpu_seconds(pid) - cpu
    for _, writer in streams:
        writer.close()
    return {
        "instances": INSTANCES,
        "rss_mib": round(_rss_kib(pid) / 1024, 1),
        "cpu_share": round(cpu_used / wall, 3),
        "cpu_microseconds_per_token": round(cpu_used / (chunks * INSTANCES) * 1e6, 1),
    }


StreamConnection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _open_stream(host: str) -> StreamConnection:
    body = b'{"prompt":"bench","max_tokens":4000,"ignore_eos":true,"stream":true}'
    content_type = "Content-Type: application/json"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n{content_type}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, PORT)
    writer.write(head.encode() + body)
    return reader, writer


async def _read(streams: Sequence[StreamConnection], chunks: int) -> None:
    for reader, _ in streams:
        for _ in range(chunks):
            await reader.readuntil(b"data: ")


async def _start_python(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=pipe)


def _rss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
