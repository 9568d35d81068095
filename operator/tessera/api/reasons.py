"""What a reason is, and every reason of an InferenceService and its Events, with its meaning."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Self, TypeVar


class StatusReason(StrEnum):
    """One reason of a closed set; the reference page prints the text below each."""

    is_true: bool
    """Whether a condition with this reason is True."""
    is_known: bool
    """Whether a condition with this reason is True or False, and not Unknown."""

    def __new__(cls, word: str, status: bool | None = False) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.is_true = bool(status)
        member.is_known = status is not None
        return member


ReasonT_co = TypeVar("ReasonT_co", bound=StatusReason, covariant=True)


@dataclass(frozen=True, slots=True)
class StatusVerdict(Generic[ReasonT_co]):
    """Reason with its message, which carries the numbers."""

    reason: ReasonT_co
    message: str


class Accepted(StatusReason):
    """Is the spec of the service valid?"""

    VALID = "Valid", True
    """The spec is valid."""
    FLAGS_UNCHECKED = "FlagsUnchecked", True
    """The spec is valid, but Tessera has no flag table for this engine version, so of
    `spec.engine.extraArgs` only flags reserved by Tessera are recognized."""
    HPA_DISABLED = "HPADisabled", True
    """The spec is valid, but the chart's value `hpa.enabled` is false, so Tessera writes no
    HorizontalPodAutoscaler for `spec.scaling.mode` `HPA`."""
    NAME_CONFLICT = "NameConflict", True
    """The spec is valid, but another service or tenant has one of its names, so requests for it do
    not come here from the gateway."""
    NAME_NOT_PUBLISHED = "NameNotPublished", True
    """The spec is valid, but no grant in `spec.publishing` of a TenantBudget has one of its names
    for its namespace, so tenants in `spec.access` do not get it by that."""
    PUBLISHER_NOT_ACCEPTED = "PublisherNotAccepted", True
    """The spec is valid, but a tenant in `spec.access.tenants` does not accept models of this
    tenant: `spec.acceptedPublishers` of its TenantBudget does not list it."""
    NAME_CONTESTED = "NameContested", True
    """The spec is valid, and another service has one of its names and gets no requests for it where
    this one does."""
    UNTESTED_ENGINE_VERSION = "UntestedEngineVersion", True
    """The spec is valid, but this version of vLLM is older than the oldest that Tessera knows: it
    may lack a flag or a metric that Tessera needs."""
    UNSUPPORTED_FLAGS = "UnsupportedFlags", True
    """The spec is valid, but `spec.engine.extraArgs` contains a flag that this version of Tessera
    refuses. The service ran with it before and goes on; memory, capacity and price are computed
    without it."""
    UNSUPPORTED_POD_KEYS = "UnsupportedPodKeys", True
    """The spec is valid, but `spec.podTemplate` has a label or an annotation that the chart's value
    `podTemplate.allowedKeys` does not list. The service ran with it before and goes on."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""
    INVALID_NAME = "InvalidName"
    """No Service can have the name of this object, so nothing runs for it; recreate it under
    another name."""
    REVISION_MISSING = "RevisionMissing"
    """The ControllerRevision of the version in force is gone, and no spec of it is known: replicas
    stay as they are, and serve again after a restart. The message names the ways out."""
    READING_MODEL = "ReadingModel"
    """Tessera does not know the dimensions of the model; a Job reads its `config.json`."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """The dimensions of the model are not known, and no Job reads them, since the TenantBudget pays
    for no replica."""
    FAILED_CREATE = "FailedCreate"
    """The API server refuses the pod of the Job that reads the model's `config.json`; the message
    has its words."""
    UNKNOWN_MODEL = "UnknownModel"
    """Tessera does not know the dimensions of the model and could not read them; set
    `spec.model.shape`."""
    CONTEXT_TOO_LONG = "ContextTooLong"
    """`spec.context` exceeds the maximum context of the model."""
    PRECISION_MISMATCH = "PrecisionMismatch"
    """`spec.precision.variants` contains a precision that the model's files do not support."""
    RUNNER_MISMATCH = "RunnerMismatch"
    """`spec.engine.runner` is not one that the model has."""
    DRAFT_MISMATCH = "DraftMismatch"
    """The draft model of `spec.engine.speculation` belongs to another model."""
    ADAPTER_NAME_CONFLICT = "AdapterNameConflict"
    """An adapter in `spec.model.adapters` has the same name as the model."""
    INVALID_ENGINE_OPTION = "InvalidEngineOption"
    """Options of `spec.engine` contradict each other or the model."""
    RESERVED_FLAG = "ReservedFlag"
    """`spec.engine.extraArgs` contains a flag that Tessera sets, or one that changes memory, speed
    or the API and is counted nowhere; so may a variable of `spec.podTemplate.env`."""
    INVALID_FLAG = "InvalidFlag"
    """`spec.engine.extraArgs` contains a flag or a value that this engine version rejects."""
    LOADER_MISMATCH = "LoaderMismatch"
    """`spec.engine.loader` has an argument that its type has not, or cannot read this model."""
    RESERVED_POD_TEMPLATE_FIELD = "ReservedPodTemplateField"
    """`spec.podTemplate` contains a name that Tessera or the cluster sets."""
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    """`spec.podTemplate` contains a key that Kubernetes rejects."""
    POD_KEY_NOT_ALLOWED = "PodKeyNotAllowed"
    """`spec.podTemplate` has a label or an annotation with a prefix, or one by which others give
    rights, that the chart's value `podTemplate.allowedKeys` does not list."""
    INVALID_SCHEDULE = "InvalidSchedule"
    """`spec.scaling.schedules` has a time that never comes or cannot be read, bounds that
    contradict each other, or two schedules with a common minute."""
    INTERACTIVE_ON_SPOT = "InteractiveOnSpot"
    """`spec.placement` names a spot pool or the tier `Spot`, with class `Interactive`."""
    POOL_NOT_FOUND = "PoolNotFound"
    """`spec.placement.pools` names a pool that does not exist."""
    PRECISION_REFUSED = "PrecisionRefused", True
    """The spec is valid, but the files of a precision in `spec.precision.variants` are not used;
    the message has the reason."""
    PLANNER_ERROR = "PlannerError"
    """Planning this service failed with an internal error; other services are not affected."""


# What the owner of a service should know of its names, the worst first.
NAME_WARNINGS = (
    Accepted.NAME_CONFLICT,
    Accepted.NAME_NOT_PUBLISHED,
    Accepted.PUBLISHER_NOT_ACCEPTED,
)
NAME_REASONS = (*NAME_WARNINGS, Accepted.NAME_CONTESTED)


class PlacementReason(StatusReason):
    """Is there hardware for the service?"""

    PLACED = "Placed", True
    """The service is placed on the cheapest hardware that fits."""
    NOT_ACCEPTED = "NotAccepted"
    """The service is not placed while `Accepted` is False."""
    NO_POOL = "NoPool"
    """No AcceleratorPool may be used."""
    POOL_NOT_ALLOWED = "PoolNotAllowed"
    """`spec.namespaces` of the pools that could be used does not list the namespace."""
    NO_HARDWARE = "NoHardware"
    """The allowed pools offer no device that Tessera knows."""
    MIXED_CURRENCIES = "MixedCurrencies"
    """The allowed pools have prices in different currencies, which cannot be compared."""
    TOO_LARGE = "TooLarge"
    """The model fits on none of the hardware; the message says what is sufficient."""
    TOO_SLOW = "TooSlow"
    """The model fits, but even a single stream would miss `spec.slo.itlP95` on all hardware."""
    NODES_STARTING = "NodesStarting", True
    """Replicas wait for nodes that an autoscaler adds to the pool by its `spec.nodeTemplate`."""
    UNSCHEDULABLE = "Unschedulable"
    """Suitable hardware exists, but the scheduler finds no free capacity."""
    LAYOUT_PENDING = "LayoutPending"
    """Slices for the service are planned or being created; see the pool's condition LayoutReady."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """Slices are planned and nodes started for no replica, since the TenantBudget grants none."""
    ENGINE_LIMITS_UNMET = "EngineLimitsUnmet"
    """The limits of `spec.engine` fit into the memory and `spec.slo` on none of the hardware, on
    which the model would fit without them."""


class Progressing(StatusReason):
    """Is the service progressing to its desired state?"""

    ROLLOUT_COMPLETE = "RolloutComplete", True
    """All desired replicas run as planned."""
    NOT_PLACED = "NotPlaced"
    """No replica is rolled out while `Placed` is False."""
    FETCHING_MODEL = "FetchingModel", True
    """The model's files are being downloaded to the service's claim."""
    MODEL_FETCH_FAILED = "ModelFetchFailed"
    """The model's files could not be downloaded; the message says why."""
    STARTING = "Starting", True
    """Replicas are starting."""
    RESOLVING_REVISION = "ResolvingRevision", True
    """Tessera is asking the hub for the commit of the revision."""
    ROLLING_OUT = "RollingOut", True
    """New replicas replace old ones; the message says whether they start before or after these
    stop."""
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    """Replicas of the newest template were not ready in time, so those of the one before stay until
    the spec changes."""
    WAITING_FOR_DEVICE = "WaitingForDevice"
    """No replica leaves for one of the newest template, since another pod waits for its device."""
    DISRUPTION_NOT_ALLOWED = "DisruptionNotAllowed"
    """Healthy replicas within minReplicas stay although the plan took them: a defect of Tessera."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """The TenantBudget pays for fewer replicas than minReplicas or `spec.replicas`, or for none, so
    no file of the model is downloaded; or replicas of a pool that does not offer them any more
    stay, since it pays for none in their place."""
    GPU_QUOTA_EXCEEDED = "GPUQuotaExceeded"
    """`spec.gpus` of the TenantBudget leaves no room for replicas of minReplicas or
    `spec.replicas`."""
    STORAGE_QUOTA_EXCEEDED = "StorageQuotaExceeded"
    """`spec.storage` of the TenantBudget leaves no room for the claim of the model's files."""
    DRAINING = "Draining", True
    """Replicas finish their streams before they stop."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    """The Secret in `spec.model.tokenSecretRef`, or its key, does not exist."""
    HUB_ACCESS_DENIED = "HubAccessDenied"
    """The model is gated or private, and the token is missing or may not read it."""
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    """The ConfigMap in `spec.engine.chatTemplate`, or its key, does not exist."""
    WEIGHTS_OUT_OF_MEMORY = "WeightsOutOfMemory"
    """The weights do not fit into the memory of the GPUs; the message has the end of the log, as
    with the next three."""
    KV_CACHE_OUT_OF_MEMORY = "KVCacheOutOfMemory"
    """Beside the weights the GPUs have no room for the KV cache of a request of the longest
    context."""
    ACTIVATIONS_OUT_OF_MEMORY = "ActivationsOutOfMemory"
    """A step of the engine needs more memory than weights and KV cache leave."""
    DEVICE_MEMORY_IN_USE = "DeviceMemoryInUse"
    """Another process uses the memory of the GPU that the engine should take."""
    INVALID_ENGINE_ARGUMENTS = "InvalidEngineArguments"
    """The engine exited with code 2, because it does not know a flag or a value; the message has
    the end of its log."""
    ENGINE_START_FAILED = "EngineStartFailed"
    """The engine exited with code 1: it cannot run as configured, or cannot load the model; the
    message has the end of its log."""
    OOM_KILLED = "OOMKilled"
    """The kernel killed the engine because the pod exceeded its host memory, not GPU memory
    (OOMKilled)."""
    ENGINE_FAILED = "EngineFailed"
    """The engine exited with another code and is not running again; the message has the end of its
    log."""
    ENGINE_STALLED = "EngineStalled"
    """An engine holds requests and makes no progress; its replica is replaced, at most one in ten
    minutes."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """The engine's image cannot be pulled."""
    CREATE_CONTAINER_ERROR = "CreateContainerError"
    """The node cannot create the engine's container, for example because a Secret is missing."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A ResourceQuota of the namespace rejects more pods."""
    POD_SECURITY_VIOLATION = "PodSecurityViolation"
    """The Pod Security Standard of the namespace rejects the pods."""
    FAILED_CREATE = "FailedCreate"
    """The API server rejects the pods; the message says which component did so, and why."""
    APPLY_FAILED = "ApplyFailed"
    """The API server rejected an object of the service."""
    FIELD_MANAGER_CONFLICT = "FieldManagerConflict"
    """Somebody else writes the Deployment of the service: its replicas, which Tessera sets back, or
    a field that Tessera does not set. The message names the manager and the field."""
    TERMINATING = "Terminating", True
    """The service is being deleted, and its replicas are drained."""
    GATE_RUNNING = "GateRunning", True
    """The changed version is tried on the suite of its QualityGate; users have the stable one."""
    NO_SURGE_CAPACITY = "NoSurgeCapacity"
    """The changed version waits for a device to be tried on; the message says what is missing,
    and since when."""
    GATE_NOT_FOUND = "GateNotFound"
    """The changed version waits, since the QualityGate in `spec.rollout.gateRef` does not exist."""
    GATE_NOT_ACCEPTED = "GateNotAccepted"
    """The changed version waits, since the QualityGate cannot judge; the message has the reason of
    its condition Accepted, for example `SuiteNotFound`."""
    NO_BASELINE = "NoBaseline"
    """The changed version waits, since the one in force is down without answers to compare with,
    and the platform demands a gate; the message names the ways out."""
    GATE_INCONCLUSIVE = "GateInconclusive"
    """The suite did not prove what its `require: Proven` asks for, so the stable version stays
    until the spec changes."""
    ROLLED_BACK = "RolledBack"
    """The changed version was refused, so the stable one stays until the spec changes."""
    VECTORS_CHANGE = "VectorsChange"
    """A change of an embedding model waits until it is acknowledged: vectors that are stored do not
    compare with new ones."""


class Ready(StatusReason):
    """Does the service answer requests?"""

    COMPLETION_SUCCEEDED = "CompletionSucceeded", True
    """The service answered a one-token completion."""
    SCALED_TO_ZERO = "ScaledToZero"
    """The desired number of replicas is 0; the message says how it becomes more."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """The tenant's budget, or the lack of one, does not allow the first replica."""
    NOT_PLACED = "NotPlaced"
    """There is no hardware yet, or the spec was not accepted."""
    NO_REPLICA_READY = "NoReplicaReady"
    """No replica is ready to receive requests yet."""
    PROBE_PENDING = "ProbePending"
    """Replicas are ready; the first request was sent."""
    COMPLETION_FAILED = "CompletionFailed"
    """The service did not answer a completion."""
    TERMINATING = "Terminating"
    """The service is being deleted, and its replicas are drained."""
    PROBE_SUCCEEDED = "ProbeSucceeded", True
    """The service of a pooling model answered a request of one text."""
    PROBE_FAILED = "ProbeFailed"
    """The service of a pooling model did not answer a request of one text."""
    GATE_RUNNING = "GateRunning"
    """The first version is tried on the suite of its QualityGate, which has `minScore`, and serves
    no users before."""
    GATE_NOT_PASSED = "GateNotPassed"
    """The first version was refused, or its QualityGate cannot judge it, so nothing serves until
    the spec or the gate changes."""


class UpdateAvailable(StatusReason):
    """Would the replicas be created differently now?"""

    UP_TO_DATE = "UpToDate"
    """The replicas have the newest pod template."""
    NEW_TEMPLATE_AVAILABLE = "NewTemplateAvailable", True
    """Tessera or its values changed; the replicas stay as they are until the spec changes or
    `kubectl tessera update` is run."""
    DOWNGRADED = "Downgraded"
    """A newer Tessera created the replicas; this one rebuilt them by the newest rules it knows."""
    NOT_PLACED = "NotPlaced"
    """No replica is created while `Placed` is False."""


class SpeedAsPredicted(StatusReason):
    """Are the engines as fast as predicted?"""

    AS_PREDICTED = "AsPredicted", True
    """The inter-token latency is within 15 % of the prediction for the observed load."""
    SLOWER = "SlowerThanPredicted"
    """The inter-token latency is more than 15 % longer than predicted for the observed load."""
    FASTER = "FasterThanPredicted"
    """The inter-token latency is more than 15 % shorter than predicted for the observed load."""
    NOT_ENOUGH_REQUESTS = "NotEnoughRequests", None
    """The service never had 100 requests within 5 minutes, which a comparison needs."""
    NO_INTER_TOKEN_LATENCY = "NoInterTokenLatency", None
    """A pooling model generates no tokens, whose latency a comparison needs."""


class Speculating(StatusReason):
    """Do the engines decode faster by speculation?"""

    FASTER = "FasterDecoding", True
    """By the measured acceptance the engines decode faster than without."""
    ACCEPTANCE_ASSUMED = "AcceptanceAssumed", True
    """The engines speculate, and have not drafted enough tokens yet to measure how many are
    accepted; plans assume a share."""
    LOSING = "Losing", True
    """The engines speculate, and gain too little; it is switched off if that stays so for 15
    minutes."""
    LOW_ACCEPTANCE = "LowAcceptance"
    """Switched off: too few drafted tokens were accepted. An edit of `spec.engine.speculation`
    switches it on again."""
    HIGH_CONCURRENCY = "HighConcurrency"
    """Switched off: so many requests run at once that verifying drafts costs more time than it
    saves. It is switched on again after a day, once far fewer run."""


class SLOMet(StatusReason):
    """Are 95 % of the requests and tokens within `spec.slo`?"""

    MET = "Met", True
    """At least 95 % of the last five minutes were within both targets."""
    MISSED = "Missed"
    """Fewer than 95 % of the last five minutes were within a target."""
    BUCKET_TOO_WIDE = "BucketTooWide", None
    """Engines count at edges around the target, and 95 % lies between both counts; the gateway
    counts at the target."""
    NO_TRAFFIC = "NoTraffic", None
    """Fewer than 20 requests were counted within five minutes."""
    FAILED_GET_METRICS = "FailedGetMetrics", None
    """The latency of the engines is not known any more, or its counts contradict each other."""


class LoadBalanced(StatusReason):
    """Do the replicas share the requests?"""

    BALANCED = "Balanced", True
    """No replica is idle while requests fill another one."""
    UNBALANCED = "Unbalanced"
    """Requests fill one replica while others are idle, since clients keep their connections; the
    gateway picks a replica for each request."""
    NO_REPLICA_READY = "NoReplicaReady", None
    """No replica takes requests."""
    FAILED_GET_METRICS = "FailedGetMetrics", None
    """Running or waiting requests of a replica are not known."""


class EnergyKnown(StatusReason):
    """How is the energy of the service known?"""

    MEASURED = "Measured", True
    """By the energy counters of its GPUs."""
    POWER = "Power", True
    """By samples of the power of GPUs, for some of it at least."""
    MODEL = "Model", True
    """By the watts of the GPU product and the activity of engines, for some of it at least."""
    NOT_METERED = "NotMetered", None
    """No exporter was read at two moments while its replicas ran."""


class RevisionReason(StatusReason):
    """Which weights does the engine load?"""

    REVISION_RESOLVED = "RevisionResolved", True
    """The hub returned the commit of the revision."""
    COMMIT_SPECIFIED = "CommitSpecified", True
    """The spec names the commit itself."""
    RESOLVING_REVISION = "ResolvingRevision"
    """Tessera is asking the hub for the commit."""
    UNPINNED = "Unpinned"
    """The replicas were created before revisions were pinned; the revision is used as given."""
    RESOLUTION_DISABLED = "ResolutionDisabled"
    """Tessera is configured not to ask a hub; the revision is used as given."""
    HUB_UNREACHABLE = "HubUnreachable"
    """The hub did not answer, as in a cluster without internet access; the revision is used as
    given."""
    TOKEN_REQUIRED = "TokenRequired"  # noqa: S105 - a reason
    """The hub requires a token, which Tessera does not read; the revision is used as given."""
    REVISION_NOT_FOUND = "RevisionNotFound"
    """The hub has no such model or revision; the revision is used as given."""


class PrecisionReason(StatusReason):
    """May a listed precision be chosen?"""

    FILES_MATCH = "FilesMatch", True
    """The files are of the same model, in the listed precision."""
    READING_FILES = "ReadingFiles"
    """A Job reads the `config.json` of the files, or waits to read it."""
    FILES_MISMATCH = "FilesMismatch"
    """The files are of another model or in another precision; `tessera explain` has the numbers."""
    FILES_NOT_READ = "FilesNotRead"
    """The `config.json` of the files cannot be read, or not understood."""


class VariantReason(StatusReason):
    """Why did the replicas of this variant change?"""

    LEAST_COST = "LeastCost"
    """More capacity is wanted, and the variant with the least cost has room."""
    CHEAPER_FULL = "CheaperFull"
    """More capacity is wanted, and the variants that cost less have no room, such as a full
    reserved pool."""
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    """More capacity is wanted than all variants have room for, so replicas wait for devices."""
    MOVED_TO_CHEAPER = "MovedToCheaper"
    """A variant that costs less has room, so replicas start there before those of another stop."""
    MOVED_TO_LARGER = "MovedToLarger"
    """`maxReplicas` pods of other variants serve too little, so larger replicas replace some."""
    PENDING_TIMEOUT = "PendingTimeout"
    """A replica found no node in time, so it was withdrawn, and other variants take it."""
    SURPLUS = "Surplus"
    """The other replicas are enough; those with the highest cost go first."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """A limit of the TenantBudget pays for fewer replicas of the variant."""
    GPU_QUOTA_EXCEEDED = "GPUQuotaExceeded"
    """The tenant's `spec.gpus` does not cover all replicas that are wanted."""
    FAIR_SHARE = "FairShare"
    """The pool has too few devices, and other services get them by their tenants' shares."""
    NOT_OFFERED = "NotOffered"
    """No pool offers the variant any more, so its replicas move."""


class ScalingReason(StatusReason):
    """Why this number of replicas?"""

    STEADY = "Steady"
    """The replicas match the load."""
    LATE_PROMPTS = "LatePrompts"
    """With policy `Capacity`: the replicas match the load, but more than 5 % of the prompts take
    longer than `spec.slo.ttftP95` by themselves, so no number of replicas keeps the SLO."""
    QUEUE_ABOVE_TARGET = "QueueAboveTarget"
    """More requests wait than `spec.scaling.queue.target`, or its default for `spec.class`,
    allows."""
    ACTIVITY_ABOVE_TARGET_WITH_QUEUE = "ActivityAboveTargetWithQueue"
    """Slices are busier than their target and requests wait, so replicas are added."""
    LOAD_BELOW_TARGET = "LoadBelowTarget"
    """Fewer replicas can run all requests, so replicas are removed, however active they are."""
    SCALE_UP_STABILIZED = "ScaleUpStabilized"
    """More replicas are recommended, but not yet for the whole stabilization window."""
    SCALE_DOWN_STABILIZED = "ScaleDownStabilized"
    """Fewer replicas are recommended, but not yet for the whole stabilization window."""
    SCALE_UP_LIMIT = "ScaleUpLimit"
    """More replicas are recommended than `spec.scaling.scaleUp` allows within one period."""
    DEMAND_ABOVE_CAPACITY = "DemandAboveCapacity"
    """With policy `Capacity`: more requests arrive than the replicas carry within the SLO, so
    replicas are added."""
    BACKLOG_ABOVE_TARGET = "BacklogAboveTarget"
    """With policy `Capacity`: what waits takes longer to serve than `spec.slo.ttftP95`, so replicas
    are added."""
    REPLICAS_FULL = "ReplicasFull"
    """With policy `Capacity`: requests have waited for a minute while slices are active or the KV
    cache is full, so the predicted capacity is corrected and replicas are added."""
    CAPACITY_ABOVE_DEMAND = "CapacityAboveDemand"
    """With policy `Capacity`: fewer replicas have been enough for the whole stabilization window,
    so replicas are removed, however active they are."""
    STARTING_REPLICA_WITHDRAWN = "StartingReplicaWithdrawn"
    """With policy `Capacity`: a replica that does not serve yet has not been needed for a
    minute."""
    ESTIMATED_ARRIVALS = "EstimatedArrivals"
    """With policy `Capacity`: the replicas match the load. Gateways do not see all requests, so
    arrivals are estimated from those that engines finish and hold."""
    SCALED_TO_ZERO = "ScaledToZero"
    """No request came for `spec.scaling.idle.after`, so there is no replica until one waits at the
    gateway."""
    SCALED_FROM_ZERO = "ScaledFromZero"
    """A request waits at the gateway while there is no replica."""
    BOUNDS_CHANGED = "BoundsChanged"
    """The number of replicas was outside the bounds of `spec.scaling` or of its schedule."""
    TOO_MANY_REPLICAS = "TooManyReplicas"
    """More replicas are recommended than `spec.scaling.maxReplicas`."""
    FAILED_GET_METRICS = "FailedGetMetrics"
    """Waiting or running requests of a replica are not known, and those that are need no replicas
    more, so the number stays. The stabilization windows continue; after 5 minutes that of
    scale-down starts again."""
    METRICS_PARTIAL = "MetricsPartial"
    """The replicas match the load. Activity is not known, so only the queue can add replicas; with
    policy `Capacity` the requests of a replica are not known for 5 minutes, so those of the others
    decide."""
    INCONSISTENT_METRICS = "InconsistentMetrics"
    """The replicas match the load. The activity of devices has been below 3 % for 5 minutes in
    which their engines ran requests, so it is no reading; the other metrics decide."""
    UNSCHEDULABLE = "Unschedulable"
    """More replicas are wanted, but the scheduler found no node for the last one, so none is added
    for 5 minutes."""
    OVERFLOW_CHEAPER = "OverflowCheaper"
    """A replica for requests that overflow to another target of their route would cost more than
    they cost there, so none is added, or the last one is removed."""
    UNBALANCED = "Unbalanced"
    """More replicas are wanted, but existing ones are idle since clients keep their connections, so
    none is added; the gateway picks a replica for each request."""
    PAUSED = "Paused"
    """`spec.scaling.paused` keeps the number of replicas."""
    SET_BY_USER = "SetByUser"
    """`spec.replicas` sets a fixed number; `spec.scaling` rests."""
    SCALED_EXTERNALLY = "ScaledExternally"
    """With modes `External` and `HPA`: `spec.replicas` decides, within the bounds."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """The tenant's budget does not cover all recommended replicas."""
    GPU_QUOTA_EXCEEDED = "GPUQuotaExceeded"
    """The tenant's `spec.gpus` does not cover all recommended replicas."""
    FAIR_SHARE = "FairShare"
    """The pool has too few devices for all tenants, so the service gets its tenant's share."""
    NOT_PLACED = "NotPlaced"
    """There is no hardware to scale on."""


class EventReason(StatusReason):
    """What happened at a moment that no condition shows afterwards?"""

    DRAINED = "Drained"
    """Replicas that are removed hold no requests any more and stop."""
    PREEMPTED_AT_STEADY_LOAD = "PreemptedAtSteadyLoad"
    """Engines preempt requests at steady load, so a replica runs fewer at once from now on."""
    ATTEMPT_STARTED = "AttemptStarted"
    """An attempt of a batch starts; the message says where."""
    ATTEMPT_INTERRUPTED = "AttemptInterrupted"
    """An attempt ended before all rows were done; the message says why."""
