"""The requests that one replica of a variant carries within the SLO, by the performance model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.observed.demand import NO_TOKENS, ArrivedTokens
from tessera.domain.observed.snapshot import STEP_SECONDS, Pod, SpeedReading, reading_of
from tessera.domain.perf.engine_terms import engine_terms
from tessera.domain.perf.sources import (
    OFF_TOLERANCE,
    as_measured,
    measured_ratio,
    measured_tokens_per_step,
)
from tessera.domain.placement.checks import pooling_task, shape_of
from tessera.domain.scaling.policies.capacity.step_speed import StepSpeed, step_speed
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.scaling.state import RequestTokens, ScalingHistory, ServiceLoad
from tessera.domain.scaling.target import ObservedVariant, queue_time, within_context
from tessera.domain.sizing import pooling
from tessera.domain.sizing.queueing import UNKNOWN_VARIATION
from tessera.domain.sizing.scheduler_limits import (
    LATE_SHARE,
    ONE_KIND_VARIATION,
    Demand,
    SustainedLoad,
    sustained_load,
)
from tessera.domain.sizing.sizing import ReplicaFit

# The mean length of fewer requests may be far from that of the next ones.
_MIN_REQUESTS_FOR_LENGTH = 20
# The same for those that came in the last minute, which are expected and vary more.
_MIN_ARRIVED_REQUESTS = 50
# Squared coefficient of variation of the lengths of answers, as in recorded traffic of many
# clients.
_ANSWER_VARIATION = 2.0
# Beyond that of one kind of requests, a variation needs so many for each unit: that of fewer may be
# by a single long prompt, which may not come again.
_REQUESTS_OF_VARIATION = 1000
# Steps are of two minutes, and what is scraped and read of them is half a minute old.
_MIN_READY = timedelta(seconds=STEP_SECONDS + 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantCapacity:
    """What one replica of a variant carries within the SLO, and how long a further one takes."""

    requests_per_second: float
    fewer_requests_per_second: float
    """The same while one replica less serves: fewer replicas share their work less well."""
    concurrent: float
    """Requests that run at once at this rate, on average."""
    prompts_per_second: float
    """Prompts that it reads at most, while so many run."""
    input_tokens: int
    """Tokens of a prompt, as measured or as in the spec."""
    output_tokens: int
    queue_time: timedelta
    """Time for which a request may wait at full replicas, so that its first token is in time."""
    lead: timedelta
    """Time from the binding of a replica until it is ready."""
    kv_usage: float | None = None
    """Mean share of the KV cache in use over five minutes; None is "not known"."""
    meets_slo: bool = True
    """False if even one request at a time misses the SLO; the rate is then that of a full
    replica. It is False as well if too many prompts are late by themselves."""
    late_alone_share: float = 0.0
    """Share of the prompts that are late by themselves, where that is more than the SLO lets be
    late; the rate is then that with which all others are in time."""
    cached_share: float = 0.0
    """Share of the prompt that the prefix cache has."""
    lengths: RequestTokens | None = None
    """The tokens of requests as last measured; None before any were."""
    slow: StepSpeed | None = None
    """The speed of steps beyond the tolerance, by which the rates are lower in proportion."""

    def slowed(self, slow: StepSpeed) -> "VariantCapacity":
        """Return what a replica carries whose steps take longer than within the tolerance.

        By its own step time more prompts would be late by themselves, which no replica mends, and
        the waits of all others would pay for them.
        """
        share = (1 + OFF_TOLERANCE) / slow.ratio
        return replace(
            self,
            requests_per_second=self.requests_per_second * share,
            fewer_requests_per_second=self.fewer_requests_per_second * share,
            prompts_per_second=self.prompts_per_second * share,
            slow=slow,
        )


def observed_capacity(
    variant: ObservedVariant, load: ServiceLoad, history: ScalingHistory
) -> VariantCapacity:
    """Return what a replica of a service carries, as far as it is measured."""
    service, spec, choice = variant.service, variant.spec, variant.choice
    shape = shape_of(spec)
    assert shape is not None  # noqa: S101 - hardware was chosen for it
    serving = max(1, load.serving)
    ratio = measured_ratio(service.status.speed, spec.model.uri, choice.variant)
    fit, slow = _running_fit(choice.fit, variant.pods), None
    if load.ttft is not None:
        # While a load changes, the means of requests say too little of the steps that most tokens
        # come from. Those of devices do, and the attained TTFT corrects what they do not show.
        ratio = None if ratio is None else min(ratio, 1 + OFF_TOLERANCE)
        slow = _slow_steps(variant, fit, load.at)
        ratio = ratio if slow is None else 1 + OFF_TOLERANCE
    capacity = variant_capacity(
        spec,
        shape,
        fit,
        reading=_reading_with_lengths(choice.variant, variant.readings.speeds),
        measured_ratio=ratio,
        lead=expected_lead(
            (*variant.pods, *variant.other_pods), service.status.start, choice.variant
        ),
        tokens_per_step=measured_tokens_per_step(service.status.speculation),
        last_lengths=history.lengths or _reported_lengths(service.status),
        computed_prompt=computed_prompt_of(load),
        arrived=load.arrived_tokens,
        late_alone_share=load.late_alone.share,
        replicas=serving,
        servers=serving if load.queued is not None else 1,
    )
    return capacity if slow is None else capacity.slowed(slow)


def _slow_steps(variant: ObservedVariant, fit: ReplicaFit, at: datetime) -> StepSpeed | None:
    """Return the speed of steps that take longer than within the tolerance."""
    pods, load = variant.readings.pods, reading_of(variant.choice.variant, variant.readings.speeds)
    steps = [
        reading.steps
        for pod in variant.pods
        if pod.takes_requests
        and pod.ready_since is not None
        and at - pod.ready_since >= _MIN_READY
        and (reading := pods.get(pod.ref)) is not None
        and reading.steps is not None
    ]
    speed = step_speed(fit, load, steps)
    return speed if speed is not None and speed.ratio > 1 + OFF_TOLERANCE else None


def _reading_with_lengths(variant: str, readings: Sequence[SpeedReading]) -> SpeedReading:
    """Return the reading of a variant, with the lengths of others while it serves none.

    Requests are as long whichever variant answers them.
    """
    reading = reading_of(variant, readings)
    if (reading.requests or 0) >= _MIN_REQUESTS_FOR_LENGTH or not readings:
        return reading
    busiest = max(readings, key=lambda each: each.requests or 0)
    return replace(
        reading,
        requests=busiest.requests,
        mean_input_tokens=busiest.mean_input_tokens,
        mean_output_tokens=busiest.mean_output_tokens,
        cached_share=busiest.cached_share,
    )


def _running_fit(fit: ReplicaFit, pods: Sequence[Pod]) -> ReplicaFit:
    """Return the fit with the limits of the engines that run, the lowest where they differ.

    New limits come to engines by the next rollout.
    """
    running = [
        (pod.max_num_seqs, pod.max_num_batched_tokens)
        for pod in pods
        if pod.ready_since is not None
        and pod.max_num_seqs is not None
        and pod.max_num_batched_tokens is not None
        and pod.max_num_batched_tokens > pod.max_num_seqs * fit.limits.decode_tokens
    ]
    if not running:
        return fit
    sequences, tokens = min(running)
    if (sequences, tokens) == (fit.limits.max_num_seqs, fit.limits.max_num_batched_tokens):
        return fit
    limits = replace(fit.limits, max_num_seqs=sequences, max_num_batched_tokens=tokens)
    return replace(fit, limits=limits)


def _reported_lengths(status: InferenceServiceStatus) -> RequestTokens | None:
    """Return the lengths of requests as last measured by an earlier leader."""
    lengths = status.scaling.request_lengths if status.scaling is not None else None
    if lengths is None:
        return None
    computed = lengths.input_tokens - (lengths.cached_input_tokens or 0)
    return RequestTokens(lengths.input_tokens, lengths.output_tokens, max(0, computed))


def variant_capacity(  # noqa: PLR0913 - what is measured, and what was
    spec: InferenceServiceSpec,
    shape: ModelShape,
    fit: ReplicaFit,
    *,
    reading: SpeedReading,
    measured_ratio: float | None,
    lead: timedelta,
    tokens_per_step: float | None = None,
    last_lengths: RequestTokens | None = None,
    computed_prompt: int = 0,
    arrived: ArrivedTokens = NO_TOKENS,
    late_alone_share: float = 0.0,
    replicas: int = 1,
    servers: int = 1,
) -> VariantCapacity:
    """Return the capacity for requests as long as those that `arrived` in the last minute.

    Where these are few, as without a gateway, it is that for those that ended in the last ten
    minutes. `computed_prompt` tokens were computed at least of each prompt of the last minute:
    prefixes that are cached no more show there.
    `measured_ratio` is the measured time of a step divided by the predicted one, `tokens_per_step`
    what it yields of each request with speculation, where that is measured. `late_alone_share` is
    the share of prompts that gateways counted as late by themselves. `last_lengths` count while a
    reading has none: requests do not become typical while they are not measured.
    `replicas` share the requests; `servers` are those among which a gateway chooses the one with
    the shortest wait.
    """
    lengths = _measured_lengths(reading) or last_lengths
    context = spec.context
    typical = context.typical_input_tokens, context.typical_output_tokens
    prompt, answer, computed = lengths or (*typical, typical[0])
    variation = None
    is_pooling = pooling_task(spec) is not None
    if arrived.requests >= _MIN_ARRIVED_REQUESTS and not is_pooling:
        computed_share = computed / max(1, prompt)
        prompt = round(arrived.prompt / arrived.requests)
        answer = round(arrived.answer / arrived.requests)
        computed = round(prompt * computed_share)
        variation = arrived.prompt_variation
    most_variation = max(ONE_KIND_VARIATION, arrived.requests / _REQUESTS_OF_VARIATION)
    computed = max(computed, computed_prompt)
    # A request may have many texts, which the engine reads as one request each. What generates has
    # a token at least, whatever its engine counts.
    by_text = 0, max(1.0, prompt / fit.max_model_len)
    answer, texts = by_text if is_pooling else (max(1, answer), 1.0)
    prompt, answer = within_context(fit.max_model_len, prompt, answer)
    computed = prompt if is_pooling else min(prompt, computed)
    demand = Demand(
        shape=shape,
        precision=fit.precision,
        max_model_len=fit.max_model_len,
        input_tokens=prompt,
        output_tokens=answer,
        ttft=spec.slo.ttft_p95,
        # The engine's largest step just keeps the objective as predicted, and a slower one misses
        # it however few requests there are beside the prompt.
        inter_token=spec.slo.itl_p95 * max(1.0, measured_ratio or 1.0),
        cached_tokens=None if is_pooling else _cached_tokens(reading, fit, prompt, answer),
        computed_tokens=computed if computed < prompt else None,
        engine=engine_terms(spec.engine),
        prompt_variation=(
            UNKNOWN_VARIATION if variation is None else min(variation, most_variation)
        ),
        late_alone_share=late_alone_share,
    )
    step = fit.step
    if measured_ratio is not None:
        step = as_measured(step, measured_ratio, demand.shape, demand.precision)
    if tokens_per_step is not None:
        step = step.with_accepted(tokens_per_step - 1)

    def sustained_by(replicas: int, servers: int) -> SustainedLoad:
        if is_pooling:
            return pooling.sustained_load(demand, step, fit.limits, servers=servers)
        kv_tokens = fit.memory.kv_tokens
        return sustained_load(
            demand, step, kv_tokens, fit.limits, replicas=replicas, servers=servers
        )

    sustained = sustained_by(replicas, servers)
    fewer = sustained_by(replicas - 1, max(1, servers - 1)) if replicas > 1 else sustained
    request_tokens = answer or prompt * texts
    return VariantCapacity(
        requests_per_second=sustained.tokens_per_second / request_tokens,
        fewer_requests_per_second=fewer.tokens_per_second / request_tokens,
        concurrent=sustained.sequences,
        prompts_per_second=sustained.prompts_per_second / texts,
        input_tokens=prompt,
        output_tokens=answer,
        cached_share=1 - computed / prompt,
        queue_time=queue_time(spec, prompt, fit.limits),
        lead=lead,
        kv_usage=reading.kv_usage,
        meets_slo=sustained.meets_slo,
        late_alone_share=late_alone_share if late_alone_share > LATE_SHARE else 0.0,
        lengths=lengths,
    )


def _cached_tokens(reading: SpeedReading, fit: ReplicaFit, prompt: int, answer: int) -> int:
    """Return the cached tokens of a running request, as measured, of requests at least as long.

    Long answers run longer, so those that run are on average longer than all, and half way.
    """
    measured = reading.resident_tokens(fit.memory.kv_tokens)
    if measured is None or (reading.requests or 0) < _MIN_REQUESTS_FOR_LENGTH:
        return prompt + round(answer * (1 + _ANSWER_VARIATION) / 2)
    return max(round(measured), prompt + answer // 2)


def computed_prompt_of(load: ServiceLoad) -> int:
    """Return the prompt tokens that engines computed for each request of the last minute.

    0 if that is not known. Where more requests ended than came, a queue was worked off, and they
    count.
    """
    rates, arrivals = load.token_rates, load.arrival_rate
    if rates is None or arrivals is None or arrivals * 60 < _MIN_ARRIVED_REQUESTS:
        return 0
    return round(rates.prompt / max(arrivals, load.finish_rate or 0.0))


def _measured_lengths(reading: SpeedReading) -> RequestTokens | None:
    """Return the mean tokens of requests; None of too few."""
    prompt, answer = reading.mean_input_tokens, reading.mean_output_tokens
    if prompt is None or answer is None or (reading.requests or 0) < _MIN_REQUESTS_FOR_LENGTH:
        return None
    computed = prompt * (1 - (reading.cached_share or 0.0))
    return RequestTokens(round(prompt), round(answer), round(computed))
