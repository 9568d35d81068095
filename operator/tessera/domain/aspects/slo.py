"""What a service attains of its objectives: SLOMet, status.slo."""

from collections.abc import Iterator
from datetime import datetime

from tessera.api.inference_service import SLOW_ITL, InferenceServiceSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import SLOMet, StatusVerdict
from tessera.api.service_status import SloStatus
from tessera.api.text import counted
from tessera.domain.aspects.aspect import Aspect, Explanation, Measurements, PlacedService, Reported
from tessera.domain.aspects.speed import observed_speed
from tessera.domain.incremental import Until
from tessera.domain.observed.snapshot import Readings, Snapshot
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.reporting.transitions import transitions
from tessera.domain.slo.condition import RECOVERY_GOAL, next_slo_status, percent, slo_verdict
from tessera.domain.slo.measurement import (
    GOAL,
    MIN_REQUESTS,
    Objective,
    ObjectiveMeasurement,
    SloMeasurement,
    edge_label,
    judging_bounds,
    judging_edges,
    measure_slo,
    measure_variants,
)
from tessera.domain.steps import Step

_CHANGES = {
    SLOMet.MET: f"fewer than {GOAL:.0%} within a target for five minutes",
    SLOMet.MISSED: f"at least {RECOVERY_GOAL:.1%} within both targets for five minutes",
    SLOMet.BUCKET_TOO_WIDE: "a target at an edge of the engines' buckets, or requests through the "
    "gateway",
    SLOMet.NO_TRAFFIC: f"{counted(MIN_REQUESTS, 'request')} in five minutes",
    SLOMet.FAILED_GET_METRICS: "latency histograms of the engines in Prometheus",
}


def measured_slo(placed: PlacedService, readings: Readings | None) -> SloMeasurement | None:
    """Return what it attains of its objectives now; None without any series."""
    spec = placed.service.spec
    latency = readings.latencies.get(placed.service.ref) if readings is not None else None
    return measure_slo(spec.slo, latency) if spec is not None and latency is not None else None


# One that raises costs the samples that depend on it, not the targets.
_sampled_slo = Step(measured_slo, lambda *_: None)


def _following(
    placed: PlacedService, measurements: Measurements, current: SloStatus | None, _at: datetime
) -> Until[SloStatus | None]:
    at = measurements.latency_at
    if at is None or placed.placement is None:
        return Until(current)
    spec, _ = placed.placement
    return Until(next_slo_status(spec.slo, measurements.readings.latency, placed.pods, current, at))


def _verdict(_placed: PlacedService, status: SloStatus | None) -> StatusVerdict[SLOMet]:
    return slo_verdict(status)


def _explain(placed: PlacedService, snapshot: Snapshot, reported: Reported) -> Explanation | None:
    if placed.placement is None:
        return None
    spec, _ = placed.placement
    targets = (_target(objective, spec) for objective in Objective)
    change = _CHANGES[slo_verdict(reported.slo).reason]
    return Explanation((*targets, *_measured(snapshot, placed, spec)), (change,))


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
    snapshot: Snapshot, placed: PlacedService, spec: InferenceServiceSpec
) -> Iterator[tuple[str, str]]:
    """Yield what is attained now, and of each variant while there are several."""
    readings = snapshot.readings
    measurement = measured_slo(placed, readings)
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
    latency = readings.latencies[placed.service.ref]
    if (burn := latency.budget_burn) is not None:
        used_up = f"used up: {burn:.1f} times the misses that 3 days allow"
        yield "error budget", used_up if burn > 1 else f"{percent(1 - burn)} of 3 days left"
    if len(latency.engines) > 1:
        for variant, of_variant in measure_variants(spec.slo, latency):
            yield from _attained(of_variant, f" of {variant or 'engines without a variant'}")
    speed = observed_speed(placed, readings)
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


_LABELS = ("namespace", "service", "objective")
_TARGET = Series(
    "tessera_service_slo_target_seconds",
    "Target of spec.slo for the 95th percentile, by `objective`: ttft or itl.",
    *_LABELS,
)
_ATTAINED = Series(
    "tessera_service_slo_attained_ratio",
    "Share of the last 5 minutes within the target; `bound`: lower or upper, since engines count "
    "at the edges of buckets only.",
    *(*_LABELS, "bound"),
)
_OVERDUE = Series(
    "tessera_service_slo_overdue_requests",
    "Requests that wait for their first token longer than spec.slo.ttftP95.",
    *_LABELS[:2],
)
_EDGE = Series(
    "tessera_service_slo_edge_info",
    "1 for each bucket edge `le` by which an objective is judged, of the histogram of `source`: "
    "Engine or Gateway.",
    *(*_LABELS, "source", "bound", "le"),
)


def _samples(
    placed: PlacedService, readings: Readings | None, _reported: SloStatus | None
) -> Iterator[Sample]:
    """Yield the objectives as of the last reading."""
    spec, ref = placed.service.spec, placed.service.ref
    if spec is None:
        return
    measurement = _sampled_slo(placed, readings)
    for objective in Objective:
        labels = ref.namespace, ref.name, objective.value
        yield _TARGET, labels, objective.target_seconds(spec.slo)
        measured = measurement.of(objective) if measurement is not None else None
        source = measured.source if measured is not None else "Engine"
        for bound, edge in judging_bounds(objective, spec.slo, spec.engine.version, source):
            yield _EDGE, (*labels, source, bound, edge_label(edge)), 1
        attained = measured.attained if measured is not None else None
        if attained is not None and attained.total > 0:
            yield _ATTAINED, (*labels, "lower"), attained.lower_share
            yield _ATTAINED, (*labels, "upper"), attained.upper_share
    if measurement is not None:
        yield _OVERDUE, (ref.namespace, ref.name), measurement.ttft.overdue


SLO: Aspect[SloStatus | None] = Aspect(
    name="slo",
    measured_by="latency",
    condition="SLOMet",
    following=_following,
    verdict=_verdict,
    events=lambda old, new: transitions(old.conditions, new.conditions, "SLOMet"),
    explain=_explain,
    series=(_TARGET, _ATTAINED, _OVERDUE, _EDGE),
    samples=_samples,
)
