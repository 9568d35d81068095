"""The number of replicas of a service before budgets: who decides it, and by which policy."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from tessera.api.inference_service import (
    InferenceServiceSpec,
    InferenceServiceStatus,
    ScalingPause,
    VariantStatus,
)
from tessera.api.reasons import ScalingReason
from tessera.domain.observed.snapshot import (
    ObservedService,
    Pod,
    Ref,
    Snapshot,
    SpeedReading,
    reading_of,
)
from tessera.domain.perf import OFF_TOLERANCE, measured_ratio
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.scaling.additions import with_refusal, without_useless
from tessera.domain.scaling.decisions import current_replicas
from tessera.domain.scaling.load import load_of, start_up_lead, usable_readings
from tessera.domain.scaling.policies import queue_and_activity
from tessera.domain.scaling.policies.capacity.pace import ttft_shares
from tessera.domain.scaling.policies.capacity.policy import scale_by_capacity
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    lengths_of_last_minute,
    queue_target,
    variant_capacity,
)
from tessera.domain.scaling.state import (
    Decided,
    ScaleDecision,
    ScalingHistory,
    ScalingPolicy,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.schedules import BoundsSchedule
from tessera.domain.service.current_objects import CurrentObjects, pods_of_variant
from tessera.domain.sizing.scheduler_limits import SchedulerLimits


def decide_replicas(
    snapshot: Snapshot,
    service: ObservedService,
    choice: HardwareChoice,
    *,
    objects: CurrentObjects,
    history: ScalingHistory,
    schedule: BoundsSchedule | None,
) -> ScaleDecision:
    """Return the number of replicas, decided by the spec, another autoscaler or a policy."""
    spec, ref = service.spec, service.ref
    assert spec is not None  # noqa: S101 - hardware was chosen for it
    if spec.fixed_replicas is not None:
        return _fixed_scale(spec, spec.fixed_replicas, history, snapshot.at)
    policy = policy_of(spec, choice.fit.limits, choice.fit.max_model_len, schedule)
    pods, workload = pods_of_variant(objects.pods, choice), objects.workload_of(choice.variant)
    existing = workload.replicas if workload else policy.spec.floor
    if policy.spec.paused is not None:
        return _paused_scale(policy.spec.paused, existing, history, snapshot.at)
    load = load_of(
        pods, snapshot.readings, existing, snapshot.at, snapshot.demand_of(ref), service=ref
    )
    if snapshot.readings is not None:
        latency = snapshot.readings.latencies.get(ref)
        shares = ttft_shares(spec.slo, latency, snapshot.readings.latencies_at)
        load = replace(load, ttft=shares)
    capacity = _capacity_of(snapshot, service, choice, pods, load, history)
    if policy.spec.mode != "Native":
        return _external_scale(service, policy, capacity, load, history)
    if spec.placement.mig != "Auto":
        # GPUs may be partitioned for a service that has it, so what it wants stays its demand.
        history = with_refusal(history, pods, snapshot.at)
    decision = _policy_scale(policy, capacity, load, history)
    readings = usable_readings(snapshot.readings, snapshot.at)
    return without_useless(decision, policy, load, history, pods, readings)


def _policy_scale(
    policy: ScalingPolicy,
    capacity: VariantCapacity | None,
    load: ServiceLoad,
    history: ScalingHistory,
) -> ScaleDecision:
    if capacity is not None:
        return scale_by_capacity(policy, capacity, load, history)
    if history.demand is not None:
        history = replace(history, demand=None)
    return queue_and_activity.scale(policy, load, history)


def _speed_reading(snapshot: Snapshot, ref: Ref, choice: HardwareChoice) -> SpeedReading:
    readings = snapshot.readings.speeds.get(ref, ()) if snapshot.readings is not None else ()
    return reading_of(choice.variant, readings)


def _capacity_of(
    snapshot: Snapshot,
    service: ObservedService,
    choice: HardwareChoice,
    pods: Sequence[Pod],
    load: ServiceLoad,
    history: ScalingHistory,
) -> VariantCapacity | None:
    """Return what a replica of the service carries; None where its policy does not ask for it."""
    spec = service.spec
    shape = shape_of(spec) if spec is not None else None
    if spec is None or shape is None or spec.scaling.policy != "Capacity":
        return None
    serving = max(1, load.serving)
    ratio = measured_ratio(service.status.speed, spec.model.uri, choice.variant)
    if ratio is not None and load.ttft is not None:
        # While a load changes, the means of steps say too little of those that most tokens come
        # from. The attained TTFT corrects what is beyond the tolerance.
        ratio = min(ratio, 1 + OFF_TOLERANCE)
    return variant_capacity(
        spec,
        shape,
        choice.fit,
        reading=_speed_reading(snapshot, service.ref, choice),
        measured_ratio=ratio,
        lead=start_up_lead(pods),
        last_lengths=_last_lengths(history, service.status),
        recent_lengths=lengths_of_last_minute(load),
        requests_wait=bool(load.queued),
        replicas=serving,
        servers=serving if load.queued is not None else 1,
    )


def _last_lengths(
    history: ScalingHistory, status: InferenceServiceStatus
) -> tuple[int, int] | None:
    """Return the lengths of requests as last measured, also by an earlier leader."""
    if history.demand is not None and history.demand.lengths is not None:
        return history.demand.lengths
    lengths = status.scaling.request_lengths if status.scaling is not None else None
    return None if lengths is None else (lengths.input_tokens, lengths.output_tokens)


def _external_scale(
    service: ObservedService,
    policy: ScalingPolicy,
    capacity: VariantCapacity | None,
    load: ServiceLoad,
    history: ScalingHistory,
) -> ScaleDecision:
    """Return `spec.replicas` within the bounds, and what the policy recommends from there.

    The policy sees the number in effect as its own last decision, so that it neither counts
    replicas that nobody started nor keeps those that somebody added.
    """
    requested = service.spec.replicas if service.spec is not None else None
    spec = policy.spec.model_copy(update={"idle": None})
    current = current_replicas(load, history) if requested is None else requested
    replicas = min(max(current, spec.min_replicas), spec.max_replicas)
    if history.decisions[-1:] == () or history.decisions[-1].replicas != replicas:
        decisions = (*history.decisions, TimestampedReplicas(load.at, replicas))
        history = replace(history, decisions=decisions)
    recommended = _policy_scale(replace(policy, spec=spec), capacity, load, history)
    decisions = recommended.history.decisions
    if recommended.replicas != replicas:
        decisions = decisions[:-1]
    if requested is None:
        message = (
            "spec.replicas is not set, so the number stays; set it once, since a "
            "HorizontalPodAutoscaler starts from a number above 0: kubectl -n "
            f"{service.ref.namespace} scale tsvc/{service.ref.name} --replicas={max(1, replicas)}"
        )
    else:
        message = f"spec.replicas is {requested}"
        if replicas != requested:
            bound = "minReplicas" if replicas > requested else "maxReplicas"
            message += f"; {policy.bounds_source}{bound} is {replicas}"
    return ScaleDecision(
        replicas=replicas,
        reason=ScalingReason.SCALED_EXTERNALLY,
        message=message,
        history=replace(recommended.history, decisions=decisions, change=None),
        assessment=recommended.assessment,
        recommended=Decided(recommended.replicas, recommended.reason, recommended.message),
    )


def _fixed_scale(
    spec: InferenceServiceSpec, replicas: int, history: ScalingHistory, at: datetime
) -> ScaleDecision:
    """Return `spec.replicas`; once it is removed, the windows start again from this number."""
    decisions = history.decisions[-1:]
    if [decision.replicas for decision in decisions] != [replicas]:
        decisions = (TimestampedReplicas(at, replicas),)
    fixed = ScalingHistory(decisions=decisions)
    message = f"spec.replicas is {replicas}"
    if spec.sets_scaling:
        message += ", so spec.scaling rests; to give the number back to it, remove spec.replicas"
    return ScaleDecision(
        replicas=replicas,
        reason=ScalingReason.SET_BY_USER,
        message=message,
        history=history if history == fixed else fixed,
    )


def _paused_scale(
    pause: ScalingPause, existing: int, history: ScalingHistory, at: datetime
) -> ScaleDecision:
    """Return the number that was decided last; after the pause the windows start again."""
    decisions = history.decisions[-1:] or (TimestampedReplicas(at, existing),)
    paused = ScalingHistory(decisions=decisions, change=history.change)
    return ScaleDecision(
        replicas=decisions[-1].replicas,
        reason=ScalingReason.PAUSED,
        message=f"spec.scaling.paused: {pause.by}",
        history=history if history == paused else paused,
    )


def policy_of(
    spec: InferenceServiceSpec,
    limits: SchedulerLimits,
    max_model_len: int,
    schedule: BoundsSchedule | None = None,
) -> ScalingPolicy:
    """Return what the autoscaler needs of a spec, and of the limits of its replicas."""
    return ScalingPolicy(
        spec=spec.scaling,
        queue_target=queue_target(spec, limits, max_model_len),
        max_num_seqs=limits.max_num_seqs,
        bounds_source=f"{schedule.current.name}: " if schedule is not None else "spec.scaling.",
    )


def reported_policy(spec: InferenceServiceSpec, variant: VariantStatus) -> ScalingPolicy:
    """Return what the autoscaler needs of a spec, and of replicas as the status describes them."""
    limits = SchedulerLimits(
        max_num_seqs=variant.max_num_seqs,
        max_num_batched_tokens=variant.max_num_batched_tokens,
        tokens_per_second=variant.tokens_per_second,
    )
    return policy_of(spec, limits, variant.max_model_len)


def history_from_status(status: InferenceServiceStatus) -> ScalingHistory:
    """Return the history that an earlier leader wrote into the status."""
    if status.scaling is None:
        return ScalingHistory()
    decisions = tuple(
        TimestampedReplicas(change.at, change.replicas) for change in status.scaling.recent_changes
    )
    return ScalingHistory(decisions=decisions)
