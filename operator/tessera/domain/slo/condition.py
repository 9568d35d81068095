"""The condition SLOMet, and status.slo from which it follows.

Shares move all the time, and a status must not. So a status stays for five minutes, and longer
until the reason changes or a share moves further than it varies under the same load. Only a share
that moves far is written after a minute. The status itself is the only memory of this.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.inference_service import Slo
from tessera.api.meta import format_duration
from tessera.api.reasons import SLOMet, StatusVerdict
from tessera.api.service_status import ObjectiveStatus, SloStatus
from tessera.api.text import counted
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import Pod
from tessera.domain.slo.measurement import (
    GOAL,
    MIN_REQUESTS,
    WINDOW_SECONDS,
    Objective,
    ObjectiveMeasurement,
    SloMeasurement,
    measure_slo,
)

# Time that a measurement covers; the status is not written more often, but for shares that moved
# by so much.
WINDOW = timedelta(seconds=WINDOW_SECONDS)
_FAR_CHANGE, _FAR_INTERVAL = 0.1, timedelta(minutes=1)
# A service that missed its goal meets it again from this share on.
RECOVERY_GOAL = 0.955
# A share is written when it moves by more than a percentage point, than a tenth of what is missed,
# and than half of what is uncertain.
_MIN_CHANGE = 0.01
_MIN_CHANGE_OF_MISSED = 0.1

_GOAL_TEXT = f"{GOAL:.0%}".replace("%", " %")
_BY_NAME = {reason.value: reason for reason in SLOMet}


def next_slo_status(
    slo: Slo,
    latency: ServiceLatency | None,
    pods: Sequence[Pod],
    current: SloStatus | None,
    at: datetime,
) -> SloStatus | None:
    """Return the status that follows from a reading of this moment.

    It is `current` unless the reading differs by much, or the objectives were changed. A reading of
    too few requests changes nothing. `latency` is None for a service without any series.
    """
    if current is not None and not _is_of(current, slo):
        current = None
    if current is not None and (age := at - current.observed_at) < WINDOW:
        if latency is None or age < _FAR_INTERVAL:
            return current
        if not _has_moved(current, measure_slo(slo, latency), _FAR_CHANGE):
            return current
    previous = SLOMet.NO_TRAFFIC if current is None else _BY_NAME.get(current.reason)
    if latency is None:
        reason = _reason_without_series(previous, pods, at)
        return current if reason is previous else _status(reason, None, at)
    measurement = measure_slo(slo, latency)
    measured_reason = slo_reason(measurement, previous)
    if measured_reason is None:
        is_new = previous is SLOMet.FAILED_GET_METRICS
        return _status(SLOMet.NO_TRAFFIC, None, at) if is_new else current
    if measured_reason is previous and not _has_moved(current, measurement):
        return current
    return _status(measured_reason, measurement, at)


def slo_verdict(status: SloStatus | None) -> StatusVerdict[SLOMet]:
    """Return the condition that follows from the status."""
    reason = _BY_NAME.get(status.reason) if status is not None else None
    if status is None or reason is None or reason is SLOMet.NO_TRAFFIC:
        return StatusVerdict(
            SLOMet.NO_TRAFFIC,
            f"a verdict needs {counted(MIN_REQUESTS, 'request')} in 5 minutes, as the engines or "
            "the gateway count them",
        )
    if reason is SLOMet.FAILED_GET_METRICS:
        return StatusVerdict(reason, _FAILED_MESSAGE)
    parts = [
        _objective_message(objective, judged)
        for objective, judged in ((Objective.TTFT, status.ttft), (Objective.ITL, status.itl))
        if judged is not None
    ]
    return StatusVerdict(
        reason,
        f"{'; '.join(parts)}. The goal is {_GOAL_TEXT}, in the 5 minutes until "
        f"{status.observed_at:%Y-%m-%d %H:%M} UTC{_ADVICE.get(reason, '')}",
    )


_FAILED_MESSAGE = (
    "no latency of the engines is known, or its counts contradict each other: check with "
    "tessera doctor"
)
_ADVICE = {
    SLOMet.MISSED: ". What decides is in tessera explain: docs/tasks/slo.md",
    SLOMet.BUCKET_TOO_WIDE: ". Set the target to an edge of the engines' buckets, which tessera "
    "doctor names, or send most requests through the gateway as streams, which alone count there: "
    "docs/tasks/slo.md",
}


def slo_reason(measurement: SloMeasurement, previous: SLOMet | None) -> SLOMet | None:
    """Return the reason that is certain; None when too little was counted for a change."""
    ttft, itl = measurement.ttft, measurement.itl
    if ttft.attained is None or itl.attained is None:
        return SLOMet.FAILED_GET_METRICS
    if not ttft.is_sufficient:
        return SLOMet.NO_TRAFFIC if ttft.attained.total <= 0 else None
    goal = RECOVERY_GOAL if previous is SLOMet.MISSED else GOAL
    judged = [objective.attained for objective in _sufficient(measurement)]
    if any(attained.upper_share < goal for attained in judged if attained is not None):
        return SLOMet.MISSED
    if all(attained.lower_share >= goal for attained in judged if attained is not None):
        return SLOMet.MET
    return SLOMet.BUCKET_TOO_WIDE


def attained_text(measurement: SloMeasurement) -> str | None:
    """Return the share of the objective that is missed most; None when too little was counted."""
    attained = [
        objective.attained
        for objective in _sufficient(measurement)
        if objective.attained is not None
    ]
    if not attained:
        return None
    least = min(attained, key=lambda each: each.share)
    return ("" if least.is_exact else "~") + percent(least.share)


def percent(share: float) -> str:
    """Return a share such as `97.2 %`, rounded down: 99.96 % is not all."""
    return f"{_thousandths(share) / 10:.1f} %"


def _sufficient(measurement: SloMeasurement) -> list[ObjectiveMeasurement]:
    """Return the objectives that were counted; answers of one token have no second gap."""
    return [objective for objective in measurement.objectives if objective.is_sufficient]


def _is_of(status: SloStatus, slo: Slo) -> bool:
    """Return whether a status is of these objectives."""
    targets = ((status.ttft, slo.ttft_p95), (status.itl, slo.itl_p95))
    return all(judged is None or judged.target == target for judged, target in targets)


def _reason_without_series(previous: SLOMet | None, pods: Sequence[Pod], at: datetime) -> SLOMet:
    """Return why there is no series: an engine has some as soon as it was scraped twice.

    A service without traffic misses no verdict.
    """
    scraped = any(pod.ready_since is not None and at - pod.ready_since >= WINDOW for pod in pods)
    is_lost = scraped and previous is not SLOMet.NO_TRAFFIC
    return SLOMet.FAILED_GET_METRICS if is_lost else SLOMet.NO_TRAFFIC


def _has_moved(
    current: SloStatus | None, measurement: SloMeasurement, least: float = _MIN_CHANGE
) -> bool:
    """Return whether a share differs enough from that in a status with shares to be written."""
    if current is None or current.attained is None:
        return False
    statuses = (current.ttft, current.itl)
    return any(
        _moved(status, objective, least)
        for status, objective in zip(statuses, measurement.objectives, strict=True)
        if objective.is_sufficient
    )


def _moved(status: ObjectiveStatus | None, objective: ObjectiveMeasurement, least: float) -> bool:
    """Return whether a share differs from that of the status by more than it varies."""
    attained = objective.attained
    if status is None or attained is None:
        return attained is not None
    share = attained.share
    uncertain = float(status.at_most - status.at_least)
    tolerance = max(least, _MIN_CHANGE_OF_MISSED * (1 - share), uncertain / 2)
    return abs(share - float(status.attained)) > tolerance


def _status(reason: SLOMet, measurement: SloMeasurement | None, at: datetime) -> SloStatus:
    observed_at = at.replace(microsecond=0)
    if measurement is None or reason in (SLOMet.NO_TRAFFIC, SLOMet.FAILED_GET_METRICS):
        return SloStatus(reason=reason, observed_at=observed_at)
    return SloStatus(
        reason=reason,
        attained=attained_text(measurement),
        ttft=_objective_status(measurement.ttft),
        itl=_objective_status(measurement.itl),
        observed_at=observed_at,
    )


def _objective_status(objective: ObjectiveMeasurement) -> ObjectiveStatus | None:
    attained = objective.attained
    if attained is None or not objective.is_sufficient:
        return None
    return ObjectiveStatus(
        target=timedelta(seconds=objective.target_seconds),
        attained=_share(attained.share),
        at_least=_share(attained.lower_share),
        at_most=_share(attained.upper_share),
        counted=round(attained.total),
        source=objective.source,
    )


def _share(share: float) -> Decimal:
    return Decimal(_thousandths(share)) / 1000


def _thousandths(share: float) -> int:
    """Return a share in thousandths, rounded down; what is a thousandth but for a float stays."""
    return int(share * 1000 + 1e-6)


def _objective_message(objective: Objective, status: ObjectiveStatus) -> str:
    low, high = percent(float(status.at_least)), percent(float(status.at_most))
    shares = low if low == high else f"between {low} and {high}"
    unit = "request" if objective is Objective.TTFT else "token"
    return (
        f"{objective.name} within {format_duration(status.target)}: {shares} of "
        f"{counted(status.counted, unit)} at the {status.source.lower()}"
    )
