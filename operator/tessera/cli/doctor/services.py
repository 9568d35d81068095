"""Checks of services, their pods and their budgets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tessera.adapters.kube import object_parsing as wire
from tessera.api.budget_reasons import BudgetAccepted
from tessera.api.reasons import NAME_WARNINGS, PlacementReason, Progressing, Ready, SLOMet
from tessera.api.ref import Ref
from tessera.api.service_status import SloStatus
from tessera.api.text import counted, first_names
from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import CheckContext, Finding, Findings, ok, problem, warning
from tessera.cli.errors import CommandError
from tessera.cli.installation import installed_classes
from tessera.cli.text import format_age
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import ObservedService, Pod
from tessera.domain.slo.measurement import GOAL, Objective, judging_edges
from tessera.domain.speed.preemption import preemption_message
from tessera.resources.api_resources import PODS

# The longest time that a large model takes to load.
_MAX_STARTUP = timedelta(minutes=15)
# After the grace period, which deletionTimestamp includes.
_MAX_TERMINATION = timedelta(minutes=15)
# Reasons of a False condition that is a normal end, or that another condition explains better.
_BENIGN_REASONS = (Progressing.NOT_PLACED, Ready.SCALED_TO_ZERO)
_SLO_FIX = (
    "set the target to such an edge, or send most requests through the gateway as streams, which "
    "it counts at the target; other requests do not count there"
)
_CONDITION_ORDER = ("Accepted", "Placed", "Progressing", "Ready")


async def check_services(context: CheckContext) -> Sequence[Finding]:
    """Report every unhealthy service with its first cause, the worst first."""
    services = await context.services()
    worst = {}
    for service in services:
        for rank, finding in enumerate(_service_findings(service)):
            if finding is not None:
                worst[rank, service.ref] = finding
                break
    if not worst:
        return [ok("services", f"{counted(len(services), 'service')}, all healthy")]
    return [worst[key] for key in sorted(worst)]


def _service_findings(service: ObservedService) -> Iterator[Finding | None]:
    """Yield a finding or None for each condition, the worst first."""
    conditions = {condition.type: condition for condition in service.status.conditions}
    name = f"service {service.ref}"
    fix = f"tessera explain {service.ref.name} -n {service.ref.namespace}"
    progressing = conditions.get("Progressing")
    is_starting = (
        progressing is not None
        and progressing.status == "True"
        and progressing.reason not in (Progressing.ROLLOUT_COMPLETE, Progressing.TERMINATING)
    )
    for condition_type in _CONDITION_ORDER:
        condition = conditions.get(condition_type)
        if condition is None or condition.status != "False" or condition.reason in _BENIGN_REASONS:
            yield None
        else:
            finding = warning if condition_type == "Ready" and is_starting else problem
            yield finding(name, f"{condition_type} {condition.reason}: {condition.message}", fix)
    accepted = conditions.get("Accepted")
    if accepted is not None and accepted.reason in NAME_WARNINGS:
        yield warning(name, f"Accepted {accepted.reason}: {accepted.message}", fix)
    else:
        yield None
    preemption = service.status.preemption
    yield None if preemption is None else warning(name, preemption_message(preemption), fix)
    if not conditions:
        yield problem(name, "not reconciled by any operator", "see operator")
    elif service.status.observed_generation < service.generation:
        message = "status.observedGeneration is older than the spec"
        yield warning(name, message, "see operator, or repeat the command")


async def check_slos(context: CheckContext) -> Findings:
    """Report missed objectives, and targets between two edges, at which engines do not count."""
    services_by_message: dict[tuple[bool, str], list[str]] = defaultdict(list)
    missed: list[Ref] = []
    classes = await installed_classes(context.reader)
    for body in await context.reader.list_objects(INFERENCE_SERVICES):
        service = wire.parse_own(INFERENCE_SERVICES, body, classes)
        if service.spec is None:
            continue
        slo, status = service.spec.slo, service.status.slo
        if status is not None and status.reason == SLOMet.MISSED:
            missed.append(service.ref)
        for objective in Objective:
            edges = judging_edges(objective, slo, service.spec.engine.version)
            target = objective.target_seconds(slo)
            if target not in edges:
                nearest = " and ".join(f"{edge * 1e3:g} ms" for edge in edges)
                is_undecided, effect = _effect_of_edges(objective, status)
                message = (
                    f"{objective.field} {target * 1e3:g} ms: engines count at {nearest}, {effect}"
                )
                services_by_message[is_undecided, message].append(str(service.ref))
    findings = []
    if missed:
        first = min(missed)
        message = f"SLOMet {SLOMet.MISSED}: less than {GOAL:.0%} within spec.slo: "
        message += first_names(sorted(missed), 5)
        fix = f"tessera explain {first.name} -n {first.namespace}"
        findings.append(warning("slo", message, fix))
    if not services_by_message:
        return [*findings, ok("slo", "engines count at the targets of all services")]
    for (is_undecided, message), names in sorted(services_by_message.items(), reverse=True):
        text = f"{message}: {first_names(sorted(names), 5)}"
        findings.append(warning("slo", text, _SLO_FIX) if is_undecided else ok("slo", text))
    return findings


def _effect_of_edges(objective: Objective, status: SloStatus | None) -> tuple[bool, str]:
    """Return whether the edges leave the objective undecided, and what they mean for it."""
    if status is None or status.reason in (SLOMet.NO_TRAFFIC, SLOMet.FAILED_GET_METRICS):
        return False, "and nothing is measured now"
    measured = status.ttft if objective is Objective.TTFT else status.itl
    if measured is not None and measured.source == "Gateway":
        return False, "but the gateway counts at the target"
    if status.reason == SLOMet.BUCKET_TOO_WIDE:
        return True, f"and {GOAL:.0%} is between both shares, so SLOMet is {status.reason}"
    return False, "and the shares at both agree"


async def check_pods(context: CheckContext) -> Findings:
    """Report engine pods that cannot start, be scheduled or terminate, grouped by reason."""
    stuck_pods: dict[tuple[str, str], list[str]] = defaultdict(list)
    reported = await _unschedulable_services(context)
    engines = unschedulable = 0
    for body in await context.reader.list_objects(PODS):
        pod = wire.parse_pod(body)
        if pod is None or pod.unmanaged:
            continue
        engines += pod.ended is None and pod.model_job_run is None
        if pod.unschedulable and pod.service in reported:
            unschedulable += 1
        elif reason := _stuck_reason(body, pod, context.at):
            stuck_pods[body["metadata"]["namespace"], reason].append(body["metadata"]["name"])
    if not stuck_pods:
        others = (
            f"{unschedulable} unschedulable (see services), no other" if unschedulable else "none"
        )
        return ok("pods", f"{counted(engines, 'engine pod')}, {others} stuck")
    return [
        problem(
            "pods",
            f"{len(names)} in {namespace}: {reason}: {first_names(sorted(names), 5)}",
            f"kubectl describe pod -n {namespace} {min(names)}",
        )
        for (namespace, reason), names in sorted(stuck_pods.items())
    ]


async def _unschedulable_services(context: CheckContext) -> frozenset[Ref]:
    """Return the services that report their unschedulable replicas themselves."""
    try:
        services = await context.services()
    except CommandError:
        return frozenset()
    return frozenset(
        service.ref
        for service in services
        for condition in service.status.conditions
        if condition.reason in {PlacementReason.UNSCHEDULABLE, PlacementReason.NODES_STARTING}
    )


def _stuck_reason(body: Json, pod: Pod, at: datetime) -> str:
    """Return why a pod is stuck; empty if it is not."""
    if deleted_at := body["metadata"].get("deletionTimestamp"):
        return (
            "stuck terminating"
            if at - datetime.fromisoformat(deleted_at) > _MAX_TERMINATION
            else ""
        )
    if pod.terminating or pod.ended is not None:
        return ""
    if pod.waiting_reason:
        return f"{pod.waiting_reason}: {pod.container_message[-200:]}".strip(": ")
    if pod.unschedulable:
        return f"unschedulable: {pod.unschedulable}"
    if not pod.containers_ready and pod.batch_run is None and at - pod.created > _MAX_STARTUP:
        return f"not started after {format_age(_MAX_STARTUP)}"
    return ""


async def check_budgets(context: CheckContext) -> Findings:
    """Report budgets with a False condition or a contested name, and namespaces without one."""
    used_namespaces = {service.ref.namespace for service in await context.services()}
    tenant_budgets = [
        wire.parse_own(TENANT_BUDGETS, body)
        for body in await context.reader.list_objects(TENANT_BUDGETS)
    ]
    covered_namespaces = {
        name
        for budget in tenant_budgets
        if (spec := budget.status.accepted_spec or budget.spec) is not None
        for name in spec.tenant.namespaces
    }
    findings = []
    for budget in tenant_budgets:
        for condition in budget.status.conditions:
            if condition.status == "False" or condition.reason == BudgetAccepted.NAME_CONTESTED:
                message = f"{condition.type} {condition.reason}: {condition.message}"
                fix = f"kubectl describe tenantbudget {budget.name}"
                findings.append(warning(f"budget {budget.name}", message, fix))
    if unlimited := sorted(used_namespaces - covered_namespaces):
        message = f"no TenantBudget names {first_names(unlimited, 5)}: spend is not limited"
        findings.append(warning("budgets", message, "docs/tasks/set-a-budget.md"))
    budgets, namespaces = counted(len(tenant_budgets), "budget"), len(used_namespaces)
    covered = f"for the {counted(namespaces, 'namespace')} with services"
    return findings or ok("budgets", f"{budgets} {covered}" if namespaces else budgets)
