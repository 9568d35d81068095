"""Every kind of wait: what holds back a change of a service, gate, batch or layout, and its exit.

A reason that says that something is held back belongs to exactly one kind. Conditions and Events
end with the exit, `tessera explain` and the page `docs/reference/waits.md` have all of it. A wait
that only a person ends has no limit, and holds back nothing else: edits, ways back and restarts go
on. Progress (a start, a download, a drain) and stabilization windows are no waits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tessera.api.batch_reasons import BatchAccepted, BatchComplete, BatchRunning
from tessera.api.budget_reasons import BudgetAccepted, Enforcing, WithinBudget
from tessera.api.gate_reasons import GateAccepted
from tessera.api.meta import EXIT, format_duration
from tessera.api.pool_reasons import Discovered, LayoutReady, NodesProvisioned, PoolAccepted
from tessera.api.provider_reasons import ProviderAccepted
from tessera.api.reasons import (
    Accepted,
    PlacementReason,
    Progressing,
    Ready,
    ScalingReason,
    StatusReason,
)
from tessera.api.route_reasons import RouteAccepted
from tessera.domain.batch.attempt_state import MAX_BACKOFF, STALL_TIMEOUT
from tessera.domain.health.stall import REPLACEMENT_INTERVAL
from tessera.domain.quality.gates import GATEWAY_RETRY, RETRY
from tessera.domain.repartition.evictions import BLOCKED_PERIOD
from tessera.domain.rollout.replica_conflict import CONFLICT_MEMORY
from tessera.domain.scaling.additions import RETRY_INTERVAL


class Actor(StrEnum):
    """Who can end a wait."""

    OWNER = "the owner of the object"
    TENANT = "the owner of the TenantBudget"
    PLATFORM = "the platform team"
    CLIENT = "a client"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitKind:
    """One kind of wait, with its exit."""

    name: str
    reasons: tuple[StatusReason, ...]
    """The reasons of conditions and of `status.scaling` that say it."""
    ends: str
    """What ends it, as the clause after `when`."""
    actor: Actor
    """Who ends it, or can end it sooner."""
    act: str = ""
    """What the actor does, as the words after `can`; empty where the end says it."""
    limit: timedelta | str | None = None
    """How long it lasts at most: a span, or the field that has it. None while only a person ends
    it."""
    then: str = ""
    """What follows once the limit is over."""

    @property
    def exit(self) -> str:
        """Return what ends the wait and who can end it, as one sentence."""
        if self.limit is None:
            act = f"; {self.actor} can {self.act}" if self.act else ""
            return f"{EXIT} {self.ends}{act}."
        limit = self.limit if isinstance(self.limit, str) else format_duration(self.limit)
        return (
            f"{EXIT} {self.ends}, at the latest after {limit}, and then {self.then}; before that "
            f"{self.actor} can {self.act}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A wait of one object."""

    kind: WaitKind
    subject: str
    """The object that is held back, as `Kind/name`."""
    since: datetime

    @property
    def until(self) -> datetime | None:
        """Return when it ends at the latest; None while only a person ends it, or a field says."""
        limit = self.kind.limit
        return self.since + limit if isinstance(limit, timedelta) else None

    def is_overdue(self, at: datetime) -> bool:
        """Return whether the wait lasts for longer than its kind promises."""
        return self.until is not None and at > self.until


# Reasons that repeat another condition, which has the wait.
CONSEQUENCES = (
    PlacementReason.NOT_ACCEPTED,
    Progressing.NOT_PLACED,
    Ready.NOT_PLACED,
    Ready.NO_REPLICA_READY,
    Ready.SCALED_TO_ZERO,
    ScalingReason.NOT_PLACED,
    Discovered.NOT_ACCEPTED,
    LayoutReady.NOT_DISCOVERED,
    BatchRunning.NOT_ACCEPTED,
)
KINDS = (
    WaitKind(
        name="SpecRefused",
        reasons=(
            Accepted.INVALID_SPEC,
            Accepted.UNKNOWN_MODEL,
            Accepted.CONTEXT_TOO_LONG,
            Accepted.PRECISION_MISMATCH,
            Accepted.RUNNER_MISMATCH,
            Accepted.DRAFT_MISMATCH,
            Accepted.ADAPTER_NAME_CONFLICT,
            Accepted.INVALID_ENGINE_OPTION,
            Accepted.RESERVED_FLAG,
            Accepted.INVALID_FLAG,
            Accepted.LOADER_MISMATCH,
            Accepted.RESERVED_POD_TEMPLATE_FIELD,
            Accepted.INVALID_POD_TEMPLATE,
            Accepted.POD_KEY_NOT_ALLOWED,
            Accepted.INVALID_SCHEDULE,
            Accepted.INTERACTIVE_ON_SPOT,
            BatchAccepted.INVALID_SPEC,
            BatchAccepted.UNKNOWN_MODEL,
            BatchAccepted.CONTEXT_TOO_LONG,
            BatchAccepted.RUNNER_MISMATCH,
            BatchAccepted.ADAPTER_NAME_CONFLICT,
            BatchAccepted.INVALID_ENGINE_OPTION,
            BatchAccepted.RESERVED_FLAG,
            BatchAccepted.INVALID_FLAG,
            BatchAccepted.LOADER_MISMATCH,
            BatchAccepted.RESERVED_POD_TEMPLATE_FIELD,
            BatchAccepted.PRECISION_MISMATCH,
            GateAccepted.INVALID_SPEC,
            ProviderAccepted.INVALID_SPEC,
            ProviderAccepted.UNKNOWN_DIALECT,
            RouteAccepted.INVALID_SPEC,
            RouteAccepted.POOLING_TARGET,
        ),
        ends="the spec is edited",
        actor=Actor.OWNER,
    ),
    WaitKind(
        name="PoolSpecRefused",
        reasons=(
            PoolAccepted.INVALID_SPEC,
            PoolAccepted.OVERLAPPING,
            PoolAccepted.INVALID_LAYOUT,
            PoolAccepted.INVALID_NODE_TEMPLATE,
            LayoutReady.UNKNOWN_PROFILE,
            LayoutReady.INVALID_LAYOUT,
        ),
        ends="the spec of the AcceleratorPool is edited",
        actor=Actor.PLATFORM,
    ),
    WaitKind(
        name="PriceNotYetEffective",
        reasons=(PoolAccepted.PRICE_NOT_YET_EFFECTIVE,),
        ends="the first day of spec.prices begins",
        limit="the day in spec.prices",
        then="the pool is offered at that price",
        actor=Actor.PLATFORM,
        act="name an earlier first day",
    ),
    WaitKind(
        name="BudgetSpecRefused",
        reasons=(
            BudgetAccepted.INVALID_SPEC,
            BudgetAccepted.INVALID_TIME_ZONE,
            BudgetAccepted.CURRENCY_IMMUTABLE,
            BudgetAccepted.OVERLAPPING,
            BudgetAccepted.NAME_CONFLICT,
            Enforcing.NOT_ACCEPTED,
            WithinBudget.NOT_ACCEPTED,
            WithinBudget.CURRENCY_MISMATCH,
        ),
        ends="the spec of the TenantBudget is edited",
        actor=Actor.PLATFORM,
    ),
    WaitKind(
        name="ReferenceMissing",
        reasons=(
            Accepted.POOL_NOT_FOUND,
            Progressing.CONFIG_MAP_NOT_FOUND,
            Progressing.GATE_NOT_FOUND,
            BatchAccepted.SERVICE_NOT_FOUND,
            BatchAccepted.POOL_NOT_FOUND,
            BatchAccepted.CLAIM_NOT_FOUND,
            BatchAccepted.CLAIM_NOT_READ_WRITE_MANY,
            RouteAccepted.TARGET_NOT_FOUND,
        ),
        ends="the missing object exists",
        actor=Actor.OWNER,
        act="create it, or name another one",
    ),
    WaitKind(
        name="InvalidName",
        reasons=(Accepted.INVALID_NAME, BatchAccepted.INVALID_NAME),
        ends="the object is created again under another name",
        actor=Actor.OWNER,
    ),
    WaitKind(
        name="NameTaken",
        reasons=(RouteAccepted.NAME_CONFLICT, BatchAccepted.OUTPUT_CONFLICT),
        ends="the other object is gone",
        actor=Actor.OWNER,
        act="choose another name or path, or delete the other object",
    ),
    WaitKind(
        name="SwitchedOff",
        reasons=(
            ProviderAccepted.PROVIDERS_DISABLED,
            RouteAccepted.PROVIDERS_DISABLED,
            RouteAccepted.DATA_RESIDENCY,
            Enforcing.NO_GATEWAY,
        ),
        ends="the installation or the TenantBudget allows it",
        actor=Actor.PLATFORM,
        act="set the named value or field",
    ),
    WaitKind(
        name="SecretMissing",
        reasons=(Progressing.SECRET_NOT_FOUND, Progressing.HUB_ACCESS_DENIED),
        ends="a Secret has a token that may read the model",
        actor=Actor.OWNER,
        act="create or correct that Secret",
    ),
    WaitKind(
        name="PlannerDefect",
        reasons=(
            Accepted.PLANNER_ERROR,
            PoolAccepted.PLANNER_ERROR,
            LayoutReady.PLANNER_ERROR,
            BudgetAccepted.PLANNER_ERROR,
            BatchAccepted.PLANNER_ERROR,
            Progressing.DISRUPTION_NOT_ALLOWED,
        ),
        ends="an edit avoids the defect, or a newer Tessera has none",
        actor=Actor.OWNER,
        act="take the last change back and report the message",
    ),
    WaitKind(
        name="HardwareMissing",
        reasons=(
            PlacementReason.NO_POOL,
            PlacementReason.POOL_NOT_ALLOWED,
            PlacementReason.NO_HARDWARE,
            PlacementReason.MIXED_CURRENCIES,
            PlacementReason.TOO_LARGE,
            PlacementReason.TOO_SLOW,
            PlacementReason.ENGINE_LIMITS_UNMET,
            BatchRunning.NO_POOL,
            BatchRunning.NO_HARDWARE,
            BatchRunning.MIXED_CURRENCIES,
            BatchRunning.TOO_LARGE,
        ),
        ends="an AcceleratorPool offers hardware that fits, or the spec asks for less",
        actor=Actor.PLATFORM,
        act="add or allow a pool that fits",
    ),
    WaitKind(
        name="PoolWithoutDevices",
        reasons=(
            Discovered.NO_NODES,
            Discovered.NO_DEVICES,
            Discovered.UNKNOWN_PRODUCT,
            Discovered.UNKNOWN_PROFILES,
            Discovered.SHARED_GPUS,
            NodesProvisioned.DRIVER_MISSING,
            NodesProvisioned.NODES_DIFFER,
        ),
        ends="nodes of the pool offer devices that Tessera knows",
        actor=Actor.PLATFORM,
        act="correct the nodes, or spec.nodeSelector and spec.nodeTemplate",
    ),
    WaitKind(
        name="Device",
        reasons=(
            PlacementReason.UNSCHEDULABLE,
            Progressing.WAITING_FOR_DEVICE,
            Progressing.NO_SURGE_CAPACITY,
            BatchRunning.UNSCHEDULABLE,
            ScalingReason.FAIR_SHARE,
        ),
        ends="it gets a device",
        actor=Actor.PLATFORM,
        act="free or add a device, or need one fewer",
    ),
    WaitKind(
        name="ScaleUpRetry",
        reasons=(ScalingReason.UNSCHEDULABLE,),
        ends="the scheduler finds a node for the last replica",
        limit=RETRY_INTERVAL,
        then="one more replica is tried",
        actor=Actor.PLATFORM,
        act="free or add a device",
    ),
    WaitKind(
        name="Node",
        reasons=(PlacementReason.NODES_STARTING, NodesProvisioned.NODES_STARTING),
        ends="an autoscaler of nodes adds one",
        limit="status.provisioning.expectedStart of the pool",
        then="the pool backs off, and replicas go to other pools",
        actor=Actor.PLATFORM,
        act="add a node",
    ),
    WaitKind(
        name="NodeRefused",
        reasons=(
            NodesProvisioned.NODE_START_TIMED_OUT,
            NodesProvisioned.QUOTA_EXCEEDED,
            NodesProvisioned.INSUFFICIENT_CAPACITY,
            NodesProvisioned.IMAGE_PULL_SLOW,
        ),
        ends="a node comes",
        limit="status.provisioning.restingUntil of the pool",
        then="a node is asked for again",
        actor=Actor.PLATFORM,
        act="raise the quota of the cloud, or add a node",
    ),
    WaitKind(
        name="Layout",
        reasons=(PlacementReason.LAYOUT_PENDING,),
        ends="the GPUs of the pool have the planned layout",
        limit="spec.mig.drainDeadline of the pool for each of its units",
        then="the condition LayoutReady of the pool says what keeps it",
        actor=Actor.PLATFORM,
        act="end what LayoutReady of the AcceleratorPool names",
    ),
    WaitKind(
        name="Money",
        reasons=(
            Accepted.BUDGET_EXHAUSTED,
            PlacementReason.BUDGET_EXHAUSTED,
            Progressing.BUDGET_EXHAUSTED,
            Ready.BUDGET_EXHAUSTED,
            ScalingReason.BUDGET_EXHAUSTED,
            ScalingReason.GPU_QUOTA_EXCEEDED,
            Progressing.GPU_QUOTA_EXCEEDED,
            Progressing.STORAGE_QUOTA_EXCEEDED,
            GateAccepted.STORAGE_QUOTA_EXCEEDED,
            BatchRunning.BUDGET_EXHAUSTED,
            WithinBudget.BUDGET_EXHAUSTED,
            WithinBudget.GPU_QUOTA_EXCEEDED,
            WithinBudget.MIN_REPLICAS_EXCEED_BUDGET,
            WithinBudget.SPEND_UNKNOWN,
        ),
        ends="the TenantBudget has room, at the latest in its next window that does",
        actor=Actor.TENANT,
        act="raise the limit",
    ),
    WaitKind(
        name="BudgetMissing",
        reasons=(WithinBudget.NO_BUDGET, WithinBudget.BUDGET_REQUIRED),
        ends="a TenantBudget covers the namespace",
        actor=Actor.PLATFORM,
        act="name the namespace in spec.namespaces of a TenantBudget",
    ),
    WaitKind(
        name="PodRefused",
        reasons=(
            Accepted.FAILED_CREATE,
            Progressing.FAILED_CREATE,
            Progressing.QUOTA_EXCEEDED,
            Progressing.POD_SECURITY_VIOLATION,
            Progressing.APPLY_FAILED,
            LayoutReady.APPLY_FAILED,
            BatchAccepted.FAILED_CREATE,
            BatchRunning.FAILED_CREATE,
            BatchRunning.APPLY_FAILED,
            GateAccepted.FAILED_CREATE,
        ),
        ends="the API server accepts the object, which is tried again all the time",
        actor=Actor.PLATFORM,
        act="change that quota or policy",
    ),
    WaitKind(
        name="ModelRead",
        reasons=(Accepted.READING_MODEL, BatchAccepted.READING_MODEL),
        ends="the Job has read the model's config.json",
        actor=Actor.OWNER,
        act="set spec.model.shape, which needs no Job",
    ),
    WaitKind(
        name="ModelFetch",
        reasons=(Progressing.MODEL_FETCH_FAILED,),
        ends="the Job, which is tried again every 30 s, has fetched the files",
        actor=Actor.OWNER,
        act="correct what is named",
    ),
    WaitKind(
        name="EngineStart",
        reasons=(
            Progressing.WEIGHTS_OUT_OF_MEMORY,
            Progressing.KV_CACHE_OUT_OF_MEMORY,
            Progressing.ACTIVATIONS_OUT_OF_MEMORY,
            Progressing.DEVICE_MEMORY_IN_USE,
            Progressing.INVALID_ENGINE_ARGUMENTS,
            Progressing.ENGINE_START_FAILED,
            Progressing.OOM_KILLED,
            Progressing.ENGINE_FAILED,
            Progressing.IMAGE_PULL_FAILED,
            Progressing.CREATE_CONTAINER_ERROR,
            Progressing.PROGRESS_DEADLINE_EXCEEDED,
        ),
        ends="an edit corrects it or a later start succeeds",
        actor=Actor.OWNER,
        act="edit the spec or take the last change back",
    ),
    WaitKind(
        name="Answer",
        reasons=(Ready.COMPLETION_FAILED, Ready.PROBE_FAILED),
        ends="a replica answers a request, which is sent again every 5 s",
        actor=Actor.OWNER,
        act="read the log of the engine",
    ),
    WaitKind(
        name="Request",
        reasons=(ScalingReason.SCALED_TO_ZERO,),
        ends="a request for the model arrives at the gateway, or more replicas are set",
        actor=Actor.CLIENT,
        act="send a request",
    ),
    WaitKind(
        name="StalledEngine",
        reasons=(Progressing.ENGINE_STALLED,),
        ends="the replica is replaced",
        limit=2 * REPLACEMENT_INTERVAL,
        then="the next stalled replica is replaced",
        actor=Actor.OWNER,
        act="delete the pod",
    ),
    WaitKind(
        name="FieldConflict",
        reasons=(Progressing.FIELD_MANAGER_CONFLICT,),
        ends=(
            "no HorizontalPodAutoscaler scales the Deployment, and no other writer changed the "
            f"field for {format_duration(CONFLICT_MEMORY)}"
        ),
        actor=Actor.OWNER,
        act="stop that writer",
    ),
    WaitKind(
        name="Paused",
        reasons=(ScalingReason.PAUSED, BatchRunning.SUSPENDED),
        ends="the field that pauses it is removed",
        actor=Actor.OWNER,
        act="remove spec.scaling.paused or spec.suspend",
    ),
    WaitKind(
        name="Metrics",
        reasons=(ScalingReason.FAILED_GET_METRICS,),
        ends="engines and Prometheus answer",
        actor=Actor.PLATFORM,
        act="run tessera doctor",
    ),
    WaitKind(
        name="IdleReplicas",
        reasons=(ScalingReason.UNBALANCED,),
        ends="the replicas that are idle get requests",
        actor=Actor.CLIENT,
        act="send requests through the gateway, or connect again",
    ),
    WaitKind(
        name="CheaperTarget",
        reasons=(ScalingReason.OVERFLOW_CHEAPER,),
        ends="a replica costs less than the requests cost at the other target of their route",
        actor=Actor.OWNER,
        act="take the other target out of the ModelRoute",
    ),
    WaitKind(
        name="Verdict",
        reasons=(Progressing.GATE_RUNNING, Ready.GATE_RUNNING),
        ends="the QualityGate has a verdict",
        limit="spec.timeout of the QualityGate for each version",
        then="the change ends as TimedOut",
        actor=Actor.OWNER,
        act="take the change back, or set spec.rollout.skipGate",
    ),
    WaitKind(
        name="Suite",
        reasons=(
            Progressing.GATE_NOT_ACCEPTED,
            GateAccepted.SUITE_NOT_FOUND,
            GateAccepted.SUITE_INVALID,
            GateAccepted.SUITE_CHANGED,
            GateAccepted.JUDGE_NOT_FOUND,
            GateAccepted.JUDGE_UNRELIABLE,
            GateAccepted.REQUESTS_REFUSED,
        ),
        ends=f"the QualityGate can judge, which its Job tries again after {format_duration(RETRY)}",
        actor=Actor.OWNER,
        act="correct the gate, take the change back, or set spec.rollout.skipGate",
    ),
    WaitKind(
        name="Gateway",
        reasons=(GateAccepted.GATEWAY_UNREACHABLE,),
        ends="a Job of the gate, which is sent again after "
        f"{format_duration(GATEWAY_RETRY)}, reaches the gateway",
        actor=Actor.PLATFORM,
        act="allow the Job's traffic to the gateway, and its name to resolve",
    ),
    WaitKind(
        name="SuiteRead",
        reasons=(GateAccepted.SUITE_NOT_READ,),
        ends="a change of a service is tried on the gate",
        actor=Actor.OWNER,
        act="run tessera gate run",
    ),
    WaitKind(
        name="Revision",
        reasons=(Accepted.REVISION_MISSING,),
        ends="the spec is again that of the version in force, or the gate is skipped",
        actor=Actor.OWNER,
        act="write that spec again, set spec.rollout.skipGate, or turn the gate off",
    ),
    WaitKind(
        name="Baseline",
        reasons=(Progressing.NO_BASELINE,),
        ends="a replica of the version in force answers",
        actor=Actor.OWNER,
        act="take the change back, set minScore, or ask for spec.rollout.skipGate",
    ),
    WaitKind(
        name="RefusedChange",
        reasons=(
            Progressing.ROLLED_BACK,
            Progressing.GATE_INCONCLUSIVE,
            Progressing.VECTORS_CHANGE,
            Ready.GATE_NOT_PASSED,
        ),
        ends="the spec is edited",
        actor=Actor.OWNER,
        act="edit the change or take it back, or set spec.rollout.skipGate",
    ),
    WaitKind(
        name="Approval",
        reasons=(LayoutReady.AWAITING_APPROVAL,),
        ends="the plan is approved, or the demand needs it no more",
        actor=Actor.PLATFORM,
        act="annotate the AcceleratorPool with tessera.dev/approve-layout",
    ),
    WaitKind(
        name="MaintenanceWindow",
        reasons=(LayoutReady.OUTSIDE_MAINTENANCE_WINDOW,),
        ends="the window opens",
        limit="spec.mig.maintenanceWindow",
        then="the repartition begins",
        actor=Actor.PLATFORM,
        act="change spec.mig.maintenanceWindow",
    ),
    WaitKind(
        name="Eviction",
        reasons=(LayoutReady.NO_SURGE_CAPACITY, LayoutReady.UNMANAGED_POD, LayoutReady.GPU_IN_USE),
        ends="another slice is free, or the pod or process that holds this one ends",
        actor=Actor.PLATFORM,
        act="add a node, end that pod, or allow a downtime",
    ),
    WaitKind(
        name="EvictionRetry",
        reasons=(LayoutReady.DISRUPTION_BUDGET,),
        ends="the PodDisruptionBudget allows the eviction, which is tried again after "
        f"{format_duration(BLOCKED_PERIOD)}",
        actor=Actor.PLATFORM,
        act="change it",
    ),
    WaitKind(
        name="RepartitionRetry",
        reasons=(LayoutReady.DRAIN_DEADLINE_EXCEEDED,),
        ends="the repartition begins again",
        limit="spec.mig.drainDeadline",
        then="the slices are drained again",
        actor=Actor.PLATFORM,
        act="free the slices, or set spec.mig.onDeadline to Evict",
    ),
    WaitKind(
        name="Backend",
        reasons=(
            LayoutReady.NODE_NOT_READY,
            LayoutReady.INCONSISTENT_LABELS,
            LayoutReady.BACKEND_UNAVAILABLE,
            LayoutReady.BACKEND_FAILED,
            LayoutReady.BACKEND_TIMEOUT,
            LayoutReady.DEVICES_MISSING,
            LayoutReady.GPU_RESET_REQUIRED,
        ),
        ends="the node or its backend works again",
        actor=Actor.PLATFORM,
        act="repair that node, or add one",
    ),
    WaitKind(
        name="PoolCapacity",
        reasons=(LayoutReady.INSUFFICIENT_CAPACITY,),
        ends="the pool has GPUs for what its services need",
        actor=Actor.PLATFORM,
        act="add nodes, or lower spec.scaling of a service",
    ),
    WaitKind(
        name="MigMode",
        reasons=(LayoutReady.MIG_MODE_DISABLED,),
        ends="a GPU of the pool is in MIG mode",
        actor=Actor.PLATFORM,
        act="enable it on the node",
    ),
    WaitKind(
        name="SpotCapacity",
        reasons=(BatchRunning.WAITING_FOR_SPOT,),
        ends="spot capacity is free",
        limit="what spec.deadline leaves",
        then="the batch runs on on-demand or reserved nodes",
        actor=Actor.OWNER,
        act="set spec.spot.policy to Never, or an earlier spec.deadline",
    ),
    WaitKind(
        name="Attempt",
        reasons=(BatchRunning.BACKING_OFF, BatchRunning.VALIDATION_JOB_FAILED),
        ends="the next attempt starts",
        limit=MAX_BACKOFF,
        then="the next attempt starts, or the batch ends as BackoffLimitExceeded",
        actor=Actor.OWNER,
        act="correct what is named",
    ),
    WaitKind(
        name="StalledAttempt",
        reasons=(BatchRunning.STALLED,),
        ends="a row moves",
        limit=STALL_TIMEOUT,
        then="the attempt is replaced",
        actor=Actor.OWNER,
        act="delete the pod",
    ),
    WaitKind(
        name="Volume",
        reasons=(
            BatchAccepted.CLAIM_TERMINATING,
            BatchRunning.MODEL_CLAIM_TERMINATING,
            BatchRunning.INPUT_CHANGED,
            BatchRunning.TERMINATING,
        ),
        ends="the claim, file or finalizer lets it go on",
        actor=Actor.OWNER,
        act="restore the input, or remove what uses the claim",
    ),
    WaitKind(
        name="BatchEnded",
        reasons=(
            BatchComplete.INVALID_INPUT,
            BatchComplete.USER_ACTION_REQUIRED,
            BatchComplete.ROWS_REFUSED,
            BatchComplete.ALL_ROWS_FAILED,
            BatchComplete.BACKOFF_LIMIT_EXCEEDED,
            BatchComplete.DEADLINE_EXCEEDED,
        ),
        ends="the batch is created again, or spec.deadline is later",
        actor=Actor.OWNER,
        act="correct what is named",
    ),
)


def _by_reason() -> Iterator[tuple[tuple[type[StatusReason], str], WaitKind]]:
    for kind in KINDS:
        for reason in kind.reasons:
            yield (type(reason), reason.value), kind


_KINDS = dict(_by_reason())


def kind_of(reason: StatusReason) -> WaitKind | None:
    """Return the kind of wait that a reason says; None for a state in which nothing waits."""
    # Members of two sets of reasons are equal if their words are.
    return _KINDS.get((type(reason), reason.value))
