"""What the engine's metrics count, as plain numbers; `collector` exposes them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

from tessera.domain.vllm.facts import Metric
from tessera_lab.engine.requests import (
    EngineRequest,
    EngineStep,
    FinishedRequest,
    FinishReason,
    RejectionReason,
)
from tessera_lab.sim.usage import Timing

PREFIX = "vllm:"


class Histogram:
    """Observations by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class _RequestTimes:
    """Timestamps of one request, on the clock of the steps."""

    __slots__ = (
        *("arrived", "first", "left", "max_tokens"),
        *("newest", "prompt_tokens", "siblings", "started"),
    )

    def __init__(self, request: EngineRequest, max_tokens: int, siblings: int, now: float) -> None:
        self.siblings = siblings
        self.prompt_tokens = request.prompt_tokens
        self.left = request.output_tokens
        """Tokens that it still gets; counted under speculation alone."""
        self.max_tokens = max_tokens
        self.arrived = self.started = self.newest = now
        self.first: float | None = None
        """When its first token came."""


class EngineMeters:
    """Counters and histograms of one engine; requests may leave during a step."""

    def __init__(
        self, metrics: Mapping[str, Metric], draft_tokens: int = 0, *, generates: bool = True
    ) -> None:
        """Count no output tokens of an engine that generates none."""
        self._generates = generates
        self._draft_tokens = draft_tokens
        self.drafts = 0
        """Times that a request had drafted tokens to verify."""
        self.accepted_by_position = [0] * draft_tokens
        """Accepted drafts by their place behind the token that a step gives anyway."""
        self.histograms = {
            name.removeprefix(PREFIX): Histogram(metric.buckets)
            for name, metric in metrics.items()
            if metric.type == "histogram"
        }
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        """Prompt tokens from the prefix cache."""
        self.queried_tokens = 0
        """Prompt tokens looked up there; counted on admission, as the hits are."""
        self.hit_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.computed_tokens = 0
        """Tokens that went through the model."""
        self.read_kv_tokens = 0
        """Tokens that were read from the cache."""
        self.finished_by: Counter[FinishReason] = Counter()
        self.rejected_by: Counter[RejectionReason] = Counter()
        self._active: dict[int, _RequestTimes] = {}
        self._newest = 0.0
        """End of the step before the present one."""

    def request_arrived(
        self, request: EngineRequest, max_tokens: int, siblings: int, now: float
    ) -> None:
        """Count a request; `siblings` are the samples of its HTTP request, itself included."""
        self._active[request.id] = _RequestTimes(request, max_tokens, siblings, now)

    def step_started(self, step: EngineStep, now: float) -> None:
        """Record the queue times of the requests that the step admitted."""
        self.queried_tokens += step.queried_tokens
        self.hit_tokens += step.hit_tokens
        for times in self._active_requests(step.preempted):
            times.newest = self._newest
        for times in self._active_requests(step.admitted):
            if times.first is None:
                times.started = now

    def step_ended(self, step: EngineStep, now: float) -> dict[int, Timing]:
        """Record the tokens of a step; return the timings of the requests that ended with it."""
        self.steps += 1
        self.preemptions += len(step.preempted)
        self.computed_tokens += step.decoding + step.prefill_tokens
        self.read_kv_tokens += step.kv_tokens
        self._observe_tokens(step, now)
        self._newest = now
        timings = (
            (finished.request.id, self._observe_finished(finished, now))
            for finished in step.finished
        )
        return {number: timing for number, timing in timings if timing is not None}

    @property
    def drafted_tokens(self) -> int:
        return self.drafts * self._draft_tokens

    def request_left(self, request_id: int) -> None:
        """Forget a request whose client disconnected, which vLLM counts nowhere."""
        self._active.pop(request_id, None)

    def request_aborted(self, request_id: int) -> None:
        """Record a request that the engine ended."""
        if self._active.pop(request_id, None) is not None:
            self.finished_by[FinishReason.ABORT] += 1

    def _observe_tokens(self, step: EngineStep, now: float) -> None:
        """Record first and further tokens.

        All requests that also got a token in the step before have the same gap, so that one
        observation serves them all.
        """
        prompts, generated = 0, len(step.emitted) if self._generates else 0
        for times in self._active_requests(step.first):
            times.first = now
            prompts += times.prompt_tokens
            self._observe("time_to_first_token_seconds", now - times.arrived)
        for times in self._active_requests(step.resumed):
            self._observe("inter_token_latency_seconds", now - times.newest)
        steady = len(step.emitted) - len(step.first) - len(step.resumed)
        if steady:
            self._observe("inter_token_latency_seconds", now - self._newest, steady)
        if step.drafted:
            generated += self._count_accepted(step)
        if step.emitted:
            # As in the engine, a step that only works on a long prompt is not seen here.
            computed = prompts - step.first_cached_tokens
            self._observe("iteration_tokens_total", computed + generated)
        self.prompt_tokens += prompts
        self.cached_tokens += step.first_cached_tokens
        self.generation_tokens += generated

    def _count_accepted(self, step: EngineStep) -> int:
        """Return the accepted drafts of a step, beside the token that each request gets anyway."""
        accepted, single = 0, {*step.first, *step.resumed}
        for number in step.emitted:
            times = self._active.get(number)
            if times is None:
                continue
            tokens = 1
            if number not in single:
                self.drafts += 1
                tokens = min(step.tokens_per_request, times.left)
            times.left -= tokens
            accepted += tokens - 1
            for position in range(tokens - 1):
                self.accepted_by_position[position] += 1
        return accepted

    def _observe_finished(self, finished: FinishedRequest, now: float) -> Timing | None:
        times = self._active.pop(finished.request.id, None)
        if times is None or times.first is None:
            return None
        self.finished_by[finished.reason if self._generates else FinishReason.STOP] += 1
        tokens, decode = finished.output_tokens if self._generates else 0, now - times.first
        observed = {
            "e2e_request_latency_seconds": now - times.arrived,
            "request_queue_time_seconds": times.started - times.arrived,
            "request_prefill_time_seconds": times.first - times.started,
            "request_decode_time_seconds": decode,
            "request_inference_time_seconds": now - times.started,
            "request_time_per_output_token_seconds": decode / (tokens - 1) if tokens > 1 else 0.0,
            "request_prompt_tokens": times.prompt_tokens,
            "request_prefill_kv_computed_tokens": times.prompt_tokens - finished.cached_tokens,
            "request_generation_tokens": tokens,
            "request_max_num_generation_tokens": tokens,
            "request_num_preemptions": finished.preemptions,
            "request_params_max_tokens": times.max_tokens,
            "request_params_n": times.siblings,
        }
        for name, value in observed.items():
            self._observe(name, value)
        return Timing(
            started=times.started - times.arrived,
            first=times.first - times.arrived,
            last=now - times.arrived,
            tokens=tokens,
        )

    def _active_requests(self, request_ids: Sequence[int]) -> list[_RequestTimes]:
        return [self._active[number] for number in request_ids if number in self._active]

    def _observe(self, name: str, value: float, times: int = 1) -> None:
        self.histograms[name].observe(value, times)
