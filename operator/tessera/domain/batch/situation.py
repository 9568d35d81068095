"""The situation of one batch at one moment: the only input of its decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.batch_inference import BatchModelStatus
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.ref import Ref
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.batches import (
    Batch,
    BatchJob,
    NodeHealth,
    PodRefusal,
    ProgressSample,
    VolumeClaim,
)
from tessera.domain.observed.snapshot import BatchPod
from tessera.domain.perf.sources import MeasurementKey, SpeedMeasurement
from tessera.domain.service.preparation.claims import ClaimUsers
from tessera.domain.service.preparation.jobs import ModelJobStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One batch with the observed objects that its decision depends on."""

    at: datetime
    batch: Batch
    pods: tuple[BatchPod, ...] = ()
    """Pods of this batch; `jobs` are its Jobs."""
    jobs: tuple[BatchJob, ...] = ()
    nodes: Mapping[str, NodeHealth] = field(default_factory=dict)
    """Every node of the cluster by name; a missing node no longer exists."""
    claim: VolumeClaim | None = None
    """The PersistentVolumeClaim of the spec; None when it does not exist."""
    volumes: Mapping[Ref, VolumeClaim] = field(default_factory=dict)
    """All PersistentVolumeClaims, those with downloaded files among them."""
    claim_users: ClaimUsers = field(default_factory=ClaimUsers)
    """Who uses claims with downloaded files."""
    conflict: tuple[str, Ref] | None = None
    """A file of this batch that another unfinished batch writes, and that batch."""
    shape_job: ModelJobStatus | None = None
    """The Job that reads `spec.model`; None where the spec or the catalog has its shape."""
    services: Mapping[str, InferenceServiceSpec | None] = field(default_factory=dict)
    """The InferenceServices of the namespace by name; None for an invalid spec."""
    views: tuple[PoolView, ...] = ()
    used_devices: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Devices that other workloads hold, by pool and resource."""
    measured: Mapping[MeasurementKey, SpeedMeasurement] = field(default_factory=dict)
    """Speeds that services of the cluster measured."""
    progress_sample: ProgressSample | None = None
    """The last progress that the runner of this batch reported."""
    unanswered_since: datetime | None = None
    """When this leader first asked the runner without an answer; None once it answered."""
    pod_refusals: Mapping[str, PodRefusal] = field(default_factory=dict)
    """Why Jobs have no pod, by their UIDs."""
    job_refusal: str | None = None
    """The error of the API server when it refused the Job of the last attempt."""
    budget: str = ""
    """Digest of the limits and raises of its tenant."""

    @property
    def model(self) -> BatchModelStatus | None:
        """Return what was read about the model of the spec."""
        recorded, spec = self.batch.status.model, self.batch.spec
        read = self.shape_job.read_shape if self.shape_job is not None else None
        if recorded is not None or read is None or spec is None or spec.model is None:
            return recorded
        return BatchModelStatus(shape=read.shape, source=read.source(spec.model.uri))

    def job_of(self, attempt: int | None) -> BatchJob | None:
        """Return the Job of an attempt; None is the check."""
        return next((job for job in self.jobs if job.attempt == attempt), None)

    def last_pod(self, attempt: int | None, job: BatchJob | None) -> BatchPod | None:
        """Return the last pod of an attempt, of this Job if it exists."""
        pods = [
            pod
            for pod in self.pods
            if pod.attempt == attempt and (job is None or pod.owner == job.uid)
        ]
        return max(pods, key=lambda pod: (pod.created, pod.ref), default=None)
