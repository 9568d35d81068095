"""The replica of a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tessera.domain.gateway.directory import EngineReplica
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.picking.health import SLOW_START_SECONDS, start_share
from tessera.domain.picking.owners import Ownership
from tessera.domain.picking.prediction import (
    DEFAULT_MAX_NUM_SEQS,
    RequestMeans,
    delay_seconds,
    has_room,
    has_sequence_room,
    has_spare_room,
    predicted_ttft,
    token_seconds,
)
from tessera.domain.picking.replica_state import ReplicaState

_MEANS = RequestMeans()


class PickReason(StrEnum):
    """Why a replica was chosen."""

    ONLY_REPLICA = "OnlyReplica"
    """No other is ready."""
    ONLY_CANDIDATE = "OnlyCandidate"
    """Of several that are ready no other could take it: they have no room, a context that is too
    short, failed lately, or had it before."""
    LEAST_PREDICTED_TTFT = "LeastPredictedTTFT"
    CACHED_PREFIX = "CachedPrefix"
    """The same, which it is only by more tokens of the prompt in its cache than the second has."""
    CONVERSATION_OWNER = "ConversationOwner"
    """The same, which it is only since other gateways will send later turns there."""
    LEAST_IN_FLIGHT = "LeastInFlight"
    """The speed of a replica is unknown: the fewest requests relative to `max_num_seqs`."""


class Exclusion(StrEnum):
    """Why a replica was not compared with others."""

    NOT_READY = "NotReady"
    DRAINING = "Draining"
    EJECTED = "Ejected"
    """Its last requests failed."""
    NO_ROOM = "NoRoom"
    """It has no room for one more sequence."""
    CONTEXT_TOO_SHORT = "ContextTooShort"
    """Its `maxModelLen` is below the prompt and its answer, and that of another is not."""
    TRIED = "Tried"
    """It gave no answer to this request before."""


class CandidateReplica(NamedTuple):
    """A replica with what decides: the one with the least score is chosen."""

    state: ReplicaState
    score: float
    ttft: float | None
    """Predicted seconds to the first token; None while the speed of a replica is unknown."""
    cached_tokens: int
    spared_seconds: float = 0.0
    """Those of a later turn that are off the score of the owner of a conversation."""


class Comparison(NamedTuple):
    """What stood beside a choice."""

    replicas: Sequence[ReplicaState]
    """All of the service."""
    held_tokens: Sequence[int]
    """Those of the prompt that each of `replicas` had; empty without a prompt."""
    prompt_tokens: int
    """Of the prompt, by an estimate; 0 without one."""
    exclusions: Sequence[tuple[ReplicaState, Exclusion]]
    """Those of `replicas` that were no candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The chosen replica; its state counts the request only after `sent`."""

    state: ReplicaState
    predicted_ttft_seconds: float | None
    """None while the speed of a replica is unknown."""
    reason: PickReason
    cached_tokens: int = 0
    """Those of the prompt that it need not compute, as given to `pick`."""
    candidates: Sequence[CandidateReplica] = ()
    """It and the others that were compared."""

    @property
    def replica(self) -> EngineReplica:
        """Return the replica of the state."""
        return self.state.replica


def pick(  # noqa: PLR0913 - what a choice depends on
    request: RequestShape,
    states: Sequence[ReplicaState],
    now: float,
    *,
    turn: int = 0,
    means: RequestMeans = _MEANS,
    cached_tokens: Sequence[int] = (),
    owned: Ownership | None = None,
) -> Choice | None:
    """Choose the replica with the least predicted time to the first token.

    Replicas that are not ready, leave or are ejected get nothing; None says that no replica is
    ready. `turn` is a counter of the caller: equal replicas take turns by it. `cached_tokens` has
    the prompt tokens that each replica need not compute, in the order of `states`; empty is 0.
    Where any are cached, all seconds count for which this request and those on the replica wait for
    each other: its own first token alone is worth no detour to a cache that is a little busier, but
    all of them together are, and a cache that is much busier is worth none.

    The seconds of the replica that owns the prompt are lowered by those that later turns are
    spared; what it is expected to have is in `cached_tokens`.

    A replica that became ready lately takes a growing share of its usual load: what decides is
    divided by that share, as in Envoy's slow start.
    """
    indices = _admissible(states, now)
    if not indices:
        return None
    by_ttft = all([states[index].replica.step_time is not None for index in indices])
    has_cached = by_ttft and any(cached_tokens)
    first = turn % len(indices)
    candidates = list[CandidateReplica]()
    chosen, second = None, None
    for index in indices[first:] + indices[:first]:
        state, cached = states[index], cached_tokens[index] if has_cached else None
        scored = _scored(state, request, means, now, by_ttft, cached)
        if owned is not None and owned.uid == state.replica.uid:
            scored = _spared(scored, owned, now, counts_all=has_cached)
        candidates.append(scored)
        if chosen is None or scored.score < chosen.score:
            chosen, second = scored, chosen
        elif second is None or scored.score < second.score:
            second = scored
    assert chosen is not None  # noqa: S101 - of one index at least
    return Choice(
        state=chosen.state,
        predicted_ttft_seconds=chosen.ttft,
        reason=_reason(chosen, second, request, means, now),
        cached_tokens=chosen.cached_tokens,
        candidates=candidates,
    )


def _reason(
    chosen: CandidateReplica,
    second: CandidateReplica | None,
    request: RequestShape,
    means: RequestMeans,
    now: float,
) -> PickReason:
    """Return what decided between the chosen replica and the next best."""
    if second is None:
        return PickReason.ONLY_REPLICA
    if chosen.ttft is None:
        return PickReason.LEAST_IN_FLIGHT
    if chosen.spared_seconds and chosen.score + chosen.spared_seconds >= second.score:
        return PickReason.CONVERSATION_OWNER
    if chosen.cached_tokens > second.cached_tokens:
        without = _scored(chosen.state, request, means, now, True, second.cached_tokens)
        if without.score - chosen.spared_seconds >= second.score:
            return PickReason.CACHED_PREFIX
    return PickReason.LEAST_PREDICTED_TTFT


def with_room(
    states: Sequence[ReplicaState], means: RequestMeans, now: float
) -> list[ReplicaState]:
    """Return the replicas, ejected ones apart, that would start one more request soon.

    A request that waits is picked a replica among these, and those `with_prefix`.
    """
    admissible = (states[index] for index in _admissible(states, now))
    return [state for state in admissible if has_room(state, means, now)]


def with_prefix(
    with_room: Sequence[ReplicaState],
    states: Sequence[ReplicaState],
    held_tokens: Sequence[int],
    now: float,
) -> list[ReplicaState]:
    """Return the replicas with room, and those of `states` that hold some of a prompt's tokens.

    Room for another sequence is enough there: the prompts before it in the queue of an engine may
    take less time than to compute its beginning elsewhere. All others wait in the fair queue.
    """
    known = set(map(id, with_room))
    return [
        state
        for state, tokens in zip(states, held_tokens, strict=True)
        if id(state) in known or (tokens and has_sequence_room(state, now))
    ]


def with_spare_room(states: Sequence[ReplicaState], now: float) -> list[ReplicaState]:
    """Return the replicas, ejected ones apart, with room for a request that yields."""
    admissible = (states[index] for index in _admissible(states, now))
    return [state for state in admissible if has_spare_room(state, now)]


def without_room(
    with_room: Sequence[ReplicaState], states: Sequence[ReplicaState], now: float
) -> list[ReplicaState]:
    """Return the other replicas that take one more sequence, after the prompts that they read.

    Where replicas differ, one of these may be earlier than all that have room.
    """
    known = set(map(id, with_room))
    return [
        state
        for state in states
        if id(state) not in known and state.is_open(now) and has_sequence_room(state, now)
    ]


def exclusion(state: ReplicaState, now: float, context_tokens: int = 0) -> Exclusion:
    """Return why a replica was no candidate for a request that it had not got before.

    The request needs a context of so many tokens.
    """
    if state.ready_at is None:
        return Exclusion.NOT_READY
    if state.replica.leaving:
        return Exclusion.DRAINING
    if state.health.ejected_until > now:
        return Exclusion.EJECTED
    if state.replica.takes(context_tokens):
        return Exclusion.NO_ROOM
    return Exclusion.CONTEXT_TOO_SHORT


def _admissible(states: Sequence[ReplicaState], now: float) -> list[int]:
    """Return the indices of the replicas that may get a request.

    At most half of the ready replicas count as ejected, those for which it lasts longest: when
    most of them fail, the fault is more likely elsewhere.
    """
    ready = [
        index
        for index, state in enumerate(states)
        if state.ready_at is not None and not state.replica.leaving
    ]
    ejected = [index for index in ready if states[index].health.ejected_until > now]
    if not ejected:
        return ready
    ejected.sort(key=lambda index: -states[index].health.ejected_until)
    excluded = ejected[: len(ready) // 2]
    return [index for index in ready if index not in excluded]


def _scored(
    state: ReplicaState,
    request: RequestShape,
    means: RequestMeans,
    now: float,
    by_ttft: bool,
    cached_tokens: int | None,
) -> CandidateReplica:
    """Return what sending the request to a replica costs; None: nothing is cached anywhere."""
    step, ttft, cached = state.replica.step_time, None, cached_tokens or 0
    if by_ttft and step is not None:
        score = ttft = predicted_ttft(state, step, request, means, now, cached)
        if cached_tokens is not None:
            score += delay_seconds(state, step, request, means, now, cached)
    else:
        score = relative_load(state, now)
    seconds_ready = now - (state.ready_at or 0.0)
    if seconds_ready < SLOW_START_SECONDS:
        score /= start_share(seconds_ready)
    return CandidateReplica(state, score, ttft, cached)


def _spared(
    scored: CandidateReplica, owned: Ownership, now: float, *, counts_all: bool
) -> CandidateReplica:
    """Return the owner with the seconds off that later turns are spared: their own, or of all."""
    step = scored.state.replica.step_time
    if scored.ttft is None or step is None:
        return scored
    requests = 1 + sum(scored.state.load(now)) if counts_all else 1
    seconds = requests * owned.saved_tokens * token_seconds(scored.state.replica, step)
    return scored._replace(score=scored.score - seconds, spared_seconds=seconds)


def relative_load(state: ReplicaState, now: float) -> float:
    """Return the requests on a replica relative to its limit, this one included."""
    running, waiting = state.load(now)
    return (running + waiting + 1) / (state.replica.max_num_seqs or DEFAULT_MAX_NUM_SEQS)
