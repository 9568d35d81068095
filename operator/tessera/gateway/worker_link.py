"""What one worker exchanges with its supervisor."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tessera.adapters.run_forever import run_forever
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import ApiKey
from tessera.domain.gateway.requests import AwaitedStreams, RunningRequest, UsageRecord
from tessera.domain.limits.worker_limits import BorrowRequest
from tessera.gateway.admission import Admission
from tessera.gateway.authentication import Authenticator
from tessera.gateway.frames import (
    Borrow,
    DirectoryUpdate,
    EngineLoads,
    KeysUpdate,
    ListRequests,
    OtherLoads,
    Portions,
    RequestList,
    TokenVerdict,
    ToWorker,
    UsageBatch,
    UsageTaken,
    Wake,
    WorkerDemand,
    WorkerReport,
)
from tessera.gateway.journal import UsageJournal
from tessera.gateway.link import WorkerLink
from tessera.gateway.usage_outbox import UsageOutbox

_REPORT_SECONDS = 0.25
# Portions are renewed with every second report.
_REPORTS_PER_RENEWAL = 2
# Streams that wait are looked for no more often.
_REPORTS_PER_SECOND = 4
# A supervisor that died is replaced within seconds; what it had not answered is asked again.
_BORROW_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 1.0
# For the supervisor to take the last usage records.
_FLUSH_SECONDS = 5.0


class SupervisedWorker:
    """Keeps the admission of a worker up to date, and reports what it does.

    Without a supervisor requests go on by the last directory; those with limits wait for the next
    one when their portions are used up.
    """

    def __init__(self, path: Path, journal: UsageJournal | None = None) -> None:
        self._link = WorkerLink(path, self._handle, self._greeting)
        self.usage = UsageOutbox(self._link.send, journal)
        self._authenticator = Authenticator(self._link.send)
        self.admission = Admission(self._authenticator, self)
        self._borrowings: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._keys: Mapping[str, ApiKey] = {}
        self._all_taken = asyncio.Event()
        self.running: Callable[[int], tuple[list[RunningRequest], int]] = lambda _: ([], 0)
        """Returns the oldest requests that run, at most so many, and how many do."""
        self.awaiting: Callable[[], Mapping[Ref, AwaitedStreams]] = dict
        """Returns the streams without a token, by service."""
        self.partial_records: Callable[[], Sequence[UsageRecord]] = tuple
        """Returns what the requests that run used so far."""
        self._awaited: Mapping[Ref, AwaitedStreams] = {}

    async def borrow(self, request: BorrowRequest) -> bool:
        """Exchange portions of limits with the accounts; False if the answer did not come."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._borrowings[number] = answered
        try:
            async with asyncio.timeout(_BORROW_SECONDS):
                portions = request.portions
                while not answered.done():
                    self._link.send(Borrow(number, portions, request.slots))
                    await asyncio.wait((answered,), timeout=_ASK_AGAIN_SECONDS)
                    # What was not used may be given back once.
                    portions = tuple(replace(portion, returned=0) for portion in portions)
        except TimeoutError:
            return False
        finally:
            del self._borrowings[number]
        return True

    def wake(self, service: Ref) -> None:
        """Have a sleeping service started."""
        self._link.send(Wake(service))

    async def run(self) -> None:
        """Exchange frames until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_forever("link", self._link.run))
            tasks.create_task(run_forever("reports", self._report))

    async def flush(self) -> None:
        """Send the last usage records, and wait a moment until they are taken."""
        self._all_taken.clear()
        self.usage.flush()
        if not self.usage.empty:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_SECONDS):
                    await self._all_taken.wait()

    async def _report(self) -> None:
        for number in itertools.count():
            await asyncio.sleep(_REPORT_SECONDS)
            self.admission.queues.pump()
            self.usage.flush()
            if number % _REPORTS_PER_SECOND == 0:
                self._awaited = self.awaiting()
                self.usage.note_running(self.partial_records())
            self._link.send(
                WorkerReport(sent=self.admission.replicas.own_loads(), demand=self._demand())
            )
            if number % _REPORTS_PER_RENEWAL == 0:
                self._renew()

    def _renew(self) -> None:
        """Give back portions that were not used, and ask for those of the next second."""
        renewal = self.admission.limits.renewal(time.monotonic())
        if renewal.portions or renewal.slots:
            self._link.send(Borrow(next(self._numbers), renewal.portions, renewal.slots))

    def _demand(self) -> dict[Ref, WorkerDemand]:
        queues = {queue.model.service: queue for queue in self.admission.queues}
        demand = {}
        for service, count in self.admission.demand.items():
            queue = queues.get(service)
            awaited = self._awaited.get(service, AwaitedStreams())
            demand[service] = WorkerDemand(
                arrived=count.arrived,
                queued=len(queue) if queue else 0,
                in_flight=count.in_flight,
                predicted_seconds=count.work_ns / 1e9 + (queue.work_seconds if queue else 0.0),
                tenants=dict(count.tenants),
                overdue=awaited.overdue,
                oldest_seconds=awaited.oldest_seconds,
            )
        return demand

    def _greeting(self) -> Iterable[UsageBatch]:
        return self.usage.greeting()

    def _handle(self, frame: ToWorker) -> None:
        admission = self.admission
        match frame:
            case KeysUpdate():
                self._keys = frame.keys
                admission.update_keys(frame.keys)
            case DirectoryUpdate():
                admission.update(replace(frame.directory, keys=self._keys))
            case EngineLoads():
                admission.replicas.polled(frame.loads)
                admission.queues.pump()
            case OtherLoads():
                admission.replicas.shared(frame.loads, frame.shares, time.monotonic())
                admission.queues.pump()
            case TokenVerdict():
                self._authenticator.receive(frame)
            case UsageTaken():
                self.usage.taken(frame)
                if self.usage.empty:
                    self._all_taken.set()
            case ListRequests():
                requests, total = self.running(frame.limit)
                self._link.send(RequestList(frame.number, requests, total))
            case Portions():
                self._receive(frame)

    def _receive(self, portions: Portions) -> None:
        self.admission.limits.receive(portions.portions, portions.slots, time.monotonic())
        answered = self._borrowings.get(portions.number)
        if answered is not None and not answered.done():
            answered.set_result(None)
