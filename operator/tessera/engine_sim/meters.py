"""What the engine's metrics count, as plain numbers; `exposition` gives them their form."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

from tessera.domain.engine_facts import Metric
from tessera.domain.engine_requests import Finished, Reason, Refusal, Request, Step
from tessera.engine_sim.usage import Timing

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


class _Life:
    """Moments of one request, on the clock that the steps run on."""

    __slots__ = (
        "arrived",
        "first",
        "max_tokens",
        "newest",
        "prompt_tokens",
        "siblings",
        "started",
    )

    def __init__(self, request: Request, max_tokens: int, siblings: int, now: float) -> None:
        self.siblings = siblings
        self.prompt_tokens = request.prompt_tokens
        self.max_tokens = max_tokens
        self.arrived = self.started = self.newest = now
        self.first: float | None = None
        """Its first token."""


class Meters:
    """Counters and histograms of one engine; requests may leave while a step is under way."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.histograms = {
            name.removeprefix(PREFIX): Histogram(metric.buckets)
            for name, metric in metrics.items()
            if metric.type == "histogram"
        }
        self.steps = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        """Of these, from the prefix cache."""
        self.queried_tokens = 0
        """Looked for there; counted when a request is admitted, like the next."""
        self.hit_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.computed_tokens = 0
        """Tokens that went through the model."""
        self.read_kv_tokens = 0
        """Tokens that were read from the cache."""
        self.ended_by: Counter[Reason] = Counter()
        self.refused_by: Counter[Refusal] = Counter()
        self._lives: dict[int, _Life] = {}
        self._newest = 0.0
        """The end of the step before the present one."""

    def arrived(self, request: Request, max_tokens: int, siblings: int, now: float) -> None:
        """`siblings` are the answers that were asked for together, this one included."""
        self._lives[request.id] = _Life(request, max_tokens, siblings, now)

    def began(self, step: Step, now: float) -> None:
        """What the step admitted had waited until now."""
        self.queried_tokens += step.queried_tokens
        self.hit_tokens += step.hit_tokens
        for life in self._known(step.preempted):
            life.newest = self._newest
        for life in self._known(step.admitted):
            if life.first is None:
                life.started = now

    def ended(self, step: Step, now: float) -> dict[int, Timing]:
        """The step gave out its tokens: the moments of those that it ended."""
        self.steps += 1
        self.preemptions += len(step.preempted)
        self.computed_tokens += step.decoding + step.prefill_tokens
        self.read_kv_tokens += step.kv_tokens
        self._tokens(step, now)
        self._newest = now
        timings = ((one.request.id, self._finished(one, now)) for one in step.finished)
        return {number: timing for number, timing in timings if timing is not None}

    def aborted(self, request_id: int) -> None:
        """A request left without an end of its own."""
        if self._lives.pop(request_id, None) is not None:
            self.ended_by[Reason.ABORT] += 1

    def _tokens(self, step: Step, now: float) -> None:
        """First and further tokens.

        Who also got a token in the step before has the same gap as everybody else who did, so that
        one observation serves them all.
        """
        prompts = 0
        for life in self._known(step.first):
            life.first = now
            prompts += life.prompt_tokens
            self._observe("time_to_first_token_seconds", now - life.arrived)
        for life in self._known(step.resumed):
            self._observe("inter_token_latency_seconds", now - life.newest)
        steady = len(step.emitted) - len(step.first) - len(step.resumed)
        if steady:
            self._observe("inter_token_latency_seconds", now - self._newest, steady)
        if step.emitted:
            # As in the engine, a step that only works on a long prompt is not seen here.
            computed = prompts - step.first_cached_tokens
            self._observe("iteration_tokens_total", computed + len(step.emitted))
        self.prompt_tokens += prompts
        self.cached_tokens += step.first_cached_tokens
        self.generation_tokens += len(step.emitted)

    def _finished(self, finished: Finished, now: float) -> Timing | None:
        life = self._lives.pop(finished.request.id, None)
        if life is None or life.first is None:
            return None
        self.ended_by[finished.reason] += 1
        tokens, decode = finished.output_tokens, now - life.first
        observed = {
            "e2e_request_latency_seconds": now - life.arrived,
            "request_queue_time_seconds": life.started - life.arrived,
            "request_prefill_time_seconds": life.first - life.started,
            "request_decode_time_seconds": decode,
            "request_inference_time_seconds": now - life.started,
            "request_time_per_output_token_seconds": decode / (tokens - 1) if tokens > 1 else 0.0,
            "request_prompt_tokens": life.prompt_tokens,
            "request_prefill_kv_computed_tokens": life.prompt_tokens - finished.cached_tokens,
            "request_generation_tokens": tokens,
            "request_max_num_generation_tokens": tokens,
            "request_num_preemptions": finished.preemptions,
            "request_params_max_tokens": life.max_tokens,
            "request_params_n": life.siblings,
        }
        for name, value in observed.items():
            self._observe(name, value)
        return Timing(
            started=life.started - life.arrived,
            first=life.first - life.arrived,
            last=now - life.arrived,
            tokens=tokens,
        )

    def _known(self, request_ids: Sequence[int]) -> list[_Life]:
        return [self._lives[number] for number in request_ids if number in self._lives]

    def _observe(self, name: str, value: float, times: int = 1) -> None:
        self.histograms[name].observe(value, times)
