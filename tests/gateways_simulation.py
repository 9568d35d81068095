"""Several gateways and direct clients before one engine."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random

from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.fair_queue import FairQueue, QueueBounds, QueueEntry, QueueService
from tessera.domain.picking.pick import pick, with_room
from tessera.domain.picking.prediction import RequestMeans, work_seconds
from tessera.domain.picking.replica_state import EngineLoad, ReplicaState
from tests.builders import NOW
from tests.gateway_builders import a_request, an_engine_replica
from tests.gateway_simulation import SimulatedEngine, SimulatedRequest

PLACES = 44
OBJECTIVE_SECONDS = 1.0
QUEUE_SECONDS = 60.0
_INPUT_TOKENS, _OUTPUT_TOKENS = 760, 205
_POLL_SECONDS = 0.25
_BATCHED_TOKENS = 2048
_DIRECT = "direct"


@dataclass(slots=True, eq=False)
class _Gateway:
    """What a gateway knows of the engine, and its queue."""

    name: str
    state: ReplicaState
    queue: FairQueue
    waiting: dict[QueueEntry, SimulatedRequest] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class ClientResult:
    """What the clients of one gateway got, or the direct ones."""

    ttft: list[float] = field(default_factory=list)
    refused: int = 0
    """Requests that waited for `QUEUE_SECONDS`."""

    @property
    def attained(self) -> float:
        """Return the share of requests with a first token in time."""
        good = sum(seconds <= OBJECTIVE_SECONDS for seconds in self.ttft)
        return good / max(1, len(self.ttft) + self.refused)


class Gateways:
    """Clients that send their next request when the last one ended; `direct` use no gateway."""

    def __init__(self, clients: Sequence[int], *, direct: int = 0) -> None:
        self.now = 0.0
        self._random = Random(0)  # noqa: S311
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._means = RequestMeans(prompt_tokens=_INPUT_TOKENS, output_tokens=_OUTPUT_TOKENS)
        self._replica = an_engine_replica(
            "chat-0", ready_since=NOW, max_num_seqs=PLACES, max_num_batched_tokens=_BATCHED_TOKENS
        )
        self._engine = SimulatedEngine(self._new_state(), places=PLACES)
        self._owners: dict[SimulatedRequest, _Gateway | None] = {}
        self.results = {name: ClientResult() for name in (*map(str, range(len(clients))), _DIRECT)}
        self.busy_seconds = 0.0
        """Places times seconds in use."""
        for name, number in enumerate(map(int, clients)):
            bounds = QueueBounds(requests=10**6, requests_per_tenant=10**6)
            gateway = _Gateway(str(name), self._new_state(), FairQueue(bounds))
            for _ in range(number):
                self._come(gateway)
            self._after(self._random.random() * _POLL_SECONDS, partial(self._poll, gateway))
        self.add_direct(direct)

    def add_direct(self, number: int, until: float = float("inf")) -> None:
        """Let more clients of the engine's own address come, which stay until a moment."""
        for _ in range(number):
            self._come(None, until)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            moment, _, event = heapq.heappop(self._events)
            self.busy_seconds += (moment - self.now) * len(self._engine.running)
            self.now = moment
            event()
        self.now = until

    @property
    def attained(self) -> float:
        """Return the share of all clients' requests with a first token in time."""
        results = self.results.values()
        requests = sum(len(result.ttft) + result.refused for result in results)
        good = sum(result.attained * (len(result.ttft) + result.refused) for result in results)
        return good / requests

    def _new_state(self) -> ReplicaState:
        state = ReplicaState.create(self._replica, now=0.0, utc_now=NOW)
        state.ready_at = -3600.0
        return state

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def _come(self, gateway: _Gateway | None, until: float = float("inf")) -> None:
        self._after(self._random.random(), lambda: self._arrive(gateway, until))

    def _arrive(self, gateway: _Gateway | None, until: float) -> None:
        if self.now >= until:
            return
        spread = self._random.uniform(0.5, 1.5)
        shape: RequestShape = a_request(int(_INPUT_TOKENS * spread), _OUTPUT_TOKENS)
        output = int(_OUTPUT_TOKENS * self._random.uniform(0.5, 1.5))
        request = SimulatedRequest(
            tenant=str(until),
            shape=shape,
            arrived_at=self.now,
            prompt_left=shape.input_tokens,
            output_left=output,
        )
        self._owners[request] = gateway
        if gateway is None:
            self._send(request)
            return
        entry = QueueEntry(
            tenant="",
            work_seconds=work_seconds(self._replica, shape, self._means),
            due=self.now + OBJECTIVE_SECONDS,
            deadline=self.now + QUEUE_SECONDS,
        )
        gateway.queue.offer(entry, self.now, replicas=0)
        gateway.waiting[entry] = request
        self._pump(gateway)

    def _pump(self, gateway: _Gateway) -> None:
        for entry in gateway.queue.expire(self.now):
            request = gateway.waiting.pop(entry)
            del self._owners[request]
            self.results[gateway.name].refused += 1
            self._after(5.0, partial(self._arrive, gateway, float("inf")))
        while len(gateway.queue):
            states = with_room([gateway.state], self._means, self.now)
            if not states:
                return
            service = QueueService(
                now=self.now, replicas=1, is_late=partial(self._is_late, gateway)
            )
            next_entry = gateway.queue.pop(service)
            assert next_entry is not None
            request = gateway.waiting.pop(next_entry)
            gateway.state.sent(request.shape.input_tokens)
            self._send(request)

    def _is_late(self, gateway: _Gateway, entry: QueueEntry) -> bool:
        shape = gateway.waiting[entry].shape
        choice = pick(shape, [gateway.state], self.now, means=self._means)
        assert choice is not None
        return self.now + (choice.predicted_ttft_seconds or 0.0) > entry.due

    def _send(self, request: SimulatedRequest) -> None:
        self._engine.waiting.append(request)
        if not self._engine.stepping:
            self._step()

    def _step(self) -> None:
        seconds, answered = self._engine.step()
        self._engine.stepping = bool(self._engine.running)
        if self._engine.stepping:
            self._after(seconds, partial(self._end_step, answered))

    def _end_step(self, answered: Sequence[SimulatedRequest]) -> None:
        for request in answered:
            gateway = self._owners[request]
            if not request.answered:
                request.answered = True
                name = _DIRECT if gateway is None else gateway.name
                self.results[name].ttft.append(self.now - request.arrived_at)
                if gateway is not None:
                    gateway.state.first_token(request.shape.input_tokens)
            request.output_left -= 1
            if request.output_left > 0:
                continue
            self._engine.running.remove(request)
            del self._owners[request]
            if gateway is not None:
                gateway.state.ended()
                self._pump(gateway)
            self._after(0.001, partial(self._arrive, gateway, float(request.tenant)))
        self._step()

    def _poll(self, gateway: _Gateway) -> None:
        """Let a gateway read the engine's load."""
        load = EngineLoad(
            running=len(self._engine.running),
            waiting=len(self._engine.waiting),
            observed_at=self.now,
        )
        gateway.state.polled(load)
        self._pump(gateway)
        self._after(_POLL_SECONDS, partial(self._poll, gateway))
