"""Proposals: hardware and replica count of each service before budgets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.pool_reasons import PoolAccepted
from tessera.api.precision import CHECKPOINT
from tessera.api.reasons import Accepted, PlacementReason, ScalingReason, StatusVerdict
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.budget.state import GrantRequest
from tessera.domain.hardware.pools import PoolView, tier_by_pool
from tessera.domain.incremental import FOREVER, Until, reused_until
from tessera.domain.instance_types.by_load import (
    LoadedService,
    as_step,
    has_type_by_load,
    is_quiet,
)
from tessera.domain.instance_types.change import REST
from tessera.domain.model.precision_files import GatedPrecision, with_closed
from tessera.domain.names import can_name_service
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Workload
from tessera.domain.perf.sources import measured_ratio
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import (
    Denial,
    check,
    engine_verdict,
    split_running,
    tolerated_message,
)
from tessera.domain.placement.cover import NO_NEED, Need
from tessera.domain.placement.placement import (
    PlacementDecision,
    RunningReplicas,
    SliceAssignment,
    TypeByLoad,
    place,
    slice_assignments,
)
from tessera.domain.placement.sharing import may_share_service
from tessera.domain.placement.split_state import VariantChange
from tessera.domain.placement.variant_cost import capacity_of
from tessera.domain.rollout.disruptions import NO_DISRUPTIONS, Disruptions, disruptions_of
from tessera.domain.scaling.decisions import with_need
from tessera.domain.scaling.load import ServiceReadings
from tessera.domain.scaling.starts import expected_lead
from tessera.domain.scaling.state import (
    ScaleDecision,
    ScalingHistory,
    ScalingUnit,
    TimestampedReplicas,
)
from tessera.domain.schedules import BoundsSchedule, bounds_schedule, schedule_faults
from tessera.domain.service.current_objects import CurrentObjects
from tessera.domain.service.measured_limits import with_measured_limits
from tessera.domain.service.preparation.jobs import ModelJobs
from tessera.domain.service.preparation.precisions import awaited_check, is_awaited, refusals
from tessera.domain.service.preparation.preparation import Preparation, with_precisions
from tessera.domain.service.preparation.shape import prepare_model
from tessera.domain.service.replica_count import decide_replicas, history_from_status, in_unit
from tessera.domain.service.variant_counts import (
    Devices,
    Room,
    VariantCount,
    last_changes,
    split_counts,
    unit_of,
    with_counts,
)
from tessera.domain.steps import Step, planner_error

# The time that a removed replica costs after its drain, until its engine has exited.
EXIT_ALLOWANCE = timedelta(seconds=60)
_NO_GPUS = Decimal(0)
# Of a service that is older than the rule of its CRD.
_INVALID_NAME = StatusVerdict(
    Accepted.INVALID_NAME,
    "metadata.name: no Service can have it, since it has a dot or more than 63 characters; its "
    "replicas are deleted, so create the InferenceService under another name",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Hardware and replica count of a service before budgets."""

    service: ObservedService
    objects: CurrentObjects
    accepted: StatusVerdict[Accepted]
    placement: PlacementDecision
    scale: ScaleDecision
    need: Need = NO_NEED
    """What its replicas have to have together."""
    disruptions: Disruptions = NO_DISRUPTIONS
    """Its healthy replicas, and how many of them stay."""
    counts: tuple[VariantCount, ...] = ()
    """The replicas of each variant, in the order of the choices; none without a choice."""
    changes: tuple[VariantChange, ...] = ()
    """Why the number of each variant changed last."""
    preparation: Preparation | None = None
    schedule: BoundsSchedule | None = None
    """The bounds that schedules set now and next."""


class ProposalInputs(NamedTuple):
    """All that a proposal is made of but the time, the last history, and the room."""

    service: ObservedService
    objects: CurrentObjects
    views: Sequence[PoolView]
    readings: ServiceReadings
    demand: GatewayDemand | None
    """What gateways report of it; None where no gateway reports."""
    gateways: bool
    room_key: object
    """About what is free in its pools; None where it does not choose among several. The room itself
    differs after each proposal before this one, and any device of any service would count. Of a new
    service it is what is free on its turn, up to what it may use: thousands may wait for long."""


@reused_until
def _propose(
    _ref: Ref,
    inputs: ProposalInputs,
    *,
    at: datetime,
    memory: ScalingHistory | None,
    room: Room,
) -> Until[Proposal]:
    service, objects, views = inputs.service, inputs.objects, inputs.views
    spec, history = service.spec, memory or history_from_status(service.status)
    if spec is None:
        unreadable = StatusVerdict(Accepted.INVALID_SPEC, service.problem or "spec: unreadable")
        return unchanged_proposal(service, objects, unreadable, history)
    if not can_name_service(service.ref.name):
        return unchanged_proposal(service, objects, _INVALID_NAME, history)
    schedule = _schedule_of(service, spec, at)
    model_jobs = ModelJobs(at, objects.model_jobs, objects.job_pods)
    preparation = prepare_model(model_jobs, service, schedule.apply(spec) if schedule else spec)
    spec = preparation.spec
    service = replace(service, spec=spec)
    denials, tolerated = check(spec, tier_by_pool(views)), tuple[Denial, ...]()
    if denials:
        flags = objects.runs_with(spec.engine.extra_args)
        keys = objects.runs_with_metadata(spec.pod_template)
        tolerated, denials = split_running(denials, flags=flags, keys=keys)
    if denials:
        message = "; ".join(denial.sentence for denial in denials)
        return unchanged_proposal(
            service, objects, StatusVerdict(denials[0].reason, message), history
        )
    if preparation.missing_shape is None:
        preparation = with_precisions(model_jobs, service, preparation)
    awaited = preparation.missing_shape or _awaited_precision(preparation, service, objects, views)
    if awaited is not None:
        return unchanged_proposal(service, objects, awaited, history, at, preparation=preparation)
    spec = preparation.spec
    service = replace(service, spec=spec)
    next_at = schedule.status.next_at if schedule is not None else None
    until = at if preparation.pending else next_at or FOREVER
    running = None if is_awaited(preparation.precisions or ()) else _running(service, objects, room)
    slowness = _slowness(service, spec, objects, history)
    loaded = _loaded(inputs, spec, slowness, dict(history.left_types), at)
    place_in = partial(
        _place,
        service,
        objects=objects,
        views=views,
        used=room.used,
        desired=_last_desired(history),
        assignments=slice_assignments(service.ref, [view.pool for view in views]),
        running=running,
        type_by_load=loaded.type_among if loaded is not None else None,
        gateways=inputs.gateways,
    )
    placement = with_measured_limits(_with_untried(place_in, spec), service, spec)
    accepted = _accepted(spec, preparation, tolerated)
    if placement.choice is None:
        parts = {"placement": placement, "preparation": preparation, "schedule": schedule}
        return unchanged_proposal(service, objects, accepted, history, until, **parts)
    reference = objects.reference_workload(service.status)
    is_there = reference is not None and reference.variant == placement.choice.variant
    if placement.awaits_type or not (objects.is_new or is_there):
        until = at  # other services take or free devices
    history = _history_on(placement, spec, reference, objects, history, at)
    left_types = _left_types(history, placement, at)
    history = replace(history, slowness=tuple(slowness.items()), left_types=left_types)
    scaled = _scaled(service, inputs, placement, history, schedule, room, at)
    proposal = Proposal(
        service=service,
        objects=objects,
        accepted=accepted,
        placement=placement,
        preparation=preparation,
        schedule=schedule,
        scale=scaled.scale,
        need=scaled.need,
        disruptions=disruptions_of(objects.pods, objects.disrupted, scaled.need.pods),
        counts=scaled.counts,
        changes=scaled.scale.history.changes,
    )
    until = min(until, scaled.until, loaded.until if loaded is not None else FOREVER)
    return Until(proposal, until, scaled.scale.history)


class _Scaled(NamedTuple):
    """How many replicas a service has to have, and of which variants."""

    scale: ScaleDecision
    need: Need
    counts: tuple[VariantCount, ...]
    until: datetime


def _scaled(  # noqa: PLR0913, PLR0917 - what is read of the service, and what was decided of it
    service: ObservedService,
    inputs: ProposalInputs,
    placement: PlacementDecision,
    history: ScalingHistory,
    schedule: BoundsSchedule | None,
    room: Room,
    at: datetime,
) -> _Scaled:
    objects, spec, unit = inputs.objects, service.spec, unit_of(placement.choices)
    assert spec is not None  # noqa: S101 - it is placed
    scale = decide_replicas(
        service,
        placement.choices,
        objects=objects,
        readings=inputs.readings,
        demand=inputs.demand,
        history=history,
        schedule=schedule,
        at=at,
    )
    need = _need(spec, scale, unit)
    split_for = partial(
        split_counts,
        placement.choices,
        objects=objects,
        status=service.status,
        room=room,
        memory=history.variants,
        decided=dict(history.counts),
        assigned=placement.assigned,
        at=at,
    )
    counts, split = split_for(need=need)
    if scale.recommended is not None:
        recommended = split_for(need=_need_of(spec, scale.recommended.replicas, unit))[1]
        scale = replace(scale, recommended_pods=recommended.lasting)
    next_history = replace(
        with_counts(scale.history, counts),
        unit=unit,
        needs=with_need(history.needs, scale, at) if service.gated is not None else (),
        variants=split.memory,
        changes=last_changes(history.changes, split),
        slowness=history.slowness,
        left_types=history.left_types,
    )
    scale = replace(scale, history=next_history)
    return _Scaled(scale, need, counts, min(scale.until, split.until))


def _need(spec: InferenceServiceSpec, scale: ScaleDecision, unit: ScalingUnit) -> Need:
    """Return what the replicas of a service have to have: a number that is set, or a capacity."""
    if scale.pods is not None:
        wanted = scale.recommended.replicas if scale.recommended is not None else 0
        firm = min(_firm_replicas(spec), scale.pods)
        return Need(wanted * unit.capacity, scale.pods, firm, scale.pods)
    return _need_of(spec, scale.replicas, unit)


def _need_of(spec: InferenceServiceSpec, replicas: int, unit: ScalingUnit) -> Need:
    """Return what replicas of the unit are together, within the bounds of a service."""
    floor = min(replicas, min_replicas_of(spec))
    firm = min(_firm_replicas(spec), floor)
    return Need(replicas * unit.capacity, floor, firm, spec.scaling.max_replicas)


def _firm_replicas(spec: InferenceServiceSpec) -> int:
    # No client of class Batch waits, so all of its replicas may be on spot nodes.
    return 0 if spec.service_class == "Batch" else guaranteed_replicas(spec)


def _is_assigned_elsewhere(
    placement: PlacementDecision,
    reference: Workload,
    objects: CurrentObjects,
    history: ScalingHistory,
) -> bool:
    """Return whether a layout plan assigns other hardware than replicas were decided for."""
    if (
        not placement.assigned
        or placement.choice is None
        or reference.variant == placement.choice.variant
    ):
        return False
    return bool(history.counts) or objects.workload_of(placement.choice.variant) is None


def _history_on(
    placement: PlacementDecision,
    spec: InferenceServiceSpec,
    reference: Workload | None,
    objects: CurrentObjects,
    history: ScalingHistory,
    at: datetime,
) -> ScalingHistory:
    """Return a history of as many replicas as serve the same on the hardware that is chosen.

    Where layouts are planned, that is what they assign; a service that sleeps goes on.
    """
    last, unit = history.unit, unit_of(placement.choices)
    history = in_unit(history, unit)
    is_other = last is None or last.variant != unit.variant
    if placement.choice is not None and placement.type_replicas and is_other:
        capacity = placement.type_replicas * capacity_of(placement.choice)
        decisions = (TimestampedReplicas(at, -(-capacity // unit.capacity)),)
        return replace(history, up_window=(), down_window=(), decisions=decisions)
    if placement.replaced_capacity and not history.decisions:
        units = -(-placement.replaced_capacity // unit.capacity)
        return replace(history, decisions=(TimestampedReplicas(at, units),))
    if reference is None or not _is_assigned_elsewhere(placement, reference, objects, history):
        return history
    if spec.scaling.may_sleep and [each.replicas for each in history.decisions[-1:]] == [0]:
        return history
    return ScalingHistory(
        unit=history.unit, decisions=(TimestampedReplicas(at, assigned_units(placement)),)
    )


def assigned_units(placement: PlacementDecision) -> int:
    """Return how many replicas of the unit serve as much as the assigned slices."""
    if placement.choice is None:
        return 0
    capacity = sum(
        placement.assigned.get(choice.variant, 0) * capacity_of(choice)
        for choice in placement.choices
    )
    return capacity // unit_of(placement.choices).capacity


def _with_untried(
    place_in: Callable[[InferenceServiceSpec], PlacementDecision], spec: InferenceServiceSpec
) -> PlacementDecision:
    """Place a service, with what would be chosen if a gate had tried all of its precisions."""
    placement, precision = place_in(spec), spec.precision
    if not isinstance(precision, GatedPrecision) or not precision.untried - precision.refused:
        return placement
    choice = place_in(with_closed(spec, (), precision.refused)).choice
    if choice is None or (choice.fit.precision or CHECKPOINT) not in precision.untried:
        return placement
    message = (
        f"{placement.verdict.message}; {choice.variant} would be chosen, and serves no user before "
        "the gate has tried it"
    )
    verdict = StatusVerdict(placement.verdict.reason, message)
    # Without a place for what was tried, it would be compared with nothing.
    untried = choice if placement.choice is not None else None
    return replace(placement, verdict=verdict, untried=untried)


def _accepted(
    spec: InferenceServiceSpec, preparation: Preparation, tolerated: Sequence[Denial]
) -> StatusVerdict[Accepted]:
    """Return the verdict on a valid spec: what is not used of it, or cannot be known."""
    verdict, refused = engine_verdict(spec), refusals(preparation.precisions or ())
    if tolerated:
        is_flag = any(each.reason is Accepted.RESERVED_FLAG for each in tolerated)
        reason = Accepted.UNSUPPORTED_FLAGS if is_flag else Accepted.UNSUPPORTED_POD_KEYS
        verdict = StatusVerdict(reason, tolerated_message(tolerated))
    if not refused:
        return verdict
    others = () if verdict.reason is Accepted.VALID else (verdict.message,)
    return StatusVerdict(Accepted.PRECISION_REFUSED, "; ".join((refused, *others)))


def _awaited_precision(
    preparation: Preparation,
    service: ObservedService,
    objects: CurrentObjects,
    views: Sequence[PoolView],
) -> StatusVerdict[Accepted] | None:
    """Return that a service waits for the files of a precision to be read."""
    current = objects.reference_workload(service.status)
    check = awaited_check(
        preparation.precisions or (), current.variant if current is not None else None, views
    )
    if check is None:
        return None
    message = f"spec.precision.variants: {check.status.precision}: {check.message}"
    reason = Accepted.FAILED_CREATE if check.is_refused else Accepted.READING_MODEL
    return StatusVerdict(reason, message)


def _schedule_of(
    service: ObservedService, spec: InferenceServiceSpec, at: datetime
) -> BoundsSchedule | None:
    """Return the bounds that schedules set; None without schedules, and with invalid ones."""
    scaling = spec.scaling
    if not scaling.schedules or schedule_faults(scaling):
        return None
    return bounds_schedule(service.ref, scaling, at=at)


propose = Step(
    _propose,
    lambda error, _ref, inputs, *, memory, **_named: planner_error_proposal(
        error, inputs.service, inputs.objects, memory or ScalingHistory()
    ),
)


def _place(  # noqa: PLR0913 - inputs and circumstances
    service: ObservedService,
    spec: InferenceServiceSpec,
    objects: CurrentObjects,
    views: Sequence[PoolView],
    used: Devices,
    assignments: Sequence[SliceAssignment],
    *,
    desired: int,
    running: RunningReplicas | None,
    type_by_load: Callable[[Sequence[HardwareChoice]], TypeByLoad] | None,
    gateways: bool,
) -> PlacementDecision:
    """Place a service; it stays if the devices of its pool could not be discovered."""
    pool = service.status.variant.pool if service.status.variant is not None else None
    for view in views:
        error = view.accepted.reason is PoolAccepted.PLANNER_ERROR
        if view.pool.name == pool and error and not view.offers:
            message = f"AcceleratorPool/{pool} is set aside (PlannerError), so its replicas stay"
            return PlacementDecision(verdict=StatusVerdict(PlacementReason.NO_HARDWARE, message))
    current = objects.reference_workload(service.status)
    # The status, and so the current variant, may be of earlier cycles.
    own = [pod for pod in objects.pods if current is not None and pod.variant == current.variant]
    bound = any(pod.node for pod in own)
    return place(
        spec,
        views,
        namespace=service.ref.namespace,
        current=current.variant if current is not None else None,
        running=running,
        running_variants=frozenset(
            {pod.variant for pod in objects.pods}
            | {each.variant for each in objects.workloads if each.replicas or each is current}
        ),
        min_replicas=min_replicas_of(spec),
        desired=desired,
        used_devices=used,
        tiers=spec.placement.tiers,
        # Only the gateway knows what each replica can serve.
        assignments=assignments if gateways else assignments[:1],
        may_share=_any_speed if gateways else may_share_service,
        type_by_load=type_by_load,
        bound=bound,
        stuck=not bound and any(pod.unschedulable for pod in own),
    )


def _last_desired(history: ScalingHistory) -> int:
    """Return the replicas of all variants that were decided last; 0 where none were."""
    if history.counts:
        return sum(replicas for _, replicas in history.counts)
    return history.decisions[-1].replicas if history.decisions else 0


def _running(
    service: ObservedService, objects: CurrentObjects, room: Room
) -> RunningReplicas | None:
    """Return what a service runs; None before it has run, and while a rollout replaces pods."""
    current = objects.reference_workload(service.status)
    if current is None or not all(each.rollout_complete for each in objects.workloads):
        return None
    replicas = dict.fromkeys((pod.variant for pod in objects.pods), 0)
    for workload in objects.workloads:
        if workload.replicas:
            replicas[workload.variant] = replicas.get(workload.variant, 0) + workload.replicas
    if service.gated is not None:
        # One that passed its gate serves no users yet, and is the first of those that follow.
        opened = {pod.variant for pod in objects.pods if pod.takes_requests} | {current.variant}
        replicas = {variant: count for variant, count in replicas.items() if variant in opened}
    templates: dict[str, set[str]] = {}
    for pod in objects.pods:
        templates.setdefault(pod.variant, set()).add(pod.template)
    if any(len(names) > 1 for names in templates.values()):
        return None
    start = expected_lead(objects.pods, service.status.start, current.variant)
    return RunningReplicas(replicas=replicas, held_devices=room.held, start=start)


def _slowness(
    service: ObservedService,
    spec: InferenceServiceSpec,
    objects: CurrentObjects,
    history: ScalingHistory,
) -> Mapping[str, float]:
    """Return how slow variants are by what was measured of each last, so that one that was left
    for its speed is not come back to by its prediction."""
    current = objects.reference_workload(service.status)
    variant = current.variant if current is not None else None
    speed = service.status.speed
    if speed is not None and speed.model != spec.model.uri:
        return {}
    ratio = measured_ratio(speed, spec.model.uri, variant)
    if variant is None or ratio is None or not has_type_by_load(spec):
        return dict(history.slowness)
    others = {name: other for name, other in history.slowness if name != variant}
    return {**others, variant: as_step(ratio)}


def _left_types(
    history: ScalingHistory, placement: PlacementDecision, at: datetime
) -> tuple[tuple[str, datetime], ...]:
    """Return when changes of the type were taken back, with one that is now."""
    left = {name: since for name, since in history.left_types if abs(at - since) < REST}
    if placement.left_type is not None:
        left.pop(placement.left_type, None)
        left[placement.left_type] = at
    return tuple(left.items())


def _loaded(
    inputs: ProposalInputs,
    spec: InferenceServiceSpec,
    slowness: Mapping[str, float],
    left_at: Mapping[str, datetime],
    at: datetime,
) -> LoadedService | None:
    """Return what decides the instance type by the recorded load; None before it has run."""
    service, objects, history = inputs.service, inputs.objects, inputs.readings.load_history
    current = objects.reference_workload(service.status)
    if current is None:
        return None
    if service.spec is not None and not schedule_faults(service.spec.scaling):
        # What is in force now was not at all times of the recorded load.
        spec = spec.model_copy(update={"scaling": service.spec.scaling})
    return LoadedService(
        service=service,
        spec=spec,
        workload=current,
        history=history if has_type_by_load(spec) else None,
        start=expected_lead(objects.pods, service.status.start, current.variant),
        slowness=slowness,
        is_quiet=not objects.disrupted
        and is_quiet(service.status, objects.pods, objects.workloads),
        pods=objects.pods,
        workloads=objects.workloads,
        left_at=left_at,
        at=at,
    )


def _any_speed(_choices: Sequence[HardwareChoice]) -> None:
    """Return nothing against any mix: gateways send each replica what it can serve."""


def unchanged_proposal(
    service: ObservedService,
    objects: CurrentObjects,
    accepted: StatusVerdict[Accepted],
    history: ScalingHistory,
    until: datetime = FOREVER,
    **parts: Any,
) -> Until[Proposal]:
    """Return a proposal that leaves everything unchanged, but for these parts of it."""
    replicas = sum(workload.replicas for workload in objects.workloads)
    message = "nothing is placed while Accepted is False"
    proposal = Proposal(
        service=service,
        objects=objects,
        accepted=accepted,
        placement=PlacementDecision(verdict=StatusVerdict(PlacementReason.NOT_ACCEPTED, message)),
        scale=ScaleDecision(
            replicas=replicas,
            reason=ScalingReason.NOT_PLACED,
            message="existing replicas stay unchanged",
            history=history,
            until=FOREVER,
        ),
    )
    return Until(replace(proposal, **parts), until, history)


def planner_error_proposal(
    error: Exception, service: ObservedService, objects: CurrentObjects, history: ScalingHistory
) -> Proposal:
    """Return the proposal for a service that is set aside because its planning raised."""
    message = planner_error(error, "tsvc", service.ref.name, service.ref.namespace)
    verdict = StatusVerdict(Accepted.PLANNER_ERROR, message)
    return unchanged_proposal(service, objects, verdict, history).result


def min_replicas_of(spec: InferenceServiceSpec) -> int:
    """Return the minimum of a service in use, which is at least 1."""
    fixed = spec.fixed_replicas
    return spec.scaling.floor if fixed is None else max(1, fixed)


def _allocate(
    allocated: Devices, proposal: Proposal, forecast: GrantForecast, existing: Devices
) -> Decimal:
    """Count the devices of the replicas that exist or would be granted; return their GPUs.

    Where nothing is decided, the `existing` ones of its replicas, and those that they wait for.
    """
    gpus = _NO_GPUS
    for count in proposal.counts:
        offer, hardware, replicas = count.choice.offer, count.choice.offer.hardware, count.existing
        if count.replicas > replicas:
            replicas += forecast.count(additional_replicas(proposal, count))
        allocated[offer.pool, hardware.resource] += replicas * hardware.devices
        gpus += replicas * offer.tariff.weight
    if not proposal.counts:
        allocated.update(existing)
        for pod in proposal.objects.pods:
            if pod.node is None:
                allocated.update(devices_of_waiting(pod, proposal.service.status))
    return gpus


allocate = Step(_allocate, lambda *_: _NO_GPUS)


def devices_of_waiting(pod: Pod, status: InferenceServiceStatus) -> Mapping[tuple[str, str], int]:
    """Return the devices that a pod without a node waits for, in the pool of its variant."""
    pools = {each.name: each.pool for each in status.all_variants}
    if (pool := pools.get(pod.variant)) is None:
        return {}
    return {(pool, name): count for name, count in pod.devices.items()}


def additional_replicas(proposal: Proposal, count: VariantCount) -> GrantRequest:
    """Return the request of the replicas of a variant that are desired beside existing ones."""
    spec, existing, desired = proposal.service.spec, count.existing, count.replicas
    missing = guaranteed_replicas(spec) - existing if spec is not None else 0
    return GrantRequest(
        ref=proposal.service.ref,
        tariff=count.choice.offer.tariff.paid_for(proposal.service.ref),
        min_replicas=max(0, min(missing, desired - existing)),
        desired=desired - existing,
        running=0,
        existing_pods=0,
        termination_time=termination_time(spec) if spec is not None else EXIT_ALLOWANCE,
    )


def guaranteed_replicas(spec: InferenceServiceSpec) -> int:
    """Return the replicas that a budget never reduces: 1 of a fixed count without minReplicas.

    A service that may have no replica has no such minimum: its first one is granted like others.
    """
    fixed = spec.fixed_replicas
    if fixed is None:
        return spec.scaling.min_replicas
    return min(fixed, spec.scaling.min_replicas) if spec.sets_scaling else 1


def termination_time(spec: InferenceServiceSpec) -> timedelta:
    """Return for how long a replica that is removed costs on."""
    return spec.drain.timeout + EXIT_ALLOWANCE
