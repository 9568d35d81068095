"""The capacity of a replica within its SLO, in closed form at a steady rate.

Requests arrive independently. At a rate, the number of decoding requests and the time of a step
follow from each other; prompts are a queue with one server, which fills the steps; max_num_seqs and
KV cache must suffice 95 % of the time. `tests/domain/perf/test_capacity.py` compares the results
with the engine machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tessera.domain.perf.step import StepTime

LimitingFactor = Literal["max_num_seqs", "kv_cache", "ttft", "itl", "throughput"]

# The SLO is of the 95th percentile.
_TAIL = 0.05
# The 95th percentile of a normal distribution, in standard deviations.
_Z_SCORE_95 = 1.645
_TOLERANCE = 0.002
_MAX_ITERATIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLength:
    """Requests of one kind."""

    input_tokens: int
    output_tokens: int
    weight: float = 1.0
    """How often, relative to the other kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySlo:
    """95th percentiles, in seconds."""

    first_token: float
    inter_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLimits:
    """The limits of the engine."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SloCapacity:
    """The highest load within the SLO."""

    requests_per_second: float
    output_tokens_per_second: float
    limiting_factor: LimitingFactor
    """What a higher load violates first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _RequestMix:
    """Moments of the request lengths."""

    prompt_tokens: float
    """Mean prompt tokens."""
    pairs: float
    """Mean square of the prompt tokens."""
    output_tokens: float
    resident: float
    """Mean KV cache tokens of a decoding request."""
    long_prompt: int
    """95th percentile of the prompt tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _SteadyState:
    """The state of an engine at a steady rate."""

    decoding: float
    step_seconds: float
    prompt_tokens: float
    """Prompt tokens in a mean step."""


def capacity_at_slo(
    step: StepTime, limits: ReplicaLimits, lengths: Sequence[RequestLength], slo: LatencySlo
) -> SloCapacity:
    """Return the highest rate within the SLO; 0 if a single request violates it."""
    mix = _request_mix(lengths)
    low, high = 0.0, 1.0
    while (factor := _first_violation(step, limits, mix, slo, high)) is None:
        low, high = high, 2 * high
    while high - low > _TOLERANCE * high and high > _TOLERANCE / mix.output_tokens:
        middle = (low + high) / 2
        violation = _first_violation(step, limits, mix, slo, middle)
        if violation is None:
            low = middle
        else:
            high, factor = middle, violation
    return SloCapacity(
        requests_per_second=low,
        output_tokens_per_second=low * mix.output_tokens,
        limiting_factor=factor,
    )


def _first_violation(
    step: StepTime, limits: ReplicaLimits, mix: _RequestMix, slo: LatencySlo, rate: float
) -> LimitingFactor | None:
    """Return what a rate violates; None within the SLO."""
    steady = _steady_state(step, limits, mix, rate)
    if steady is None:
        return "throughput"
    max_sequences = steady.decoding + _Z_SCORE_95 * math.sqrt(steady.decoding)
    if max_sequences > limits.max_num_seqs:
        return "max_num_seqs"
    if max_sequences * mix.resident > limits.kv_tokens:
        return "kv_cache"
    prefill_space = limits.max_num_batched_tokens - math.ceil(steady.decoding)
    chunk = min(prefill_space, math.ceil(mix.long_prompt + steady.prompt_tokens))
    full_seconds = _step_time(step, mix, steady.decoding, chunk)
    steps_of_prompt = max(1.0, mix.prompt_tokens / prefill_space)
    full_step_share = rate * steady.step_seconds * steps_of_prompt
    if (full_seconds if full_step_share > _TAIL else steady.step_seconds) > slo.inter_token:
        return "itl"
    if _ttft_p95(step, mix, steady, prefill_space, rate) > slo.first_token:
        return "ttft"
    return None


def _steady_state(
    step: StepTime, limits: ReplicaLimits, mix: _RequestMix, rate: float
) -> _SteadyState | None:
    """Return the fixed point of step time and decoding requests; None under overload."""
    seconds = _step_time(step, mix, 1, 0)
    for _ in range(_MAX_ITERATIONS):
        decoding = rate * mix.output_tokens * seconds
        prompt_tokens = rate * mix.prompt_tokens * seconds
        if decoding + prompt_tokens > limits.max_num_batched_tokens:
            return None
        step_seconds = _step_time(step, mix, decoding, prompt_tokens)
        if step_seconds <= seconds * (1 + 1e-6):
            return _SteadyState(
                decoding=decoding, step_seconds=step_seconds, prompt_tokens=prompt_tokens
            )
        seconds = step_seconds
    return None


def _ttft_p95(
    step: StepTime, mix: _RequestMix, steady: _SteadyState, prefill_space: int, rate: float
) -> float:
    """Return P95 of TTFT: the current step, earlier prompts, and a long prompt itself."""
    # Prompts wait as in a queue with one server, whose tail falls exponentially.
    full_seconds = _step_time(step, mix, steady.decoding, prefill_space)
    per_token = full_seconds / prefill_space
    utilization = rate * mix.prompt_tokens * per_token
    if utilization >= 1:
        return math.inf
    residual = mix.pairs * per_token / (2 * mix.prompt_tokens)
    waiting = residual / (1 - utilization) * max(0.0, math.log(utilization / _TAIL))
    last = _step_time(step, mix, steady.decoding, min(prefill_space, mix.long_prompt))
    own = last if mix.long_prompt <= prefill_space else mix.long_prompt * per_token
    return steady.step_seconds + waiting + own


def _step_time(step: StepTime, mix: _RequestMix, decoding: float, prompt_tokens: float) -> float:
    """Return the seconds of a step, with the attention of a mean prompt."""
    return step.seconds(
        decoding=math.ceil(decoding),
        kv_tokens=math.ceil(decoding * mix.resident),
        prefill_tokens=math.ceil(prompt_tokens),
        prefill_pairs=math.ceil(prompt_tokens * mix.pairs / mix.prompt_tokens),
    )


def _request_mix(lengths: Sequence[RequestLength]) -> _RequestMix:
    total = sum(length.weight for length in lengths)
    if total <= 0:
        raise ValueError("the weights of all lengths are 0")

    def mean(values: Sequence[float]) -> float:
        pairs = zip(values, lengths, strict=True)
        return sum(value * length.weight for value, length in pairs) / total

    output_tokens = mean([length.output_tokens for length in lengths])
    token_steps = mean(
        [
            length.output_tokens * (length.input_tokens + length.output_tokens / 2)
            for length in lengths
        ]
    )
    return _RequestMix(
        prompt_tokens=mean([length.input_tokens for length in lengths]),
        pairs=mean([length.input_tokens**2 for length in lengths]),
        output_tokens=output_tokens,
        resident=token_steps / output_tokens,
        long_prompt=_percentile(lengths, total),
    )


def _percentile(lengths: Sequence[RequestLength], total: float) -> int:
    """Return the length that 95 % of the prompts do not exceed (nearest rank)."""
    left = (1 - _TAIL) * total
    ordered = sorted(lengths, key=lambda length: length.input_tokens)
    for request_length in ordered:
        left -= request_length.weight
        if left <= 1e-12 * total:
            return request_length.input_tokens
    return ordered[-1].input_tokens
