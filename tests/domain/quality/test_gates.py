"""What a gate does next for a change, and what it decides."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tessera.api.gate_reasons import GateAccepted, GateOutcome
from tessera.api.quality_gate import QualityGateStatus
from tessera.api.reasons import Progressing, StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.money import money
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.quality.gate_jobs import GateEndpoint
from tessera.domain.quality.gates import (
    MAX_ATTEMPTS,
    MAX_RETURNS,
    GatePlan,
    TrialDecision,
    plan_gate,
)
from tessera.domain.quality.trial import GateJobs
from tests.domain.quality.gate_world import (
    CHANGED,
    CHAT,
    STABLE,
    SUITE,
    GateWorld,
    a_gate,
    a_gate_spec,
    a_report,
    a_stratum,
    a_trial,
    a_version,
    shares,
)

PINNED = {"configMap": {"name": "suite"}, "digest": SUITE}


def tried(world: GateWorld, **report: Any) -> TrialDecision:
    """Let both versions answer, and the Job of the changed one report."""
    world.end(a_report(world.ask("Candidate"), **report))
    return world.cycle()


def outcome(decision: TrialDecision) -> GateOutcome | None:
    return decision.outcome.reason if decision.outcome is not None else None


def test_the_stable_version_answers_first_and_the_changed_one_is_compared() -> None:
    world = GateWorld()
    first = world.ask("Baseline")
    assert (first.run.role, first.run.digest, first.run.baseline) == ("Baseline", STABLE, "")
    second = world.ask("Candidate")
    assert (second.run.role, second.run.digest, second.run.baseline) == (
        "Candidate", CHANGED, STABLE,
    )  # fmt: skip
    assert second.endpoint.address == "10.0.0.2"
    world.end()
    assert outcome(world.cycle()) is GateOutcome.PASSED
    world.cycle()
    assert not world.jobs
    assert [each.reason for each in world.status.verdicts] == ["Passed"]
    assert outcome(world.cycle()) is GateOutcome.PASSED
    assert world.created == 2


@pytest.mark.parametrize(
    ("lacks_devices", "reason"),
    [(True, Progressing.NO_SURGE_CAPACITY), (False, Progressing.GATE_RUNNING)],
)
def test_a_stable_version_that_does_not_answer_waits_for_devices_only_where_it_has_none(
    lacks_devices: bool, reason: Progressing
) -> None:
    stable = a_version(address=None)
    world = GateWorld(a_trial(baseline=stable, stable_lacks_devices=lacks_devices))
    progressing = world.cycle().progressing
    assert progressing.reason is reason
    assert "0 replicas of the stable version answer" in progressing.message
    assert ("none of them has a device" in progressing.message) is lacks_devices


def test_answers_that_are_known_are_not_asked_again() -> None:
    world = GateWorld()
    assert outcome(tried(world, verdict="Failed")) is GateOutcome.FAILED
    other = a_version("c" * 32, "10.0.0.3")
    world.trial = replace(world.trial, candidate=other)
    assert world.ask("Candidate").run.digest == "c" * 32
    assert world.created == 3
    world.trial = replace(world.trial, candidate=a_version(CHANGED, None))
    assert outcome(world.cycle()) is GateOutcome.FAILED


@pytest.mark.parametrize(
    ("report", "spec", "reason", "progressing"),
    [
        ({"verdict": "Failed"}, {}, GateOutcome.FAILED, Progressing.ROLLED_BACK),
        ({"verdict": "Inconclusive"}, {}, GateOutcome.INCONCLUSIVE, Progressing.GATE_RUNNING),
        (
            {"verdict": "Inconclusive"},
            {"require": "Proven"},
            GateOutcome.INCONCLUSIVE,
            Progressing.GATE_INCONCLUSIVE,
        ),
        (
            {"answers": shares(itl=0.051)},
            {},
            GateOutcome.SLOWER,
            Progressing.ROLLED_BACK,
        ),
        (
            {"answers": shares(120)},
            {},
            GateOutcome.DEARER,
            Progressing.ROLLED_BACK,
        ),
        ({"answers": shares(104)}, {}, GateOutcome.PASSED, Progressing.GATE_RUNNING),
        (
            {"answers": shares(120)},
            {"maxCostIncrease": "0.2"},
            GateOutcome.PASSED,
            Progressing.GATE_RUNNING,
        ),
    ],
)
def test_quality_then_latency_then_cost_decide(
    report: dict[str, Any],
    spec: dict[str, Any],
    reason: GateOutcome,
    progressing: Progressing,
) -> None:
    world = GateWorld(a_trial(gate=a_gate(a_gate_spec(**spec))))
    decision = tried(world, **report)
    assert (outcome(decision), decision.progressing.reason) == (reason, progressing)


def test_on_another_device_neither_latency_nor_cost_decides() -> None:
    dear = money(Decimal("9.00"), "USD")
    candidate = a_version(CHANGED, "10.0.0.2", hardware="H100", per_million_tokens=dear)
    decision = tried(GateWorld(a_trial(candidate=candidate)), answers=shares(itl=2))
    assert outcome(decision) is GateOutcome.PASSED
    assert decision.verdict is not None
    words = "at most 1.9; latency and cost: NotComparable (A100 1g.10gb and H100)"
    assert decision.verdict.message.endswith(words)
    assert decision.progressing.message.endswith(f"{words}; the change is rolled out")


@pytest.mark.parametrize(
    ("report", "candidate", "reason", "words"),
    [
        ({}, {}, GateOutcome.PASSED, "TTFT p95 0.3 s after 0.3 s, ITL p95 0.03 s after 0.03 s; "),
        ({"verdict": "Failed"}, {}, GateOutcome.PASSED, "TTFT p95 0.3 s after 0.3 s"),
        ({"answers": shares(itl=0.051)}, {}, GateOutcome.SLOWER, "spec.slo.itlP95: 0.051 s"),
        ({"answers": shares(120)}, {}, GateOutcome.DEARER, "spec.maxCostIncrease: "),
        ({"answers": None}, {}, GateOutcome.INCONCLUSIVE, ""),
        ({"answers": [0, 0, 0, 100, None, None]}, {}, GateOutcome.INCONCLUSIVE, "latency: not "),
        ({}, {"hardware": "H100"}, GateOutcome.INCONCLUSIVE, ""),
    ],
)
def test_of_a_change_that_changes_no_answers_latency_and_cost_alone_decide(
    report: dict[str, Any], candidate: dict[str, Any], reason: GateOutcome, words: str
) -> None:
    changed = a_version(CHANGED, "10.0.0.2", answers="alike", **candidate)
    world = GateWorld(a_trial(baseline=a_version(answers="alike"), candidate=changed))
    decision = tried(world, **{"missingPrompts": 200, **report})
    assert outcome(decision) is reason
    verdict = decision.verdict
    assert verdict is not None
    assert (verdict.strata, verdict.missing_prompts) == ((), 0)
    assert verdict.message.startswith(words)
    assert "quality: not asked, since speculation and prefix caching" in verdict.message


def test_prices_of_today_are_compared_whatever_the_answers_cost_when_they_were_given() -> None:
    world = GateWorld()
    assert outcome(tried(world, verdict="Failed")) is GateOutcome.FAILED
    raised = money(Decimal("0.80"), "USD")
    another = a_version("c" * 32, "10.0.0.3", per_million_tokens=raised)
    stable = a_version(per_million_tokens=raised)
    world.trial = replace(world.trial, baseline=stable, candidate=another)
    decision = tried(world)
    assert outcome(decision) is GateOutcome.PASSED
    assert decision.verdict is not None
    assert decision.verdict.baseline_answers is not None
    assert decision.verdict.baseline_answers.usd_per_million_tokens == Decimal("0.8")


def test_a_stable_version_that_moved_since_it_answered_is_compared_by_no_price() -> None:
    world = GateWorld()
    assert outcome(tried(world, verdict="Failed")) is GateOutcome.FAILED
    raised = money(Decimal("0.80"), "USD")
    another = a_version("c" * 32, "10.0.0.3", per_million_tokens=raised)
    world.trial = replace(world.trial, baseline=a_version(hardware="H100"), candidate=another)
    assert outcome(tried(world)) is GateOutcome.PASSED


def test_the_table_has_quality_latency_and_cost_before_and_after() -> None:
    cheap = money(Decimal("0.30"), "USD")
    candidate = a_version(CHANGED, "10.0.0.2", per_million_tokens=cheap)
    world = GateWorld(a_trial(candidate=candidate))
    verdict = tried(world, strata=[a_stratum(candidate=0.75, loss=5)]).verdict
    assert verdict is not None
    assert verdict.baseline_answers is not None
    assert verdict.candidate_answers is not None
    before, after = verdict.baseline_answers, verdict.candidate_answers
    assert (before.usd_per_quality_adjusted_mtok, after.usd_per_quality_adjusted_mtok) == (
        Decimal("0.5"), Decimal("0.4"),
    )  # fmt: skip
    assert (before.itl_p95_seconds, verdict.strata[0].candidate) == (
        Decimal("0.03"),
        Decimal("0.75"),
    )


CUT = [0.366, 0, 0, 512, 0.3, 0.03]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            [0.02, 0, 0, 310, 0.3, 0.03],
            CUT,
            " Cut at maxTokens: 37 % of the candidate's answers, 2 % of the baseline's; raise "
            "maxTokens in the suite.",
        ),
        # A thinking model whose thoughts are all that it says.
        (
            shares(),
            [0.4, 0.3, 0.05, 512, 0.3, 0.03],
            " Cut at maxTokens: 40 % of the candidate's answers, 0 % of the baseline's; raise "
            "maxTokens in the suite. Empty: 30 % of the candidate's answers, 0 % of the "
            "baseline's. Refused: 5 % of the candidate's answers, 0 % of the baseline's.",
        ),
        (CUT, CUT, " Cut at maxTokens: 37 % of the candidate's answers, 37 % of the baseline's;"),
        (CUT, shares(), " Cut at maxTokens: 0 % of the candidate's answers, 37 % of the"),
        ([0.01, 0, 0.01, 100, 0.3, 0.03], [0.02, 0.01, 0, 100, 0.3, 0.03], ""),
    ],
)
def test_a_verdict_names_answers_that_were_cut_empty_or_refused(
    before: list[float], after: list[float], words: str
) -> None:
    world = GateWorld()
    world.end(a_report(world.ask("Baseline"), answers=before))
    lost = "Loss proven on 265 prompts: total 20.75 points (p 2.1e-09, margin 2.00)."
    decision = tried(world, verdict="Failed", answers=after, message=lost)
    verdict = decision.verdict
    assert verdict is not None
    assert verdict.message.startswith(lost + words)
    assert words.rstrip(".") in decision.progressing.message
    assert words or verdict.message == lost


def test_an_evicted_job_is_tried_again_and_then_given_up() -> None:
    world = GateWorld()
    decision = world.cycle()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert world.job.endswith(f"-{attempt}")
        world.evict()
        decision = world.cycle()
        world.cycle()
    assert outcome(decision) is GateOutcome.JOB_FAILED
    assert world.created == MAX_ATTEMPTS


NO_DEVICE = StatusVerdict(Progressing.NO_SURGE_CAPACITY, "no device")


def test_a_device_that_goes_back_to_users_is_no_attempt_and_answers_count_hours_later() -> None:
    world = GateWorld()
    world.ask("Candidate")
    for returned in range(1, MAX_RETURNS + 1):
        request = world.requests[world.job]
        away = a_report(request, state="engineAway", verdict=None, answersDigest=f"{returned:064x}")
        world.end(away, code=1)
        endpoint = world.trial.candidate.endpoint
        silent = replace(world.trial.candidate, endpoint=None)
        world.trial = replace(world.trial, candidate=silent, waits=NO_DEVICE)
        assert world.cycle(7 * 3600).progressing == NO_DEVICE
        back = replace(silent, endpoint=endpoint)
        world.trial = replace(world.trial, candidate=back, waits=None)
        assert world.cycle().outcome is None
        world.cycle()
        assert world.requests[world.job].answers_digest == f"{returned:064x}"
    world.end(a_report(world.requests[world.job], state="engineAway", verdict=None), code=1)
    assert outcome(world.cycle()) is GateOutcome.JOB_FAILED


def test_a_change_that_waits_for_its_device_leaves_the_gate_to_another() -> None:
    world = GateWorld()
    world.end(
        a_report(world.ask("Candidate"), state="engineAway", verdict=None, answersDigest="e" * 64)
    )
    first = world.job
    silent = replace(world.trial.candidate, endpoint=None)
    world.trial = replace(world.trial, candidate=silent, waits=NO_DEVICE)
    other = replace(
        a_trial(), service=Ref("team-a", "other"), baseline=a_version("c" * 32, "10.0.0.7")
    )

    def plan() -> GatePlan:
        at = world.at + timedelta(hours=1)
        world.trial, gate = replace(world.trial, at=at), world.trial.gate
        assert gate is not None
        jobs = GateJobs(jobs=tuple(world.jobs.values()), runs=world.runs)
        planned = plan_gate(gate, [world.trial, replace(other, at=at, gate=gate)], jobs)
        world.edit_gate(status=planned.status)
        for ref in planned.delete:
            world.delete(ref.name)
        if planned.create is not None:
            world.create(planned.create)
        return planned

    assert (plan().delete, world.requests[world.job].run.service) == ((), other.service)
    world.trial = replace(world.trial, candidate=a_version(CHANGED, "10.0.0.2"), waits=None)
    # The claim is mounted by one Job.
    waiting = plan()
    assert (waiting.create, waiting.delete) == (None, ())
    assert "InferenceService/other is tried" in waiting.decisions[CHAT].progressing.message
    assert first in world.jobs
    world.end()
    plan()
    plan()
    assert world.requests[world.job].run.service == CHAT
    assert world.requests[world.job].answers_digest == "e" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 4096,
        "killed",
        '{"phase": "gate", "state": "judged", "version": "other"}',
        '{"phase": "gate", "state": "answered", "prompts": {"all": -1e999}}',
    ],
)
def test_what_is_no_report_of_this_job_decides_nothing(text: str) -> None:
    world = GateWorld()
    world.cycle()
    world.end(text)
    decision = world.cycle()
    assert decision.outcome is None
    assert world.job.endswith("-2")


@pytest.mark.parametrize(
    "forged",
    [
        {"state": "answered"},
        {"verdict": "Excellent"},
        {"suite": ""},
        {"suite": "6" * 64},
        {"version": STABLE},
        {"baseline": CHANGED},
        {"scorer": "v0"},
    ],
)
def test_a_verdict_of_other_versions_suites_or_words_is_not_believed(
    forged: dict[str, Any],
) -> None:
    world = GateWorld(a_trial(gate=a_gate(a_gate_spec(suite=PINNED))))
    decision = tried(world, **forged)
    assert (decision.outcome, decision.verdict) == (None, None)


def test_a_gate_that_never_ends_times_out() -> None:
    world = GateWorld()
    world.cycle()
    assert world.cycle(7199).outcome is None
    world.evict()
    assert outcome(world.cycle()) is GateOutcome.TIMED_OUT
    hanging = GateWorld()
    hanging.cycle()
    assert outcome(hanging.cycle(7300)) is GateOutcome.TIMED_OUT


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("suiteNotFound", GateAccepted.SUITE_NOT_FOUND),
        ("suiteInvalid", GateAccepted.SUITE_INVALID),
        ("suiteChanged", GateAccepted.SUITE_CHANGED),
        ("judgeUnreliable", GateAccepted.JUDGE_UNRELIABLE),
        ("requestsRefused", GateAccepted.REQUESTS_REFUSED),
    ],
)
def test_a_suite_that_judges_nothing_lets_the_change_wait_and_is_read_again(
    state: str, reason: GateAccepted
) -> None:
    world = GateWorld()
    world.cycle()
    world.end(a_report(world.requests[world.job], state=state, message="line 3"))
    decision = world.cycle()
    assert decision.problem == StatusVerdict(reason, "line 3")
    assert (decision.outcome, decision.progressing.reason) == (None, Progressing.GATE_NOT_ACCEPTED)
    world.cycle(60)
    assert world.created == 1
    world.cycle(300)
    world.cycle()
    assert world.created == 2


def test_a_problem_stays_in_the_condition_until_the_suite_was_read_again() -> None:
    last = {
        "type": "Accepted",
        "status": "False",
        "reason": "SuiteInvalid",
        "message": "line 3",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-20T12:00:00Z",
    }
    status = QualityGateStatus.model_validate({"conditions": [last]})
    world = GateWorld(a_trial(gate=a_gate(status=status)))
    world.cycle()
    assert world.plan().accepted.reason is GateAccepted.SUITE_INVALID
    world.end()
    assert world.plan().accepted == StatusVerdict(GateAccepted.VALID, "400 prompts in 1 stratum")


def test_lost_answers_are_asked_again_and_not_for_ever() -> None:
    world = GateWorld()
    world.cycle()
    world.end()
    world.cycle()
    world.cycle()
    decision, rounds = world.cycle(), 0
    while decision.outcome is None:
        is_judging = world.jobs and world.requests[world.job].run.role == "Candidate"
        if world.jobs and world.runs[world.jobs[world.job].uid].exit_code is None:
            lost = {"state": "baselineMissing"} if is_judging else {}
            world.end(a_report(world.requests[world.job], **lost))
        decision, rounds = world.cycle(), rounds + 1
        assert rounds < 40
    assert outcome(decision) is GateOutcome.JOB_FAILED
    assert world.created == 2 * MAX_ATTEMPTS


def test_an_edited_gate_asks_again_and_another_suite_drops_nothing_of_the_stable_version() -> None:
    world = GateWorld()
    world.cycle()
    first = world.job
    world.edit_gate(spec=a_gate_spec(timeout="1h"))
    world.cycle()
    world.cycle()
    assert first not in world.jobs
    assert len(world.jobs) == 1


def test_a_gate_that_is_missing_or_invalid_lets_the_change_wait() -> None:
    missing = replace(a_trial(), gate=None)
    gate = a_gate(problem="spec.minPrompts: 1")
    plan = plan_gate(gate, [a_trial(gate=gate), missing], GateJobs())
    assert plan.accepted == StatusVerdict(GateAccepted.INVALID_SPEC, "spec.minPrompts: 1")
    assert plan.create is None
    assert plan.decisions[CHAT].progressing.reason is Progressing.GATE_NOT_FOUND


def test_a_candidate_that_never_gets_ready_is_refused_and_its_job_ends() -> None:
    world = GateWorld()
    world.cycle()
    world.trial = replace(world.trial, overdue="not ready after 14 m")
    decision = world.cycle()
    assert outcome(decision) is GateOutcome.NOT_READY
    assert not world.jobs


def test_a_sleeping_service_is_woken_for_its_own_answers_alone() -> None:
    world = GateWorld(a_trial(baseline=a_version(address=None)))
    world.cycle()
    assert not world.jobs
    world.trial = replace(world.trial, baseline=a_version())
    world.ask("Baseline")
    world.end()
    world.cycle()
    world.trial = replace(world.trial, baseline=a_version(address=None))
    assert world.ask("Candidate").run.baseline == STABLE


def test_the_reason_why_a_candidate_has_no_replica_is_passed_on() -> None:
    waits = StatusVerdict(Progressing.NO_SURGE_CAPACITY, "0 free devices since 12:00")
    world = GateWorld(a_trial(candidate=a_version(CHANGED, None), waits=waits))
    world.cycle()
    world.end()
    world.cycle()
    assert world.cycle().progressing == waits


def test_a_judge_that_does_not_answer_is_waited_for() -> None:
    gate = a_gate(a_gate_spec(judge={"service": "judge"}))
    world = GateWorld(a_trial(gate=gate))
    decision = world.cycle()
    assert decision.problem is not None
    assert decision.problem.reason is GateAccepted.JUDGE_NOT_FOUND
    judge = GateEndpoint(address="10.1.0.1", model="judge")
    world.trial = replace(world.trial, judge=judge, judge_digest="e" * 32)
    assert world.ask("Candidate").judge == judge


def test_one_service_is_tried_at_a_time_since_one_node_mounts_the_claim() -> None:
    gate, docs = a_gate(), Ref("team-a", "docs")
    trials = [a_trial(), a_trial(service=docs, candidate=a_version("d" * 32))]
    plan = plan_gate(gate, trials, GateJobs())
    assert plan.create is not None
    assert plan.create.run.service == CHAT
    assert "InferenceService/chat is tried" in plan.decisions[docs].progressing.message
    world = GateWorld()
    world.create(plan_gate(gate, trials[1:], GateJobs()).create or plan.create)
    busy = plan_gate(gate, trials, GateJobs(jobs=tuple(world.jobs.values())))
    assert (busy.create, busy.delete) == (None, ())
    assert "InferenceService/docs is tried" in busy.decisions[CHAT].progressing.message


def test_progress_says_how_many_prompts_are_answered_and_what_is_next() -> None:
    world = GateWorld()
    world.cycle()
    job = world.jobs[world.job]
    world.answered = {job.ref: FetchProgress(done=12, total=400)}
    plan = world.plan()
    assert plan.decisions[CHAT].progressing.message == (
        "QualityGate/answers: the stable version answered 12 of 400 prompts, then the changed "
        "version answers it. Users have the stable version."
    )
    assert [(each.role, each.answered) for each in plan.status.progress] == [("Baseline", 12)]


def test_a_refused_pod_is_said_by_the_gate() -> None:
    world = GateWorld()
    world.cycle()
    name = world.job
    world.jobs[name] = replace(world.jobs[name], refusal="exceeded quota")
    decision = world.cycle()
    assert decision.problem == StatusVerdict(GateAccepted.FAILED_CREATE, "exceeded quota")
    assert outcome(world.cycle(7300)) is GateOutcome.TIMED_OUT


def test_a_job_goes_on_with_and_compares_with_files_that_reports_named() -> None:
    world = GateWorld()
    first = world.ask("Baseline")
    world.end(a_report(first, state="failed", answersDigest="a" * 64), code=1)
    world.cycle()
    assert world.requests[world.job].answers_digest == "a" * 64
    world.end(a_report(world.requests[world.job], answersDigest="b" * 64))
    request = world.ask("Candidate")
    assert (request.answers_digest, request.baseline_digest) == ("", "b" * 64)


def test_a_killed_job_is_gone_on_with_by_what_its_progress_said_last() -> None:
    world = GateWorld()
    world.ask("Candidate")
    job = world.jobs[world.job]
    world.answered = {job.ref: FetchProgress(done=12, total=400, digest="c" * 64)}
    world.cycle()
    world.answered = {}
    world.evict()
    endpoint = world.trial.candidate.endpoint
    silent = replace(world.trial.candidate, endpoint=None)
    world.trial = replace(world.trial, candidate=silent, waits=NO_DEVICE)
    for _ in range(3):
        world.cycle(60)
    world.trial = replace(world.trial, candidate=replace(silent, endpoint=endpoint), waits=None)
    for attempt in (2, 3):
        # The last one was killed before it said anything.
        world.cycle()
        world.cycle()
        request = world.requests[world.job]
        assert (request.name[-1], request.answers_digest) == (str(attempt), "c" * 64)
        world.evict()


def test_a_lost_status_costs_one_more_look_at_the_answers() -> None:
    world = GateWorld()
    request = world.ask("Candidate")
    world.end()
    world.edit_gate(status=QualityGateStatus())
    assert world.cycle().outcome is None
    world.ask("Baseline")
    assert request.name in world.jobs
    world.end()
    assert [outcome(world.cycle()) for _ in range(3)][-1] is GateOutcome.PASSED
    assert world.created == 3
