"""The least work of a trace by the slots in which it comes and is due, for the bound."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tessera_lab.fleet.attainment import AttainmentGoal
from tessera_lab.fleet.hindsight.work import TraceWork
from tessera_lab.fleet.observation import ReplicaModel
from tessera_lab.fleet.trace import Trace

# Longest time until work is due that is looked at, in slots.
SPAN_SLOTS = 32
# Slots of a trace at most; their length is the first one that is a divisor of the window.
_SLOTS = 1500
_SLOT_SECONDS = (10.0, 20.0, 30.0, 60.0, 100.0, 150.0)
# Shares of the requests by which the slopes of savings are chosen; any slopes give a bound.
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(slots=True, kw_only=True)
class Slot:
    """The requests that arrive in one slot; work is in slots of one replica."""

    work: float = 0.0
    requests: int = 0
    """Scored requests, which the following fields count."""
    due: list[float] = field(default_factory=lambda: [0.0] * SPAN_SLOTS)
    """Work of requests in time by the slots after this one in which it is due."""
    timely: float = 0.0
    """All work of requests if they are in time and never preempted."""
    late_excess: list[float] = field(default_factory=lambda: [0.0] * len(_QUANTILES))
    """Work beyond each slope, summed over requests."""
    decode: float = 0.0
    decode_excess: list[float] = field(default_factory=lambda: [0.0] * len(_QUANTILES))
    """Decode work beyond each slope times the work of the prompt, summed over requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWork:
    """A trace by slots."""

    seconds: float
    slot_seconds: float
    slots: Sequence[Slot]
    late_slopes: Sequence[float]
    """Work that a late request saves, beside the excess."""
    decode_slopes: Sequence[float]
    """Decode work that loses its deadline for each unit of work done again, beside the excess."""


def slot_work(
    trace: Trace, replica: ReplicaModel, goal: AttainmentGoal, work: TraceWork
) -> SlotWork:
    slot_seconds = _slot_seconds(trace.seconds, goal)
    slots = [Slot() for _ in range(int(trace.seconds / slot_seconds) + 1)]
    late_slopes, decode_slopes = _slopes(work, trace.output_tokens, slot_seconds)
    step_seconds = None if trace.prefixes else _longest_step(trace, replica)
    for arrival, output_tokens, prompt_seconds, decode_seconds in zip(
        trace.arrivals, trace.output_tokens, work.prompt, work.decode, strict=True
    ):
        number = int(arrival / slot_seconds)
        slot = slots[number]
        prompt, decode = prompt_seconds / slot_seconds, decode_seconds / slot_seconds
        slot.work += prompt + decode
        if goal.window_of(arrival) is None:
            continue
        slot.requests += 1
        deadline = arrival + goal.objective
        _add_due(slot, math.ceil(deadline / slot_seconds) - 1 - number, prompt)
        whole = prompt
        if step_seconds is not None and decode:
            whole += decode
            deadline += (output_tokens - 1) * step_seconds
            _add_due(slot, math.ceil(deadline / slot_seconds) - 1 - number, decode)
            slot.decode += decode
            again = _least_repeated(prompt, decode, output_tokens)
            for index, slope in enumerate(decode_slopes):
                slot.decode_excess[index] += max(0.0, decode - slope * again)
        slot.timely += whole
        for index, slope in enumerate(late_slopes):
            slot.late_excess[index] += max(0.0, whole - slope)
    return SlotWork(
        seconds=trace.seconds,
        slot_seconds=slot_seconds,
        slots=slots,
        late_slopes=late_slopes,
        decode_slopes=decode_slopes,
    )


def _add_due(slot: Slot, after: int, work: float) -> None:
    if after < len(slot.due):
        slot.due[max(0, after)] += work


def _slot_seconds(seconds: float, goal: AttainmentGoal) -> float:
    return next(
        (
            length
            for length in _SLOT_SECONDS
            if seconds <= length * _SLOTS and goal.window % length == 0
        ),
        goal.window,
    )


def _slopes(
    work: TraceWork, output_tokens: Sequence[int], slot_seconds: float
) -> tuple[list[float], list[float]]:
    whole, ratios = list[float](), list[float]()
    for prompt, decode, tokens in zip(work.prompt, work.decode, output_tokens, strict=True):
        whole.append((prompt + decode) / slot_seconds)
        if again := decode and _least_repeated(prompt, decode, tokens):
            ratios.append(decode / again)
    return _quantiles(whole), _quantiles(ratios)


def _quantiles(values: list[float]) -> list[float]:
    values.sort()
    return [values[int(share * len(values))] if values else 0.0 for share in _QUANTILES]


def _least_repeated(prompt: float, decode: float, output_tokens: int) -> float:
    """Return the work that a preemption after the first token adds to a request at least.

    The input is computed again, with which comes a token that was to be decoded.
    """
    return max(0.0, prompt - decode / (output_tokens - 1))


def _longest_step(trace: Trace, replica: ReplicaModel) -> float:
    """Return the seconds that no step of the replica exceeds."""
    lengths = map(int.__add__, trace.input_tokens, trace.output_tokens)
    longest = min(replica.max_model_len, max(lengths, default=0))
    tokens, sequences = replica.max_num_batched_tokens, replica.max_num_seqs
    return replica.step.seconds(
        decoding=sequences,
        kv_tokens=replica.kv_tokens,
        prefill_tokens=max(0, tokens - sequences),
        prefill_pairs=2 * longest * tokens,
    )
