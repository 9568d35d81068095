"""Readings of single replicas -> the load of a service."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tessera.domain.autoscale import Load
from tessera.domain.snapshot import Pod, PodReading, Readings, Ref

FRESH = timedelta(seconds=30)
"""Older readings count as missing; younger replicas need none yet."""


def load_of(pods: Sequence[Pod], readings: Readings | None, replicas: int, now: datetime) -> Load:
    """Sum what waits and average the activity over the replicas that take requests.

    One replica that has taken requests for a while and cannot be read makes the sum unknown: a
    missing reading is not zero.
    """
    serving = [pod for pod in pods if pod.takes_requests and pod.serving]
    by_pod: Mapping[Ref, PodReading] = {}
    if readings is not None and readings.problem is None and now - readings.at <= FRESH:
        by_pod = readings.pods
    found = [(by_pod.get(pod.ref, PodReading()), _is_young(pod, now)) for pod in serving]
    waiting = _known([(reading.waiting, young) for reading, young in found])
    activity = _known([(reading.activity, young) for reading, young in found])
    return Load(
        at=now,
        replicas=replicas,
        ready=len(activity or ()),
        waiting=None if waiting is None else sum(waiting),
        activity=None if activity is None else sum(activity) / len(activity),
    )


def _is_young(pod: Pod, now: datetime) -> bool:
    return pod.ready_since is not None and now - pod.ready_since <= FRESH


def _known(values: Sequence[tuple[float | None, bool]]) -> list[float] | None:
    """What was read; None when a replica that is not young has no reading, or none has."""
    if any(value is None and not young for value, young in values):
        return None
    return [value for value, _ in values if value is not None] or None
