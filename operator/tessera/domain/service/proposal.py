"""Proposals: hardware and replica count of each service before budgets."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.inference_service import (
    InferenceServiceSpec,
    InferenceServiceStatus,
    ScalingPause,
    VariantStatus,
)
from tessera.api.reasons import (
    Accepted,
    LoadBalanced,
    PlacementReason,
    PoolAccepted,
    ScalingReason,
    StatusVerdict,
)
from tessera.domain.budget.forecast import GrantForecast
from tessera.domain.budget.state import GrantRequest
from tessera.domain.hardware.pools import PoolView, tier_by_pool
from tessera.domain.incremental import reused, reused_per_object
from tessera.domain.names import can_name_service
from tessera.domain.observed.model_jobs import ObservedModelJob
from tessera.domain.observed.snapshot import (
    Node,
    ObservedService,
    Pod,
    PodReading,
    Ref,
    Snapshot,
    SpeedReading,
    Workload,
    reading_of,
)
from tessera.domain.perf import measured_ratio
from tessera.domain.placement.checks import check, engine_verdict, shape_of
from tessera.domain.placement.placement import (
    HardwareChoice,
    PlacementDecision,
    place,
    slice_assignment,
)
from tessera.domain.scaling import autoscale
from tessera.domain.scaling.autoscale import (
    Decided,
    ScaleDecision,
    ScalingHistory,
    ScalingPolicy,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.balance import assess_balance, next_balance_due, reported_balance
from tessera.domain.scaling.capacity import scale_by_capacity
from tessera.domain.scaling.load import (
    load_of,
    next_reading_due,
    start_up_lead,
    usable_readings,
)
from tessera.domain.scaling.variant_capacity import (
    VariantCapacity,
    queue_target,
    variant_capacity,
)
from tessera.domain.schedules import BoundsSchedule, bounds_schedule, schedule_faults
from tessera.domain.service.model_files import Preparation, prepare_model
from tessera.domain.sizing.scheduler_limits import SchedulerLimits
from tessera.domain.steps import Step, planner_error

# Devices of services, by pool and resource.
AllocatedDevices = Counter[tuple[str, str]]

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
class CurrentObjects:
    """Existing objects of a service."""

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()
    model_jobs: tuple[ObservedModelJob, ...] = ()

    def workload_of(self, variant: str) -> Workload | None:
        return next((workload for workload in self.workloads if workload.variant == variant), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """Hardware and replica count of a service before budgets."""

    service: ObservedService
    objects: CurrentObjects
    accepted: StatusVerdict[Accepted]
    placement: PlacementDecision
    scale: ScaleDecision
    balance: StatusVerdict[LoadBalanced]
    """Whether its replicas share the requests, which changes rarely."""
    existing_replicas: int
    """Pods that hold devices or should get some; others merely wait for them."""
    preparation: Preparation | None = None
    schedule: BoundsSchedule | None = None
    """The bounds that schedules set now and next."""
    valid_until: datetime | None = None
    """From then on the time or other services may change it. None while its inputs stay."""


@reused
def objects_by_service(
    services: Sequence[ObservedService],
    pods: Sequence[Pod],
    workloads: Sequence[Workload],
    nodes: Sequence[Node],
    model_jobs: Sequence[ObservedModelJob],
) -> Mapping[Ref, CurrentObjects]:
    """Return the existing objects of each service."""
    pods_by_ref: dict[Ref, list[Pod]] = {service.ref: [] for service in services}
    workloads_by_ref: dict[Ref, list[Workload]] = {ref: [] for ref in pods_by_ref}
    jobs_by_ref: dict[Ref, list[ObservedModelJob]] = {ref: [] for ref in pods_by_ref}
    ready_nodes = {node.name for node in nodes if node.kubelet_ready}
    for pod in pods:
        if pod.service in pods_by_ref and not _is_stuck(pod, ready_nodes):
            pods_by_ref[pod.service].append(pod)
    for workload in workloads:
        if workload.service in workloads_by_ref:
            workloads_by_ref[workload.service].append(workload)
    for job in model_jobs:
        if job.service in jobs_by_ref:
            jobs_by_ref[job.service].append(job)
    return {
        ref: _objects_in_order(
            ref, tuple(service_pods), tuple(workloads_by_ref[ref]), tuple(jobs_by_ref[ref])
        )
        for ref, service_pods in pods_by_ref.items()
    }


@reused_per_object
def _objects_in_order(
    _ref: Ref,
    pods: tuple[Pod, ...],
    workloads: tuple[Workload, ...],
    model_jobs: tuple[ObservedModelJob, ...],
) -> CurrentObjects:
    return CurrentObjects(
        pods=tuple(sorted(pods, key=lambda pod: pod.ref)),
        workloads=tuple(sorted(workloads, key=lambda workload: workload.ref)),
        model_jobs=tuple(sorted(model_jobs, key=lambda job: job.ref)),
    )


def _is_stuck(pod: Pod, ready_nodes: Collection[str]) -> bool:
    """Return whether a pod terminates on a dead node, where it may stay for ever."""
    # It is no replica any more, and its device is not offered to others either.
    return pod.terminating and pod.node is not None and pod.node not in ready_nodes


def _propose(
    _ref: Ref,
    service: ObservedService,
    objects: CurrentObjects,
    views: Sequence[PoolView],
    _readings: tuple[PodReading | None, ...],
    _queued: int = 0,
    *,
    history: ScalingHistory | None,
    snapshot: Snapshot,
    allocated: AllocatedDevices,
) -> Proposal:
    spec, history = service.spec, history or history_from_status(service.status)
    if spec is None:
        message = service.problem or "spec: unreadable"
        return _unchanged_proposal(
            service, objects, StatusVerdict(Accepted.INVALID_SPEC, message), history
        )
    if not can_name_service(service.ref.name):
        return _unchanged_proposal(service, objects, _INVALID_NAME, history)
    schedule = _schedule_of(service, spec, snapshot.at)
    preparation = prepare_model(snapshot, service, schedule.apply(spec) if schedule else spec)
    spec = preparation.spec
    service = replace(service, spec=spec)
    denials = check(spec, tier_by_pool(views))
    if denials:
        message = "; ".join(denial.sentence for denial in denials)
        return _unchanged_proposal(
            service, objects, StatusVerdict(denials[0].reason, message), history
        )
    if preparation.missing_shape is not None:
        unchanged = _unchanged_proposal(service, objects, preparation.missing_shape, history)
        return replace(unchanged, preparation=preparation, valid_until=snapshot.at)
    current_assignment = slice_assignment(service.ref, snapshot.pools)
    placement = _unknown_pool_decision(service, views) or place(
        spec,
        views,
        namespace=service.ref.namespace,
        current=objects.workloads[0].variant if objects.workloads else None,
        min_replicas=min_replicas_of(spec),
        used_devices=allocated,
        tiers=spec.placement.tiers,
        assignment=current_assignment,
    )
    accepted = engine_verdict(spec)
    if placement.choice is None:
        unchanged = _unchanged_proposal(service, objects, accepted, history)
        pending_until = snapshot.at if preparation.pending else None
        return replace(
            unchanged,
            placement=placement,
            preparation=preparation,
            schedule=schedule,
            valid_until=_earliest(pending_until, schedule),
        )
    workload = objects.workload_of(placement.choice.variant)
    moves = current_assignment is not None and workload is None and objects.workloads
    if current_assignment is not None and moves and not _is_asleep(spec, history):
        history = ScalingHistory(
            decisions=(TimestampedReplicas(snapshot.at, current_assignment.replicas),)
        )
    scale = _scale(
        snapshot, service, placement.choice, objects=objects, history=history, schedule=schedule
    )
    return Proposal(
        service=service,
        objects=objects,
        accepted=accepted,
        placement=placement,
        preparation=preparation,
        schedule=schedule,
        scale=scale,
        balance=assess_balance(
            service.status,
            objects.pods,
            usable_readings(snapshot.readings, snapshot.at),
            placement.choice.fit.limits.max_num_seqs,
            snapshot.at,
        ),
        existing_replicas=_existing_replicas(objects.pods, scale.replicas),
        valid_until=_earliest(
            _valid_until(
                snapshot.at, service.status, preparation, objects, placement.choice, scale
            ),
            schedule,
        ),
    )


def _schedule_of(
    service: ObservedService, spec: InferenceServiceSpec, at: datetime
) -> BoundsSchedule | None:
    """Return the bounds that schedules set; None without schedules, and with invalid ones."""
    scaling = spec.scaling
    if not scaling.schedules or schedule_faults(scaling):
        return None
    return bounds_schedule(service.ref, scaling, at=at)


def _earliest(valid_until: datetime | None, schedule: BoundsSchedule | None) -> datetime | None:
    """Return the time until which a proposal stands, which ends with its bounds."""
    change_at = schedule.next_at if schedule is not None else None
    return min((end for end in (valid_until, change_at) if end is not None), default=None)


def _valid_until(
    at: datetime,
    status: InferenceServiceStatus,
    preparation: Preparation,
    objects: CurrentObjects,
    choice: HardwareChoice,
    scale: ScaleDecision,
) -> datetime | None:
    moving = not objects.workloads or objects.workloads[0].variant != choice.variant
    by_time = scale.history.requests is not None or scale.history.demand is not None
    if preparation.pending or moving or by_time or not autoscale.is_steady(scale, at):
        return at
    due = (next_reading_due(objects.pods, at), next_balance_due(status, objects.pods, at))
    return min((moment for moment in due if moment is not None), default=None)


def _holds(
    proposal: Proposal,
    *_: object,
    history: ScalingHistory | None,
    snapshot: Snapshot,
    **_named: object,
) -> bool:
    return history is proposal.scale.history and (
        proposal.valid_until is None or snapshot.at < proposal.valid_until
    )


propose = Step(
    reused(_propose, per_object=True, holds=_holds),
    lambda error, _ref, service, objects, *_, history, **_named: planner_error_proposal(
        error, service, objects, history or ScalingHistory()
    ),
)


def _unknown_pool_decision(
    service: ObservedService, views: Sequence[PoolView]
) -> PlacementDecision | None:
    """Return the decision to stay if the devices of the service's pool could not be discovered."""
    pool = service.status.variant.pool if service.status.variant is not None else None
    for view in views:
        error = view.accepted.reason is PoolAccepted.PLANNER_ERROR
        if view.pool.name == pool and error and not view.offers:
            message = f"AcceleratorPool/{pool} is set aside (PlannerError), so its replicas stay"
            return PlacementDecision(verdict=StatusVerdict(PlacementReason.NO_HARDWARE, message))
    return None


def _scale(
    snapshot: Snapshot,
    service: ObservedService,
    choice: HardwareChoice,
    *,
    objects: CurrentObjects,
    history: ScalingHistory,
    schedule: BoundsSchedule | None,
) -> ScaleDecision:
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
    capacity = capacity_of(snapshot, service, choice, pods, history)
    if policy.spec.mode != "Native":
        return _external_scale(service, policy, capacity, load, history)
    return _policy_scale(policy, capacity, load, history)


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
    return autoscale.scale(policy, load, history)


def _speed_reading(snapshot: Snapshot, ref: Ref, choice: HardwareChoice) -> SpeedReading:
    readings = snapshot.readings.speeds.get(ref, ()) if snapshot.readings is not None else ()
    return reading_of(choice.variant, readings)


def capacity_of(
    snapshot: Snapshot,
    service: ObservedService,
    choice: HardwareChoice,
    pods: Sequence[Pod],
    history: ScalingHistory,
) -> VariantCapacity | None:
    """Return what a replica of the service carries; None where its policy does not ask for it."""
    spec = service.spec
    shape = shape_of(spec) if spec is not None else None
    if spec is None or shape is None or spec.scaling.policy != "Capacity":
        return None
    return variant_capacity(
        spec,
        shape,
        choice.fit,
        reading=_speed_reading(snapshot, service.ref, choice),
        measured_ratio=measured_ratio(service.status.speed, spec.model.uri, choice.variant),
        lead=start_up_lead(pods),
        last_lengths=history.demand.lengths if history.demand is not None else None,
    )


def _is_asleep(spec: InferenceServiceSpec, history: ScalingHistory) -> bool:
    decisions = history.decisions
    return spec.scaling.may_sleep and bool(decisions) and decisions[-1].replicas == 0


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
    current = autoscale.current_replicas(load, history) if requested is None else requested
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


def _unchanged_proposal(
    service: ObservedService,
    objects: CurrentObjects,
    accepted: StatusVerdict[Accepted],
    history: ScalingHistory,
) -> Proposal:
    """Return a proposal that leaves everything unchanged."""
    replicas = objects.workloads[0].replicas if objects.workloads else 0
    return Proposal(
        service=service,
        objects=objects,
        accepted=accepted,
        placement=PlacementDecision(
            verdict=StatusVerdict(
                PlacementReason.NOT_ACCEPTED, "nothing is placed while Accepted is False"
            )
        ),
        scale=ScaleDecision(
            replicas=replicas,
            reason=ScalingReason.NOT_PLACED,
            message="existing replicas stay unchanged",
            history=history,
        ),
        balance=reported_balance(service.status),
        existing_replicas=_existing_replicas(objects.pods, replicas),
    )


def planner_error_proposal(
    error: Exception, service: ObservedService, objects: CurrentObjects, history: ScalingHistory
) -> Proposal:
    """Return the proposal for a service that is set aside because its planning raised."""
    message = planner_error(
        error, f"kubectl get tsvc {service.ref.name} -n {service.ref.namespace} -o yaml"
    )
    verdict = StatusVerdict(Accepted.PLANNER_ERROR, message)
    return _unchanged_proposal(service, objects, verdict, history)


def min_replicas_of(spec: InferenceServiceSpec) -> int:
    """Return the minimum of a service in use, which is at least 1."""
    fixed = spec.fixed_replicas
    return spec.scaling.floor if fixed is None else max(1, fixed)


def _allocate(allocated: AllocatedDevices, proposal: Proposal, forecast: GrantForecast) -> Decimal:
    """Count the devices of the replicas that exist or would be granted; return their GPUs."""
    choice, variant = proposal.placement.choice, proposal.service.status.variant
    if choice is not None:
        offer, hardware = choice.offer, choice.offer.hardware
        replicas, desired = proposal.existing_replicas, proposal.scale.replicas
        if desired > replicas:
            replicas += forecast.count(additional_replicas(proposal, choice, replicas, desired))
        allocated[offer.pool, hardware.resource] += replicas * hardware.devices
        return replicas * offer.tariff.weight
    if variant is not None:
        # Replicas of a service for which nothing is decided hold their devices all the same.
        for pod in proposal.objects.pods:
            for resource, count in pod.devices.items():
                allocated[variant.pool, resource] += count
    return _NO_GPUS


allocate = Step(_allocate, lambda *_: _NO_GPUS)


def _existing_replicas(pods: Sequence[Pod], desired: int) -> int:
    bound = sum(pod.node is not None for pod in pods)
    return max(bound, min(len(pods), desired))


def additional_replicas(
    proposal: Proposal, choice: HardwareChoice, existing: int, desired: int
) -> GrantRequest:
    """Return the request of the replicas that a service desires beside existing ones."""
    spec = proposal.service.spec
    missing = guaranteed_replicas(spec) - existing if spec is not None else 0
    return GrantRequest(
        ref=proposal.service.ref,
        tariff=choice.offer.tariff,
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


def pods_of_variant(pods: Sequence[Pod], choice: HardwareChoice) -> Sequence[Pod]:
    """Return the replicas on the chosen hardware."""
    variant = choice.variant  # a name put together each time it is asked for
    return [pod for pod in pods if pod.variant == variant]


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
