"""Explanation of what a service attains of its objectives, with the values of now."""

from collections.abc import Iterator

from tessera.api.inference_service import SLOW_ITL, InferenceServiceSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import SLOMet
from tessera.api.text import counted
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.slo.condition import RECOVERY_GOAL, percent, slo_verdict
from tessera.domain.slo.measurement import (
    GOAL,
    MIN_REQUESTS,
    Objective,
    ObjectiveMeasurement,
    SloMeasurement,
    judging_edges,
    measure_variants,
)

_CHANGES = {
    SLOMet.MET: f"fewer than {GOAL:.0%} within a target for five minutes",
    SLOMet.MISSED: f"at least {RECOVERY_GOAL:.1%} within both targets for five minutes",
    SLOMet.BUCKET_TOO_WIDE: "a target at an edge of the engines' buckets, or requests through the "
    "gateway",
    SLOMet.NO_TRAFFIC: f"{counted(MIN_REQUESTS, 'request')} in five minutes",
    SLOMet.FAILED_GET_METRICS: "latency histograms of the engines in Prometheus",
}


def explain_slo(snapshot: Snapshot, service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about the objectives; nothing while the service is not placed."""
    spec = service_plan.service.spec
    if spec is None or service_plan.choice is None:
        return
    verdict = slo_verdict(service_plan.slo)
    yield Decision(
        topic="slo",
        reason=verdict.reason,
        message=verdict.message,
        numbers=(
            *(_target(objective, spec) for objective in Objective),
            *_measured(snapshot, service_plan, spec),
        ),
        would_change=(_CHANGES[verdict.reason],),
    )


def _target(objective: Objective, spec: InferenceServiceSpec) -> tuple[str, str]:
    edges = judging_edges(objective, spec.slo, spec.engine.version)
    target = objective.target_seconds(spec.slo)
    counted_at = " and ".join(f"{edge * 1e3:g} ms" for edge in edges)
    place = (
        "an edge of the engines' buckets" if target in edges else f"engines count at {counted_at}"
    )
    goal = spec.slo.ttft_p95 if objective is Objective.TTFT else spec.slo.itl_p95
    return f"{objective.name} target", f"{GOAL:.0%} within {format_duration(goal)}, {place}"


def _measured(
    snapshot: Snapshot, service_plan: ServicePlan, spec: InferenceServiceSpec
) -> Iterator[tuple[str, str]]:
    """Yield what is attained now, and of each variant while there are several."""
    readings = snapshot.readings
    measurement = service_plan.measured_slo(readings)
    if readings is None or measurement is None:
        return
    yield from _attained(measurement, "")
    if measurement.ttft.overdue >= 0.5:
        oldest = f", the oldest for {measurement.oldest_seconds:.1f} s"
        yield (
            "overdue",
            f"{counted(round(measurement.ttft.overdue), 'request')} without a first token"
            + (oldest if measurement.oldest_seconds else ""),
        )
    latency = readings.latencies[service_plan.service.ref]
    if (burn := latency.budget_burn) is not None:
        used_up = f"used up: {burn:.1f} times the misses that 3 days allow"
        yield "error budget", used_up if burn > 1 else f"{percent(1 - burn)} of 3 days left"
    if len(latency.engines) > 1:
        for variant, of_variant in measure_variants(spec.slo, latency):
            yield from _attained(of_variant, f" of {variant or 'engines without a variant'}")
    speed = service_plan.observed_speed(readings)
    mean = speed.measured_mean if speed is not None else None
    if mean is not None and mean > SLOW_ITL.total_seconds():
        yield "slow", f"mean ITL {mean * 1e3:.1f} ms: {1 / mean:.0f} tok/s is slower than reading"


def _attained(measurement: SloMeasurement, suffix: str) -> Iterator[tuple[str, str]]:
    for measured in measurement.objectives:
        if text := _attained_text(measured):
            yield f"{measured.objective.name} attained{suffix}", text


def _attained_text(measured: ObjectiveMeasurement) -> str:
    attained = measured.attained
    if attained is None:
        return f"unknown: the counts of the {measured.source.lower()} contradict each other"
    if attained.total <= 0:
        return ""
    unit = "request" if measured.objective is Objective.TTFT else "token"
    share = percent(attained.share)
    if not attained.is_exact:
        bounds = f"{percent(attained.lower_share)} and {percent(attained.upper_share)}"
        share = f"between {bounds}, {share} interpolated,"
    return f"{share} of {counted(round(attained.total), unit)} at the {measured.source.lower()}"
