"""The status of an `InferenceService`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema

from tessera.api.meta import Amount, Conditions, Duration, StatusText, Wire
from tessera.api.model_files import CacheStatus, ModelShape
from tessera.api.precision import PrecisionName
from tessera.api.rollout import MAX_RECORDS, RolloutRecord
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.api.variant_status import MAX_VARIANTS, VariantReplicas, VariantStatus


class DraftModelStatus(Wire):
    """What Tessera read about a draft model."""

    uri: str
    """Draft model that this status describes."""

    requested_revision: str | None = None
    """Revision that the spec named when it was read."""

    shape: ModelShape
    """Dimensions that were read."""

    source: str
    """Where the dimensions were read."""


class ModelStatus(Wire):
    """Weights that the engines load, and what Tessera read about the model."""

    uri: str
    """Model that this status describes."""

    requested_revision: str | None = None
    """Revision that the spec named when it was resolved."""

    revision: str | None = None
    """The commit that the engines load; absent while the revision is used as given."""

    reason: str | None = None
    """Reason for `revision` in one CamelCase word; absent before the first resolution."""

    message: StatusText | None = None
    """Explanation of the reason, with the response of the hub."""

    observed_update: str | None = None
    """Value of the annotation `tessera.dev/update` when the revision was resolved."""

    shape: ModelShape | None = None
    """Dimensions that were read; absent where the spec or the built-in catalog has them."""

    source: str | None = None
    """Where the dimensions were read."""

    cache: CacheStatus | None = None
    """Progress of the download to a claim, for models that need one."""

    other_caches: Annotated[tuple[CacheStatus, ...], Field(max_length=32)] = ()
    """The same of the adapters that lie in a store."""

    draft: DraftModelStatus | None = None
    """What Tessera read about the draft model of `spec.engine.speculation`; absent where the spec
    or the built-in catalog has its dimensions."""


class PrecisionStatus(Wire):
    """One of `spec.precision.variants`, and what Tessera read about its files."""

    precision: PrecisionName
    """Precision that this status describes."""

    uri: str
    """Location of its files."""

    requested_revision: str | None = None
    """Revision that the spec named when the files were read."""

    revision: str | None = None
    """The commit whose `config.json` was read, and that the engines load."""

    reason: str
    """Whether the precision may be chosen, in one CamelCase word; `tessera explain` has the
    details."""

    observed_update: str | None = None
    """Value of the annotation `tessera.dev/update` when the files were read."""

    shape: ModelShape | None = None
    """Dimensions that were read."""


class CostStatus(Wire):
    """Current cost of the service."""

    per_hour: Amount
    """Cost per hour of the replicas that run and of desired ones that do not run yet; a slice
    counts with its billing weight, also one of a previous variant."""

    per_million_tokens: Amount | None = None
    """Cost of a million output tokens if the service runs at `assumedLoad`."""

    per_million_input_tokens: Amount | None = None
    """Of a pooling model: cost of a million input tokens if the service runs at `assumedLoad`."""

    currency: str
    """Currency of both amounts."""

    assumed_load: str
    """Load that `perMillionTokens` assumes."""


class PredictedAndMeasured(Wire):
    """Predicted and measured value of a quantity."""

    predicted: Amount
    """Value from the speed model."""

    measured: Amount
    """Value that the engines reported."""


class SpeedStatus(Wire):
    """Measured speed of the engines compared with the prediction. Updated only when at least 100
    requests within five minutes change it; the metrics have the values in between."""

    model: str
    """Model that was measured."""

    variant: str
    """Variant that was measured."""

    reason: str
    """Reason of the condition SpeedAsPredicted."""

    itl_ms: PredictedAndMeasured
    """Mean inter-token latency in milliseconds, at the observed load."""

    tokens_per_second: PredictedAndMeasured
    """Output tokens per second: predicted for the replicas that are ready now, at full load within
    `spec.slo`, and measured of those that were ready then."""

    kv_cache_tokens: PredictedAndMeasured | None = None
    """KV cache of one replica in tokens, as planned and as reported by its engine."""

    ratio: Amount
    """Measured inter-token latency divided by the predicted one."""

    requests: Annotated[int, Field(ge=0)]
    """Requests in the measurement."""

    at: datetime
    """End of the five minutes that were measured."""


class ObjectiveStatus(Wire):
    """Share of the requests or tokens of five minutes that were within an objective."""

    target: Duration
    """Objective of `spec.slo` that was judged."""

    attained: Amount
    """Share within the target, from 0 to 1; interpolated where `atLeast` and `atMost` differ."""

    at_least: Amount
    """Share that was certainly within the target: engines count at the edges of buckets only."""

    at_most: Amount
    """Share that was perhaps within the target."""

    counted: Annotated[int, Field(ge=0)]
    """Requests with their first token, and those that wait for it too long; of the inter-token
    latency, tokens after the first."""

    source: Literal["Engine", "Gateway"]
    """Who counted: the gateway, which sees the whole wait of streams and counts at the target, or
    the engines, where fewer than half of the requests came through the gateway."""


class SloStatus(Wire):
    """What was attained of `spec.slo` within five minutes. Updated at most every five minutes, when
    the reason or a share changes by more than it varies under the same load; the metrics and
    `tessera explain` have the values in between."""

    reason: str
    """Reason of the condition SLOMet."""

    attained: str | None = None
    """Share of the objective that is missed most, such as `97.2 %`; with `~`, interpolated."""

    ttft: ObjectiveStatus | None = None
    """Time to first token."""

    itl: ObjectiveStatus | None = None
    """Inter-token latency."""

    observed_at: datetime
    """End of the five minutes that were judged."""


class SpeculationStatus(Wire):
    """Speculative decoding as the engines measure it. Updated when the reason or the acceptance
    changes."""

    requested: str
    """What `spec.engine.speculation` asks for, and the model; after an edit of either speculation
    is on again."""

    enabled: bool = True
    """Whether the engines speculate; false once it was switched off."""

    reason: str
    """Reason of the condition Speculating."""

    message: StatusText
    """Explanation of the reason, with the numbers."""

    acceptance: Amount | None = None
    """Measured probability that a drafted token is accepted, given that those before it were;
    absent before it was measured."""

    tokens_per_step: Amount | None = None
    """Measured tokens that an engine step yields of each request; 1 without speculation."""

    gain: Amount | None = None
    """How many times as fast the engines decode as without speculation, by the measured acceptance
    and the predicted time of a step at the median of the running requests."""

    break_even: Annotated[int, Field(ge=0)] | None = None
    """Running requests of one replica from which speculation makes it slower."""

    changed_at: datetime
    """When it was switched on or off last."""

    losing_since: datetime | None = None
    """Since when speculation gains too little; it is switched off after 15 minutes."""


class VariantTemplates(Wire):
    """Pod templates of a variant that the next leader has to know."""

    variant: str
    """Name of the variant."""

    complete: str | None = None
    """Digest of the newest template that all replicas had."""

    withdrawn: str | None = None
    """Digest of the template that did not become ready in time, and gave its devices back."""


class RolloutStepStatus(Wire):
    """Device that a replica gives back for its successor."""

    node: str
    """Node of the device."""

    since: datetime
    """When the replica began to leave."""


class RolloutFloorStatus(Wire):
    """What a rollout keeps, as the next leader has to know it before a replica leaves."""

    replicas: Annotated[int, Field(ge=0, le=1000)]
    """Replicas that were healthy when the rollout began, or later; in place one of them at a time
    is replaced. What is lost for the expected start and 10 minutes is subtracted."""

    step: RolloutStepStatus | None = None
    """The latest replacement, until the successor is ready; absent once the device is lost."""

    short_since: datetime | None = None
    """Since when fewer replicas are healthy although none is being replaced."""


class ReplicaConflict(Wire):
    """Numbers that somebody else wrote to the replicas of a Deployment, one after the other."""

    deployment: str
    """Name of the Deployment."""

    manager: str
    """Who wrote the last one, as in `metadata.managedFields`."""

    replicas: int
    """The last one."""

    generation: int
    """Generation of the Deployment with the last one."""

    writes: int
    """Numbers that were set back, with the last one."""

    correction_at: datetime
    """When the last one was or will be set back."""

    since: datetime
    """When the last one was seen, or was taken back after a silence."""

    takes: Annotated[int, Field(ge=0)] = 0
    """How often a number was taken back after a silence; each time doubles the next silence."""

    is_taken: bool = False
    """Nobody wrote since it was taken back, so that a rollout goes on."""


class TenancyStatus(Wire):
    """Budget of the service's tenant."""

    budget: str | None = None
    """TenantBudget that covers the namespace of the service."""

    reason: str
    """The reason of its condition WithinBudget, or `NoBudget`."""

    start_refusal: str | None = None
    """Why a request starts no replica of a service that has none: the budget does not pay for one,
    so the gateway answers 503 at once. Absent otherwise."""


class ReplicaChange(Wire):
    """Change of the number of replicas."""

    at: datetime
    """When the number changed."""

    replicas: Annotated[int, Field(ge=0, le=1000)]
    """Number of replicas after the change."""

    tokens_per_second: Annotated[int, Field(ge=0)] | None = None
    """Capacity that was needed then; omitted while all replicas are of one variant."""


class ScheduledBoundsStatus(Wire):
    """Bounds of the autoscaler that a schedule sets."""

    schedule: str
    """Schedule that sets them, such as `spec.scaling.schedules[0]`, with its times."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)]
    """Minimum number of replicas."""

    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Maximum number of replicas."""


class ScheduleStatus(Wire):
    """Bounds that `spec.scaling.schedules` set."""

    current: ScheduledBoundsStatus
    """Bounds that apply now."""

    next: ScheduledBoundsStatus | None = None
    """Bounds that apply from `nextAt` on; absent with a single schedule."""

    next_at: datetime | None = None
    """Time of the next change."""


class RequestLengths(Wire):
    """Mean tokens of measured requests."""

    input_tokens: Annotated[int, Field(ge=0)]
    """Tokens of a prompt."""

    output_tokens: Annotated[int, Field(ge=0)]
    """Tokens of an answer."""

    cached_input_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens of a prompt that the prefix cache had; absent where it had none."""


# A status names at most so many.
MAX_OTHER_TYPES = 8


class OtherTypeStatus(Wire):
    """Another instance type than the one that runs, on which it ran or was to run."""

    name: str
    """Its variant."""

    slowness: Amount | None = None
    """Measured time of a step divided by the predicted one; absent where none was measured."""

    taken_back_at: datetime | None = None
    """When a change to it was taken back, which is not tried again for a day."""


class ScalingStatus(Wire):
    """Latest decision of the autoscaler."""

    desired_replicas: Annotated[int, Field(ge=0, le=1000)]
    """Desired number of replicas."""

    reason: str
    """Reason for that number, in one CamelCase word."""

    message: StatusText
    """Explanation of the reason, with the metrics behind it as they were at `observedAt`."""

    observed_at: datetime | None = None
    """When the reason or the number last changed, and `message` was written. Current metrics are in
    Prometheus and in `tessera explain`."""

    recent_changes: Annotated[tuple[ReplicaChange, ...], Field(max_length=16)] = ()
    """Recent changes, with which a restarted operator applies the scale-up limit."""

    change_at: datetime | None = None
    """When replicas are added or removed, unless the load changes before; omitted while no
    stabilization window runs."""

    schedule: ScheduleStatus | None = None
    """Bounds by `spec.scaling.schedules`, and their next change."""

    request_lengths: RequestLengths | None = None
    """With policy `Capacity`: the lengths with which a restarted operator continues until it
    measures them. They are written when they differ by more than a fifth, and what is cached when
    it does by a fifth of the input."""

    other_types: (
        Annotated[tuple[OtherTypeStatus, ...], Field(max_length=MAX_OTHER_TYPES)] | None
    ) = None
    """Other instance types, of which a restarted operator knows no more than this."""


class ReplacementStatus(Wire):
    """Latest replica that was replaced because its engine stalled."""

    at: datetime
    """When it was replaced."""

    pod: str
    """Name of the pod."""

    uid: str
    """UID of the pod."""

    message: StatusText
    """What was observed of the engine."""


class PreemptionStatus(Wire):
    """Preemptions at steady load: running requests that lost their KV cache to others and are
    computed again."""

    model: str
    """Model that was measured."""

    variant: str
    """Variant that was measured."""

    since: datetime
    """When they were observed first."""

    at: datetime
    """End of the five minutes that were measured last."""

    preemptions: Annotated[int, Field(ge=0)]
    """Preemptions in these five minutes."""

    requests: Annotated[int, Field(ge=0)]
    """Requests that finished in these five minutes."""

    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Concurrent requests of a replica to which Tessera lowered the limit; it stays until
    `spec.engine.maxNumSeqs` is set, or the model or its variant changes. Omitted, it is not
    lowered."""


class EnergyStatus(Wire):
    """Energy of the service in the last hour, all its GPUs and idle times included; written again
    when it changed by more than a tenth."""

    source: Literal["Measured", "Power", "Model"]
    """How it is known, the worst of its parts: `Measured`, `Power` or `Model`."""

    joules_per_token: Amount | None = None
    """Joules of an output token; omitted without output tokens."""

    watt_hours_per_request: Amount | None = None
    """Watt-hours of a finished request; omitted without requests."""


# Far more than the span of the times that an object may have.
StartSeconds = Annotated[int, Field(ge=0, le=10**10)]


class StartStatus(Wire):
    """Start of the newest replica that became ready; written once for each start."""

    pod: str
    """Name of the pod."""

    variant: str
    """Hardware and precision that it runs in."""

    created_at: datetime
    """When it was created."""

    seconds: StartSeconds
    """Seconds from its creation until it was ready."""

    schedule_seconds: StartSeconds
    """Seconds until it was bound to a node."""

    image_seconds: StartSeconds | None = None
    """Seconds from then until its container started: sandbox, volumes, and the pull of images, that
    of an `oci://` model included. Absent if the container ended and ran again."""

    engine_seconds: StartSeconds | None = None
    """Seconds from then until it was ready: download of files without `spec.model.cache`, load,
    compilation and warm-up, which only the log of the engine tells apart."""


# The CRD has these parts of the status once, and says so where a candidate has them as well.
_SamePart = WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})


class CandidateStatus(Wire):
    """A changed version that is tried before users meet it, as the next leader has to know it."""

    revision: str
    """ControllerRevision of the version."""

    digest: str
    """Digest of what can change answers in it."""

    since: datetime
    """When the change was seen."""

    model: Annotated[ModelStatus, _SamePart] | None = None
    """Weights that it loads, as in `status.model`."""

    precisions: Annotated[
        tuple[Annotated[PrecisionStatus, _SamePart], ...], Field(max_length=8)
    ] = ()
    """Its listed precisions with files of their own, as in `status.precisions`."""

    variant: Annotated[VariantStatus, _SamePart] | None = None
    """Hardware and precision that its replica runs in, as in `status.variant`."""

    pod_template_version: Annotated[PodTemplateVersionStatus, _SamePart] | None = None
    """What determines its pod template, as in `status.podTemplateVersion`."""

    templates: Annotated[
        tuple[Annotated[VariantTemplates, _SamePart], ...], Field(max_length=MAX_VARIANTS)
    ] = ()
    """What is known of its pod templates, as in `status.templates`."""

    start: Annotated[StartStatus, _SamePart] | None = None
    """Start of its replica, as in `status.start`."""

    missing_device: StatusText | None = None
    """What a device for its replica waits for; absent while it has one."""

    missing_device_since: datetime | None = None
    """Since when."""


class InferenceServiceStatus(Wire):
    """Observed state of the service; written by the operator only."""

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Conditions Accepted, Placed, Progressing, Ready, UpdateAvailable, SpeedAsPredicted, SLOMet
    and LoadBalanced; with `spec.engine.speculation` also Speculating."""

    replicas: int = 0
    """Replicas that exist, of any variant."""

    ready_replicas: int = 0
    """Those of them that are ready and receive requests."""

    capacity: str | None = None
    """What the load needs, or the desired replicas serve where their number is set, such as `4600
    tok/s`: output tokens per second at the SLO, input tokens of a pooling model."""

    selector: str = ""
    """Label selector of the replicas, for `kubectl scale` and autoscalers."""

    endpoint: str | None = None
    """Base URL of the OpenAI-compatible API inside the cluster."""

    variant: VariantStatus | None = None
    """Hardware and precision that the service was placed on; `instances` says what runs."""

    variants: Annotated[tuple[VariantReplicas, ...], Field(max_length=MAX_VARIANTS)] | None = None
    """All variants that serve it, first the one that it was placed on, and last those that no pool
    offers any more, while they have pods; absent while there is only one."""

    instances: str | None = None
    """The variant of its replicas; of several ones how many are desired of each, such as `2
    reserved-1gpu, 1 burst-1gpu`."""

    model: ModelStatus | None = None
    """Weights that the engines load, and what Tessera read about the model."""

    precisions: Annotated[tuple[PrecisionStatus, ...], Field(max_length=8)] = ()
    """The listed precisions with files of their own: which may be chosen, and what was read of
    them."""

    pod_template_version: PodTemplateVersionStatus | None = None
    """What determines the pod template besides the spec; an upgrade of Tessera does not change
    it."""

    templates: Annotated[tuple[VariantTemplates, ...], Field(max_length=MAX_VARIANTS)] = ()
    """What is known of the pod templates of each variant."""

    rollout_floor: RolloutFloorStatus | None = None
    """What the rollout in progress keeps; absent without one."""

    replica_conflicts: Annotated[
        tuple[ReplicaConflict, ...],
        Field(max_length=MAX_VARIANTS, exclude_if=lambda conflicts: not conflicts),
    ] = ()
    """Deployments whose replicas somebody else writes too; what the next leader has to know."""

    cost: CostStatus | None = None
    """Current cost of the service."""

    speed: SpeedStatus | None = None
    """Measured speed of the engines of `variant` compared with the prediction."""

    preemption: PreemptionStatus | None = None
    """Preemptions of `variant` at steady load, if there are any; they lower the concurrent requests
    of a replica."""

    energy: EnergyStatus | None = None
    """Energy of a token and of a request, in the last hour."""

    slo: SloStatus | None = None
    """What was attained of `spec.slo`."""

    speculation: SpeculationStatus | None = None
    """Speculative decoding, with `spec.engine.speculation`."""

    tenant: TenancyStatus | None = None
    """Budget of the service's tenant."""

    scaling: ScalingStatus | None = None
    """Latest decision of the autoscaler."""

    replacement: ReplacementStatus | None = None
    """Latest replica that was replaced because its engine stalled."""

    start: StartStatus | None = None
    """Start of the newest replica that became ready, by phase; the policy `Capacity` looks ahead
    by it while no replica is ready."""

    stable_revision: str | None = None
    """ControllerRevision of the version that serves users, with `spec.rollout.strategy: Gated`."""

    candidate_revision: str | None = None
    """ControllerRevision of the version that is tried; absent while none is."""

    candidate: CandidateStatus | None = None
    """What is known of that version."""

    rollouts: Annotated[
        tuple[RolloutRecord, ...],
        Field(max_length=MAX_RECORDS, exclude_if=lambda records: not records),
    ] = ()
    """How the latest changes ended, the last first; one that skipped its gate stays for 30 days."""

    @property
    def all_variants(self) -> tuple[VariantReplicas | VariantStatus, ...]:
        """All variants that serve it, also in a status of before there were several."""
        return (*(self.variants or ()), *((self.variant,) if self.variant is not None else ()))

    @property
    def pools(self) -> frozenset[str]:
        """Pools that its replicas run in, as last decided."""
        return frozenset(variant.pool for variant in self.all_variants)
