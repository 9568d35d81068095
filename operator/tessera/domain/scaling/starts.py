"""How long replicas take to start, by phase, and the lead of a further one that follows from it.

Kubernetes has the times of a pod's creation, its binding, the start of its container and its
readiness. What an engine does between the last two (reading the model's files, compilation and
warm-up) it writes to its log alone, so that is one phase here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tessera.api.service_status import StartStatus
from tessera.domain.observed.snapshot import Pod

# Engines whose image and weights are on the node start within it.
DEFAULT_LEAD = timedelta(seconds=120)
MAX_LEAD = timedelta(minutes=15)
# By which the clock of a node may differ from that of the operator.
_CLOCK_SKEW = timedelta(minutes=1)


class StartPhase(StrEnum):
    """The phases of a start that pod times tell apart, in their order."""

    SCHEDULE = "schedule"
    """From the creation of the pod until it is bound to a node."""
    IMAGE = "image"
    """From then until its container starts: sandbox, volumes, and the pull of images."""
    ENGINE = "engine"
    """From then until it is ready: files without a cache, load, compilation and warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStart:
    """The start of one replica."""

    pod: str
    variant: str
    created: datetime
    phases: Mapping[StartPhase, timedelta]
    """What is known; only the schedule where a container ran more than once."""
    lead: timedelta
    """Time from its binding until it was ready."""


def start_of(pod: Pod) -> ReplicaStart | None:
    """Return the start of a replica; None while it is not ready."""
    lead = _lead(pod)
    if lead is None or pod.bound is None or pod.ready_since is None:
        return None
    phases = {StartPhase.SCHEDULE: max(timedelta(), pod.bound - pod.created)}
    if pod.started is not None and pod.bound <= pod.started <= pod.ready_since:
        phases[StartPhase.IMAGE] = pod.started - pod.bound
        phases[StartPhase.ENGINE] = pod.ready_since - pod.started
    return ReplicaStart(
        pod=pod.ref.name,
        variant=pod.variant,
        created=pod.created.replace(microsecond=0),
        phases=phases,
        lead=lead,
    )


def phase_now(pod: Pod, at: datetime) -> tuple[StartPhase, timedelta] | None:
    """Return the phase of a replica that starts, and for how long; None for any other."""
    if pod.terminating or pod.ready_since is not None or pod.containers_ready:
        return None
    if pod.bound is None:
        return StartPhase.SCHEDULE, at - pod.created
    if pod.started is None:
        # After the first run of its container it is no start but a failure, which is reported.
        return None if pod.last_exit is not None else (StartPhase.IMAGE, at - pod.bound)
    return StartPhase.ENGINE, at - pod.started


def typical_start(
    pods: Sequence[Pod], recorded: StartStatus | None, variant: str
) -> ReplicaStart | None:
    """Return the median of the starts of the ready replicas, else the recorded one of the variant.

    None where nothing is known, as before the first start.
    """
    leads = sorted((lead, pod.ref) for pod in pods if (lead := _lead(pod)) is not None)
    if leads:
        # A replica that became unready later shows a longer time.
        _, median = leads[(len(leads) - 1) // 2]
        return next(start_of(pod) for pod in pods if pod.ref == median)
    if recorded is None or recorded.variant != variant:
        return None
    return _recorded_start(recorded)


def expected_lead(pods: Sequence[Pod], recorded: StartStatus | None, variant: str) -> timedelta:
    """Return the time from binding to readiness of a further replica of a variant.

    Where nothing is known of it, that of the service's replicas on others.
    """
    own = [pod for pod in pods if pod.variant == variant]
    return lead_of(typical_start(own, recorded, variant) or typical_start(pods, None, ""))


def lead_of(start: ReplicaStart | None) -> timedelta:
    """Return the time from binding to readiness that a further replica takes."""
    return DEFAULT_LEAD if start is None else min(start.lead, MAX_LEAD)


def is_slow(recorded: StartStatus) -> bool:
    """Return whether a replica took longer than one whose image and weights are on its node."""
    return timedelta(seconds=recorded.seconds - recorded.schedule_seconds) > DEFAULT_LEAD


def next_start_status(
    pods: Sequence[Pod], recorded: StartStatus | None, at: datetime
) -> StartStatus | None:
    """Return the start of the newest replica that became ready; the recorded one until then.

    One that will be ready says only that the clock of its node is wrong.
    """
    ready = [
        pod
        for pod in pods
        if _lead(pod) is not None and pod.ready_since and pod.ready_since - at < _CLOCK_SKEW
    ]
    latest = max(ready, key=lambda pod: (pod.created, pod.ref), default=None)
    newest = start_of(latest) if latest is not None else None
    if newest is None or (
        recorded is not None and (newest.created, newest.pod) <= (recorded.created_at, recorded.pod)
    ):
        return recorded
    seconds = {phase: round(span.total_seconds()) for phase, span in newest.phases.items()}
    schedule = seconds[StartPhase.SCHEDULE]
    return StartStatus(
        pod=newest.pod,
        variant=newest.variant,
        created_at=newest.created,
        seconds=schedule + round(newest.lead.total_seconds()),
        schedule_seconds=schedule,
        image_seconds=seconds.get(StartPhase.IMAGE),
        engine_seconds=seconds.get(StartPhase.ENGINE),
    )


def phase_seconds(recorded: StartStatus) -> Iterator[tuple[StartPhase, int]]:
    """Yield the known phases of a recorded start."""
    for phase, seconds in (
        (StartPhase.SCHEDULE, recorded.schedule_seconds),
        (StartPhase.IMAGE, recorded.image_seconds),
        (StartPhase.ENGINE, recorded.engine_seconds),
    ):
        if seconds is not None:
            yield phase, seconds


def _lead(pod: Pod) -> timedelta | None:
    if pod.bound is None or pod.ready_since is None or pod.ready_since <= pod.bound:
        return None
    return pod.ready_since - pod.bound


def _recorded_start(recorded: StartStatus) -> ReplicaStart:
    return ReplicaStart(
        pod=recorded.pod,
        variant=recorded.variant,
        created=recorded.created_at,
        phases={phase: timedelta(seconds=seconds) for phase, seconds in phase_seconds(recorded)},
        lead=timedelta(seconds=max(0, recorded.seconds - recorded.schedule_seconds)),
    )
