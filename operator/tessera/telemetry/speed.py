"""Predicted and measured speed of the services, as metrics."""

from collections.abc import Iterator
from decimal import Decimal

from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.steps import Step
from tessera.reconcile.cycle import ReconcileOutcome

_SERVICE_LABELS = ("namespace", "service")
_KIND_LABELS = (*_SERVICE_LABELS, "kind")
_OUTPUT_RATE = Series(
    "tessera_service_output_tokens_per_second",
    "Output tokens per second of the ready replicas: predicted at full load within the latency "
    "objective, and measured.",
    *_KIND_LABELS,
)
_INPUT_RATE = Series(
    "tessera_service_input_tokens_per_second",
    "Of pooling models: input tokens per second of the ready replicas, predicted at full load "
    "within the latency objective, and measured.",
    *_KIND_LABELS,
)
_ITL = Series(
    "tessera_service_itl_seconds",
    "Mean inter-token latency within 5 minutes; predicted is that for the observed load.",
    *_KIND_LABELS,
)
_ITL_MEDIAN = Series(
    "tessera_service_itl_median_seconds",
    "Median inter-token latency within 5 minutes; measured is interpolated within a wide bucket of "
    "the engine.",
    *_KIND_LABELS,
)
_PRICE = Series(
    "tessera_service_cost_per_million_tokens",
    "Cost of a million output tokens: predicted at full load, measured for the tokens that were "
    "generated.",
    *(*_KIND_LABELS, "currency"),
)
_INPUT_PRICE = Series(
    "tessera_service_cost_per_million_input_tokens",
    "Of pooling models: cost of a million input tokens, predicted at full load, measured for the "
    "tokens that were read.",
    *(*_KIND_LABELS, "currency"),
)
_MFU = Series(
    "tessera_service_mfu",
    "Model FLOPs utilization (MFU): share of the peak FLOPS that the engines achieve.",
    *_SERVICE_LABELS,
)
_MBU = Series(
    "tessera_service_mbu",
    "Model bandwidth utilization (MBU): share of the peak memory bandwidth that the engines "
    "achieve.",
    *_SERVICE_LABELS,
)
_KV_USAGE = Series(
    "tessera_service_kv_cache_usage_ratio",
    "Share of the KV cache in use, mean over 5 minutes.",
    *_SERVICE_LABELS,
)
_KV_TOKENS = Series(
    "tessera_service_kv_cache_tokens",
    "KV cache of one replica in tokens: predicted by the plan, and measured by the engine.",
    *_KIND_LABELS,
)
_KV_ERROR = Series(
    "tessera_service_kv_cache_tokens_error_ratio",
    "Difference between the engine's KV cache and the planned one, as a share of the plan.",
    *_SERVICE_LABELS,
)
_FLOPS = Series(
    "tessera_service_peak_flops",
    "Dense peak FLOPS of one device of a replica; for a slice, its share.",
    *(*_SERVICE_LABELS, "variant"),
)
_BYTES = Series(
    "tessera_service_peak_bytes_per_second",
    "Peak memory bandwidth of one device of a replica in bytes per second; for a slice, its share.",
    *(*_SERVICE_LABELS, "variant"),
)
_ACCEPTANCE = Series(
    "tessera_service_speculation_acceptance_ratio",
    "Probability that a drafted token is accepted, given that those before it were; as in "
    "`status.speculation`.",
    *_SERVICE_LABELS,
)
_SPECULATION_GAIN = Series(
    "tessera_service_speculation_gain_ratio",
    "How many times as fast the engines decode as without speculation; as in `status.speculation`.",
    *_SERVICE_LABELS,
)
_SPECULATING = Series(
    "tessera_service_speculating",
    "Whether the engines speculate (1), or speculation was switched off (0).",
    *_SERVICE_LABELS,
)
SPEED_SERIES = (
    *(_OUTPUT_RATE, _INPUT_RATE, _ITL, _ITL_MEDIAN, _PRICE, _INPUT_PRICE, _MFU, _MBU),
    *(_ACCEPTANCE, _SPECULATION_GAIN, _SPECULATING),
    *(_KV_USAGE, _KV_TOKENS, _KV_ERROR, _FLOPS, _BYTES),
)

observed_speed = Step(ServicePlan.observed_speed, lambda *_: None)


def speed_inputs(outcome: ReconcileOutcome) -> object:
    """Return the identity of the inputs; the series are rendered again only when it changes.

    The series follow the readings of speed. Without any readings they follow the plan.
    """
    readings = outcome.snapshot.readings
    if readings is not None and readings.speeds_at is not None:
        return readings.speeds
    return outcome.plan.service_plans


def speed_samples(outcome: ReconcileOutcome) -> Iterator[Sample]:
    """Yield the speeds as of the last reading."""
    for ref, service_plan in outcome.plan.service_plans.items():
        speed = observed_speed(service_plan, outcome.snapshot.readings)
        if speed is None:
            continue
        labels, itl = (ref.namespace, ref.name), speed.predicted
        rate_series, price_series = _OUTPUT_RATE, _PRICE
        if speed.is_pooling:
            rate_series, price_series = _INPUT_RATE, _INPUT_PRICE
        for series, predicted, measured in (
            (rate_series, speed.capacity, speed.tokens_per_second),
            (_ITL, itl.mean if itl else None, speed.measured_mean),
            (_ITL_MEDIAN, itl.median if itl else None, speed.measured_median),
            (_KV_TOKENS, speed.kv_planned, speed.kv_reported),
        ):
            yield series, (*labels, "predicted"), predicted
            yield series, (*labels, "measured"), measured
        for kind, price in (("predicted", speed.capacity_price), ("measured", speed.price)):
            if price is not None:
                yield price_series, (*labels, kind, price.currency), float(price.rounded(6))
        yield _MFU, labels, speed.mfu
        yield _MBU, labels, speed.mbu
        yield _KV_USAGE, labels, speed.kv_usage
        yield _KV_ERROR, labels, speed.kv_error
        yield _FLOPS, (*labels, speed.variant), speed.peaks.flops
        yield _BYTES, (*labels, speed.variant), speed.peaks.bandwidth
        if (speculation := service_plan.speculation) is not None:
            yield _ACCEPTANCE, labels, _number(speculation.acceptance)
            yield _SPECULATION_GAIN, labels, _number(speculation.gain)
            yield _SPECULATING, labels, float(speculation.enabled)


def _number(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)
