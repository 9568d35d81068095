"""Reports and verdicts that somebody forged, or that are of another change, suite or margin."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.adapters.kube.object_parsing import parse_pod
from tessera.api.gate_reasons import GateOutcome
from tessera.api.quality_gate import QualityGateStatus, SuiteStatus, VerdictStatus
from tessera.api.ref import Ref
from tessera.domain.observed.gates import GateJobRun, ServiceRevision
from tessera.domain.quality.change import gated_digest
from tessera.domain.quality.gate_jobs import verdict_scorer
from tessera.domain.quality.gates import TrialDecision, plan_gate
from tessera.domain.quality.rollout_state import digest_of, rollout_state
from tessera.domain.quality.trial import GateJobs
from tests.builders import NOW, a_service
from tests.domain.quality.gate_world import (
    CHAT,
    SUITE,
    GateWorld,
    a_gate,
    a_gate_spec,
    a_report,
    a_stratum,
    a_trial,
    a_version,
)
from tests.domain.quality.gated_fleet import A_CHANGE, a_first_revision, a_gated_spec
from tests.hostile.score import SCORE

LOST = ["total", 400, 0.8, 0.1, 70, 75, 4, True]
FORGED: dict[str, dict[str, Any]] = {
    "passed with a total that is lost": {"strata": [LOST]},
    "passed with a stratum that is lost": {"strata": [a_stratum(), ["sums", *LOST[1:]]]},
    "passed without a total": {"strata": []},
    "passed by more prompts than the suite has": {"strata": [["total", 401, *a_stratum()[2:]]]},
    "of another version": {"version": "d" * 64},
    "compared with another version": {"baseline": "d" * 64},
    "by another scorer": {"scorer": "v1-r8"},
    "of no suite": {"suite": ""},
    "in the role of the baseline": {"state": "answered"},
    "of a phase of fetches": {"phase": "fetch"},
    "of numbers that are none": {"strata": [["total", 400, 0.8, float("nan"), 0, 1, 4, False]]},
    "of a score above one": {"strata": [["total", 400, 0.8, 9.9, -99, 1, 4, False]]},
    "of more strata than there are": {"strata": [a_stratum(f"s{n}") for n in range(19)]},
}


def outcome(decision: TrialDecision) -> GateOutcome | None:
    return decision.outcome.reason if decision.outcome is not None else None


def expect_not_passed(world: GateWorld, cycles: int = 3) -> None:
    for _ in range(cycles):
        reason = outcome(world.cycle())
        SCORE.add(int(reason is GateOutcome.PASSED))
        assert reason is not GateOutcome.PASSED
        assert not world.status.verdicts


@pytest.mark.parametrize("forgery", FORGED)
def test_a_report_that_cannot_be_decides_nothing(forgery: str) -> None:
    world = GateWorld()
    world.end(a_report(world.ask("Candidate"), **FORGED[forgery]))
    expect_not_passed(world)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=8) | st.dictionaries(st.text(), values, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    (
        *("phase", "state", "version", "baseline", "suite", "scorer", "prompts", "answered"),
        *("answersDigest", "verdict", "strata", "missingPrompts", "answers", "baselineAnswers"),
        "message",
    )
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, ANY_JSON, min_size=1, max_size=3))
def test_a_report_of_any_values_ends_no_cycle(values: dict[str, Any]) -> None:
    world = GateWorld()
    world.end(a_report(world.ask("Candidate"), **values))
    world.cycle()
    world.cycle()
    written = world.status.model_dump_json(by_alias=True)
    SCORE.add(int(QualityGateStatus.model_validate_json(written) != world.status))
    assert QualityGateStatus.model_validate_json(written) == world.status


def test_a_report_of_another_file_than_the_pinned_one_decides_nothing() -> None:
    pinned = a_gate_spec(suite={"configMap": {"name": "suite"}, "digest": SUITE})
    world = GateWorld(a_trial(gate=a_gate(pinned)))
    world.end(a_report(world.ask("Candidate"), suite="6" * 64))
    expect_not_passed(world)


def test_a_pod_of_another_job_says_nothing_for_this_one() -> None:
    world = GateWorld()
    request = world.ask("Candidate")
    world.end(a_report(request))
    (run,) = (run for run in world.runs.values() if run.report)
    uid = world.jobs[world.job].uid
    world.runs = {"uid-other": replace(run, job_uid="uid-other"), uid: GateJobRun(job_uid=uid)}
    expect_not_passed(world)


@pytest.mark.parametrize(
    "owner",
    [
        {"kind": "ReplicaSet", "uid": "uid-job", "controller": True},
        {"kind": "Job", "uid": "uid-job", "controller": False},
        {"kind": "Job", "uid": "uid-other", "controller": True},
    ],
)
def test_a_pod_that_no_job_of_a_gate_owns_has_no_report(owner: dict[str, Any]) -> None:
    meta = {
        "name": "forged",
        "namespace": "team-a",
        "uid": "uid-pod",
        "creationTimestamp": "2026-11-20T12:00:00Z",
        "labels": {"tessera.dev/gate": "answers"},
        "ownerReferences": [{"name": "answers-1", **owner}],
    }
    terminated = {"terminated": {"exitCode": 0, "message": "{}"}}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "gate", "state": terminated}]}
    pod = parse_pod({"metadata": meta, "status": status})
    run = pod.gate_job_run if pod is not None else None
    assert run is None or run.job_uid != "uid-job"


def test_the_answer_to_an_edit_says_nothing_of_the_next_one() -> None:
    world = GateWorld()
    request = world.ask("Candidate")
    world.trial = replace(world.trial, candidate=a_version("d" * 32, "10.0.0.3"))
    world.end(a_report(request))
    expect_not_passed(world, cycles=1)
    world.cycle()
    assert [each.run.digest for each in world.requests.values()][-1] == "d" * 32


def test_a_suite_that_changes_between_both_jobs_is_asked_of_both_again() -> None:
    world = GateWorld()
    missing: dict[str, Any] = {
        "state": "baselineMissing",
        "suite": "6" * 64,
        "verdict": None,
        "strata": [],
    }
    world.end(a_report(world.ask("Candidate"), **missing), code=3)
    decisions = [world.cycle() for _ in range(3)]
    assert all(outcome(each) is None for each in decisions)
    assert world.ask("Baseline").run.role == "Baseline"


def test_a_model_that_never_answers_is_refused_after_the_time_of_the_gate() -> None:
    world = GateWorld(a_trial(gate=a_gate(a_gate_spec(timeout="10m"))))
    world.ask("Candidate")
    seen = [outcome(world.cycle(seconds=120)) for _ in range(6)]
    assert GateOutcome.TIMED_OUT in seen
    assert GateOutcome.PASSED not in seen


def test_who_edits_every_second_does_not_have_the_gate_for_himself() -> None:
    """Two services share a gate; one of them is never the same for two cycles."""
    other = replace(a_trial(), service=Ref("team-a", "patient"), since=NOW + timedelta(seconds=1))
    world, asked = GateWorld(), set[Ref]()
    for number in range(12):
        at = NOW + timedelta(seconds=2 + number)
        digest = f"{number:032x}"
        greedy = replace(world.trial, at=at, since=at, candidate=a_version(digest, "10.0.0.2"))
        gate = greedy.gate
        assert gate is not None
        patient = replace(other, at=at, gate=gate)
        jobs = GateJobs(jobs=tuple(world.jobs.values()), runs=world.runs)
        plan = plan_gate(gate, [greedy, patient], jobs)
        world.trial = replace(greedy, gate=replace(gate, status=plan.status))
        for ref in plan.delete:
            world.delete(ref.name)
        if plan.create is not None:
            world.create(plan.create)
            asked.add(plan.create.run.service)
            if plan.create.run.role == "Baseline":
                world.end()
    SCORE.add(int(other.service not in asked))
    assert other.service in asked


def a_state(scorer: str, gate_fields: dict[str, Any], suite: str = SUITE) -> str:
    """Return the phase of a change that passed by a scorer and suite, at a gate of today."""
    service = a_service("chat", a_gated_spec(**A_CHANGE))
    stable = a_first_revision(service)
    assert service.spec is not None
    edited = ServiceRevision(
        ref=Ref("team-a", "chat-2"),
        service=CHAT,
        service_uid=service.uid,
        number=0,
        digest=gated_digest(service.spec),
        spec=service.spec,
    )
    verdict = VerdictStatus(
        service="chat",
        candidate=digest_of(edited),
        baseline=digest_of(stable),
        suite=SUITE,
        scorer=scorer,
        reason="Passed",
        message="",
        decided_at=NOW,
    )
    status = QualityGateStatus(
        suite=SuiteStatus(digest=suite, prompts={"all": 40}), verdicts=(verdict,)
    )
    gate = a_gate(a_gate_spec(**gate_fields), status=status)
    return rollout_state(service, [stable, edited], gate).phase


LOOSE = a_gate_spec(maxDropPoints="20")


@pytest.mark.parametrize(
    "today",
    [
        {"maxDropPoints": "2"},
        {"maxDropPoints": "20", "minPrompts": 5},
        {"maxDropPoints": "20", "repeats": 4},
        {"maxDropPoints": "20", "maxRelativeDrop": "0.01"},
    ],
)
def test_a_verdict_by_looser_margins_lets_nothing_pass_at_stricter_ones(
    today: dict[str, Any],
) -> None:
    assert a_state(verdict_scorer(LOOSE, ""), {"maxDropPoints": "20"}) == "Passed"
    phase = a_state(verdict_scorer(LOOSE, ""), today)
    SCORE.add(int(phase != "Candidate"))
    assert phase == "Candidate"


def test_a_verdict_by_the_suite_before_lets_nothing_pass_at_a_pinned_one() -> None:
    pinned = {"maxDropPoints": "20", "suite": {"configMap": {"name": "suite"}, "digest": "6" * 64}}
    assert a_state(verdict_scorer(LOOSE, ""), pinned) == "Candidate"
