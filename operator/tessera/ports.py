"""Protocols of the external systems, and the errors that their methods may raise."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol, TypeAlias

from tessera.api.api_resource import ApiResource
from tessera.api.model_files import PoolingTask
from tessera.api.node_layout import GpuFault, NodeLayoutStatus
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.mig_backends.partitioning import GpuInventory, PodsByDevice
from tessera.domain.observed.batches import BatchJob, VolumeClaim
from tessera.domain.observed.gates import GateJob, ServiceRevision
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.object import Observed
from tessera.domain.observed.providers import ProviderSecret
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import (
    Node,
    Pod,
    PodEvent,
    Ref,
    Resolution,
    RevisionQuery,
    ServiceEndpoint,
    Workload,
)
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.serving_certificate import CertificateSecret
from tessera.resources.manifest import ObjectKey, ObjectManifest

# Returns the current time, timezone-aware and in UTC.
Clock: TypeAlias = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A time, and the monotonic seconds at which it was read."""

    at: datetime
    monotonic: float

    def after(self, monotonic: float) -> datetime:
        """Return the time at these monotonic seconds."""
        return self.at + timedelta(seconds=monotonic - self.monotonic)


ObjectValue: TypeAlias = (
    Observed
    | Node
    | ObservedNodeLayout
    | Pod
    | VolumeClaim
    | BatchJob
    | ObservedModelJob
    | GateJob
    | ServiceRevision
    | Workload
    | ServiceEndpoint
    | TenantKeys
    | ProviderSecret
    | None
)


class PortError(Exception):
    """An external system did not do what was asked; the text is fit for a status condition."""


class ClusterError(PortError):
    """The API server refused a request, or did not respond."""


class NotFoundError(ClusterError):
    """The object does not exist, or another object has its name (a different UID)."""


class DisruptionBudgetError(ClusterError):
    """A PodDisruptionBudget does not allow the eviction now."""


class ResourceExpiredError(ClusterError):
    """The resourceVersion to watch from has expired (410 Gone); only a new list helps."""


class LayoutPlanningError(PortError):
    """The layout planner returned no layouts."""


class MetricsError(PortError):
    """Prometheus refused a query, or did not respond."""


class RejectedSample(StrEnum):
    """Why a sample of Prometheus is left out."""

    MALFORMED = "Malformed"
    MISSING_LABEL = "MissingLabel"
    OUT_OF_RANGE = "OutOfRange"
    TOO_MANY_ROWS = "TooManyRows"


class RejectedDemand(StrEnum):
    """Why a report of a gateway, or a row of it, is left out."""

    INVALID_REPORT = "InvalidReport"
    INVALID_ROW = "InvalidRow"
    """The other rows of its report count."""
    TOO_MANY_GATEWAYS = "TooManyGateways"


class EventOutcome(StrEnum):
    """What became of an Event."""

    WRITTEN = "Written"
    REFUSED = "Refused"
    """By the API server, or since it did not respond."""
    DROPPED = "Dropped"
    """More than the limit of its object, or than can wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterObject:
    """One object of the cluster, trimmed to what decisions need."""

    key: ObjectKey
    uid: str = ""
    plan_input: ObjectValue = None
    """The value that the plan reads; None for children that are only kept in place."""
    service: Ref | None = None
    """The service that a child belongs to; None for shared objects."""
    controller: str | None = None
    """The UID of the object that controls a child."""
    owned_fields_digest: str | None = None
    """Digest of the fields that Tessera owns; it changes when another manager takes one away.

    None for an object that Tessera never applied, whatever its labels say.
    """
    heartbeat: datetime | None = field(default=None, compare=False)
    """Of a NodeLayout: when its agent wrote it last. A new one alone is no change."""
    malformed: bool = False
    """Whether it could not be parsed, and is no input of a plan for that reason."""
    version: int = field(default=0, compare=False)
    """The resourceVersion; of two observations of an object, the larger one is the newer."""


@dataclass(frozen=True, slots=True)
class ObjectList:
    """All objects of a kind at one resourceVersion."""

    items: tuple[ClusterObject, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """An added, modified or deleted object, or a bookmark, which carries only a version."""

    version: int
    """The resourceVersion from which the next watch resumes."""
    cluster_object: ClusterObject | None = None
    deleted: bool = False


class Cluster(Protocol):
    """The Kubernetes API server."""

    async def list(self, kind: ApiResource) -> ObjectList | None:
        """Return every object that the kind's selector matches; None if the kind does not exist."""

    def scopes(self, kind: ApiResource) -> Sequence[str | None]:
        """Return the namespaces that are watched one by one.

        The only item is None if all namespaces are watched at once.
        """

    def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield the changes in a scope since a version, until the server ends the stream.

        The event of an object that `apply` returned may be left out: the caller of `apply` has it.

        Raises ResourceExpiredError when the version has expired, ClusterError when the stream
        breaks or is silent for too long.
        """

    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        """Apply an object on the server side, and return it as it is afterwards.

        Fields that another manager set on an object of Tessera are taken back. An object that
        Tessera never managed is left alone: a ClusterError names its field managers.
        """

    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete an object; no error if it does not exist, or has another UID."""

    async def patch_node(
        self,
        node: str,
        labels: Mapping[str, str | None],
        taints: Mapping[str, bool],
        annotations: Mapping[str, str | None] | None = None,
    ) -> ClusterObject:
        """Set a node's labels and annotations (None removes one) and NoSchedule taints at once.

        No request is sent where everything is in place. Other taints stay. Returns the node as it
        is afterwards; raises NotFoundError if it does not exist.
        """

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        """Set the replicas of a Deployment and nothing else; NotFoundError if it does not exist."""

    async def read_uid(self, kind: ApiResource, ref: Ref) -> str | None:
        """Return the UID of an object as it is now; None if it does not exist."""

    async def pod_refusal(self, job: Ref, uid: str) -> str | None:
        """Return why the pod of a Job could last not be created; None without an event."""

    async def pod_events(self, pod: Ref, uid: str) -> Sequence[PodEvent]:
        """Return what is said of a pod and of the node that is started for it, the latest first.

        Raises ClusterError on failure.
        """

    async def list_autoscalers(self, namespace: str) -> Mapping[str, str]:
        """Return the HorizontalPodAutoscalers of a namespace, by the Deployments that they scale.

        Of several of one Deployment it is the first by name. There are none where the API server
        does not know the kind; raises ClusterError on failure.
        """

    async def config_data(self, key: ObjectKey) -> Mapping[str, str]:
        """Return the data of a ConfigMap, nothing if it does not exist; ClusterError on failure."""

    async def evict(self, pod: Ref, uid: str) -> None:
        """Evict a pod; no error if it does not exist, or has another UID.

        Raises DisruptionBudgetError when its PodDisruptionBudget does not allow that now, and with
        the names of all budgets when there is more than one.
        """


class EventSink(Protocol):
    """The Events of the API server."""

    async def record_event(self, event: ObjectManifest) -> None:
        """Create an Event, or update the series of one that exists; ClusterError on failure."""


class ModelHub(Protocol):
    """The hub that models are downloaded from."""

    async def resolve(self, query: RevisionQuery) -> Resolution:
        """Return the commit that a revision names now, or why it could not be resolved."""


class Engines(Protocol):
    """The engines, reached through their Service or at a pod's address."""

    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        """Request a completion of one token, or what the model returns of one text.

        Returns None on success, otherwise what went wrong.
        """

    async def in_flight(self, address: str) -> int | None:
        """Return the requests in flight in one pod's engine; None if it does not respond."""

    async def progress(self, address: str) -> RunnerProgress | None:
        """Return the progress of a batch runner; None if it does not respond."""

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        """Return the progress of a model download; None if it does not respond."""


class CertificateStore(Protocol):
    """The Secret with the webhook certificates, and the clients that trust them."""

    async def read(self) -> CertificateSecret:
        """Return the stored certificates.

        The result is empty and has no version if nothing was written yet.
        """

    async def write(self, secret: CertificateSecret) -> None:
        """Replace what was read; ClusterError if another writer came first."""

    async def trust(self, bundle: str) -> None:
        """Make the API server trust these authorities, and no others, for the webhooks."""


class GpuError(PortError):
    """The driver refused an operation, or cannot be queried."""

    def __init__(self, fault: GpuFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class KubeletError(PortError):
    """The kubelet does not say which pod uses which device."""


class Gpus(Protocol):
    """The GPUs of the node on which this process runs."""

    async def read(self, gpu: str | None = None) -> GpuInventory:
        """Return all GPUs, or one by its UUID, in their current state.

        Raises GpuError when the driver cannot be queried.
        """

    async def create(self, gpu: str, placement: SlicePlacement) -> None:
        """Create an instance, or complete a partly created one; a complete one is left alone.

        On GpuError as little is left behind as the driver allows.
        """

    async def destroy(self, gpu: str, placement: SlicePlacement) -> None:
        """Destroy an instance and its compute instances; no error if it does not exist.

        Raises GpuError with the fault InUse, and changes nothing, while a process computes on it.
        """


class PodDevices(Protocol):
    """The kubelet's PodResources API on this node."""

    async def holders(self) -> PodsByDevice:
        """Return which pods use which GPUs and MIG devices.

        Raises KubeletError if there is no response.
        """


class OwnLayout(Protocol):
    """The NodeLayout of the node on which this process runs."""

    async def read(self) -> ObservedNodeLayout:
        """Return it as it is now, after creating it if needed; ClusterError on failure."""

    async def write(self, status: NodeLayoutStatus) -> None:
        """Replace its status; ClusterError on failure."""

    async def wait_for_change(self) -> None:
        """Return once its spec differs from the last read, or it was deleted.

        Raises ClusterError on failure.
        """


class Locks(Protocol):
    """Locks that exclude other processes of the same machine."""

    def hold(self, name: str) -> AbstractContextManager[bool]:
        """Yield whether the lock was acquired for the block; never wait for it."""
