"""What a replica can hold at its promise, without running it: closed forms at a steady rate.

Requests arrive independently. At a rate, the requests that decode and the time of a step follow
from each other; prompts are a queue with one server, which fills up the steps; seats and the cache
have to suffice for all but one moment in twenty. `tests/domain/test_perf_capacity.py` holds the
answers against the engine's state machine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tessera.domain.perf.step import StepTime

Bound = Literal["seats", "cache", "firstToken", "interToken", "work"]

_TAIL = 0.05
"""The promise is of the 95th percentile."""
_DEVIATIONS = 1.645
"""The 95th percentile of a normal distribution, in standard deviations."""
_EXACT = 0.002
_ROUNDS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Requests of one kind."""

    input_tokens: int
    output_tokens: int
    weight: float = 1.0
    """How often, relative to the other kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """95th percentiles, in seconds."""

    first_token: float
    inter_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The limits of the engine."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The most that keeps the promise."""

    requests_per_second: float
    output_tokens_per_second: float
    bound: Bound
    """What more would break first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mix:
    """What counts of all the lengths."""

    prompt: float
    """Mean tokens."""
    pairs: float
    """Mean square."""
    answer: float
    resident: float
    """Tokens in the cache for a request at a random moment of its decoding."""
    long_prompt: int
    """The 95th percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steady:
    """An engine at a steady rate."""

    decoding: float
    step: float
    prompt_tokens: float
    """In a mean step."""


def capacity_at_slo(
    step: StepTime, room: Room, lengths: Sequence[Length], promise: Promise
) -> Capacity:
    """The highest rate at which the promise holds; 0 where even a lone request breaks it."""
    mix = _mix(lengths)
    low, high = 0.0, 1.0
    while (bound := _broken(step, room, mix, promise, high)) is None:
        low, high = high, 2 * high
    while high - low > _EXACT * high and high > _EXACT / mix.answer:
        middle = (low + high) / 2
        found = _broken(step, room, mix, promise, middle)
        if found is None:
            low = middle
        else:
            high, bound = middle, found
    return Capacity(requests_per_second=low, output_tokens_per_second=low * mix.answer, bound=bound)


def _broken(step: StepTime, room: Room, mix: _Mix, promise: Promise, rate: float) -> Bound | None:
    """What a rate breaks; None when the promise holds."""
    steady = _steady(step, room, mix, rate)
    if steady is None:
        return "work"
    most = steady.decoding + _DEVIATIONS * math.sqrt(steady.decoding)
    if most > room.max_num_seqs:
        return "seats"
    if most * mix.resident > room.kv_tokens:
        return "cache"
    space = room.max_num_batched_tokens - math.ceil(steady.decoding)
    chunk = min(space, math.ceil(mix.long_prompt + steady.prompt_tokens))
    full = _step(step, mix, steady.decoding, chunk)
    steps_of_prompt = max(1.0, mix.prompt / space)
    often = rate * steady.step * steps_of_prompt
    if (full if often > _TAIL else steady.step) > promise.inter_token:
        return "interToken"
    if _first_token(step, mix, steady, space, rate) > promise.first_token:
        return "firstToken"
    return None


def _steady(step: StepTime, room: Room, mix: _Mix, rate: float) -> _Steady | None:
    """The fixed point of step time and requests that decode; None when work piles up."""
    seconds = _step(step, mix, 1, 0)
    for _ in range(_ROUNDS):
        decoding = rate * mix.answer * seconds
        prompts = rate * mix.prompt * seconds
        if decoding + prompts > room.max_num_batched_tokens:
            return None
        longer = _step(step, mix, decoding, prompts)
        if longer <= seconds * (1 + 1e-6):
            return _Steady(decoding=decoding, step=longer, prompt_tokens=prompts)
        seconds = longer
    return None


def _first_token(step: StepTime, mix: _Mix, steady: _Steady, space: int, rate: float) -> float:
    """The 95th percentile: the step under way, the prompts before it, a long prompt itself.

    Prompts wait as for a single server whose queue's tail falls exponentially.
    """
    full = _step(step, mix, steady.decoding, space)
    per_token = full / space
    busy = rate * mix.prompt * per_token
    if busy >= 1:
        return math.inf
    residual = mix.pairs * per_token / (2 * mix.prompt)
    waiting = residual / (1 - busy) * max(0.0, math.log(busy / _TAIL))
    last = _step(step, mix, steady.decoding, min(space, mix.long_prompt))
    own = last if mix.long_prompt <= space else mix.long_prompt * per_token
    return steady.step + waiting + own


def _step(step: StepTime, mix: _Mix, decoding: float, prompts: float) -> float:
    """Seconds of a step; a prompt's token attends to as many as in a usual prompt."""
    return step.seconds(
        decoding=math.ceil(decoding),
        kv_tokens=math.ceil(decoding * mix.resident),
        prefill_tokens=math.ceil(prompts),
        prefill_pairs=math.ceil(prompts * mix.pairs / mix.prompt),
    )


def _mix(lengths: Sequence[Length]) -> _Mix:
    total = sum(one.weight for one in lengths)
    if total <= 0:
        raise ValueError("lengths without weight are no mix")

    def mean(values: Sequence[float]) -> float:
        weighed = zip(values, lengths, strict=True)
        return sum(value * one.weight for value, one in weighed) / total

    answer = mean([one.output_tokens for one in lengths])
    spent = mean(
        [one.output_tokens * (one.input_tokens + one.output_tokens / 2) for one in lengths]
    )
    return _Mix(
        prompt=mean([one.input_tokens for one in lengths]),
        pairs=mean([one.input_tokens**2 for one in lengths]),
        answer=answer,
        resident=spent / answer,
        long_prompt=_percentile(lengths, total),
    )


def _percentile(lengths: Sequence[Length], total: float) -> int:
    """The prompt that all but one in twenty do not exceed (nearest rank)."""
    left = (1 - _TAIL) * total
    ordered = sorted(lengths, key=lambda one: one.input_tokens)
    for one in ordered:
        left -= one.weight
        if left <= 1e-12 * total:
            return one.input_tokens
    return ordered[-1].input_tokens
