"""The changes that gates try, out of what was planned for each version, and what they decide."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera.api.precision import CHECKPOINT
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.service_status import CandidateStatus
from tessera.domain.health.startup_failure import startup_failure
from tessera.domain.money import per_million_tokens
from tessera.domain.observed.gates import GateJob, GateJobRun, ObservedGate, ServiceRevision
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import pooling_task
from tessera.domain.planning.service_plan import GatedPlan, ServicePlan
from tessera.domain.planning.storage import StorageRoom
from tessera.domain.quality.change import answers_digest, version_digest
from tessera.domain.quality.gate_jobs import GateEndpoint, PromptTask
from tessera.domain.quality.gates import (
    GatePlan,
    TrialDecision,
    decide_trial,
    plan_gate,
    without_storage,
)
from tessera.domain.quality.rollout_state import answers_of, digest_of
from tessera.domain.quality.trial import ChangeTrial, GateJobs, TriedVersion
from tessera.domain.steps import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedGates:
    """What gates decide, and the plans of services with it."""

    service_plans: Mapping[Ref, ServicePlan]
    gates: Mapping[Ref, GatePlan] = field(default_factory=dict)


def plan_gates(
    snapshot: Snapshot, service_plans: Mapping[Ref, ServicePlan], storage: StorageRoom
) -> PlannedGates:
    """Decide for all gates, and say it in the plans of the services whose changes they try."""
    gates = {gate.ref: gate for gate in snapshot.gates}
    if not gates and not any(each.gated is not None for each in service_plans.values()):
        return PlannedGates(service_plans=service_plans)
    trials = defaultdict[Ref, list[ChangeTrial]](list)
    for service_plan in service_plans.values():
        if (trial := change_trial(service_plan, snapshot, gates, service_plans)) is not None:
            trials[Ref(trial.service.namespace, trial.gate_ref)].append(trial)
    jobs = _jobs_by_gate(snapshot)
    plans = {
        ref: _with_storage(gate_plan, storage)
        for ref, gate in sorted(gates.items())
        if (gate_plan := planned_gate(gate, trials.get(ref, ()), jobs.get(ref, GateJobs())))
    }
    decisions = {ref: each for plan in plans.values() for ref, each in plan.decisions.items()}
    by_service = {each.service: each for waiting in trials.values() for each in waiting}
    return PlannedGates(
        service_plans={
            ref: with_trial(each, by_service[ref], decisions.get(ref))
            if ref in by_service
            else each
            for ref, each in service_plans.items()
        },
        gates=plans,
    )


# A gate whose planning raises is left as it is, and so is a change.
planned_gate = Step[..., GatePlan | None](plan_gate, lambda *_: None)


def _with_storage(gate_plan: GatePlan, storage: StorageRoom) -> GatePlan:
    """Return the plan, without its next Job where the claim of the answers has no room."""
    if gate_plan.create is None or (refusal := storage.refuse_answers(gate_plan.gate)) is None:
        return gate_plan
    return without_storage(gate_plan, refusal)


def _with_trial(
    service_plan: ServicePlan, trial: ChangeTrial, decision: TrialDecision | None
) -> ServicePlan:
    """Return the plan of a service with what its gate decides, if it has one."""
    gated = service_plan.gated
    if gated is None:
        return service_plan
    decision = decision or decide_trial(trial, GateJobs())
    return replace(service_plan, gated=replace(gated, trial=decision))


with_trial = Step(_with_trial, lambda _error, service_plan, *_: service_plan)


def _jobs_by_gate(snapshot: Snapshot) -> Mapping[Ref, GateJobs]:
    by_gate = defaultdict[Ref, list[GateJob]](list)
    for job in snapshot.gate_jobs:
        by_gate[job.gate].append(job)
    if not by_gate:
        return {}
    runs: dict[str, GateJobRun] = {
        run.job_uid: run for pod in snapshot.pods if (run := pod.gate_job_run) is not None
    }
    progress = snapshot.fetch_progress
    return {
        ref: GateJobs(
            jobs=tuple(jobs),
            runs={job.uid: runs[job.uid] for job in jobs if job.uid in runs},
            answered={job.ref: said for job in jobs if (said := progress.get(job.ref)) is not None},
        )
        for ref, jobs in by_gate.items()
    }


def _trial(
    service_plan: ServicePlan,
    snapshot: Snapshot,
    gates: Mapping[Ref, ObservedGate],
    service_plans: Mapping[Ref, ServicePlan],
) -> ChangeTrial | None:
    """Return the change of a service, or its first version, that waits for its verdict."""
    gated, ref = service_plan.gated, service_plan.service.ref
    if gated is None or gated.state.phase != "Candidate":
        return None
    stable, serving = gated.state.stable, _serving_pod(service_plan, gated)
    spec, edited, tried = gated.state.spec, gated.state.candidate, service_plan.candidate
    gate = gates.get(Ref(ref.namespace, spec.rollout.gate_ref or ""))
    judge, judge_digest = _judge(snapshot, ref, gate, service_plans)
    last = service_plan.service.status.candidate
    if last is not None and last.digest != gated.state.digest:
        last = None
    is_unopposed = gated.state.lacks_baseline and not gated.state.is_of_precision
    first_seen = snapshot.at if stable is not None else service_plan.service.created
    task, tenant = pooling_task(spec), service_plan.service.status.tenant
    return ChangeTrial(
        at=snapshot.at,
        service=ref,
        slo=spec.slo,
        gate_ref=spec.rollout.gate_ref or "",
        gate=gate,
        baseline=_version(service_plan, stable, serving)
        if stable is not None and not is_unopposed
        else TriedVersion(digest=""),
        is_unopposed=is_unopposed,
        stable_lacks_devices=_lacks_devices(service_plan.pods),
        stable_outlook=_stable_outlook(gated, gate),
        demands_baseline=is_unopposed and not _has_min_score(gate),
        candidate=_version(
            tried or service_plan,
            edited,
            gated.pod if gated.address is not None else None,
            _choice_of(service_plan, serving) if stable is not None else None,
        ),
        judge=judge,
        judge_digest=judge_digest,
        has_tenant=tenant is not None and tenant.budget is not None,
        task=_TASKS.get(task or "", "chat"),
        vectors_of=gated.state.vectors_of,
        waits=_waits(gated, tried, last),
        overdue=_overdue(service_plan, gated),
        since=last.since if last is not None else first_seen,
    )


change_trial = Step(_trial, lambda *_: None)
# What a pooling model is asked for; rerankers rank documents, others compare their vectors.
_TASKS: Mapping[str, PromptTask] = {
    "Embed": "embed",
    "Tokens": "embed",
    "Classify": "rerank",
    "Score": "rerank",
}


def _version(
    service_plan: ServicePlan,
    revision: ServiceRevision | None,
    pod: Pod | None,
    beside: HardwareChoice | None = None,
) -> TriedVersion:
    """Return a version as its gate sees it; one that is not recorded yet is not asked.

    On the hardware of the stable version it costs what that does (`beside`): the pool where a
    device was free for the trial says nothing of the change.
    """
    choice = _choice_of(service_plan, pod)
    precision = (choice.fit.precision if choice is not None else None) or CHECKPOINT
    digest = answers = ""
    if revision is not None:
        digest, answers = digest_of(revision, precision), answers_of(revision, precision)
    spec, endpoint = service_plan.service.spec, None
    if pod is not None and pod.address is not None and spec is not None and revision is not None:
        model = spec.model.served_name or service_plan.service.ref.name
        most = spec.access.rate_limits.max_output_tokens
        endpoint = GateEndpoint(
            address=pod.address, model=model, max_output_tokens=most, variant=pod.variant
        )
    if choice is None:
        return TriedVersion(digest=digest, answers=answers, endpoint=endpoint)
    rate, hourly = choice.fit.limits.tokens_per_second, choice.hourly
    if beside is not None and _hardware(beside) == _hardware(choice):
        hourly = beside.hourly
    return TriedVersion(
        digest=digest,
        answers=answers,
        endpoint=endpoint,
        hardware=_hardware(choice),
        precision=precision,
        variant=choice.variant,
        # Both as predicted: only one of them can have been measured under load.
        per_million_tokens=per_million_tokens(hourly, rate) if rate > 0 else None,
    )


def _hardware(choice: HardwareChoice) -> str:
    return f"{choice.fit.hardware.product} {choice.fit.hardware.name}"


def _choice_of(service_plan: ServicePlan, pod: Pod | None) -> HardwareChoice | None:
    for variant in service_plan.variants:
        if pod is not None and variant.choice.variant == pod.variant:
            return variant.choice
    return service_plan.choice


def _serving_pod(service_plan: ServicePlan, gated: GatedPlan) -> Pod | None:
    """Return a replica of the version in force, where possible on the hardware of the other.

    None while replicas of another version or precision are being left, which gateways would ask as
    well.
    """
    tried, spec = service_plan.candidate, service_plan.service.spec
    variant = tried.choice.variant if tried is not None and tried.choice is not None else ""
    current = {each.choice.variant for each in service_plan.variants}
    pods = [
        pod
        for pod in service_plan.pods
        if pod.takes_requests and pod.address is not None and pod.draining_since is None
    ]
    if any((pod.variant, pod.template_digest) not in gated.own_templates for pod in pods):
        return None
    if spec is not None and spec.precision.variants and {pod.variant for pod in pods} - current:
        return None
    return min(pods, key=lambda pod: (pod.variant != variant, pod.ref), default=None)


def _has_min_score(gate: ObservedGate | None) -> bool:
    return gate is not None and gate.spec is not None and gate.spec.min_score is not None


def _lacks_devices(pods: Sequence[Pod]) -> bool:
    staying = [pod for pod in pods if not (pod.terminating or pod.ended)]
    return bool(staying) and all(pod.node is None for pod in staying)


def _stable_outlook(gated: GatedPlan, gate: ObservedGate | None) -> str:
    """Return until when the version in force has time for a replica that is ready."""
    stable, known = gated.state.stable, gated.readiness
    if stable is None or known is None or known.down_at is None:
        return ""
    then = "the change goes on without a baseline"
    if _has_min_score(gate):
        then = "spec.minScore alone decides on the change"
    elif gated.state.is_demanded and stable.has_served:
        then = "the change waits for spec.rollout.skipGate, since the platform demands a gate here"
    return (
        f"It counts as down from {known.down_at:%Y-%m-%dT%H:%M:%SZ} on unless a replica is ready "
        f"by then: {then}. "
    )


def _judge(
    snapshot: Snapshot,
    service: Ref,
    gate: ObservedGate | None,
    service_plans: Mapping[Ref, ServicePlan],
) -> tuple[GateEndpoint | None, str]:
    """Return where the judge of a gate answers, and the digest of its version."""
    spec = gate.spec if gate is not None else None
    if spec is None or spec.judge is None:
        return None, ""
    ref = Ref(service.namespace, spec.judge.service)
    judge, address = service_plans.get(ref), snapshot.addresses.get(ref)
    if judge is None or judge.service.spec is None or ref == service:
        return None, ""
    if judge.gated is not None and judge.gated.state.stable is not None:
        digest = answers_of(judge.gated.state.stable)
    else:
        status, written = judge.service.status, answers_digest(judge.service.spec)
        digest = version_digest(written, status.model, status.precisions, 0)
    if address is None or not any(pod.takes_requests for pod in judge.pods):
        return None, digest
    model = judge.service.spec.model.served_name or ref.name
    return GateEndpoint(address=address, model=model), digest


def _waits(
    gated: GatedPlan, tried: ServicePlan | None, last: CandidateStatus | None
) -> StatusVerdict[Progressing] | None:
    """Return why no replica of the changed version answers."""
    if gated.address is not None or tried is None:
        return None
    if tried.choice is None:
        accepted = tried.accepted
        verdict = accepted if not accepted.reason.is_true else tried.placement.verdict
        text = f"the changed version is not placed: {verdict.message}"
        return StatusVerdict(Progressing.NO_SURGE_CAPACITY, text)
    if gated.missing_device is not None:
        since = last.missing_device_since if last is not None else None
        text = f" since {since:%Y-%m-%dT%H:%M:%SZ}" if since is not None else ""
        message = f"the changed version waits for a device{text}: {gated.missing_device}"
        return StatusVerdict(Progressing.NO_SURGE_CAPACITY, message)
    failure = startup_failure(tried.service.spec, tried.pods, tried.current_workloads)
    if failure is None:
        return None
    return StatusVerdict(failure.reason, f"the changed version: {failure.message}")


def _overdue(service_plan: ServicePlan, gated: GatedPlan) -> str | None:
    tried = service_plan.candidate
    if not gated.is_overdue or tried is None:
        return None
    failure = startup_failure(tried.service.spec, tried.pods, tried.current_workloads)
    text = "the replica of the changed version was not ready 10 minutes after its expected start"
    return f"{text}: {failure.message}" if failure is not None else text
