"""Whether a version has a replica that is Ready, and from when on it counts as one that is down.

A version that never had one protects no user, and one whose containers fail for as long answers no
gate. Replicas without a node, on a node that is not ready, or that nobody wants prove nothing.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.health.startup_failure import startup_failure
from tessera.domain.observed.gates import Readiness
from tessera.domain.observed.snapshot import Pod
from tessera.domain.rollout.template_rollout import START_TOLERANCE


class VersionReadiness(NamedTuple):
    """What is known of the replicas of a version in force."""

    readiness: Readiness
    down_at: datetime | None = None
    """When the version counts as down unless a replica gets ready; None while nothing says so."""


def version_readiness(
    last: Readiness,
    spec: InferenceServiceSpec | None,
    pods: Sequence[Pod],
    ready_nodes: Collection[str],
    expected_lead: timedelta,
    at: datetime,
) -> VersionReadiness:
    """Return what is known of a version by its replicas of now, and by what was known.

    What is down stays so until a replica is Ready, since its replicas may have lent their devices.
    """
    if any(pod.takes_requests for pod in pods):
        return VersionReadiness("Ready")
    if last in {"Overdue", "Failing"}:
        return VersionReadiness(last)
    begun = [
        begin
        for pod in pods
        if pod.node in ready_nodes
        and not (pod.containers_ready or pod.terminating)
        and (begin := _begin(last, spec, pod)) is not None
    ]
    if not begun:
        return VersionReadiness(last)
    down_at = min(begun) + expected_lead + START_TOLERANCE
    if at < down_at:
        return VersionReadiness(last, down_at)
    return VersionReadiness("Overdue" if last == "Pending" else "Failing")


def _begin(last: Readiness, spec: InferenceServiceSpec | None, pod: Pod) -> datetime | None:
    """Return since when a replica has been starting, or of a version that served, failing."""
    if last == "Pending" or pod.bound is None:
        return pod.bound
    if startup_failure(spec, (pod,), ()) is None:
        return None
    return max(pod.bound, pod.containers_unready_since or pod.bound)
