"""The process of a gateway: how it ends, and what the next one finds."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp
import pytest

from gateway_process import command, write_directory
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import Directory
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.perf.step import StepTime
from tessera.gateway.import_usage import read_records
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
WAIT_SECONDS = 60


@dataclass(kw_only=True)
class GatewayProcess:
    process: asyncio.subprocess.Process
    folder: Path
    url: str
    client: aiohttp.ClientSession

    async def wait_for_status(self, expected: int | None) -> None:
        """Wait until `/readyz` answers with this status; None if nobody listens any more."""

        async def is_answered() -> None:
            try:
                async with self.client.get(f"{self.url}/readyz") as response:
                    status: int | None = response.status
            except aiohttp.ClientConnectionError:
                status = None
            assert status == expected

        await eventually(is_answered, within=WAIT_SECONDS)

    def post(self, body: Any) -> Any:
        return self.client.post(f"{self.url}/v1/chat/completions", json=body)

    def records(self) -> list[UsageRecord]:
        """Return what its store has, and its journal if nobody locks it."""
        return [each for batch in read_records(self.folder / "store.db") for each in batch]


@asynccontextmanager
async def a_process(
    folder: Path, directory: Directory, *, announce_seconds: float = 0
) -> AsyncIterator[GatewayProcess]:
    port = free_port()
    write_directory(folder, directory)
    log = await asyncio.to_thread((folder / "log").open, "wb")
    process = await asyncio.create_subprocess_exec(
        *command(port, folder, announce_seconds, 60),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=log,
    )
    headers = {"authorization": f"Bearer {KEY}"}
    try:
        async with aiohttp.ClientSession(headers=headers) as client:
            gateway = GatewayProcess(
                process=process, folder=folder, url=f"http://127.0.0.1:{port}", client=client
            )
            await gateway.wait_for_status(200)
            yield gateway
    finally:
        log.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


def until(release: asyncio.Event) -> Script:
    """Return the script of an engine that streams a token, and the rest after the release."""

    async def script(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + a_delta())
        await release.wait()
        await call.chunk(END + USAGE + DONE)
        await call.finish()

    return script


async def test_a_draining_gateway_ends_its_streams_and_its_records(tmp_path: Path) -> None:
    release = asyncio.Event()
    async with (
        ScriptedEngine(until(release)) as engine,
        a_process(
            tmp_path, a_directory(a_model(a_replica(engine.address))), announce_seconds=3
        ) as gateway,
    ):
        async with gateway.post(STREAM) as response:
            await response.content.readuntil(b"\n\n")
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.wait_for_status(503)
            await gateway.wait_for_status(None)
            release.set()
            assert (await response.content.read()).endswith(END + DONE)
        async with asyncio.timeout(WAIT_SECONDS):
            assert await gateway.process.wait() == 0
        (record,) = gateway.records()
        assert (record.output_tokens, record.status) == (3, 200)
    assert list((tmp_path / "journals").iterdir()) == []
    (line,) = (tmp_path / "log").read_bytes().splitlines()
    assert json.loads(line)["recordId"] == record.record_id


async def test_a_killed_gateway_leaves_what_its_clients_got_and_the_next_one_stores_it(
    tmp_path: Path,
) -> None:
    release, journals = asyncio.Event(), tmp_path / "journals"

    async def is_noted() -> None:
        assert [path for path in journals.glob("*.running") if path.stat().st_size] != []

    async with ScriptedEngine(until(release)) as engine:
        directory = a_directory(a_model(a_replica(engine.address)))
        async with a_process(tmp_path, directory) as gateway:
            async with gateway.post(STREAM) as response:
                release.set()
                assert (await response.content.read()).endswith(DONE)
            release.clear()
            async with gateway.post(STREAM) as response:
                await response.content.readuntil(b"\n\n")
                await eventually(is_noted)
                async with gateway.post(STREAM) as complete:
                    release.set()
                    assert (await complete.content.read()).endswith(DONE)
                    gateway.process.kill()
                    await gateway.process.wait()
            recorded = {record.record_id: record for record in gateway.records()}
            assert len(recorded) == 3

        async with a_process(tmp_path, directory) as restarted:
            restarted.process.send_signal(signal.SIGTERM)
            await restarted.process.wait()
            assert {record.record_id for record in restarted.records()} == recorded.keys()
        assert list(journals.iterdir()) == []


async def test_a_connection_that_was_not_told_of_the_end_gets_one_more_answer() -> None:
    release = asyncio.Event()
    async with (
        ScriptedEngine(until(release)) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address)))) as gateway,
    ):

        async def refuses_connections() -> None:
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", gateway.port)) == errno.ECONNREFUSED

        async with gateway.client.post(f"{gateway.url}/v1/chat/completions", json=STREAM) as begun:
            await begun.content.readuntil(b"\n\n")
            await gateway.server.drain()
            await eventually(refuses_connections)
            release.set()
            assert (await begun.content.read()).endswith(DONE)
        answer = await gateway.post(STREAM)
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_limits_are_borrowed_from_the_store_and_outlive_the_gateway(tmp_path: Path) -> None:
    limits = RateLimitsSpec(requests=PeriodLimits(per_day=2))

    async def script(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)

    async def answers(gateway: GatewayProcess, count: int) -> list[tuple[int, str, str]]:
        seen = []
        for _ in range(count):
            async with gateway.post(STREAM) as response:
                headers = response.headers
                limit = headers["x-ratelimit-limit-requests"]
                remaining = headers["x-ratelimit-remaining-requests"]
                seen.append((response.status, limit, remaining))
        if seen[-1][0] == 429:
            # Of a day the half for one request, and all of it for both.
            assert 43_000 < int(headers["retry-after"]) <= 43_200
            assert 86_000 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 86_400
        return seen

    async with ScriptedEngine(script) as engine:
        directory = a_directory(a_model(a_replica(engine.address), limits=limits))
        async with a_process(tmp_path, directory) as gateway:
            assert await answers(gateway, 2) == [(200, "2", "1"), (200, "2", "0")]
        async with a_process(tmp_path, directory) as restarted:
            assert await answers(restarted, 1) == [(429, "2", "0")]


async def test_a_request_for_a_sleeping_service_waits_until_it_is_awake() -> None:
    async def script(call: EngineCall) -> None:
        await call.stream(ROLE, a_delta(), END, USAGE, DONE)

    asleep = a_directory(a_model(may_sleep=True))
    async with ScriptedEngine(script) as engine, a_gateway(asleep) as gateway:
        request = asyncio.create_task(gateway.post(STREAM))
        async with asyncio.timeout(WAIT_SECONDS):
            assert await gateway.woken.wait()
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

    async def run_client(gateway: GatewayProcess, tenant: str) -> None:
        body = {**STREAM, "max_tokens": _TOKENS, "ignore_eos": True}
        headers = {"authorization": f"Bearer tsk-{tenant}"}
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
            while (sent_at := time.monotonic()) < begin + _FAIR_SECONDS:
                async with client.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
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
            a_process(folder, a_directory(model, keys=keys)) as gateway,
            asyncio.TaskGroup() as clients,
        ):
            for tenant, count in tenants.items():
                for _ in range(count):
                    clients.create_task(run_client(gateway, tenant))
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
    # Requests that are late let others go first, so that quantiles have two levels.
    means = [fmean(values["modest"]) for values in (fair, greedy)]
    sys.stdout.write(f"mean TTFT: {means[0]:.2f} s, beside a greedy tenant {means[1]:.2f} s\n")
    assert means[1] == pytest.approx(means[0], rel=0.1)
    # The greedy one waits for itself.
    assert fmean(greedy["greedy"]) > 5 * means[1]
