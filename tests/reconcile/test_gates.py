"""Whole cycles of a change under a gate, against an in-memory cluster."""

import pytest

from tessera.resources.api_resources import CONTROLLER_REVISIONS, JOBS
from tests.memory_operator import CHAT
from tests.reconcile.gated_operator import FAILED, GatedOperator


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
