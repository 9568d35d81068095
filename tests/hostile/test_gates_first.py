"""First versions, and gates whose money ends, in whole cycles: users get nothing untried, and what
was paid for once is not asked again."""

from typing import Any

import pytest

from environments import ROOT
from tessera.domain.quality.change import _GATED
from tessera.domain.quality.gates import JUDGE_RETRY
from tessera.domain.quality.names import PRECISIONS_ANNOTATION
from tessera.resources.api_resources import CONTROLLER_REVISIONS, DEPLOYMENTS, JOBS, PODS
from tessera.resources.manifest import ObjectKey
from tests.hostile.score import SCORE
from tests.memory_operator import CHAT
from tests.reconcile.gated_operator import ROLLOUT, GatedOperator
from tests.reconcile.test_first_versions import FAILED, TOTAL, replicas

pytestmark = pytest.mark.anyio
HOUR = 3600


@pytest.fixture
async def operator() -> GatedOperator:
    operator = GatedOperator({"minReplicas": 2})
    operator.put_gate(minScore="0.8")
    await operator.settle(4)
    return operator


def seeds_of_users(operator: GatedOperator) -> set[str]:
    """Return the flags of the versions whose replicas are open to users."""
    seeds = set()
    for pod in operator.keys(PODS.plural):
        body = operator.body(pod)
        if body["metadata"]["ownerReferences"][0]["kind"] != "ReplicaSet":
            continue
        conditions = {each["type"]: each["status"] for each in body["status"]["conditions"]}
        if conditions.get("tessera.dev/serving") == "True":
            words = str(body["spec"])
            seeds.add(words[at + 7] if (at := words.find("--seed=")) >= 0 else "0")
    return seeds


async def ask_edited(operator: GatedOperator, seed: int) -> ObjectKey:
    """Edit a version that waits; return the Job that asks it, not that of the one before."""
    operator.edit(seed)
    await operator.settle(4)
    return await operator.ask("candidate")


def expect_users(operator: GatedOperator, *seeds: str) -> None:
    users = seeds_of_users(operator)
    SCORE.add(int(not users <= set(seeds)))
    assert users <= set(seeds), users


def address_of(operator: GatedOperator, seed: int) -> set[str]:
    """Return the addresses of the replicas of a version."""
    return {
        operator.body(pod)["status"]["podIP"]
        for pod in operator.keys(PODS.plural)
        if f"--seed={seed}" in str(operator.body(pod)["spec"])
    }


async def test_the_answers_of_the_version_before_are_not_those_of_an_edited_first_one(
    operator: GatedOperator,
) -> None:
    await ask_edited(operator, 1)
    assert address_of(operator, 1)
    operator.hanging = True
    operator.edit(2)
    for _ in range(8):
        await operator.step()
        expect_users(operator)
        job = operator.running_job("candidate")
        if job is not None:
            url = operator.arguments(job)["url"]
            mistaken = [each for each in address_of(operator, 1) if each in url]
            SCORE.add(int(bool(mistaken)))
            assert not mistaken, url


async def test_a_first_version_that_passes_opens_no_replica_of_one_that_did_not(
    operator: GatedOperator,
) -> None:
    for seed in (1, 2, 3):
        job = await ask_edited(operator, seed)
        expect_users(operator)
    operator.report(job, strata=[TOTAL])
    for _ in range(14):
        await operator.step()
        expect_users(operator, "3")
    assert seeds_of_users(operator) == {"3"}


@pytest.mark.parametrize("how", ["skipped", "passed before", "score dropped"])
async def test_what_lets_one_first_version_through_opens_no_replica_of_another(
    operator: GatedOperator, how: str
) -> None:
    if how == "passed before":
        operator.report(await ask_edited(operator, 2), strata=[TOTAL])
        await operator.step()
    await ask_edited(operator, 1)
    expect_users(operator)
    assert address_of(operator, 1)
    skip = {"skipGate": {"by": "anna", "reason": "an outage"}}
    operator.edit(2, **({"rollout": {**ROLLOUT, **skip}} if how == "skipped" else {}))
    if how == "score dropped":
        operator.put_gate()
    for _ in range(14):
        await operator.step()
        expect_users(operator, "2")
    assert seeds_of_users(operator) == {"2"}


async def test_an_edit_between_verdict_and_opening_serves_nobody(operator: GatedOperator) -> None:
    operator.report(await ask_edited(operator, 1), strata=[TOTAL])
    await operator.step()
    operator.edit(2)
    for _ in range(10):
        await operator.step()
        expect_users(operator, "1")


async def test_a_first_version_stays_closed_whatever_is_lost_and_whenever(
    operator: GatedOperator,
) -> None:
    await ask_edited(operator, 1)
    for index in range(24):
        if index % 3 == 0:
            operator.restart()
        if index % 4 == 0:
            operator.body(CHAT)["status"] = {}
            operator.cluster.touch(CHAT)
        if index % 7 == 5:
            for job in operator.keys(JOBS.plural):
                operator.cluster.discard(job)
        await operator.step()
        expect_users(operator)
    operator.report(await operator.ask("candidate"), **FAILED)
    for index in range(12):
        if index % 2:
            operator.restart()
        if index % 3 == 0:
            operator.body(CHAT)["status"] = {}
            operator.cluster.touch(CHAT)
        await operator.step()
        expect_users(operator)


async def test_a_first_version_that_failed_is_not_asked_again_though_its_status_is_lost(
    operator: GatedOperator,
) -> None:
    operator.report(await operator.ask("candidate"), **FAILED)
    await operator.settle(6)
    for _ in range(6):
        operator.body(CHAT)["status"] = {}
        operator.restart()
        await operator.step(HOUR)
        await operator.settle(2)
        SCORE.add(replicas(operator) + len(operator.keys(JOBS.plural)))
        assert (replicas(operator), operator.keys(JOBS.plural)) == (0, [])


async def test_another_service_of_its_spec_passes_by_no_verdict_on_a_first_version(
    operator: GatedOperator,
) -> None:
    operator.report(await operator.ask("candidate"), strata=[TOTAL])
    await operator.settle(12)
    status = operator.gate_status["verdicts"][0]
    operator.put_gate(minScore="0.9")
    for key in operator.keys(CONTROLLER_REVISIONS.plural):
        operator.cluster.discard(key)
    for plural in (DEPLOYMENTS.plural, PODS.plural):
        for key in operator.keys(plural):
            operator.cluster.discard(key)
    operator.body(CHAT)["metadata"]["uid"] = "uid-2"
    operator.body(CHAT)["status"] = {}
    operator.edit()
    for _ in range(6):
        await operator.step()
        expect_users(operator)
    assert status["reason"] == "Passed"


async def test_a_report_of_another_score_or_another_version_opens_nothing(
    operator: GatedOperator,
) -> None:
    job = await operator.ask("candidate")
    reports: tuple[dict[str, Any], ...] = (
        {"verdict": "Passed", "strata": []},
        {"verdict": "Passed", "strata": [TOTAL], "version": "d" * 64},
        {"verdict": "Passed", "strata": [TOTAL], "baseline": "b" * 64},
        {"verdict": "Passed", "strata": [TOTAL], "scorer": "v0-r1"},
        {"verdict": "Passed", "strata": [TOTAL], "suite": ""},
        {"state": "answered", "strata": [TOTAL]},
    )
    for index, report in enumerate(reports):
        operator.report(job, **report)
        await operator.settle(3)
        expect_users(operator)
        job = await ask_edited(operator, index)


async def test_few_hours_are_paid_for_while_nobody_pays_for_its_prompts(
    operator: GatedOperator,
) -> None:
    hours = 0
    for _ in range(12):
        if (job := operator.running_job()) is not None:
            operator.report(job, state="requestsRefused", verdict=None, strata=[])
        await operator.step(5)
        await operator.step(HOUR)
        hours += replicas(operator)
        expect_users(operator)
    SCORE.add(int(hours > 4))
    assert hours <= 4
    while (job := operator.running_job("candidate")) is None:
        await operator.step(HOUR)
        await operator.settle(3)
        assert hours < 40
        hours += 1
    operator.report(job, strata=[TOTAL])
    await operator.settle(12)
    assert seeds_of_users(operator) == {"0"}


@pytest.fixture
async def serving() -> GatedOperator:
    """Return an operator whose service has its first version in force, and serves."""
    operator = GatedOperator()
    await operator.settle(5)
    assert list(operator.revisions().values()) == [1]
    return operator


REFUSED: dict[str, Any] = {
    **{"state": "requestsRefused", "verdict": None, "strata": [], "answered": 390},
    "answersDigest": "e" * 64,
}


@pytest.mark.parametrize("role", ["baseline", "candidate"])
async def test_a_budget_that_ends_in_mid_suite_pays_for_no_answer_twice(
    serving: GatedOperator, role: str
) -> None:
    serving.edit(7)
    serving.report(await serving.ask(role), **REFUSED)
    await serving.settle(3)
    for _ in range(2 * (JUDGE_RETRY.seconds // HOUR)):
        await serving.step(HOUR)
        await serving.step(5)
        if (job := serving.running_job(role)) is not None:
            break
    job = await serving.ask(role)
    digest = serving.arguments(job).get("answers-digest", "")
    SCORE.add(int(digest != "e" * 64))
    assert digest == "e" * 64


@pytest.mark.parametrize("role", ["baseline", "candidate"])
async def test_a_budget_that_has_ended_is_asked_a_few_times_a_day(
    serving: GatedOperator, role: str
) -> None:
    serving.edit(7)
    await serving.ask(role)
    jobs = set[str]()
    for _ in range(24 * 6):
        if (job := serving.running_job(role)) is not None:
            jobs.add(serving.body(job)["metadata"]["uid"])
            serving.report(job, **REFUSED)
        await serving.step(300)
        await serving.step(300)
    SCORE.add(int(len(jobs) > 5))
    assert len(jobs) <= 5


async def test_a_stable_version_whose_number_is_forged_lets_no_edit_pass_as_a_first_one(
    serving: GatedOperator,
) -> None:
    (revision,) = serving.keys(CONTROLLER_REVISIONS.plural)
    serving.body(revision)["revision"] = 0
    serving.cluster.touch(revision)
    serving.edit(7)
    serving.raises_defects = False
    for _ in range(8):
        await serving.step()
        expect_users(serving, "0")


@pytest.mark.parametrize("name", ["", ",", "none-such", "checkpoint,,", "fp8," * 400, "*"])
async def test_a_forged_list_of_precisions_ends_no_cycle(serving: GatedOperator, name: str) -> None:
    (revision,) = serving.keys(CONTROLLER_REVISIONS.plural)
    serving.body(revision)["metadata"]["annotations"] = {PRECISIONS_ANNOTATION: name}
    serving.cluster.touch(revision)
    serving.edit(7)
    await serving.ask("candidate")
    for _ in range(4):
        await serving.step()
        expect_users(serving, "0")
        assert seeds_of_users(serving) == {"0"}


async def test_gates_off_and_on_again_lead_no_edit_around_the_score(
    operator: GatedOperator,
) -> None:
    """Off needs the verb; what it served meanwhile serves on, and a later edit is tried."""
    operator.report(await ask_edited(operator, 1), strata=[TOTAL])
    await operator.settle(12)
    for off in ({}, {"strategy": "Rolling"}):
        operator.edit(1, rollout=off)
        await operator.settle(6)
        operator.edit(2, rollout=ROLLOUT)
        for _ in range(6):
            await operator.step()
            expect_users(operator, "1")
        operator.edit(1, rollout=ROLLOUT)
        await operator.settle(6)
    assert seeds_of_users(operator) == {"1"}


POLICY = ROOT / "charts/tessera/templates/policies-gates.yaml"


def test_a_skipped_gate_is_for_the_change_alone_in_every_gated_field() -> None:
    """A skip that stands in the spec lets no later edit of any of them pass."""
    words = "".join(POLICY.read_text().partition("- name: skips")[2].partition("- name: status")[0])
    missing = [
        name
        for name in ("model", "precision", "engine", "context", "podTemplate", "maxOutputTokens")
        if name not in words
    ]
    assert set(_GATED) == {"model", "precision", "engine", "context", "pod_template", "access"}
    SCORE.add(len(missing))
    assert not missing


def test_who_creates_a_version_with_a_number_needs_the_verb() -> None:
    words = POLICY.read_text().partition("-revisions\n")[2]
    rule = words.partition("resources: [controllerrevisions]")[0].rpartition("operations:")[2]
    SCORE.add(int("CREATE" not in rule))
    assert "CREATE" in rule
