"""The condition SpeedAsPredicted, and status.speed from which it follows.

Measured values change all the time, and a status must not. So a status stays until a reading after
five minutes or more differs from it: in its reason, or by much in its values. The status itself is
the only memory of this.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.reasons import SpeedAsPredicted, StatusVerdict
from tessera.api.service_status import PredictedAndMeasured, SpeedStatus
from tessera.api.text import counted
from tessera.domain.perf.sources import MIN_REQUESTS, OFF_TOLERANCE
from tessera.domain.perf.step_range import source_text
from tessera.domain.sizing.sizing import ReplicaFit
from tessera.domain.speed.service_speed import ServiceSpeed

# Time that a reading covers; the status is not written more often.
WINDOW = timedelta(minutes=5)
# It is as predicted again when the ITL differs by less than this share.
RECOVERY_TOLERANCE = 0.10
_MIN_CHANGE = 0.10
# Throughput follows the load, so only a large change of it is written.
_MIN_LOAD_CHANGE = 0.5


def next_speed_status(
    speed: ServiceSpeed, current: SpeedStatus | None, at: datetime
) -> SpeedStatus | None:
    """Return the status that follows from a reading of this moment.

    It is `current` unless the reading differs by much. A missing reading, and one of too few
    requests, change nothing. A status of another model or variant is dropped.
    """
    if current is not None and is_recent(current, speed.model, speed.variant, at):
        return current
    if current is not None and (current.model, current.variant) != (speed.model, speed.variant):
        current = None
    reason = speed_reason(speed, _status_reason(current))
    if reason is None or (current is not None and not _has_changed(current, reason, speed)):
        return current
    return _speed_status(speed, reason, at) or current


def with_capacity(status: SpeedStatus, capacity: float) -> SpeedStatus:
    """Return the status with the predicted output tokens per second of the replicas of now."""
    rate, predicted = status.tokens_per_second, Decimal(round(capacity))
    if rate.predicted == predicted:
        return status
    current = rate.model_copy(update={"predicted": predicted})
    return status.model_copy(update={"tokens_per_second": current})


def is_recent(status: SpeedStatus, model: str, variant: str, at: datetime) -> bool:
    """Return whether a status of this model and variant stays, whatever a reading says."""
    return (status.model, status.variant) == (model, variant) and at - status.at < WINDOW


def speed_verdict(
    status: SpeedStatus | None, fit: ReplicaFit | None = None, *, is_pooling: bool = False
) -> StatusVerdict[SpeedAsPredicted]:
    """Return the condition that follows from the status, with the error of the prediction.

    `fit` is that of the measured variant; None where it is not offered any more.
    """
    if is_pooling:
        return StatusVerdict(
            SpeedAsPredicted.NO_INTER_TOKEN_LATENCY,
            "a pooling model generates no tokens whose latency could be compared; SLOMet has the "
            "time to its answers",
        )
    reason = _status_reason(status)
    if status is None or reason is None:
        return StatusVerdict(
            SpeedAsPredicted.NOT_ENOUGH_REQUESTS,
            f"a comparison needs {counted(MIN_REQUESTS, 'request')} within "
            f"{counted(WINDOW // timedelta(minutes=1), 'minute')}",
        )
    itl, source, bounds = status.itl_ms, "", ""
    if fit is not None and fit.rate_error is not None:
        source = f" ({source_text(fit.step, fit.rate_error)})"
        is_within = 1 / (1 + fit.rate_error) <= status.ratio <= 1 + fit.rate_error
        bounds = f", {'within' if is_within else 'beyond'} that error"
    return StatusVerdict(
        reason,
        f"ITL {itl.measured} ms, predicted {itl.predicted} ms{source} for the observed load, "
        f"{status.ratio} times as long{bounds}; measured by "
        f"{counted(status.requests, 'request')} until {status.at:%Y-%m-%d %H:%M} UTC"
        f"{_ADVICE.get(reason, '')}",
    )


_ADVICE = {
    SpeedAsPredicted.SLOWER: ". Check for other work on the device, a lowered clock and engine "
    "options in spec.engine.extraArgs: docs/tasks/alerts.md",
    SpeedAsPredicted.FASTER: ". The replicas may sustain more load than planned: "
    "docs/tasks/alerts.md",
}


def speed_reason(speed: ServiceSpeed, previous: SpeedAsPredicted | None) -> SpeedAsPredicted | None:
    """Return how the measured speed compares with the predicted one; None when not enough is known.

    The bucket of the median decides where it can. Its bounds are often too far apart, and then the
    mean decides.
    """
    if speed.requests < MIN_REQUESTS or speed.predicted is None or speed.ratio is None:
        return None
    # Hysteresis: a ratio between both tolerances keeps the previous verdict.
    was_off = previous in (SpeedAsPredicted.SLOWER, SpeedAsPredicted.FASTER)
    tolerance = RECOVERY_TOLERANCE if was_off else OFF_TOLERANCE
    by_mean, bucket = _by_ratio(speed.ratio, speed.ratio, tolerance), speed.median_bucket
    if bucket is None:
        return by_mean
    median = speed.predicted.median
    return _by_ratio(bucket[0] / median, bucket[1] / median, tolerance) or by_mean


def _by_ratio(lower: float, upper: float, tolerance: float) -> SpeedAsPredicted | None:
    """Return what is certain about a ratio between two bounds; None when nothing is."""
    if lower > 1 + tolerance:
        return SpeedAsPredicted.SLOWER
    if upper < 1 - tolerance:
        return SpeedAsPredicted.FASTER
    if lower >= 1 - tolerance and upper <= 1 + tolerance:
        return SpeedAsPredicted.AS_PREDICTED
    return None


def _status_reason(status: SpeedStatus | None) -> SpeedAsPredicted | None:
    """Return the reason in a status; None also for one that only another version knows."""
    return _REASON_BY_NAME.get(status.reason) if status is not None else None


_REASON_BY_NAME = {reason.value: reason for reason in SpeedAsPredicted}


def _speed_status(
    speed: ServiceSpeed, reason: SpeedAsPredicted, at: datetime
) -> SpeedStatus | None:
    if speed.predicted is None or speed.measured_mean is None:
        return None
    return SpeedStatus(
        model=speed.model,
        variant=speed.variant,
        reason=reason,
        itl_ms=PredictedAndMeasured(
            predicted=_milliseconds(speed.predicted.mean),
            measured=_milliseconds(speed.measured_mean),
        ),
        tokens_per_second=PredictedAndMeasured(
            predicted=Decimal(round(speed.capacity)),
            measured=Decimal(round(speed.tokens_per_second or 0)),
        ),
        kv_cache_tokens=None
        if speed.kv_reported is None
        else PredictedAndMeasured(
            predicted=Decimal(speed.kv_planned), measured=Decimal(speed.kv_reported)
        ),
        ratio=Decimal(f"{speed.measured_mean / speed.predicted.mean:.2f}"),
        requests=round(speed.requests),
        at=at.replace(microsecond=0),
    )


def _has_changed(current: SpeedStatus, reason: SpeedAsPredicted, speed: ServiceSpeed) -> bool:
    """Return whether a reading differs enough from the status to be written."""
    # Plain numbers are compared, since this runs in every cycle and building a status is slow.
    itl, rate, cache = current.itl_ms, current.tokens_per_second, current.kv_cache_tokens
    predicted = speed.predicted.mean if speed.predicted is not None else 0.0
    return (
        current.reason != reason
        or _differs(itl.predicted, predicted * 1e3, _MIN_CHANGE)
        or _differs(itl.measured, (speed.measured_mean or 0.0) * 1e3, _MIN_CHANGE)
        or _differs(rate.measured, speed.tokens_per_second or 0.0, _MIN_LOAD_CHANGE)
        or (cache.measured if cache is not None else None) != speed.kv_reported
    )


def _differs(previous: Decimal, value: float, share: float) -> bool:
    return abs(value - float(previous)) > share * float(previous)


def _milliseconds(seconds: float) -> Decimal:
    # A tenth of a millisecond is finer than every tolerance.
    return Decimal(f"{seconds * 1e3:.1f}")
