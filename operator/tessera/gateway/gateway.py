"""What a gateway does beside its API: the directory, loads of engines, limits and demand."""

import asyncio
import contextlib
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tessera.adapters.run_forever import run_forever
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.charge.reports import reported_charges
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Directory
from tessera.domain.gateway.requests import AwaitedStreams
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.incremental import Incremental
from tessera.domain.limits.account import BorrowRequest, Lease
from tessera.domain.observed.charges import LimitCharges, LimitId
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.picking.owners import GatewayPeers
from tessera.gateway.fleet.polling import POLL_SECONDS, EnginePoller
from tessera.gateway.http.engine_connection import EngineSession
from tessera.gateway.identify.senders import Identifier
from tessera.gateway.outside.client import OutsideClient
from tessera.gateway.queue.arrivals import ArrivalCount
from tessera.gateway.queue.places import DemandCount
from tessera.gateway.requests.admission import Admission
from tessera.gateway.requests.app import GatewayApp
from tessera.gateway.store.database import StoreError
from tessera.gateway.store.peers import MEET_SECONDS
from tessera.gateway.usage.metrics import ServiceRequests

# Directories are built at most four times a second.
_MIN_INTERVAL_SECONDS = 0.25
# Requests for portions of one moment share a transaction.
_GATHER_SECONDS = 0.01
_BORROW_SECONDS = 10.0
# Portions are renewed with every second poll; streams that wait are looked for with every fourth.
_POLLS_PER_RENEWAL, _POLLS_PER_NOTE = 2, 4
_NOTHING, _NO_ARRIVALS = DemandCount(), ArrivalCount()


class Recorder(Protocol):
    """Takes usage records."""

    def check_room(self, tenant: str) -> None:
        """Raise RequestError where a new request of a tenant may not begin."""

    def add(self, record: UsageRecord) -> None:
        """Take the record of a request that ended."""

    def note_begun(self, record: UsageRecord) -> None:
        """Keep that an engine got a request, in case this process is killed."""

    def note_running(self, records: Sequence[UsageRecord]) -> None:
        """Keep what the requests that run used so far."""


@dataclass(slots=True, kw_only=True)
class GatewayParts:
    """What a gateway works with."""

    name: str
    """Unique over all gateways and their restarts: `gateway_of` its records."""
    observe: Callable[[], GatewayObservations | None]
    """Returns what is observed; None until everything is known."""
    changed: asyncio.Event
    """Set when that changed."""
    default_limits: RateLimitsSpec
    poller: EnginePoller
    identifier: Identifier
    borrow: Callable[[str, BorrowRequest], Awaitable[Lease]]
    """Lends from the limits that all gateways share, to a gateway by its name."""
    meet: Callable[[str], Awaitable[GatewayPeers]]
    """Tells the other gateways that the one of a name is there; raises StoreError."""
    recorder: Recorder
    engines: EngineSession
    outside: OutsideClient = field(default_factory=OutsideClient)


class Gateway:
    """Keeps admission up to date with the cluster, the engines and the limits of all gateways."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts
        self.waking = asyncio.Event()
        """Set when a request waits for a service without a replica."""
        self.admission = Admission(parts.identifier, self.borrow, self.waking.set)
        self.app = GatewayApp(
            self.admission, parts.engines, parts.recorder.add, outside=parts.outside
        )
        self.app.check_room = parts.recorder.check_room
        self.app.note_begun = parts.recorder.note_begun
        self.directory: Directory | None = None
        """What requests are judged by; None before the first."""
        self._incremental = Incremental()
        self._arrived: dict[Ref, ArrivalCount] = {}
        """Requests since the last report, of services that exist."""
        self._awaited: Mapping[Ref, AwaitedStreams] = {}
        self._moved_replicas: frozenset[str] = frozenset()
        self._borrows: list[tuple[BorrowRequest, asyncio.Future[None]]] = []
        self._borrowing = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(run_forever("directory", self._build_directories))
            group.create_task(run_forever("loads", self._poll_engines))
            group.create_task(run_forever("limits", self._lend))
            group.create_task(run_forever("peers", self._meet_peers))

    async def borrow(self, request: BorrowRequest) -> bool:
        """Exchange portions of limits with the accounts; False if the answer did not come."""
        answered = self._ask(request)
        await asyncio.wait((answered,), timeout=_BORROW_SECONDS)
        return answered.done()

    def load(self) -> Mapping[str, ServiceRequests]:
        """Return the requests of each service that has any."""
        queued, running = self.admission.places.queued(), self.admission.demand
        loads = {}
        for service in {**queued, **running, **self._awaited}:
            if service != service.base:
                continue
            awaited = self._awaited.get(service, AwaitedStreams())
            loads[str(service)] = ServiceRequests(
                in_flight=running.get(service, _NOTHING).in_flight,
                queued=queued.get(service, (0, 0.0))[0],
                overdue=awaited.overdue,
                oldest_seconds=awaited.oldest_seconds,
            )
        return loads

    def take_demand(self) -> Mapping[Ref, GatewayDemand]:
        """Return the requests of each service that has any, or to which some came since then."""
        self._take_arrivals()
        arrived, self._arrived = self._arrived, {}
        queued, running = self.admission.places.queued(), self.admission.demand
        demand = {}
        for service in {**queued, **running, **arrived}:
            if service != service.base:
                # Gates alone ask a changed version, which has one replica.
                continue
            waiting, work_seconds = queued.get(service, (0, 0.0))
            count = running.get(service, _NOTHING)
            arrivals = arrived.get(service, _NO_ARRIVALS)
            demand[service] = GatewayDemand(
                arrived=arrivals.requests,
                tokens=arrivals.tokens,
                queued=waiting,
                in_flight=count.in_flight,
                predicted_seconds=count.work_ns / 1e9 + work_seconds,
            )
        return demand

    def charges(self) -> Mapping[LimitId, LimitCharges]:
        """Return what limits of budgets were charged, of those that requests here use."""
        lending = self.admission.reservations.charges.lending
        return reported_charges(lending.answered(), lending.needs())

    def _take_arrivals(self) -> None:
        """Keep what arrived for the next report, and poll the engines of services with requests."""
        arrived = self.admission.arrivals.take()
        for service, count in arrived.items():
            self._arrived[service] = self._arrived.get(service, _NO_ARRIVALS).plus(count)
        self._parts.poller.saw_traffic(
            {**arrived, **self.admission.demand, **self.admission.places.queued()}
        )

    async def _build_directories(self) -> None:
        while True:
            await self._parts.changed.wait()
            self._parts.changed.clear()
            observed = self._parts.observe()
            if observed is not None:
                # Streams go on meanwhile.
                directory = await asyncio.to_thread(
                    self._incremental.run,
                    build_directory,
                    observed,
                    self._parts.default_limits,
                )
                if self.directory is None:
                    # What stays for long is collected before the first request, and then frozen.
                    gc.collect()
                self.publish(directory)
            await asyncio.sleep(_MIN_INTERVAL_SECONDS)

    def publish(self, directory: Directory) -> None:
        """Judge requests by this directory from now on."""
        if directory != self.directory:
            self.directory = directory
            self._parts.outside.retain({provider for provider, _ in directory.outside})
            changes = self.admission.update(directory)
            self.app.leave_replicas(changes.removed_replicas)
            self._moved_replicas = directory.moved_replicas()
            self._parts.poller.update(changes)
            self._take_arrivals()
            for model in changes.removed:
                if model.route is None:
                    self._arrived.pop(model.service, None)

    async def _poll_engines(self) -> None:
        poller, recorder = self._parts.poller, self._parts.recorder
        for number in itertools.count():
            self._take_arrivals()
            poller.poll()
            self.admission.replicas.polled(poller.take())
            self.admission.queues.pump()
            if number % _POLLS_PER_NOTE == 0:
                self.app.move_streams(self._moved_replicas)
                self._awaited = self.app.awaiting()
                recorder.note_running(self.app.partial_records())
            if number % _POLLS_PER_RENEWAL == 0:
                renewal = self.admission.limits.renewal(time.monotonic())
                renewal = replace(renewal, charges=self.admission.reservations.charges.renewal())
                if renewal.portions or renewal.slots or renewal.charges:
                    self._ask(renewal)
            await asyncio.sleep(POLL_SECONDS)

    async def _meet_peers(self) -> None:
        while True:
            # Without its store, a gateway goes on with those that it met last.
            with contextlib.suppress(StoreError):
                peers = self.admission.replicas.peers = await self._parts.meet(self._parts.name)
                self._parts.outside.gateways = peers.count
            await asyncio.sleep(MEET_SECONDS)

    def _ask(self, request: BorrowRequest) -> asyncio.Future[None]:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._borrows.append((request, answered))
        self._borrowing.set()
        return answered

    async def _lend(self) -> None:
        while True:
            await self._borrowing.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._borrowing.clear()
            borrows, self._borrows = self._borrows, []
            await self._lend_to(borrows)

    async def _lend_to(self, borrows: Sequence[tuple[BorrowRequest, asyncio.Future[None]]]) -> None:
        # In the order in which they were asked, which is that of the answers.
        request = BorrowRequest(
            portions=tuple(portion for request, _ in borrows for portion in request.portions),
            slots=tuple(slots for request, _ in borrows for slots in request.slots),
            charges=tuple(ask for request, _ in borrows for ask in request.charges),
        )
        lease = await self._parts.borrow(self._parts.name, request)
        self.admission.limits.receive(lease, time.monotonic())
        if returns := self.admission.reservations.charges.receive(lease.charges):
            self._ask(BorrowRequest(charges=returns))
        for _, answered in borrows:
            if not answered.done():
                answered.set_result(None)
