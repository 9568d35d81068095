"""The number of replicas of a service before budgets: who decides it, and by which policy."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from tessera.api.inference_service import InferenceServiceSpec, ScalingPause
from tessera.api.reasons import ScalingReason
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.incremental import FOREVER, NEVER
from tessera.domain.observed.snapshot import ObservedService, Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.scaling.additions import with_refusal, without_useless
from tessera.domain.scaling.decisions import current_replicas
from tessera.domain.scaling.load import in_reference_replicas, load_of, usable_readings
from tessera.domain.scaling.policies.by_name import POLICIES, ScalingPolicy
from tessera.domain.scaling.state import (
    Decided,
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ObservedVariant, ScaleTarget, target_of
from tessera.domain.schedules import BoundsSchedule
from tessera.domain.service.current_objects import CurrentObjects, pods_of_variant
from tessera.domain.service.variant_counts import shares_of


def decide_replicas(
    snapshot: Snapshot,
    service: ObservedService,
    choices: Sequence[HardwareChoice],
    *,
    objects: CurrentObjects,
    history: ScalingHistory,
    schedule: BoundsSchedule | None,
) -> ScaleDecision:
    """Return the number of replicas, decided by the spec, another autoscaler or a policy.

    They are counted as of the first variant, which is the reference.
    """
    spec, ref, choice = service.spec, service.ref, choices[0]
    assert spec is not None  # noqa: S101 - hardware was chosen for it
    if spec.fixed_replicas is not None:
        return _fixed_scale(spec, spec.fixed_replicas, history, snapshot.at)
    shares = shares_of(choices)
    workloads = [workload for workload in objects.workloads if workload.variant in shares]
    existing = spec.scaling.floor
    if workloads:
        existing = round(sum(each.replicas * shares[each.variant] for each in workloads))
    if spec.scaling.paused is not None:
        return _paused_scale(spec.scaling.paused, existing, history, snapshot.at)
    policy, readings = POLICIES[spec.scaling.policy], snapshot.readings
    variant = ObservedVariant(
        service=service,
        spec=spec,
        choice=choice,
        pods=pods_of_variant(objects.pods, choice),
        other_pods=[
            pod for pod in objects.pods if pod.variant in shares and pod.variant != choice.variant
        ],
        readings=readings,
    )
    pods = [pod for pod in objects.pods if pod.variant in shares]
    target = target_of(spec, choice.fit.limits, choice.fit.max_model_len, schedule, variant)
    demand = snapshot.demand_of(ref)
    load = load_of(pods, readings, existing, snapshot.at, demand, service=ref)
    load = in_reference_replicas(load, pods, shares)
    if spec.scaling.mode != "Native":
        return _external_scale(service, policy, target, load, history)
    if choice.offer.startable is not None or len(choices) > 1:
        # An autoscaler of nodes counts the pods that wait, and of several variants another one may
        # have room: so what is wanted is always added.
        history = replace(history, refused=None)
    elif spec.placement.mig != "Auto":
        # GPUs may be partitioned for a service that has it, so what it wants stays its demand.
        history = with_refusal(history, pods, snapshot.at)
    decision = policy.decide(target, load, history)
    usable = usable_readings(readings, snapshot.at)
    return without_useless(decision, target, load, history, pods, usable)


def _external_scale(
    service: ObservedService,
    policy: ScalingPolicy,
    target: ScaleTarget,
    load: ServiceLoad,
    history: ScalingHistory,
) -> ScaleDecision:
    """Return `spec.replicas` within the bounds, and what the policy recommends from there.

    The policy sees the number in effect as its own last decision, so that it neither counts
    replicas that were not started nor keeps those that a user added.
    """
    requested = service.spec.replicas if service.spec is not None else None
    spec = target.spec.model_copy(update={"idle": None})
    current = current_replicas(load, history) if requested is None else requested
    replicas = min(max(current, spec.min_replicas), spec.max_replicas)
    if history.decisions[-1:] == () or history.decisions[-1].replicas != replicas:
        decisions = (*history.decisions, TimestampedReplicas(load.at, replicas))
        history = replace(history, decisions=decisions)
    recommended = policy.decide(replace(target, spec=spec), load, history)
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
            message += f"; {target.bounds_source}{bound} is {replicas}"
    return replace(
        recommended,
        replicas=replicas,
        reason=ScalingReason.SCALED_EXTERNALLY,
        message=message,
        change_at=None,
        history=replace(recommended.history, decisions=decisions, change=None),
        until=recommended.until if recommended.replicas == replicas else NEVER,
        recommended=Decided(recommended.replicas, recommended.reason, recommended.message),
    )


def _fixed_scale(
    spec: InferenceServiceSpec, replicas: int, history: ScalingHistory, at: datetime
) -> ScaleDecision:
    """Return `spec.replicas`; once it is removed, the windows start again from this number."""
    decisions = history.decisions[-1:]
    if [decision.replicas for decision in decisions] != [replicas]:
        decisions = (TimestampedReplicas(at, replicas),)
    message = f"spec.replicas is {replicas}"
    if spec.sets_scaling:
        message += ", so spec.scaling rests; to give the number back to it, remove spec.replicas"
    return ScaleDecision(
        replicas=replicas,
        reason=ScalingReason.SET_BY_USER,
        message=message,
        history=ScalingHistory(decisions=decisions),
        until=FOREVER,
    )


def _paused_scale(
    pause: ScalingPause, existing: int, history: ScalingHistory, at: datetime
) -> ScaleDecision:
    """Return the number that was decided last; after the pause the windows start again."""
    decisions = history.decisions[-1:] or (TimestampedReplicas(at, existing),)
    return ScaleDecision(
        replicas=decisions[-1].replicas,
        reason=ScalingReason.PAUSED,
        message=f"spec.scaling.paused: {pause.by}",
        history=ScalingHistory(decisions=decisions, change=history.change),
        until=FOREVER,
    )


def history_from_status(status: InferenceServiceStatus) -> ScalingHistory:
    """Return the history that an earlier leader wrote into the status."""
    if status.scaling is None:
        return ScalingHistory()
    decisions = tuple(
        TimestampedReplicas(change.at, change.replicas) for change in status.scaling.recent_changes
    )
    counts = tuple((variant.name, variant.desired_replicas) for variant in status.variants or ())
    return ScalingHistory(decisions=decisions, counts=counts)
