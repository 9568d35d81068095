"""What a bystander notices of hostile clients and engines, and what the gateway takes meanwhile.

A gateway as in a pod, with few descriptors, serves two tenants. One attacks, from a process of its
own with its own engine. The other sends small requests one after another, on a connection that is
kept and on new ones. For each attack: the peak of the gateway's memory, how long the bystander
waits, and how many of its answers differ. Then the other tenant edits his 3,000 services: what four
edits a second take of the gateway's processor, what the bystander notices of 10,000, and by how
much an operator grows with them. Wall time depends on what else the machine does; the processor
time that the gateway spends while the bystander waits hardly does.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from secrets import token_hex

import aiohttp

from bench_gateway import cpu_seconds, memory_bytes
from edited_fleet import SERVICES, EditedFleet
from figures import benchmark
from gateway_process import running
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.names import PORT
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    KEY,
    STREAM,
    EngineCall,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_model,
    a_replica,
    an_api_key,
)
from tests.hostile.twin import HOSTILE, Fleet
from world.slots import free_port

SECONDS = 8.0
PAUSE_SECONDS = 0.02
BEGIN_SECONDS = 2
# 500 a second, about what one user makes at an API server.
EDITS_OF_SCENE, EDIT_SECONDS = 10_000, 20.0
# They fill the tables of an operator. It reconciles four times a second at most.
FILLING_EDITS, EDITS_OF_CYCLE = 3_000, 125
DESCRIPTORS = 1024
MIB = 2**20
OTHER_KEY, OTHER_MODEL = "tsk-team-b", "other"
Attack = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What was seen of one attack."""

    p99_ms: float
    p99_cpu_ms: float
    """Processor time of the gateway while the bystander waits."""
    answers: int
    differences: int
    peak_mib: float
    cpu_share: float


def attack(name: str, port: str, engine_port: str, *hosts: str) -> None:
    """Play one attack against a running gateway, without end."""
    if name in EDITED:
        asyncio.run(_edit(name, int(engine_port), *hosts))
    asyncio.run(_attack(name, int(port), int(engine_port)))


async def measure(only: str = "") -> dict[str, float]:
    """Play all attacks, or the only one that is chosen."""
    if only == EDITS:
        return await _measure_edits()
    names = [only] if only else list(ATTACKS)
    scenes = await _scenes(_play, ("quiet", *names))
    quiet = scenes.pop("quiet")
    return {
        "hostile_scenes": len(scenes),
        "hostile_peak_mib": round(max(each.peak_mib for each in scenes.values())),
        "hostile_added_p99_ms": round(
            max(each.p99_ms for each in scenes.values()) - quiet.p99_ms, 1
        ),
        "hostile_added_p99_cpu_ms": round(
            max(each.p99_cpu_ms for each in scenes.values()) - quiet.p99_cpu_ms, 1
        ),
        "differences": sum(each.differences for each in scenes.values()),
        **(await _measure_edits() if len(names) > 1 else {}),
        "load_average": os.getloadavg()[0],
    }


async def _scenes(
    play: Callable[[str], Awaitable[Scene]], names: Iterable[str]
) -> dict[str, Scene]:
    """Play scenes, and print a line for each."""
    columns = ("peak MiB", "p99 ms", "p99 CPU ms", "core", "answers", "different")
    print(f"{'attack':22}" + "".join(f"{column:>12}" for column in columns))
    scenes = {}
    for name in names:
        scenes[name] = scene = await play(name)
        print(
            f"{name:22}{scene.peak_mib:12.0f}{scene.p99_ms:12.1f}{scene.p99_cpu_ms:12.1f}"
            f"{scene.cpu_share:12.2f}{scene.answers:12}{scene.differences:12}",
            flush=True,
        )
    return scenes


async def _measure_edits() -> dict[str, float]:
    """Return what edits of services take: of the processor, of the bystander's time, of memory."""
    scenes = await _scenes(_play_edits, EDITED)
    none, few, same, many = scenes.values()
    return {
        "directory_core_share": round(max(few.cpu_share, same.cpu_share) - none.cpu_share, 3),
        "edits_added_p99_ms": round(many.p99_ms - none.p99_ms, 1),
        "edits_added_p99_cpu_ms": round(many.p99_cpu_ms - none.p99_cpu_ms, 1),
        "edits_grown_mib": round(many.peak_mib - none.peak_mib),
        "edits_differences": sum(each.differences for each in scenes.values()),
        "edits_operator_growth_mib": await _operator_growth_mib(),
    }


async def _operator_growth_mib() -> float:
    """Return by how much an operator grows with 10,000 edits, once its tables are full."""
    fleet = Fleet()
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget(HOSTILE, "100")
    before = 0
    for number in range(FILLING_EDITS + EDITS_OF_SCENE):
        access = {"aliases": [f"name-{number}"]}
        fleet.serve("x", HOSTILE, replicas=1, slo={"ttftP95": f"{1000 + number}ms"}, access=access)
        if number % EDITS_OF_CYCLE == 0:
            await fleet.cycle()
            fleet.cluster.compact()
        if number == FILLING_EDITS:
            before = memory_bytes(os.getpid(), "VmRSS")
    return round((memory_bytes(os.getpid(), "VmRSS") - before) / MIB, 1)


async def _play_edits(name: str) -> Scene:
    api_port, engine_host = free_port(), f"127.64.{os.getpid() % 250}.1"
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        async with (
            ScriptedEngine(_answer, at=(engine_host, PORT)),
            _attacker(name, 0, api_port, engine_host),
            running(Path(folder), f"127.0.0.1:{api_port}") as (address, pid),
        ):
            # The first directory is built, and what it leaves collected.
            await asyncio.sleep(BEGIN_SECONDS)
            return await _scene(address, pid, EDIT_SECONDS)


async def _play(name: str) -> Scene:
    engine_port = free_port()
    async with ScriptedEngine(_answer) as own:
        own_model = a_model(
            a_replica(own.address, "other-1", pod=Ref("team-b", "other-1")),
            service=Ref("team-b", OTHER_MODEL), uid="uid-other", names=(OTHER_MODEL,),
            tenant="team-b",
        )  # fmt: skip
        its_model = a_model(a_replica(f"127.0.0.1:{engine_port}", max_num_seqs=64))
        keys = (an_api_key(), an_api_key(OTHER_KEY, name="other", tenant="team-b"))
        tenants = {
            each: TenantLimits(name=each, namespaces=(each,)) for each in ("team-a", "team-b")
        }
        directory = a_directory(own_model, its_model, keys=keys, tenants=tenants)
        with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
            async with (
                running(Path(folder), directory, DESCRIPTORS) as (address, pid),
                _attacker(name, int(address.rpartition(":")[2]), engine_port),
            ):
                return await _scene(address, pid)


async def _scene(address: str, pid: int, seconds: float = SECONDS) -> Scene:
    before, started = cpu_seconds(pid), time.monotonic()
    times, cpu_times, differences = await _bystander(address, pid, seconds)
    return Scene(
        p99_ms=_p99(times) * 1e3,
        p99_cpu_ms=_p99(cpu_times) * 1e3,
        answers=len(times),
        differences=differences,
        peak_mib=memory_bytes(pid, "VmHWM") / MIB,
        cpu_share=(cpu_seconds(pid) - before) / (time.monotonic() - started),
    )


async def _answer(call: EngineCall) -> None:
    await call.whole(COMPLETION)


@asynccontextmanager
async def _attacker(name: str, port: int, engine_port: int, *options: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--attack", name, str(port), str(engine_port), *options),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdout:
            # It has begun.
            await process.stdout.readline()
        yield
        if process.returncode is not None:
            sys.exit(f"{name}: the attack ended by itself")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _bystander(
    address: str, pid: int, seconds: float
) -> tuple[list[float], list[float], int]:
    """Ask for a while; return how long each answer took, of the clock and of the gateway's
    processor, and how many differ.
    """
    times: list[float] = []
    cpu_times: list[float] = []
    differences = 0
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {OTHER_KEY}"}) as client:
        while (started := time.monotonic()) < until:
            before = cpu_seconds(pid)
            # The next one takes a new connection.
            headers = {"connection": "close"} if len(times) % 10 == 0 else {}
            try:
                async with client.post(
                    f"http://{address}/v1/chat/completions",
                    json={**CHAT, "model": OTHER_MODEL},
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(60),
                ) as response:
                    differences += response.status != 200 or await response.json() != COMPLETION
            except (aiohttp.ClientError, TimeoutError):
                differences += 1
            times.append(time.monotonic() - started)
            cpu_times.append(cpu_seconds(pid) - before)
            await asyncio.sleep(PAUSE_SECONDS)
    return times, cpu_times, differences


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


# From here on: the process of the attacker.


async def _attack(name: str, port: int, engine_port: int) -> None:
    script, clients, attack = ATTACKS.get(name, (_silent, 0, _wait))
    server = await asyncio.start_server(
        lambda reader, writer: _engine(reader, writer, script), "127.0.0.1", engine_port
    )
    async with server, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_again(attack, port))
        await asyncio.sleep(BEGIN_SECONDS)
        print("begun", flush=True)
        await asyncio.Event().wait()


async def _edit(name: str, api_port: int, engine_host: str) -> None:
    edits_per_second, edited = EDITED[name]
    fleet = EditedFleet(
        other=OTHER_MODEL,
        other_key=OTHER_KEY,
        other_address=engine_host,
        edits_per_second=edits_per_second,
        edited=edited,
    )
    print("begun", flush=True)
    await fleet.serve(api_port)


async def _again(attack: Attack, port: int) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            await attack(port)
        await asyncio.sleep(0.01)


async def _engine(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, script: "Script"
) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.partition(b":")[2]))
            await script(head, writer)
    writer.close()


Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _whole(writer: asyncio.StreamWriter, body: bytes) -> None:
    await _send(
        writer,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body),
    )


async def _silent(_head: bytes, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def _without_end(data: bytes) -> Script:
    async def script(head: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET"):
            await _whole(writer, b"")
            return
        await _send(
            writer,
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        )
        while True:
            await _send(writer, data)

    return script


def _answering(body: bytes) -> Script:
    async def script(head: bytes, writer: asyncio.StreamWriter) -> None:
        await _whole(writer, b"" if head.startswith(b"GET") else body)

    return script


async def _pages(head: bytes, writer: asyncio.StreamWriter) -> None:
    """Show a page that is long, and almost what the gateway looks for, again and again."""
    await _whole(
        writer, b"vllm:num_requests_running{" * (MIB // 26) if b"/metrics" in head else b"{}"
    )


async def _wait(_port: int) -> None:
    await asyncio.Event().wait()


def _head(length: int | None, *lines: bytes, key: bytes = KEY.encode()) -> bytes:
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    return b"\r\n".join(
        (b"POST /v1/chat/completions HTTP/1.1", b"host: x", b"authorization: Bearer " + key,
         b"content-type: application/json", framing, *lines, b"", b"")
    )  # fmt: skip


@asynccontextmanager
async def _connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _posting(body: object, *, reads: bool = True) -> Attack:
    """Return the attack that sends a body, and reads all of the answer or nothing."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def attack(port: int) -> None:
        async with _connection(port) as (reader, writer):
            await _send(writer, _head(len(data), b"connection: close") + data)
            if not reads:
                await asyncio.Event().wait()
            while await reader.read(2**16):
                pass

    return attack


def _unfinished(size: int) -> Attack:
    """Return the attack that sends all of a body but its last byte, and waits."""
    part = b" " * 2**16

    async def attack(port: int) -> None:
        async with _connection(port) as (reader, writer):
            await _send(writer, _head(size + 1))
            for _ in range(size // len(part)):
                await _send(writer, part)
            await reader.read()

    return attack


async def _trailers(port: int) -> None:
    async with _connection(port) as (_, writer):
        await _send(writer, _head(None) + b"2\r\n{}\r\n0\r\n")
        for number in count():
            await _send(writer, b"x-%d: %b\r\n" % (number, b"y" * 2**14))


async def _extensions(port: int) -> None:
    async with _connection(port) as (_, writer):
        await _send(writer, _head(None))
        while True:
            await _send(writer, b"1;" + b"x" * 2**14 + b"\r\n{\r\n")


async def _upgrades(port: int) -> None:
    async with _connection(port) as (reader, writer):
        offer = _head(2 * MIB, b"connection: upgrade", b"upgrade: websocket")
        await _send(
            writer, offer + b"\r\n" * MIB + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 99
        )
        await reader.read(1)


async def _idle(port: int) -> None:
    async with _connection(port) as (reader, _):
        await reader.read()


async def _leave(port: int) -> None:
    async with _connection(port) as (_, writer):
        data = json.dumps(
            {**STREAM, "messages": [{"role": "user", "content": "x " * 9999}]}
        ).encode()
        await _send(writer, _head(len(data)) + data)
        await asyncio.sleep(0.01)


async def _unknown_keys(port: int) -> None:
    async with _connection(port) as (reader, writer):
        for _ in range(100):
            await _send(writer, _head(2, key=token_hex(16).encode()) + b"{}")
            await reader.readuntil(b"\r\n\r\n")


_LARGE = {**CHAT, "user": "x" * (8 * MIB)}
_MANY_ONES = b'{"model":"chat","prompt":[' + b"1," * (7 * MIB) + b"1]}"
_ESCAPES = b'{"model":"chat","messages":"' + b"\\u0041" * (5 * MIB) + b'"}'
_FORGED = {**COMPLETION, "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}}

# By name: what the attacker's engine does, how many clients he has, and what each does.
ATTACKS: dict[str, tuple[Script, int, Attack]] = {
    "trailers": (_silent, 2, _trailers),
    "chunk extensions": (_silent, 2, _extensions),
    "offers to upgrade": (_silent, 4, _upgrades),
    "blank lines": (_without_end(b"\n\n" * 2**13), 4, _posting(STREAM)),
    "comments": (_without_end(b":\n\n" * 2**13), 4, _posting(STREAM)),
    "fast tokens": (_without_end(a_delta() * 64), 4, _posting(STREAM)),
    "unread answers": (_without_end(a_delta("x" * 2**14)), 60, _posting(STREAM, reads=False)),
    "large whole answers": (_answering(b" " * (60 * MIB)), 8, _posting(CHAT)),
    "lists of tokens": (_answering(b"{}"), 2, _posting(_MANY_ONES)),
    "escapes": (_answering(b"{}"), 4, _posting(_ESCAPES)),
    "unfinished bodies": (_silent, 40, _unfinished(30 * MIB)),
    "waiting bodies": (_silent, 80, _posting(_LARGE)),
    "idle connections": (_silent, 1200, _idle),
    "pages": (_pages, 1, _wait),
    "forged usage": (_answering(json.dumps(_FORGED).encode()), 4, _posting(CHAT)),
    "early leavers": (_without_end(a_delta()), 8, _leave),
    "unknown keys": (_silent, 4, _unknown_keys),
}

EDITS = "edits"
# By name: edits a second, and of how many services.
EDITED = {
    "no edits": (0.0, 1),
    "edits of services": (4.0, SERVICES),
    "edits of one service": (4.0, 1),
    "10,000 edits": (EDITS_OF_SCENE / EDIT_SECONDS, SERVICES),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack"]:
        attack(*sys.argv[2:])
    else:
        benchmark(measure, only={"choices": [*ATTACKS, EDITS], "help": "play this attack alone"})
