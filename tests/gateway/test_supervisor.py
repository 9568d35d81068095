"""The supervisor of a gateway with workers on a real socket, and in-memory parts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import jwt

from tessera.api.key_record import KeyRecord
from tessera.api.ref import Ref
from tessera.domain.gateway.build import GatewayObservations
from tessera.domain.gateway.directory import Identity, RateLimits
from tessera.domain.gateway.requests import UsageRecord
from tessera.domain.limits.account import Portion, PortionRequest
from tessera.domain.limits.scopes import Meter, ScopedLimit, ScopeKind
from tessera.domain.limits.worker_shares import WorkerShare
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.picking.replica_state import SentLoad
from tessera.gateway.frames import (
    Borrow,
    DirectoryUpdate,
    EngineLoads,
    KeysUpdate,
    OtherLoads,
    Portions,
    TokenQuery,
    TokenVerdict,
    ToWorker,
    UsageBatch,
    UsageTaken,
    Wake,
    WorkerDemand,
    WorkerReport,
)
from tessera.gateway.link import WorkerLink
from tessera.gateway.polling import EnginePoller
from tessera.gateway.store.leases import Lease, WorkerBorrowing
from tessera.gateway.supervisor import Supervisor, SupervisorParts
from tessera.gateway.token_verifier import TokenVerifier
from tests.builders import a_budget, a_pod, a_service
from tests.gateway.test_link import RECORD

CHAT = Ref("team-a", "chat")
LIMIT = ScopedLimit(
    key="Tenant/team-a/Requests/60",
    scope=ScopeKind.TENANT,
    name="team-a",
    meter=Meter.REQUESTS,
    amount=60,
    period_seconds=60,
)
FrameT = TypeVar("FrameT")


class Gateway:
    def __init__(self) -> None:
        self.observed: GatewayObservations | None = None
        self.records: list[UsageRecord] = []
        self.written: list[Callable[[], None]] = []
        self.borrowings: list[Sequence[WorkerBorrowing]] = []
        self.supervisor = Supervisor(
            SupervisorParts(
                name="gw",
                observe=lambda: self.observed,
                changed=asyncio.Event(),
                default_limits=RateLimits(),
                poller=EnginePoller(self.read_page),
                verifier=TokenVerifier(self.review, {}),
                lender=self,
                record=self.record,
            )
        )

    def record(self, records: Sequence[UsageRecord], written: Callable[[], None]) -> None:
        self.records.extend(records)
        self.written.append(written)

    async def read_page(self, address: str) -> bytes | None:
        assert address == "127.10.0.5:8000"
        return b"vllm:num_requests_running 5\nvllm:num_requests_waiting 0\n"

    async def review(self, token: str) -> str | None:
        assert token
        return "system:serviceaccount:team-a:ci"

    async def borrow(self, borrowings: Sequence[WorkerBorrowing]) -> Sequence[Lease]:
        self.borrowings.append(borrowings)
        return [
            Lease(
                worker=borrowing.worker,
                portions=tuple(
                    Portion(key=request.limit.key, amount=request.need, left=1.0)
                    for request in borrowing.portions
                ),
            )
            for borrowing in borrowings
        ]

    def observe(self, **fields: Any) -> None:
        parts = {"services": (a_service(),), "pods": (a_pod(),), "budgets": (a_budget(),), **fields}
        self.observed = GatewayObservations(**parts)
        self.supervisor.parts.changed.set()


class Worker:
    def __init__(self, path: Path) -> None:
        self.frames: asyncio.Queue[ToWorker] = asyncio.Queue()
        self.link = WorkerLink(path, self.frames.put_nowait)

    async def next(self, kind: type[FrameT], accept: Callable[[FrameT], bool] = bool) -> FrameT:
        """Return the next frame of a kind, and leave out all others."""
        while True:
            frame = await self.frames.get()
            if isinstance(frame, kind) and accept(frame):
                return frame


@asynccontextmanager
async def running(gateway: Gateway, workers: int = 1) -> AsyncIterator[list[Worker]]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "link"
        started = [Worker(path) for _ in range(workers)]
        tasks = [asyncio.create_task(gateway.supervisor.run(path))]
        try:
            async with asyncio.timeout(60):
                for number, worker in enumerate(started):
                    tasks.append(asyncio.create_task(worker.link.run()))
                    while len(gateway.supervisor.workers) <= number:  # noqa: ASYNC110 - nobody tells it
                        await asyncio.sleep(0.01)
                yield started
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_workers_get_a_directory_once_everything_is_known_and_again_when_it_changes() -> None:
    gateway = Gateway()
    async with running(gateway) as [worker]:
        gateway.supervisor.parts.changed.set()
        gateway.observe()
        first = (await worker.next(DirectoryUpdate)).directory
        assert [model.service for model in first.models] == [CHAT]
        gateway.observe()
        record = KeyRecord.model_validate({"sha256": "ab" * 32})
        keys = TenantKeys(secret=Ref("gw", "s"), tenant="team-a", records={"ci": record})
        gateway.observe(keys=(keys,))
        update = await worker.next(KeysUpdate, lambda frame: bool(frame.keys))
        assert list(update.keys) == ["ab" * 32]
        assert gateway.supervisor.directory == replace(first, keys=update.keys)


async def test_engines_of_services_with_requests_are_polled() -> None:
    gateway = Gateway()
    gateway.observe()
    async with running(gateway) as [worker]:
        await worker.next(DirectoryUpdate)
        worker.link.send(WorkerReport(demand={CHAT: WorkerDemand(arrived=1)}))
        loads = (await worker.next(EngineLoads)).loads
        assert loads["uid-chat-0"].running == 5


async def test_each_worker_hears_what_the_others_have_in_flight() -> None:
    gateway = Gateway()
    async with running(gateway, 2) as [first, second]:
        load = SentLoad(requests=2, awaiting=1, prefill_tokens=100)
        first.link.send(WorkerReport(sent={"x": load}))
        assert await second.next(OtherLoads, lambda frame: bool(frame.loads)) == OtherLoads(
            {"x": load}
        )
        first.link.send(WorkerReport())
        idle = OtherLoads({"x": SentLoad()})
        assert await second.next(OtherLoads, lambda frame: frame.loads != {"x": load}) == idle


async def test_workers_share_a_model_by_tenants_while_requests_of_others_wait() -> None:
    gateway = Gateway()
    async with running(gateway, 2) as [first, second]:
        waiting = WorkerDemand(queued=1, in_flight=3, tenants={"team-a": 3, "team-b": 1})
        first.link.send(WorkerReport(demand={CHAT: waiting}))
        second.link.send(WorkerReport(demand={CHAT: WorkerDemand(tenants={"team-a": 3})}))
        shares = (await second.next(OtherLoads, lambda frame: bool(frame.shares))).shares
        assert shares == {CHAT: WorkerShare(places=0.25, tenants={"team-a": 0.5})}
        # Nothing of others waits for the first one.
        assert (await first.next(OtherLoads)).shares == {}
        first.link.send(WorkerReport(demand={CHAT: WorkerDemand(tenants={"team-a": 3})}))
        await second.next(OtherLoads, lambda frame: not frame.shares)


async def test_tokens_are_identified_and_records_taken_once_they_are_written() -> None:
    gateway = Gateway()
    gateway.observe()
    async with running(gateway) as [worker]:
        await worker.next(DirectoryUpdate)
        worker.link.send(UsageBatch(3, [RECORD]))
        worker.link.send(TokenQuery(4, jwt.encode({"iss": "k"}, "x" * 32)))
        identity = Identity(tenant="team-a", user="system:serviceaccount:team-a:ci")
        assert await worker.next(TokenVerdict) == TokenVerdict(4, identity, seconds=60.0)
        assert gateway.records == [RECORD]
        [written] = gateway.written
        written()
        assert await worker.next(UsageTaken) == UsageTaken(3)


async def test_workers_borrow_together_and_each_gets_its_own() -> None:
    gateway = Gateway()
    async with running(gateway, 2) as [first, second]:
        for worker, need in ((first, 1), (second, 2), (first, 3)):
            request = PortionRequest(limit=LIMIT, need=need)
            worker.link.send(Borrow(need, (request,)))
        assert [(await first.next(Portions)).number for _ in range(2)] == [1, 3]
        answer = await second.next(Portions)
        assert (answer.number, answer.portions[0].amount) == (2, 2)
        workers = [borrowing.worker for asked in gateway.borrowings for borrowing in asked]
        assert sorted(workers) == ["gw/0", "gw/0", "gw/1"]
        assert all(
            len({each.worker for each in asked}) == len(asked) for asked in gateway.borrowings
        )


async def test_demand_is_added_up_and_arrivals_are_counted_once() -> None:
    gateway = Gateway()
    async with running(gateway, 2) as [first, second]:

        async def demand(arrived: int) -> GatewayDemand:
            first.link.send(WorkerReport(demand={CHAT: WorkerDemand(queued=1, arrived=arrived)}))
            first.link.send(Wake(CHAT))
            await gateway.supervisor.waking.wait()
            gateway.supervisor.waking.clear()
            return gateway.supervisor.take_demand()[CHAT]

        second.link.send(WorkerReport(demand={CHAT: WorkerDemand(in_flight=4)}))
        while not gateway.supervisor.take_demand():  # noqa: ASYNC110 - nobody tells it
            await asyncio.sleep(0.01)
        assert await demand(3) == GatewayDemand(arrived=3, queued=1, in_flight=4)
        assert await demand(5) == GatewayDemand(arrived=2, queued=1, in_flight=4)
