"""How requests get to replicas."""

import hashlib
import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from tessera.domain.gateway.prefixes import PromptBlocks
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.fair_queue import FairQueue, QueueBounds, QueueEntry, QueueService
from tessera.domain.observed.demand import ARRIVALS_SPAN
from tessera.domain.picking.pick import Choice, pick
from tessera.domain.picking.prediction import RequestMeans, has_room, work_seconds
from tessera.domain.picking.prefix_record import PrefixRecords
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
# Of a gateway's 1 KiB of text.
_BLOCK_TOKENS = 256
_QUEUEING = (Router.GATEWAY, Router.PREFIXES, Router.CACHES)


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
        self._router = fleet.router
        self._is_gateway = fleet.router in _QUEUEING
        self._records = PrefixRecords() if fleet.router is Router.PREFIXES else None
        self._prefix_tokens = trace.prefix_tokens
        self._kv_tokens = fleet.replica.kv_tokens
        self._hashed_names = max(1, fleet.hashed_tokens // self._prefix_tokens)
        self._load_factor = fleet.load_factor
        self._rng = random.Random(1)  # noqa: S311 - not a secret
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
        means, cached = self._means, self._cached_tokens(index, replicas)
        return pick(
            self._shape(index), states, moment, turn=self._turn, means=means, cached_tokens=cached
        )

    def _cached_tokens(self, index: int, replicas: Sequence[SimulatedReplica]) -> Sequence[int]:
        """Return the tokens of a prompt that the router believes in the caches of replicas."""
        trace = self._trace
        if trace.prefixes is None:
            return ()
        if self._router is Router.CACHES:
            names = trace.prefixes[index][: trace.input_tokens[index] // self._prefix_tokens]
            return [replica.engine.cached_tokens(names) for replica in replicas]
        if self._records is None:
            return ()
        uids = [replica.state.replica.uid for replica in replicas]
        return self._records.cached_tokens(self._blocks(index), uids)

    def _blocks(self, index: int) -> PromptBlocks:
        """Return what a gateway makes of the text of a prompt."""
        trace, unit = self._trace, self._prefix_tokens
        assert trace.prefixes is not None  # noqa: S101 - asked by the caller
        prompt_tokens = trace.input_tokens[index]
        names = trace.prefixes[index][: prompt_tokens // unit]
        units = max(1, _BLOCK_TOKENS // unit)
        owner = str(trace.clients[index]) if trace.clients is not None else ""
        return PromptBlocks(
            owner=owner,
            hashes=names[units - 1 :: units],
            tokens_per_block=units * unit,
            prompt_tokens=prompt_tokens,
        )

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
        replica = self._choose(index, replicas, moment)
        blocks = None
        if self._records is not None and trace.prefixes is not None:
            blocks = self._blocks(index)
            uid = replica.state.replica.uid
            replica.prefixes = self._records.replica(uid, self._kv_tokens)
        replica.advance(moment, self._ttft)
        request = EngineRequest(
            id=index,
            prompt_tokens=trace.input_tokens[index],
            output_tokens=trace.output_tokens[index],
            shared_prefixes=trace.prefixes[index] if trace.prefixes is not None else (),
        )
        if not replica.submit(request, trace.arrivals[index], moment, blocks):
            self.refused += 1

    def _choose(
        self, index: int, replicas: list[SimulatedReplica], moment: float
    ) -> SimulatedReplica:
        if self._router is Router.RANDOM:
            return self._rng.choice(replicas)
        if self._router is Router.LEAST_REQUESTS:
            first = self._turn % len(replicas)
            return min(replicas[first:] + replicas[:first], key=lambda replica: replica.load)
        if self._router is Router.BOUNDED_HASH:
            return self._hashed(index, replicas)
        choice = self._pick(index, replicas, moment)
        if choice is None:
            raise ValueError("a replica that serves is not ready")
        return next(replica for replica in replicas if replica.state is choice.state)

    def _hashed(self, index: int, replicas: list[SimulatedReplica]) -> SimulatedReplica:
        """Return the first replica in the order of a prompt's hash that is not above the bound."""
        prefixes = self._trace.prefixes
        names = prefixes[index][: self._hashed_names] if prefixes is not None else ()
        key = names[-1] if names else -index
        bound = self._load_factor * (sum(replica.load for replica in replicas) + 1) / len(replicas)
        order = sorted(replicas, key=lambda replica: _digest(f"{key}/{replica.number}"))
        return next((each for each in order if each.load < bound), order[0])

    def _open(self, moment: float) -> list[SimulatedReplica]:
        """Return the replicas that may take one more request."""
        if not self._is_gateway:
            return self.serving
        means = self._means
        return [replica for replica in self.serving if has_room(replica.state, means, moment)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
