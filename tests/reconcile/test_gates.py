"""Whole cycles of a change under a gate, against an in-memory cluster."""

from datetime import timedelta

import pytest

from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.resources.api_resources import CONTROLLER_REVISIONS, JOBS, NODES
from tests.memory_operator import CHAT
from tests.reconcile.gated_operator import FAILED, GATE, ROLLOUT, GatedOperator


@pytest.fixture
async def operator() -> GatedOperator:
    """Return an operator whose service has its first version in force, and serves."""
    operator = GatedOperator()
    await operator.settle()
    assert list(operator.revisions().values()) == [1]
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"
    return operator


async def test_a_change_that_passes_is_recorded_as_the_next_version_and_rolled_out(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    job = await operator.ask("candidate")
    assert operator.condition("Progressing")["reason"] == "GateRunning"
    operator.report(job)
    await operator.settle(12)
    assert sorted(operator.revisions().values()) == [1, 2]
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["isRefused"]) == ("Passed", False)
    assert record["changes"] == ["spec.engine.extraArgs"]
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"
    assert not operator.keys(JOBS.plural)
    assert operator.gate_status["verdicts"][0]["reason"] == "Passed"


async def test_no_version_is_in_force_before_the_status_says_how_it_got_there(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    operator.report(await operator.ask("candidate"))
    for _ in range(4):
        await operator.step()
        # As if the status was not written yet.
        operator.body(CHAT)["status"].pop("rollouts", None)
        operator.cluster.touch(CHAT)
        assert sorted(operator.revisions().values()) == [0, 1]
    await operator.settle()
    assert sorted(operator.revisions().values()) == [1, 2]
    assert [each["reason"] for each in operator.status["rollouts"]] == ["Passed"]


async def test_a_change_that_fails_goes_and_the_service_stays_ready(
    operator: GatedOperator,
) -> None:
    stable = operator.status["stableRevision"]
    operator.edit(7)
    operator.report(await operator.ask("candidate"), **FAILED)
    await operator.settle(12)
    progressing = operator.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "RolledBack")
    assert "Failed: a loss of 12 points" in progressing["message"]
    assert operator.status["stableRevision"] == stable
    assert "candidate" not in operator.status
    assert operator.status["rollouts"][0]["isRefused"]
    assert len(operator.keys("deployments")) == 1
    assert operator.revisions()[stable] == 1
    assert operator.keys(CONTROLLER_REVISIONS.plural)


async def test_a_sleeping_service_is_woken_for_its_answers_and_tried_after_that() -> None:
    operator = GatedOperator({"minReplicas": 0, "idle": {"after": "10m"}})
    for _ in range(20):
        await operator.step(60)
    (first,) = operator.keys("deployments")
    assert operator.body(first)["spec"]["replicas"] == 0
    operator.edit(7)
    job = await operator.ask("baseline")
    assert operator.keys("deployments") == [first]
    assert operator.body(first)["spec"]["replicas"] == 1
    operator.report(job)
    await operator.ask("candidate")
    assert len(operator.keys("deployments")) == 2


async def test_a_skipped_gate_stands_in_the_status_for_30_days_with_who_did_it(
    operator: GatedOperator,
) -> None:
    skip = {"skipGate": {"by": "ann", "reason": "an outage"}}
    operator.edit(7, rollout={**ROLLOUT, **skip})
    await operator.settle(12)
    assert not operator.keys(JOBS.plural)
    assert sorted(operator.revisions().values()) == [1, 2]
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["by"], record["skipped"]) == ("Skipped", "ann", True)
    messages = [
        note["note"] for note in operator.cluster.events.values() if note["reason"] == "Skipped"
    ]
    assert messages == [f"ControllerRevision/{record['revision']} by ann: an outage"]
    for change in range(8, 22):
        operator.edit(change)
        await operator.settle(2)
    assert "Skipped" in [each["reason"] for each in operator.status["rollouts"]]
    await operator.step(31 * 86_400)
    assert "Skipped" not in [each["reason"] for each in operator.status["rollouts"]]


async def test_a_gate_that_is_deleted_meanwhile_lets_the_change_wait(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    await operator.ask("candidate")
    # The garbage collector takes with it what it owns.
    for key in (GATE, *operator.keys(JOBS.plural)):
        operator.cluster.discard(key)
    await operator.settle(4)
    progressing = operator.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "GateNotFound")
    assert "QualityGate/answers does not exist" in progressing["message"]
    assert operator.status["readyReplicas"] == 1
    operator.put_gate()
    operator.report(await operator.ask("candidate"))
    await operator.settle(12)
    assert operator.status["rollouts"][0]["reason"] == "Passed"


async def test_a_budget_that_pays_for_no_candidate_lets_the_change_wait_and_says_so(
    operator: GatedOperator,
) -> None:
    budget = {
        "owner": "ann@example.org",
        "tenant": {"namespaces": ["team-a"]},
        "limits": [{"window": "Hour", "amount": "0.30"}],
    }
    operator.cluster.put(TENANT_BUDGETS, {"metadata": {"name": "team-a"}, "spec": budget})
    operator.edit(7)
    operator.report(await operator.ask("baseline"))
    await operator.settle(8)
    progressing = operator.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "NoSurgeCapacity")
    assert len(operator.keys("deployments")) == 1
    assert operator.condition("Ready")["reason"] != "BudgetExhausted"


async def test_load_takes_a_lent_device_back_and_no_answered_prompt_is_asked_again_later() -> None:
    operator = GatedOperator(
        {
            "policy": "QueueAndActivity",
            "minReplicas": 2,
            "maxReplicas": 3,
            "scaleDown": {"stabilizationWindow": "1h"},
        }
    )
    node = next(operator.body(key) for key in operator.keys(NODES.plural))
    node["status"]["allocatable"] = {"nvidia.com/mig-1g.10gb": "3"}
    operator.waiting = 500.0
    await operator.settle(40)
    assert operator.status["readyReplicas"] == 3
    operator.waiting = 0.0
    operator.edit(7)
    operator.report(await operator.ask("baseline"))

    async def let_pass(minutes: int) -> None:
        for _ in range(minutes):
            await operator.step(60)
            assert operator.status["readyReplicas"] >= 2

    await let_pass(20)
    since = f"{operator.at - timedelta(minutes=20):%H:%M}"
    progressing = operator.condition("Progressing")
    assert progressing["reason"] == "NoSurgeCapacity"
    assert f"waits for a device since 2026-11-20T{since}" in progressing["message"]
    await let_pass(12)
    job = await operator.ask("candidate")
    operator.waiting = 500.0
    await let_pass(3)
    operator.report(job, state="engineAway", verdict=None, answersDigest="d" * 64, message="away")
    await let_pass(3)
    assert operator.status["readyReplicas"] == 3
    progressing = operator.condition("Progressing")
    assert "since 2026" in progressing["message"]
    operator.waiting = 0.0
    await let_pass(35)
    again = await operator.ask("candidate")
    assert operator.arguments(again)["answers-digest"] == "d" * 64
    operator.report(again)
    await let_pass(20)
    assert operator.status["rollouts"][0]["reason"] == "Passed"
    assert operator.status["readyReplicas"] == 3


async def test_a_candidate_that_never_gets_ready_is_refused_until_the_spec_changes(
    operator: GatedOperator,
) -> None:
    operator.hanging = True
    operator.edit(7)
    operator.report(await operator.ask("baseline"))
    await operator.settle(4)
    await operator.step(1500)
    await operator.settle(4)
    assert operator.condition("Progressing")["reason"] == "RolledBack"
    (record, *_) = operator.status["rollouts"]
    assert (record["reason"], record["isRefused"]) == ("NotReady", True)
    assert len(operator.keys("deployments")) == 1
    operator.hanging = False
    operator.edit()
    await operator.settle(2)
    operator.edit(7)
    operator.report(await operator.ask("candidate"))
    await operator.settle(12)
    assert operator.status["rollouts"][0]["reason"] == "Passed"


async def test_the_way_back_needs_no_gate_and_is_recorded(operator: GatedOperator) -> None:
    operator.edit(7)
    operator.report(await operator.ask("candidate"))
    await operator.settle(12)
    operator.edit()
    await operator.settle(12)
    assert sorted(operator.revisions().values()) == [2, 3]
    assert [each["reason"] for each in operator.status["rollouts"]] == ["RolledBackTo", "Passed"]
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"


async def test_a_change_that_is_taken_back_or_replaced_says_so(operator: GatedOperator) -> None:
    operator.edit(7)
    await operator.ask("candidate")
    operator.edit(8)
    await operator.settle(3)
    operator.edit()
    await operator.settle(4)
    assert [each["reason"] for each in operator.status["rollouts"]] == ["Withdrawn", "Replaced"]
    assert not operator.keys(JOBS.plural)


async def test_a_change_goes_on_without_its_gate_and_the_status_remembers_it(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    await operator.ask("candidate")
    operator.edit(7, rollout={})
    await operator.settle(12)
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["skipped"]) == ("NotGated", True)
    assert not operator.keys(JOBS.plural)
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize("has_report", [True, False], ids=["report", "log"])
async def test_the_last_line_of_a_failed_job_is_in_the_condition_at_once(
    has_report: bool, operator: GatedOperator
) -> None:
    operator.edit(7)
    job = await operator.ask("baseline")
    if has_report:
        operator.report(job, state="failed", message="no room on the claim")
    else:
        operator.report(job, "Traceback (most recent call last):\nOSError: no room on the claim\n")
    await operator.step()
    for _ in range(3):
        progressing = operator.condition("Progressing")
        assert progressing["reason"] == "GateRunning"
        assert "its last Job failed: " in progressing["message"]
        assert "no room on the claim" in progressing["message"]
        (accepted,) = operator.gate_status["conditions"]
        assert "no room on the claim" in accepted["message"]
        await operator.step()


async def test_a_gateway_that_nobody_reaches_ends_the_trial_and_frees_its_device(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    words = "http://gateway:8082 did not answer for 60 s: Name or service not known"
    job = await operator.ask("baseline")
    assert len(operator.keys("deployments")) == 2
    operator.report(job, state="gatewayAway", message=words)
    await operator.settle(4)
    assert len(operator.keys("deployments")) == 1
    progressing = operator.condition("Progressing")
    assert progressing["reason"] == "GateNotAccepted"
    assert "GatewayUnreachable" in progressing["message"]
    assert words in progressing["message"]
    assert "asked again after 30m" in progressing["message"]
    for _ in range(31):
        await operator.step(60)
    operator.report(await operator.ask("candidate"))
    await operator.settle(12)
    assert operator.status["rollouts"][0]["reason"] == "Passed"
