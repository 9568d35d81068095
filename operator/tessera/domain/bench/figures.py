"""One load of a test: what was measured, and the figures of it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tessera.domain.bench.answers import Answer, Latencies, latencies
from tessera.domain.bench.counters import TRUSTED, Look, Peaks, Work, one_engine, work
from tessera.domain.bench.dollars import Dollars, Price, dollars
from tessera.domain.bench.knee import Knee, Point, knee
from tessera.domain.bench.spread import spread

BUSY = 0.8
"""Share of a processor from which on the client may be what is measured."""
_FULL_CACHE = 0.95
_NEAR_PEAK = 0.6
"""Share of the peaks, both together, that tells a device at its limits from one that waits."""
_QUEUED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load, as it was measured. Moments are seconds on the client's clock."""

    name: str
    concurrency: int | None
    """Requests at once; None where arrivals decide."""
    answers: Sequence[Answer]
    unfinished: int = 0
    """Broken off by the user; they are no failures and count nowhere else."""
    began: float
    ended: float
    cpu_seconds: float
    """Of the client's processor."""
    before: Look
    after: Look
    during: Sequence[Look] = field(default=())

    @property
    def seconds(self) -> float:
        return max(self.ended - self.began, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What the client itself took, so that it is seen when it is the limit."""

    cpu_share: float
    """Of one processor; at 1 the client can do no more."""
    cpu_ms_per_request: float | None
    """All that it did, in milliseconds for each request."""
    cpu_us_per_chunk: float | None
    """The same, in microseconds for each streamed chunk."""
    requests_per_second: float | None
    """Of this kind, at which the client would be the limit."""
    late_seconds: float
    """P95 of how much later than due requests were sent."""


class Bound(StrEnum):
    """What held the throughput where it was."""

    CLIENT = "Client"
    KV_CACHE = "KvCache"
    QUEUE = "EngineQueue"
    """Requests waited in the engine for a tenth of their time or longer: for its limits of
    sequences, or of tokens in a step."""
    COMPUTE = "Compute"
    BANDWIDTH = "MemoryBandwidth"
    LOAD = "Load"
    """Nothing was full: a greater load would give more."""
    UNKNOWN = "Unknown"
    """The engine's counters were not to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a load came to. Tokens are those of whole answers."""

    level: Level
    whole: int
    failures: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    cached_share: float | None
    """Of the prompts' tokens, as answers tell it."""
    latencies: Latencies
    full: float | None
    """Output tokens a second while all places were taken."""
    held: float
    """Requests that were under way on average."""
    work: Work | None
    trusted: bool
    """The engine counted the tokens that the client did."""
    dollars: Dollars | None
    client: Client
    bound: Bound

    @property
    def requests_per_second(self) -> float:
        return self.whole / self.level.seconds

    @property
    def output_per_second(self) -> float:
        return self.output_tokens / self.level.seconds

    @property
    def total_per_second(self) -> float:
        return (self.input_tokens + self.output_tokens) / self.level.seconds

    @property
    def per_user(self) -> float | None:
        """Tokens a second that a user sees: one over the median time between tokens (F22)."""
        found = self.latencies.per_token
        return 1 / found.p50 if found and found.p50 else None


def figures(level: Level, peaks: Peaks | None, price: Price | None) -> Figures:
    """Everything that follows from what was measured."""
    whole = [answer for answer in level.answers if answer.whole]
    inputs = sum(answer.prompt_tokens or 0 for answer in whole)
    outputs = sum(answer.output_tokens for answer in whole)
    done, client = _work(level, peaks), _client(level)
    trusted = done is not None and _trusted(level, done)
    measured = latencies(whole)
    return Figures(
        level=level,
        whole=len(whole),
        failures=dict(sorted(Counter(one.failure for one in level.answers if one.failure).items())),
        input_tokens=inputs,
        output_tokens=outputs,
        cached_share=_cached(whole),
        latencies=measured,
        full=_while_full(level, whole),
        held=sum(one.ended - one.sent for one in level.answers) / level.seconds,
        work=done,
        trusted=trusted,
        dollars=dollars(price, inputs, outputs, level.seconds) if price else None,
        client=client,
        bound=_bound(
            client,
            done if trusted else None,
            measured.answer.mean if measured.answer else math.inf,
        ),
    )


def knee_of(found: Sequence[Figures]) -> Knee | None:
    """The knee of a sweep, taken from loads without failures."""
    return knee(list(_points(found)))


def _points(found: Sequence[Figures]) -> Iterator[Point]:
    for one in found:
        answer, places = one.latencies.answer, one.level.concurrency
        if answer is not None and answer.p50 and places is not None and not one.failures:
            yield Point(
                concurrency=places,
                tokens_per_second=one.full or one.output_per_second,
                answer_seconds=answer.p50,
            )


def _work(level: Level, peaks: Peaks | None) -> Work | None:
    if not one_engine([level.before, *level.during, level.after]):
        return None
    return work(level.before, level.after, level.during, peaks)


def _trusted(level: Level, done: Work) -> bool:
    seen = sum(answer.output_tokens for answer in level.answers)
    if any(not answer.whole for answer in level.answers) or level.unfinished:
        # What the engine gave out for these is not known here; it cannot be less than what came.
        return done.output_tokens >= seen * (1 - TRUSTED)
    return abs(done.output_tokens - seen) <= TRUSTED * max(seen, 1)


def _cached(whole: Sequence[Answer]) -> float | None:
    told = [one for one in whole if one.cached_tokens is not None and one.prompt_tokens]
    prompts = sum(one.prompt_tokens or 0 for one in told)
    return sum(one.cached_tokens or 0 for one in told) / prompts if prompts else None


def _while_full(level: Level, whole: Sequence[Answer]) -> float | None:
    """From the start to the last request sent; None when that is too short to say anything."""
    if level.concurrency is None or len(level.answers) < 2 * level.concurrency:
        return None
    last = max(answer.sent for answer in level.answers)
    if last <= level.began:
        return None
    tokens = 0.0
    for answer in whole:
        at, arrived = answer.first, 0
        if at is None:
            continue
        for gap in (0.0, *answer.gaps):
            at += gap
            if at > last:
                break
            arrived += 1
        tokens += answer.output_tokens * arrived / answer.chunks
    return tokens / (last - level.began)


def _client(level: Level) -> Client:
    requests, chunks = len(level.answers), sum(one.chunks for one in level.answers)
    late = spread([answer.sent - answer.due for answer in level.answers])
    return Client(
        cpu_share=level.cpu_seconds / level.seconds,
        cpu_ms_per_request=level.cpu_seconds / requests * 1e3 if requests else None,
        cpu_us_per_chunk=level.cpu_seconds / chunks * 1e6 if chunks else None,
        requests_per_second=requests / level.cpu_seconds if level.cpu_seconds > 0 else None,
        late_seconds=late.p95 if late else 0.0,
    )


def _bound(client: Client, done: Work | None, answer_seconds: float) -> Bound:
    """The first that applies."""
    if client.cpu_share > BUSY:
        return Bound.CLIENT
    if done is None:
        return Bound.UNKNOWN
    # Prompts take the arithmetic and answers the memory, by turns, so both shares are of one time.
    busy = (done.mfu or 0) + (done.mbu or 0) > _NEAR_PEAK
    rules = (
        (Bound.KV_CACHE, bool(done.preemptions) or (done.most_kv or 0) > _FULL_CACHE),
        (Bound.COMPUTE, busy and (done.mfu or 0) >= (done.mbu or 0)),
        (Bound.BANDWIDTH, busy),
        (Bound.QUEUE, (done.queued_seconds or 0) > _QUEUED * answer_seconds),
    )
    return next((bound for bound, applies in rules if applies), Bound.LOAD)
