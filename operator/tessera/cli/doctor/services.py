"""Services, their pods and their budgets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tessera.adapters import object_parsing as wire
from tessera.api.reasons import Progressing, Ready
from tessera.cli.cluster import Json
from tessera.cli.doctor.finding import CheckContext, Finding, FindingState, join_names
from tessera.cli.text import format_age
from tessera.domain.observed.snapshot import ObservedService, Pod
from tessera.resources.api_resources import INFERENCE_SERVICES, PODS, TENANT_BUDGETS

# A large model loads for so long at most.
_MAX_STARTUP = timedelta(minutes=15)
# Beyond the grace, which the moment of deletion has in it already.
_MAX_TERMINATION = timedelta(minutes=15)
# Of a condition that is False: an end as it should be, or what another condition tells better.
_BENIGN_REASONS = (Progressing.ROLLOUT_COMPLETE, Progressing.NOT_PLACED, Ready.SCALED_TO_ZERO)
_CONDITION_ORDER = ("Accepted", "Placed", "Progressing", "Ready")


async def services(context: CheckContext) -> Sequence[Finding]:
    """Every service that does not answer, with the first cause; the worst first."""
    bodies = await context.reader.list_objects(INFERENCE_SERVICES)
    readable = [service for service in map(wire.parse_service, bodies) if service is not None]
    unhealthy = [
        (rank, service.ref, finding)
        for service in readable
        for rank, finding in enumerate(_service_findings(service))
        if finding is not None
    ]
    if not unhealthy:
        return [
            Finding("services", FindingState.OK, f"{len(readable)} services, none is in trouble")
        ]
    worst_by_service = {ref: (rank, finding) for rank, ref, finding in reversed(unhealthy)}
    order = sorted(worst_by_service, key=lambda ref: (worst_by_service[ref][0], ref))
    return [worst_by_service[ref][1] for ref in order]


def _service_findings(service: ObservedService) -> Iterator[Finding | None]:
    """One after the other from the worst on: each a finding, or None where all is well."""
    conditions = {condition.type: condition for condition in service.status.conditions}
    name = f"service {service.ref}"
    fix = f"tessera explain {service.ref.name} -n {service.ref.namespace}"
    is_starting = "Progressing" in conditions and conditions["Progressing"].status == "True"
    for condition_type in _CONDITION_ORDER:
        condition = conditions.get(condition_type)
        if condition is None or condition.status != "False" or condition.reason in _BENIGN_REASONS:
            yield None
        else:
            state = (
                FindingState.WARNING
                if condition_type == "Ready" and is_starting
                else FindingState.PROBLEM
            )
            yield Finding(
                name, state, f"{condition_type} {condition.reason}: {condition.message}", fix
            )
    if not conditions:
        yield Finding(name, FindingState.PROBLEM, "no operator has looked at it", "see operator")
    elif service.status.observed_generation < service.generation:
        message = "its status speaks of an older spec"
        yield Finding(name, FindingState.WARNING, message, "see operator, or look again")


async def pods(context: CheckContext) -> Sequence[Finding]:
    """Engines that cannot start, find no node, or do not go; those with one fate together."""
    bodies = await context.reader.list_objects(PODS)
    stuck_pods: dict[tuple[str, str], list[str]] = defaultdict(list)
    for body in bodies:
        if reason := _stuck_reason(body, wire.parse_pod(body), context.at):
            stuck_pods[body["metadata"]["namespace"], reason].append(body["metadata"]["name"])
    if not stuck_pods:
        return [Finding("pods", FindingState.OK, f"{len(bodies)} engine pods, none is stuck")]
    return [
        Finding(
            "pods",
            FindingState.PROBLEM,
            f"{len(names)} in {namespace}: {reason}: {join_names(sorted(names))}",
            f"kubectl describe pod -n {namespace} {min(names)}",
        )
        for (namespace, reason), names in sorted(stuck_pods.items())
    ]


def _stuck_reason(body: Json, pod: Pod, at: datetime) -> str:
    """Why a pod does not get on; empty for one that does."""
    if deleted_at := body["metadata"].get("deletionTimestamp"):
        return "does not go" if at - datetime.fromisoformat(deleted_at) > _MAX_TERMINATION else ""
    if pod.terminating or pod.ended is not None:
        return ""
    if pod.waiting_reason:
        return f"{pod.waiting_reason}: {pod.container_message[-200:]}".strip(": ")
    if pod.unschedulable:
        return f"no node takes it: {pod.unschedulable}"
    if not pod.containers_ready and pod.batch_run is None and at - pod.created > _MAX_STARTUP:
        return f"not up after {format_age(_MAX_STARTUP)}"
    return ""


async def budgets(context: CheckContext) -> Sequence[Finding]:
    """Whose spend nothing limits, and whose money is short."""
    bodies = await context.reader.list_objects(INFERENCE_SERVICES)
    used_namespaces = {body["metadata"]["namespace"] for body in bodies}
    tenant_budgets = [
        wire.parse_budget(body) for body in await context.reader.list_objects(TENANT_BUDGETS)
    ]
    covered_namespaces = {
        name
        for budget in tenant_budgets
        if budget.spec is not None
        for name in budget.spec.tenant.namespaces
    }
    findings = []
    for budget in tenant_budgets:
        for condition in budget.status.conditions:
            if condition.status == "False":
                message = f"{condition.type} {condition.reason}: {condition.message}"
                fix = f"kubectl describe tenantbudget {budget.name}"
                findings.append(
                    Finding(f"budget {budget.name}", FindingState.WARNING, message, fix)
                )
    if unlimited := sorted(used_namespaces - covered_namespaces):
        findings.append(
            Finding(
                "budgets",
                FindingState.WARNING,
                f"no TenantBudget names {join_names(unlimited)}, so nothing limits its spend",
                "docs/tasks/set-a-budget.md",
            )
        )
    return findings or [
        Finding(
            "budgets",
            FindingState.OK,
            f"{len(tenant_budgets)} budgets, {len(used_namespaces)} namespaces",
        )
    ]
