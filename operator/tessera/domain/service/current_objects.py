"""The existing objects of each service."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Ref, Workload
from tessera.domain.placement.placement import HardwareChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentObjects:
    """Existing objects of a service."""

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()
    model_jobs: tuple[ObservedModelJob, ...] = ()

    def workload_of(self, variant: str) -> Workload | None:
        return next((workload for workload in self.workloads if workload.variant == variant), None)


@reused
def objects_by_service(
    services: Sequence[ObservedService],
    pods: Sequence[Pod],
    workloads: Sequence[Workload],
    nodes: Sequence[Node],
    model_jobs: Sequence[ObservedModelJob],
) -> Mapping[Ref, CurrentObjects]:
    """Return the existing objects of each service."""
    pods_by_ref: dict[Ref, list[Pod]] = {service.ref: [] for service in services}
    workloads_by_ref: dict[Ref, list[Workload]] = {ref: [] for ref in pods_by_ref}
    jobs_by_ref: dict[Ref, list[ObservedModelJob]] = {ref: [] for ref in pods_by_ref}
    ready_nodes = {node.name for node in nodes if node.kubelet_ready}
    for pod in pods:
        if pod.service in pods_by_ref and not _is_stuck(pod, ready_nodes):
            pods_by_ref[pod.service].append(pod)
    for workload in workloads:
        if workload.service in workloads_by_ref:
            workloads_by_ref[workload.service].append(workload)
    for job in model_jobs:
        if job.service in jobs_by_ref:
            jobs_by_ref[job.service].append(job)
    return {
        ref: _objects_in_order(
            ref, tuple(service_pods), tuple(workloads_by_ref[ref]), tuple(jobs_by_ref[ref])
        )
        for ref, service_pods in pods_by_ref.items()
    }


@reused_per_object
def _objects_in_order(
    _ref: Ref,
    pods: tuple[Pod, ...],
    workloads: tuple[Workload, ...],
    model_jobs: tuple[ObservedModelJob, ...],
) -> CurrentObjects:
    return CurrentObjects(
        pods=tuple(sorted(pods, key=lambda pod: pod.ref)),
        workloads=tuple(sorted(workloads, key=lambda workload: workload.ref)),
        model_jobs=tuple(sorted(model_jobs, key=lambda job: job.ref)),
    )


def _is_stuck(pod: Pod, ready_nodes: Collection[str]) -> bool:
    """Return whether a pod terminates on a dead node, where it may stay for ever."""
    # It is no replica any more, and its device is not offered to others either.
    return pod.terminating and pod.node is not None and pod.node not in ready_nodes


def pods_of_variant(pods: Sequence[Pod], choice: HardwareChoice) -> Sequence[Pod]:
    """Return the replicas on the chosen hardware."""
    variant = choice.variant  # a name put together each time it is asked for
    return [pod for pod in pods if pod.variant == variant]
