"""Does a service answer? Only a real completion counts."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tessera.api.meta import Condition
from tessera.domain.reasons import Progressing, Ready, Verdict
from tessera.domain.snapshot import Answer, Pod, Service, Snapshot

QUIET = timedelta(minutes=5)
"""A service that finished no request for so long is asked again."""
RETRY = timedelta(seconds=5)
"""After a failure it is asked again this soon."""
_NEVER = datetime.max.replace(tzinfo=UTC)


def ready(
    snapshot: Snapshot,
    service: Service,
    wanted: int,
    pods: Sequence[Pod],
    trouble: Verdict[Progressing] | None = None,
) -> Verdict[Ready]:
    """Judge a placed service by its replicas and its last answer.

    Once answered it stays ready while any replica takes requests, until a completion fails.
    `trouble` is why replicas do not come up.
    """
    if wanted == 0:
        return Verdict(Ready.SCALED_TO_ZERO, "spec.replicas is 0")
    if not any(pod.takes_requests for pod in pods):
        why = f"; {trouble.reason}: {trouble.message}" if trouble is not None else ""
        return Verdict(Ready.NO_REPLICA_READY, f"0 of {wanted} replicas take requests{why}")
    answer = _answer(snapshot, service)
    if answer is not None and answer.problem is not None:
        return Verdict(Ready.NO_ANSWER, answer.problem)
    if answer is not None or was_ready(service):
        return Verdict(Ready.ANSWERED, "a one-token completion through the Service was answered")
    return Verdict(Ready.WAITING_FOR_ANSWER, "a first completion through the Service was asked for")


def must_ask(snapshot: Snapshot, service: Service, pods: Sequence[Pod]) -> bool:
    """Is it time to ask the service for a token?"""
    if not any(pod.takes_requests for pod in pods):
        return False
    answer = _answer(snapshot, service)
    if answer is None:
        return True
    age = snapshot.at - answer.at
    if answer.problem is not None:
        return age >= RETRY
    finished = snapshot.readings.finished.get(service.ref) if snapshot.readings else None
    return age >= QUIET and not finished


def asked_again(snapshot: Snapshot, service: Service) -> datetime:
    """Until when a service that need not be asked now need not be, as long as its replicas, its
    status and its last answer stay the same."""
    answer = snapshot.answers.get(service.ref)
    if answer is None:
        return _NEVER
    return answer.at + (QUIET if answer.problem is None else RETRY)


def was_ready(service: Service) -> bool:
    """Its status says that it is ready."""
    condition = _condition(service)
    return condition is not None and condition.status == "True"


def _answer(snapshot: Snapshot, service: Service) -> Answer | None:
    """The last answer, unless the service was down since."""
    answer = snapshot.answers.get(service.ref)
    condition = _condition(service)
    if answer is None or condition is None or condition.status == "True":
        return answer
    return answer if answer.at >= condition.last_transition_time else None


def _condition(service: Service) -> Condition | None:
    found = (one for one in service.status.conditions if one.type == "Ready")
    return next(found, None)
