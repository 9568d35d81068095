"""The limits of an engine that pools: it reads each text once, and generates nothing.

Texts are read whole. An encoder needs all tokens of a text in one step, and so does a decoder whose
pooling is not that of the last token.
"""

from bisect import bisect_left
from datetime import timedelta

from tessera.domain.perf.step import StepTime
from tessera.domain.sizing.queueing import share_waiting_longer
from tessera.domain.sizing.scheduler_limits import Demand, SchedulerLimits, SustainedLoad

_MAX_SEQUENCES = 256
_LATE_SHARE = 0.05
# Nearer to the throughput of a full engine, queues grow from the smallest error of a prediction.
_MOST_USE = 0.95
_BISECTIONS = 10


def best_limits(demand: Demand, step: StepTime, kv_tokens: int) -> SchedulerLimits | None:
    """Return the limits with the highest throughput; None when even one text violates the SLO.

    A text that comes while a full step runs waits for it, and is then read in the next one. Where
    a step must hold a longer text than that allows, fewer texts at once bound it.
    """
    requested = demand.engine.max_num_seqs
    most = requested or _MAX_SEQUENCES
    if not demand.shape.encoder_only:
        most = max(1, min(most, kv_tokens // demand.resident_tokens))
    options = [
        SchedulerLimits(
            max_num_seqs=sequences,
            max_num_batched_tokens=tokens,
            tokens_per_second=_tokens_per_second(demand, step, tokens, sequences),
        )
        for tokens in demand.step_tokens
        if (sequences := _max_sequences(demand, step, tokens, min(most, tokens)))
    ]
    # The most texts count first where their number is given.
    return max(
        options,
        key=lambda limits: (limits.max_num_seqs if requested else 0, limits.tokens_per_second),
        default=None,
    )


def rate_within(demand: Demand, step: StepTime, limits: SchedulerLimits) -> float:
    """Return the input tokens per second within limits that another step time was planned for."""
    return _tokens_per_second(demand, step, limits.max_num_batched_tokens, limits.max_num_seqs)


def sustained_load(
    demand: Demand, step: StepTime, engine: SchedulerLimits, *, servers: int = 1
) -> SustainedLoad:
    """Return what an engine with these limits sustains of texts that come at random.

    Texts wait in one queue before as many `servers`, each of which reads full steps.
    """
    tokens, sequences = engine.max_num_batched_tokens, engine.max_num_seqs
    full_rate = _tokens_per_second(demand, step, tokens, sequences)
    seconds = _step_seconds(demand, step, tokens, sequences)
    slack = demand.ttft.total_seconds() - 2 * seconds

    def is_sustained(busy: float) -> bool:
        return slack > 0 and share_waiting_longer(slack, servers, busy, seconds) <= _LATE_SHARE

    low, high = 0.0, _MOST_USE
    if is_sustained(high):
        low = high
    for _ in range(_BISECTIONS if low < high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if is_sustained(middle) else (low, middle)
    busy = low or _MOST_USE
    texts = full_rate / demand.input_tokens
    return SustainedLoad(
        sequences=busy * min(sequences, texts * seconds),
        tokens_per_second=busy * full_rate,
        prompts_per_second=texts,
        meets_slo=low > 0,
    )


def least_answer_seconds(demand: Demand, step: StepTime) -> float:
    """Return the seconds until the answer of an engine that reads one text at a time."""
    return 2 * _step_seconds(demand, step, demand.max_model_len, 1)


def longest_reading(limits: SchedulerLimits, input_tokens: int) -> timedelta:
    """Return the most that a text takes which waits for a full step and is read in the next one."""
    read = min(limits.max_num_batched_tokens, limits.max_num_seqs * input_tokens)
    return 2 * timedelta(seconds=read / max(1, limits.tokens_per_second))


def texts_per_step(limits: SchedulerLimits, input_tokens: int) -> int:
    """Return the texts of this length that fill a step; others wait in the engine."""
    return max(1, min(limits.max_num_seqs, limits.max_num_batched_tokens // input_tokens))


def _max_sequences(demand: Demand, step: StepTime, tokens: int, most: int) -> int:
    """Return the most texts of a step within the SLO, at most `most`; 0 if not even one is."""
    seconds = demand.ttft.total_seconds()

    def is_late(sequences: int) -> bool:
        return 2 * _step_seconds(demand, step, tokens, sequences) > seconds

    return bisect_left(range(1, most + 1), True, key=is_late)


def _tokens_per_second(demand: Demand, step: StepTime, tokens: int, sequences: int) -> float:
    read = min(tokens, sequences * demand.input_tokens)
    return read / _step_seconds(demand, step, tokens, sequences)


def _step_seconds(demand: Demand, step: StepTime, tokens: int, sequences: int) -> float:
    """Return the seconds of a step that is full of typical texts."""
    read = min(tokens, sequences * demand.input_tokens)
    texts = read / demand.input_tokens
    seconds = step.seconds(
        decoding=0, kv_tokens=read, prefill_tokens=read, prefill_pairs=read * demand.input_tokens
    )
    return seconds + step.sequence * texts
