"""What statuses say of changes under a gate: of the service, and of the gate that tries them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tessera.api.gate_reasons import GateOutcome
from tessera.api.meta import format_duration
from tessera.api.quality_gate import QualityGateStatus, VerdictStatus
from tessera.api.reasons import Progressing, Ready, StatusVerdict
from tessera.api.rollout import MAX_RECORDS, BeforeAndAfter, RolloutRecord
from tessera.api.service_status import CandidateStatus, InferenceServiceStatus
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.planning.service_plan import GatedPlan, ServicePlan
from tessera.domain.quality.gates import GatePlan, refusal_text
from tessera.domain.quality.rollout_state import VersionState, is_gated
from tessera.domain.rollout.template_rollout import START_TOLERANCE
from tessera.domain.status.conditions import conditions

# Those that skipped a gate stay so long, however many follow.
SKIPPED_RECORD_AGE = timedelta(days=30)
_MOST_OTHERS = 10
_TAKEN_BACK = frozenset({GateOutcome.WITHDRAWN, GateOutcome.REPLACED})


def gate_status(gate_plan: GatePlan, at: datetime) -> QualityGateStatus:
    """Return the status of a gate."""
    gate = gate_plan.gate
    accepted = conditions({"Accepted": gate_plan.accepted}, gate, at)
    update = {"observed_generation": gate.generation, "conditions": accepted}
    return gate_plan.status.model_copy(update=update)


def gated_verdict(
    service_plan: ServicePlan, verdict: StatusVerdict[Progressing]
) -> StatusVerdict[Progressing]:
    """Return what is said of a change that waits or was refused.

    Where the service has trouble, that is said of one that was refused, and behind what is said of
    one that waits: who mends the trouble by it has to know what it waits for.
    """
    gated = service_plan.gated
    if gated is None or not verdict.reason.is_true:
        return _trouble(gated, verdict)
    state = gated.state
    if state.is_of_precision and (gated.trial is None or gated.trial.outcome is not None):
        # No edit waits, so nothing of the service is rolled back.
        return verdict
    if state.phase == "Refused":
        record = next((r for r in _refusals(service_plan) if r.digest == state.digest), None)
        reason, message = GateOutcome.FAILED.value, ""
        if state.verdict is not None:
            reason, message = state.verdict.reason, state.verdict.message
        elif record is not None:
            reason, message = record.reason, record.message
        is_open = reason == GateOutcome.INCONCLUSIVE
        word = Progressing.GATE_INCONCLUSIVE if is_open else Progressing.ROLLED_BACK
        is_first = state.stable is None
        return StatusVerdict(word, refusal_text(reason, message, is_first=is_first))
    if state.phase != "Candidate":
        return verdict
    reading = StatusVerdict(Progressing.GATE_RUNNING, "the changed version is being read")
    return gated.trial.progressing if gated.trial is not None else reading


def _trouble(
    gated: GatedPlan | None, verdict: StatusVerdict[Progressing]
) -> StatusVerdict[Progressing]:
    """Return the trouble of a service, behind what its change waits for."""
    if gated is None or gated.trial is None or gated.state.phase != "Candidate":
        return verdict
    if gated.state.stable is None:
        return verdict
    text = f"{gated.trial.progressing.message} The version in force: {verdict.message}"
    return StatusVerdict(verdict.reason, text)


def first_version_verdict(
    service_plan: ServicePlan, verdict: StatusVerdict[Ready]
) -> StatusVerdict[Ready]:
    """Return what is said of a first version that serves no users yet, unless it has no place."""
    gated = service_plan.gated
    if gated is None or not gated.state.is_closed or verdict.reason in _WITHOUT_PLACE:
        return verdict
    idle = StatusVerdict(Progressing.GATE_RUNNING, "")
    progressing = gated_verdict(service_plan, idle)
    is_running = progressing.reason is Progressing.GATE_RUNNING
    reason = Ready.GATE_RUNNING if is_running else Ready.GATE_NOT_PASSED
    return StatusVerdict(reason, progressing.message)


_WITHOUT_PLACE = (Ready.NOT_PLACED, Ready.BUDGET_EXHAUSTED)


def _refusals(service_plan: ServicePlan) -> Sequence[RolloutRecord]:
    return [each for each in service_plan.service.status.rollouts if each.is_refused]


def rollout_fields(
    service_plan: ServicePlan, tried: InferenceServiceStatus | None, at: datetime
) -> Mapping[str, Any]:
    """Return the fields of a service's status about its versions.

    `tried` is the status of the version that is tried, as if it were a service.
    """
    gated, status = service_plan.gated, service_plan.service.status
    if gated is None and is_gated(service_plan.service):
        # It was set aside: its versions stay what they are.
        names = ("stable_revision", "candidate_revision", "candidate", "rollouts")
        return {name: getattr(status, name) for name in names}
    if gated is None:
        records = (*_ungated_records(status, at), *status.rollouts)
        return {"rollouts": _retained(records, None, at)}
    state = gated.state
    stable = state.stable.ref.name if state.stable is not None else None
    if state.is_lost:
        # It stays in force until the change that goes on without it has its number.
        stable = status.stable_revision
    records = (*_new_records(gated, status, at), *status.rollouts)
    waits = state.is_closed or state.phase not in ("First", "Stable", "Refused")
    return {
        "stable_revision": stable,
        "candidate_revision": state.revision_name if waits else None,
        "candidate": _candidate(gated, tried, status.candidate, at) if tried is not None else None,
        "rollouts": _retained(records, state.digest, at),
    }


def _ungated_records(status: InferenceServiceStatus, at: datetime) -> Sequence[RolloutRecord]:
    """Return that a change went on since its service has no gate any more."""
    if status.candidate is None:
        return ()
    return (
        RolloutRecord(
            revision=status.candidate.revision,
            digest=status.candidate.digest,
            baseline=status.stable_revision or "",
            reason=GateOutcome.NOT_GATED,
            message="spec.rollout.strategy was Gated while the change was tried",
            ended_at=at.replace(microsecond=0),
            skipped=True,
        ),
    )


def _candidate(
    gated: GatedPlan, tried: InferenceServiceStatus, last: CandidateStatus | None, at: datetime
) -> CandidateStatus:
    state, now = gated.state, at.replace(microsecond=0)
    if last is not None and last.digest != state.digest:
        last = None
    missing_since = last.missing_device_since if last is not None else None
    missing = gated.missing_device
    return CandidateStatus(
        revision=state.revision_name,
        digest=state.digest,
        since=last.since if last is not None else now,
        model=tried.model,
        precisions=tried.precisions,
        variant=tried.variant,
        pod_template_version=tried.pod_template_version,
        templates=tried.templates,
        start=tried.start,
        missing_device=missing[:1024] if missing is not None else None,
        missing_device_since=(missing_since or now) if missing is not None else None,
    )


def down_text(stable: ServiceRevision) -> str:
    """Return why no change is compared with a version that does not run."""
    name, span = f"ControllerRevision/{stable.ref.name}", format_duration(START_TOLERANCE)
    if stable.has_served:
        return (
            f"the containers of {name} failed for the expected start and {span}, and the gate has "
            "no answers of it"
        )
    return f"no replica of {name} was ever ready, {span} after the expected start"


def is_recorded(gated: GatedPlan, status: InferenceServiceStatus, at: datetime) -> bool:
    """Return whether a status as it was written says how the change ended.

    A version that is in force by then has no record, so it waits for this.
    """
    return gated.state.phase == "First" or not _new_records(gated, status, at)


def _new_records(
    gated: GatedPlan, status: InferenceServiceStatus, at: datetime
) -> Sequence[RolloutRecord]:
    """Return how the change ended that did so now; the latest record says it once."""
    ended, state = _ending(gated, status), gated.state
    if ended is None:
        return ()
    reason, message, verdict = ended
    revision, digest = state.revision_name, state.digest
    if reason in _TAKEN_BACK and status.candidate is not None:
        revision, digest = status.candidate.revision, status.candidate.digest
    latest = next(iter(status.rollouts), None)
    if latest is not None and (latest.digest, latest.reason) == (digest, reason):
        return ()
    skip = state.spec.rollout.skip_gate if reason is GateOutcome.SKIPPED else None
    record = RolloutRecord(
        revision=revision,
        digest=digest,
        baseline=state.stable.ref.name if state.stable is not None else "",
        changes=() if reason in _TAKEN_BACK else tuple(state.changes[:16]),
        by=skip.by if skip is not None else "",
        reason=reason,
        message=message,
        ended_at=at.replace(microsecond=0),
        skipped=skip is not None,
        is_refused=_is_refused(gated),
        **_columns(verdict),
    )
    return (record,)


def _ending(
    gated: GatedPlan, status: InferenceServiceStatus
) -> tuple[GateOutcome, str, VerdictStatus | None] | None:
    """Return reason, numbers and verdict of the change that ended; None while none did."""
    state, last, trial = gated.state, status.candidate, gated.trial
    if state.phase in ("Passed", "Refused") and state.verdict is not None:
        return GateOutcome(state.verdict.reason), state.verdict.message, state.verdict
    if (untried := _untried_ending(state)) is not None:
        return *untried, None
    if state.phase == "Candidate" and trial is not None and trial.outcome is not None:
        return trial.outcome.reason, trial.outcome.message, trial.verdict
    reason, message = GateOutcome.REPLACED, "a newer edit took its place"
    if state.phase == "Stable":
        reason, message = GateOutcome.WITHDRAWN, "the spec is again that of the stable version"
        version, _, precision = last.digest.partition("/") if last is not None else ("", "", "")
        if precision and version == state.digest:
            message = "the precision would not be chosen any more"
            if precision not in state.untried:
                return None
    is_other = last is not None and last.digest != state.digest
    return (reason, message, None) if is_other else None


def _untried_ending(state: VersionState) -> tuple[GateOutcome, str] | None:
    """Return reason and message of a change that goes on without a verdict."""
    skip = state.spec.rollout.skip_gate
    if state.phase == "Skipped" and skip is not None:
        return GateOutcome.SKIPPED, skip.reason
    if state.phase == "RolledBack":
        return GateOutcome.ROLLED_BACK_TO, "it was in force before"
    if state.phase == "NoBaseline" and state.stable is not None:
        return GateOutcome.NO_BASELINE, down_text(state.stable)
    return None


def _is_refused(gated: GatedPlan) -> bool:
    if gated.state.phase == "Refused":
        return True
    trial = gated.trial
    return (
        trial is not None
        and trial.outcome is not None
        and trial.progressing.reason is not Progressing.GATE_RUNNING
    )


def _columns(verdict: VerdictStatus | None) -> Mapping[str, BeforeAndAfter]:
    """Return quality, latency and cost before and after, as far as both are known."""
    if verdict is None or not verdict.baseline:
        return {}
    columns = dict[str, BeforeAndAfter]()
    if (total := next((each for each in verdict.strata if each.name == "total"), None)) is not None:
        columns["quality"] = BeforeAndAfter(before=total.baseline, after=total.candidate)
    for name in ("ttft_p95_seconds", "usd_per_million_tokens", "usd_per_quality_adjusted_mtok"):
        before: Decimal | None = getattr(verdict.baseline_answers, name, None)
        after: Decimal | None = getattr(verdict.candidate_answers, name, None)
        if before is not None and after is not None:
            columns[name] = BeforeAndAfter(before=before, after=after)
    return columns


def _retained(
    records: Sequence[RolloutRecord], digest: str | None, at: datetime
) -> tuple[RolloutRecord, ...]:
    """Return the latest records, and those of skipped gates; `digest` is what the spec has."""
    version = digest.partition("/")[0] if digest is not None else None
    skipped = [each for each in records if each.skipped and at - each.ended_at < SKIPPED_RECORD_AGE]
    others = [each for each in records if not each.skipped][:_MOST_OTHERS]
    latest = sorted((*skipped, *others), key=lambda each: each.ended_at, reverse=True)
    # A refusal ends once the spec changes, and the version is tried again if it is written again.
    return tuple(
        each.model_copy(update={"is_refused": False})
        if each.is_refused and each.digest.partition("/")[0] != version
        else each
        for each in latest[:MAX_RECORDS]
    )
