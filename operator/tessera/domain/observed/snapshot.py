"""What the fleet looks like at one moment: the only input of a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, cast

from tessera.api.accelerator_pool import AcceleratorPoolSpec, AcceleratorPoolStatus
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import RevisionReason
from tessera.api.ref import Ref as Ref  # noqa: PLC0414 - re-exported
from tessera.api.service_status import InferenceServiceStatus, ModelStatus
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.api.tenant_budget import (
    BudgetOverride,
    BudgetRaise,
    TenantBudgetSpec,
    TenantBudgetStatus,
)
from tessera.domain.observed.batches import (
    Batch,
    BatchJob,
    PodRefusal,
    ProgressSample,
    VolumeClaim,
)
from tessera.domain.observed.charges import LimitCharges, LimitId
from tessera.domain.observed.demand import NO_DEMAND, GatewayDemand
from tessera.domain.observed.drafts import DraftCounts
from tessera.domain.observed.energy import EnergyReadings, ServiceEnergy
from tessera.domain.observed.gates import (
    GatedVersion,
    GateJob,
    GateJobRun,
    ObservedGate,
    ServiceRevision,
)
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.load_history import LoadHistory
from tessera.domain.observed.model_jobs import ModelJobRun, ObservedModelJob
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.object import KindOf, Observed, ObservedT
from tessera.domain.observed.providers import ObservedProvider


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedService(Observed):
    """An InferenceService."""

    spec: InferenceServiceSpec | None
    update: str | None = None
    """The annotation that requests the newest pod template and weights."""
    allows_downtime: bool = False
    """The annotation that lets it fall below minReplicas while its slices are created."""
    deleting: bool = False
    """It has a deletion timestamp."""
    gated: GatedVersion | None = None
    """The version of `spec`, where changes wait for a gate; it is not observed but decided."""
    status: InferenceServiceStatus = field(default_factory=InferenceServiceStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Observed):
    """An AcceleratorPool."""

    spec: AcceleratorPoolSpec | None
    approved_plan: str | None = None
    """The annotation that approves a plan of layouts."""
    status: AcceleratorPoolStatus = field(default_factory=AcceleratorPoolStatus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Observed):
    """A TenantBudget."""

    spec: TenantBudgetSpec | None
    named_namespaces: tuple[str, ...] = ()
    """Namespaces that an invalid spec names, as far as they can be read."""
    status: TenantBudgetStatus = field(default_factory=TenantBudgetStatus)
    override: BudgetOverride | None = None
    """The annotation, whether or not it has ended."""
    raises: tuple[BudgetRaise, ...] = ()
    """The same: what is added to limits for some time."""
    record_lost: bool = False
    """There is a status, and it cannot be read."""


class Taint(NamedTuple):
    """A taint by which a node takes no pods."""

    key: str
    value: str
    effect: str

    @property
    def text(self) -> str:
        """Return it as `kubectl taint` takes it."""
        value = f"={self.value}" if self.value else ""
        return f"{self.key}{value}:{self.effect}"


class PodToleration(NamedTuple):
    """A toleration of a pod; an empty key, value or effect matches as in Kubernetes."""

    key: str
    operator: str
    value: str
    effect: str

    def tolerates(self, taint: Taint) -> bool:
        return (
            self.key in ("", taint.key)
            and self.effect in ("", taint.effect)
            and (self.operator == "Exists" or self.value == taint.value)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as far as placement needs it."""

    name: str
    labels: Mapping[str, str]
    schedulable: bool
    """Ready, not cordoned, and without a taint of a node that terminates."""
    created: datetime | None = None
    """None is "not known"."""
    allocatable: Mapping[str, int]
    """GPUs and MIG slices that the node offers, by extended resource."""
    kubelet_ready: bool = True
    """The condition Ready alone; a cordoned node is alive."""
    taints: frozenset[str] = frozenset()
    """Keys of its taints."""
    barring_taints: tuple[Taint, ...] = ()
    """Those by which it takes no pods until somebody removes them."""
    guarded: bool = False
    """Tessera has it left alone by Karpenter."""


@dataclass(frozen=True, slots=True)
class PodEvent:
    """What a scheduler, an autoscaler or a kubelet said of a pod, or of the node started for it."""

    reason: str
    message: str
    """Cleaned, and cut to a sentence or two: whoever may write Events wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerExit:
    """The end of one run of a container."""

    code: int
    reason: str = ""
    """The kubelet's word, such as OOMKilled."""
    log_tail: str = ""
    """The end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A replica of a service, a pod of one of Tessera's Jobs, or an unmanaged pod with devices."""

    ref: Ref
    uid: str
    service: Ref
    """Of a replica; without a name for any other pod."""
    variant: str = ""
    template: str = ""
    """`pod-template-hash`: which revision of the Deployment made it."""
    template_digest: str = ""
    """Digest of the pod template of its Deployment; empty of the first one of a variant."""
    created: datetime
    node: str | None = None
    """Where it was bound to."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """GPUs and MIG slices that it holds, by extended resource."""
    bound: datetime | None = None
    """When it was bound: from then on it costs money."""
    node_selector: tuple[tuple[str, str], ...] = ()
    """Labels of the nodes where it may run, while it is not bound."""
    tolerations: tuple[PodToleration, ...] = ()
    """Those of a pod that no node takes."""
    started: datetime | None = None
    """When the engine's container started; None if it ended and ran again, too."""
    ended: datetime | None = None
    """When its last container ended for good."""
    address: str | None = None
    ready_since: datetime | None = None
    """Since when it takes requests; None while it does not."""
    containers_ready: bool = False
    """All containers pass their probes, whatever the readiness gate says."""
    containers_unready_since: datetime | None = None
    """Since when they do not; None while they do, or before the kubelet said so."""
    serving: bool | None = None
    """The readiness gate as the operator set it; None before the first time."""
    draining_since: datetime | None = None
    terminating: bool = False
    """It has a deletion timestamp, or its containers ended for good."""
    deletion_cost: int = 0
    leaving: bool = False
    """It has the label by which its PodDisruptionBudget selects it no more."""
    tried: bool = False
    """The same, since it is of a changed version, which serves no user yet."""
    max_num_seqs: int | None = None
    """Of its engine, by the command line, as are the next two."""
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    engine: str = ""
    """Digest of its image, and of what its command line says of model, tokenizer and template."""
    unschedulable: str | None = None
    """What nodes lack, by the scheduler's words, while it finds none."""
    waiting_reason: str | None = None
    """Why a container waits, in the kubelet's word, such as CrashLoopBackOff."""
    container_message: str = ""
    """The end of the log of the last exit, or the kubelet's message."""
    last_exit: ContainerExit | None = None
    """How a container ended last, as long as the pod is not up again."""
    model_job_run: ModelJobRun | None = None
    """Set on pods of model jobs; these are no replicas of their service."""
    gate_job_run: GateJobRun | None = None
    """Set on pods of gate Jobs, which are no replicas either."""

    @property
    def batch_run(self) -> "BatchPod | None":
        """Return the pod if it is one of a batch, which belongs to no service."""
        return self if isinstance(self, BatchPod) else None

    @property
    def unmanaged(self) -> bool:
        """Return whether Tessera did not create it; nothing but its devices is known then."""
        job_run = self.batch_run or self.model_job_run or self.gate_job_run
        return not self.service.name and job_run is None

    @property
    def holds_devices(self) -> bool:
        """Return whether the kubelet or the scheduler gave it devices that it has not returned."""
        return bool(self.devices) and self.bound is not None and self.ended is None

    @property
    def takes_requests(self) -> bool:
        """Ready, and not on its way out: on a dead node that may hang for ever."""
        return self.ready_since is not None and not self.terminating

    @property
    def is_stopping(self) -> bool:
        """Return whether it drains, or is being deleted, or has ended."""
        return self.terminating or self.draining_since is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPod(Pod):
    """The pod of the check or of an attempt of a batch."""

    batch: Ref
    batch_uid: str = ""
    """That of the batch: another one may have its name by now."""
    attempt: int | None
    """None is the check."""
    owner: str = ""
    """The uid of its Job."""
    runner_since: datetime | None = None
    """Since when its runner runs; its engine was up before that."""
    exit_code: int | None = None
    """That of the runner, once it ended; its engine may still be leaving."""
    report: str = ""
    """The termination message of the runner."""
    disrupted: bool = False
    """It has the condition DisruptionTarget."""

    @property
    def finished(self) -> bool:
        """Return whether no container of the pod will run again."""
        return self.ended is not None or self.exit_code is not None


@dataclass(frozen=True, slots=True, order=True)
class ForeignField:
    """A field that somebody else set on an object of Tessera, and Tessera does not own."""

    manager: str
    """The name in `metadata.managedFields`."""
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The Deployment of one pod template of a variant."""

    ref: Ref
    service: Ref
    variant: str
    template_digest: str = ""
    """As its pods have it; empty of the first one of a variant."""
    record: PodTemplateVersionStatus | None = None
    """What its template was made from; None of one that an older Tessera made."""
    created: datetime | None = None
    replicas: int
    rollout_complete: bool
    """Its controller has seen the newest spec, and all pods are of the newest template."""
    replica_failure: str | None = None
    """What the API server said when it refused to create a pod."""
    owner_uid: str | None = None
    """The uid of the InferenceService that owns it; None once it was orphaned."""
    generation: int = 0
    """It changes with each write of the spec."""
    foreign_fields: tuple[ForeignField, ...] = ()
    """Fields of the spec that others set, by manager."""
    model: ModelStatus | None = None
    """The revision for which it was applied."""
    arguments: tuple[str, ...] = ()
    """The command line of its engine."""
    unlisted_metadata: frozenset[tuple[str, str, str]] = frozenset()
    """Field, key and value of what its pods have and the installation does not list."""

    def is_refused(self, pods: int) -> bool:
        """Return whether a quota or admission refuses a pod of it, of which `pods` exist."""
        return self.replica_failure is not None and pods < self.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedAutoscalers:
    """The HorizontalPodAutoscalers of a namespace that scale Deployments."""

    at: datetime
    by_deployment: Mapping[str, str] = field(default_factory=dict)
    """Names of the first one by the name of the Deployment."""
    problem: str | None = None
    """Why they could not be listed."""

    def scaling(self, workload: Workload) -> str | None:
        """Return the autoscaler of a Deployment; None without one, or where none is known."""
        return self.by_deployment.get(workload.ref.name)


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """The Kubernetes Service of an InferenceService."""

    service: Ref
    address: str | None
    """Its cluster IP."""


# Increases that a step reading has are of so long.
STEP_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReading:
    """What the engine of one replica did in the last two minutes."""

    steps: float
    """Those in which it gave out tokens."""
    sequences: float
    """Tokens that a step gave out, without accepted drafts."""
    prefill_tokens: float
    """Tokens of prompts that a step read."""
    activity: float | None = None
    """Share of the time in which its devices computed; None is "not known"."""
    is_busy: bool = False
    """Whether it ran requests at each scrape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReading:
    """What Prometheus says of one replica. None is "not known"."""

    waiting: float | None = None
    running: float | None = None
    activity: float | None = None
    cached: float | None = None
    """Prompt tokens per second that it found in its cache, of the last five minutes."""
    seems_idle: bool = False
    """Its activity has contradicted its running requests for five minutes."""
    steps: StepReading | None = None

    @property
    def measured_activity(self) -> float | None:
        """Return the activity, None where it contradicts the running requests."""
        return None if contradicts_requests(self.activity, self.running) else self.activity


# A device whose engine runs requests computes for a larger share of the time.
MIN_BUSY_ACTIVITY = 0.03


def contradicts_requests(activity: float | None, running: float | None) -> bool:
    """Return whether an activity cannot be that of engines with so many running requests.

    The requests are believed: the engine counts them itself, and DCGM reports 0 for devices that it
    stopped to profile.
    """
    return activity is not None and activity < MIN_BUSY_ACTIVITY and bool(running)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """What the engine of one replica has done, as Prometheus saw it last."""

    steps: float
    """Steps in which it gave out tokens, since it started."""
    scraped_at: datetime
    """When that was counted."""
    awake: bool | None = None
    """False while it is asleep or paused; None is "not known"."""


# Increases that a speed reading has are of so long.
SPEED_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReading:
    """What the engines of one variant of a service did in the last five minutes.

    What is said of a step, of a replica and of a device is a mean. None is "not known".
    """

    variant: str | None = None
    """None if the series has no variant label: then it is the variant that runs."""
    requests: float | None = None
    """Finished ones, of all replicas."""
    tokens_per_second: float | None = None
    """Output tokens, of all replicas."""
    sequences: float | None = None
    """Tokens that a step gave out, without accepted drafts, which is how many answers it worked
    on."""
    prefill_tokens: float | None = None
    """Tokens of prompts that a step read; those out of the prefix cache are none."""
    prompt_tokens: float | None = None
    """The same, that a request had."""
    mean_input_tokens: float | None = None
    """Tokens of a prompt, also those out of the prefix cache, over the last ten minutes."""
    mean_output_tokens: float | None = None
    """Tokens of an answer over the last ten minutes."""
    cached_share: float | None = None
    """Share of the tokens of prompts that came out of the prefix cache in the last ten minutes."""
    itl_seconds: float | None = None
    """Time between two tokens of an answer."""
    median_itl_seconds: float | None = None
    """The same, as interpolated within its bucket."""
    preemptions: float | None = None
    """Requests that lost their cache to others and wait again, of all replicas."""
    running: float | None = None
    """Requests in a replica, whether or not it stepped."""
    median_running: float | None = None
    """The median of the same over the last ten minutes."""
    drafts: float | None = None
    """Times that a sequence had drafted tokens to verify, of all replicas."""
    drafted_tokens: float | None = None
    """Tokens that were drafted, of all replicas."""
    accepted_tokens: float | None = None
    """Drafted tokens that were accepted, of all replicas."""
    kv_usage: float | None = None
    """Share of the KV cache in use, whether or not the replica stepped."""
    kv_tokens: int | None = None
    """Tokens that the cache of a replica holds, as its engine says; of several the least."""
    flops_per_second: float | None = None
    """Operations of a device."""
    bytes_per_second: float | None = None
    """What a device read and wrote."""

    @property
    def input_tokens_per_second(self) -> float | None:
        """Return the tokens of prompts that all replicas read."""
        if self.prompt_tokens is None or self.requests is None:
            return None
        return self.prompt_tokens * self.requests / SPEED_SECONDS

    def resident_tokens(self, kv_tokens: int) -> float | None:
        """Return the mean cached tokens of a running request, in a cache of so many by default."""
        if not self.running or self.kv_usage is None:
            return None
        # Both are means over the same time: idle parts of it cancel out in the quotient.
        return self.kv_usage * (self.kv_tokens or kv_tokens) / self.running


def reading_of(variant: str, readings: Sequence[SpeedReading]) -> SpeedReading:
    """Return the reading of a variant, or an empty one."""
    for reading in readings:
        if reading.variant == variant:
            return reading
    # Without a variant label there is one reading, of the variant that runs.
    unlabeled = len(readings) == 1 and readings[0].variant is None
    return readings[0] if unlabeled else SpeedReading()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRates:
    """Tokens per second that the engines of a service computed in the last minute."""

    prompt: float
    """Without those out of the prefix cache."""
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One round of questions to Prometheus."""

    at: datetime
    pods: Mapping[Ref, PodReading] = field(default_factory=dict)
    finished: Mapping[Ref, float] = field(default_factory=dict)
    """Requests that each service finished in the last five minutes; absent is "not known"."""
    finish_rates: Mapping[Ref, float] = field(default_factory=dict)
    """Requests per second that each service finished in the last minute."""
    token_rates: Mapping[Ref, TokenRates] = field(default_factory=dict)
    """By service."""
    engines: Mapping[Ref, EngineReading] = field(default_factory=dict)
    """By replica, apart from its load, since it differs after every scrape."""
    speeds: Mapping[Ref, tuple[SpeedReading, ...]] = field(default_factory=dict)
    """By service; the same object until the next query, which is less frequent than readings."""
    speeds_at: datetime | None = None
    """Time of that query."""
    latencies: Mapping[Ref, ServiceLatency] = field(default_factory=dict)
    """By service; a service without any series is absent."""
    latencies_at: datetime | None = None
    """Time of the query of `latencies`; None while nothing is known of any service."""
    drafts: Mapping[Ref, tuple[DraftCounts, ...]] = field(default_factory=dict)
    """By service, of ten minutes, as gateways count it; commands alone read it."""
    energy: EnergyReadings | None = None
    """Samples of all GPUs; the same object until the next query."""
    energies: Mapping[Ref, ServiceEnergy] = field(default_factory=dict)
    """Of the last hour, by service."""
    load_histories: Mapping[Ref, LoadHistory] = field(default_factory=dict)
    """Recorded load by service; kept between queries."""
    problem: str | None = None
    """Why nothing could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of asking a service for one token."""

    at: datetime
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class InFlight:
    """Requests that a replica held when it was asked."""

    at: datetime
    requests: int


@dataclass(frozen=True, slots=True)
class RevisionQuery:
    """A query to the hub for the commit that a revision of a model names."""

    repository: str
    revision: str
    update: str | None = None
    """The annotation that asks; another value of it makes another question."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The commit that a revision names, or why it could not be resolved."""

    commit: str | None
    reason: RevisionReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The fleet at one moment."""

    at: datetime
    services: tuple[ObservedService, ...] = ()
    deleting_services: tuple[ObservedService, ...] = ()
    """Those with a deletion timestamp, which a finalizer keeps."""
    pools: tuple[Pool, ...] = ()
    nodes: tuple[Node, ...] = ()
    layouts: tuple[ObservedNodeLayout, ...] = ()
    """What the agents on the nodes tell of their GPUs."""
    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()
    addresses: Mapping[Ref, str] = field(default_factory=dict)
    """Where each service answers."""
    readings: Readings | None = None
    demand: Mapping[Ref, GatewayDemand] | None = None
    """What gateways report; None where none does. A service that they do not name has none."""
    charges: Mapping[LimitId, LimitCharges] | None = None
    """What they report of limits of basis Charge; None where none does."""
    probe_results: Mapping[Ref, ProbeResult] = field(default_factory=dict)
    in_flight: Mapping[Ref, InFlight] = field(default_factory=dict)
    batches: tuple[Batch, ...] = ()
    batch_jobs: tuple[BatchJob, ...] = ()
    pod_refusals: Mapping[str, PodRefusal] = field(default_factory=dict)
    """Answers about Jobs of batches that have no pod, by the Jobs' UIDs."""
    pod_events: Mapping[str, tuple[PodEvent, ...]] = field(default_factory=dict)
    """What is said of pods that wait long for a node or an image, by their UIDs, latest first."""
    autoscalers: Mapping[str, ListedAutoscalers] = field(default_factory=dict)
    """HorizontalPodAutoscalers of namespaces where somebody else writes replicas."""
    model_jobs: tuple[ObservedModelJob, ...] = ()
    gates: tuple[ObservedGate, ...] = ()
    revisions: tuple[ServiceRevision, ...] = ()
    """Of services with a gate."""
    gate_jobs: tuple[GateJob, ...] = ()
    fetch_progress: Mapping[Ref, FetchProgress] = field(default_factory=dict)
    """What the fetches of models answered last, by service."""
    claims: Mapping[Ref, VolumeClaim] = field(default_factory=dict)
    runner_answers: Mapping[str, ProgressSample] = field(default_factory=dict)
    """What the runners of batches answered last, by the batches' uids."""
    silent_runners: Mapping[str, datetime] = field(default_factory=dict)
    """When runners that never answered this leader were first asked, by the batches' uids."""
    budgets: tuple[Budget, ...] = ()
    providers: tuple[ObservedProvider, ...] = ()
    resolutions: Mapping[RevisionQuery, Resolution] | None = None
    """Recent responses of the hub; None where no hub is queried."""

    others: Mapping[str, tuple[Observed, ...]] = field(default_factory=dict)
    """By plural, objects of kinds that no decision reads, only what is reported of them."""

    def of(self, kind: KindOf[ObservedT]) -> tuple[ObservedT, ...]:
        """Return the objects of one of Tessera's kinds that are not being deleted."""
        objects: Any = getattr(self, kind.field) if kind.field else self.others.get(kind.plural, ())
        return cast(tuple[ObservedT, ...], objects)

    def demand_of(self, service: Ref) -> GatewayDemand | None:
        """Return what gateways report of a service; None where no gateway reports."""
        return None if self.demand is None else self.demand.get(service, NO_DEMAND)
