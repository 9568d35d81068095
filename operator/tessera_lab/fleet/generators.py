"""Traces of typical and of hard situations, drawn by a seed."""

import math
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping

from tessera_lab.fleet.trace import Trace
from tessera_lab.load.lengths import LengthDistribution, log_normal

# Requests per second at a time in seconds since the start.
Rate = Callable[[float], float]

PROMPTS = log_normal(700.0, 2400.0)
OUTPUTS = log_normal(150.0, 500.0)
HEAVY_PROMPTS = log_normal(400.0, 12_000.0)
LONGEST_PROMPT, LONGEST_OUTPUT = 7000, 1000
DAY = 86400.0
# The rate is constant within a step, seconds.
_STEP = 1.0
_SILENCE_SECONDS = 180.0

# Arrival, prompt tokens and output tokens.
_Request = tuple[float, int, int]


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


# Requests per second at a moment, by the usual rate and the seconds of the trace.
_RATES: Mapping[str, Callable[[float, float, float], float]] = {
    "steady": lambda rate, _, __: rate,
    # From a quarter to twice of the rate.
    "ramp": lambda rate, seconds, at: rate * (0.25 + 1.75 * at / seconds),
    "step": lambda rate, seconds, at: rate * (0.5 if at < seconds / 3 else 2.0),
    # For 10 s in the middle.
    "spike": lambda rate, seconds, at: rate * (10.0 if 0 <= at - seconds / 2 < 10 else 1.0),
    # Days, shortened to the length of the trace; a quarter of the second one has no request.
    "wave": lambda rate, seconds, at: daily_wave(rate, period=seconds)(at),
    "silent-night": lambda rate, seconds, at: daily_wave(rate, 1.4, seconds)(at),
    # Of prompts of which a few have most of the tokens.
    "heavy-tail": lambda rate, _, __: rate,
}
_CODE = "code"
SITUATIONS = (*_RATES, _CODE)


def situation(name: str, rate: float, seconds: float, seed: int) -> Trace:
    """Return one of the situations by its usual requests per second."""
    if name == _CODE:
        return _code(rate, seconds, seed)
    prompts = HEAVY_PROMPTS if name == "heavy-tail" else PROMPTS
    course = _RATES[name]
    return requests_at_rate(
        name, lambda at: course(rate, seconds, at), seconds, seed, prompts=prompts
    )


def _code(rate: float, seconds: float, seed: int) -> Trace:
    """Return silent minutes, after which tens of requests come within two seconds."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    per_burst = rate * _SILENCE_SECONDS
    times = sorted(
        begin + 2 * rng.random()
        for begin in arrival_times(lambda _: 1 / _SILENCE_SECONDS, seconds - 2, rng)
        for _ in range(max(1, round(rng.uniform(0.3, 1.7) * per_burst)))
    )
    prompts, outputs = log_normal(1500.0, 6500.0), log_normal(13.0, 90.0)
    return _trace(_CODE, seconds, _drawn_requests(times, rng, prompts, outputs))


def _drawn_requests(
    times: Iterable[float],
    rng: random.Random,
    prompts: LengthDistribution,
    outputs: LengthDistribution,
) -> Iterator[_Request]:
    for arrival in times:
        prompt = min(prompts.draw(rng), LONGEST_PROMPT)
        yield arrival, prompt, min(outputs.draw(rng), LONGEST_OUTPUT)


def _trace(name: str, seconds: float, requests: Iterable[_Request]) -> Trace:
    rows = list(requests)
    return Trace(
        name=name,
        seconds=seconds,
        arrivals=array("d", (arrival for arrival, _, _ in rows)),
        input_tokens=array("i", (prompt for _, prompt, _ in rows)),
        output_tokens=array("i", (output for _, _, output in rows)),
    )
