"""Load and health of all replicas, as the gateway knows them."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica, ModelChanges, OfferedModel
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.picking.pick import (
    Choice,
    Comparison,
    Exclusion,
    exclusion,
    pick,
    with_prefix,
    with_room,
    with_spare_room,
)
from tessera.domain.picking.prediction import (
    RequestMeans,
    read_seconds,
    read_until,
    still_reads_until,
    work_seconds,
)
from tessera.domain.picking.prefix_record import PrefixRecords, SentPrompt
from tessera.domain.picking.replica_state import EngineLoad, ReplicaState

_DEFAULT_MEANS = RequestMeans()
_POOLING_MEANS = RequestMeans(output_tokens=0)
# Stands for the replica that a sleeping service will have.
_UNKNOWN_REPLICA = EngineReplica(pod=Ref("", ""), uid="", address="", ready_since=None)


@dataclass(slots=True, kw_only=True)
class SentRequest:
    """A request at a replica."""

    choice: Choice
    prefill_tokens: int
    """Those of its prompt that the replica has to compute, as predicted."""
    records: PrefixRecords
    prompt: SentPrompt | None
    """None where no engine keeps anything of it, and once its end is recorded."""
    predicted_cached_share: float
    """Part of its prompt that the replica has, by what is recorded: 0 to 1."""
    known_prefix_share: float
    """The same of the replica that has most of it."""
    comparison: Comparison
    service_uid: str
    freed: Callable[[str], None]
    """Called with the service's UID when the replica has more room."""
    clock: Callable[[], float]
    yields: bool = False
    has_token: bool = False
    has_ended: bool = False
    failure: str = ""
    """Why another replica got it after this one."""

    def first_token(self) -> None:
        """Count its first token, once and before its end."""
        if not (self.has_token or self.has_ended):
            self.has_token = True
            self.choice.state.first_token(self.prefill_tokens)
            self._moved_on()

    def answered(
        self, output_tokens: int, cached_share: float | None, prompt_tokens: int | None = None
    ) -> None:
        """Record what the replica has of it now, and had before as it says: 0 to 1, or None.

        `prompt_tokens` are those that it counted, or None.
        """
        if self.prompt is not None:
            uid = self.choice.replica.uid
            self.records.complete(uid, self.prompt, output_tokens, cached_share, prompt_tokens)
            self.prompt = None

    def end(self) -> None:
        """Count its end, once; without an answer, its replica has nothing of it."""
        if not self.has_ended:
            self.has_ended = True
            if self.prompt is not None:
                self.records.fail(self.choice.replica.uid, self.prompt)
                self.prompt = None
            unanswered = None if self.has_token else self.prefill_tokens
            self.choice.state.ended(unanswered, yields=self.yields)
            self._moved_on()

    def _moved_on(self) -> None:
        state = self.choice.state
        state.read_until = still_reads_until(state, self.clock())
        self.freed(self.service_uid)


class Replicas:
    """The replicas of all models; states outlive directories, by the UID of their pods."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[str, ReplicaState] = {}
        self._by_service: dict[str, list[ReplicaState]] = {}
        self._means: dict[str, RequestMeans] = {}
        self._records = PrefixRecords()
        self._turn = 0
        self.freed: Callable[[str], None] = lambda _: None
        """Called with a service's UID when one of its replicas has more room."""

    def update(self, changes: ModelChanges, now: float, utc_now: datetime) -> None:
        """Take the replicas of changed models; requests at those that left still count."""
        former: dict[str, ReplicaState] = {}
        for model in changes.old:
            for left in self._by_service.pop(model.uid):
                former[left.replica.uid] = left
                self._states.pop(left.replica.uid, None)
        for model in changes.new:
            of_model = self._by_service[model.uid] = []
            for replica in model.replicas:
                state = former.get(replica.uid)
                if state is None:
                    state = ReplicaState.create(replica, now=now, utc_now=utc_now)
                else:
                    if replica.ready_since != state.replica.ready_since:
                        # Its engine may have been started again.
                        self._records.forget(replica.uid)
                    state.update(replica, now=now, utc_now=utc_now)
                self._states[replica.uid] = state
                of_model.append(state)
        for uid in former.keys() - self._states.keys():
            self._records.forget(uid)
            # Requests that went there are explained for long; what its engine wrote is large.
            former[uid].engine = None
        for model in changes.removed:
            self._means.pop(model.uid, None)

    def polled(self, loads: Mapping[str, EngineLoad]) -> None:
        """Take readings of engines, by the UIDs of their pods."""
        for uid, load in loads.items():
            if uid in self._states:
                self._states[uid].polled(load)
                if load.kv_tokens is not None:
                    self._records.replica(uid).resize(load.kv_tokens)

    def send(
        self,
        model: OfferedModel,
        shape: RequestShape,
        now: float,
        states: Sequence[ReplicaState],
        *,
        beyond_room: bool = False,
    ) -> SentRequest | None:
        """Choose one of these replicas, and count the request there; None without one.

        With `beyond_room` it may be another one that holds the prompt's beginning.
        """
        self._turn += 1
        replicas = self.states(model)
        held_tokens = available = self._held_tokens(shape, replicas)
        if beyond_room and states and any(held_tokens):
            states = with_prefix(states, replicas, held_tokens, now)
        if held_tokens and len(states) < len(replicas):
            uids = [state.replica.uid for state in replicas]
            tokens_by_uid = dict(zip(uids, held_tokens, strict=True))
            available = [tokens_by_uid[state.replica.uid] for state in states]
        choice = self._pick(model, shape, now, states, available)
        if choice is None:
            return None
        prompt, cached_share, known_share, prompt_tokens = None, 0.0, 0.0, 0
        if shape.prompt is not None:
            # What its session alone promises is not certain: many may come with one name at once.
            prompt = self._records.replica(choice.replica.uid).send(shape.prompt)
            prompt_tokens = shape.prompt.prompt_tokens
            held_tokens = held_tokens or (prompt.promised_tokens,)
            cached_share = prompt.promised_tokens / prompt_tokens
            known_share = max(held_tokens) / prompt_tokens
        prefill_tokens = max(1, round(shape.input_tokens * (1 - cached_share)))
        cached_tokens = max(0, shape.input_tokens - prefill_tokens)
        until = read_until(choice.state, prefill_tokens, cached_tokens, now)
        choice.state.sent(prefill_tokens, read_until=until, yields=shape.priority.yields)
        return SentRequest(
            choice=choice,
            prefill_tokens=prefill_tokens,
            records=self._records,
            prompt=prompt,
            predicted_cached_share=cached_share,
            known_prefix_share=known_share,
            comparison=Comparison(
                replicas, held_tokens, prompt_tokens, _exclusions(choice, replicas, now)
            ),
            service_uid=model.uid,
            freed=self.freed,
            clock=self._clock,
            yields=shape.priority.yields,
        )

    @property
    def record_bytes(self) -> int:
        """Return what the records of prompts in the caches of engines take."""
        return self._records.size

    def ready_count(self, model: OfferedModel) -> int:
        """Return how many replicas can take requests."""
        states = self.states(model)
        return sum(each.ready_at is not None and not each.replica.leaving for each in states)

    def with_room(self, model: OfferedModel, now: float) -> list[ReplicaState]:
        """Return the replicas that would start one more request soon."""
        return with_room(self.states(model), self.means(model), now)

    def with_spare_room(self, model: OfferedModel, now: float) -> list[ReplicaState]:
        """Return the replicas with room for a request that yields."""
        return with_spare_room(self.states(model), now)

    def read_seconds(self, model: OfferedModel, shape: RequestShape) -> float:
        """Return the seconds for which the slowest idle replica reads a prompt."""
        replicas, tokens = (state.replica for state in self.states(model)), shape.input_tokens
        return max((read_seconds(replica, tokens) for replica in replicas), default=0.0)

    def untried(self, model: OfferedModel, tried: Collection[str]) -> list[ReplicaState]:
        """Return the replicas that a request was not sent to yet, by the UIDs of pods."""
        return [state for state in self.states(model) if state.replica.uid not in tried]

    def predicted_ttft(
        self, model: OfferedModel, shape: RequestShape, now: float, states: Sequence[ReplicaState]
    ) -> float:
        """Return the seconds until the first token at the best of these replicas.

        0 where that is not known.
        """
        choice = self._pick(model, shape, now, states, self._held_tokens(shape, states))
        return (choice.predicted_ttft_seconds if choice is not None else None) or 0.0

    def _held_tokens(self, shape: RequestShape, states: Sequence[ReplicaState]) -> Sequence[int]:
        """Return what each of these replicas has of a prompt; empty where there is no choice."""
        if shape.prompt is None or len(states) < 2:
            return ()
        return self._records.held_tokens(shape.prompt, [state.replica.uid for state in states])

    def _pick(
        self,
        model: OfferedModel,
        shape: RequestShape,
        now: float,
        states: Sequence[ReplicaState],
        held_tokens: Sequence[int],
    ) -> Choice | None:
        cached = held_tokens
        if shape.prompt is not None and held_tokens:
            if not any(cached):
                uids = [state.replica.uid for state in states]
                cached = self._records.session_tokens(shape.prompt, uids)
            if any(cached):
                # Of the estimate, which is rather too high.
                ratio = shape.input_tokens / shape.prompt.prompt_tokens
                cached = [int(tokens * ratio) for tokens in cached]
        means = self.means(model)
        return pick(shape, states, now, turn=self._turn, means=means, cached_tokens=cached)

    def work_seconds(self, model: OfferedModel, shape: RequestShape) -> float:
        """Return the predicted seconds of a replica that a request takes."""
        states = self.states(model)
        replica = states[0].replica if states else _UNKNOWN_REPLICA
        return work_seconds(replica, shape, self.means(model))

    def states(self, model: OfferedModel) -> list[ReplicaState]:
        """Return the replicas of a model."""
        return self._by_service.get(model.uid, [])

    def means(self, model: OfferedModel) -> RequestMeans:
        """Return the mean sizes of the model's recent requests."""
        default = _DEFAULT_MEANS if model.generates else _POOLING_MEANS
        return self._means.get(model.uid, default)

    def learn(
        self,
        model: OfferedModel,
        prompt_tokens: int,
        output_tokens: int,
        prompt_bytes: int | None = None,
    ) -> None:
        """Take the counted sizes of a request into the means."""
        means = self.means(model)
        self._means[model.uid] = means.after(prompt_tokens, output_tokens, prompt_bytes)


def _exclusions(
    choice: Choice, replicas: Sequence[ReplicaState], now: float
) -> Sequence[tuple[ReplicaState, Exclusion]]:
    if len(choice.candidates) == len(replicas):
        return ()
    compared = {id(candidate.state) for candidate in choice.candidates}
    return [(state, exclusion(state, now)) for state in replicas if id(state) not in compared]
