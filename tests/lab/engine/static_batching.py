"""Static batching, as before continuous batching: a fixed batch runs until its longest output ends.

`StaticBatchEngine(1, speed)` serves one request at a time. Prompts are padded to the longest of
their batch, a slot whose output is complete idles, and all requests of a batch leave together. The
KV cache is assumed to hold a whole batch.
"""

import math
from collections import deque

from tessera.domain.perf import StepTime
from tessera_lab.engine.decode_batch import decode_steps
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.timeline import ServedRequest


class StaticBatchEngine:
    """Runs batches of at most `size` requests, one after the other, in the order of arrival."""

    def __init__(self, size: int, speed: StepTime, now: float = 0.0) -> None:
        self.now = now
        """End of the newest batch, or the moment up to which the engine was idle."""
        self.busy_seconds = 0.0
        self.slot_steps = 0
        """Steps of all slots of all batches; empty slots of a batch do not count."""
        self.idle_slot_steps = 0
        """Slot steps that were spent waiting for a longer output."""
        self.padded_tokens = 0
        """Prompt tokens that were computed as padding."""
        self._size = size
        self._speed = speed
        self._waiting: deque[tuple[float, EngineRequest]] = deque()

    def submit(self, request: EngineRequest, at: float | None = None) -> None:
        """Submit a request at a moment that was reached; it may lie within the newest batch."""
        moment = self.now if at is None else at
        if moment > self.now:
            raise ValueError(f"the moment {moment} is still to come")
        self._waiting.append((moment, request))

    def advance(self, until: float) -> list[ServedRequest]:
        """Run all batches that begin before `until`; return the requests that left."""
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
        first_token_at = started_at + self._speed.seconds(
            decoding=0,
            kv_tokens=prefill,
            prefill_tokens=prefill,
            prefill_pairs=prefill * prompt,
        )
        self.now = first_token_at + self._decode(size, prefill, steps - 1)
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
                arrived_at=arrived_at,
                admitted_at=started_at,
                first_token_at=first_token_at,
                ended_at=self.now,
            )
            for arrived_at, request in batch
        ]

    def _decode(self, size: int, kv_tokens: int, steps: int) -> float:
        seconds = 0.0
        while steps:
            step_count, elapsed = decode_steps(self._speed, size, kv_tokens, steps, math.inf)
            seconds += elapsed
            kv_tokens += step_count * size
            steps -= step_count
        return seconds
