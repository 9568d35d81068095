"""How fast the engines are, beside what was predicted."""

from collections.abc import Iterator

from tessera.api.reasons import SpeedAsPredicted
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.money import Money
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.service_plan import ServicePlan
from tessera.domain.speed.condition import (
    MIN_REQUESTS,
    OFF_TOLERANCE,
    RECOVERY_TOLERANCE,
    speed_verdict,
)
from tessera.domain.speed.service_speed import ServiceSpeed

_CHANGES = {
    SpeedAsPredicted.AS_PREDICTED: (
        f"a time between tokens that is {OFF_TOLERANCE:.0%} off for five minutes"
    ),
    SpeedAsPredicted.SLOWER: (
        f"a time between tokens within {RECOVERY_TOLERANCE:.0%} of the predicted one"
    ),
    SpeedAsPredicted.FASTER: (
        f"a time between tokens within {RECOVERY_TOLERANCE:.0%} of the predicted one"
    ),
    SpeedAsPredicted.NOT_ENOUGH_REQUESTS: (f"{MIN_REQUESTS} requests within five minutes"),
}


def explain_speed(snapshot: Snapshot, allotment: ServicePlan) -> Iterator[Decision]:
    """What is measured now, which the status follows slowly; nothing while nothing is placed."""
    speed = allotment.observed_speed(snapshot.readings)
    if speed is None:
        return
    current_verdict = speed_verdict(allotment.speed)
    yield Decision(
        topic="speed",
        reason=current_verdict.reason,
        message=current_verdict.message,
        numbers=tuple(_numbers(speed)),
        would_change=(_CHANGES[current_verdict.reason],),
    )


def _numbers(speed: ServiceSpeed) -> Iterator[tuple[str, str]]:
    yield (
        "tokens a second",
        f"{speed.capacity:.0f} from {speed.replicas} full replicas"
        + (f", {rate:.0f} now" if (rate := speed.tokens_per_second) is not None else ""),
    )
    yield from _itl_numbers(speed)
    yield (
        "price of a million",
        f"{_format_price(speed.capacity_price)} when full"
        + (f", {_format_price(price)} now" if (price := speed.price) is not None else ""),
    )
    if speed.mfu is not None and speed.mbu is not None:
        yield (
            "share of the peaks",
            f"{speed.mfu:.0%} of {speed.peaks.flops / 1e12:.0f} TFLOP/s, "
            f"{speed.mbu:.0%} of {speed.peaks.bandwidth / 1e9:.0f} GB/s",
        )
    if speed.kv_usage is not None:
        yield "cache in use", f"{speed.kv_usage:.0%}"
    if speed.kv_reported is not None and speed.kv_error is not None:
        yield (
            "cache of a replica",
            f"{speed.kv_planned} tokens planned, {speed.kv_reported} as its engine says "
            f"({speed.kv_error:+.1%})",
        )


def _itl_numbers(speed: ServiceSpeed) -> Numbers:
    if speed.predicted is None or speed.measured_mean is None:
        return ()
    median = speed.median_bucket
    return (
        (
            "between tokens",
            f"{speed.measured_mean * 1e3:.1f} ms on average, {speed.predicted.mean * 1e3:.1f} ms "
            f"predicted for {speed.sequences or 0:.1f} answers in a step, "
            f"by {speed.requests:.0f} requests in 5 minutes",
        ),
        (
            "median of these",
            ("not known" if median is None else _format_bucket(median))
            + f", {speed.predicted.median * 1e3:.1f} ms predicted",
        ),
    )


def _format_bucket(bucket: tuple[float, float]) -> str:
    """The engine counts in buckets."""
    return f"between {bucket[0] * 1e3:g} and {bucket[1] * 1e3:g} ms"


def _format_price(price: Money) -> str:
    return f"{price.rounded(4)} {price.currency}"
