"""Many steps at once: how many equal ones fit before a moment, and how long they take."""

import math

from tessera.domain.perf import StepTime


def stretch(
    speed: StepTime, decoding: int, kv_tokens: int, most: int, seconds: float
) -> tuple[int, float]:
    """Of the next steps that only decode: how many of `most`, and their seconds together.

    Each adds a token of every decoding request to the cache. All of them begin within `seconds`
    (above 0); each takes longer than the one before by the same, as `StepTime` promises.
    """
    first = speed.seconds(decoding=decoding, kv_tokens=kv_tokens + decoding)
    if most > 1:
        most = min(most, int(min(seconds / first, most)) + 1)
    if most == 1:
        return 1, first
    last = speed.seconds(decoding=decoding, kv_tokens=kv_tokens + most * decoding)
    total = most * (first + last) / 2
    if total - last < seconds:
        return most, total
    growth = (last - first) / (most - 1)
    steps = _steps_until(first, growth, seconds)
    return steps, _sum(first, growth, steps)


def _sum(first: float, growth: float, steps: int) -> float:
    return steps * first + growth * steps * (steps - 1) / 2


def _steps_until(first: float, growth: float, seconds: float) -> int:
    """The smallest number of steps that together take `seconds`: the root of a square."""
    base = first - growth / 2
    steps = math.ceil(2 * seconds / (base + math.sqrt(base * base + 2 * growth * seconds)))
    while steps > 1 and _sum(first, growth, steps - 1) >= seconds:
        steps -= 1
    while _sum(first, growth, steps) < seconds:
        steps += 1
    return steps
