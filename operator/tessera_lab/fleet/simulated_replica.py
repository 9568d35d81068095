"""One replica of a simulated fleet: its engine, and what its router knows of it."""

import math
from array import array
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.picking.health import SLOW_START_SECONDS
from tessera.domain.picking.prefix_record import ReplicaPrefixes, SentPrompt
from tessera.domain.picking.replica_state import ReplicaState
from tessera_lab.engine import EngineCore
from tessera_lab.engine.core import EngineCounters
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.sequence_state import SequenceState
from tessera_lab.fleet.model import FleetModel, NodePool
from tessera_lab.fleet.observation import EngineSample

# Of the engine, which `Totals` has by the same names.
_COUNTERS = ("steps", "prefill_tokens", "generated_tokens", "queried_tokens", "hit_tokens")


class EndedRequest(NamedTuple):
    """Lengths of a finished request, and seconds between its first and its last token."""

    row: int
    """Of the request in its trace."""
    prompt_tokens: int
    output_tokens: int
    decode_seconds: float


def engine_replica(fleet: FleetModel, number: int) -> EngineReplica:
    """Return a replica as its gateway knows it."""
    return EngineReplica(
        pod=Ref("lab", str(number)),
        uid=str(number),
        address="",
        ready_since=None,
        max_num_seqs=fleet.limits.max_num_seqs,
        max_num_batched_tokens=fleet.limits.max_num_batched_tokens,
        step_time=fleet.replica.step,
    )


class _Sent(NamedTuple):
    """What the router of a request without an end expected, and recorded."""

    uncached_tokens: int
    """Prompt tokens that the engine must compute."""
    record: ReplicaPrefixes | None
    """Of the gateway that sent it."""
    prompt: SentPrompt | None


class SimulatedReplica:
    """An engine from its order until it is gone.

    It runs behind the simulation: `due` is the earliest moment at which a request can get its first
    token or end, so until then nothing that a router sees can change.
    """

    def __init__(
        self, fleet: FleetModel, number: int, *, ordered_at: float, pool: NodePool
    ) -> None:
        self.number = number
        self.engine = EngineCore(fleet.limits, fleet.step)
        self.ordered_at = ordered_at
        self.pool = pool
        self.bound_at = self.ready_at = math.inf
        """When it has, or will have, a node, and when it serves."""
        self.paid_from = math.inf
        """Since when its node is paid: from its boot where it comes for the replica."""
        self.waits_since: float | None = None
        """Since when it waits for a node while another pool has one for it."""
        self.draining = False
        self.drained_at = math.inf
        """Since when it drains."""
        self.deadline = math.inf
        """When its streams are broken, while it drains."""
        self.now = ordered_at
        """End of the newest step, or the moment up to which the engine was idle."""
        self.due = math.inf
        self.ended: list[EndedRequest] = []
        """Since the simulation took them last."""
        self._new = defaultdict[str, float](int)
        """First tokens since the counts were taken last, by the names of `Totals`."""
        self._objective = fleet.replica.ttft
        self.kv_tokens = fleet.replica.kv_tokens
        """Of its KV cache, as profiled."""
        self.promised_tokens = 0
        """Prompt tokens that its router believed to be cached."""
        self._sent: dict[int, _Sent] = {}
        """By the ids of requests."""
        self.served = False
        """It got a request."""
        self.activity: list[tuple[float, float]] = []
        """Moments with the seconds in which its engine had stepped until then."""
        self._busy = 0.0
        self._sampled_busy = 0.0
        self._counted = EngineCounters()
        self._in_step = False
        self._first: list[SequenceState] = []
        self.state = ReplicaState(
            replica=engine_replica(fleet, number),
            ready_at=None,
            max_sequences=float(fleet.limits.max_num_seqs),
        )

    @property
    def load(self) -> int:
        """Return its running and waiting requests."""
        return self.state.requests

    @property
    def idle(self) -> bool:
        return self.engine.idle

    def bind(self, paid_from: float, bound_at: float, ready_at: float) -> None:
        """Give it a node."""
        self.paid_from, self.bound_at, self.ready_at = paid_from, bound_at, ready_at
        # The first replicas have served before the trace begins.
        self.state.ready_at = ready_at if ready_at > 0 else -SLOW_START_SECONDS

    def submit(
        self,
        request: EngineRequest,
        arrival: float,
        at: float,
        *,
        cached_tokens: int = 0,
        record: ReplicaPrefixes | None = None,
        prompt: SentPrompt | None = None,
    ) -> bool:
        """Queue a request at a moment up to which the replica has advanced; False if refused.

        `cached_tokens` are those that its router believes in the cache; a record has the prompt.
        """
        if self.engine.submit(request, arrival) is not None:
            return False
        self.served = True
        uncached = request.prompt_tokens - cached_tokens
        self._sent[request.id] = _Sent(uncached, record, prompt)
        self.promised_tokens += cached_tokens
        self.state.sent(uncached)
        if not self._in_step:
            self.now = max(self.now, at)
            self._begin(at)
        self.due = self.now
        return True

    def advance(self, until: float, ttft: "array[float]") -> None:
        """Do the steps that begin before `until`, and write the first tokens that came by then."""
        engine = self.engine
        if not self._in_step:
            return
        while self.now <= until:
            self._end(ttft)
            if engine.idle:
                self.due = math.inf
                return
            self._begin(until)
        self.due = self.now if self._first else self.now + engine.quiet_seconds()

    def sample(self, seconds: float) -> EngineSample:
        """Return the metrics since the sample before, which was so many seconds ago."""
        engine = self.engine
        # A step under way counts whole.
        busy, self._sampled_busy = self._busy - self._sampled_busy, self._busy
        counts = engine.counts
        return EngineSample(
            running=engine.running,
            waiting=engine.waiting,
            waiting_tokens=engine.queued_tokens,
            kv_tokens=engine.kv_tokens,
            kv_usage=engine.kv_usage,
            busy=min(1.0, busy / seconds) if seconds else 0.0,
            busy_seconds=self._busy,
            steps=counts.steps,
            prefill_tokens=counts.prefill_tokens,
            generated_tokens=counts.generated_tokens,
        )

    def record_activity(self, moment: float) -> None:
        """Note for how long its engine has stepped until a moment to which it has advanced."""
        ahead = max(0.0, self.now - moment) if self._in_step else 0.0
        self.activity.append((moment, self._busy - ahead))

    def take_counts(self) -> Mapping[str, float]:
        """Return what was counted since the last call, by the names of `Totals`."""
        new, self._new = self._new, defaultdict(int)
        counts, before = self.engine.counts, self._counted
        self._counted = replace(counts)
        for name in _COUNTERS:
            new[name] = getattr(counts, name) - getattr(before, name)
        return new

    def break_streams(self) -> int:
        """Abort what is left and return how many requests that were."""
        requests = self.engine.requests
        for request_id in requests:
            self.engine.remove(request_id)
        self._in_step, self.due = False, math.inf
        return len(requests)

    def _begin(self, until: float) -> None:
        """Begin a step, or all decode-only steps that begin before `until`."""
        engine, begin = self.engine, self.now
        seconds = engine.skip(until - begin) if until > begin else 0.0
        if not seconds:
            seconds = engine.begin_step()
            for sequence in engine.admitted:
                if sequence.admitted_at is None:
                    sequence.admitted_at = begin
            self._first = [
                sequence
                for sequence in engine.completed_prefills
                if sequence.first_token_at is None
            ]
        self.now = begin + seconds
        self._busy += seconds
        self._in_step, self.due = True, self.now

    def _end(self, ttft: "array[float]") -> None:
        self._in_step = False
        now, state, new = self.now, self.state, self._new
        for sequence in self._first:
            sequence.first_token_at = now
            request = sequence.request
            ttft[request.id] = waited = now - sequence.arrived_at
            new["first_tokens"] += 1
            new["ttft_seconds"] += waited
            new["in_time"] += waited <= self._objective
            new["in_half_time"] += waited <= self._objective / 2
            admitted_at = sequence.admitted_at
            prefill = 0.0 if admitted_at is None else now - admitted_at
            new["slow_prefills"] += prefill > self._objective
            new["half_slow_prefills"] += prefill > self._objective / 2
            state.first_token(self._sent[request.id].uncached_tokens)
        self._first = []
        for sequence in self.engine.end_step():
            request = sequence.request
            state.ended()
            sent = self._sent.pop(request.id)
            if sent.record is not None and sent.prompt is not None:
                share = (sequence.cached or 0) / request.prompt_tokens
                sent.record.complete(sent.prompt, request.output_tokens, share)
            first = sequence.first_token_at or now
            self.ended.append(
                EndedRequest(request.id, request.prompt_tokens, request.output_tokens, now - first)
            )
