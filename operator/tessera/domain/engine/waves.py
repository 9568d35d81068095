"""Static batching, as it was before continuous batching: a fixed batch runs until its longest ends.

Kept for comparison: `Waves(1, …)` serves one request at a time (`serial`), `Waves(n, …)` is
`static(n)`. Prompts are padded to the longest of their wave, a slot whose answer is complete idles,
and all answers leave together. The KV cache is taken to hold `n` requests.
"""

import math
from collections import deque

from tessera.domain.engine.stretch import stretch
from tessera.domain.engine.timeline import Served
from tessera.domain.engine_requests import Request
from tessera.domain.perf import StepTime


class Waves:
    """Batches of at most `size` requests, one after the other, in the order of arrival."""

    def __init__(self, size: int, speed: StepTime, now: float = 0.0) -> None:
        self.now = now
        """The end of the newest wave, or the moment up to which nothing was to do."""
        self.busy_seconds = 0.0
        self.slot_steps = 0
        """Steps of all slots of all waves; empty slots of a wave do not count."""
        self.idle_slot_steps = 0
        """Of these, spent waiting for a longer answer."""
        self.padded_tokens = 0
        """Prompt tokens computed for nothing."""
        self._size = size
        self._speed = speed
        self._waiting: deque[tuple[float, Request]] = deque()

    def submit(self, request: Request, at: float | None = None) -> None:
        """A request arrives; having gone on to its moment, which may lie within the newest wave."""
        moment = self.now if at is None else at
        if moment > self.now:
            raise ValueError(f"the moment {moment} is still to come")
        self._waiting.append((moment, request))

    def advance(self, until: float) -> list[Served]:
        """Do all waves that begin before `until`: who left meanwhile."""
        served: list[Served] = []
        while self.now < until and self._waiting:
            size = min(self._size, len(self._waiting))
            served += self._wave([self._waiting.popleft() for _ in range(size)])
        if self.now < until < math.inf:
            self.now = until
        return served

    def _wave(self, wave: list[tuple[float, Request]]) -> list[Served]:
        began, size = self.now, len(wave)
        prompt = max(request.prompt_tokens for _, request in wave)
        steps = max(request.output_tokens for _, request in wave)
        prefill = size * prompt
        first = began + self._speed.seconds(
            decoding=0,
            kv_tokens=prefill,
            prefill_tokens=prefill,
            prefill_pairs=prefill * prompt,
        )
        self.now = first + self._decode(size, prefill, steps - 1)
        self.busy_seconds += self.now - began
        self.slot_steps += size * steps
        self.idle_slot_steps += sum(steps - request.output_tokens for _, request in wave)
        self.padded_tokens += sum(prompt - request.prompt_tokens for _, request in wave)
        return [
            Served(
                request=request,
                reason=request.ends,
                output_tokens=request.output_tokens,
                preemptions=0,
                cached_tokens=0,
                arrived=arrived,
                admitted=began,
                first=first,
                ended=self.now,
            )
            for arrived, request in wave
        ]

    def _decode(self, size: int, kv_tokens: int, steps: int) -> float:
        seconds = 0.0
        while steps:
            done, took = stretch(self._speed, size, kv_tokens, steps, math.inf)
            seconds += took
            kv_tokens += done * size
            steps -= done
        return seconds
