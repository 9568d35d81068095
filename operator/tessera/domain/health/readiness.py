"""Readiness of a service, for which only a real answer of its model counts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tessera.api.meta import find_condition
from tessera.api.reasons import Progressing, Ready, StatusVerdict
from tessera.api.text import counted
from tessera.domain.incremental import reused_per_object
from tessera.domain.model.paths import own_paths
from tessera.domain.observed.snapshot import ObservedService, Pod, ProbeResult, Ref, Snapshot
from tessera.domain.placement.checks import pooling_task

# How long after a successful probe an idle service is probed again.
IDLE_PROBE_INTERVAL = timedelta(minutes=5)
# How long after a failure it is probed again.
FAILED_PROBE_INTERVAL = timedelta(seconds=5)
_AT_ONCE = datetime.min.replace(tzinfo=UTC)


def assess_readiness(
    snapshot: Snapshot,
    service: ObservedService,
    desired: int,
    pods: Sequence[Pod],
    failure: StatusVerdict[Progressing] | None = None,
) -> StatusVerdict[Ready]:
    """Judge a placed service by its replicas and its last probe.

    After one success it stays ready until a probe fails or no replica is ready. `failure` is
    why replicas do not start.
    """
    if desired == 0:
        return StatusVerdict(Ready.SCALED_TO_ZERO, "0 replicas are desired")
    if not any(pod.takes_requests for pod in pods):
        cause = f"; {failure.reason}: {failure.message}" if failure is not None else ""
        message = f"0 of {counted(desired, 'replica')} ready{cause}"
        return StatusVerdict(Ready.NO_REPLICA_READY, message)
    probe_result = _current_result(snapshot.probe_results.get(service.ref), service)
    task = pooling_task(service.spec) if service.spec is not None else None
    if probe_result is not None and probe_result.problem is not None:
        failed = Ready.COMPLETION_FAILED if task is None else Ready.PROBE_FAILED
        return StatusVerdict(failed, probe_result.problem)
    if probe_result is None and not was_ready(service):
        return StatusVerdict(
            Ready.PROBE_PENDING,
            f"a first request to {own_paths(task)[0]} through the Service is pending",
        )
    if task is None:
        return StatusVerdict(
            Ready.COMPLETION_SUCCEEDED, "a one-token completion through the Service succeeded"
        )
    return StatusVerdict(
        Ready.PROBE_SUCCEEDED,
        f"a request of one text to {own_paths(task)[0]} through the Service succeeded",
    )


def must_probe(snapshot: Snapshot, service: ObservedService, pods: Sequence[Pod]) -> bool:
    """Return whether a probe is due."""
    last_result = snapshot.probe_results.get(service.ref)
    due = _next_probe(service.ref, service, pods, last_result)
    if due is None or snapshot.at < due:
        return False
    finished_requests = snapshot.readings.finished.get(service.ref) if snapshot.readings else None
    succeeded = last_result is not None and last_result.problem is None
    # A probe is a request, which would keep a service from sleeping for ever.
    spec = service.spec
    may_sleep = spec is not None and spec.fixed_replicas is None and spec.scaling.may_sleep
    needs_none = finished_requests or may_sleep
    return not (succeeded and due > _AT_ONCE and needs_none)


@reused_per_object
def _next_probe(
    _ref: Ref, service: ObservedService, pods: Sequence[Pod], last_result: ProbeResult | None
) -> datetime | None:
    """Return when a probe is due; None without a replica."""
    if not any(pod.takes_requests for pod in pods):
        return None
    probe_result = _current_result(last_result, service)
    if probe_result is None:
        return _AT_ONCE
    return probe_result.at + (
        IDLE_PROBE_INTERVAL if probe_result.problem is None else FAILED_PROBE_INTERVAL
    )


def was_ready(service: ObservedService) -> bool:
    """Return whether the status says Ready."""
    condition = find_condition(service.status.conditions, "Ready")
    return condition is not None and condition.status == "True"


def _current_result(
    probe_result: ProbeResult | None, service: ObservedService
) -> ProbeResult | None:
    """Return the last result, unless the service was not ready since."""
    condition = find_condition(service.status.conditions, "Ready")
    if probe_result is None or condition is None or condition.status == "True":
        return probe_result
    return probe_result if probe_result.at >= condition.last_transition_time else None
