"""The existing objects of each service."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tessera.api.inference_service import PodTemplate
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.hardware.spot_nodes import DISRUPTION_TAINTS
from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import Node, ObservedService, Pod, Ref, Workload
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.pod_template import unlisted_metadata
from tessera.domain.rollout.devices import ready_nodes

_NONE: frozenset[Ref] = frozenset()
_UNKNOWN = datetime.min.replace(tzinfo=UTC)
OwnedT = TypeVar("OwnedT", Pod, Workload, ObservedModelJob)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentObjects:
    """Existing objects of a service."""

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()
    model_jobs: tuple[ObservedModelJob, ...] = ()
    job_pods: tuple[Pod, ...] = ()
    """The pods of these Jobs."""
    disrupted: frozenset[Ref] = frozenset()
    """Pods on nodes that terminate soon."""

    def reference_workload(self, status: InferenceServiceStatus) -> Workload | None:
        """Return the Deployment of the variant in the status; else the first one."""
        name = status.variant.name if status.variant is not None else ""
        return self.workload_of(name) or next(iter(self.workloads), None)

    @property
    def is_new(self) -> bool:
        """Whether the service has neither a Deployment nor a pod."""
        return not self.workloads and not self.pods

    def workload_of(self, variant: str) -> Workload | None:
        """Return the newest Deployment of a variant."""
        return next(reversed(self.workloads_of(variant)), None)

    def runs_with(self, extra_args: tuple[str, ...]) -> bool:
        """Return whether replicas were made with these arguments, which end the command line."""
        ends = [each.arguments[-len(extra_args) :] for each in self.workloads]
        return bool(ends) if not extra_args else extra_args in ends

    def runs_with_metadata(self, template: PodTemplate) -> bool:
        """Return whether replicas were made with all that a template adds and nobody lists."""
        added = unlisted_metadata(template.labels, template.annotations)
        return any(added <= each.unlisted_metadata for each in self.workloads)

    def workloads_of(self, variant: str) -> Sequence[Workload]:
        """Return the Deployments of a variant, one for each of its templates, the oldest first."""
        own = [workload for workload in self.workloads if workload.variant == variant]
        return own if len(own) < 2 else sorted(own, key=_age_of)

    def replaces_template(self, variant: str) -> bool:
        """Return whether a variant has Deployments of several templates."""
        return len(self.workloads_of(variant)) > 1


def _age_of(workload: Workload) -> tuple[datetime, bool, Ref]:
    """Return the sort key of Deployments: the first one of a variant has no digest."""
    return workload.created or _UNKNOWN, bool(workload.template_digest), workload.ref


@reused
def objects_by_service(
    services: Sequence[ObservedService],
    pods: Sequence[Pod],
    workloads: Sequence[Workload],
    nodes: Sequence[Node],
    model_jobs: Sequence[ObservedModelJob],
) -> Mapping[Ref, CurrentObjects]:
    """Return the existing objects of each service."""
    with_kubelet = ready_nodes("", nodes)
    leaving_nodes = {node.name for node in nodes if node.taints & DISRUPTION_TAINTS}
    pods_by_ref = _by_service(pod for pod in pods if _is_replica(pod, with_kubelet))
    workloads_by_ref, jobs_by_ref = _by_service(workloads), _by_service(model_jobs)
    job_pods_by_ref = defaultdict[Ref, list[Pod]](list)
    for pod in pods:
        if pod.model_job_run is not None:
            job_pods_by_ref[pod.model_job_run.service].append(pod)
    return {
        ref: _objects_in_order(
            ref,
            tuple(pods_by_ref.get(ref, ())),
            tuple(workloads_by_ref.get(ref, ())),
            tuple(jobs_by_ref.get(ref, ())),
            tuple(job_pods_by_ref.get(ref, ())),
            frozenset(pod.ref for pod in pods_by_ref.get(ref, ()) if pod.node in leaving_nodes)
            if leaving_nodes
            else _NONE,
        )
        for ref in (service.ref for service in services)
    }


def _by_service(objects: Iterable[OwnedT]) -> Mapping[Ref, Sequence[OwnedT]]:
    by_service: dict[Ref, list[OwnedT]] = defaultdict(list)
    for owned in objects:
        by_service[owned.service].append(owned)
    return by_service


@reused_per_object
def _objects_in_order(
    _ref: Ref,
    pods: tuple[Pod, ...],
    workloads: tuple[Workload, ...],
    model_jobs: tuple[ObservedModelJob, ...],
    job_pods: tuple[Pod, ...],
    disrupted: frozenset[Ref],
) -> CurrentObjects:
    return CurrentObjects(
        pods=tuple(sorted(pods, key=lambda pod: pod.ref)),
        workloads=tuple(sorted(workloads, key=lambda workload: workload.ref)),
        model_jobs=tuple(sorted(model_jobs, key=lambda job: job.ref)),
        job_pods=job_pods,
        disrupted=disrupted,
    )


def _is_replica(pod: Pod, ready_nodes: Collection[str]) -> bool:
    """Return whether a pod is one still: some stay listed for days, or for ever.

    One that has ended, as one that its kubelet evicted, holds nothing and is replaced already. One
    that terminates on a dead node is replaced too, and its device is not offered to others.
    """
    is_stuck = pod.terminating and pod.node is not None and pod.node not in ready_nodes
    return pod.ended is None and not is_stuck


def pods_of_workload(pods: Iterable[Pod], workload: Workload) -> Sequence[Pod]:
    """Return the replicas of a Deployment."""
    identity = workload.variant, workload.template_digest
    return [pod for pod in pods if (pod.variant, pod.template_digest) == identity]


def pods_of_variant(pods: Sequence[Pod], choice: HardwareChoice) -> Sequence[Pod]:
    """Return the replicas on the chosen hardware."""
    return [pod for pod in pods if pod.variant == choice.variant]
