"""Explanation of the speed: measured values beside the predicted ones."""

from collections.abc import Iterator

from tessera.api.reasons import SpeedAsPredicted
from tessera.api.service_status import PreemptionStatus
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.perf import MIN_REQUESTS, OFF_TOLERANCE
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.speed.condition import RECOVERY_TOLERANCE, speed_verdict
from tessera.domain.speed.preemption import preemption_message
from tessera.domain.speed.service_speed import ServiceSpeed

_CHANGES = {
    SpeedAsPredicted.AS_PREDICTED: (
        f"an ITL more than {OFF_TOLERANCE:.0%} off the predicted one for five minutes"
    ),
    SpeedAsPredicted.SLOWER: f"an ITL within {RECOVERY_TOLERANCE:.0%} of the predicted one",
    SpeedAsPredicted.FASTER: f"an ITL within {RECOVERY_TOLERANCE:.0%} of the predicted one",
    SpeedAsPredicted.NOT_ENOUGH_REQUESTS: f"{counted(MIN_REQUESTS, 'request')} in five minutes",
}


def explain_speed(snapshot: Snapshot, service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about the speed, with the values of now; nothing while not placed."""
    speed = service_plan.observed_speed(snapshot.readings)
    if speed is None:
        return
    current_verdict = speed_verdict(service_plan.speed, is_pooling=service_plan.is_pooling)
    yield Decision(
        topic="speed",
        reason=current_verdict.reason,
        message=current_verdict.message,
        numbers=(
            *([("variant", speed.variant)] if len(service_plan.variants) > 1 else ()),
            *_numbers(speed),
            *_preemptions(service_plan.preemption),
        ),
        would_change=tuple(
            change for reason, change in _CHANGES.items() if reason is current_verdict.reason
        ),
    )


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
