"""One change under a gate as it is observed: two versions, the gate, and its Jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tessera.api.inference_service import Slo
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.money import Money
from tessera.domain.observed.gates import GateJob, GateJobRun, ObservedGate
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.quality.gate_jobs import GateEndpoint, PromptTask


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedVersion:
    """A version of a service as its gate sees it."""

    digest: str
    """Of what waits for a gate, and of what it was resolved to."""
    answers: str = ""
    """The same of what makes its answers; empty while it is not known."""
    endpoint: GateEndpoint | None = None
    """Where a replica answers; None while none does."""
    hardware: str = ""
    """GPU product and profile; empty while there is none. Latency and cost compare on the same."""
    precision: str = ""
    """By name; empty while there is none."""
    variant: str = ""
    """The same with pool and precision."""
    per_million_tokens: Money | None = None
    """Price of a million output tokens of a full replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeTrial:
    """A change that is tried, or would be."""

    at: datetime
    service: Ref
    slo: Slo
    gate_ref: str
    """Name in `spec.rollout.gateRef`."""
    gate: ObservedGate | None
    baseline: TriedVersion
    """The stable version; without a digest beside a first one."""
    candidate: TriedVersion
    is_unopposed: bool = False
    """A stable version exists, which is down without answers, so that nothing compares."""
    stable_lacks_devices: bool = False
    """No replica of the stable version has a node, and at least one waits for one."""
    stable_outlook: str = ""
    """Until when a stable version of which no replica answers has time, and what then follows."""
    demands_baseline: bool = False
    """Nothing compares, and the platform demands that something does."""
    judge: GateEndpoint | None = None
    """Where the judge answers; None while it does not, or without one."""
    task: PromptTask = "chat"
    judge_digest: str = ""
    """Of the version that judges."""
    has_tenant: bool = False
    """A TenantBudget covers the namespace."""
    vectors_of: str | None = None
    """Another model of an embedding service, whose vectors are not expected yet."""
    waits: StatusVerdict[Progressing] | None = None
    """Why the candidate has no replica yet."""
    overdue: str | None = None
    """Why its replica is given up."""
    since: datetime
    """When the change was seen."""

    @property
    def is_first(self) -> bool:
        """Whether there is no stable version, so that a score decides."""
        return not self.baseline.digest

    @property
    def is_of_latency(self) -> bool:
        """Whether both versions answer alike, so that latency and cost alone decide."""
        return self.candidate.answers == self.baseline.answers != ""

    @property
    def waits_text(self) -> str:
        """Return what becomes of the change, and of its users, until the gate decides."""
        if self.is_unopposed:
            return "The change waits, and the stable version is down"
        if self.is_first:
            return "The first version waits, and users have none"
        return "The change waits, and users have the stable version"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJobs:
    """What the Jobs of one gate are and said."""

    jobs: Sequence[GateJob] = ()
    runs: Mapping[str, GateJobRun] = field(default_factory=dict)
    """Of their pods, by the uid of the Job."""
    answered: Mapping[Ref, FetchProgress] = field(default_factory=dict)
    """Prompts that are answered, and all, by Job; absent while none said so."""

    def has_ended(self, job: GateJob) -> bool:
        """Return whether nothing of a Job runs, as it or its pod says."""
        run = self.runs.get(job.uid)
        return job.failed or (run is not None and run.exit_code is not None)
