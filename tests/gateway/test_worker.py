"""A worker process before a supervisor that the test plays."""

import asyncio
import json
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, RateLimit, RateLimits
from tessera.domain.gateway.requests import RunningPhase, UsageRecord
from tessera.domain.limits.account import Account
from tessera.domain.perf.step import StepTime
from tessera.gateway.frames import (
    Borrow,
    ListRequests,
    Portions,
    RequestList,
    ToSupervisor,
    ToWorker,
    UsageBatch,
    UsageTaken,
    Wake,
    WorkerReport,
    directory_frames,
)
from tessera.gateway.journal import abandoned_journals
from tessera.gateway.link import LinkServer
from tests.gateway.harness import (
    DONE,
    END,
    KEY,
    ROLE,
    STREAM,
    USAGE,
    EngineCall,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from tests.lab.sim.running import running
from world.slots import free_port
from world.testing import eventually

pytestmark = pytest.mark.anyio
CHAT = Ref("team-a", "chat")
WAIT_SECONDS = 60

PROGRAM = """
import sys
from pathlib import Path
from tessera.gateway.worker import WorkerOptions, run
run(WorkerOptions(host="127.0.0.1", port=int(sys.argv[1]), link=Path(sys.argv[2]),
                  journals=Path(sys.argv[2]).with_name("journals"), announce_seconds=3,
                  drain_seconds=60))
"""


@dataclass
class PlayedSupervisor:
    """Greets workers with a directory, and keeps what they say."""

    directory: Directory
    records: list[UsageRecord] = field(default_factory=list)
    reports: list[WorkerReport] = field(default_factory=list)
    lists: asyncio.Queue[RequestList] = field(default_factory=asyncio.Queue)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    accounts: dict[str, Account] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = LinkServer(self._handle, self._greeting, lambda _: None)

    async def count(self) -> int:
        return len(self.records)

    async def in_flight(self) -> int | None:
        """Return what the last report with requests says."""
        reports = [report.demand for report in self.reports if report.demand]
        return reports[-1][CHAT].in_flight if reports else None

    async def list_requests(self) -> RequestList:
        """Return what the only worker answers."""
        self.server.broadcast(ListRequests(7, 10))
        return await self.lists.get()

    def _greeting(self) -> Sequence[ToWorker]:
        return directory_frames(self.directory, None)

    def _handle(self, worker: int, frame: ToSupervisor) -> None:
        match frame:
            case UsageBatch():
                self.records += frame.records
                self.server.send(worker, UsageTaken(frame.number))
            case WorkerReport():
                self.reports.append(frame)
            case RequestList():
                self.lists.put_nowait(frame)
            case Wake():
                self.woken.set()
            case Borrow():
                now = time.time()
                portions = tuple(
                    self.accounts.setdefault(
                        each.limit.key, Account(level=each.limit.amount, updated_at=now)
                    ).borrow(each, now)
                    for each in frame.portions
                )
                self.server.send(worker, Portions(frame.number, portions))
            case _:
                raise AssertionError(frame)


@dataclass(kw_only=True)
class RunningWorker:
    process: asyncio.subprocess.Process
    supervisor: PlayedSupervisor
    url: str
    client: aiohttp.ClientSession

    async def until_ready(self) -> None:
        await eventually(self.status, lambda status: status == 200, within=WAIT_SECONDS)

    async def status(self) -> int | None:
        try:
            async with self.client.get(f"{self.url}/readyz") as response:
                return response.status
        except aiohttp.ClientConnectionError:
            return None

    def post(self, body: Any) -> Any:
        return self.client.post(f"{self.url}/v1/chat/completions", json=body)


@asynccontextmanager
async def a_worker(folder: Path, directory: Directory) -> AsyncIterator[RunningWorker]:
    port, path = free_port(), folder / "link"
    supervisor = PlayedSupervisor(directory)
    serving = asyncio.create_task(supervisor.server.serve(path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(port), str(path)
    )
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        async with aiohttp.ClientSession(headers=headers) as client:
            worker = RunningWorker(
                process=process,
                supervisor=supervisor,
                url=f"http://127.0.0.1:{port}",
                client=client,
            )
            await worker.until_ready()
            yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        serving.cancel()
        await asyncio.wait((serving,))


def until(release: asyncio.Event) -> Script:
    """Return the script of an engine that streams a token, and the rest after the release."""

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await release.wait()
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    return script


async def test_a_draining_worker_ends_its_streams_and_its_records(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with (
        ScriptedEngine(until(release)) as engine,
        a_worker(tmp_path, a_directory(a_model(a_replica(engine.address)))) as worker,
    ):
        async with worker.post(STREAM) as response:
            await response.content.readuntil(b"\n\n")
            worker.process.send_signal(signal.SIGTERM)
            await eventually(worker.status, lambda status: status == 503)
            await eventually(worker.status, lambda status: status is None)
            release.set()
            assert (await response.content.read()).endswith(END + DONE)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await worker.process.wait() == 0
        (record,) = worker.supervisor.records
        assert (record.output_tokens, record.status) == (3, 200)
    assert list((tmp_path / "journals").iterdir()) == []


async def test_a_killed_worker_leaves_what_its_clients_got(tmp_path: Path) -> None:
    release, journals = asyncio.Event(), tmp_path / "journals"

    async def running() -> int:
        return sum(path.stat().st_size for path in journals.glob("*.running"))

    async with (
        ScriptedEngine(until(release)) as engine,
        a_worker(tmp_path, a_directory(a_model(a_replica(engine.address)))) as worker,
    ):
        async with worker.post(STREAM) as response:
            release.set()
            assert (await response.content.read()).endswith(DONE)
        release.clear()
        async with worker.post(STREAM) as response:
            await response.content.readuntil(b"\n\n")
            await eventually(running, lambda size: size > 0)
            async with worker.post(STREAM) as complete:
                release.set()
                assert (await complete.content.read()).endswith(DONE)
                worker.process.kill()
                await worker.process.wait()
        (left,) = abandoned_journals(journals)
        recorded = {record.record_id: record for record in left.running} | {
            record.record_id: record for record in (*left.ended, *worker.supervisor.records)
        }
        assert len(recorded) == 3


async def test_a_connection_that_was_not_told_of_the_end_gets_one_more_answer() -> None:
    release = asyncio.Event()
    async with (
        ScriptedEngine(until(release)) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            except ConnectionRefusedError:
                return False
            writer.close()
            return True

        async with gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as begun:
            await begun.content.readuntil(b"\n\n")
            await gateway.server.drain()
            await eventually(listens, lambda accepts: not accepts)
            release.set()
            assert (await begun.content.read()).endswith(DONE)
        answer = await gateway.post(STREAM)
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_a_worker_borrows_for_limits_reports_and_outlives_its_supervisor(
    tmp_path: Path,
) -> None:
    limits = RateLimits(requests=RateLimit(per_day=2))
    body = {**STREAM, "stream": True}

    async def script(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)

    async with ScriptedEngine(script) as engine:
        model = a_model(a_replica(engine.address), limits=limits)
        async with a_worker(tmp_path, a_directory(model)) as worker:
            answers = []
            for _ in range(3):
                async with worker.post(body) as response:
                    headers = response.headers
                    limit = headers["x-ratelimit-limit-requests"]
                    remaining = headers["x-ratelimit-remaining-requests"]
                    answers.append((response.status, limit, remaining))
            assert answers == [(200, "2", "1"), (200, "2", "0"), (429, "2", "0")]
            # Of a day the half for one request, and all of it for both.
            assert 43_000 < int(headers["retry-after"]) <= 43_200
            assert 86_000 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 86_400
            await eventually(worker.supervisor.count, lambda count: count == 3)
            await eventually(worker.supervisor.in_flight, lambda requests: requests == 0)


async def test_a_worker_lists_its_requests_when_it_is_asked(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with (
        ScriptedEngine(until(release)) as engine,
        a_worker(tmp_path, a_directory(a_model(a_replica(engine.address)))) as worker,
        asyncio.timeout(WAIT_SECONDS),
    ):
        async with worker.post(STREAM) as response:
            await response.content.readuntil(b"\n\n")
            listed = await eventually(
                worker.supervisor.list_requests,
                lambda listed: any(each.output_tokens for each in listed.requests),
                within=WAIT_SECONDS,
            )
            release.set()
            await response.content.read()
        (request,) = listed.requests
        assert (listed.number, listed.total) == (7, 1)
        assert (request.phase, request.replica) == (RunningPhase.DECODE, "chat-1")
        await eventually(
            worker.supervisor.list_requests,
            lambda listed: listed == RequestList(7, [], 0),
            within=WAIT_SECONDS,
        )


async def test_a_request_for_a_sleeping_service_waits_until_it_is_awake() -> None:
    async def script(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)

    asleep = a_directory(a_model(may_sleep=True))
    async with ScriptedEngine(script) as engine, a_gateway(asleep) as gateway:
        request = asyncio.create_task(gateway.post(STREAM))
        async with asyncio.timeout(WAIT_SECONDS):
            assert await gateway.supervisor.woken.get() == CHAT
        gateway.admission.update(a_directory(a_model(a_replica(engine.address), may_sleep=True)))
        answer = await request
    assert answer.body.endswith(END + DONE)
    assert int(answer.headers["x-tessera-queue-ms"]) >= 0


_STEP_SECONDS, _TOKENS, _SEQUENCES = 0.1, 20, 8
_WARM_UP_SECONDS, _FAIR_SECONDS = 10, 60


async def times_to_first_token(folder: Path, greedy_clients: int) -> dict[str, list[float]]:
    """Let clients of two tenants send one request after the other; return seconds, sorted."""
    seconds = defaultdict[str, list[float]](list)
    begin = time.monotonic() + _WARM_UP_SECONDS

    async def run_client(worker: RunningWorker, tenant: str) -> None:
        body = {**STREAM, "max_tokens": _TOKENS, "ignore_eos": True}
        headers = {"authorization": f"Bearer tsk-{tenant}"}
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
            while (sent_at := time.monotonic()) < begin + _FAIR_SECONDS:
                async with client.post(f"{worker.url}/v1/chat/completions", json=body) as response:
                    assert response.status == 200, await response.text()
                    lines = [line async for line in _timed(response) if line[1].startswith(b"data")]
                if sent_at > begin:
                    seconds[tenant].append(lines[0][0] - sent_at)

    speed = {"weights": _STEP_SECONDS, "token": 1e-6}
    async with running(
        "--served-model-name=chat",
        f"--max-num-seqs={_SEQUENCES}",
        TESSERA_SIM_SPEED=json.dumps(speed),
    ) as engine:
        replica = a_replica(
            engine.url.removeprefix("http://"),
            max_num_seqs=_SEQUENCES,
            step_time=StepTime(weights=_STEP_SECONDS, token=1e-6, kv_token=0, sequence=0, fixed=0),
        )
        tenants = {"modest": _SEQUENCES, "greedy": greedy_clients}
        keys = [an_api_key(f"tsk-{tenant}", tenant=tenant) for tenant in tenants]
        model = a_model(replica, tenants=frozenset(tenants))
        async with (
            a_worker(folder, a_directory(model, keys=keys)) as worker,
            asyncio.TaskGroup() as clients,
        ):
            for tenant, count in tenants.items():
                for _ in range(count):
                    clients.create_task(run_client(worker, tenant))
    return {tenant: sorted(values) for tenant, values in seconds.items()}


async def _timed(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, bytes]]:
    async for line in response.content:
        yield time.monotonic(), line


@pytest.mark.full
async def test_a_tenant_that_sends_ten_times_its_share_delays_the_other_by_a_tenth_at_most(
    tmp_path: Path,
) -> None:
    """Both runs go on at once, so that whatever else the machine does delays both."""
    folders = [tmp_path / "fair", tmp_path / "greedy"]
    for folder in folders:
        folder.mkdir()
    fair, greedy = await asyncio.gather(
        times_to_first_token(folders[0], _SEQUENCES),
        times_to_first_token(folders[1], 10 * _SEQUENCES),
    )
    p95 = [values["modest"][int(0.95 * len(values["modest"]))] for values in (fair, greedy)]
    sys.stdout.write(f"P95 of TTFT: {p95[0]:.2f} s, beside a greedy tenant {p95[1]:.2f} s\n")
    assert p95[1] == pytest.approx(p95[0], rel=0.1)
    # The greedy one waits for itself.
    assert greedy["greedy"][len(greedy["greedy"]) // 2] > 5 * p95[1]
