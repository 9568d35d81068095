"""The number of replicas of a service before budgets: who decides it, and by which policy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec, ScalingPause
from tessera.api.reasons import ScalingReason, VariantReason
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.incremental import FOREVER, NEVER
from tessera.domain.money import Money
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.perf.sources import plausible_ratio
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.variant_cost import cash_of
from tessera.domain.scaling.additions import with_refusal, without_useless
from tessera.domain.scaling.break_even import within_break_even
from tessera.domain.scaling.decisions import current_pods
from tessera.domain.scaling.load import ServiceReadings, in_units, load_of
from tessera.domain.scaling.policies.by_name import POLICIES, ScalingPolicy
from tessera.domain.scaling.state import (
    Decided,
    ScaleDecision,
    ScalingHistory,
    ScalingUnit,
    ServiceLoad,
    TimestampedRate,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ObservedVariant, ScaleTarget, target_of
from tessera.domain.schedules import BoundsSchedule
from tessera.domain.service.current_objects import CurrentObjects, pods_of_variant
from tessera.domain.service.variant_counts import shares_of, unit_choice

# A status has whole tokens per second.
_ROUNDING = 0.01


def decide_replicas(  # noqa: PLR0913 - what is read of the service, and what was decided of it
    service: ObservedService,
    choices: Sequence[HardwareChoice],
    *,
    objects: CurrentObjects,
    readings: ServiceReadings,
    demand: GatewayDemand | None,
    history: ScalingHistory,
    schedule: BoundsSchedule | None,
    at: datetime,
) -> ScaleDecision:
    """Return the number of replicas, decided by the spec, another autoscaler or a policy.

    They are counted as of the unit, the variant of the least capacity.
    """
    spec, choice = service.spec, unit_choice(choices)
    assert spec is not None  # noqa: S101 - hardware was chosen for it
    shares = shares_of(choices)
    workloads = [workload for workload in objects.workloads if workload.variant in shares]
    existing = spec.scaling.floor
    if workloads:
        existing = round(sum(each.replicas * shares[each.variant] for each in workloads))
    if spec.fixed_replicas is not None:
        fixed_units = existing if len(shares) > 1 else spec.fixed_replicas
        return _fixed_scale(spec, spec.fixed_replicas, fixed_units, history, at)
    if spec.scaling.paused is not None:
        return _paused_scale(spec.scaling.paused, existing, history, at)
    policy = POLICIES[spec.scaling.policy]
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
    target = target_of(
        spec,
        choice.fit.limits,
        choice.fit.max_model_len,
        schedule,
        variant,
        largest_share=max(shares.values()),
    )
    load = in_units(load_of(pods, readings, existing, at, demand), pods, shares)
    if spec.scaling.mode != "Native":
        units = existing if len(shares) > 1 else None
        return _external_scale(service, policy, target, load, units, history)
    if choice.offer.startable is not None or len(choices) > 1:
        # An autoscaler of nodes counts the pods that wait, and of several variants another one may
        # have room: so what is wanted is always added.
        history = replace(history, refused=None)
    elif spec.placement.mig != "Auto":
        # GPUs may be partitioned for a service that has it, so what it wants stays its demand.
        history = with_refusal(history, pods, at)
    decision = policy.decide(target, load, history)
    hourly = Money(cash_of(choice, timedelta()), choice.hourly.currency)
    decision = within_break_even(decision, target, load, history, hourly)
    return without_useless(decision, target, load, history, pods, readings.pods)


def _external_scale(
    service: ObservedService,
    policy: ScalingPolicy,
    target: ScaleTarget,
    load: ServiceLoad,
    units: int | None,
    history: ScalingHistory,
) -> ScaleDecision:
    """Return `spec.replicas` within the bounds, and what the policy recommends from there.

    These are pods; of several variants they serve as much as `units`. The policy sees the number
    in effect as its own last decision, so that it neither counts replicas that were not started nor
    keeps those that a user added.
    """
    requested = service.spec.replicas if service.spec is not None else None
    spec = target.spec.model_copy(update={"idle": None})
    current = current_pods(load, history) if requested is None else requested
    replicas = min(max(current, spec.min_replicas), spec.max_replicas)
    effective = replicas if units is None else units
    if history.decisions[-1:] == () or history.decisions[-1].replicas != effective:
        decisions = (*history.decisions, TimestampedReplicas(load.at, effective))
        history = replace(history, decisions=decisions)
    recommended = policy.decide(replace(target, spec=spec), load, history)
    decisions = recommended.history.decisions
    if recommended.replicas != effective:
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
        replicas=effective,
        pods=replicas,
        reason=ScalingReason.SCALED_EXTERNALLY,
        message=message,
        change_at=None,
        history=replace(recommended.history, decisions=decisions, change=None),
        until=recommended.until if recommended.replicas == effective else NEVER,
        recommended=Decided(recommended.replicas, recommended.reason, recommended.message),
    )


def _fixed_scale(
    spec: InferenceServiceSpec, replicas: int, units: int, history: ScalingHistory, at: datetime
) -> ScaleDecision:
    """Return `spec.replicas`, which serve as much as `units`.

    Once it is removed, the windows start again from these.
    """
    decisions = history.decisions[-1:]
    if [decision.replicas for decision in decisions] != [units]:
        decisions = (TimestampedReplicas(at, units),)
    message = f"spec.replicas is {replicas}"
    if spec.sets_scaling:
        message += ", so spec.scaling rests; to give the number back to it, remove spec.replicas"
    return ScaleDecision(
        replicas=units,
        pods=replicas,
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
    changes, unit = status.scaling.recent_changes, _reported_unit(status)
    # Nothing was decided of a variant that no pool offered: what it runs is not refused.
    counts = tuple(
        (variant.name, variant.desired_replicas)
        for variant in status.variants or ()
        if variant.reason is not VariantReason.NOT_OFFERED
    )
    types = status.scaling.other_types or ()
    history = ScalingHistory(
        counts=counts,
        slowness=tuple(
            (other.name, plausible_ratio(float(other.slowness)))
            for other in types
            if other.slowness is not None
        ),
        left_types=tuple(
            (other.name, other.taken_back_at)
            for other in types
            if other.taken_back_at is not None and other.taken_back_at.tzinfo is not None
        ),
    )
    if unit is not None and any(change.tokens_per_second is not None for change in changes):
        rates = tuple(
            TimestampedRate(
                change.at,
                round(change.replicas * unit.capacity / 1000)
                if change.tokens_per_second is None
                else change.tokens_per_second,
            )
            for change in changes
        )
        return replace(history, reported=rates)
    decisions = tuple(TimestampedReplicas(change.at, change.replicas) for change in changes)
    return replace(history, unit=unit, decisions=decisions)


def _reported_unit(status: InferenceServiceStatus) -> ScalingUnit | None:
    """Return the replicas that a status counts where it has no capacity."""
    if (variant := status.variant) is None:
        return None
    rate = variant.input_tokens_per_second or variant.tokens_per_second
    return ScalingUnit(variant.name, 1000 * rate) if rate else None


def in_unit(history: ScalingHistory, unit: ScalingUnit) -> ScalingHistory:
    """Return a history that counts another unit; its windows start again where that serves more or
    less."""
    if history.reported:
        rates = [(each.at, 1000 * each.tokens_per_second) for each in history.reported]
        return replace(history, unit=unit, decisions=_in_units(rates, unit), reported=())
    last = history.unit
    if last is None or last.variant == unit.variant or last.capacity == unit.capacity:
        return history if last == unit else replace(history, unit=unit)
    return ScalingHistory(
        unit=unit,
        decisions=_in_units(
            [(each.at, each.replicas * last.capacity) for each in history.decisions], unit
        ),
        counts=history.counts,
        variants=history.variants,
        changes=history.changes,
        slowness=history.slowness,
        left_types=history.left_types,
    )


def _in_units(
    capacities: Iterable[tuple[datetime, int]], unit: ScalingUnit
) -> tuple[TimestampedReplicas, ...]:
    """Return the replicas of the unit that have these capacities."""
    return tuple(
        TimestampedReplicas(at, math.ceil(capacity / unit.capacity - _ROUNDING))
        for at, capacity in capacities
    )
