"""A first version whose gate has `minScore` serves no users before it has that score."""

from typing import Any

import pytest

from tessera.resources.api_resources import JOBS, PODS
from tests.memory_operator import CHAT
from tests.reconcile.gated_operator import GatedOperator

TOTAL = ["total", 400, 0.8, 0.9, -10, -7, 3, False]
FAILED: dict[str, Any] = {
    "verdict": "Failed",
    "strata": [["total", 400, 0.8, 0.7, 10, 14, 4, True]],
    "message": "400 prompts: score 0.7000, at least 0.6600 at 95 %, minScore 0.8.",
}


@pytest.fixture
async def operator() -> GatedOperator:
    operator = GatedOperator({"minReplicas": 2})
    operator.put_gate(minScore="0.8")
    await operator.settle(4)
    return operator


def serving(operator: GatedOperator) -> int:
    conditions = [
        {each["type"]: each["status"] for each in operator.body(pod)["status"]["conditions"]}
        for pod in operator.keys(PODS.plural)
        if operator.body(pod)["status"].get("conditions")
    ]
    return sum(each.get("tessera.dev/serving") == "True" for each in conditions)


def replicas(operator: GatedOperator) -> int:
    owners = [
        operator.body(pod)["metadata"]["ownerReferences"][0]["kind"]
        for pod in operator.keys(PODS.plural)
    ]
    return owners.count("ReplicaSet")


async def test_one_replica_is_tried_before_any_serves_users(operator: GatedOperator) -> None:
    job = await operator.ask("candidate")
    options = operator.arguments(job)
    assert (options["min-score"], "baseline" in options) == ("0.8", False)
    await operator.settle(4)

    assert (replicas(operator), serving(operator)) == (1, 0)
    # Gateways offer it to gates alone.
    (pod,) = (each for each in operator.keys(PODS.plural) if "chat" in each.name)
    assert operator.body(pod)["metadata"]["labels"]["tessera.dev/leaving"] == "tried"
    ready = operator.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "GateRunning")
    assert "the first version is asked" in ready["message"]
    assert "stableRevision" not in operator.status
    assert list(operator.revisions().values()) == [0]


async def test_once_it_has_the_score_all_replicas_serve(operator: GatedOperator) -> None:
    job = await operator.ask("candidate")
    (tried,) = (each for each in operator.keys(PODS.plural) if "chat" in each.name)
    operator.report(job, strata=[TOTAL])
    await operator.settle(12)

    assert (replicas(operator), serving(operator)) == (2, 2)
    assert tried in operator.keys(PODS.plural), "the replica that was tried is the first"
    assert "tessera.dev/leaving" not in operator.body(tried)["metadata"]["labels"]
    assert list(operator.revisions().values()) == [1]
    assert operator.status["stableRevision"] in operator.revisions()
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["baseline"], "quality" in record) == ("Passed", "", False)
    assert operator.keys(JOBS.plural) == []


async def test_one_that_misses_the_score_serves_nobody_until_the_spec_changes(
    operator: GatedOperator,
) -> None:
    operator.report(await operator.ask("candidate"), **FAILED)
    await operator.settle(12)

    assert (replicas(operator), serving(operator)) == (0, 0)
    ready = operator.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "GateNotPassed")
    assert "Nothing serves until the spec changes" in ready["message"]
    assert operator.condition("Progressing")["reason"] == "RolledBack"
    assert operator.status["candidateRevision"] in operator.revisions()

    operator.edit(7)
    operator.report(await operator.ask("candidate"), strata=[TOTAL])
    await operator.settle(12)
    assert serving(operator) == 2


async def test_who_may_skip_the_gate_puts_it_in_force(operator: GatedOperator) -> None:
    operator.report(await operator.ask("candidate"), **FAILED)
    await operator.settle(8)
    skip = {"by": "anna", "reason": "the suite is for another task"}
    operator.edit(rollout={**operator.fields["rollout"], "skipGate": skip})
    await operator.settle(12)

    assert serving(operator) == 2
    assert operator.status["rollouts"][0]["reason"] == "Skipped"


async def test_a_gate_that_is_missing_lets_a_first_version_wait() -> None:
    operator = GatedOperator()
    gate = operator.keys("qualitygates")[0]
    operator.cluster.discard(gate)
    await operator.settle(6)
    assert serving(operator) == 0
    assert operator.condition("Ready")["reason"] == "GateNotPassed"
    assert operator.condition("Progressing")["reason"] == "GateNotFound"

    operator.put_gate()
    await operator.settle(8)
    assert serving(operator) == 1
    assert list(operator.revisions().values()) == [1]


async def test_what_serves_goes_on_once_a_gate_asks_for_a_score() -> None:
    operator = GatedOperator()
    operator.fields.pop("rollout")
    operator.edit()
    await operator.settle(6)
    assert serving(operator) == 1
    operator.put_gate(minScore="0.8")
    operator.fields["rollout"] = {"strategy": "Gated", "gateRef": "answers"}
    operator.edit()
    for _ in range(6):
        await operator.step()
        assert serving(operator) == 1
    assert list(operator.revisions().values()) == [1]


async def test_a_service_that_is_deleted_and_created_again_is_tried_again(
    operator: GatedOperator,
) -> None:
    operator.report(await operator.ask("candidate"), strata=[TOTAL])
    await operator.settle(12)
    assert serving(operator) == 2

    operator.body(CHAT).pop("status")
    operator.body(CHAT)["metadata"]["uid"] = "uid-of-another"
    operator.edit(7)
    for plural in ("controllerrevisions", "deployments", "pods"):
        for key in operator.keys(plural):
            operator.cluster.discard(key)
    for _ in range(8):
        await operator.step()
        assert serving(operator) == 0
    assert operator.condition("Ready")["reason"] == "GateRunning"
    assert list(operator.revisions().values()) == [0]
