"""What the records of requests show of the factors of a forecast.

Records have no texts, only senders, lengths and times. A repetition is a request of the same length
as one before of its sender, soon after that ended. A conversation is a sender's requests of which
each is longer than the one before and its answer together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from statistics import fmean, linear_regression, median

from tessera.domain.economics.accuracy import ConversationInput, MeasuredUsage
from tessera.domain.economics.break_even import MONTH_DAYS

# What is sent again begins so soon after the end; in as long a time after that as many requests
# have the same length by chance.
_REPEAT_SECONDS = 60.0
# Of clocks, and of times in milliseconds.
_ROUNDING_SECONDS = 1.0
_WINDOW_SECONDS = _REPEAT_SECONDS + _ROUNDING_SECONDS
# Of new requests: those that have the length of another shortly before. Above it they hide what is
# sent again.
_MAX_CHANCE = 0.1
# After a longer pause a sender begins another conversation.
_PAUSE_SECONDS = 1800.0
# Of the requests that are longer than the one before: those that have its answer.
_MIN_CONTINUED = 0.8
_MIN_PAIRS = 200
_MIN_REQUESTS = 100
# Of all requests: those with a record of their own, which sums are not.
_MIN_SINGLE = 0.95
_SHORTEST = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedRequest:
    """One request as it was recorded, or a sum of several."""

    started_at: float
    """Unix time in seconds."""
    ended_at: float
    sender: tuple[str, ...]
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int = 0
    """Part of the output that a later turn does not send."""
    requests: int = 1

    @property
    def next_tokens(self) -> int:
        """Return what the next turn sends of this one."""
        return self.input_tokens + self.output_tokens - self.reasoning_tokens


@dataclass(slots=True)
class _Turns:
    """The requests of senders, taken for conversations."""

    first: list[int] = field(default_factory=list)
    """Input tokens of requests with which a conversation begins."""
    added: list[int] = field(default_factory=list)
    """Input tokens of later ones beyond what the one before left."""
    longer: list[tuple[float, float]] = field(default_factory=list)
    """Answers before requests that are longer than the one before, and by how much they are."""


def measure(records: Iterable[LoggedRequest], days: float) -> MeasuredUsage | None:
    """Return the factors that records of some days show; None without a request or a token."""
    ordered = sorted(records, key=attrgetter("sender", "started_at"))
    requests = sum(record.requests for record in ordered)
    input_tokens = sum(record.input_tokens for record in ordered)
    output_tokens = sum(record.output_tokens for record in ordered)
    if not requests or not input_tokens + output_tokens:
        return None
    usage = MeasuredUsage(
        requests=requests / days * MONTH_DAYS,
        input_tokens=input_tokens / requests,
        output_tokens=output_tokens / requests,
    )
    single = [record for record in ordered if record.requests == 1]
    if len(single) < max(_MIN_REQUESTS, _MIN_SINGLE * requests):
        return usage
    lengths = sorted(record.input_tokens for record in single)
    usage = replace(
        usage,
        retries=_retries(single),
        shortest_tokens=float(lengths[int(_SHORTEST * len(lengths))]),
    )
    return replace(usage, conversations=_conversation_input(_turns(single), usage))


def _retries(ordered: Sequence[LoggedRequest]) -> float | None:
    """Return how often a request was sent again, on average; None where chance hides it."""
    early = late = 0
    ends = dict[tuple[tuple[str, ...], int], float]()
    for record in ordered:
        key = (record.sender, record.input_tokens)
        if key in ends:
            pause = record.started_at - ends[key] + _ROUNDING_SECONDS
            early += 0 <= pause <= _WINDOW_SECONDS
            late += _WINDOW_SECONDS < pause <= 2 * _WINDOW_SECONDS
        ends[key] = record.ended_at
    # Those that chance did not let follow another of their length early: the share of them that
    # it let follow late is also the share of all new ones that it let follow early.
    by_chance = late / (len(ordered) - early)
    if by_chance > _MAX_CHANCE:
        return None
    new = (len(ordered) - early) / (1 - by_chance)
    return max(0.0, len(ordered) / new - 1)


def _turns(ordered: Sequence[LoggedRequest]) -> _Turns:
    turns = _Turns()
    for _, requests in groupby(ordered, attrgetter("sender")):
        _add_turns(turns, requests)
    return turns


def _add_turns(turns: _Turns, requests: Iterable[LoggedRequest]) -> None:
    """Add the requests of one sender."""
    last: LoggedRequest | None = None
    is_first = True
    for record in requests:
        if last is None or record.started_at - last.ended_at > _PAUSE_SECONDS:
            is_first = True
        elif record.input_tokens != last.input_tokens:
            added = record.input_tokens - last.next_tokens
            is_first = added <= 0
            if not is_first:
                turns.added.append(added)
            if (longer := record.input_tokens - last.input_tokens) > 0:
                turns.longer.append((last.next_tokens - last.input_tokens, longer))
        if is_first:
            turns.first.append(record.input_tokens)
        last = record


def _conversation_input(turns: _Turns, usage: MeasuredUsage) -> ConversationInput | None:
    """Return what conversations show; None where the requests of senders are none."""
    if not _is_continued(turns):
        return None
    prompt = fmean(turns.added)
    # Both medians are of what users write, one of them with what each request has besides.
    hidden = max(0.0, median(turns.first) - median(turns.added))
    history = usage.input_tokens - prompt - hidden
    if history < 0 or hidden > (usage.shortest_tokens or 0):
        return None
    return ConversationInput(hidden=hidden, history=history)


def _is_continued(turns: _Turns) -> bool:
    """Return whether requests that are longer than the one before have its answer.

    Then they are longer by it on average, while by chance they are as much longer whatever the
    answer was: the slope is the share of those that continue a conversation.
    """
    if len(turns.longer) < _MIN_PAIRS or not turns.added or not turns.first:
        return False
    answers, longer = zip(*turns.longer, strict=True)
    if min(answers) == max(answers):
        return False
    slope: float = linear_regression(answers, longer).slope
    return slope >= _MIN_CONTINUED
