"""Static batching, as before continuous batching: a fixed batch runs until its longest output ends.

`StaticBatchEngine(1, speed)` serves one request at a time. Prompts are padded to the longest of
their batch, a slot whose output is complete idles, and all requests of a batch leave together.
"""

import math
from collections import deque
from itertools import islice

from tessera.domain.perf.step import StepTime
from tessera_lab.engine.decode_batch import decode_steps
from tessera_lab.engine.requests import EngineRequest, RejectionReason
from tessera_lab.engine.timeline import ServedRequest
from tessera_lab.engine.waste import cached_token_steps


class StaticBatchEngine:
    """Runs batches of at most `size` requests, one after the other, in the order of arrival.

    A batch begins when the one before ends, with those that wait then. It takes no more than its KV
    cache holds at its end, as if the outputs were known: this favors static batching.
    """

    def __init__(
        self,
        size: int,
        speed: StepTime,
        *,
        max_model_len: float = math.inf,
        kv_tokens: float = math.inf,
        slot_tokens: int | None = None,
        recompute: bool = False,
    ) -> None:
        """Start empty.

        A slot reserves `slot_tokens` of the KV cache, else it grows with its batch; with
        `recompute` there is no KV cache.
        """
        self.now = 0.0
        """End of the newest batch, or the moment up to which the engine was idle."""
        self.busy_seconds = 0.0
        self.steps = 0
        self.slot_steps = 0
        """Steps of all slots of all batches; empty slots of a batch do not count."""
        self.idle_slot_steps = 0
        """Slot steps that were spent waiting for a longer output."""
        self.padded_tokens = 0
        """Prompt tokens that were computed as padding."""
        self.cached_token_steps = 0
        """Cached tokens of unfinished requests, summed over the steps."""
        self.reserved_token_steps = 0
        """Tokens that the KV cache reserved, summed over the steps."""
        self._size = size
        self._speed = speed
        self._max_model_len = max_model_len
        self._kv_tokens = kv_tokens
        self._slot_tokens = slot_tokens
        self._recompute = recompute
        self._waiting: deque[tuple[float, EngineRequest]] = deque()

    def submit(self, request: EngineRequest, at: float | None = None) -> RejectionReason | None:
        """Submit a request at a moment that was reached; it may lie within the newest batch."""
        moment = self.now if at is None else at
        if moment > self.now:
            raise ValueError(f"the moment {moment} is still to come")
        if request.prompt_tokens + request.output_tokens > self._max_model_len:
            return RejectionReason.TOO_LONG
        self._waiting.append((moment, request))
        return None

    def advance(self, until: float) -> list[ServedRequest]:
        """Run all batches that begin before `until`; return the requests that left."""
        served: list[ServedRequest] = []
        while self.now < until and self._waiting:
            served += self._run_batch([self._waiting.popleft() for _ in range(self._batch_size())])
        if self.now < until < math.inf:
            self.now = until
        return served

    def _batch_size(self) -> int:
        """Return how many of the waiting requests form the next batch."""
        prompt = output = count = 0
        for _, request in islice(self._waiting, self._size):
            prompt = max(prompt, request.prompt_tokens)
            output = max(output, request.output_tokens)
            slot = self._slot_tokens or prompt + output
            if count and (count + 1) * slot > self._kv_tokens:
                break
            count += 1
        return count

    def _run_batch(self, batch: list[tuple[float, EngineRequest]]) -> list[ServedRequest]:
        started_at, size = self.now, len(batch)
        prompt = max(request.prompt_tokens for _, request in batch)
        prefill = size * prompt
        first_token_at = started_at + self._speed.seconds(
            decoding=0,
            kv_tokens=prefill,
            prefill_tokens=prefill,
            prefill_pairs=prefill * prompt,
        )
        last_token_at: dict[int, float] = {}
        moment, steps = first_token_at, 1
        for output in sorted({request.output_tokens for _, request in batch}):
            moment += self._decode(size, prompt + steps - 1, output - steps)
            last_token_at[output], steps = moment, output
        self.now = moment
        self._count([request for _, request in batch], prompt, steps, moment - started_at)
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
                last_token_at=last_token_at[request.output_tokens],
                ended_at=moment,
            )
            for arrived_at, request in batch
        ]

    def _count(self, batch: list[EngineRequest], prompt: int, steps: int, seconds: float) -> None:
        size = len(batch)
        self.busy_seconds += seconds
        self.steps += steps
        self.slot_steps += size * steps
        self.idle_slot_steps += sum(steps - request.output_tokens for request in batch)
        self.padded_tokens += sum(prompt - request.prompt_tokens for request in batch)
        self.cached_token_steps += sum(
            cached_token_steps(request.prompt_tokens, request.output_tokens) for request in batch
        )
        # Slots that grow do so together, by the longest prompt and the longest output.
        slot = self._slot_tokens
        self.reserved_token_steps += size * (
            cached_token_steps(prompt, steps) if slot is None else slot * steps
        )

    def _decode(self, size: int, history: int, steps: int) -> float:
        """Return the seconds of steps that each add a token to slots with so many before."""
        if self._recompute:
            return sum(
                self._recompute_seconds(size, tokens) for tokens in range(history, history + steps)
            )
        seconds = 0.0
        while steps:
            step_count, elapsed = decode_steps(self._speed, size, size * history, steps, math.inf)
            seconds += elapsed
            history += step_count
            steps -= step_count
        return seconds

    def _recompute_seconds(self, size: int, history: int) -> float:
        """Return the seconds of a step that computes the history of its tokens again."""
        return self._speed.seconds(
            decoding=size,
            kv_tokens=size * (history + 1),
            prefill_tokens=size * history,
            prefill_pairs=size * history * history,
        )
