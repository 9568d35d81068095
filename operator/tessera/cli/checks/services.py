"""Services, their pods and their budgets."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tessera.adapters import wire
from tessera.cli.checks.finding import Finding, State, Ward, listed
from tessera.cli.cluster import Json
from tessera.cli.text import age
from tessera.domain.reasons import Progressing, Ready
from tessera.domain.snapshot import ObservedService, Pod
from tessera.resources.kinds import INFERENCE_SERVICES, PODS, TENANT_BUDGETS

_STARTING = timedelta(minutes=15)
"""A large model loads for so long at most."""
_LEAVING = timedelta(minutes=15)
"""Beyond the grace, which the moment of deletion has in it already."""
_HARMLESS = (Progressing.ROLLOUT_COMPLETE, Progressing.NOT_PLACED, Ready.SCALED_TO_ZERO)
"""Of a condition that is False: an end as it should be, or what another condition tells better."""
_ORDER = ("Accepted", "Placed", "Progressing", "Ready")


async def services(ward: Ward) -> Sequence[Finding]:
    """Every service that does not answer, with the first cause; the worst first."""
    bodies = await ward.reader.all(INFERENCE_SERVICES)
    found = [one for one in map(wire.service, bodies) if one is not None]
    ailing = [
        (rank, service.ref, finding)
        for service in found
        for rank, finding in enumerate(_ailments(service))
        if finding is not None
    ]
    if not ailing:
        return [Finding("services", State.OK, f"{len(found)} services, none is in trouble")]
    first = {ref: (rank, finding) for rank, ref, finding in reversed(ailing)}
    order = sorted(first, key=lambda ref: (first[ref][0], ref))
    return [first[ref][1] for ref in order]


def _ailments(service: ObservedService) -> Iterator[Finding | None]:
    """One after the other from the worst on: each a finding, or None where all is well."""
    told = {one.type: one for one in service.status.conditions}
    name = f"service {service.ref}"
    mend = f"tessera explain {service.ref.name} -n {service.ref.namespace}"
    starting = "Progressing" in told and told["Progressing"].status == "True"
    for kind in _ORDER:
        one = told.get(kind)
        if one is None or one.status != "False" or one.reason in _HARMLESS:
            yield None
        else:
            state = State.WARNING if kind == "Ready" and starting else State.PROBLEM
            yield Finding(name, state, f"{kind} {one.reason}: {one.message}", mend)
    if not told:
        yield Finding(name, State.PROBLEM, "no operator has looked at it", "see operator")
    elif service.status.observed_generation < service.generation:
        words = "its status speaks of an older spec"
        yield Finding(name, State.WARNING, words, "see operator, or look again")


async def pods(ward: Ward) -> Sequence[Finding]:
    """Engines that cannot start, find no node, or do not go; those with one fate together."""
    bodies = await ward.reader.all(PODS)
    stuck: dict[tuple[str, str], list[str]] = defaultdict(list)
    for body in bodies:
        if told := _stuck(body, wire.pod(body), ward.at):
            stuck[body["metadata"]["namespace"], told].append(body["metadata"]["name"])
    if not stuck:
        return [Finding("pods", State.OK, f"{len(bodies)} engine pods, none is stuck")]
    return [
        Finding(
            "pods",
            State.PROBLEM,
            f"{len(names)} in {namespace}: {told}: {listed(sorted(names))}",
            f"kubectl describe pod -n {namespace} {min(names)}",
        )
        for (namespace, told), names in sorted(stuck.items())
    ]


def _stuck(body: Json, pod: Pod, at: datetime) -> str:
    """Why a pod does not get on; empty for one that does."""
    if gone := body["metadata"].get("deletionTimestamp"):
        return "does not go" if at - datetime.fromisoformat(gone) > _LEAVING else ""
    if pod.terminating or pod.ended is not None:
        return ""
    if pod.waiting_reason:
        return f"{pod.waiting_reason}: {pod.container_message[-200:]}".strip(": ")
    if pod.unschedulable:
        return f"no node takes it: {pod.unschedulable}"
    if not pod.containers_ready and pod.batch_run is None and at - pod.created > _STARTING:
        return f"not up after {age(_STARTING)}"
    return ""


async def budgets(ward: Ward) -> Sequence[Finding]:
    """Whose spend nothing limits, and whose money is short."""
    bodies = await ward.reader.all(INFERENCE_SERVICES)
    used = {body["metadata"]["namespace"] for body in bodies}
    found = [wire.budget(body) for body in await ward.reader.all(TENANT_BUDGETS)]
    named = {name for one in found if one.spec is not None for name in one.spec.tenant.namespaces}
    told = []
    for one in found:
        for condition in one.status.conditions:
            if condition.status == "False":
                words = f"{condition.type} {condition.reason}: {condition.message}"
                mend = f"kubectl describe tenantbudget {one.name}"
                told.append(Finding(f"budget {one.name}", State.WARNING, words, mend))
    if free := sorted(used - named):
        told.append(
            Finding(
                "budgets",
                State.WARNING,
                f"no TenantBudget names {listed(free)}, so nothing limits its spend",
                "docs/tasks/set-a-budget.md",
            )
        )
    return told or [Finding("budgets", State.OK, f"{len(found)} budgets, {len(used)} namespaces")]
