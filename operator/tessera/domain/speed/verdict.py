"""Is a service as fast as predicted? What the status says of it, and when that is written anew.

Measured values move all the time, and a status must not. So what was written stays until something
else has been measured for five minutes: a verdict that changed, or values that moved by much. All
memory of it is in the status itself.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.inference_service import PredictedAndMeasured, SpeedStatus
from tessera.domain.reasons import SpeedAsPredicted, StatusVerdict
from tessera.domain.speed.seen import Gap, Speed

ENOUGH = 100
"""Requests within five minutes from which on something can be told."""
SPAN = timedelta(minutes=5)
"""What a reading covers; nothing is written more often."""
OFF = 0.15
"""A time between tokens is off when it is further from the predicted one."""
BACK = 0.10
"""It is right again when it is nearer than this."""
_MOVED = 0.10
_LOAD_MOVED = 0.5
"""Throughput follows the load, which is no news."""


def judged(speed: Speed, kept: SpeedStatus | None, at: datetime) -> SpeedStatus | None:
    """What the status should say by a reading of this moment; what is kept, unless there is news.

    A missing reading, and one of too few requests, change nothing. What was measured of another
    model or variant is forgotten.
    """
    if kept is not None and (kept.model, kept.variant) != (speed.model, speed.variant):
        kept = None
    if kept is not None and at - kept.at < SPAN:
        return kept
    reason = reason_of(speed, _reason_of(kept))
    if reason is None or (kept is not None and not _news(kept, reason, speed)):
        return kept
    return _told(speed, reason, at) or kept


def verdict(status: SpeedStatus | None) -> StatusVerdict[SpeedAsPredicted]:
    """The condition that follows from what the status says."""
    reason = _reason_of(status)
    if status is None or reason is None:
        return StatusVerdict(
            SpeedAsPredicted.NOT_ENOUGH_REQUESTS,
            f"{ENOUGH} requests within {SPAN // timedelta(minutes=1)} minutes are needed to tell",
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


def reason_of(speed: Speed, before: SpeedAsPredicted | None) -> SpeedAsPredicted | None:
    """The bucket of the median decides where it can; its bounds are mostly too far apart, and then
    the mean decides, which is exact. None when too little is known."""
    if speed.requests < ENOUGH or speed.predicted is None or speed.ratio is None:
        return None
    off = before in (SpeedAsPredicted.SLOWER, SpeedAsPredicted.FASTER)
    tolerance = BACK if off else OFF
    return _by_bucket(speed.predicted, speed.median_bucket, tolerance) or _by_ratio(
        speed.ratio, speed.ratio, tolerance
    )


def _by_bucket(
    gap: Gap, bucket: tuple[float, float] | None, tolerance: float
) -> SpeedAsPredicted | None:
    if bucket is None:
        return None
    return _by_ratio(bucket[0] / gap.median, bucket[1] / gap.median, tolerance)


def _by_ratio(least: float, most: float, tolerance: float) -> SpeedAsPredicted | None:
    """What is certain of a ratio between two bounds."""
    if least > 1 + tolerance:
        return SpeedAsPredicted.SLOWER
    if most < 1 - tolerance:
        return SpeedAsPredicted.FASTER
    if least >= 1 - tolerance and most <= 1 + tolerance:
        return SpeedAsPredicted.AS_PREDICTED
    return None


def _reason_of(status: SpeedStatus | None) -> SpeedAsPredicted | None:
    """None also for a word that only another version knows."""
    return _KNOWN.get(status.reason) if status is not None else None


_KNOWN = {reason.value: reason for reason in SpeedAsPredicted}


def _told(speed: Speed, reason: SpeedAsPredicted, at: datetime) -> SpeedStatus | None:
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


def _news(kept: SpeedStatus, reason: SpeedAsPredicted, speed: Speed) -> bool:
    """Compared as numbers: a status is only made when it is written."""
    gap, rate, cache = kept.inter_token_ms, kept.tokens_per_second, kept.kv_cache_tokens
    predicted = speed.predicted.mean if speed.predicted is not None else 0.0
    return (
        kept.reason != reason
        or _moved(gap.predicted, predicted * 1e3, _MOVED)
        or _moved(gap.measured, (speed.measured_mean or 0.0) * 1e3, _MOVED)
        or _moved(rate.predicted, speed.capacity, _LOAD_MOVED)
        or _moved(rate.measured, speed.tokens_per_second or 0.0, _LOAD_MOVED)
        or (cache.measured if cache is not None else None) != speed.kv_reported
    )


def _moved(kept: Decimal, now: float, by: float) -> bool:
    return abs(now - float(kept)) > by * float(kept)


def _milliseconds(seconds: float) -> Decimal:
    """To a tenth, which is finer than anything that is told by it."""
    return Decimal(f"{seconds * 1e3:.1f}")
