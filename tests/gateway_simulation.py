"""Simulated engines and the clients that keep them busy, with the gateway's decisions between."""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from random import Random

from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.limits.fair_queue import FairQueue, QueueBounds, QueueEntry, QueueService
from tessera.domain.picking.pick import pick, with_room, with_spare_room
from tessera.domain.picking.prediction import RequestMeans, read_until, work_seconds
from tessera.domain.picking.replica_state import EngineLoad, ReplicaState
from tests.builders import NOW
from tests.gateway_builders import STEP, a_request, an_engine_replica

MAX_NUM_SEQS = 30
BATCHED_TOKENS = 2048
POLL_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """A request with what an engine has still to do."""

    tenant: str
    shape: RequestShape
    arrived_at: float
    prompt_left: int
    output_left: int
    answered: bool = False


@dataclass(slots=True, eq=False)
class SimulatedEngine:
    """Reads prompts in chunks beside running sequences, first come, first served."""

    state: ReplicaState
    running: list[SimulatedRequest] = field(default_factory=list)
    waiting: deque[SimulatedRequest] = field(default_factory=deque)
    stepping: bool = False
    places: int = MAX_NUM_SEQS

    def step(self) -> tuple[float, list[SimulatedRequest]]:
        """Return the seconds of a step and the requests that get a token in it."""
        while self.waiting and len(self.running) < self.places:
            self.running.append(self.waiting.popleft())
        answered = [request for request in self.running if not request.prompt_left]
        decoding = len(answered)
        room = BATCHED_TOKENS - decoding
        for request in self.running:
            chunk = min(request.prompt_left, room)
            room -= chunk
            request.prompt_left -= chunk
            if chunk and not request.prompt_left:
                answered.append(request)
        seconds = STEP.seconds(
            decoding=decoding,
            kv_tokens=512 * len(self.running),
            prefill_tokens=BATCHED_TOKENS - decoding - room,
        )
        return seconds, answered


class ClosedLoop:
    """Clients of some tenants that send their next request when the last one ended."""

    def __init__(
        self,
        *,
        clients: dict[str, int],
        output_tokens: int,
        holds: bool = True,
        think_seconds: float = 0.001,
        yielding: frozenset[str] = frozenset(),
    ) -> None:
        """Take the tenants whose requests yield, as `yielding`."""
        self.now = 0.0
        self.engines: list[SimulatedEngine] = []
        self.ttft: dict[str, list[float]] = defaultdict(list)
        self.queued: dict[str, list[float]] = defaultdict(list)
        """Seconds in the queue."""
        self._output_tokens = output_tokens
        self._holds = holds
        self._think_seconds = think_seconds
        self._yielding = yielding
        # One tenant changes nothing of what another sends.
        self._random = {tenant: Random(tenant) for tenant in clients}  # noqa: S311
        self._queue = FairQueue(QueueBounds(requests=10**6, requests_per_tenant=10**6))
        self._waiting: dict[QueueEntry, SimulatedRequest] = {}
        self._means = RequestMeans(prompt_tokens=512, output_tokens=output_tokens)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._turns = count()
        for tenant, number in clients.items():
            for _ in range(number):
                self._arrive_after(self._random[tenant].random(), tenant)

    def add_engine(self, name: str) -> SimulatedEngine:
        utc_now = NOW + timedelta(seconds=self.now)
        replica = an_engine_replica(
            name,
            ready_since=utc_now,
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=BATCHED_TOKENS,
        )
        engine = SimulatedEngine(ReplicaState.create(replica, now=self.now, utc_now=utc_now))
        self.engines.append(engine)
        self._after(0.0, lambda: self._poll(engine))
        return engine

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def _arrive_after(self, seconds: float, tenant: str) -> None:
        self._after(seconds, lambda: self._arrive(tenant))

    def _arrive(self, tenant: str) -> None:
        tokens = int(self._random[tenant].lognormvariate(6, 0.8)) + 1
        yields = tenant in self._yielding
        priority = RequestPriority.BATCH if yields else RequestPriority.DEFAULT
        shape = replace(a_request(tokens, self._output_tokens), priority=priority)
        replica = self.engines[0].state.replica
        work = work_seconds(replica, shape, self._means)
        entry = QueueEntry(tenant=tenant, work_seconds=work, priority=priority)
        assert self._queue.offer(entry, self.now, replicas=len(self.engines)) is None
        self._waiting[entry] = SimulatedRequest(
            tenant, shape, self.now, tokens, self._output_tokens
        )
        self._dispatch()

    def _dispatch(self) -> None:
        while len(self._queue):
            states = [engine.state for engine in self.engines]
            if not self._queue.unyielding:
                states = with_spare_room(states, self.now)
            elif self._holds:
                states = with_room(states, self._means, self.now)
            service = QueueService(now=self.now, replicas=len(self.engines))
            entry = self._queue.pop(service) if states else None
            if entry is None:
                return
            request = self._waiting.pop(entry)
            self.queued[request.tenant].append(self.now - request.arrived_at)
            choice = pick(
                request.shape, states, self.now, turn=next(self._turns), means=self._means
            )
            assert choice is not None
            yields, tokens = request.shape.priority.yields, request.shape.input_tokens
            until = read_until(choice.state, tokens, 0, self.now)
            choice.state.sent(tokens, read_until=until, yields=yields)
            [engine] = [engine for engine in self.engines if engine.state is choice.state]
            engine.waiting.append(request)
            if not engine.stepping:
                self._step(engine)

    def _step(self, engine: SimulatedEngine) -> None:
        seconds, answered = engine.step()
        engine.stepping = bool(engine.running)
        if engine.stepping:
            self._after(seconds, lambda: self._end_step(engine, answered))

    def _end_step(self, engine: SimulatedEngine, answered: list[SimulatedRequest]) -> None:
        for request in answered:
            if request.output_left == self._output_tokens:
                engine.state.first_token(request.shape.input_tokens)
                self.ttft[request.tenant].append(self.now - request.arrived_at)
            request.output_left -= 1
            if not request.output_left:
                engine.running.remove(request)
                engine.state.ended(yields=request.shape.priority.yields)
                pause = self._random[request.tenant].expovariate(1 / self._think_seconds)
                self._arrive_after(pause, request.tenant)
        self._dispatch()
        self._step(engine)

    def _poll(self, engine: SimulatedEngine) -> None:
        engine.state.polled(
            EngineLoad(
                running=len(engine.running),
                waiting=len(engine.waiting),
                kv_usage=len(engine.running) / 40,
                observed_at=self.now,
            )
        )
        self._after(POLL_SECONDS, lambda: self._poll(engine))
