"""The engine's scheduler limits: the most concurrent requests and largest step in the SLO."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from tessera.api.model_files import ModelShape
from tessera.domain.perf.engine_terms import DEFAULT_TERMS, EngineTerms
from tessera.domain.perf.step import StepTime
from tessera.domain.sizing.queueing import (
    EngineOccupancy,
    OwnTime,
    late_last,
    share_waiting_longer,
)

# The largest `--max-num-seqs` that Tessera sets.
MAX_SEQUENCES = 256
# The largest `--max-num-batched-tokens` that Tessera sets.
MAX_CHUNK_TOKENS = 8192
LATE_SHARE = 0.05
# The longest 5 % of recorded prompts are as long as if they varied so much more. Where they vary by
# more than 1, few are much longer than all others.
_MORE_VARIATION = 1.7
# What the prompts of one kind of requests vary by at most, and what more counts in waits.
ONE_KIND_VARIATION = 2.0
_MORE_OF_KINDS = 0.5
# Nearer to the throughput of a full engine, queues grow from the smallest error of a prediction.
_MOST_USE = 0.95
# Of a normal distribution, below which 95 % are.
P95_DEVIATIONS = 1.645
# To a thousandth of the range.
_BISECTIONS = 10
_STEP_TOKENS = (MAX_CHUNK_TOKENS, 4096, 2048, 1024, 512, 256, 128, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a service requires of one replica: model, request lengths and SLO."""

    shape: ModelShape
    precision: str | None
    max_model_len: int
    input_tokens: int
    output_tokens: int
    """0 of a pooling model, which generates none."""
    ttft: timedelta
    inter_token: timedelta
    adapters_mib: int = 0
    """Memory of the LoRA adapter slots on one device."""
    engine: EngineTerms = DEFAULT_TERMS
    cached_tokens: int | None = None
    """Cached tokens of a running request on average; None is a typical one half way."""
    computed_tokens: int | None = None
    """Mean tokens of a prompt that the prefix cache does not have; None is all of them."""

    prompt_variation: float = 0.0
    """Squared coefficient of variation of the tokens of prompts; 0 if all are typical."""
    late_alone_share: float = 0.0
    """Share of the prompts that were counted as late by themselves."""

    @property
    def is_pooling(self) -> bool:
        return not self.output_tokens

    @property
    def prefill_tokens(self) -> int:
        """Return the mean tokens of a prompt that steps compute; the last one is never cached."""
        if self.computed_tokens is None:
            return self.input_tokens
        return max(1, min(self.input_tokens, self.computed_tokens))

    @property
    def resident_tokens(self) -> int:
        """Return the cached tokens of a running request."""
        cached = self.cached_tokens or self.input_tokens + self.output_tokens // 2
        # A model of one token of context leaves no room for a prompt beside the answer.
        return max(1, min(self.max_model_len, cached))

    @property
    def step_tokens(self) -> tuple[int, ...]:
        """Return the limits of a step's tokens that the engine may have."""
        if self.engine.max_num_batched_tokens is not None:
            return (self.engine.max_num_batched_tokens,)
        if self.engine.chunked_prefill and not self.is_pooling:
            return _STEP_TOKENS
        # A step holds whole prompts, and the engine takes none that could be longer.
        whole = {max(tokens, self.max_model_len) for tokens in _STEP_TOKENS}
        return tuple(sorted(whole, reverse=True))

    @property
    def most_step_tokens(self) -> int:
        """Return the most tokens of one step for which memory is planned."""
        return max(MAX_CHUNK_TOKENS, *self.step_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Scheduler limits of one replica with the throughput within them."""

    max_num_seqs: int
    max_num_batched_tokens: int
    tokens_per_second: float
    """Output tokens per second with `max_num_seqs` typical requests at once; of a pooling model
    input tokens."""
    decode_tokens: int = 1
    """Tokens that a step computes of each decoding request; more than 1 only with speculation."""

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of prompts that a step reads while `max_num_seqs` requests decode."""
        return max(1, self.max_num_batched_tokens - self.max_num_seqs * self.decode_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedLoad:
    """The load of a running engine at which arrivals at random still meet the SLO."""

    sequences: float
    """Requests that run at once on average."""
    tokens_per_second: float
    """Output tokens; of a pooling model input tokens."""
    prompts_per_second: float
    """Prompts that it reads at most, beside the requests that run."""
    meets_slo: bool
    """False if even one request violates it; the load is then that of a full engine. It is False
    as well if too many prompts are late by themselves; the load is then that with which the others
    are in time."""


def sustained_load(
    demand: Demand,
    step: StepTime,
    kv_tokens: int,
    engine: SchedulerLimits,
    *,
    replicas: int = 1,
    servers: int = 1,
) -> SustainedLoad:
    """Return what an engine with these limits sustains of requests of these lengths.

    It is one of so many `replicas`, and `servers` are those among which a gateway chooses the one
    with the shortest wait.
    """
    tokens, variation = engine.max_num_batched_tokens, demand.prompt_variation
    # Above it the long requests are another kind, whose answers are long as well, and hold up more.
    variation += _MORE_OF_KINDS * max(0.0, variation - ONE_KIND_VARIATION)
    cached = max(1, _varied_requests(demand, replicas * kv_tokens) // replicas)
    most = max(1, min(engine.max_num_seqs, cached, (tokens - 1) // step.decode_tokens))
    places = _max_sequences(replace(demand, prompt_variation=0.0), step, most, tokens)
    full = min(places or most, _prefill_bound(demand, step, tokens))
    limit = _MOST_USE * _tokens_per_second(demand, step, full, tokens) / demand.output_tokens
    occupancy = _occupancy(demand, step, places or most, tokens)
    # Their number of replicas changes nothing of it.
    is_late = demand.late_alone_share > LATE_SHARE

    def is_sustained(rate: float) -> bool:
        # While requests wait, more run than on average.
        mean = occupancy.mean(rate)
        sequences = min(full, mean + math.sqrt(mean)) if mean < full else full
        full_seconds = full_step_seconds(demand, step, sequences, tokens)
        # A cache makes engines less busy, but some prompts are read whole all the same, and others
        # wait for these: the mean wait is longest where a prompt is cached as a whole or not at
        # all.
        reading = demand.input_tokens / _prompt_tokens(step, sequences, tokens) * full_seconds
        slack = demand.ttft.total_seconds() - full_seconds
        own = OwnTime.of(reading, _MORE_VARIATION * min(1.0, variation))
        # An engine reads one prompt after the other.
        busy = rate * _reading_seconds(demand, step, sequences, tokens)
        read = share_waiting_longer(slack, servers, busy, reading, variation=variation, own=own)
        placed = occupancy.share_waiting_longer(slack, rate, replicas, variation=variation, own=own)
        if servers > 1:
            # Where a gateway sends them, only the excess is late.
            read, placed = late_last(read, busy), late_last(placed, occupancy.busy(rate))
        late_alone = 0.0 if is_late else own.share_longer(slack)
        return late_alone + placed + read <= LATE_SHARE

    sustained = _highest(is_sustained, limit)
    rate = sustained or limit
    sequences = min(full, occupancy.mean(rate))
    return SustainedLoad(
        sequences=sequences,
        tokens_per_second=rate * demand.output_tokens,
        prompts_per_second=1 / _reading_seconds(demand, step, sequences, tokens),
        meets_slo=places > 0 and sustained > 0 and not is_late,
    )


def _highest(is_sustained: Callable[[float], bool], highest: float) -> float:
    """Return the highest rate that is sustained; 0 for none."""
    if is_sustained(highest):
        return highest
    low, high = 0.0, highest
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if is_sustained(middle):
            low = middle
        else:
            high = middle
    return low


def _occupancy(demand: Demand, step: StepTime, places: int, tokens: int) -> EngineOccupancy:
    """Return how long requests have their places, as a line through those that so many take."""

    def seconds(requests: float) -> float:
        return _resident_seconds(demand, step, requests, tokens)

    # More wait for their prompts to be read, each for those before it.
    most = min(places, max(2.0, _prefill_bound(demand, step, tokens)))
    full = seconds(most)
    # The experts of a step add most time for the first requests: the line meets the half that is
    # nearer to a full engine.
    alone = max(seconds(1), 2 * seconds((1 + most) / 2) - full)
    return EngineOccupancy(places, alone, (full - alone) / (most - 1) if most > 1 else 0.0)


def _resident_seconds(demand: Demand, step: StepTime, sequences: float, tokens: int) -> float:
    """Return the seconds for which a request has its place while so many have theirs."""
    decode = step.seconds(decoding=sequences, kv_tokens=sequences * demand.resident_tokens)
    # While its own prompt is read, the others go on.
    reading = demand.prefill_tokens / _prompt_tokens(step, sequences, tokens) * decode
    rate = _tokens_per_second(demand, step, sequences, tokens)
    return sequences * demand.output_tokens / rate + reading


def _reading_seconds(demand: Demand, step: StepTime, sequences: float, tokens: int) -> float:
    """Return the seconds of full steps that what is computed of a typical prompt takes."""
    computed = demand.prefill_tokens
    cached = demand.input_tokens - computed
    full_seconds = full_step_seconds(demand, step, sequences, tokens, cached=cached)
    return computed / _prompt_tokens(step, sequences, tokens) * full_seconds


def best_limits(demand: Demand, step: StepTime, kv_tokens: int) -> SchedulerLimits | None:
    """Return the limits with the highest throughput; None when even one request violates the SLO.

    Steps with a chunk of a prompt are frequent enough to decide the 95th percentile of the ITL. So
    a full step must take no longer than the ITL objective, and the steps of a typical prompt no
    longer than the TTFT objective.
    """
    requested = demand.engine.max_num_seqs
    most = min(requested or MAX_SEQUENCES, max(1, _cached_requests(demand, kv_tokens)))
    options = []
    for tokens in demand.step_tokens:
        bound = int(_prefill_bound(demand, step, tokens))
        # Requests beyond the bound wait for prompts to be read; who asks for them gets them.
        places = min(most, bound if requested is None else (tokens - 1) // step.decode_tokens)
        sequences = _max_sequences(demand, step, places, tokens)
        if sequences > 0 and bound > 0:
            rate = _tokens_per_second(demand, step, min(sequences, bound), tokens)
            options.append(
                SchedulerLimits(
                    max_num_seqs=sequences,
                    max_num_batched_tokens=tokens,
                    tokens_per_second=rate,
                    decode_tokens=step.decode_tokens,
                )
            )
    # The most requests count first where their number is given.
    return max(
        options,
        key=lambda limits: (limits.max_num_seqs if requested else 0, limits.tokens_per_second),
        default=None,
    )


def rate_within(demand: Demand, step: StepTime, limits: SchedulerLimits) -> float:
    """Return the output tokens per second within limits that another step time was planned for."""
    tokens = limits.max_num_batched_tokens
    sequences = min(limits.max_num_seqs, max(1, int(_prefill_bound(demand, step, tokens))))
    return _tokens_per_second(demand, step, sequences, tokens)


def _cached_requests(demand: Demand, kv_tokens: int) -> int:
    """Return how many requests, each somewhere in its answer, the cache holds 95 % of the time.

    Where it does not, the engine preempts one, and reads its prompt and answer again.
    """
    # The last block of each request is half empty.
    mean = demand.resident_tokens + demand.engine.block_tokens / 2
    return _requests_within(kv_tokens, mean, demand.output_tokens / math.sqrt(12))


def _varied_requests(demand: Demand, kv_tokens: int) -> int:
    """Return the same of requests whose prompts vary."""
    deviation = demand.input_tokens * math.sqrt(demand.prompt_variation)
    return _requests_within(kv_tokens, demand.resident_tokens, deviation)


def _requests_within(kv_tokens: int, mean: float, deviation: float) -> int:
    """Return how many requests, of so many tokens each, have no more together 95 % of the time."""
    root = math.sqrt((P95_DEVIATIONS * deviation) ** 2 + 4 * mean * kv_tokens)
    return int(((root - P95_DEVIATIONS * deviation) / (2 * mean)) ** 2)


def _prefill_bound(demand: Demand, step: StepTime, tokens: int) -> float:
    """Return how many requests have their prompts read by steps of `tokens` while others decode."""
    output_tokens, decode_tokens = demand.output_tokens, step.decode_tokens
    read = step.tokens_per_step * demand.prefill_tokens + decode_tokens * output_tokens
    return min((tokens - 1) / decode_tokens, tokens * output_tokens / read)


def _prompt_tokens(step: StepTime, sequences: float, tokens: int) -> float:
    """Return the tokens of prompts that a full step reads beside so many decoding requests."""
    return tokens - sequences * step.decode_tokens


def _max_sequences(demand: Demand, step: StepTime, most: int, tokens: int) -> int:
    """Return the most concurrent requests within the SLO, at most `most`."""
    # Every latency grows with each request, so the limit can be bisected.
    if most > 0 and _meets_slo(demand, step, most, tokens):
        return most
    fewer = range(1, most)
    return bisect_left(fewer, True, key=lambda count: not _meets_slo(demand, step, count, tokens))


def _meets_slo(demand: Demand, step: StepTime, sequences: int, tokens: int) -> bool:
    full_seconds = full_step_seconds(demand, step, sequences, tokens)
    if full_seconds > demand.inter_token.total_seconds():
        return False
    chunks = -(-demand.input_tokens // _prompt_tokens(step, sequences, tokens))
    return chunks * full_seconds <= demand.ttft.total_seconds()


def _tokens_per_second(demand: Demand, step: StepTime, sequences: float, tokens: int) -> float:
    # Steps that carry prompts at a steady rate, 1 at most by the bound: while all requests get one
    # answer, the prompts of as many have to be read.
    yielded, prompts = sequences * step.tokens_per_step, _prompt_tokens(step, sequences, tokens)
    computed = demand.prefill_tokens
    share = yielded * computed / (prompts * demand.output_tokens)
    decode = step.seconds(decoding=sequences, kv_tokens=sequences * demand.resident_tokens)
    cached = demand.input_tokens - computed
    full = full_step_seconds(demand, step, sequences, tokens, cached=cached)
    mean = share * full + (1 - share) * decode
    if step.experts is not None:
        # Prompts come one by one, and most experts are read for the first tokens of a step: several
        # steps of one short prompt each take longer than a full one.
        ended = yielded / demand.output_tokens
        read = min(prompts, ended * computed / -math.expm1(-ended))
        some = _reading_step_seconds(demand, step, sequences, read, cached)
        share = ended * computed / read
        mean = max(mean, share * some + (1 - share) * decode)
    return yielded / mean


def longest_reading(
    input_tokens: int, inter_token: timedelta, limits: SchedulerLimits
) -> timedelta:
    """Return the most that a full engine, whose steps keep the ITL objective, reads a prompt."""
    return -(-input_tokens // limits.prompt_tokens) * inter_token


def full_step_seconds(
    demand: Demand, step: StepTime, sequences: float, tokens: int, *, cached: int = 0
) -> float:
    """Return the seconds of a step of so many tokens, filled up with typical prompts.

    Of these so many tokens are `cached`: what is computed attends to them as well.
    """
    prompts = _prompt_tokens(step, sequences, tokens)
    return _reading_step_seconds(demand, step, sequences, prompts, cached)


def _reading_step_seconds(
    demand: Demand, step: StepTime, sequences: float, prompts: float, cached: int
) -> float:
    """Return the seconds of a step that reads so many tokens of prompts beside its requests."""
    return step.seconds(
        decoding=sequences,
        kv_tokens=sequences * demand.resident_tokens + prompts,
        prefill_tokens=prompts,
        # Most tokens are those of longer prompts, in which each attends to more of them.
        prefill_pairs=prompts * (demand.input_tokens + cached) * (1 + demand.prompt_variation),
    )
