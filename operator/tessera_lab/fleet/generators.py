"""Traces of typical and of hard situations, drawn by a seed."""

import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping

from tessera_lab.fleet.trace import Trace
from tessera_lab.load.lengths import LengthDistribution, log_normal
from tessera_lab.load.trace_rows import TRACE_BLOCK_TOKENS

# Requests per second at a time in seconds since the start.
Rate = Callable[[float], float]

PROMPTS = log_normal(700.0, 2400.0)
OUTPUTS = log_normal(150.0, 500.0)
HEAVY_PROMPTS = log_normal(400.0, 12_000.0)
LONGEST_PROMPT, LONGEST_OUTPUT = 7000, 1000
DAY = 86400.0
# The rate is constant within a step, seconds.
_STEP = 1.0
# Tokens of the system prompt that all sessions share.
_SYSTEM_PROMPT = 2 * TRACE_BLOCK_TOKENS
_TURNS, _THINK_SECONDS = 4.0, 30.0
_SILENCE_SECONDS = 180.0

# Arrival, prompt tokens, output tokens, and names of the prompt's prefixes.
_Request = tuple[float, int, int, tuple[int, ...]]


def arrival_times(
    rate: Rate, seconds: float, rng: random.Random, cv: float = 1.0
) -> Iterator[float]:
    """Yield arrivals whose gaps, in units of their mean, follow a gamma distribution.

    `cv` is their coefficient of variation: 1 gives a Poisson process, more gives bursts.
    """
    shape = cv**-2
    # Arrivals that the rate has to make up for until the next one.
    due = rng.gammavariate(shape, 1 / shape)
    for step in range(math.ceil(seconds / _STEP)):
        begin = step * _STEP
        length = min(_STEP, seconds - begin)
        expected = rate(begin + length / 2) * length
        passed = 0.0
        while passed + due <= expected:
            passed += due
            yield begin + length * passed / expected
            due = rng.gammavariate(shape, 1 / shape)
        due -= expected - passed


def requests_at_rate(
    name: str,
    rate: Rate,
    seconds: float,
    seed: int,
    *,
    prompts: LengthDistribution = PROMPTS,
    cv: float = 1.0,
) -> Trace:
    """Return a trace of independent requests that arrive at a changing rate."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    times = arrival_times(rate, seconds, rng, cv)
    return _trace(name, seconds, _drawn_requests(times, rng, prompts, OUTPUTS))


def daily_wave(mean: float, swing: float = 0.7, period: float = DAY) -> Rate:
    """Return a rate that is lowest at the start and highest half a period later.

    A `swing` above 1 makes the time around the lowest point silent.
    """
    return lambda second: max(0.0, mean * (1 - swing * math.cos(2 * math.pi * second / period)))


def steady(rate: float, seconds: float, seed: int) -> Trace:
    """Return a constant rate."""
    return requests_at_rate("steady", lambda _: rate, seconds, seed)


def ramp(rate: float, seconds: float, seed: int) -> Trace:
    """Return a rate that rises evenly from a quarter to twice of `rate`."""
    return requests_at_rate(
        "ramp", lambda second: rate * (0.25 + 1.75 * second / seconds), seconds, seed
    )


def step(rate: float, seconds: float, seed: int) -> Trace:
    """Return half of `rate`, and after a third of the time twice of it."""
    return requests_at_rate(
        "step", lambda second: rate * (0.5 if second < seconds / 3 else 2.0), seconds, seed
    )


def spike(rate: float, seconds: float, seed: int) -> Trace:
    """Return a constant rate with ten times of it for 10 s in the middle."""
    return requests_at_rate(
        "spike",
        lambda second: rate * (10.0 if 0 <= second - seconds / 2 < 10 else 1.0),
        seconds,
        seed,
    )


def wave(rate: float, seconds: float, seed: int) -> Trace:
    """Return a day, shortened to the length of the trace."""
    return requests_at_rate("wave", daily_wave(rate, period=seconds), seconds, seed)


def silent_night(rate: float, seconds: float, seed: int) -> Trace:
    """Return a day, shortened to the length of the trace, of which a quarter has no request."""
    return requests_at_rate("silent-night", daily_wave(rate, 1.4, seconds), seconds, seed)


def heavy_tail(rate: float, seconds: float, seed: int) -> Trace:
    """Return a constant rate of prompts of which a few have most of the tokens."""
    return requests_at_rate("heavy-tail", lambda _: rate, seconds, seed, prompts=HEAVY_PROMPTS)


def code(rate: float, seconds: float, seed: int) -> Trace:
    """Return silent minutes, after which tens of requests come within two seconds."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    per_burst = rate * _SILENCE_SECONDS
    times = sorted(
        begin + 2 * rng.random()
        for begin in arrival_times(lambda _: 1 / _SILENCE_SECONDS, seconds - 2, rng)
        for _ in range(max(1, round(rng.uniform(0.3, 1.7) * per_burst)))
    )
    prompts, outputs = log_normal(1500.0, 6500.0), log_normal(13.0, 90.0)
    return _trace("code", seconds, _drawn_requests(times, rng, prompts, outputs))


def sessions(rate: float, seconds: float, seed: int) -> Trace:
    """Return conversations whose prompts are a shared system prompt and all turns before."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    requests: list[_Request] = []
    # Names of blocks: those of the system prompt are 0 and 1.
    unused_name = _SYSTEM_PROMPT // TRACE_BLOCK_TOKENS
    messages = log_normal(120.0, 500.0)
    for begin in arrival_times(lambda _: rate / _TURNS, seconds, rng):
        arrival, prompt = begin, _SYSTEM_PROMPT
        names = list(range(_SYSTEM_PROMPT // TRACE_BLOCK_TOKENS))
        while arrival < seconds:
            prompt += messages.draw(rng)
            if prompt > LONGEST_PROMPT:
                break
            missing = prompt // TRACE_BLOCK_TOKENS - len(names)
            names.extend(range(unused_name, unused_name + missing))
            unused_name += missing
            output = min(OUTPUTS.draw(rng), LONGEST_OUTPUT)
            requests.append((arrival, prompt, output, tuple(names)))
            prompt += output
            arrival += rng.expovariate(1 / _THINK_SECONDS)
            if rng.random() < 1 / _TURNS:
                break
    return _trace("sessions", seconds, sorted(requests))


# Each by its usual requests per second, its length in seconds and a seed.
SITUATIONS: Mapping[str, Callable[[float, float, int], Trace]] = {
    "steady": steady,
    "ramp": ramp,
    "step": step,
    "spike": spike,
    "wave": wave,
    "silent-night": silent_night,
    "heavy-tail": heavy_tail,
    "code": code,
    "sessions": sessions,
}


def _drawn_requests(
    times: Iterable[float],
    rng: random.Random,
    prompts: LengthDistribution,
    outputs: LengthDistribution,
) -> Iterator[_Request]:
    for arrival in times:
        prompt = min(prompts.draw(rng), LONGEST_PROMPT)
        yield arrival, prompt, min(outputs.draw(rng), LONGEST_OUTPUT), ()


def _trace(name: str, seconds: float, requests: Iterable[_Request]) -> Trace:
    rows = list(requests)
    prefixes = tuple(names for _, _, _, names in rows)
    return Trace(
        name=name,
        seconds=seconds,
        arrivals=array("d", (arrival for arrival, _, _, _ in rows)),
        input_tokens=array("i", (prompt for _, prompt, _, _ in rows)),
        output_tokens=array("i", (output for _, _, output, _ in rows)),
        prefixes=prefixes if any(prefixes) else None,
    )
