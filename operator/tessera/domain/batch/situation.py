"""What is known of one batch at one moment: the only input of its decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.hardware.pools import PoolView
from tessera.domain.observed.batches import (
    Batch,
    BatchJob,
    BatchPod,
    NodeHealth,
    ProgressSample,
    VolumeClaim,
)
from tessera.domain.perf import MeasurementKey, SpeedMeasurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """One batch, and what it meets."""

    at: datetime
    batch: Batch
    pods: tuple[BatchPod, ...] = ()
    """Those of this batch, and so with the Jobs."""
    jobs: tuple[BatchJob, ...] = ()
    nodes: Mapping[str, NodeHealth] = field(default_factory=dict)
    """Every node of the cluster by name: one that is missing is gone."""
    claim: VolumeClaim | None = None
    """The claim that the spec names; None when there is none."""
    services: Mapping[str, InferenceServiceSpec | None] = field(default_factory=dict)
    """The InferenceServices of the namespace by name; None for a spec that cannot be read."""
    views: tuple[PoolView, ...] = ()
    used_devices: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Devices that others hold, by pool and resource."""
    measured: Mapping[MeasurementKey, SpeedMeasurement] = field(default_factory=dict)
    """What services of the cluster told of speeds."""
    progress_sample: ProgressSample | None = None
    """The last answer of this batch's runner."""
    job_refusal: str | None = None
    """What the API server said to the Job of the last attempt, if it refused it."""
