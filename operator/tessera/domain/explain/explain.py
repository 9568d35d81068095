"""Snapshot, plan and the name of a service -> its decisions, in the order they are made in."""

from collections.abc import Iterator
from dataclasses import replace

from tessera.api.inference_service import InferenceServiceStatus
from tessera.api.meta import Condition
from tessera.domain.allotment import ServicePlan
from tessera.domain.explain.budget import explain_budget
from tessera.domain.explain.decision import Decision
from tessera.domain.explain.hardware import explain_placed
from tessera.domain.explain.replicas import explain_drain, explain_ready, explain_rollout
from tessera.domain.explain.scaling import explain_scaling
from tessera.domain.explain.sizing import explain_sizing
from tessera.domain.explain.speed import explain_speed
from tessera.domain.plan import Plan
from tessera.domain.reasons import Accepted
from tessera.domain.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.status import service_status


def explain(snapshot: Snapshot, plan: Plan | None, ref: Ref) -> tuple[Decision, ...]:
    """The decisions about one service of the snapshot; KeyError without such a service.

    The words are those of its status, which the operator wrote; the numbers are those of the plan.
    Where both differ (the operator is away, or the world just changed) both are told. Without a
    plan only the status speaks.
    """
    services = {service.ref: service for service in snapshot.services}
    service = services[ref]
    if plan is None or ref not in plan.service_plans:
        return _by_status(service)
    allotment = plan.service_plans[ref]
    now = service_status(snapshot, allotment, plan.budgets_by_namespace.get(ref.namespace), None)
    decisions = [
        _accepted(allotment),
        explain_placed(snapshot, plan, allotment, _found(now, "Placed")),
        *explain_sizing(allotment),
        *explain_speed(snapshot, allotment),
        *explain_scaling(snapshot, allotment),
        explain_budget(snapshot, plan, allotment),
        *explain_drain(snapshot, allotment),
        *explain_rollout(allotment, _found(now, "Progressing")),
        explain_ready(allotment, _found(now, "Ready")),
    ]
    told = tuple(_as_told(decision, service.status) for decision in decisions)
    return (*told, *_further(service.status))


def _accepted(allotment: ServicePlan) -> Decision:
    verdict = allotment.accepted
    would = () if verdict.reason.is_true else (verdict.message,)
    if verdict.reason is Accepted.FLAGS_UNCHECKED:
        would = ("spec.engine.version with a known table would have its flags checked",)
    return Decision(
        topic="accepted",
        reason=verdict.reason,
        message=verdict.message,
        numbers=(("generation", str(allotment.service.generation)),),
        would_change=would,
    )


def _found(status: InferenceServiceStatus, kind: str) -> Condition:
    return next(one for one in status.conditions if one.type == kind)


_TOLD_BY = {
    "accepted": "Accepted",
    "placed": "Placed",
    "speed": "SpeedAsPredicted",
    "rollout": "Progressing",
    "ready": "Ready",
}


def _as_told(decision: Decision, status: InferenceServiceStatus) -> Decision:
    """With the word of the status, which knows more than a replay: answers, refusals, times."""
    told = next(
        (one for one in status.conditions if one.type == _TOLD_BY.get(decision.topic)), None
    )
    if told is None:
        return decision
    same = told.reason == decision.reason
    return replace(
        decision,
        reason=told.reason,
        message=told.message,
        since=told.last_transition_time,
        replayed="" if same else f"{decision.reason}: {decision.message}",
    )


def _further(status: InferenceServiceStatus) -> Iterator[Decision]:
    """Conditions about which nothing more is known here than what they say."""
    for one in status.conditions:
        if one.type not in _TOLD_BY.values():
            yield _condition(one.type, one)


def _condition(topic: str, one: Condition) -> Decision:
    return Decision(
        topic=topic, reason=one.reason, message=one.message, since=one.last_transition_time
    )


def _by_status(service: ObservedService) -> tuple[Decision, ...]:
    """What the operator wrote, where nothing can be planned anew."""
    status = service.status
    topics = {kind: topic for topic, kind in _TOLD_BY.items()}
    found = [_condition(topics.get(one.type, one.type), one) for one in status.conditions]
    if status.scaling is not None:
        numbers = [("replicas", str(status.scaling.desired_replicas))]
        if status.variant is not None:
            numbers.append(("hardware", status.variant.name))
        if status.cost is not None:
            numbers.append(("price", f"{status.cost.per_hour} {status.cost.currency} an hour"))
        found.append(
            Decision(
                topic="scaling",
                reason=status.scaling.reason,
                message=status.scaling.message,
                since=max((one.at for one in status.scaling.memory), default=None),
                numbers=tuple(numbers),
            )
        )
    if status.tenant is not None:
        named = f"TenantBudget {status.tenant.budget}" if status.tenant.budget else "no budget"
        found.append(Decision(topic="budget", reason=status.tenant.state, message=named))
    return tuple(found)
