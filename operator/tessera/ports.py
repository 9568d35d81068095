"""What the operator needs of the outside world, and the errors that may come from there."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from tessera.api.node_layout import GpuFault, NodeLayoutStatus
from tessera.domain.layout.problem import LayoutProblem as LayoutQuestion
from tessera.domain.layout.problem import LayoutSolution
from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.mig.partitioning import GpuInventory, PodsByDevice
from tessera.domain.observed.batches import Batch, BatchJob, VolumeClaim
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import (
    Budget,
    Node,
    ObservedService,
    Pod,
    Pool,
    Readings,
    Ref,
    Resolution,
    RevisionQuery,
    ServiceEndpoint,
    Workload,
)
from tessera.domain.scaling.autoscale import ServiceLoad
from tessera.domain.serving_certificate import CertificateSecret
from tessera.resources.api_resources import ApiResource
from tessera.resources.manifest import ObjectKey, ObjectManifest

# The present moment, aware and in UTC.
Clock: TypeAlias = Callable[[], datetime]

ObjectValue: TypeAlias = (
    ObservedService
    | Batch
    | Pool
    | Budget
    | Node
    | ObservedNodeLayout
    | Pod
    | VolumeClaim
    | BatchJob
    | ObservedModelJob
    | Workload
    | ServiceEndpoint
    | None
)


class PortError(Exception):
    """Something outside did not do what was asked; the text is fit for a status."""


class ClusterError(PortError):
    """The API server refused or did not answer."""


class NotFoundError(ClusterError):
    """The object that was meant does not exist any more; a namesake is another object."""


class DisruptionBudgetError(ClusterError):
    """A PodDisruptionBudget does not let the pod go now."""


class ResourceExpiredError(ClusterError):
    """The version from which to go on is forgotten; only a new list helps."""


class LayoutPlanningError(PortError):
    """No layouts could be planned."""


class MetricsError(PortError):
    """Prometheus refused or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterObject:
    """One object of the cluster, trimmed to what decisions need."""

    key: ObjectKey
    value: ObjectValue = None
    """What the plan reads; None for children that are only kept in shape."""
    service: Ref | None = None
    """The service that a child belongs to; None for shared ones."""
    owned_fields_digest: str | None = None
    """Digest of the fields that Tessera owns on it; it changes when somebody takes one away."""
    version: int = field(default=0, compare=False)
    """The resourceVersion: of two sights of an object, the one with the larger is the newer."""


@dataclass(frozen=True, slots=True)
class ObjectList:
    """All objects of a kind as of one version of the cluster."""

    items: tuple[ClusterObject, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """What a watch tells: an object came, changed or went, or only how far the watch is."""

    version: int
    """From here a next watch goes on."""
    cluster_object: ClusterObject | None = None
    deleted: bool = False


class Cluster(Protocol):
    """Kubernetes."""

    async def list(self, kind: ApiResource) -> ObjectList | None:
        """Every object of a kind, within the kind's selector; None when there is no such kind."""

    def scopes(self, kind: ApiResource) -> Sequence[str | None]:
        """The namespaces that are watched one by one; only None where all are watched at once."""

    def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        """What changed in a scope since a version, until the server ends the stream.

        What an `apply` answered may be left out: whoever applied knows it.
        StaleError when the version is forgotten, ClusterError when the stream breaks or falls
        silent.
        """

    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        """Server-side apply; the object as it is afterwards.

        Fields that somebody else set on an object of ours are taken back; an object that was never
        ours is left alone, with a ClusterError that names its owners.
        """

    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete; what is gone already is no error, nor is a namesake with another uid."""

    async def patch_node(
        self, node: str, labels: Mapping[str, str | None], taints: Mapping[str, bool]
    ) -> ClusterObject:
        """Labels of a node, None takes one away, and whether it carries taints that keep new pods
        off; all in one write, and none where all is so already. Other taints stay.

        The node as it is afterwards; GoneError when there is none of this name.
        """

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        """Set the number of replicas of a Deployment and nothing else; GoneError without one."""

    async def evict(self, pod: Ref, uid: str) -> None:
        """Ask for a pod to go; what is gone already is no error, nor is a namesake.

        DisruptionError when its budget does not allow that now.
        """


class Metrics(Protocol):
    """Prometheus."""

    async def read(self) -> Readings:
        """What Prometheus knows now; when it cannot be asked, the readings say why."""

    async def load_history(self, span: timedelta) -> Mapping[Ref, tuple[ServiceLoad, ...]]:
        """Loads of services in the last `span`, oldest first; MetricsError when unreadable."""


class ModelHub(Protocol):
    """Where models come from."""

    async def resolve(self, question: RevisionQuery) -> Resolution:
        """Which commit a revision means now; or why that could not be found out."""


class LayoutPlanner(Protocol):
    """The planner of layouts."""

    async def solve(self, question: LayoutQuestion) -> LayoutSolution:
        """Layouts for what services wish; LayoutsError when none came."""


class Engines(Protocol):
    """The engines themselves, through their Service or at a pod's address."""

    async def probe(self, base: str, model: str) -> str | None:
        """Ask for one token; None when it came, else what went wrong."""

    async def in_flight(self, address: str) -> int | None:
        """Requests that the engine of one pod holds; None when it cannot be asked."""

    async def progress(self, address: str) -> RunnerProgress | None:
        """How far the runner of a batch is; None when it cannot be asked."""

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        """How far the fetch of a model is, likewise."""


class CertificateStore(Protocol):
    """Where the certificates of admission are kept, and who trusts them."""

    async def read(self) -> CertificateSecret:
        """What is held; nothing, and no version, where nothing was ever written."""

    async def write(self, secret: CertificateSecret) -> None:
        """Replace what was read; ClusterError when somebody else was faster."""

    async def trust(self, bundle: str) -> None:
        """Make whoever calls admission trust these authorities, and no others."""


class GpuError(PortError):
    """A driver refused or cannot be asked."""

    def __init__(self, fault: GpuFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class KubeletError(PortError):
    """The kubelet does not tell which pod holds what."""


class Gpus(Protocol):
    """The GPUs of the node that the process runs on."""

    async def read(self, gpu: str | None = None) -> GpuInventory:
        """All of them, or one by its UUID, as they are at this moment.

        GpuError when nothing can be told.
        """

    async def create(self, gpu: str, placement: SlicePlacement) -> None:
        """Make an instance, or finish one that is half made; nothing where it is whole already.

        GpuError leaves as little behind as the driver allows.
        """

    async def destroy(self, gpu: str, placement: SlicePlacement) -> None:
        """Take an instance away with all that is in it; nothing where it is gone already.

        GpuError with InUse, and nothing done, while a process computes on it.
        """


class PodDevices(Protocol):
    """The kubelet of the node."""

    async def holders(self) -> PodsByDevice:
        """Which pods hold which GPUs and MIG devices; KubeletError when it does not answer."""


class OwnLayout(Protocol):
    """The NodeLayout of the node that the process runs on."""

    async def read(self) -> ObservedNodeLayout:
        """As it is now; made where there is none. ClusterError."""

    async def write(self, status: NodeLayoutStatus) -> None:
        """Replace its status. ClusterError."""

    async def wait_for_change(self) -> None:
        """Return once its spec is another than at the last read, or it is gone. ClusterError."""


class Locks(Protocol):
    """What only one process of a machine may do at a time."""

    def hold(self, name: str) -> AbstractContextManager[bool]:
        """Whether it is ours for as long as the block runs; nobody waits for it."""
