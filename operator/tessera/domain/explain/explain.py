"""Explanation of all decisions about one service, in the order in which they are made."""

from dataclasses import replace

from tessera.api.meta import Condition, find_condition
from tessera.api.reasons import Accepted
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.aspects.aspects import ASPECTS, explain_aspects
from tessera.domain.economics.reservation import LoadCurve
from tessera.domain.explain.budget import explain_budget
from tessera.domain.explain.hardware import explain_placed
from tessera.domain.explain.mix import explain_mix
from tessera.domain.explain.precisions import explain_precision
from tessera.domain.explain.replicas import explain_drain, explain_ready, explain_rollout
from tessera.domain.explain.scaling import explain_scaling
from tessera.domain.explain.sizing import explain_sizing
from tessera.domain.explain.variants import explain_variants
from tessera.domain.observed.snapshot import ObservedService, Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.status.service import service_status


def explain(
    snapshot: Snapshot,
    plan: Plan | None,
    ref: Ref,
    log: str = "",
    curve: LoadCurve | None = None,
) -> tuple[Decision, ...]:
    """Return the decisions about one service of the snapshot; KeyError without such a service.

    Reasons and messages are those of its status, numbers are those of the plan. Where status and
    plan differ (the operator is down, or the cluster just changed) the decision has both. Without a
    plan the decisions have only what the status has. `log` is that of the replica in
    `status.start`, and `curve` the load of the service in the last days.
    """
    service = {service.ref: service for service in snapshot.services}[ref]
    if plan is None or ref not in plan.service_plans:
        return _from_status(service)
    service_plan = plan.service_plans[ref]
    budget_view = plan.budgets_by_namespace.get(ref.namespace)
    current_status = service_status(snapshot, service_plan, budget_view, None)
    progressing = _find_condition(current_status, "Progressing")
    decisions = [
        _accepted(service_plan),
        explain_placed(snapshot, plan, service_plan, _find_condition(current_status, "Placed")),
        *explain_variants(snapshot, plan, service_plan),
        *explain_mix(snapshot, plan, service_plan, curve),
        *explain_precision(snapshot, plan, service_plan),
        *explain_sizing(service_plan),
        *explain_aspects(service_plan.placed, snapshot, service_plan.reported),
        *explain_scaling(snapshot, service_plan),
        explain_budget(snapshot, plan, service_plan),
        *explain_drain(snapshot, service_plan),
        *explain_rollout(snapshot, plan, service_plan, progressing, log),
        explain_ready(service_plan, _find_condition(current_status, "Ready")),
    ]
    reported = tuple(_with_status(decision, service.status) for decision in decisions)
    known = _CONDITION_BY_TOPIC.values()
    others = (each for each in service.status.conditions if each.type not in known)
    return (*reported, *(_condition_decision(each.type, each) for each in others))


def _accepted(service_plan: ServicePlan) -> Decision:
    verdict = service_plan.accepted
    would_change = () if verdict.reason.is_true else (verdict.message,)
    if verdict.reason in (Accepted.FLAGS_UNCHECKED, Accepted.UNTESTED_ENGINE_VERSION):
        would_change = ("with a known spec.engine.version the flags would be checked",)
    if verdict.reason is Accepted.UNSUPPORTED_FLAGS:
        would_change = ("without the flag memory, capacity and price would be those that count",)
    if verdict.reason is Accepted.UNSUPPORTED_POD_KEYS:
        would_change = ("with the key in podTemplate.allowedKeys of the chart it would be Valid",)
    if verdict.reason is Accepted.PRECISION_REFUSED:
        would_change = ("with files of the same model the precision would be compared by price",)
    if verdict.reason is Accepted.NAME_CONFLICT:
        would_change = ("with names of its own it would get the requests for all of them",)
    if verdict.reason is Accepted.NAME_NOT_PUBLISHED:
        would_change = ("with a grant for its names all of spec.access could use it by them",)
    return Decision(
        topic="accepted",
        reason=verdict.reason,
        message=verdict.message,
        numbers=(("generation", str(service_plan.service.generation)),),
        would_change=would_change,
    )


def _find_condition(status: InferenceServiceStatus, kind: str) -> Condition:
    return next(condition for condition in status.conditions if condition.type == kind)


_CONDITION_BY_TOPIC = {
    "accepted": "Accepted",
    "placed": "Placed",
    **{aspect.name: aspect.condition for aspect in ASPECTS if aspect.condition},
    "rollout": "Progressing",
    "ready": "Ready",
}


def _with_status(decision: Decision, status: InferenceServiceStatus) -> Decision:
    """Return the decision with reason, message and time of the status, where it has the topic."""
    # The status also depends on probes and on rejected writes, which a plan made here lacks.
    kind = _CONDITION_BY_TOPIC.get(decision.topic)
    condition = find_condition(status.conditions, kind) if kind else None
    if condition is None:
        return decision
    same = condition.reason == decision.reason
    return replace(
        decision,
        reason=condition.reason,
        message=condition.message,
        since=condition.waiting_since or condition.last_transition_time,
        replayed="" if same else f"{decision.reason}: {decision.message}",
    )


def _condition_decision(topic: str, condition: Condition) -> Decision:
    return Decision(
        topic=topic,
        reason=condition.reason,
        message=condition.message,
        since=condition.waiting_since or condition.last_transition_time,
    )


def _from_status(service: ObservedService) -> tuple[Decision, ...]:
    """Return the decisions that the status alone has, for when there is no plan."""
    status = service.status
    topics = {kind: topic for topic, kind in _CONDITION_BY_TOPIC.items()}
    decisions = [
        _condition_decision(topics.get(condition.type, condition.type), condition)
        for condition in status.conditions
    ]
    if status.scaling is not None:
        numbers = [("replicas", str(status.scaling.desired_replicas))]
        if status.variant is not None:
            numbers.append(("hardware", status.variant.name))
        if status.cost is not None:
            numbers.append(("price", f"{status.cost.per_hour} {status.cost.currency} per hour"))
        decisions.append(
            Decision(
                topic="scaling",
                reason=status.scaling.reason,
                message=status.scaling.message,
                since=max((entry.at for entry in status.scaling.recent_changes), default=None),
                numbers=tuple(numbers),
            )
        )
    if status.tenant is not None:
        message = f"TenantBudget {status.tenant.budget}" if status.tenant.budget else "no budget"
        decisions.append(Decision(topic="budget", reason=status.tenant.reason, message=message))
    return tuple(decisions)
