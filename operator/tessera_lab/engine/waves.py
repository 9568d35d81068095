"""Static batching, as it was before continuous batching: a fixed batch runs until its longest ends.

Kept for comparison: `Waves(1, …)` serves one request at a time (`serial`), `Waves(n, …)` is
`static(n)`. Prompts are padded to the longest of their wave, a slot whose answer is complete idles,
and all answers leave together. The KV cache is taken to hold `n` requests.
"""

import math
from collections import deque

from tessera.domain.perf import StepTime
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.stretch import decode_steps
from tessera_lab.engine.timeline import ServedRequest


class StaticBatchEngine:
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
        self._waiting: deque[tuple[float, EngineRequest]] = deque()

    def submit(self, request: EngineRequest, at: float | None = None) -> None:
        """A request arrives; having gone on to its moment, which may lie within the newest wave."""
        moment = self.now if at is None else at
        if moment > self.now:
            raise ValueError(f"the moment {moment} is still to come")
        self._waiting.append((moment, request))

    def advance(self, until: float) -> list[ServedRequest]:
        """Do all waves that begin before `until`: who left meanwhile."""
        served: list[ServedRequest] = []
        while self.now < until and self._waiting:
            size = min(self._size, len(self._waiting))
            served += self._run_batch([self._waiting.popleft() for _ in range(size)])
        if self.now < until < math.inf:
            self.now = until
        return served

    def _run_batch(self, batch: list[tuple[float, EngineRequest]]) -> list[ServedRequest]:
        started_at, size = self.now, len(batch)
        prompt = max(request.prompt_tokens for _, request in batch)
        steps = max(request.output_tokens for _, request in batch)
        prefill = size * prompt
        first = started_at + self._speed.seconds(
            decoding=0,
            kv_tokens=prefill,
            prefill_tokens=prefill,
            prefill_pairs=prefill * prompt,
        )
        self.now = first + self._decode(size, prefill, steps - 1)
        self.busy_seconds += self.now - started_at
        self.slot_steps += size * steps
        self.idle_slot_steps += sum(steps - request.output_tokens for _, request in batch)
        self.padded_tokens += sum(prompt - request.prompt_tokens for _, request in batch)
        return [
            ServedRequest(
                request=request,
                reason=request.finish_reason,
                output_tokens=request.output_tokens,
                preemptions=0,
                cached_tokens=0,
                arrived_at=arrived,
                admitted_at=started_at,
                first_token_at=first,
                ended_at=self.now,
            )
            for arrived, request in batch
        ]

    def _decode(self, size: int, kv_tokens: int, steps: int) -> float:
        seconds = 0.0
        while steps:
            step_count, elapsed = decode_steps(self._speed, size, kv_tokens, steps, math.inf)
            seconds += elapsed
            kv_tokens += step_count * size
            steps -= step_count
        return seconds
