"""What is observed of gates: their objects, the revisions of services, and Jobs that ask models."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tessera.api.gate_reasons import GateAccepted
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.quality_gate import QualityGateSpec, QualityGateStatus
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.api.service_status import ModelStatus, PrecisionStatus
from tessera.domain.observed.object import Observed

GateRole = Literal["Baseline", "Candidate"]
# Pending: no replica of a version has been Ready yet. Overdue: none was within its expected start
# and 10 minutes, so it protects no user. Ready: one was, so it protects users. Failing: the same,
# and its containers have failed for as long by now.
Readiness = Literal["Pending", "Overdue", "Ready", "Failing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedGate(Observed):
    """A QualityGate."""

    spec: QualityGateSpec | None
    status: QualityGateStatus = field(default_factory=QualityGateStatus)

    @property
    def refusal(self) -> StatusVerdict[GateAccepted] | None:
        """Return why it decides nothing as it is, by what its Jobs read last."""
        for each in self.status.conditions:
            key = each.type, each.status, each.observed_generation
            if key == ("Accepted", "False", self.generation):
                return StatusVerdict(GateAccepted(each.reason), each.cause)
        return None


@dataclass(frozen=True, slots=True)
class GatedVersion:
    """The version of a gated service that its replicas are made of."""

    digest: str
    """Of what can change answers, as written."""
    builder_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRevision:
    """A ControllerRevision: the whole input of the templates of one version of a service."""

    ref: Ref
    uid: str = ""
    service: Ref
    service_uid: str
    """That of the owner: another service may have its name by now."""
    number: int
    """Of versions that were stable, the larger the later; 0 of one that never was."""
    digest: str
    """Of what can change answers."""
    spec: InferenceServiceSpec
    update: str | None = None
    """The annotation `tessera.dev/update`, for which the commit and the builder were chosen."""
    model: ModelStatus | None = None
    """The commit of the weights, once it is pinned."""
    precisions: tuple[PrecisionStatus, ...] = ()
    """Of files of listed precisions."""
    builder_version: int = 1
    tried: frozenset[str] | None = None
    """Names of the precisions that may serve users; None: all that it lists."""
    readiness: Readiness = "Ready"
    """What is known of its replicas; `Ready` of one that an older Tessera recorded."""
    created: datetime | None = None

    @property
    def has_served(self) -> bool:
        """Return whether a replica of it was Ready, so that it protects users."""
        return self.readiness in {"Ready", "Failing"}

    @property
    def is_down(self) -> bool:
        """Return whether none of its replicas gets ready any more, as far as anybody can tell."""
        return self.readiness in {"Overdue", "Failing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJob:
    """A Job that asks one version of a service the prompts of a suite."""

    ref: Ref
    uid: str
    gate: Ref
    service: Ref
    role: GateRole
    digest: str
    """Of the version that it asks."""
    created: datetime | None = None
    failed: bool = False
    refusal: str | None = None
    """Why the API server refuses its pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJobRun:
    """What only the pods of such Jobs have."""

    job_uid: str
    exit_code: int | None = None
    report: str = ""
    """The termination message."""
    address: str | None = None
    """Where progress is asked, while it runs."""
