"""Readiness of a service, for which only a real completion counts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tessera.api.meta import Condition
from tessera.api.reasons import Progressing, Ready, StatusVerdict
from tessera.api.text import counted
from tessera.domain.observed.snapshot import ObservedService, Pod, ProbeResult, Snapshot

# How long after a completion an idle service is probed again.
IDLE_PROBE_INTERVAL = timedelta(minutes=5)
# How long after a failure it is probed again.
FAILED_PROBE_INTERVAL = timedelta(seconds=5)
_NEVER = datetime.max.replace(tzinfo=UTC)


def assess_readiness(
    snapshot: Snapshot,
    service: ObservedService,
    desired: int,
    pods: Sequence[Pod],
    failure: StatusVerdict[Progressing] | None = None,
) -> StatusVerdict[Ready]:
    """Judge a placed service by its replicas and its last completion.

    After one success it stays ready until a completion fails or no replica is ready. `failure` is
    why replicas do not start.
    """
    if desired == 0:
        return StatusVerdict(Ready.SCALED_TO_ZERO, "0 replicas are desired")
    if not any(pod.takes_requests for pod in pods):
        cause = f"; {failure.reason}: {failure.message}" if failure is not None else ""
        message = f"0 of {counted(desired, 'replica')} ready{cause}"
        return StatusVerdict(Ready.NO_REPLICA_READY, message)
    probe_result = _current_result(snapshot, service)
    if probe_result is not None and probe_result.problem is not None:
        return StatusVerdict(Ready.COMPLETION_FAILED, probe_result.problem)
    if probe_result is not None or was_ready(service):
        return StatusVerdict(
            Ready.COMPLETION_SUCCEEDED, "a one-token completion through the Service succeeded"
        )
    return StatusVerdict(Ready.PROBE_PENDING, "a first completion through the Service is pending")


def must_probe(snapshot: Snapshot, service: ObservedService, pods: Sequence[Pod]) -> bool:
    """Return whether a completion is due."""
    if not any(pod.takes_requests for pod in pods):
        return False
    probe_result = _current_result(snapshot, service)
    if probe_result is None:
        return True
    age = snapshot.at - probe_result.at
    if probe_result.problem is not None:
        return age >= FAILED_PROBE_INTERVAL
    finished_requests = snapshot.readings.finished.get(service.ref) if snapshot.readings else None
    return age >= IDLE_PROBE_INTERVAL and not finished_requests


def next_probe_at(snapshot: Snapshot, service: ObservedService) -> datetime:
    """Return when the next completion is due, if replicas, status and last result stay the same."""
    probe_result = snapshot.probe_results.get(service.ref)
    if probe_result is None:
        return _NEVER
    return probe_result.at + (
        IDLE_PROBE_INTERVAL if probe_result.problem is None else FAILED_PROBE_INTERVAL
    )


def was_ready(service: ObservedService) -> bool:
    """Return whether the status says Ready."""
    condition = _ready_condition(service)
    return condition is not None and condition.status == "True"


def _current_result(snapshot: Snapshot, service: ObservedService) -> ProbeResult | None:
    """Return the last result, unless the service was not ready since."""
    probe_result = snapshot.probe_results.get(service.ref)
    condition = _ready_condition(service)
    if probe_result is None or condition is None or condition.status == "True":
        return probe_result
    return probe_result if probe_result.at >= condition.last_transition_time else None


def _ready_condition(service: ObservedService) -> Condition | None:
    matches = (condition for condition in service.status.conditions if condition.type == "Ready")
    return next(matches, None)
