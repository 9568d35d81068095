"""What a gate does next for the changes that are tried on it, and what it decides.

One Job runs at a time, since its claim is mounted by one node: first the stable version answers the
suite, then the changed one, whose Job judges. What counts is in statuses, on the claim and in the
Jobs, so a lost status or Job costs a repetition and never the stable version.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tessera.api.gate_reasons import LATE_REFUSALS, GateAccepted, GateOutcome
from tessera.api.meta import format_duration
from tessera.api.quality_gate import (
    MAX_VERDICTS,
    AnswersStatus,
    GateProgress,
    QualityGateSpec,
    QualityGateStatus,
    SuiteStatus,
    VerdictStatus,
)
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.api.text import counted, one_line
from tessera.domain.observed.gate_reports import GateJobState, GateReport, gate_report
from tessera.domain.observed.gates import GateJob, GateRole, ObservedGate
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.quality.comparison import NO_ANSWERS, judged, with_cost
from tessera.domain.quality.gate_jobs import (
    GateJobRequest,
    GateRun,
    attempt_name,
    attempt_of,
    run_of,
    scorer_of,
    verdict_scorer,
)
from tessera.domain.quality.trial import ChangeTrial, GateJobs, TriedVersion

# Jobs of one run: each goes on where the last one ended, if that one said what it had answered.
MAX_ATTEMPTS = 3
# So often the device of the changed version may go back to users meanwhile.
MAX_RETURNS = 9
# A suite or judge that decides nothing is looked at again.
RETRY = timedelta(minutes=5)
# The changed version needs a device to be judged again, and has none until then.
JUDGE_RETRY = timedelta(hours=6)
GATEWAY_RETRY = timedelta(minutes=30)
# The pod of a Job that ended is seen before or after the Job's own condition.
_REPORT_TIME = timedelta(seconds=30)
# What a Job may say of suite and judge: then the gate decides nothing.
_PROBLEMS: Mapping[GateJobState, GateAccepted] = {
    "suiteNotFound": GateAccepted.SUITE_NOT_FOUND,
    "suiteInvalid": GateAccepted.SUITE_INVALID,
    "suiteChanged": GateAccepted.SUITE_CHANGED,
    "judgeNotFound": GateAccepted.JUDGE_NOT_FOUND,
    "judgeUnreliable": GateAccepted.JUDGE_UNRELIABLE,
    "requestsRefused": GateAccepted.REQUESTS_REFUSED,
    "gatewayAway": GateAccepted.GATEWAY_UNREACHABLE,
}
_WAY_OUT = (
    "The change goes on at once by spec.rollout.skipGate, which needs the verb bypass on "
    "qualitygates"
)
# Most characters of a failed Job's last line that a condition repeats.
_FAILURE_LENGTH = 512
_DONE: Mapping[GateRole, GateJobState] = {"Baseline": "answered", "Candidate": "judged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialDecision:
    """What is done for one change, and what is said of it."""

    progressing: StatusVerdict[Progressing]
    """Of the service, while nothing more urgent is."""
    outcome: StatusVerdict[GateOutcome] | None = None
    """How the trial ended, once it did."""
    verdict: VerdictStatus | None = None
    """With its numbers, if both versions answered."""
    answers: AnswersStatus | None = None
    """Of the version that answered in this cycle."""
    suite: SuiteStatus | None = None
    problem: StatusVerdict[GateAccepted] | None = None
    """Why the gate decides nothing."""
    create: GateJobRequest | None = None
    lost: str = ""
    """Digest of a version whose answers the claim has no more."""
    retained: tuple[Ref, ...] = ()
    """Jobs that go on, or whose end is needed."""
    progress: GateProgress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """The status of one gate, and the Jobs that it creates and deletes."""

    gate: ObservedGate
    status: QualityGateStatus
    """But for its conditions."""
    accepted: StatusVerdict[GateAccepted]
    decisions: Mapping[Ref, TrialDecision]
    """By service."""
    create: GateJobRequest | None = None
    delete: tuple[Ref, ...] = ()
    progress_addresses: Mapping[Ref, str] = field(default_factory=dict)
    """Where Jobs that run say how many prompts are answered."""


def plan_gate(gate: ObservedGate, trials: Iterable[ChangeTrial], jobs: GateJobs) -> GatePlan:
    """Decide for all changes that are tried on a gate; the one whose Job runs goes first.

    One that waits for a device leaves the gate to others meanwhile.
    """
    busy = {job.service for job in jobs.jobs}
    running = {job.ref for job in jobs.jobs if not jobs.has_ended(job)}
    decided = [(each, decide_trial(each, jobs)) for each in trials]
    runs = {trial.service: not running.isdisjoint(each.retained) for trial, each in decided}

    def order(trial: ChangeTrial) -> tuple[object, ...]:
        service = trial.service
        return not runs[service], service not in busy, trial.since, service

    decided.sort(key=lambda each: order(each[0]))
    decisions = dict[Ref, TrialDecision]()
    holder: Ref | None = None
    for trial, decision in decided:
        decisions[trial.service] = decision
        if decision.create is None and not runs[trial.service]:
            continue
        if holder is not None:
            waiting = _waiting(trial, f"InferenceService/{holder.name} is tried on it now")
            # What its Jobs said is needed once it is its turn.
            ended = tuple(ref for ref in decision.retained if ref not in running)
            decisions[trial.service] = replace(waiting, retained=ended)
        holder = holder or trial.service
    retained = {ref for each in decisions.values() for ref in each.retained}
    # Of other services, edits and gates: nothing waits for what they would say.
    delete = tuple(sorted(job.ref for job in jobs.jobs if job.ref not in retained))
    create = next((each.create for each in decisions.values() if each.create is not None), None)
    return GatePlan(
        gate=gate,
        status=_status(gate, tuple(decisions.values())),
        accepted=_accepted(gate, tuple(decisions.values()), [each.at for each, _ in decided]),
        decisions=decisions,
        # The claim is free once the pods before it are gone.
        create=create if not delete else None,
        delete=delete,
        progress_addresses={
            job.ref: run.address
            for job in jobs.jobs
            if (run := jobs.runs.get(job.uid)) is not None and run.address is not None
        },
    )


def without_storage(gate_plan: GatePlan, refusal: str) -> GatePlan:
    """Return the plan without its next Job, since the claim of the answers has no room."""
    problem = StatusVerdict(GateAccepted.STORAGE_QUOTA_EXCEEDED, refusal)
    progressing = StatusVerdict(
        Progressing.GATE_NOT_ACCEPTED,
        f"QualityGate/{gate_plan.gate.ref.name}: {problem.reason}: {refusal}",
    )
    return replace(
        gate_plan,
        create=None,
        accepted=problem,
        decisions={
            ref: replace(each, create=None, problem=problem, progressing=progressing)
            if each.create is gate_plan.create
            else each
            for ref, each in gate_plan.decisions.items()
        },
    )


def decide_trial(trial: ChangeTrial, jobs: GateJobs) -> TrialDecision:
    """Return what is done for a change, as if it had the gate for itself."""
    gate, spec = trial.gate, trial.gate.spec if trial.gate is not None else None
    if gate is None or spec is None:
        lack = "does not exist" if gate is None else f"is not valid: {gate.problem}"
        return _hold(
            Progressing.GATE_NOT_FOUND if gate is None else Progressing.GATE_NOT_ACCEPTED,
            f"spec.rollout.gateRef: QualityGate/{trial.gate_ref} {lack}. {trial.waits_text}; "
            "create or correct the gate, or take the change back.",
        )
    if trial.vectors_of is not None:
        message = (
            f"spec.model: vectors of {trial.vectors_of} do not compare with those that are stored. "
            f"{trial.waits_text}; to try it, set "
            f"spec.rollout.vectorsOf: {trial.vectors_of}"
        )
        return TrialDecision(progressing=StatusVerdict(Progressing.VECTORS_CHANGE, message))
    if (verdict := recorded_verdict(gate, trial)) is not None:
        return _concluded(trial, spec, verdict)
    if trial.demands_baseline:
        return _hold(
            Progressing.NO_BASELINE,
            f"QualityGate/{trial.gate_ref}: no replica of the stable version is ready, it has no "
            "answers to compare the change with, and the platform demands a gate here. The change "
            "waits until a replica is ready again, or spec.minScore of the gate is set and decides "
            f"alone. {_WAY_OUT}.",
        )
    if trial.overdue is not None:
        return _ended(trial, GateOutcome.NOT_READY, trial.overdue)
    return _Rounds(trial, gate, spec, jobs).decide()


def recorded_verdict(gate: ObservedGate, trial: ChangeTrial) -> VerdictStatus | None:
    """Return the verdict on the same versions by the same suite, scorers and margins."""
    suite, spec = gate.status.suite, gate.spec
    if suite is None or spec is None:
        return None
    scorer = verdict_scorer(spec, trial.judge_digest)
    pair = trial.candidate.digest, trial.baseline.digest
    return next(
        (
            each
            for each in gate.status.verdicts
            if (each.candidate, each.baseline) == pair
            and (each.suite, each.scorer) == (spec.suite.digest or suite.digest, scorer)
        ),
        None,
    )


@dataclass(frozen=True, slots=True)
class _Rounds:
    """The two runs of a suite that a change needs."""

    trial: ChangeTrial
    gate: ObservedGate
    spec: QualityGateSpec
    jobs: GateJobs

    def decide(self) -> TrialDecision:
        baseline = self.trial.baseline
        if self.trial.is_first or self._answers_of(baseline) is not None:
            return self._round("Candidate", self.trial.candidate)
        # Answers to another suite or of another judge are none: a service that sleeps is woken.
        decision = replace(self._round("Baseline", baseline), lost=baseline.digest)
        # What the other Job said, and how many there were, is needed once these answers are known.
        job = self._last_job(self._run("Candidate", self.trial.candidate))
        if job is None or not self._has_ended(job):
            return decision
        return replace(decision, retained=(*decision.retained, job.ref))

    def _last_job(self, run: GateRun) -> GateJob | None:
        attempts = (job for job in self.jobs.jobs if run_of(job.ref.name) == run.name)
        return max(attempts, key=lambda each: attempt_of(each.ref.name), default=None)

    def _answers_of(self, version: TriedVersion) -> AnswersStatus | None:
        suite = self.gate.status.suite
        digest = self.spec.suite.digest or (suite.digest if suite is not None else None)
        key = version.digest, digest, scorer_of(self.spec, self.trial.judge_digest)
        known = self.gate.status.answers
        return next((a for a in known if (a.digest, a.suite, a.scorer) == key), None)

    def _run(self, role: GateRole, version: TriedVersion) -> GateRun:
        return GateRun(
            gate=self.gate,
            spec=self.spec,
            service=self.trial.service,
            role=role,
            digest=version.digest,
            baseline=self.trial.baseline.digest if role == "Candidate" else "",
            scorer=scorer_of(self.spec, self.trial.judge_digest),
        )

    def _round(self, role: GateRole, version: TriedVersion) -> TrialDecision:
        run = self._run(role, version)
        job, last = self._last_job(run), self._last_progress(run)
        if job is None:
            # What was answered before requests were refused is not paid for again.
            digest = last.answers_digest if last is not None else ""
            return replace(self._start(run, version, 1, digest), progress=last)
        pod = self.jobs.runs.get(job.uid)
        report = gate_report(pod.report) if pod is not None else None
        if report is not None and not _is_of(report, run):
            report = None
        if report is not None and report.state in _PROBLEMS:
            return self._undecided(run, job, report)
        if report is not None and report.state == _DONE[role]:
            # The Job stays until the status has what it said.
            return replace(self._answered(run, version, report), retained=(job.ref,))
        if self._has_ended(job):
            return self._again(run, version, job, report)
        if job.refusal is not None:
            problem = StatusVerdict(GateAccepted.FAILED_CREATE, job.refusal)
            return replace(self._running(run, job), problem=problem)
        return self._running(run, job)

    def _start(
        self,
        run: GateRun,
        version: TriedVersion,
        attempt: int,
        answers_digest: str = "",
        *,
        failure: str = "",
    ) -> TrialDecision:
        trial, refusal = self.trial, self.gate.refusal
        if refusal is not None and refusal.reason in LATE_REFUSALS:
            return self._refused(refusal)
        if version.endpoint is None:
            if run.role == "Candidate" and trial.waits is not None:
                return TrialDecision(progressing=trial.waits)
            text = f"0 replicas of the {self._which(run)} version answer{_failure_text(failure)}"
            if run.role == "Candidate":
                return _waiting(trial, text)
            reason = Progressing.GATE_RUNNING
            if trial.stable_lacks_devices:
                reason, text = Progressing.NO_SURGE_CAPACITY, f"{text}: none of them has a device"
            message = f"QualityGate/{trial.gate_ref}: {text}. {trial.stable_outlook}{_WAY_OUT}."
            return _hold(reason, message)
        if self.spec.judge is not None and trial.judge is None and not trial.is_first:
            text = f"spec.judge: InferenceService/{self.spec.judge.service} does not answer"
            problem = StatusVerdict(GateAccepted.JUDGE_NOT_FOUND, text)
            return replace(_waiting(trial, text), problem=problem)
        baseline = self._answers_of(trial.baseline) if run.role == "Candidate" else None
        request = GateJobRequest(
            run=run,
            name=attempt_name(run.name, attempt),
            endpoint=version.endpoint,
            judge=trial.judge,
            task=trial.task,
            has_tenant=trial.has_tenant,
            answers_digest=answers_digest,
            baseline_digest=baseline.file_digest if baseline is not None else "",
            active_deadline=self.spec.timeout,
        )
        starting = _waiting(trial, f"its Job {request.name} starts{_failure_text(failure)}")
        return replace(starting, create=request)

    def _running(self, run: GateRun, job: GateJob) -> TrialDecision:
        said = self.jobs.answered.get(job.ref, FetchProgress(done=0))
        answered, prompts = said.done, said.total or 0
        which, after = self._which(run), "then both are compared"
        if run.is_first:
            after = f"which needs spec.minScore {self.spec.min_score}"
        if run.role == "Baseline":
            after = "then the changed version answers it"
        count = f"answered {answered} of {counted(prompts, 'prompt')}"
        last = self._last_progress(run) if attempt_of(job.ref.name) > 1 else None
        failure = last.failure if last is not None else ""
        text = f"the {which} version {count if prompts else 'is asked'}, {after}"
        text += _failure_text(failure)
        progress = GateProgress(
            service=run.service.name,
            role=run.role,
            answered=answered,
            prompts=prompts,
            answers_digest=said.digest,
            failure=failure,
        )
        running = _waiting(self.trial, text)
        return replace(running, progress=progress if prompts else last, retained=(job.ref,))

    def _last_progress(self, run: GateRun) -> GateProgress | None:
        """Return what a Job said before this cycle, which is what a killed one said last."""
        key = run.service.name, run.role
        progress = self.gate.status.progress
        return next((each for each in progress if (each.service, each.role) == key), None)

    def _undecided(self, run: GateRun, job: GateJob, report: GateReport) -> TrialDecision:
        """Return that the gate decides nothing, until its Job has looked again."""
        problem = StatusVerdict(_PROBLEMS[report.state], report.message)
        retained = () if self._age(job) >= RETRY else (job.ref,)
        progress = GateProgress(
            service=run.service.name,
            role=run.role,
            answered=report.answered,
            prompts=sum(report.prompts.values()),
            answers_digest=report.answers_digest,
        )
        refused = self._refused(problem)
        return replace(refused, problem=problem, retained=retained, progress=progress)

    def _refused(self, problem: StatusVerdict[GateAccepted]) -> TrialDecision:
        text, again = problem.message.removesuffix("."), ""
        if problem.reason in LATE_REFUSALS:
            span = format_duration(_retry(problem))
            again = f"; it is asked again after {span}, or once spec changes"
        return _hold(
            Progressing.GATE_NOT_ACCEPTED,
            f"QualityGate/{self.gate.ref.name}: {problem.reason}: {text}. "
            f"{self.trial.waits_text}{again}.",
        )

    def _again(
        self, run: GateRun, version: TriedVersion, job: GateJob, report: GateReport | None
    ) -> TrialDecision:
        """Return the next attempt after one that ended without an answer, or that none follows."""
        state = report.state if report is not None else None
        is_missing, is_away = state == "baselineMissing", state == "engineAway"
        attempt = attempt_of(job.ref.name) + (10 if is_away else 1)
        if not (is_missing or is_away) and self._age(job) >= self.spec.timeout:
            ended = _ended(
                self.trial,
                GateOutcome.TIMED_OUT,
                f"the {self._which(run)} version did not answer the suite within spec.timeout of "
                f"QualityGate/{self.gate.ref.name}",
            )
            return replace(ended, retained=(job.ref,))
        if attempt % 10 > MAX_ATTEMPTS or attempt // 10 > MAX_RETURNS:
            ended = _ended(
                self.trial,
                GateOutcome.JOB_FAILED,
                f"Job/{job.ref.name}, the last attempt, ended without an answer: "
                f"{self._last_words(job, report)}",
            )
            return replace(ended, retained=(job.ref,))
        answers = self._answers_of(self.trial.baseline)
        if answers is not None and is_missing and not _is_newer(answers, job):
            # The claim lost them, so the stable version is asked again.
            lost = _waiting(self.trial, "the answers of the stable version are lost")
            return replace(lost, lost=answers.digest, retained=(job.ref,))
        last = self._last_progress(run)
        digest = last.answers_digest if last is not None else ""
        if report is not None:
            digest = report.answers_digest
        failure = self._last_words(job, report)
        known = last or GateProgress(service=run.service.name, role=run.role, answered=0, prompts=0)
        start = self._start(run, version, attempt, digest, failure=failure)
        # The number of the last attempt is in the name of its Job alone.
        return replace(
            start,
            retained=(job.ref,),
            progress=known.model_copy(update={"failure": failure}),
        )

    def _last_words(self, job: GateJob, report: GateReport | None) -> str:
        """Return what a Job said that ended without an answer."""
        if report is not None and report.message:
            return one_line(report.message, _FAILURE_LENGTH)
        pod = self.jobs.runs.get(job.uid)
        lines = pod.report.splitlines() if pod is not None and report is None else ()
        last = next((line for line in reversed(lines) if line.strip()), "no report")
        return one_line(last, _FAILURE_LENGTH)

    def _which(self, run: GateRun) -> str:
        if run.is_first and not self.trial.is_unopposed:
            return "first"
        return "stable" if run.role == "Baseline" else "changed"

    def _age(self, job: GateJob) -> timedelta:
        return self.trial.at - job.created if job.created is not None else timedelta()

    def _has_ended(self, job: GateJob) -> bool:
        """Return whether nothing of a Job runs; one whose pod is gone may not say that it ended."""
        is_over = self._age(job) >= self.spec.timeout + _REPORT_TIME
        return self.jobs.has_ended(job) or is_over

    def _answered(self, run: GateRun, version: TriedVersion, report: GateReport) -> TrialDecision:
        suite = SuiteStatus(digest=report.suite, prompts=dict(report.prompts))
        if run.role == "Candidate":
            answers = self._answers_of(self.trial.baseline)
            scorer = verdict_scorer(self.spec, self.trial.judge_digest)
            verdict = judged(self.trial, report, answers).model_copy(update={"scorer": scorer})
            return replace(_concluded(self.trial, self.spec, verdict), verdict=verdict, suite=suite)
        answers = AnswersStatus(
            digest=version.digest,
            suite=suite.digest,
            scorer=run.scorer,
            file_digest=report.answers_digest,
            hardware=version.hardware,
            answered_at=self.trial.at,
            answers=with_cost(report.answers or NO_ANSWERS, version),
        )
        text = "the stable version answered the suite, the changed one is next"
        return replace(_waiting(self.trial, text), answers=answers, suite=suite)


def _is_of(report: GateReport, run: GateRun) -> bool:
    """Return whether a report says that it is of what was asked; any process may write one."""
    baseline = run.baseline if run.role == "Candidate" else report.baseline
    is_pinned = run.spec.suite.digest in (None, report.suite)
    return (report.version, report.baseline, report.scorer) == (
        run.digest,
        baseline,
        run.scorer,
    ) and (report.state not in _DONE.values() or (bool(report.suite) and is_pinned))


def _is_newer(answers: AnswersStatus, job: GateJob) -> bool:
    return job.created is not None and answers.answered_at >= job.created


def _hold(reason: Progressing, message: str) -> TrialDecision:
    return TrialDecision(progressing=StatusVerdict(reason, message))


def _waiting(trial: ChangeTrial, text: str) -> TrialDecision:
    users = "Users have none yet." if trial.is_first else "Users have the stable version."
    if trial.is_unopposed:
        users = "The stable version is down."
    message = f"QualityGate/{trial.gate_ref}: {text}. {users}"
    return TrialDecision(progressing=StatusVerdict(Progressing.GATE_RUNNING, message))


def _ended(trial: ChangeTrial, outcome: GateOutcome, message: str) -> TrialDecision:
    text = refusal_text(outcome, message, is_first=trial.is_first and not trial.is_unopposed)
    return TrialDecision(
        outcome=StatusVerdict(outcome, message),
        progressing=StatusVerdict(Progressing.ROLLED_BACK, text),
    )


def _concluded(trial: ChangeTrial, spec: QualityGateSpec, verdict: VerdictStatus) -> TrialDecision:
    """Return how a change ends by its verdict, and by what the gate requires."""
    outcome = StatusVerdict(GateOutcome(verdict.reason), verdict.message)
    if spec.lets_pass(outcome.reason):
        text = f"{verdict.reason}: {verdict.message.removesuffix('.')}; the change is rolled out"
        return TrialDecision(
            outcome=outcome, progressing=StatusVerdict(Progressing.GATE_RUNNING, text)
        )
    is_first = trial.is_first and not trial.is_unopposed
    text = refusal_text(outcome.reason, verdict.message, is_first=is_first)
    is_open = outcome.reason is GateOutcome.INCONCLUSIVE
    reason = Progressing.GATE_INCONCLUSIVE if is_open else Progressing.ROLLED_BACK
    return TrialDecision(outcome=outcome, progressing=StatusVerdict(reason, text))


def refusal_text(outcome: str, message: str, *, is_first: bool) -> str:
    """Return what a user reads of a change, or of a first version, that was refused."""
    after = "Nothing serves" if is_first else "The stable version stays"
    return f"{outcome}: {message.removesuffix('.')}. {after} until the spec changes."


def _status(gate: ObservedGate, decisions: Sequence[TrialDecision]) -> QualityGateStatus:
    """Return the status with what is new, the latest first."""
    status = gate.status
    new = [each.answers for each in decisions if each.answers is not None]
    lost = {each.lost for each in decisions}
    answers = (*new, *(each for each in status.answers if each.digest not in lost))
    verdicts = [each.verdict for each in decisions if each.verdict is not None]
    suites = [each.suite for each in decisions if each.suite is not None]
    return status.model_copy(
        update={
            "suite": suites[-1] if suites else status.suite,
            "progress": tuple(each.progress for each in decisions if each.progress is not None),
            "answers": tuple(answers[:MAX_VERDICTS]),
            "verdicts": (*verdicts, *status.verdicts)[:MAX_VERDICTS],
        }
    )


def _retry(refusal: StatusVerdict[GateAccepted]) -> timedelta:
    """Return after how long a gate is asked again that has a device no more."""
    is_away = refusal.reason is GateAccepted.GATEWAY_UNREACHABLE
    return GATEWAY_RETRY if is_away else JUDGE_RETRY


def _failure_text(failure: str) -> str:
    return f"; its last Job failed: {failure}" if failure else ""


def _accepted(
    gate: ObservedGate, decisions: Sequence[TrialDecision], now: Sequence[datetime]
) -> StatusVerdict[GateAccepted]:
    if gate.spec is None:
        return StatusVerdict(GateAccepted.INVALID_SPEC, gate.problem or "")
    for decision in decisions:
        if decision.problem is not None:
            return decision.problem
    has_result = any(each.suite is not None for each in decisions)
    last = next((each for each in gate.status.conditions if each.type == "Accepted"), None)
    is_current = last is not None and last.observed_generation == gate.generation
    refusal = gate.refusal
    if last is not None and refusal is not None and refusal.reason in LATE_REFUSALS:
        is_current = all(at - last.last_transition_time < _retry(refusal) for at in now)
    # What is looked at in each cycle.
    is_unread = last is not None and last.reason in {
        GateAccepted.SUITE_NOT_READ,
        GateAccepted.STORAGE_QUOTA_EXCEEDED,
    }
    if last is not None and is_current and not (has_result or is_unread):
        # What was wrong with it may be so still, until a Job has looked again.
        return StatusVerdict(GateAccepted(last.reason), last.cause)
    suite = next((each.suite for each in decisions if each.suite is not None), gate.status.suite)
    if suite is None:
        failures = (each.progress.failure for each in decisions if each.progress is not None)
        failure = _failure_text(next(filter(None, failures), ""))
        return StatusVerdict(
            GateAccepted.SUITE_NOT_READ, f"no Job has read spec.suite yet{failure}"
        )
    prompts, strata = sum(suite.prompts.values()), counted(len(suite.prompts), "stratum", "strata")
    return StatusVerdict(GateAccepted.VALID, f"{counted(prompts, 'prompt')} in {strata}")
