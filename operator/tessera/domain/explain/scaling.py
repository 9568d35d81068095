"""Explanation of the number of replicas, and the readings that would change it."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec, Scaling, ScalingStatus
from tessera.api.meta import format_duration
from tessera.api.reasons import ScalingReason
from tessera.api.text import counted
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.scaling.load import load_of
from tessera.domain.scaling.policies.queue_and_activity import recommended_replicas
from tessera.domain.scaling.state import (
    HEADROOM,
    CapacityAssessment,
    Decided,
    ScalingPolicy,
    ServiceLoad,
)
from tessera.domain.schedules import BoundsSchedule
from tessera.domain.service.replica_count import policy_of
from tessera.domain.status.service import WITHOUT_RATES


def explain_scaling(snapshot: Snapshot, service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about the number of replicas; nothing for an invalid spec."""
    spec, scale = service_plan.service.spec, service_plan.scale
    if spec is None:
        return
    status = service_plan.service.status.scaling
    without_readings = not _has_readings(snapshot) and spec.fixed_replicas is None
    replicas = scale.replicas
    reason, message, since = str(scale.reason), scale.message, None
    change_at = scale.change_at
    if status is not None and (without_readings or status.desired_replicas == replicas):
        reason = status.reason
        since = max((entry.at for entry in status.recent_changes), default=None)
        # Of a window that began before, a plan made here does not know the begin.
        if reason in WITHOUT_RATES:
            message, change_at = status.message, status.change_at
        elif without_readings or reason != scale.reason:
            message, change_at = _dated_message(status), status.change_at
    same = without_readings or reason == scale.reason
    load = _load(snapshot, service_plan)
    yield Decision(
        topic="scaling",
        reason=reason,
        message=message,
        since=since,
        numbers=(
            *_numbers(snapshot, spec, load, service_plan),
            *_window_numbers(change_at, snapshot.at),
            *_schedule_numbers(service_plan.schedule),
            *_recommended_numbers(scale.recommended),
        ),
        would_change=tuple(_would_change(spec, load, service_plan)),
        replayed="" if same else f"{scale.reason}: {scale.message}",
    )


def _dated_message(status: ScalingStatus) -> str:
    """Return the message of the status with the time of its metrics."""
    if status.observed_at is None:
        return status.message
    return f"{status.message} (at {status.observed_at:%Y-%m-%d %H:%M:%S} UTC)"


def _has_readings(snapshot: Snapshot) -> bool:
    return snapshot.readings is not None and snapshot.readings.problem is None


def _load(snapshot: Snapshot, service_plan: ServicePlan) -> ServiceLoad:
    variant = service_plan.choice.variant if service_plan.choice is not None else None
    pods = [pod for pod in service_plan.pods if variant in (None, pod.variant)]
    ref = service_plan.service.ref
    demand = snapshot.demand_of(ref)
    return load_of(
        pods, snapshot.readings, service_plan.scale.replicas, snapshot.at, demand, service=ref
    )


def _numbers(
    snapshot: Snapshot,
    spec: InferenceServiceSpec,
    load: ServiceLoad,
    service_plan: ServicePlan,
) -> Numbers:
    replicas, assessment = service_plan.scale.replicas, service_plan.scale.assessment
    if spec.fixed_replicas is not None:
        return (("replicas", f"{replicas} desired by spec.replicas"), *_resting_numbers(spec))
    policy = spec.scaling
    if assessment is not None:
        return _capacity_numbers(policy, load, assessment, replicas)
    missing = "no metrics of some replicas" if _has_readings(snapshot) else "unknown"
    places = "in all replicas" if load.queued is None else "in all replicas and at gateways"
    waiting = missing if load.waiting is None else f"{load.waiting:.0f} {places}"
    running = missing if load.running is None else f"{load.running:.0f} in all replicas"
    activity = missing if load.activity is None else f"{load.activity:.2f}"
    return (
        ("replicas", f"{replicas} desired"),
        ("bounds", f"{policy.min_replicas} to {policy.max_replicas}"),
        *_gateway_numbers(load),
        ("waiting requests", f"{waiting} ({_queue_target(spec, service_plan.choice)})"),
        ("running requests", running),
        ("activity", f"{activity} (target {policy.activity.target})"),
        (
            "scale up",
            f"after {format_duration(policy.scale_up.stabilization_window)}, at most "
            f"{policy.scale_up.pods} in "
            f"{format_duration(policy.scale_up.period)}",
        ),
        ("scale down", f"after {format_duration(policy.scale_down.stabilization_window)}"),
    )


def _queue_target(spec: InferenceServiceSpec, choice: HardwareChoice | None) -> str:
    """Return the target for waiting requests, and where it comes from."""
    queue, origin = spec.scaling.queue, ""
    target = queue.target if choice is None else _policy_of(spec, choice).queue_target
    if target < queue.target:
        origin = ", which are served within spec.slo.ttftP95"
    elif "target" not in queue.model_fields_set:
        origin = f", the default of class {spec.service_class}"
    return f"target {target:.3g} per replica{origin}"


def _policy_of(
    spec: InferenceServiceSpec, choice: HardwareChoice, schedule: BoundsSchedule | None = None
) -> ScalingPolicy:
    return policy_of(spec, choice.fit.limits, choice.fit.max_model_len, schedule)


def _window_numbers(change_at: datetime | None, at: datetime) -> Numbers:
    if change_at is None or change_at <= at:
        return ()
    left = format_duration(timedelta(seconds=round((change_at - at).total_seconds())))
    return (("time left", f"{left}, until {change_at:%H:%M:%S} UTC"),)


def _recommended_numbers(recommended: Decided | None) -> Numbers:
    if recommended is None:
        return ()
    replicas, reason, message, _ = recommended
    return (("recommended", f"{replicas} ({reason}: {message})"),)


def _schedule_numbers(schedule: BoundsSchedule | None) -> Numbers:
    if schedule is None:
        return ()
    following = schedule.next
    current = ("schedule", schedule.current.name)
    if following is None:
        return (current,)
    return (
        current,
        (
            "next bounds",
            f"{following.min_replicas} to {following.max_replicas} from "
            f"{schedule.next_at:%Y-%m-%d %H:%M} UTC, by {following.name}",
        ),
    )


def _resting_numbers(spec: InferenceServiceSpec) -> Numbers:
    if not spec.sets_scaling:
        return ()
    bounds = f"{spec.scaling.min_replicas} to {spec.scaling.max_replicas}"
    return (("bounds", f"{bounds}, which rest while spec.replicas is set"),)


def _capacity_numbers(
    policy: Scaling, load: ServiceLoad, assessment: CapacityAssessment, replicas: int
) -> Numbers:
    input_tokens, output_tokens = assessment.lengths
    pace = ""
    if round(assessment.pace, 2) != 1:
        pace = f", {assessment.pace:.2f} times the prediction by the TTFT attained"
    return (
        ("replicas", f"{replicas} desired"),
        ("bounds", f"{policy.min_replicas} to {policy.max_replicas}"),
        ("policy", "Capacity"),
        ("arrivals", f"{assessment.arrival_rate:.2f} requests/s {assessment.source}"),
        (
            "capacity",
            f"{assessment.replica_rate:.2f} requests/s per replica within spec.slo, of "
            f"{input_tokens} input and {counted(output_tokens, 'output token')}{pace}",
        ),
        (
            "needed",
            f"{assessment.needed}, with headroom {assessment.headroom:.2f} for a start-up of "
            f"{format_duration(timedelta(seconds=round(assessment.lead.total_seconds())))}",
        ),
        ("retained", f"{assessment.retained} at least, while arrivals stay"),
        ("waiting requests", f"{load.known_waiting:.0f}"),
        ("scale down", f"after {format_duration(assessment.hold)}"),
    )


def _gateway_numbers(load: ServiceLoad) -> Numbers:
    if load.queued is None:
        return ()
    return (("at the gateway", f"{load.queued} waiting, {load.gateway_requests} others"),)


_WAYS_OUT = {
    ScalingReason.SCALED_EXTERNALLY: "another spec.replicas, by the autoscaler or the person that "
    "scales it, or spec.scaling.mode Native",
    ScalingReason.PAUSED: "the removal of spec.scaling.paused",
    ScalingReason.BUDGET_EXHAUSTED: "budget for more replicas: see budget",
    ScalingReason.FAIR_SHARE: "more devices in the pool, or a larger share of them: see budget",
    ScalingReason.UNSCHEDULABLE: "a node for 1 more replica: see placed",
    ScalingReason.UNBALANCED: "requests through the gateway, which picks a replica for each one, "
    "or clients that connect again",
    ScalingReason.SCALED_TO_ZERO: "a request that waits at the gateway, or "
    "spec.scaling.minReplicas above 0",
}


def _would_change(
    spec: InferenceServiceSpec, load: ServiceLoad, service_plan: ServicePlan
) -> Iterator[str]:
    scale = service_plan.scale
    if spec.fixed_replicas is not None:
        yield "kubectl scale, or another spec.replicas; without spec.replicas, spec.scaling decides"
        return
    if service_plan.choice is None:
        yield "hardware for the service: see placed"
        return
    if scale.reason in _WAYS_OUT:
        yield _WAYS_OUT[scale.reason]
        return
    policy = _policy_of(spec, service_plan.choice, service_plan.schedule)
    if scale.assessment is not None:
        yield from _would_change_capacity(policy, scale.assessment, scale.replicas)
        return
    if scale.reason is ScalingReason.SCALE_UP_LIMIT:
        up = policy.spec.scale_up
        yield (
            f"spec.scaling.scaleUp.pods above {up.pods}, or the end of the "
            f"{format_duration(up.period)} in which that many were added"
        )
    yield _scale_up_message(policy, load, scale.replicas)
    yield _scale_down_message(policy, load, scale.replicas)
    idle, requests = policy.spec.idle, scale.history.requests
    if idle is not None and requests is not None:
        yield (
            f"{format_duration(idle.after)} without a request would remove all replicas; the last "
            f"one was seen at {requests.last_request:%H:%M:%S} UTC"
        )


def _would_change_capacity(
    policy: ScalingPolicy, assessment: CapacityAssessment, current: int
) -> Iterator[str]:
    most = policy.spec.max_replicas
    if current >= most:
        yield f"{policy.bounds_source}maxReplicas above {most} would let arrivals add more"
    else:
        # Without arrivals the capacity of the replicas, an upper bound since it has no headroom.
        rate = assessment.replica_rate * current
        if assessment.needed:
            rate = assessment.arrival_rate * current / assessment.needed
        yield (
            f"more than {rate:.2f} requests/s may add replicas at once, and so does a queue too "
            "long for spec.slo.ttftP95"
        )
    if current <= policy.spec.floor:
        yield _floor_message(policy)
    elif assessment.retained < current:
        yield (
            f"{format_duration(assessment.hold)} with at most as many requests as now will remove "
            f"{counted(current - assessment.retained, 'replica')}"
        )


def _scale_up_message(policy: ScalingPolicy, load: ServiceLoad, current: int) -> str:
    """Return the shortest queue that would add replicas."""
    if current >= policy.spec.max_replicas:
        return (
            f"{policy.bounds_source}maxReplicas above {policy.spec.max_replicas} would let a queue "
            "add more"
        )
    queue = bisect_left(
        range(math.ceil(policy.queue_target) * (current + 1) * 2 + policy.max_num_seqs * current),
        True,
        key=lambda waiting: _desired_replicas(policy, load, current, waiting) > current,
    )
    added = _desired_replicas(policy, load, current, queue) - current
    window = format_duration(policy.spec.scale_up.stabilization_window)
    waiting = counted(queue, "waiting request")
    without_activity = replace(load, activity=None)
    longest = max(queue, round(load.waiting or 0))
    queue_alone = _desired_replicas(policy, without_activity, current, longest)
    if load.activity is not None and queue_alone <= current:
        window = f"{window}, with activity {load.activity:.2f} above {policy.spec.activity.target},"
    if load.waiting is None:
        return f"{waiting} for {window} would add {counted(added, 'replica')}"
    if load.waiting >= queue:
        now = counted(round(load.waiting), "waiting request")
        return f"{now} for {window} will add replicas"
    missing = queue - load.waiting
    return (
        f"{waiting} in total, {missing / max(1, current):.1f} per replica more than now, for "
        f"{window} would add {counted(added, 'replica')}"
    )


def _desired_replicas(
    policy: ScalingPolicy, load: ServiceLoad, current: int, waiting: int, running: int = 0
) -> int:
    requests = replace(load, waiting=float(waiting), running=float(running))
    return recommended_replicas(policy, requests, current)


def _floor_message(policy: ScalingPolicy) -> str:
    """Return what would let a service at its minimum have fewer replicas."""
    if policy.spec.may_sleep:
        return "in use, the service keeps 1 replica"
    return (
        f"{policy.bounds_source}minReplicas below {policy.spec.min_replicas} would allow fewer "
        "replicas"
    )


def _scale_down_message(policy: ScalingPolicy, load: ServiceLoad, current: int) -> str:
    """Return the most running requests that would let replicas be removed."""
    if current <= policy.spec.floor:
        return _floor_message(policy)
    running = bisect_left(
        range(policy.max_num_seqs * current),
        True,
        key=lambda running: _desired_replicas(policy, load, current, 0, running) >= current,
    )
    window = format_duration(policy.spec.scale_down.stabilization_window)
    if load.waiting == 0 and load.running is not None and load.running < running:
        now = counted(round(load.running), "running request")
        return f"0 waiting and {now} for {window} will remove replicas"
    return (
        f"at most {counted(running - 1, 'running request')} and none waiting for {window} would "
        f"remove replicas, since those left then fill at most {HEADROOM:.0%} of maxNumSeqs "
        f"({policy.max_num_seqs})"
    )
