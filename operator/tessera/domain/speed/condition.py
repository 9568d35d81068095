"""Is a service as fast as predicted? What the status says of it, and when that is written anew.

Measured values move all the time, and a status must not. So what was written stays until something
else has been measured for five minutes: a verdict that changed, or values that moved by much. All
memory of it is in the status itself.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.inference_service import PredictedAndMeasured, SpeedStatus
from tessera.api.reasons import SpeedAsPredicted, StatusVerdict
from tessera.domain.speed.service_speed import InterTokenLatency, ServiceSpeed

# Requests within five minutes from which on something can be told.
MIN_REQUESTS = 100
# What a reading covers; nothing is written more often.
WINDOW = timedelta(minutes=5)
# A time between tokens is off when it is further from the predicted one.
OFF_TOLERANCE = 0.15
# It is right again when it is nearer than this.
RECOVERY_TOLERANCE = 0.10
_MIN_CHANGE = 0.10
# Throughput follows the load, which is no news.
_MIN_LOAD_CHANGE = 0.5


def next_speed_status(
    speed: ServiceSpeed, current: SpeedStatus | None, at: datetime
) -> SpeedStatus | None:
    """What the status should say by a reading of this moment; what is kept, unless there is news.

    A missing reading, and one of too few requests, change nothing. What was measured of another
    model or variant is forgotten.
    """
    if current is not None and (current.model, current.variant) != (speed.model, speed.variant):
        current = None
    if current is not None and at - current.at < WINDOW:
        return current
    reason = speed_reason(speed, _status_reason(current))
    if reason is None or (current is not None and not _has_changed(current, reason, speed)):
        return current
    return _speed_status(speed, reason, at) or current


def speed_verdict(status: SpeedStatus | None) -> StatusVerdict[SpeedAsPredicted]:
    """The condition that follows from what the status says."""
    reason = _status_reason(status)
    if status is None or reason is None:
        return StatusVerdict(
            SpeedAsPredicted.NOT_ENOUGH_REQUESTS,
            f"{MIN_REQUESTS} requests within {WINDOW // timedelta(minutes=1)} minutes are needed "
            "to tell",
        )
    gap = status.inter_token_ms
    return StatusVerdict(
        reason,
        f"{gap.measured} ms between tokens, {gap.predicted} ms were predicted for the load that "
        f"was seen, {status.ratio} times as long; by {status.requests} requests until "
        f"{status.at:%Y-%m-%d %H:%M} UTC{_ADVICE.get(reason, '')}",
    )


_ADVICE = {
    SpeedAsPredicted.SLOWER: "; look for other work on the device, a lowered clock, an engine "
    "option in spec.engine.extraArgs: docs/tasks/alerts.md",
    SpeedAsPredicted.FASTER: "; the replicas may carry more than they are planned for: "
    "docs/tasks/alerts.md",
}


def speed_reason(speed: ServiceSpeed, previous: SpeedAsPredicted | None) -> SpeedAsPredicted | None:
    """The bucket of the median decides where it can; its bounds are mostly too far apart, and then
    the mean decides, which is exact. None when too little is known."""
    if speed.requests < MIN_REQUESTS or speed.predicted is None or speed.ratio is None:
        return None
    was_off = previous in (SpeedAsPredicted.SLOWER, SpeedAsPredicted.FASTER)
    tolerance = RECOVERY_TOLERANCE if was_off else OFF_TOLERANCE
    return _by_bucket(speed.predicted, speed.median_bucket, tolerance) or _by_ratio(
        speed.ratio, speed.ratio, tolerance
    )


def _by_bucket(
    gap: InterTokenLatency, bucket: tuple[float, float] | None, tolerance: float
) -> SpeedAsPredicted | None:
    if bucket is None:
        return None
    return _by_ratio(bucket[0] / gap.median, bucket[1] / gap.median, tolerance)


def _by_ratio(lower: float, upper: float, tolerance: float) -> SpeedAsPredicted | None:
    """What is certain of a ratio between two bounds."""
    if lower > 1 + tolerance:
        return SpeedAsPredicted.SLOWER
    if upper < 1 - tolerance:
        return SpeedAsPredicted.FASTER
    if lower >= 1 - tolerance and upper <= 1 + tolerance:
        return SpeedAsPredicted.AS_PREDICTED
    return None


def _status_reason(status: SpeedStatus | None) -> SpeedAsPredicted | None:
    """None also for a word that only another version knows."""
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
        inter_token_ms=PredictedAndMeasured(
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
    """Compared as numbers: a status is only made when it is written."""
    gap, rate, cache = current.inter_token_ms, current.tokens_per_second, current.kv_cache_tokens
    predicted = speed.predicted.mean if speed.predicted is not None else 0.0
    return (
        current.reason != reason
        or _differs(gap.predicted, predicted * 1e3, _MIN_CHANGE)
        or _differs(gap.measured, (speed.measured_mean or 0.0) * 1e3, _MIN_CHANGE)
        or _differs(rate.predicted, speed.capacity, _MIN_LOAD_CHANGE)
        or _differs(rate.measured, speed.tokens_per_second or 0.0, _MIN_LOAD_CHANGE)
        or (cache.measured if cache is not None else None) != speed.kv_reported
    )


def _differs(previous: Decimal, value: float, share: float) -> bool:
    return abs(value - float(previous)) > share * float(previous)


def _milliseconds(seconds: float) -> Decimal:
    """To a tenth, which is finer than anything that is told by it."""
    return Decimal(f"{seconds * 1e3:.1f}")
