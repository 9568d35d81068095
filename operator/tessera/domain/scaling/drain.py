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

from tessera.domain.observed.snapshot import InFlight, Pod, PodReading, Ref, Snapshot, Workload

# `controller.kubernetes.io/pod-deletion-cost` of a replica that may go.
DRAINED_DELETION_COST = -1000
# Time for proxies to learn that a replica takes nothing new.
PROPAGATION_DELAY = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPlan:
    """Who leaves, who may go already, and the number for the Deployment meanwhile."""

    replicas: int
    draining: tuple[Ref, ...] = ()
    drained: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class Displacement:
    """Replicas of a service whose slices go, and those of them that may stop taking requests."""

    displaced: frozenset[Ref] = frozenset()
    draining: frozenset[Ref] = frozenset()


NO_DISPLACEMENT = Displacement()


def plan_drain(
    snapshot: Snapshot,
    workload: Workload | None,
    desired: int,
    pods: Sequence[Pod],
    timeout: timedelta,
    displacement: Displacement = NO_DISPLACEMENT,
) -> DrainPlan:
    """Shrink `workload` to `wanted` replicas without losing a stream.

    While a new template rolls out the Deployment's controller chooses for itself; the engines' own
    drain protects the streams then.
    """
    active = sorted((pod for pod in pods if not pod.terminating), key=lambda pod: pod.ref)
    retained = [pod for pod in active if pod.ref not in displacement.displaced]
    displaced_count, displaced_draining = (
        len(active) - len(retained),
        tuple(sorted(displacement.draining)),
    )
    rolling = len({pod.template for pod in active}) > 1
    if workload is None or rolling or len(retained) <= desired:
        return DrainPlan(replicas=desired + displaced_count, draining=displaced_draining)
    readings = snapshot.readings.pods if snapshot.readings else {}
    ranked = sorted(retained, key=lambda pod: _drain_order(pod, readings))
    victims = ranked[: len(retained) - desired]
    drained = [pod for pod in victims if is_drained(pod, snapshot.in_flight, snapshot.at, timeout)]
    marked = [pod for pod in drained if pod.deletion_cost == DRAINED_DELETION_COST]
    return DrainPlan(
        replicas=min(workload.replicas, len(active) - len(marked)),
        draining=(*(pod.ref for pod in victims), *displaced_draining),
        drained=tuple(pod.ref for pod in drained),
    )


def _drain_order(
    pod: Pod, readings: Mapping[Ref, PodReading]
) -> tuple[bool, bool, float, float, Ref]:
    """Sort key: not serving any more or yet, then not up, then fewest requests, then youngest."""
    reading = readings.get(pod.ref, PodReading())
    known = reading.running is not None and reading.waiting is not None
    requests = (reading.running or 0) + (reading.waiting or 0) if known else float("inf")
    return (bool(pod.serving), pod.containers_ready, requests, -pod.created.timestamp(), pod.ref)


def is_drained(
    pod: Pod, in_flight: Mapping[Ref, InFlight], now: datetime, timeout: timedelta
) -> bool:
    """Nothing is lost when it ends: it took no request, finished them, or is out of time."""
    if not pod.containers_ready or (pod.draining_since is None and not pod.serving):
        return True  # it never took a request
    if pod.draining_since is None:
        return False
    if now - pod.draining_since >= timeout:
        return True
    last_count = in_flight.get(pod.ref)
    return (
        last_count is not None
        and last_count.requests == 0
        and last_count.at >= pod.draining_since + PROPAGATION_DELAY
    )
