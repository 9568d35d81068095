"""A ControllerRevision of the version in force that is deleted is written again, or named."""

import pytest

from tessera.resources.api_resources import CONTROLLER_REVISIONS, PODS
from tessera.resources.manifest import ObjectKey
from tests.reconcile.gated_operator import ROLLOUT, GatedOperator

SKIP = {"skipGate": {"by": "ann", "reason": "an outage"}}


@pytest.fixture
async def operator() -> GatedOperator:
    """Return an operator with two replicas of a second version in force."""
    operator = GatedOperator({"minReplicas": 2})
    await operator.settle()
    operator.edit(7)
    operator.report(await operator.ask("candidate"))
    await operator.settle(16)
    assert sorted(operator.revisions().values()) == [1, 2]
    assert operator.status["readyReplicas"] == 2
    return operator


def lose_revision(operator: GatedOperator) -> None:
    """Delete the ControllerRevision of the version in force."""
    name = operator.status["stableRevision"]
    operator.cluster.discard(ObjectKey(CONTROLLER_REVISIONS.plural, "team-a", name))


def restart_replica(operator: GatedOperator) -> None:
    """Delete one replica, which its Deployment replaces by another."""
    replicas = [key for key in operator.keys(PODS.plural) if key.name.startswith("chat-")]
    operator.cluster.discard(replicas[0])


async def test_it_is_written_again_as_it_was(operator: GatedOperator) -> None:
    before = operator.revisions()
    lose_revision(operator)
    await operator.settle(4)
    assert operator.revisions() == before
    assert operator.condition("Accepted")["reason"] == "Valid"


@pytest.mark.full
async def test_an_edit_beside_it_is_tried_as_before(operator: GatedOperator) -> None:
    stable = operator.status["stableRevision"]
    operator.edit(8)
    lose_revision(operator)
    job = await operator.ask("candidate")
    assert operator.arguments(job)["baseline"]
    assert operator.status["stableRevision"] == stable


@pytest.mark.full
async def test_after_a_restart_the_spec_of_its_digest_is_recorded(operator: GatedOperator) -> None:
    stable = operator.status["stableRevision"]
    lose_revision(operator)
    operator.restart()
    await operator.settle(4)
    assert operator.revisions()[stable] == 2
    assert operator.condition("Accepted")["reason"] == "Valid"
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"


async def lose_it_while_the_operator_is_down(operator: GatedOperator) -> None:
    lose_revision(operator)
    operator.edit(8)
    operator.restart()
    await operator.settle(4)
    accepted = operator.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "RevisionMissing")
    assert "spec.rollout.skipGate" in accepted["message"]
    assert "chat-" in accepted["message"]


async def test_one_that_nobody_knows_keeps_counts_and_opens_replicas_that_restart(
    operator: GatedOperator,
) -> None:
    await lose_it_while_the_operator_is_down(operator)
    for _ in range(2):
        restart_replica(operator)
        await operator.settle(6)
        assert operator.status["readyReplicas"] == 2


@pytest.mark.full
async def test_it_is_found_once_the_spec_is_as_it_was(operator: GatedOperator) -> None:
    stable = operator.status["stableRevision"]
    await lose_it_while_the_operator_is_down(operator)
    operator.edit(7)
    await operator.settle(4)
    assert operator.revisions()[stable] == 2
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"


@pytest.mark.full
@pytest.mark.parametrize("way", ["skip", "back"])
async def test_a_skipped_gate_or_an_earlier_version_takes_its_place(
    way: str, operator: GatedOperator
) -> None:
    await lose_it_while_the_operator_is_down(operator)
    if way == "skip":
        operator.edit(8, rollout={**ROLLOUT, **SKIP})
    else:
        operator.edit()
    await operator.settle(20)
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"
    assert operator.status["readyReplicas"] == 2
