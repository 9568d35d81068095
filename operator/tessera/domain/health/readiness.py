"""Does a service answer? Only a real completion counts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tessera.api.meta import Condition
from tessera.api.reasons import Progressing, Ready, StatusVerdict
from tessera.domain.observed.snapshot import ObservedService, Pod, ProbeResult, Snapshot

# A service that finished no request for so long is asked again.
IDLE_PROBE_INTERVAL = timedelta(minutes=5)
# After a failure it is asked again this soon.
FAILED_PROBE_INTERVAL = timedelta(seconds=5)
_NEVER = datetime.max.replace(tzinfo=UTC)


def assess_readiness(
    snapshot: Snapshot,
    service: ObservedService,
    desired: int,
    pods: Sequence[Pod],
    failure: StatusVerdict[Progressing] | None = None,
) -> StatusVerdict[Ready]:
    """Judge a placed service by its replicas and its last answer.

    Once answered it stays ready while any replica takes requests, until a completion fails.
    `trouble` is why replicas do not come up.
    """
    if desired == 0:
        return StatusVerdict(Ready.SCALED_TO_ZERO, "spec.replicas is 0")
    if not any(pod.takes_requests for pod in pods):
        cause = f"; {failure.reason}: {failure.message}" if failure is not None else ""
        return StatusVerdict(
            Ready.NO_REPLICA_READY, f"0 of {desired} replicas take requests{cause}"
        )
    probe = _current_probe(snapshot, service)
    if probe is not None and probe.problem is not None:
        return StatusVerdict(Ready.COMPLETION_FAILED, probe.problem)
    if probe is not None or was_ready(service):
        return StatusVerdict(
            Ready.COMPLETION_SUCCEEDED, "a one-token completion through the Service was answered"
        )
    return StatusVerdict(
        Ready.PROBE_PENDING, "a first completion through the Service was asked for"
    )


def must_probe(snapshot: Snapshot, service: ObservedService, pods: Sequence[Pod]) -> bool:
    """Is it time to ask the service for a token?"""
    if not any(pod.takes_requests for pod in pods):
        return False
    probe = _current_probe(snapshot, service)
    if probe is None:
        return True
    age = snapshot.at - probe.at
    if probe.problem is not None:
        return age >= FAILED_PROBE_INTERVAL
    finished = snapshot.readings.finished.get(service.ref) if snapshot.readings else None
    return age >= IDLE_PROBE_INTERVAL and not finished


def next_probe_at(snapshot: Snapshot, service: ObservedService) -> datetime:
    """Until when a service that need not be asked now need not be, as long as its replicas, its
    status and its last answer stay the same."""
    probe = snapshot.probe_results.get(service.ref)
    if probe is None:
        return _NEVER
    return probe.at + (IDLE_PROBE_INTERVAL if probe.problem is None else FAILED_PROBE_INTERVAL)


def was_ready(service: ObservedService) -> bool:
    """Its status says that it is ready."""
    condition = _ready_condition(service)
    return condition is not None and condition.status == "True"


def _current_probe(snapshot: Snapshot, service: ObservedService) -> ProbeResult | None:
    """The last answer, unless the service was down since."""
    probe = snapshot.probe_results.get(service.ref)
    condition = _ready_condition(service)
    if probe is None or condition is None or condition.status == "True":
        return probe
    return probe if probe.at >= condition.last_transition_time else None


def _ready_condition(service: ObservedService) -> Condition | None:
    matches = (condition for condition in service.status.conditions if condition.type == "Ready")
    return next(matches, None)
