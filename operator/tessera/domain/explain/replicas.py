"""What happens to the replicas: who leaves, how new ones come, and whether they answer."""

from collections import Counter
from collections.abc import Iterator

from tessera.api.meta import Condition, format_duration
from tessera.api.reasons import Progressing, Ready
from tessera.domain.explain.decision import Decision
from tessera.domain.health.readiness import IDLE_PROBE_INTERVAL
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.scaling.drain import PROPAGATION_DELAY
from tessera.domain.service_plan import ServicePlan

_READY_CHANGES: dict[str, str] = {
    Ready.COMPLETION_SUCCEEDED: "a completion that fails; it is asked again after "
    f"{format_duration(IDLE_PROBE_INTERVAL)} without a finished request",
    Ready.SCALED_TO_ZERO: "spec.replicas above 0",
    Ready.NOT_PLACED: "hardware for the service: see placed",
    Ready.NO_REPLICA_READY: "a replica that passes its probes: see rollout",
    Ready.PROBE_PENDING: "an answer to the completion that was asked",
    Ready.COMPLETION_FAILED: "an answer to the next completion, which is asked within seconds",
}


def explain_drain(snapshot: Snapshot, allotment: ServicePlan) -> Iterator[Decision]:
    """Who leaves; nothing while nobody does."""
    spec, leaving = allotment.service.spec, allotment.drain.draining
    if spec is None or not leaving:
        return
    pods = {pod.ref: pod for pod in allotment.pods}
    limit = format_duration(spec.drain.timeout)
    yield Decision(
        topic="drain",
        reason=Progressing.DRAINING,
        message=f"{len(leaving)} replicas finish their streams, {allotment.scale.replicas} stay",
        numbers=tuple(
            (ref.name, _drain_progress(snapshot, pods[ref])) for ref in leaving if ref in pods
        ),
        would_change=(
            "a replica goes once it holds 0 requests, "
            f"{PROPAGATION_DELAY.total_seconds():.0f} s after it left the Service, or after "
            f"spec.drain.timeout of {limit}",
        ),
    )


def _drain_progress(snapshot: Snapshot, pod: Pod) -> str:
    if pod.draining_since is None:
        return "about to leave the Service"
    in_flight = snapshot.in_flight.get(pod.ref)
    suffix = "" if in_flight is None else f", {in_flight.requests} requests when last asked"
    return (
        f"{(snapshot.at - pod.draining_since).total_seconds():.0f} s without new requests{suffix}"
    )


def explain_rollout(allotment: ServicePlan, progressing: Condition) -> Iterator[Decision]:
    """How replicas come and are replaced; nothing while there is no hardware."""
    choice = allotment.choice
    if choice is None:
        return
    hardware = f"{choice.offer.hardware.name} in {choice.offer.pool}"
    revisions = Counter(pod.template for pod in allotment.pods if pod.variant == choice.variant)
    serving = sum(pod.takes_requests for pod in allotment.pods)
    if allotment.surge:
        strategy = "surge: a new replica starts before an old one stops"
        change = f"no free {hardware} any more: replicas would then be replaced in place"
    else:
        strategy = "in place: an old replica stops before a new one starts, as nothing is free"
        change = f"1 free {hardware}: a new replica would then start before an old one stops"
    numbers = [
        ("replicas", f"{serving} of {allotment.scale.replicas} take requests"),
        ("manner", strategy),
        ("revisions", str(len(revisions))),
    ]
    if allotment.removable_deployments:
        numbers.append(("going", ", ".join(ref.name for ref in allotment.removable_deployments)))
    yield Decision(
        topic="rollout",
        reason=progressing.reason,
        message=progressing.message,
        numbers=tuple(numbers),
        would_change=(change,),
    )


def explain_ready(allotment: ServicePlan, ready: Condition) -> Decision:
    """Whether the service answers."""
    serving = sum(pod.takes_requests for pod in allotment.pods)
    reasons = {
        condition.type: condition.reason for condition in allotment.service.status.conditions
    }
    reason = reasons.get("Ready", ready.reason)
    return Decision(
        topic="ready",
        reason=ready.reason,
        message=ready.message,
        numbers=(("replicas", f"{serving} take requests"),),
        would_change=(_READY_CHANGES[reason],) if reason in _READY_CHANGES else (),
    )
