"""How requests get to replicas."""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from hashlib import blake2b
from itertools import pairwise
from zlib import crc32

from tessera.domain.gateway.client_lengths import ClientId, ClientLengths
from tessera.domain.gateway.prefixes import PromptBlocks, PromptTurns
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.fair_queue import FairQueue, QueueBounds, QueueEntry, QueueService
from tessera.domain.observed.demand import ARRIVALS_SPAN, NO_TOKENS
from tessera.domain.picking.owners import Owners, Ownership
from tessera.domain.picking.pick import Choice, pick, with_prefix, without_room
from tessera.domain.picking.prediction import (
    RequestMeans,
    has_room,
    is_late_alone,
    work_seconds,
)
from tessera.domain.picking.prefix_record import PrefixRecords, ReplicaPrefixes, SentPrompt
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.fleet.model import FleetModel, Router
from tessera_lab.fleet.rival_routers import RIVALS, RoutedPrompt
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
        self.arrived_tokens = NO_TOKENS
        """Of the requests whose lengths could be expected when they came."""
        self.refused = 0
        self.requests = Counter[int]()
        """Those that each replica got, by its number."""
        self._lengths = ClientLengths()
        self._max_model_len = fleet.replica.max_model_len
        self._trace, self._ttft = trace, ttft
        self._queue = FairQueue(_BOUNDS)
        self._held: dict[QueueEntry, int] = {}
        self._router = fleet.router
        self._is_gateway = fleet.router in _QUEUEING
        self._rival = RIVALS.get(fleet.router)
        if self._rival is not None:
            self._settings = {**self._rival.published, **fleet.router_settings}
        has_records = fleet.router is Router.PREFIXES and trace.prefixes is not None
        self._records = [PrefixRecords() for _ in range(fleet.gateways)] if has_records else []
        self._prefix_tokens = trace.prefix_tokens
        self._session_names = fleet.session_tokens // self._prefix_tokens
        self._objective = fleet.replica.ttft
        self._replica = engine_replica(fleet, -1)
        self._means = RequestMeans()
        self._turn = 0
        self._owners, self._owner_uids = Owners(()), tuple[str, ...]()

    @property
    def queued(self) -> int:
        """Return the requests that wait for a replica."""
        return len(self._held)

    def admit_until(self, moment: float) -> None:
        """Send the requests that arrive by this moment, and what waits."""
        arrivals, count, index = self._trace.arrivals, len(self._trace), self.arrived
        while index < count and arrivals[index] <= moment:
            arrival = arrivals[index]
            self._expect(index)
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
            prompt, answer = request.prompt_tokens, request.output_tokens
            self._means = self._means.after(prompt, answer)
            client = self._client(request.row)
            self._lengths.learn("", client, estimate=prompt, prompt=prompt, answer=answer)

    def _expect(self, index: int) -> None:
        """Count the tokens of a request that comes, as a gateway expects them.

        The trace says how long its answer will be, which no gateway knows.
        """
        prompt = self._trace.input_tokens[index]
        client, most = self._client(index), self._max_model_len
        tokens = self._lengths.expected("", client, prompt, most)
        if tokens.requests and is_late_alone(self._replica, prompt, 0, self._objective):
            tokens = tokens._replace(late_alone=1)
        self.arrived_tokens = self.arrived_tokens.plus(tokens)

    def _client(self, index: int) -> ClientId:
        clients = self._trace.clients
        return ClientId("", None if clients is None else str(clients[index]))

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
        index = self._held[entry]
        choice = self._in_time(index, self._pick(index, replicas, moment), moment)
        seconds = choice.predicted_ttft_seconds if choice is not None else None
        return moment + (seconds or 0.0) > entry.due

    def _in_time(self, index: int, choice: Choice | None, moment: float) -> Choice | None:
        """Return the choice of a gateway for a request that is late there, as its `Replicas`: a
        faster replica without room that has its first token in time, if there is.
        """
        seconds = choice.predicted_ttft_seconds if choice is not None else None
        within = self._trace.arrivals[index] + self._objective - moment
        steps = {id(replica.state.replica.step_time) for replica in self.serving}
        if choice is None or seconds is None or seconds <= within or len(steps) == 1:
            return choice
        compared = [candidate.state for candidate in choice.candidates]
        states = without_room(compared, [each.state for each in self.serving], moment)
        others = set(map(id, states))
        candidates = [each for each in self.serving if id(each.state) in others]
        other = self._pick(index, candidates, moment)
        is_earlier = other is not None and (other.predicted_ttft_seconds or within) < within
        return other if is_earlier else choice

    def _pick(
        self, index: int, replicas: Sequence[SimulatedReplica], moment: float
    ) -> Choice | None:
        states = [replica.state for replica in replicas]
        cached = self._cached_tokens(index, replicas)
        return pick(
            self._shape(index),
            states,
            moment,
            turn=self._turn,
            means=self._means,
            cached_tokens=cached,
            owned=self._ownership(index),
        )

    def _ownership(self, index: int) -> Ownership | None:
        """Return what the gateway of a request expects of its owner."""
        if len(self._records) < 2:
            return None
        uids = tuple(replica.state.replica.uid for replica in self.serving)
        if uids != self._owner_uids:
            self._owner_uids = uids
            self._owners = Owners([replica.state for replica in self.serving])
        record, count = self._record(index), len(self._records)
        return self._owners.ownership(self._blocks(index), record, self._means, count)

    def _cached_tokens(self, index: int, replicas: Sequence[SimulatedReplica]) -> Sequence[int]:
        """Return the tokens of a prompt that the router believes in the caches of replicas."""
        trace = self._trace
        if trace.prefixes is None:
            return ()
        if self._router is Router.CACHES:
            names = self._names(index)
            return [replica.engine.cached_tokens(names) for replica in replicas]
        if not self._records:
            return ()
        uids = [replica.state.replica.uid for replica in replicas]
        tokens = self._record(index).held_tokens(self._blocks(index), uids)
        owned = self._ownership(index)
        if owned is not None and owned.uid in uids:
            tokens[uids.index(owned.uid)] = owned.expected_tokens
        return tokens

    def _record(self, index: int) -> PrefixRecords:
        """Return the records of the gateway that a request came to."""
        records, trace = self._records, self._trace
        if len(records) == 1:
            return records[0]
        key = index
        if self._session_names and trace.prefixes is not None:
            key = trace.prefixes[index][: self._session_names][-1]
        return records[crc32(str(key).encode()) % len(records)]

    def _names(self, index: int) -> Sequence[int]:
        """Return the names of the prefixes of a prompt, without those of its answer."""
        trace = self._trace
        if trace.prefixes is None:
            return ()
        return trace.prefixes[index][: trace.input_tokens[index] // self._prefix_tokens]

    def _blocks(self, index: int) -> PromptBlocks:
        """Return what a gateway makes of the text of a prompt."""
        trace, unit = self._trace, self._prefix_tokens
        units = max(1, _BLOCK_TOKENS // unit)
        owner = str(trace.clients[index]) if trace.clients is not None else ""
        return PromptBlocks(
            owner=owner,
            hashes=self._names(index)[units - 1 :: units],
            tokens_per_block=units * unit,
            prompt_tokens=trace.input_tokens[index],
            turns=self._turns(index),
        )

    def _turns(self, index: int) -> PromptTurns | None:
        """Return what several gateways make of the turns of a prompt."""
        if self._trace.turns is None or len(self._records) < 2:
            return None
        spans = self._trace.turns[index]
        return PromptTurns(
            key=_key(f"conversation {spans.conversation}"),
            beginning_key=_key(f"beginning {spans.beginning}"),
            beginning_tokens=spans.beginning_tokens,
            opening_tokens=spans.opening_tokens,
            earlier_tokens=spans.earlier_tokens,
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
        replica, cached_tokens = self._choose(index, replicas, moment)
        replica.advance(moment, self._ttft)
        record, prompt = self._note(index, replica)
        request = EngineRequest(
            id=index,
            prompt_tokens=trace.input_tokens[index],
            output_tokens=trace.output_tokens[index],
            shared_prefixes=trace.prefixes[index] if trace.prefixes is not None else (),
        )
        if not replica.submit(
            request,
            trace.arrivals[index],
            moment,
            cached_tokens=cached_tokens,
            record=record,
            prompt=prompt,
        ):
            self.refused += 1
        self.requests[replica.number] += 1

    def _note(
        self, index: int, replica: SimulatedReplica
    ) -> tuple[ReplicaPrefixes | None, SentPrompt | None]:
        """Record where a prompt goes."""
        if not self._records:
            return None, None
        uid, prompt = replica.state.replica.uid, self._blocks(index)
        records, owned = self._record(index), self._ownership(index)
        promised_tokens = 0
        if prompt.turns is not None:
            self._means = self._means.gone_on(prompt.turns.earlier_tokens > 0)
        if owned is not None and owned.uid == uid:
            promised_tokens = owned.promised_tokens
            if owned.is_of_beginning:
                records.note_owner(prompt, uid)
        record = records.replica(uid, replica.kv_tokens)
        return record, record.send(prompt, promised_tokens)

    def _choose(
        self, index: int, replicas: list[SimulatedReplica], moment: float
    ) -> tuple[SimulatedReplica, int]:
        """Return a replica, and the tokens of the prompt that are believed in its cache."""
        if self._rival is not None:
            names = self._names(index)
            prompt = RoutedPrompt(
                turn=self._turn,
                tokens=self._trace.input_tokens[index],
                names=names,
                prefix_tokens=self._prefix_tokens,
            )
            replica = self._rival.choose(prompt, replicas, self._settings)
            sees = self._rival.sees_caches
            return replica, replica.engine.cached_tokens(names) if sees else 0
        if self._is_gateway and (held_tokens := self._cached_tokens(index, self.serving)):
            room, states = ([each.state for each in group] for group in (replicas, self.serving))
            candidates = set(map(id, with_prefix(room, states, held_tokens, moment)))
            replicas = [each for each in self.serving if id(each.state) in candidates]
        choice = self._pick(index, replicas, moment)
        if self._is_gateway:
            choice = self._in_time(index, choice, moment)
        if choice is None:
            raise ValueError("a replica that serves is not ready")
        chosen = next(replica for replica in self.serving if replica.state is choice.state)
        return chosen, choice.cached_tokens

    def _open(self, moment: float) -> list[SimulatedReplica]:
        """Return the replicas that may take one more request."""
        if not self._is_gateway:
            return self.serving
        serving, means = self.serving, self._means
        return [replica for replica in serving if has_room(replica.state, means, moment)]


@cache
def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
