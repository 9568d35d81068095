"""The requests that one replica of a variant carries within the SLO, by the performance model."""

from dataclasses import dataclass
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec, ModelShape
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.sizing.scheduler_limits import Demand, sustained_load
from tessera.domain.sizing.sizing import ReplicaFit

# The mean length of fewer requests may be far from that of the next ones.
_MIN_REQUESTS_FOR_LENGTH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantCapacity:
    """What one replica of a variant carries within the SLO, and how long a further one takes."""

    requests_per_second: float
    concurrent: int
    """Requests that run at once at this rate, on average."""
    places: int
    """The most requests that may run at once."""
    input_tokens: int
    """Tokens of a prompt, as measured or as in the spec."""
    output_tokens: int
    ttft: timedelta
    """Objective for the time to first token."""
    lead: timedelta
    """Time from the binding of a replica until it is ready."""
    kv_usage: float | None = None
    """Mean share of the KV cache in use over five minutes; None is "not known"."""
    speed_ratio: float = 1.0
    """Measured time of a step divided by the predicted one; 1 while it is not measured."""
    meets_slo: bool = True
    """False if even one request at a time misses the SLO; the rate is then that of a full
    replica."""


def variant_capacity(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    fit: ReplicaFit,
    *,
    reading: SpeedReading,
    measured_ratio: float | None,
    lead: timedelta,
) -> VariantCapacity:
    """Return the capacity for requests as long as those of the last ten minutes.

    `measured_ratio` is the measured time of a step divided by the predicted one.
    """
    prompt, answer = spec.context.typical_input_tokens, spec.context.typical_output_tokens
    if (
        reading.mean_input_tokens is not None
        and reading.mean_output_tokens is not None
        and (reading.requests or 0) >= _MIN_REQUESTS_FOR_LENGTH
    ):
        prompt, answer = round(reading.mean_input_tokens), round(reading.mean_output_tokens)
    answer = max(1, min(answer, fit.max_model_len - 1))
    prompt = max(1, min(prompt, fit.max_model_len - answer))
    demand = Demand(
        shape=shape,
        precision=fit.precision,
        max_model_len=fit.max_model_len,
        input_tokens=prompt,
        output_tokens=answer,
        ttft=spec.slo.ttft_p95,
        inter_token=spec.slo.itl_p95,
    )
    step = fit.step if measured_ratio is None else fit.step.scaled(measured_ratio, "Measured")
    sustained = sustained_load(demand, step, fit.memory.kv_tokens, fit.limits)
    return VariantCapacity(
        requests_per_second=sustained.tokens_per_second / answer,
        concurrent=sustained.sequences,
        places=sustained.most_sequences,
        input_tokens=prompt,
        output_tokens=answer,
        ttft=demand.ttft,
        lead=lead,
        kv_usage=reading.kv_usage,
        speed_ratio=measured_ratio or 1.0,
        meets_slo=sustained.meets_slo,
    )
