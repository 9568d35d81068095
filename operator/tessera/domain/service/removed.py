"""Deployments that outlive their service: they are drained and scaled to 0."""

from dataclasses import dataclass
from datetime import timedelta

from tessera.api.inference_service import Drain
from tessera.domain.observed.snapshot import Pod, Snapshot, Workload
from tessera.domain.rollout.drain import DrainPlan, plan_drain
from tessera.domain.steps import Step

_DEFAULT_TIMEOUT = Drain().timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedWorkload:
    """A Deployment without a service, with what is left to do until it has no replica."""

    workload: Workload
    pods: tuple[Pod, ...]
    drain: DrainPlan


def drain_removed(snapshot: Snapshot) -> tuple[RemovedWorkload, ...]:
    """Return the Deployments of deleted services that the garbage collector does not remove.

    Those are orphaned ones, which have lost their owner, and those whose service has a finalizer.
    """
    services = {service.ref for service in snapshot.services}
    deleting = {service.uid: service for service in snapshot.deleting_services}
    removed = []
    for workload in snapshot.workloads:
        if workload.service in services:
            continue
        owner = deleting.get(workload.owner_uid or "")
        if owner is None and workload.owner_uid is not None:
            continue
        timeout = owner.spec.drain.timeout if owner and owner.spec else _DEFAULT_TIMEOUT
        if (drained := removed_workload(snapshot, workload, timeout)) is not None:
            removed.append(drained)
    return tuple(sorted(removed, key=lambda candidate: candidate.workload.ref))


def _drain(snapshot: Snapshot, workload: Workload, timeout: timedelta) -> RemovedWorkload | None:
    pods = tuple(
        pod
        for pod in snapshot.pods
        if pod.service == workload.service
        and (pod.variant, pod.template_digest) == (workload.variant, workload.template_digest)
    )
    if not pods and not workload.replicas:
        return None
    drain = plan_drain(snapshot, workload, 0, pods, timeout)
    return RemovedWorkload(workload=workload, pods=pods, drain=drain)


removed_workload = Step(_drain, lambda *_: None)
