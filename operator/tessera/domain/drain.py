"""Which replicas leave, and when: the emptiest first, and none before its streams have ended.

One whose slice will be cut anew is replaced first: for as long as it is there, the Deployment has
one replica more.

A leaving replica loses its readiness gate, so that the Service sends it nothing new. Once it is
empty (or out of time) it gets the lowest deletion cost, and only when that is seen on the pod the
Deployment shrinks, so that its controller removes this pod and no other. All of it is read back
from the pods, so a restarted operator goes on where the last one stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tessera.domain.snapshot import InFlight, Pod, PodReading, Ref, Snapshot, Workload

DONE_COST = -1000
"""`controller.kubernetes.io/pod-deletion-cost` of a replica that may go."""
SETTLE = timedelta(seconds=2)
"""Time for proxies to learn that a replica takes nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Who leaves, who may go already, and the number for the Deployment meanwhile."""

    keep: int
    leaving: tuple[Ref, ...] = ()
    done: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class Displaced:
    """Replicas of a service whose slices go, and those of them that may stop taking requests."""

    doomed: frozenset[Ref] = frozenset()
    leaving: frozenset[Ref] = frozenset()


NOBODY = Displaced()


def drain(
    snapshot: Snapshot,
    workload: Workload | None,
    wanted: int,
    pods: Sequence[Pod],
    limit: timedelta,
    displaced: Displaced = NOBODY,
) -> Drain:
    """Shrink `workload` to `wanted` replicas without losing a stream.

    While a new template rolls out the Deployment's controller chooses for itself; the engines' own
    drain protects the streams then.
    """
    there = sorted((pod for pod in pods if not pod.leaving), key=lambda pod: pod.ref)
    alive = [pod for pod in there if pod.ref not in displaced.doomed]
    replaced, gone = len(there) - len(alive), tuple(sorted(displaced.leaving))
    rolling = len({pod.template for pod in there}) > 1
    if workload is None or rolling or len(alive) <= wanted:
        return Drain(keep=wanted + replaced, leaving=gone)
    readings = snapshot.readings.pods if snapshot.readings else {}
    ranked = sorted(alive, key=lambda pod: _emptiness(pod, readings))
    victims = ranked[: len(alive) - wanted]
    empty = [pod for pod in victims if is_empty(pod, snapshot.in_flight, snapshot.at, limit)]
    marked = [pod for pod in empty if pod.deletion_cost == DONE_COST]
    return Drain(
        keep=min(workload.replicas, len(there) - len(marked)),
        leaving=(*(pod.ref for pod in victims), *gone),
        done=tuple(pod.ref for pod in empty),
    )


def _emptiness(
    pod: Pod, readings: Mapping[Ref, PodReading]
) -> tuple[bool, bool, float, float, Ref]:
    """Sort key: not serving any more or yet, then not up, then fewest requests, then youngest."""
    reading = readings.get(pod.ref, PodReading())
    known = reading.running is not None and reading.waiting is not None
    requests = (reading.running or 0) + (reading.waiting or 0) if known else float("inf")
    return (bool(pod.serving), pod.up, requests, -pod.created.timestamp(), pod.ref)


def is_empty(pod: Pod, in_flight: Mapping[Ref, InFlight], now: datetime, limit: timedelta) -> bool:
    """Nothing is lost when it ends: it took no request, finished them, or is out of time."""
    if not pod.up or (pod.draining_since is None and not pod.serving):
        return True  # it never took a request
    if pod.draining_since is None:
        return False
    if now - pod.draining_since >= limit:
        return True
    asked = in_flight.get(pod.ref)
    return asked is not None and asked.requests == 0 and asked.at >= pod.draining_since + SETTLE
