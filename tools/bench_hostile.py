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
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import aiohttp

from attacks import sockets
from attacks.catalog import ATTACKS, HostileScene
from attacks.engines import send, serve_connection
from attacks.sending import Attack, Target, connection, request_head
from bench_gateway import cpu_seconds, memory_bytes
from edited_fleet import EditedFleet
from figures import benchmark
from gateway_process import any_certificate, running, write_directory
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, TenantLimits
from tessera.domain.names import PORT
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_model,
    a_replica,
    an_api_key,
)
from tests.gateway.settle.failures import figures_of_gateway, figures_of_rule
from tests.hostile.twin import HOSTILE, Fleet
from world.slots import free_port

PAUSE_SECONDS = 0.02
BEGIN_SECONDS = 2
# 500 a second, about what one user makes at an API server.
EDITS_OF_SCENE, EDITS_A_SECOND = 10_000, 500.0
# With fewer edits, there are as many times fewer services.
SERVICES = 3000
# They fill the tables of an operator. It reconciles four times a second at most.
FILLING_EDITS, EDITS_OF_CYCLE = 3_000, 125
# 2 KiB a second, while the addresses of 768 connections come in two seconds.
UPLOADS, UPLOAD_PARTS, UPLOAD_BYTES, UPLOAD_PAUSE_SECONDS = 20, 64, 512, 0.25
UPLOAD_ATTACKERS = 768
FAILURE_FIGURES = (
    *("failures", "unpaid_engine_tokens"),
    *("charged_twice", "charged_above_reservation"),
)
MIB = 2**20
OTHER_KEY, OTHER_MODEL = "tsk-team-b", "other"


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


def attack(name: str, port: str, engine_port: str, host: str = "", services: str = "") -> None:
    """Play one attack against a running gateway, without end."""
    if name in EDITED:
        asyncio.run(_edit(name, int(engine_port), host, int(services)))
    asyncio.run(_attack(name, int(port), int(engine_port)))


async def measure(
    *,
    only: str = "",
    attacks: int = len(ATTACKS),
    seconds: float = 8.0,
    uploads: int = UPLOADS,
    failures: int = 2_000,
    edits: int = EDITS_OF_SCENE,
) -> dict[str, float]:
    """Play so many attacks, or the only part that is chosen."""
    parts: Mapping[str, Callable[[], Awaitable[dict[str, float]]]] = {
        "uploads": partial(_measure_uploads, uploads),
        "failures": partial(_measure_failures, failures),
        "edits": partial(_measure_edits, edits),
    }
    if only in parts:
        return await parts[only]()
    names = [only] if only else list(ATTACKS)[:attacks]
    scenes = await _scenes(partial(_play, seconds=seconds), ("quiet", *names))
    quiet = scenes.pop("quiet")
    for name, scene in scenes.items():
        if scene.peak_mib > ATTACKS[name].most_mib:
            sys.exit(f"{name}: {scene.peak_mib:.0f} MiB, at most {ATTACKS[name].most_mib}")
    return {
        "hostile_scenes": len(scenes),
        "rss_mib": round(max(each.peak_mib for each in scenes.values())),
        "p99_cpu_ms": round(max(each.p99_cpu_ms for each in scenes.values()), 1),
        "added_p99_ms": round(max(each.p99_ms for each in scenes.values()) - quiet.p99_ms, 1),
        "differences": sum(each.differences for each in scenes.values()),
        **{
            name: value
            for measure_part in (() if only else parts.values())
            for name, value in (await measure_part()).items()
        },
        "load_average": os.getloadavg()[0],
    }


async def _measure_failures(failures: int) -> dict[str, float]:
    """Return what was not paid, or too much, of requests that fail."""
    by_rule = figures_of_rule(5 * failures)
    # It has an event loop of its own, in virtual time.
    by_gateway = await asyncio.to_thread(figures_of_gateway, failures)
    return {name: getattr(by_rule, name) + getattr(by_gateway, name) for name in FAILURE_FIGURES}


async def _measure_uploads(count: int) -> dict[str, float]:
    """Return how many of honest uploads end early while new addresses connect."""
    scene, body = HostileScene(attack=sockets.new_addresses), json.dumps(CHAT).encode()
    async with ScriptedEngine(_answer) as own:
        directory, _ = _directories(scene, own.address, int(own.address.rpartition(":")[2]))
        with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
            async with running(Path(folder), directory, descriptors=scene.descriptors) as (
                address,
                _,
            ):
                target = Target(int(address.rpartition(":")[2]), None)
                uploads = [asyncio.create_task(_upload(target, body)) for _ in range(count)]
                # They are under way before the first new address comes.
                await asyncio.sleep(BEGIN_SECONDS)
                attackers = [
                    asyncio.create_task(_again(scene.attack, target))
                    for _ in range(UPLOAD_ATTACKERS)
                ]
                try:
                    ends = await asyncio.gather(*uploads)
                finally:
                    for task in attackers:
                        task.cancel()
                    await asyncio.gather(*attackers, return_exceptions=True)
    return {"uploads": count, "evicted_uploads": ends.count(False)}


async def _upload(target: Target, body: bytes) -> bool:
    """Send a body slowly, after spaces; return whether the gateway answered it, and cut nothing.

    Whether the engine is too busy for all of them at once is no matter of uploads.
    """
    try:
        async with connection(target) as (reader, writer):
            await send(writer, request_head(UPLOAD_BYTES * UPLOAD_PARTS + len(body)))
            for _ in range(UPLOAD_PARTS):
                await send(writer, b" " * UPLOAD_BYTES)
                await asyncio.sleep(UPLOAD_PAUSE_SECONDS)
            await send(writer, body)
            return (await reader.readline()).startswith(b"HTTP/1.1 ")
    except OSError:
        return False


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


async def _measure_edits(edits: int) -> dict[str, float]:
    """Return what edits of services take: of the processor, of the bystander's time, of memory."""
    scenes = await _scenes(partial(_play_edits, edits), EDITED)
    none, few, same, many = scenes.values()
    return {
        "directory_core_share": round(max(few.cpu_share, same.cpu_share) - none.cpu_share, 3),
        "edits_added_p99_ms": round(many.p99_ms - none.p99_ms, 1),
        "edits_added_p99_cpu_ms": round(many.p99_cpu_ms - none.p99_cpu_ms, 1),
        "edits_grown_mib": round(many.peak_mib - none.peak_mib),
        "edits_differences": sum(each.differences for each in scenes.values()),
        "edits_operator_growth_mib": await _operator_growth_mib(edits),
    }


async def _operator_growth_mib(edits: int) -> float:
    """Return by how much an operator grows with so many edits, once its tables are full."""
    fleet = Fleet()
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget(HOSTILE, "100")
    before, filling = 0, FILLING_EDITS * edits // EDITS_OF_SCENE
    for number in range(filling + edits):
        access = {"aliases": [f"name-{number}"]}
        fleet.serve("x", HOSTILE, replicas=1, slo={"ttftP95": f"{1000 + number}ms"}, access=access)
        if number % EDITS_OF_CYCLE == 0:
            await fleet.cycle()
            fleet.cluster.compact()
        if number == filling:
            before = memory_bytes(os.getpid(), "VmRSS")
    return round((memory_bytes(os.getpid(), "VmRSS") - before) / MIB, 1)


async def _play_edits(edits: int, name: str) -> Scene:
    services = max(1, SERVICES * edits // EDITS_OF_SCENE)
    api_port, engine_host = free_port(), f"127.64.{os.getpid() % 250}.1"
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
        async with (
            ScriptedEngine(_answer, at=(engine_host, PORT)),
            _attacker(name, 0, api_port, engine_host, str(services)),
            running(Path(folder), f"127.0.0.1:{api_port}") as (address, pid),
        ):
            # The first directory is built, and what it leaves collected.
            await asyncio.sleep(BEGIN_SECONDS)
            return await _scene(f"http://{address}", pid, edits / EDITS_A_SECOND)


async def _play(name: str, seconds: float) -> Scene:
    scene, engine_port = ATTACKS.get(name, HostileScene(clients=0)), free_port()
    async with ScriptedEngine(_answer) as own:
        before, after = _directories(scene, own.address, engine_port)
        with tempfile.TemporaryDirectory(prefix="tessera-") as folder:
            async with (
                running(Path(folder), before, descriptors=scene.descriptors, tls=scene.tls) as (
                    address,
                    pid,
                ),
                _attacker(name, int(address.rpartition(":")[2]), engine_port),
            ):
                if scene.leaves:
                    write_directory(Path(folder), after)
                    os.kill(pid, signal.SIGHUP)
                url = f"{'https' if scene.tls else 'http'}://{address}"
                return await _scene(url, pid, seconds)


def _directories(
    scene: HostileScene, own_address: str, engine_port: int
) -> tuple[Directory, Directory]:
    """Return the directory of a scene, and that in which the attacker's first replica leaves."""
    bystander = a_model(
        a_replica(own_address, "other-1", pod=Ref("team-b", "other-1")),
        service=Ref("team-b", OTHER_MODEL), uid="uid-other", names=(OTHER_MODEL,), tenant="team-b",
    )  # fmt: skip
    replicas = [
        a_replica(f"{_replica_host(number)}:{engine_port}", f"chat-{number}", max_num_seqs=64)
        for number in range(scene.replicas)
    ]
    others = [
        a_model(service=Ref("team-a", f"model-{number}"), uid=f"uid-{number}",
                names=(f"model-{number}",))
        for number in range(scene.models - 1)
    ]  # fmt: skip
    attacked = a_model(
        *replicas,
        tenants=frozenset({"team-b"} if scene.shared else ()),
        moves_streams=scene.leaves,
    )
    leaving = [replace(replicas[0], leaving=True), *replicas[1:]]
    keys = (an_api_key(), an_api_key(OTHER_KEY, name="other", tenant="team-b"))
    tenants = {each: TenantLimits(name=each, namespaces=(each,)) for each in ("team-a", "team-b")}
    before, after = (
        a_directory(bystander, model, *others, keys=keys, tenants=tenants)
        for model in (attacked, replace(attacked, replicas=tuple(leaving)))
    )
    return before, after


async def _scene(address: str, pid: int, seconds: float) -> Scene:
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
                    f"{address}/v1/chat/completions",
                    json={**CHAT, "model": OTHER_MODEL},
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(60),
                    ssl=False,
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
    scene = ATTACKS.get(name, HostileScene(clients=0))
    target = Target(port, any_certificate() if scene.tls else None)
    async with AsyncExitStack() as stack:
        for number in range(scene.replicas):
            await stack.enter_async_context(
                await asyncio.start_server(
                    lambda reader, writer: serve_connection(reader, writer, scene.engine),
                    _replica_host(number),
                    engine_port,
                )
            )
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for _ in range(scene.clients):
            group.create_task(_again(scene.attack, target))
        await asyncio.sleep(BEGIN_SECONDS)
        print("begun", flush=True)
        await asyncio.Event().wait()


def _replica_host(number: int) -> str:
    return f"127.0.0.{1 + number}"


async def _edit(name: str, api_port: int, engine_host: str, services: int) -> None:
    edits_per_second, edited = EDITED[name]
    fleet = EditedFleet(
        services=services,
        other=OTHER_MODEL,
        other_key=OTHER_KEY,
        other_address=engine_host,
        edits_per_second=edits_per_second,
        edited=edited,
    )
    print("begun", flush=True)
    await fleet.serve(api_port)


async def _again(attack: Attack, target: Target) -> None:
    while True:
        with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            await attack(target)
        await asyncio.sleep(0.01)


# What is measured beside the attacks.
PARTS = ("uploads", "failures", "edits")
# By name: edits a second, and of how many services.
EDITED = {
    "no edits": (0.0, 1),
    "edits of services": (4.0, SERVICES),
    "edits of one service": (4.0, 1),
    "10,000 edits": (EDITS_A_SECOND, SERVICES),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--attack"]:
        attack(*sys.argv[2:])
    else:
        benchmark(
            measure,
            short={"attacks": 1, "seconds": 0.5, "uploads": 1, "failures": 25, "edits": 250},
            only={"choices": [*ATTACKS, *PARTS], "help": "play this attack or part alone"},
            attacks={"help": "of all, the first ones"},
            seconds={"help": "of each attack"},
        )
