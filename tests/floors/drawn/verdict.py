"""Judges the end of a drawn sequence: at rest, with its floors or what is missing, and as edited.

Everything is read from objects, conditions and the hardware that is there.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tests.floors.drawn.faults import is_bad
from tests.floors.drawn.fleet import DrawnFleet
from tests.floors.fleet import GPU, NAMESPACE
from tests.repartition.kube import Body

# What a message names that its reader can change.
_WAY_OUT = re.compile(r"[A-Z][A-Za-z]+/[a-z0-9]|\bspec\.|[Qq]uota|\bimage\b")
_TAKER = re.compile(r"Pod/(\S+) of namespace \S+ took the device on Node/(\S+) ")
_REVISION = re.compile(r"ControllerRevision/(\S+), the version in force, is gone")
# Reasons of Progressing that are no end: something has to follow.
_MOVING = {"RollingOut", "Starting", "Draining", "FetchingModel", "GateRunning"}
# Reasons that are true of no fleet in which all that others did has ended.
_NEVER = {"FieldManagerConflict", "DisruptionNotAllowed", "ApplyFailed"}
# A version that is refused by these stays refused until its user acts.
_REFUSALS = ("Failed", "Inconclusive", "NotReady", "TimedOut", "JobFailed")
_GATE_HOLDS = {"GateNotFound", "GateNotAccepted", "GateInconclusive", "RolledBack"}
_QUIET = timedelta(minutes=5)
# What changes while money is spent.
_SPENDING = {TENANT_BUDGETS.plural, "configmaps"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sequence lost, how it ended, and which promises were not kept."""

    seed: int
    below_floor: int
    """Ticks in which a service was below its floor by an act of the operator."""
    unsettled: int
    """Services that did not come to the rest that the fleet allows."""
    untrue_promises: int
    defects: int = 0
    """What the operator did that it never should: raised, or set a service aside."""
    findings: tuple[str, ...] = field(default=(), repr=False)
    kinds: tuple[str, ...] = ()
    """Events that found something to hit."""
    minutes: float = 0
    """From the last fault to the rest."""

    @property
    def is_clean(self) -> bool:
        return not self.findings


def end_findings(fleet: DrawnFleet) -> Iterator[str]:
    """Yield what is wrong with a fleet that should be at rest."""
    yield from _steady_writes(fleet)
    for key, body in fleet.kube.objects.items():
        if key.plural == TENANT_BUDGETS.plural:
            yield from _unknown_spend(body)
    yield from _money(fleet)
    floors, healthy = fleet.judge.floors(), fleet.judge.healthy()
    for service in fleet.services():
        ref = Ref(NAMESPACE, service)
        finding = _finding(fleet, service, healthy[ref], floors[ref])
        if finding:
            yield f"{service} {finding}, with {healthy[ref]} healthy of {floors[ref]}"


def _finding(fleet: DrawnFleet, service: str, healthy: int, floor: int) -> str:
    """Return the first thing that is wrong with the end of one service."""
    return _reason_finding(fleet, service) or _floor_finding(fleet, service, healthy, floor)


def _reason_finding(fleet: DrawnFleet, service: str) -> str:
    """Return which reason is no end, or why an edit has no effect."""
    progressing = fleet.condition(service, "Progressing")
    reason, is_mended = progressing.get("reason", ""), not is_bad(fleet, service)
    if fleet.condition(service, "Accepted").get("reason") == "PlannerError":
        return "is set aside"
    if reason in _NEVER or (reason == "RolledBack" and not _is_refused(progressing["message"])):
        return f"says {reason}: {progressing['message']}"
    if reason in _MOVING and not waits_for_device(fleet, service, reason):
        return f"is {reason} for ever: {progressing['message']}"
    if is_mended and reason == "ProgressDeadlineExceeded":
        return f"waits for an edit that was made: {progressing['message']}"
    old = "" if reason in _GATE_HOLDS or _is_held(fleet, service) else _outdated(fleet, service)
    return f"keeps {old} ({reason}: {progressing.get('message')})" if is_mended and old else ""


def _is_refused(message: str) -> bool:
    return any(outcome in message for outcome in _REFUSALS)


def _floor_finding(fleet: DrawnFleet, service: str, healthy: int, floor: int) -> str:
    """Return what is missing while nothing names it, or while it is there."""
    bad = is_bad(fleet, service)
    if healthy < floor and not bad and (free := _free_for(fleet, service)):
        devices = ", ".join(f"{count} {name}" for name, count in sorted(free.items()))
        return f"is below its floor beside {devices} that are free ({_words(fleet, service)})"
    is_ready = fleet.condition(service, "Ready").get("status") == "True"
    if (healthy < floor or not is_ready) and not _is_named(
        fleet, service, is_floor_there=healthy >= floor
    ):
        return f"has no condition that says what to do ({_words(fleet, service)})"
    return ""


def _is_held(fleet: DrawnFleet, service: str) -> bool:
    """Return whether an edit waits for money, or a device that nothing of the service could give.

    What somebody else's pod took of a rollout is missing until a person acts, and so is a version
    that somebody deleted, or a pool that nobody corrected.
    """
    progressing = fleet.condition(service, "Progressing")
    reason = progressing.get("reason")
    if reason == "NotPlaced":
        return _is_lost(fleet, service)
    if reason == "BudgetExhausted":
        return any(key.plural == TENANT_BUDGETS.plural for key in fleet.kube.objects)
    if reason == "WaitingForDevice":
        taker = _TAKER.search(progressing["message"])
        others = [(key, pod) for key, pod in fleet.kube.pods() if pod.service.name != service]
        return any(
            pod.node is None or (taker is not None and taker.groups() == (key.name, pod.node))
            for key, pod in others
        )
    own = [pod for _, pod in fleet.kube.service_pods(NAMESPACE, service) if not pod.terminating]
    holds_one = any(pod.node is not None and not pod.takes_requests for pod in own)
    return reason == "NoSurgeCapacity" and not holds_one and not _free_for(fleet, service)


def _is_lost(fleet: DrawnFleet, service: str) -> bool:
    """Return whether nothing can be placed for a version or pools that are not there as such."""
    accepted = fleet.condition(service, "Accepted")
    if accepted.get("reason") == "RevisionMissing":
        revision = _REVISION.search(accepted["message"])
        names = {key.name for key in fleet.kube.objects if key.plural == "controllerrevisions"}
        return revision is not None and revision[1] not in names
    pools = fleet.pool_conditions()
    wanted = fleet.spec(service).get("placement", {}).get("pools", pools)
    are_refused = all(pools[name].get("Accepted") == "False" for name in wanted if name in pools)
    return fleet.condition(service, "Placed").get("reason") == "NoHardware" and are_refused


def waits_for_device(fleet: DrawnFleet, service: str, reason: str) -> bool:
    """Return whether replicas that start are those that Placed names as unschedulable."""
    return reason == "Starting" and fleet.condition(service, "Placed").get("status") == "False"


def _is_named(fleet: DrawnFleet, service: str, *, is_floor_there: bool) -> bool:
    """Return whether a condition of the service is False and names what its reader can change."""
    conditions = [fleet.condition(service, type) for type in ("Accepted", "Placed", "Progressing")]
    if not is_floor_there or not conditions[-1]:
        conditions.append(fleet.condition(service, "Ready"))
    return any(
        each.get("status") == "False" and _WAY_OUT.search(each["message"]) for each in conditions
    )


def _words(fleet: DrawnFleet, service: str) -> str:
    types = ("Accepted", "Placed", "Progressing", "Ready")
    conditions = [fleet.condition(service, each) for each in types]
    return "; ".join(
        f"{each['reason']}: {each['message']}"
        for each in conditions
        if each.get("status") != "True"
    ) or str(conditions[2].get("message", ""))


def _outdated(fleet: DrawnFleet, service: str) -> str:
    """Return which pod has an older template than the spec; nothing where all have the newest."""
    spec = fleet.spec(service)
    engine = spec.get("engine", {})
    edit = spec.get("podTemplate", {}).get("annotations", {}).get("edit")
    for key, pod in fleet.kube.service_pods(NAMESPACE, service):
        is_placed = fleet.condition(service, "Placed").get("status") == "True"
        if pod.terminating or pod.tried or (pod.node is None and not is_placed):
            continue
        template = fleet.kube.template_of(key)
        container = template["spec"]["containers"][0]
        annotations = template["metadata"].get("annotations") or {}
        seeds = [text for text in container["args"] if text.startswith("--seed=")]
        if seeds != engine.get("extraArgs", []) or annotations.get("edit") != edit:
            return f"{key.name} of an older template"
        if "image" not in engine and "typo" in container["image"]:
            return f"{key.name} of a template that cannot start"
    return ""


def _free_for(fleet: DrawnFleet, service: str) -> Counter[str]:
    """Return the devices that are free for a service, where no quota and no money forbids it."""
    if fleet.kube.quotas or fleet.has_budget():
        return Counter()
    return fleet.free(tuple(fleet.spec(service).get("placement", {}).get("pools", ())))


def _steady_writes(fleet: DrawnFleet) -> Iterator[str]:
    written = Counter(
        f"{key.plural}/{key.name}"
        for key in fleet.changed_since(fleet.kube.steady - _QUIET)
        if key.plural not in _SPENDING
    )
    for name, count in written.most_common(3):
        yield f"{name} changed {count} times in the last {_QUIET.seconds // 60} minutes"


def _unknown_spend(budget: Body) -> Iterator[str]:
    for condition in budget.get("status", {}).get("conditions", ()):
        if condition["reason"] == "SpendUnknown":
            yield f"the budget says SpendUnknown: {condition['message']}"


def _money(fleet: DrawnFleet) -> Iterator[str]:
    """Yield services with more replicas than a closed limit of money, or of GPUs, grants."""
    budgets = [body for key, body in fleet.kube.objects.items() if key.plural == "tenantbudgets"]
    if not budgets:
        return
    spec = budgets[0]["spec"]
    floors, replicas = fleet.judge.floors(), fleet.replicas()
    is_closed = any(each["amount"] == "0.01" and "tier" not in each for each in spec["limits"])
    for service in fleet.services() if is_closed else ():
        granted = max(floors[Ref(NAMESPACE, service)], fleet.closed_at.get(service, 0))
        if replicas[service] > granted:
            yield f"{service} has {replicas[service]} replicas, of which the budget pays {granted}"
    if "gpus" in spec:
        gpus = sum(pod.devices.get(GPU, 0) for _, pod in fleet.kube.pods() if pod.service.name)
        granted = max(int(spec["gpus"]), sum(floors.values()), sum(fleet.closed_at.values()))
        if gpus > granted:
            yield f"pods have {gpus} GPUs, of which spec.gpus grants {granted}"
