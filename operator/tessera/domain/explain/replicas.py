"""Explanation of draining, rollout and readiness of the replicas."""

from collections import Counter
from collections.abc import Iterator

from tessera.api.meta import Condition, find_condition, format_duration
from tessera.api.reasons import Progressing, Ready
from tessera.api.text import counted
from tessera.domain.explain.starts import faster_starts, start_numbers
from tessera.domain.health.readiness import IDLE_PROBE_INTERVAL
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.rollout.drain import PROPAGATION_DELAY

_READY_CHANGES: dict[str, str] = {
    Ready.COMPLETION_SUCCEEDED: "a failing completion; the next probe follows "
    f"{format_duration(IDLE_PROBE_INTERVAL)} without a finished request",
    Ready.PROBE_SUCCEEDED: "a failing probe; the next one follows "
    f"{format_duration(IDLE_PROBE_INTERVAL)} without a finished request",
    Ready.NOT_PLACED: "hardware for the service: see placed",
    Ready.NO_REPLICA_READY: "a replica that passes its probes: see rollout",
    Ready.PROBE_PENDING: "the response to the running probe",
}


def explain_drain(snapshot: Snapshot, service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about draining replicas; nothing when there are none."""
    spec, draining = service_plan.service.spec, service_plan.drain.draining
    is_closed = service_plan.gated is not None and service_plan.gated.state.is_closed
    if spec is None or not draining or is_closed:
        return
    pods = {pod.ref: pod for pod in service_plan.pods}
    timeout_text = format_duration(spec.drain.timeout)
    yield Decision(
        topic="drain",
        reason=Progressing.DRAINING,
        message=(
            f"{counted(len(draining), 'replica')} draining until their streams end, "
            f"{service_plan.desired_pods} remaining"
        ),
        numbers=tuple(
            (ref.name, _drain_progress(snapshot, pods[ref])) for ref in draining if ref in pods
        ),
        would_change=(
            f"a replica is deleted once it has 0 requests, {PROPAGATION_DELAY.total_seconds():.0f} "
            "s after the Service stopped sending it requests, or after spec.drain.timeout of "
            f"{timeout_text}",
        ),
    )


def _drain_progress(snapshot: Snapshot, pod: Pod) -> str:
    draining_since = pod.draining_since
    if draining_since is None:
        return "still receives requests"
    in_flight = snapshot.in_flight.get(pod.ref)
    suffix = (
        "" if in_flight is None else f", {counted(in_flight.requests, 'request')} at the last probe"
    )
    return f"{(snapshot.at - draining_since).total_seconds():.0f} s without new requests{suffix}"


def explain_rollout(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan, progressing: Condition, log: str
) -> Iterator[Decision]:
    """Yield the decision about rollouts; nothing while the service is not placed."""
    choice = service_plan.choice
    if choice is None:
        return
    hardware = f"{choice.offer.hardware.name} in {choice.offer.pool}"
    revisions = Counter(pod.template for pod in service_plan.pods if pod.variant == choice.variant)
    serving = sum(pod.takes_requests for pod in service_plan.pods)
    if service_plan.variants[0].surge:
        strategy = "surge: a new replica starts before an old one stops"
        change = f"without a free {hardware}, replicas would be replaced in place"
    elif service_plan.variants[0].is_surge_unpaid:
        strategy = "in place: an old replica stops before a new one starts, as no more is granted"
        change = "with a higher limit, a new replica would start before an old one stops"
    else:
        strategy = "in place: an old replica stops before a new one starts, as no device is free"
        change = f"with 1 free {hardware}, a new replica would start before an old one stops"
    removable = ", ".join(ref.name for ref in service_plan.removable_deployments)
    yield Decision(
        topic="rollout",
        reason=progressing.reason,
        message=progressing.message,
        numbers=(
            ("replicas", f"{serving} of {service_plan.desired_pods} serve requests"),
            ("strategy", strategy),
            ("revisions", str(len(revisions))),
            *start_numbers(service_plan, snapshot.at, log),
            *((("deleting", removable),) if removable else ()),
        ),
        would_change=(change, *faster_starts(service_plan, plan.pools, snapshot.at, log)),
    )


def explain_ready(service_plan: ServicePlan, ready: Condition) -> Decision:
    """Return the decision about whether the service responds."""
    serving = sum(pod.takes_requests for pod in service_plan.pods)
    reason = (find_condition(service_plan.service.status.conditions, "Ready") or ready).reason
    return Decision(
        topic="ready",
        reason=ready.reason,
        message=ready.message,
        numbers=(("replicas", f"{serving} serve requests"),),
        would_change=(_READY_CHANGES[reason],) if reason in _READY_CHANGES else (),
    )
