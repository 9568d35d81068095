"""Load and health of all replicas, as the gateway knows them."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica, ModelChanges, OfferedModel
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.picking.owners import GatewayPeers, Owners, Ownership
from tessera.domain.picking.pick import (
    Choice,
    Comparison,
    Exclusion,
    PickReason,
    exclusion,
    pick,
    with_prefix,
    with_room,
    with_spare_room,
    without_room,
)
from tessera.domain.picking.prediction import (
    RequestMeans,
    is_late_alone,
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
    compiled: Callable[[], object] | None = None
    """Called when the engine has compiled what it asks for: once it answers, or at its end."""
    answers_whole: bool = False
    """It answers at its end alone; a first token before is a prediction."""

    def first_token(self) -> None:
        """Count its first token, once and before its end."""
        if not (self.has_token or self.has_ended):
            self.has_token = True
            self.choice.state.first_token(self.prefill_tokens)
            if self.compiled is not None and not self.answers_whole:
                self.compiled()
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
            if self.compiled is not None:
                self.compiled()
            self._moved_on()

    def _moved_on(self) -> None:
        state = self.choice.state
        state.read_until = still_reads_until(state, self.clock())
        self.freed(self.service_uid)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """The ready replicas of one service, which differ in speed or in limits."""

    kinds: Sequence[tuple[EngineReplica, int]]
    """One of each kind, and how many there are."""
    longest_context: int | None
    """None while that of one is not known."""

    def context_tokens(self, shape: RequestShape) -> int:
        """Return the context that a request needs: the engines refuse it beyond the longest."""
        longest = self.longest_context
        return shape.context_tokens if longest is None else min(shape.context_tokens, longest)


class Replicas:
    """The replicas of all models; states outlive directories, by the UID of their pods."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[str, ReplicaState] = {}
        self._by_service: dict[str, list[ReplicaState]] = {}
        # Of services whose replicas differ.
        self._mixtures: dict[str, _Mixture] = {}
        self._means: dict[str, RequestMeans] = {}
        self._records = PrefixRecords()
        self._turn = 0
        self._owners: dict[str, Owners] = {}
        """By the UID of a service."""
        self.peers = GatewayPeers()
        self.freed: Callable[[str], None] = lambda _: None
        """Called with a service's UID when one of its replicas has more room."""

    def update(self, changes: ModelChanges, now: float, utc_now: datetime) -> None:
        """Take the replicas of changed models; requests at those that left still count."""
        former: dict[str, ReplicaState] = {}
        for model in changes.old:
            self._mixtures.pop(model.uid, None)
            self._owners.pop(model.uid)
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
            self._owners[model.uid] = Owners(of_model)
            if (mixture := _mixture(model.replicas)) is not None:
                self._mixtures[model.uid] = mixture
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
        within: float = math.inf,
    ) -> SentRequest | None:
        """Choose one of these replicas whose context the request fits, and count it there; None
        without one.

        With `beyond_room` it may be another one that holds the prompt's beginning, or that alone
        has the first token `within` so many seconds.
        """
        self._turn += 1
        replicas = self.states(model)
        held_tokens, owned = self._expected_tokens(model, shape, replicas)
        available = held_tokens
        if beyond_room and states and any(held_tokens):
            states = with_prefix(states, replicas, held_tokens, now)
        states = _fitting(states, shape, self._mixtures.get(model.uid))
        if held_tokens and len(states) < len(replicas):
            uids = [state.replica.uid for state in replicas]
            tokens_by_uid = dict(zip(uids, held_tokens, strict=True))
            available = [tokens_by_uid[state.replica.uid] for state in states]
        choice = self._pick(model, shape, now, states, available, owned)
        if choice is None:
            return None
        if choice.reason is PickReason.ONLY_REPLICA and self.ready_count(model) > 1:
            choice = replace(choice, reason=PickReason.ONLY_CANDIDATE)
        if beyond_room:
            choice = self._in_time(model, shape, now, choice, within)
        prompt, cached_share, known_share, prompt_tokens = None, 0.0, 0.0, 0
        if shape.prompt is not None:
            # What its session alone promises is not certain: many may come with one name at once.
            is_owner = owned is not None and owned.uid == choice.replica.uid
            owner = owned if is_owner else None
            prompt = self._records.replica(choice.replica.uid).send(
                shape.prompt, owner.promised_tokens if owner else 0
            )
            if owner is not None and owner.is_of_beginning:
                self._records.note_owner(shape.prompt, owner.uid)
            prompt_tokens = shape.prompt.prompt_tokens
            held_tokens = held_tokens or (prompt.promised_tokens,)
            promised_tokens = owner.expected_tokens if owner else prompt.promised_tokens
            cached_share = min(1.0, promised_tokens / prompt_tokens)
            known_share = max(held_tokens) / prompt_tokens
            if (turns := shape.prompt.turns) is not None:
                goes_on = turns.earlier_tokens > 0 or max(held_tokens) > turns.opening_tokens
                self._means[model.uid] = self.means(model).gone_on(goes_on)
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
                replicas,
                held_tokens,
                prompt_tokens,
                _exclusions(choice, replicas, now, shape, self._mixtures.get(model.uid)),
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

    def with_room(
        self, model: OfferedModel, now: float, *, yields: bool = False
    ) -> list[ReplicaState]:
        """Return the replicas that would start one more request soon, or one that yields."""
        states = self.states(model)
        return with_spare_room(states, now) if yields else with_room(states, self.means(model), now)

    def taking(
        self, model: OfferedModel, shape: RequestShape, states: Sequence[ReplicaState]
    ) -> Sequence[ReplicaState]:
        """Return those of these replicas with room that take a request, where replicas differ.

        It fits their context. While one of them reads the prompt of a request that yields, others
        wait for half of the TTFT objective at most, or as long as at the fastest.
        """
        fitting = _fitting(states, shape, self._mixtures.get(model.uid))
        if not (shape.priority.yields and self.differ(model)):
            return fitting
        most = max(model.ttft_seconds / 2, self.read_seconds(model, shape))
        tokens = shape.input_tokens
        return [state for state in fitting if read_seconds(state.replica, tokens) <= most]

    def differ(self, model: OfferedModel) -> bool:
        """Return whether a request may have a place at some of its replicas alone."""
        return model.uid in self._mixtures

    def read_seconds(self, model: OfferedModel, shape: RequestShape) -> float:
        """Return the seconds for which the fastest kind of idle replica reads a prompt."""
        mixture, tokens = self._mixtures.get(model.uid), shape.input_tokens
        if mixture is not None:
            context_tokens = mixture.context_tokens(shape)
            return min(
                read_seconds(replica, tokens)
                for replica, _ in mixture.kinds
                if replica.takes(context_tokens)
            )
        replicas = (state.replica for state in self.states(model))
        return max((read_seconds(replica, tokens) for replica in replicas), default=0.0)

    def is_late_alone(self, model: OfferedModel, shape: RequestShape, tokens: int) -> bool:
        """Return whether a prompt of so many tokens is late at the fastest kind of idle replica.

        What a replica has of it in its cache is not read.
        """
        mixture, states = self._mixtures.get(model.uid), self.states(model)
        if mixture is None:
            kinds = [state.replica for state in states[:1]]
        else:
            context_tokens = mixture.context_tokens(shape)
            kinds = [each for each, _ in mixture.kinds if each.takes(context_tokens)]

        def is_late(cached: int) -> bool:
            return all(
                is_late_alone(each, tokens - cached, cached, model.ttft_seconds) for each in kinds
            )

        if not kinds or not is_late(0):
            return False
        if shape.prompt is None:
            return True
        uids = [state.replica.uid for state in states]
        cached = max(self._records.held_tokens(shape.prompt, uids))
        return is_late(int(tokens * min(1.0, cached / shape.prompt.prompt_tokens)))

    def untried(
        self, model: OfferedModel, shape: RequestShape, tried: Collection[str]
    ) -> Sequence[ReplicaState]:
        """Return the replicas that a request fits and was not sent to yet, by the UIDs of pods."""
        states = [state for state in self.states(model) if state.replica.uid not in tried]
        return _fitting(states, shape, self._mixtures.get(model.uid))

    def predicted_ttft(
        self,
        model: OfferedModel,
        shape: RequestShape,
        now: float,
        states: Sequence[ReplicaState],
        within: float = math.inf,
    ) -> float:
        """Return the seconds until the first token at the best of these replicas, or at another one
        that alone has it `within` so many.

        0 where that is not known.
        """
        states = self.taking(model, shape, states)
        expected = self._expected_tokens(model, shape, states)
        choice = self._pick(model, shape, now, states, *expected)
        if choice is not None:
            choice = self._in_time(model, shape, now, choice, within)
        return (choice.predicted_ttft_seconds if choice is not None else None) or 0.0

    def _in_time(
        self, model: OfferedModel, shape: RequestShape, now: float, choice: Choice, within: float
    ) -> Choice:
        """Return the replica for a request that is late at the chosen one, which is the best of
        those with room: a faster one without room that has its first token in time, if there is.

        What waits in an engine's queue, which is not fair, is bounded by that time.
        """
        seconds = choice.predicted_ttft_seconds
        if seconds is None or seconds <= within or not self.differ(model):
            return choice
        compared = [candidate.state for candidate in choice.candidates]
        others = self.taking(model, shape, without_room(compared, self.states(model), now))
        expected = self._expected_tokens(model, shape, others)
        other = self._pick(model, shape, now, others, *expected)
        if other is None or (other.predicted_ttft_seconds or math.inf) > within:
            return choice
        return replace(
            other,
            reason=PickReason.LEAST_PREDICTED_TTFT,
            candidates=(*other.candidates, *choice.candidates),
        )

    def _expected_tokens(
        self,
        model: OfferedModel,
        shape: RequestShape,
        states: Sequence[ReplicaState],
    ) -> tuple[Sequence[int], Ownership | None]:
        """Return what each of these replicas has of a prompt, and what its owner counts for.

        Empty and None where there is no choice.
        """
        prompt, records = shape.prompt, self._records
        if prompt is None or len(states) < 2:
            return (), None
        uids = [state.replica.uid for state in states]
        held_tokens = records.held_tokens(prompt, uids)
        owners = self._owners.get(model.uid)
        if prompt.turns is None or owners is None:
            return held_tokens, None
        owned = owners.ownership(prompt, records, self.means(model), self.peers.count)
        if owned is not None and owned.uid in uids:
            held_tokens[uids.index(owned.uid)] = owned.expected_tokens
        return held_tokens, owned

    def _pick(
        self,
        model: OfferedModel,
        shape: RequestShape,
        now: float,
        states: Sequence[ReplicaState],
        held_tokens: Sequence[int],
        owned: Ownership | None,
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
        return pick(
            shape, states, now, turn=self._turn, means=means, cached_tokens=cached, owned=owned
        )

    def work_seconds(self, model: OfferedModel, shape: RequestShape) -> float:
        """Return the predicted seconds of a replica that a request takes.

        Of several kinds it is the mean by which so many replicas do their work together.
        """
        states, means = self.states(model), self.means(model)
        mixture = self._mixtures.get(model.uid)
        if mixture is None:
            replica = states[0].replica if states else _UNKNOWN_REPLICA
            return work_seconds(replica, shape, means)
        kinds = mixture.kinds
        rate = sum(count / work_seconds(replica, shape, means) for replica, count in kinds)
        return sum(count for _, count in kinds) / rate

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


def _mixture(replicas: Sequence[EngineReplica]) -> _Mixture | None:
    """Return what differs between the ready replicas of a service; None where nothing does."""
    ready = [each for each in replicas if each.ready_since is not None and not each.leaving]
    kinds = Counter(map(_kind, ready))
    if len(kinds) < 2:
        return None
    examples = {_kind(each): each for each in ready}
    contexts = [each.max_model_len for each in examples.values()]
    known = [context for context in contexts if context is not None]
    return _Mixture(
        [(examples[kind], count) for kind, count in kinds.items()],
        max(known) if len(known) == len(contexts) else None,
    )


def _fitting(
    states: Sequence[ReplicaState], shape: RequestShape, mixture: _Mixture | None
) -> Sequence[ReplicaState]:
    """Return the replicas whose context a request fits, or the longest if it fits none."""
    if shape.variant is not None:
        states = [state for state in states if state.replica.variant == shape.variant]
    if mixture is None:
        return states
    context_tokens = mixture.context_tokens(shape)
    return [state for state in states if state.replica.takes(context_tokens)]


def _kind(replica: EngineReplica) -> tuple[object, ...]:
    """Return what decides how fast it is, and which requests it takes."""
    return (
        replica.step_time,
        replica.max_num_seqs,
        replica.max_num_batched_tokens,
        replica.max_model_len,
    )


def _exclusions(
    choice: Choice,
    replicas: Sequence[ReplicaState],
    now: float,
    shape: RequestShape,
    mixture: _Mixture | None,
) -> Sequence[tuple[ReplicaState, Exclusion]]:
    if len(choice.candidates) == len(replicas):
        return ()
    context_tokens = 0 if mixture is None else mixture.context_tokens(shape)
    compared = {id(candidate.state) for candidate in choice.candidates}
    return [
        (state, exclusion(state, now, context_tokens))
        for state in replicas
        if id(state) not in compared
    ]
