"""What a repartition means for one service: who is replaced, and what former variants keep."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from tessera.domain.drain import NO_DISPLACEMENT, Displacement
from tessera.domain.ref import Ref
from tessera.domain.repartition.orders import Orders
from tessera.domain.snapshot import Pod, Workload


def displaced(orders: Iterable[Orders], pods: Sequence[Pod]) -> Displacement:
    """Of these pods, those whose slices go or are no longer planned for them."""
    doomed, leaving = set[Ref](), set[Ref]()
    for one in orders:
        if one.doomed:
            doomed |= {pod.ref for pod in pods if pod.ref in one.doomed and not pod.terminating}
            leaving |= doomed & one.leaving
    return Displacement(frozenset(doomed), frozenset(leaving)) if doomed else NO_DISPLACEMENT


def formers(
    workloads: Iterable[Workload], pods: Sequence[Pod], doomed: Collection[Ref], surge: int
) -> Mapping[Ref, int]:
    """Deployments of former variants that should have another number of replicas.

    Every replica of a former variant that goes takes its place in the Deployment with it; where
    nothing planned is free, `surge` more start on what there is.
    """
    found = {}
    for workload in workloads:
        there = [pod for pod in pods if pod.variant == workload.variant and not pod.terminating]
        wanted = sum(pod.ref in doomed for pod in there) + (surge if there else 0)
        surge = 0 if there else surge
        if wanted != workload.replicas:
            found[workload.ref] = wanted
    return found
