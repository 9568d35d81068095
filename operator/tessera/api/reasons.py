"""Every reason that Tessera gives: the word in status, metrics and logs, and what it means."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Self, TypeVar


class StatusReason(StrEnum):
    """A word of a closed set; with the meaning that the reference page prints."""

    meaning: str
    is_true: bool
    """A condition with this reason is True."""
    is_known: bool
    """A condition with another one is Unknown."""

    def __new__(cls, word: str, meaning: str, is_true: bool = False, is_known: bool = True) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.meaning = meaning
        member.is_true = is_true
        member.is_known = is_known
        return member


ReasonT_co = TypeVar("ReasonT_co", bound=StatusReason, covariant=True)


@dataclass(frozen=True, slots=True)
class StatusVerdict(Generic[ReasonT_co]):
    """A reason, and the sentence with its numbers."""

    reason: ReasonT_co
    message: str


class Accepted(StatusReason):
    """Can the spec of a service be carried out at all?"""

    VALID = "Valid", "The spec can be carried out.", True
    FLAGS_UNCHECKED = (
        "FlagsUnchecked",
        "The spec can be carried out, but there is no flag table for this engine version, so "
        "`engine.extraArgs` went unchecked.",
        True,
    )
    INVALID_SPEC = "InvalidSpec", "The object does not follow the schema of this operator."
    READING_MODEL = (
        "ReadingModel",
        "The model's shape is not shipped with Tessera; a Job reads its `config.json`.",
    )
    UNKNOWN_MODEL = (
        "UnknownModel",
        "The model's shape is not shipped with Tessera and could not be read; "
        "`spec.model.shape` has to give it.",
    )
    CONTEXT_TOO_LONG = (
        "ContextTooLong",
        "`spec.context` asks for more tokens than the model was made for.",
    )
    PRECISION_MISMATCH = (
        "PrecisionMismatch",
        "`spec.precision.variants` asks for a precision that the model's files do not allow.",
    )
    ADAPTER_NAME_CONFLICT = (
        "AdapterNameConflict",
        "An adapter in `spec.model.adapters` has the name of the model itself.",
    )
    RESERVED_FLAG = "ReservedFlag", "`engine.extraArgs` holds a flag that Tessera sets itself."
    INVALID_FLAG = (
        "InvalidFlag",
        "`engine.extraArgs` holds a flag or a value that this engine version refuses.",
    )
    RESERVED_POD_TEMPLATE_FIELD = (
        "ReservedPodTemplateField",
        "`spec.podTemplate` holds a name that Tessera or the cluster sets itself.",
    )
    INVALID_POD_TEMPLATE = (
        "InvalidPodTemplate",
        "`spec.podTemplate` holds a key that Kubernetes refuses.",
    )
    INTERACTIVE_ON_SPOT = (
        "InteractiveOnSpot",
        "`spec.placement.pools` names a spot pool for a service of class `Interactive`.",
    )
    POOL_NOT_FOUND = "PoolNotFound", "`spec.placement.pools` names a pool that does not exist."
    PLANNER_ERROR = (
        "PlannerError",
        "Planning this service failed inside Tessera; the others are planned without it.",
    )


class PlacementReason(StatusReason):
    """Is there hardware for the service?"""

    PLACED = "Placed", "The cheapest hardware that fits was found.", True
    NOT_ACCEPTED = "NotAccepted", "Nothing is placed while `Accepted` is False."
    NO_POOL = "NoPool", "No AcceleratorPool may be used."
    NO_HARDWARE = "NoHardware", "The allowed pools have no devices that Tessera knows."
    MIXED_CURRENCIES = (
        "MixedCurrencies",
        "The allowed pools are priced in different currencies, which cannot be compared.",
    )
    TOO_LARGE = "TooLarge", "The model fits on no hardware; the message says what would do."
    TOO_SLOW = (
        "TooSlow",
        "The model fits, but even a single stream would miss `slo.itlP95` everywhere.",
    )
    UNSCHEDULABLE = "Unschedulable", "The hardware exists, but the scheduler finds it taken."
    LAYOUT_PENDING = (
        "LayoutPending",
        "Slices for the service are planned or being cut; see the pool's condition LayoutReady.",
    )


class Progressing(StatusReason):
    """Is the service on its way to the wanted state?"""

    ROLLOUT_COMPLETE = "RolloutComplete", "All wanted replicas run as planned."
    NOT_PLACED = "NotPlaced", "Nothing is rolled out while `Placed` is False."
    FETCHING_MODEL = "FetchingModel", "The model's files come onto the service's claim.", True
    MODEL_FETCH_FAILED = (
        "ModelFetchFailed",
        "The model's files could not be fetched; the message says why.",
    )
    STARTING = "Starting", "Replicas are starting.", True
    RESOLVING_REVISION = (
        "ResolvingRevision",
        "The hub is asked which commit the revision means.",
        True,
    )
    ROLLING_OUT = (
        "RollingOut",
        "New replicas replace old ones; the message says whether before or after these stop.",
        True,
    )
    DRAINING = "Draining", "Replicas finish their streams before they leave.", True
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        "The Secret of `spec.model.tokenSecretRef`, or its key, does not exist.",
    )
    HUB_ACCESS_DENIED = (
        "HubAccessDenied",
        "The model is gated or private, and the token, if there is one, may not read it.",
    )
    INVALID_ENGINE_ARGUMENTS = (
        "InvalidEngineArguments",
        "The engine ended with exit code 2: it does not know a flag or a value; the message has "
        "its last words.",
    )
    ENGINE_START_FAILED = (
        "EngineStartFailed",
        "The engine ended with exit code 1: it cannot run as configured, or cannot load the model; "
        "the message has its last words.",
    )
    OOM_KILLED = (
        "OOMKilled",
        "The kernel killed the engine for the memory of its host, not that of its GPU (OOMKilled).",
    )
    ENGINE_FAILED = (
        "EngineFailed",
        "The engine ended with another exit code and is not up again; the message has its last "
        "words.",
    )
    ENGINE_STALLED = (
        "EngineStalled",
        "An engine holds requests and takes no step; its replica is replaced, at most one in ten "
        "minutes.",
    )
    IMAGE_PULL_FAILED = "ImagePullFailed", "The engine's image cannot be pulled."
    CREATE_CONTAINER_ERROR = (
        "CreateContainerError",
        "The node cannot create the engine's container, for example without a Secret it names.",
    )
    QUOTA_EXCEEDED = "QuotaExceeded", "A ResourceQuota of the namespace refuses more pods."
    POD_SECURITY_VIOLATION = (
        "PodSecurityViolation",
        "The Pod Security Standard of the namespace refuses the pods.",
    )
    FAILED_CREATE = "FailedCreate", "The API server refuses the pods; the message says who and why."
    APPLY_FAILED = "ApplyFailed", "The API server refused an object of the service."


class Ready(StatusReason):
    """Does the service answer?"""

    COMPLETION_SUCCEEDED = (
        "CompletionSucceeded",
        "A real one-token completion was answered through the Service.",
        True,
    )
    SCALED_TO_ZERO = "ScaledToZero", "No replicas are wanted."
    NOT_PLACED = "NotPlaced", "There is no hardware yet, or the spec was not accepted."
    NO_REPLICA_READY = "NoReplicaReady", "No replica takes requests yet."
    PROBE_PENDING = "ProbePending", "Replicas are up; the first completion was asked."
    COMPLETION_FAILED = "CompletionFailed", "The service did not answer a completion."


class UpdateAvailable(StatusReason):
    """Would replicas be made differently now?"""

    UP_TO_DATE = "UpToDate", "The replicas are made by the newest rules."
    NEW_TEMPLATE_AVAILABLE = (
        "NewTemplateAvailable",
        "Tessera or its values changed since; the replicas stay as they are until the spec changes "
        "or `kubectl tessera update` asks for it.",
        True,
    )
    DOWNGRADED = (
        "Downgraded",
        "A newer Tessera made the replicas; this one rebuilt them by the newest rules it knows.",
    )
    NOT_PLACED = "NotPlaced", "Nothing is made while `Placed` is False."


class SpeedAsPredicted(StatusReason):
    """Are the engines as fast as was reckoned with?"""

    AS_PREDICTED = (
        "AsPredicted",
        "The time between tokens is within 15 % of the predicted one for the load that was seen.",
        True,
    )
    SLOWER = (
        "SlowerThanPredicted",
        "The time between tokens is more than 15 % longer than predicted for the load that was "
        "seen.",
    )
    FASTER = (
        "FasterThanPredicted",
        "The time between tokens is more than 15 % shorter than predicted for the load that was "
        "seen.",
    )
    NOT_ENOUGH_REQUESTS = (
        "NotEnoughRequests",
        "There were never 100 requests within 5 minutes, so nothing can be told yet.",
        False,
        False,
    )


class RevisionReason(StatusReason):
    """Which weights does the engine load?"""

    REVISION_RESOLVED = "RevisionResolved", "The hub named the commit of the revision.", True
    COMMIT_SPECIFIED = "CommitSpecified", "The spec names the commit itself.", True
    RESOLVING_REVISION = "ResolvingRevision", "The hub is being asked."
    UNPINNED = (
        "Unpinned",
        "The replicas were made before revisions were pinned; the revision is used as given.",
    )
    RESOLUTION_DISABLED = (
        "ResolutionDisabled",
        "No hub is asked here; the revision is used as given.",
    )
    HUB_UNREACHABLE = (
        "HubUnreachable",
        "The hub did not answer, as in a cluster without a way out; the revision is used as given.",
    )
    TOKEN_REQUIRED = (
        "TokenRequired",
        "The hub wants a token, which Tessera does not read; the revision is used as given.",
    )
    REVISION_NOT_FOUND = (
        "RevisionNotFound",
        "The hub knows no such model or revision; it is used as given.",
    )


class ScalingReason(StatusReason):
    """Why this number of replicas?"""

    STEADY = "Steady", "The replicas match the load."
    QUEUE_ABOVE_TARGET = "QueueAboveTarget", "More requests wait than the target allows."
    ACTIVITY_ABOVE_TARGET_WITH_QUEUE = (
        "ActivityAboveTargetWithQueue",
        "Slices are busier than their target and requests wait, so replicas are added.",
    )
    LOAD_BELOW_TARGET = "LoadBelowTarget", "Fewer replicas carry the load; some leave."
    SCALE_UP_STABILIZED = "ScaleUpStabilized", "More are wished, but not yet for the whole window."
    SCALE_DOWN_STABILIZED = (
        "ScaleDownStabilized",
        "Fewer would do, but not yet for the whole window.",
    )
    ABOVE_ACTIVITY_TARGET = (
        "AboveActivityTarget",
        "The queue is short, but slices are busier than their target: none is removed.",
    )
    SCALE_UP_LIMIT = "ScaleUpLimit", "More are wished than one period may add."
    BOUNDS_CHANGED = "BoundsChanged", "The number stood outside the bounds of `spec.scaling`."
    TOO_MANY_REPLICAS = "TooManyReplicas", "More are wished than `scaling.maxReplicas`."
    FAILED_GET_METRICS = (
        "FailedGetMetrics",
        "A metric is missing: nothing is removed, and nothing can be added.",
    )
    METRICS_PARTIAL = (
        "MetricsPartial",
        "A metric is missing: nothing is removed; the other one may add.",
    )
    SET_BY_USER = "SetByUser", "`spec.replicas` fixes the number."
    BUDGET_EXHAUSTED = "BudgetExhausted", "More are wanted than the tenant's budget can pay."
    NOT_PLACED = "NotPlaced", "There is no hardware to scale on."


class PoolAccepted(StatusReason):
    """Can the spec of a pool be used?"""

    VALID = "Valid", "The spec can be used.", True
    INVALID_SPEC = "InvalidSpec", "The object does not follow the schema of this operator."
    PRICE_NOT_YET_EFFECTIVE = "PriceNotYetEffective", "The first day of `spec.prices` has not come."
    OVERLAPPING = "Overlapping", "A node carries the labels of two pools."


class Discovered(StatusReason):
    """Was hardware found behind a pool?"""

    DEVICES_FOUND = "DevicesFound", "Nodes with known devices were found.", True
    NOT_ACCEPTED = "NotAccepted", "Nothing is discovered while `Accepted` is False."
    NO_NODES = "NoNodes", "No node carries the labels."
    NO_DEVICES = "NoDevices", "Nodes carry the labels, but offer no GPU."
    MIXED_PRODUCTS = "MixedProducts", "The nodes hold different GPU products."
    UNKNOWN_PRODUCT = "UnknownProduct", "The nodes hold a GPU product that Tessera does not know."


class LayoutReady(StatusReason):
    """Are the GPUs of a pool cut as planned?"""

    AS_PLANNED = "AsPlanned", "Every GPU is cut as planned.", True
    NOT_MANAGED = (
        "NotManaged",
        "`spec.mig` is absent, or `Static` without a layout: slices are taken as they are.",
        True,
    )
    PLANNING = "Planning", "A plan is being made.", False, False
    NOT_DISCOVERED = "NotDiscovered", "Nothing is planned while `Discovered` is False."
    MIG_MODE_DISABLED = (
        "MigModeDisabled",
        "No GPU of the pool is in MIG mode, which Tessera never changes: they are used whole.",
    )
    AWAITING_APPROVAL = (
        "AwaitingApproval",
        "A plan waits for the annotation `tessera.dev/approve-layout`; the message has its name.",
    )
    OUTSIDE_MAINTENANCE_WINDOW = (
        "OutsideMaintenanceWindow",
        "A plan waits for `spec.mig.maintenanceWindow`.",
    )
    REPARTITIONING = "Repartitioning", "GPUs are being emptied and cut; the message says which."
    NO_SURGE_CAPACITY = (
        "NoSurgeCapacity",
        "A replica has to leave its slice, nothing free can take it, and its service would fall "
        "below its floor; the message names both.",
    )
    DISRUPTION_BUDGET = (
        "DisruptionBudget",
        "A PodDisruptionBudget does not let a replica be evicted now.",
    )
    UNMANAGED_POD = "UnmanagedPod", "A pod that is not Tessera's holds a slice that has to go."
    NODE_NOT_READY = "NodeNotReady", "A node that has to be cut anew is not ready."
    INCONSISTENT_LABELS = (
        "InconsistentLabels",
        "The labels and resources of a node fit no layout of its GPUs; it is left alone.",
    )
    APPLY_FAILED = (
        "ApplyFailed",
        "The API server refuses what has to be written for the plan; the message is its own.",
    )
    BACKEND_UNAVAILABLE = "BackendUnavailable", "Nobody on the node carries out what is asked."
    BACKEND_FAILED = "BackendFailed", "The backend said that it failed, more than once."
    BACKEND_TIMEOUT = "BackendTimeout", "The backend began and does not end."
    DEVICES_MISSING = (
        "DevicesMissing",
        "The backend said that it succeeded, but the node does not offer the slices.",
    )
    GPU_RESET_REQUIRED = "GpuResetRequired", "A GPU has to be reset, which Tessera never does."
    GPU_IN_USE = "GpuInUse", "Something that is no pod holds a slice that has to go."
    UNKNOWN_PROFILE = "UnknownProfile", "The GPUs do not have a profile of `spec.mig.layout`."
    INSUFFICIENT_CAPACITY = (
        "InsufficientCapacity",
        "The pool has too few GPUs for what its services need.",
    )


class BudgetAccepted(StatusReason):
    """Can the spec of a budget be enforced?"""

    VALID = "Valid", "The budget is enforced.", True
    INVALID_SPEC = "InvalidSpec", "The object does not follow the schema of this operator."
    INVALID_TIME_ZONE = "InvalidTimeZone", "`spec.timeZone` is no name of the IANA database."
    OVERLAPPING = "Overlapping", "A namespace belongs to a budget with an earlier name."
    PLANNER_ERROR = (
        "PlannerError",
        "Judging this budget failed inside Tessera; the others are judged without it.",
    )


class WithinBudget(StatusReason):
    """Is there money for what the tenant wants?"""

    WITHIN_LIMITS = "WithinLimits", "Everything that is wanted is paid for.", True
    FORECAST_ABOVE_LIMIT = (
        "ForecastAboveLimit",
        "If everything goes on as now, a window will end above its limit.",
        True,
    )
    NEAR_LIMIT = "NearLimit", "80 % of a limit are spent.", True
    BUDGET_EXHAUSTED = "BudgetExhausted", "Something was refused, since it could not be paid."
    MIN_REPLICAS_EXCEED_BUDGET = (
        "MinReplicasExceedBudget",
        "Replicas that always run cost more than a limit; those there are go on, no more start.",
    )
    SPEND_UNKNOWN = "SpendUnknown", "The record of a window was lost; `spec.onSpendUnknown` holds."
    NOT_ACCEPTED = "NotAccepted", "Nothing is enforced while `Accepted` is False."
    NO_BUDGET = "NoBudget", "No TenantBudget names the namespace, so nothing limits its spend."


SERVICE_CONDITIONS: tuple[type[StatusReason], ...] = (
    Accepted,
    PlacementReason,
    Progressing,
    Ready,
    UpdateAvailable,
    SpeedAsPredicted,
)
POOL_CONDITIONS: tuple[type[StatusReason], ...] = (PoolAccepted, Discovered)
BUDGET_CONDITIONS: tuple[type[StatusReason], ...] = (BudgetAccepted, WithinBudget)
