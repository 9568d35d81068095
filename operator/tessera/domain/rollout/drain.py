"""Which replicas are removed, and when: the emptiest first, and none before its streams ended.

Of those that are about as empty it is the one whose KV cache saves least.

A replica whose slice will be repartitioned is replaced first: until it is gone, the Deployment has
one replica more.

A draining replica loses its readiness gate, so that the Service sends it no new requests. Once it
has no requests (or its time is up) it gets the lowest deletion cost, and only when that is seen on
the pod is the Deployment scaled down, so that its controller deletes this pod and no other. All of
this is read back from the pods, so a restarted operator continues where the last one stopped.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.domain.observed.snapshot import InFlight, Pod, PodReading, Ref, Snapshot, Workload

# `controller.kubernetes.io/pod-deletion-cost` of a drained replica.
DRAINED_DELETION_COST = -1000
# Time for proxies to learn that a replica is not ready.
PROPAGATION_DELAY = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPlan:
    """Draining and drained replicas, and the replica count of the Deployment meanwhile."""

    replicas: int
    draining: tuple[Ref, ...] = ()
    drained: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True)
class Displacement:
    """Replicas of a service whose slices are removed, and those of them that may be drained."""

    displaced: frozenset[Ref] = frozenset()
    draining: frozenset[Ref] = frozenset()


NO_DISPLACEMENT = Displacement()


def plan_drain(  # noqa: PLR0913 - what is there, and what leaves first
    snapshot: Snapshot,
    workload: Workload | None,
    desired: int,
    pods: Sequence[Pod],
    timeout: timedelta,
    *,
    displacement: Displacement = NO_DISPLACEMENT,
    preferred: Collection[Ref] = (),
) -> DrainPlan:
    """Scale `workload` down to `desired` replicas without breaking a stream.

    Of those that serve the `preferred` ones leave first, for the device that they give back.
    """
    active = sorted((pod for pod in pods if not pod.terminating), key=lambda pod: pod.ref)
    retained = [pod for pod in active if pod.ref not in displacement.displaced]
    displaced_count, displaced_draining = (
        len(active) - len(retained),
        tuple(sorted(displacement.draining)),
    )
    # During a rollout the Deployment's controller chooses the pods; the engines drain themselves.
    rolling = len({pod.template for pod in active}) > 1
    if workload is not None and rolling:
        # With fewer replicas it takes those of the older template first, which may serve alone.
        spare = max(0, sum(pod.takes_requests for pod in retained) - desired)
        replicas = max(desired + displaced_count, workload.replicas - spare)
        return DrainPlan(replicas=replicas, draining=displaced_draining)
    if workload is None or len(retained) <= desired:
        return DrainPlan(replicas=desired + displaced_count, draining=displaced_draining)
    readings = snapshot.readings.pods if snapshot.readings else {}
    ranked = sorted(retained, key=lambda pod: _drain_order(pod, readings, preferred))
    victims = ranked[: len(retained) - desired]
    drained = [pod for pod in victims if is_drained(pod, snapshot.in_flight, snapshot.at, timeout)]
    marked = [pod for pod in drained if pod.deletion_cost == DRAINED_DELETION_COST]
    # What somebody else wrote below that is in force before any of them has gone.
    lowest = desired + displaced_count
    return DrainPlan(
        replicas=max(lowest, min(workload.replicas, len(active) - len(marked))),
        draining=(*(pod.ref for pod in victims), *displaced_draining),
        drained=tuple(pod.ref for pod in drained),
    )


def joined_drains(drains: Sequence[DrainPlan]) -> DrainPlan:
    """Return the replicas of all Deployments of a service, and those that leave of any."""
    if len(drains) == 1:
        return drains[0]
    return DrainPlan(
        replicas=sum(drain.replicas for drain in drains),
        # Each has the displaced replicas of all.
        draining=tuple(dict.fromkeys(ref for drain in drains for ref in drain.draining)),
        drained=tuple(ref for drain in drains for ref in drain.drained),
    )


def with_leaving(
    snapshot: Snapshot, drain: DrainPlan, leaving: Iterable[Pod], timeout: timedelta
) -> DrainPlan:
    """Return the plan with further replicas that leave, of Deployments of previous variants."""
    pods = sorted(leaving, key=lambda pod: pod.ref)
    drained = (pod.ref for pod in pods if is_drained(pod, snapshot.in_flight, snapshot.at, timeout))
    return replace(
        drain,
        draining=(*drain.draining, *(pod.ref for pod in pods)),
        drained=(*drain.drained, *drained),
    )


def _drain_order(
    pod: Pod, readings: Mapping[Ref, PodReading], preferred: Collection[Ref]
) -> tuple[bool, bool, bool, bool, float, float, float, Ref]:
    """Return a sort key: without requests, not serving, not ready, then preferred, then fewest
    requests, then least KV worth.

    Requests are compared by their power of two: with 20 or with 30 of them a replica is drained
    after about as long, and what its cache saves is lost for longer. Of equal ones it is the
    youngest.
    """
    reading = readings.get(pod.ref, PodReading())
    known = reading.running is not None and reading.waiting is not None
    requests = (reading.running or 0) + (reading.waiting or 0)
    size = int(requests).bit_length() if known else float("inf")
    age = -pod.created.timestamp()
    is_other = pod.ref not in preferred
    cached = reading.cached or 0.0
    # On a dead node the gate and the containers stay as they were.
    state = pod.takes_requests, bool(pod.serving), pod.containers_ready
    return (*state, is_other, size, cached, age, pod.ref)


def is_drained(
    pod: Pod, in_flight: Mapping[Ref, InFlight], now: datetime, timeout: timedelta
) -> bool:
    """Return whether a replica has no requests left, or its drain timeout is over."""
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
