"""The socket between supervisor and workers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tessera.api.ref import Ref
from tessera.domain.gateway.access import AccessReason
from tessera.domain.gateway.directory import (
    ApiKey,
    Directory,
    EngineReplica,
    Identity,
    OfferedModel,
    RateLimit,
    RateLimits,
    TenantLimits,
)
from tessera.domain.perf.step import StepTime
from tessera.domain.picking.replica_state import EngineLoad, SentLoad
from tessera.gateway.frames import (
    DirectoryUpdate,
    EngineLoads,
    KeysUpdate,
    TokenQuery,
    TokenVerdict,
    ToSupervisor,
    ToWorker,
    UsageBatch,
    UsageTaken,
    WorkerDemand,
    WorkerReport,
    directory_frames,
)
from tessera.gateway.link import LinkServer, Outbox, WorkerLink
from tessera.gateway.usage_outbox import UsageOutbox
from tests.builders import NOW
from tests.gateway.store.builders import a_record

WAIT_SECONDS = 60
LIMITS = RateLimits(requests=RateLimit(per_minute=60), concurrent_requests=4)
DIRECTORY = Directory(
    models=(
        OfferedModel(
            service=Ref("team-a", "chat"),
            uid="1",
            names=("chat",),
            tenant="team-a",
            tenants=frozenset({"team-b"}),
            replicas=(
                EngineReplica(
                    pod=Ref("team-a", "chat-0"),
                    uid="2",
                    address="10.0.0.7:8000",
                    ready_since=NOW,
                    step_time=StepTime(weights=0.01, kv_token=1e-9, token=1e-6),
                ),
            ),
        ),
    ),
    tenants={"team-a": TenantLimits(name="team-a", namespaces=("team-a",), limits=LIMITS)},
    keys={"ab": ApiKey(name="ci", digest="ab", tenant="team-a", expires=NOW, limits=LIMITS)},
)
RECORD = a_record(variant=None, ttft_ns=None)
REPORT = WorkerReport(
    sent={"2": SentLoad(requests=1)}, demand={Ref("team-a", "chat"): WorkerDemand(queued=2)}
)


class Supervisor:
    def __init__(self) -> None:
        self.frames: asyncio.Queue[tuple[int, ToSupervisor]] = asyncio.Queue()
        self.left: asyncio.Queue[int] = asyncio.Queue()
        self.server = LinkServer(
            lambda worker, frame: self.frames.put_nowait((worker, frame)),
            lambda: [DirectoryUpdate(DIRECTORY)],
            self.left.put_nowait,
        )

    @asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        task = asyncio.create_task(self.server.serve(path))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def a_worker(path: Path) -> AsyncIterator[tuple[WorkerLink, asyncio.Queue[ToWorker]]]:
    frames: asyncio.Queue[ToWorker] = asyncio.Queue()
    link = WorkerLink(path, frames.put_nowait)
    task = asyncio.create_task(link.run())
    try:
        yield link, frames
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def a_socket() -> Iterator[Path]:
    # The path of a socket has at most 107 bytes, and pytest's folders are longer.
    with TemporaryDirectory() as folder:
        yield Path(folder) / "link"


async def test_frames_arrive_as_they_were_sent() -> None:
    supervisor = Supervisor()
    with a_socket() as path:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            supervisor.serving(path),
            a_worker(path) as (link, frames),
        ):
            assert await frames.get() == DirectoryUpdate(DIRECTORY)
            for frame in (UsageBatch(1, [RECORD]), TokenQuery(1, "a.b.c")):
                link.send(frame)
                assert await supervisor.frames.get() == (0, frame)
            link.send(REPORT)
            assert await supervisor.frames.get() == (0, REPORT)
            verdict = TokenVerdict(1, Identity(tenant="team-a", user="u"), seconds=60)
            supervisor.server.send(0, verdict)
            assert await frames.get() == verdict
            loads = EngineLoads({"2": EngineLoad(running=1, waiting=2, observed_at=3.0)})
            supervisor.server.broadcast(loads)
            assert await frames.get() == loads


async def test_a_worker_waits_for_the_supervisor_and_finds_the_next_one() -> None:
    supervisors = (Supervisor(), Supervisor())
    with a_socket() as path:
        async with asyncio.timeout(WAIT_SECONDS), a_worker(path) as (link, frames):
            link.send(TokenQuery(0, "lost"))
            for number, supervisor in enumerate(supervisors):
                async with supervisor.serving(path):
                    assert await frames.get() == DirectoryUpdate(DIRECTORY)
                    link.send(TokenQuery(number, "token"))
                    assert await supervisor.frames.get() == (0, TokenQuery(number, "token"))


async def test_usage_that_a_supervisor_took_along_reaches_the_next_one() -> None:
    first, second = Supervisor(), Supervisor()
    outbox = UsageOutbox(lambda _: None)
    for _ in range(2):
        outbox.add(RECORD)
        outbox.flush()
    with a_socket() as path:
        link = WorkerLink(path, lambda _: None, outbox.greeting)
        task = asyncio.create_task(link.run())
        async with asyncio.timeout(WAIT_SECONDS):
            async with first.serving(path):
                for number in (1, 2):
                    assert await first.frames.get() == (0, UsageBatch(number, [RECORD]))
                outbox.taken(UsageTaken(1))
            async with second.serving(path):
                assert await second.frames.get() == (0, UsageBatch(2, [RECORD]))
            outbox.taken(UsageTaken(2))
            assert outbox.empty
            assert outbox.greeting() == ()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_supervisor_learns_that_a_worker_is_gone() -> None:
    supervisor = Supervisor()
    with a_socket() as path:
        async with asyncio.timeout(WAIT_SECONDS), supervisor.serving(path):
            async with a_worker(path) as (_, frames):
                await frames.get()
            assert await supervisor.left.get() == 0
            assert supervisor.server.workers == ()


async def test_a_slow_peer_gets_the_newest_state_and_bounded_events() -> None:
    outbox = Outbox[ToWorker]()
    for number in range(20_000):
        outbox.put(DirectoryUpdate(Directory(default_limits=RateLimits(max_output_tokens=number))))
        outbox.put(TokenVerdict(number, reason=AccessReason.INVALID_TOKEN))
    assert outbox.dropped == 10_000
    assert b"\xcd\x4e\x1f" in await outbox.next()  # 19999
    assert b"\xcd\x27\x10" in await outbox.next()  # 10000


def test_keys_go_by_themselves_and_only_what_changed_is_sent() -> None:
    rest = replace(DIRECTORY, keys={})
    keys = KeysUpdate(dict(DIRECTORY.keys))
    assert directory_frames(DIRECTORY, None) == [keys, DirectoryUpdate(rest)]
    assert directory_frames(DIRECTORY, replace(DIRECTORY)) == []
    assert directory_frames(DIRECTORY, rest) == [keys]
    assert directory_frames(DIRECTORY, replace(DIRECTORY, models=())) == [DirectoryUpdate(rest)]
