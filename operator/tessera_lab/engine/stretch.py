"""Many steps at once: how many equal ones fit before a moment, and how long they take."""

import math

from tessera.domain.perf import StepTime


def decode_steps(
    speed: StepTime, decoding: int, kv_tokens: int, max_steps: int, seconds: float
) -> tuple[int, float]:
    """Of the next steps that only decode: how many of `most`, and their seconds together.

    Each adds a token of every decoding request to the cache. All of them begin within `seconds`
    (above 0); each takes longer than the one before by the same, as `StepTime` promises.
    """
    first = speed.seconds(decoding=decoding, kv_tokens=kv_tokens + decoding)
    if max_steps > 1:
        max_steps = min(max_steps, int(min(seconds / first, max_steps)) + 1)
    if max_steps == 1:
        return 1, first
    last = speed.seconds(decoding=decoding, kv_tokens=kv_tokens + max_steps * decoding)
    total = max_steps * (first + last) / 2
    if total - last < seconds:
        return max_steps, total
    growth = (last - first) / (max_steps - 1)
    steps = _steps_until(first, growth, seconds)
    return steps, _total_seconds(first, growth, steps)


def _total_seconds(first: float, growth: float, steps: int) -> float:
    return steps * first + growth * steps * (steps - 1) / 2


def _steps_until(first: float, growth: float, seconds: float) -> int:
    """The smallest number of steps that together take `seconds`: the root of a square."""
    base = first - growth / 2
    steps = math.ceil(2 * seconds / (base + math.sqrt(base * base + 2 * growth * seconds)))
    while steps > 1 and _total_seconds(first, growth, steps - 1) >= seconds:
        steps -= 1
    while _total_seconds(first, growth, steps) < seconds:
        steps += 1
    return steps
