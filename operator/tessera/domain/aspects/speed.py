"""The speed of the engines, measured beside the predicted one: SpeedAsPredicted, status.speed."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from tessera.api.reasons import SpeedAsPredicted, StatusVerdict
from tessera.api.service_status import PreemptionStatus, SpeedStatus
from tessera.api.text import counted
from tessera.domain.aspects.aspect import Aspect, Explanation, Measurements, PlacedService, Reported
from tessera.domain.incremental import Until
from tessera.domain.observed.snapshot import Readings, Snapshot
from tessera.domain.perf.sources import MIN_REQUESTS, OFF_TOLERANCE
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.speed.condition import (
    RECOVERY_TOLERANCE,
    is_recent,
    next_speed_status,
    speed_verdict,
    with_capacity,
)
from tessera.domain.speed.preemption import preemption_message
from tessera.domain.speed.service_speed import ServiceSpeed, service_speed

_CHANGES = {
    SpeedAsPredicted.AS_PREDICTED: (
        f"an ITL more than {OFF_TOLERANCE:.0%} off the predicted one for five minutes"
    ),
    SpeedAsPredicted.SLOWER: f"an ITL within {RECOVERY_TOLERANCE:.0%} of the predicted one",
    SpeedAsPredicted.FASTER: f"an ITL within {RECOVERY_TOLERANCE:.0%} of the predicted one",
    SpeedAsPredicted.NOT_ENOUGH_REQUESTS: f"{counted(MIN_REQUESTS, 'request')} in five minutes",
}


def observed_speed(placed: PlacedService, readings: Readings | None) -> ServiceSpeed | None:
    """Return its speed by the readings; None while it is not placed."""
    if placed.placement is None:
        return None
    spec, choice = placed.placement
    speed_readings = readings.speeds.get(placed.service.ref, ()) if readings is not None else ()
    return service_speed(spec, choice, placed.pods, speed_readings)


def _following(
    placed: PlacedService, measurements: Measurements, current: SpeedStatus | None, _at: datetime
) -> Until[SpeedStatus | None]:
    at = measurements.speeds_at
    if at is None or placed.placement is None:
        return Until(current)
    spec, choice = placed.placement
    if current is not None and is_recent(current, spec.model.uri, choice.variant, at):
        return Until(current)
    observed = service_speed(spec, choice, placed.pods, measurements.readings.speeds)
    return Until(next_speed_status(observed, current, at))


def _verdict(placed: PlacedService, speed: SpeedStatus | None) -> StatusVerdict[SpeedAsPredicted]:
    """Return the verdict on the measured speed, which is that of one variant."""
    fits = {choice.variant: choice.fit for choice in placed.variants}
    fit = fits.get(speed.variant) if speed is not None else None
    verdict = speed_verdict(speed, fit, is_pooling=placed.is_pooling)
    if speed is None or len(placed.variants) < 2:
        return verdict
    return replace(verdict, message=f"{speed.variant}: {verdict.message}")


def _as_status(placed: PlacedService, speed: SpeedStatus | None) -> SpeedStatus | None:
    """Return what was measured, with the prediction for the replicas of now."""
    choice = placed.choice
    if speed is None or choice is None or speed.variant != choice.variant:
        return speed
    serving = sum(pod.takes_requests and pod.variant == choice.variant for pod in placed.pods)
    return with_capacity(speed, choice.fit.limits.tokens_per_second * serving)


def _explain(placed: PlacedService, snapshot: Snapshot, reported: Reported) -> Explanation | None:
    speed = observed_speed(placed, snapshot.readings)
    if speed is None:
        return None
    reason = speed_verdict(reported.speed, is_pooling=placed.is_pooling).reason
    variant = [("variant", speed.variant)] if len(placed.variants) > 1 else ()
    numbers = (*variant, *_numbers(speed), *_preemptions(reported.preemption))
    return Explanation(numbers, (_CHANGES[reason],) if reason in _CHANGES else ())


def _preemptions(status: PreemptionStatus | None) -> Iterator[tuple[str, str]]:
    if status is not None:
        yield "preemptions", preemption_message(status)


def _numbers(speed: ServiceSpeed) -> Iterator[tuple[str, str]]:
    yield (
        "input tok/s" if speed.is_pooling else "output tok/s",
        f"{speed.capacity:.0f} from {counted(speed.replicas, 'full replica')}"
        + (f", {rate:.0f} now" if (rate := speed.tokens_per_second) is not None else ""),
    )
    predicted, median = speed.predicted, speed.median_bucket
    if predicted is not None and speed.measured_mean is not None:
        yield (
            "mean ITL",
            f"{speed.measured_mean * 1e3:.1f} ms, {predicted.mean * 1e3:.1f} ms predicted "
            f"for a mean batch size of {speed.sequences or 0:.1f}, measured by "
            f"{counted(round(speed.requests), 'request')} in 5 minutes",
        )
        # The engine's histogram gives no more than a bucket.
        bucket = f"between {median[0] * 1e3:g} and {median[1] * 1e3:g} ms" if median else "unknown"
        yield "median ITL", f"{bucket}, {predicted.median * 1e3:.1f} ms predicted"
    yield (
        "price per 1M input tokens" if speed.is_pooling else "price per 1M tokens",
        f"{speed.capacity_price.formatted(4)} when full"
        + (f", {price.formatted(4)} now" if (price := speed.price) is not None else ""),
    )
    if speed.mfu is not None and speed.mbu is not None:
        yield (
            "MFU and MBU",
            f"{speed.mfu:.0%} of {speed.peaks.flops / 1e12:.0f} TFLOP/s, "
            f"{speed.mbu:.0%} of {speed.peaks.bandwidth / 1e9:.0f} GB/s",
        )
    if speed.kv_usage is not None and speed.kv_planned:
        yield "KV cache usage", f"{speed.kv_usage:.0%}"
    if speed.kv_reported is not None and speed.kv_error is not None:
        yield (
            "KV cache per replica",
            f"{counted(speed.kv_planned, 'token')} planned, {speed.kv_reported} reported by the "
            f"engine ({speed.kv_error:+.1%})",
        )


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


def _samples(
    placed: PlacedService, readings: Readings | None, _reported: SpeedStatus | None
) -> Iterator[Sample]:
    """Yield the speeds as of the last reading."""
    speed, ref = observed_speed(placed, readings), placed.service.ref
    if speed is None:
        return
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


SPEED: Aspect[SpeedStatus | None] = Aspect(
    name="speed",
    measured_by="speeds",
    condition="SpeedAsPredicted",
    following=_following,
    verdict=_verdict,
    as_status=_as_status,
    explain=_explain,
    series=(
        *(_OUTPUT_RATE, _INPUT_RATE, _ITL, _ITL_MEDIAN, _PRICE, _INPUT_PRICE, _MFU, _MBU),
        *(_KV_USAGE, _KV_TOKENS, _KV_ERROR, _FLOPS, _BYTES),
    ),
    samples=_samples,
)
