"""The supervisor of one gateway: what its workers share, they get from here."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tessera.adapters.run_forever import run_forever
from tessera.api.ref import Ref
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Directory, RateLimits
from tessera.domain.gateway.requests import UsageRecord
from tessera.domain.incremental import Incremental
from tessera.domain.limits.worker_shares import WorkerShare, worker_shares
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.picking.replica_state import SentLoad
from tessera.gateway.frames import (
    Borrow,
    EngineLoads,
    OtherLoads,
    Portions,
    RequestList,
    TokenQuery,
    ToSupervisor,
    ToWorker,
    UsageBatch,
    UsageTaken,
    Wake,
    WorkerDemand,
    WorkerReport,
    directory_frames,
)
from tessera.gateway.link import LinkServer
from tessera.gateway.metrics import ServiceRequests
from tessera.gateway.polling import POLL_SECONDS, EnginePoller
from tessera.gateway.request_listing import RequestListing
from tessera.gateway.store.leases import Lease, WorkerBorrowing
from tessera.gateway.token_verifier import TokenVerifier

log = logging.getLogger("tessera")

# Directories are sent at most four times a second.
_MIN_INTERVAL_SECONDS = 0.25
# Requests for portions of one moment share a transaction.
_GATHER_SECONDS = 0.01


class LimitLender(Protocol):
    """Lends from the limits that all gateways share."""

    async def borrow(self, borrowings: Sequence[WorkerBorrowing]) -> Sequence[Lease]:
        """Return what the workers get."""


@dataclass(slots=True, kw_only=True)
class SupervisorParts:
    """What the supervisor works with."""

    name: str
    """Of this gateway, unique over all."""
    observe: Callable[[], GatewayObservations | None]
    """Returns what is observed; None until everything is known."""
    changed: asyncio.Event
    """Set when that changed."""
    default_limits: RateLimits
    poller: EnginePoller
    verifier: TokenVerifier
    lender: LimitLender
    record: Callable[[Sequence[UsageRecord], Callable[[], None]], None]
    """Takes usage records, and calls back when they are written."""


class Supervisor:
    """Sends directories, loads and portions; takes reports, questions and usage records."""

    def __init__(self, parts: SupervisorParts) -> None:
        self.parts = parts
        self._link = LinkServer(self._handle, self._greeting, self._left)
        self.listing = RequestListing(self._link.broadcast, lambda: len(self._link.workers))
        self._incremental = Incremental()
        self._directory: Directory | None = None
        self._reports: dict[int, WorkerReport] = {}
        self._arrived_before: dict[int, Mapping[Ref, int]] = {}
        self._shared: dict[int, frozenset[str]] = {}
        """UIDs of pods at which a worker believes that others have requests."""
        self._borrows: list[tuple[int, Borrow]] = []
        self._borrowing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.waking = asyncio.Event()
        """Set when a request waits for a service without a replica."""

    async def run(self, socket: Path) -> None:
        """Serve the workers on a socket until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(run_forever("link", lambda: self._link.serve(socket)))
            group.create_task(run_forever("directory", self._publish_directories))
            group.create_task(run_forever("loads", self._exchange_loads))
            group.create_task(run_forever("limits", self._lend))

    @property
    def workers(self) -> Sequence[int]:
        """Return the workers that are connected."""
        return self._link.workers

    @property
    def directory(self) -> Directory | None:
        """Return what the workers decide with; None before the first."""
        return self._directory

    def load(self) -> Mapping[str, ServiceRequests]:
        """Return the requests of all workers, by service."""
        loads: dict[str, ServiceRequests] = defaultdict(ServiceRequests)
        for report in self._reports.values():
            for service, demand in report.demand.items():
                total = loads[str(service)]
                loads[str(service)] = ServiceRequests(
                    in_flight=total.in_flight + demand.in_flight,
                    queued=total.queued + demand.queued,
                    overdue=total.overdue + demand.overdue,
                    oldest_seconds=max(total.oldest_seconds, demand.oldest_seconds),
                )
        return loads

    def take_demand(self) -> Mapping[Ref, GatewayDemand]:
        """Return the requests of all workers, with those that arrived since the last time."""
        demand: dict[Ref, GatewayDemand] = defaultdict(GatewayDemand)
        for worker, report in self._reports.items():
            before = self._arrived_before.get(worker, {})
            for service, own in report.demand.items():
                total = demand[service]
                demand[service] = GatewayDemand(
                    arrived=total.arrived + max(0, own.arrived - before.get(service, 0)),
                    queued=total.queued + own.queued,
                    in_flight=total.in_flight + own.in_flight,
                    predicted_seconds=total.predicted_seconds + own.predicted_seconds,
                )
            self._arrived_before[worker] = {
                service: own.arrived for service, own in report.demand.items()
            }
        return dict(demand)

    def _handle(self, worker: int, frame: ToSupervisor) -> None:
        match frame:
            case WorkerReport():
                previous, self._reports[worker] = self._reports.get(worker), frame
                self.parts.poller.saw_traffic(_busy_services(previous, frame))
            case UsageBatch():
                taken = UsageTaken(frame.number)
                self.parts.record(frame.records, lambda: self._link.send(worker, taken))
            case TokenQuery():
                self._start(self._verify(worker, frame))
            case Borrow():
                self._borrows.append((worker, frame))
                self._borrowing.set()
            case Wake():
                self.waking.set()
            case RequestList():
                self.listing.receive(frame)

    def _greeting(self) -> Iterable[ToWorker]:
        return () if self._directory is None else directory_frames(self._directory, None)

    def _left(self, worker: int) -> None:
        self._reports.pop(worker, None)
        self._arrived_before.pop(worker, None)
        self._shared.pop(worker, None)

    async def _publish_directories(self) -> None:
        while True:
            await self.parts.changed.wait()
            self.parts.changed.clear()
            observed = self.parts.observe()
            if observed is not None:
                limits = self.parts.default_limits
                self._publish(self._incremental.run(build_directory, observed, limits))
            await asyncio.sleep(_MIN_INTERVAL_SECONDS)

    def _publish(self, directory: Directory) -> None:
        frames = directory_frames(directory, self._directory)
        self._directory = directory
        self.parts.poller.update(directory)
        for frame in frames:
            self._link.broadcast(frame)

    async def _exchange_loads(self) -> None:
        while True:
            self.parts.poller.poll()
            readings = self.parts.poller.take()
            if readings:
                self._link.broadcast(EngineLoads(readings))
            tenants = self._directory.tenants if self._directory is not None else {}
            weights = {name: tenant.weight for name, tenant in tenants.items()}
            shares = _shares(self._reports, weights)
            for worker in self._link.workers if len(self._link.workers) > 1 else ():
                reports = [report for other, report in self._reports.items() if other != worker]
                loads_of_others = _sum_loads(reports)
                ended = self._shared.get(worker, frozenset()) - loads_of_others.keys()
                self._shared[worker] = frozenset(loads_of_others)
                loads = dict.fromkeys(ended, SentLoad()) | loads_of_others
                self._link.send(worker, OtherLoads(loads, shares.get(worker, {})))
            await asyncio.sleep(POLL_SECONDS)

    async def _lend(self) -> None:
        while True:
            await self._borrowing.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._borrowing.clear()
            borrows, self._borrows = self._borrows, []
            await self._lend_to(borrows)

    async def _lend_to(self, borrows: Sequence[tuple[int, Borrow]]) -> None:
        # A worker renews all it has at once and asks for more in between: its questions are put
        # one after the other, since each says what it has left.
        waiting = list(borrows)
        while waiting:
            first = {worker: borrow for worker, borrow in reversed(waiting)}
            waiting = [
                (worker, borrow) for worker, borrow in waiting if first[worker] is not borrow
            ]
            leases = await self.parts.lender.borrow(
                [
                    WorkerBorrowing(
                        worker=self._worker_name(worker),
                        portions=borrow.portions,
                        slots=borrow.slots,
                    )
                    for worker, borrow in sorted(first.items())
                ]
            )
            for worker, borrow in first.items():
                own = [lease for lease in leases if lease.worker == self._worker_name(worker)]
                answer = Portions(
                    borrow.number,
                    tuple(portion for lease in own for portion in lease.portions),
                    tuple(grant for lease in own for grant in lease.slots),
                )
                self._link.send(worker, answer)

    def _worker_name(self, worker: int) -> str:
        return f"{self.parts.name}/{worker}"

    async def _verify(self, worker: int, query: TokenQuery) -> None:
        verdict = await self.parts.verifier.answer(query, self._directory or Directory())
        self._link.send(worker, verdict)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _busy_services(previous: WorkerReport | None, report: WorkerReport) -> list[Ref]:
    """Return the services with requests now, or with some that came since the report before."""
    before = previous.demand if previous is not None else {}
    return [
        service
        for service, demand in report.demand.items()
        if demand.queued
        or demand.in_flight
        or demand.arrived != before.get(service, WorkerDemand()).arrived
    ]


def _shares(
    reports: Mapping[int, WorkerReport], weights: Mapping[str, float]
) -> Mapping[int, dict[Ref, WorkerShare]]:
    """Return the shares of each worker in the services that requests of others wait for."""
    queued: dict[Ref, Counter[int]] = defaultdict(Counter)
    for worker, report in reports.items():
        for service, demand in report.demand.items():
            if demand.queued:
                queued[service][worker] = demand.queued
    shares: dict[int, dict[Ref, WorkerShare]] = defaultdict(dict)
    for service, waiting in queued.items():
        requests = {
            worker: report.demand.get(service, WorkerDemand()).tenants
            for worker, report in reports.items()
        }
        for worker, share in worker_shares(requests, weights).items():
            if waiting.keys() - {worker}:
                shares[worker][service] = share
    return shares


def _sum_loads(reports: Iterable[WorkerReport]) -> dict[str, SentLoad]:
    loads: dict[str, SentLoad] = defaultdict(SentLoad)
    for report in reports:
        for uid, load in report.sent.items():
            total = loads[uid]
            loads[uid] = SentLoad(
                requests=total.requests + load.requests,
                awaiting=total.awaiting + load.awaiting,
                prefill_tokens=total.prefill_tokens + load.prefill_tokens,
            )
    return dict(loads)
