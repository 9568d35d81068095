"""How requests get to replicas."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.fair_queue import FairQueue, QueueBounds, QueueEntry, QueueService
from tessera.domain.observed.demand import ARRIVALS_SPAN
from tessera.domain.picking.pick import Choice, pick
from tessera.domain.picking.prediction import RequestMeans, has_room, work_seconds
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.fleet.model import FleetModel, Router
from tessera_lab.fleet.simulated_replica import (
    EndedRequest,
    SimulatedReplica,
    engine_replica,
)
from tessera_lab.fleet.trace import Trace

_SECONDS = round(ARRIVALS_SPAN.total_seconds())
# No request is refused; the gateway's default for the time until one is urgent.
_BOUNDS = QueueBounds(requests=2**63, requests_per_tenant=2**63)
_QUEUE_SECONDS = 60.0


class Door:
    """Sends each request to a replica, or holds it while there is none that may take it."""

    def __init__(self, trace: Trace, fleet: FleetModel, ttft: "array[float]") -> None:
        self.serving: list[SimulatedReplica] = []
        """Replicas that get requests, in the order in which they became ready."""
        self.arrived = 0
        self.refused = 0
        self._trace, self._ttft = trace, ttft
        self._queue = FairQueue(_BOUNDS)
        self._held: dict[QueueEntry, int] = {}
        self._is_gateway = fleet.router is Router.GATEWAY
        self._objective = fleet.replica.ttft
        self._replica = engine_replica(fleet, -1)
        self._means = RequestMeans()
        self._turn = 0

    @property
    def queued(self) -> int:
        """Return the requests that wait for a replica."""
        return len(self._held)

    def admit_until(self, moment: float) -> None:
        """Send the requests that arrive by this moment, and what waits."""
        arrivals, count, index = self._trace.arrivals, len(self._trace), self.arrived
        while index < count and arrivals[index] <= moment:
            arrival = arrivals[index]
            self.pump(arrival)
            self._advance(arrival)
            if self._held or not (replicas := self._open(arrival)):
                self._hold(index, arrival)
            else:
                self._send(index, replicas, arrival)
            index += 1
        self.arrived = index
        self.pump(moment)

    def arrivals_by_second(self, moment: float) -> tuple[int, ...]:
        """Return the requests that came in each second of the last minute, oldest first."""
        edges = [moment - second for second in range(_SECONDS, -1, -1)]
        counts = [bisect_right(self._trace.arrivals, edge, hi=self.arrived) for edge in edges]
        return tuple(later - earlier for earlier, later in pairwise(counts))

    def pump(self, until: float) -> None:
        """Send what waits, each request at the first moment at which a replica may take it."""
        while self._held and self.serving:
            moment = min(until, *(replica.due for replica in self.serving))
            self._advance(moment)
            count = len(self.serving)
            while self._held and (replicas := self._open(moment)):
                is_late = partial(self._is_late, moment, replicas)
                service = QueueService(now=moment, replicas=count, is_late=is_late)
                entry = self._queue.pop(service)
                assert entry is not None  # noqa: S101 - as many are held
                self._send(self._held.pop(entry), replicas, moment)
            if moment >= until:
                return

    def learn(self, ended: list[EndedRequest]) -> None:
        """Take the lengths of requests that ended into the means."""
        for request in ended:
            self._means = self._means.after(request.prompt_tokens, request.output_tokens)

    def _hold(self, index: int, arrival: float) -> None:
        entry = QueueEntry(
            tenant="",
            work_seconds=work_seconds(self._replica, self._shape(index), self._means),
            due=arrival + self._objective,
            deadline=arrival + _QUEUE_SECONDS,
        )
        self._queue.offer(entry, arrival, replicas=0)
        self._held[entry] = index

    def _is_late(
        self, moment: float, replicas: Sequence[SimulatedReplica], entry: QueueEntry
    ) -> bool:
        if not self._is_gateway:
            return False
        choice = self._pick(self._held[entry], replicas, moment)
        seconds = choice.predicted_ttft_seconds if choice is not None else None
        return moment + (seconds or 0.0) > entry.due

    def _pick(
        self, index: int, replicas: Sequence[SimulatedReplica], moment: float
    ) -> Choice | None:
        states = [replica.state for replica in replicas]
        return pick(self._shape(index), states, moment, turn=self._turn, means=self._means)

    def _advance(self, moment: float) -> None:
        for replica in self.serving:
            if replica.due <= moment:
                replica.advance(moment, self._ttft)

    def _shape(self, index: int) -> RequestShape:
        trace = self._trace
        return RequestShape(
            model="",
            input_tokens=trace.input_tokens[index],
            max_output_tokens=trace.output_tokens[index],
        )

    def _send(self, index: int, replicas: list[SimulatedReplica], moment: float) -> None:
        trace = self._trace
        self._turn += 1
        choice = self._pick(index, replicas, moment)
        if choice is None:
            raise ValueError("a replica that serves is not ready")
        replica = next(replica for replica in replicas if replica.state is choice.state)
        replica.advance(moment, self._ttft)
        request = EngineRequest(
            id=index,
            prompt_tokens=trace.input_tokens[index],
            output_tokens=trace.output_tokens[index],
            shared_prefixes=trace.prefixes[index] if trace.prefixes is not None else (),
        )
        if not replica.submit(request, trace.arrivals[index], moment):
            self.refused += 1

    def _open(self, moment: float) -> list[SimulatedReplica]:
        """Return the replicas that may take one more request."""
        if not self._is_gateway:
            return self.serving
        means = self._means
        return [replica for replica in self.serving if has_room(replica.state, means, moment)]
