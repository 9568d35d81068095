"""Whole cycles of a precision that is tried without an edit, against an in-memory cluster."""

import pytest

from tessera.domain.quality.names import PRECISIONS_ANNOTATION
from tessera.resources.api_resources import CONTROLLER_REVISIONS
from tests.reconcile.gated_operator import FAILED, GatedOperator

LISTED = {"precision": {"variants": [{"precision": "fp8"}]}}


def precisions(operator: GatedOperator) -> str:
    (revision,) = operator.keys(CONTROLLER_REVISIONS.plural)
    annotation: str = operator.body(revision)["metadata"]["annotations"][PRECISIONS_ANNOTATION]
    return annotation


@pytest.fixture
async def operator() -> GatedOperator:
    """Return an operator whose service would run in fp8, if that had been tried."""
    operator = GatedOperator()
    operator.fields |= LISTED
    for key in operator.keys(CONTROLLER_REVISIONS.plural):
        operator.cluster.discard(key)
    operator.edit()
    await operator.settle()
    assert precisions(operator) == "fp8"
    (revision,) = operator.keys(CONTROLLER_REVISIONS.plural)
    operator.body(revision)["metadata"]["annotations"][PRECISIONS_ANNOTATION] = "checkpoint"
    operator.cluster.touch(revision)
    return operator


async def test_the_version_in_force_says_that_it_may_serve_in_a_precision_that_passed(
    operator: GatedOperator,
) -> None:
    job = await operator.ask("candidate")
    assert operator.condition("Progressing")["reason"] == "GateRunning"
    assert operator.status["candidate"]["variant"]["precision"] == "fp8"
    operator.report(job)
    await operator.settle(12)
    assert precisions(operator) == "checkpoint,fp8"
    assert list(operator.revisions().values()) == [1]
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["changes"]) == ("Passed", ["spec.precision: fp8"])
    assert operator.gate_status["verdicts"][0]["precision"] == "fp8"
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"
    assert "candidate" not in operator.status


async def test_a_precision_that_failed_leaves_a_record_and_the_service_as_it_was(
    operator: GatedOperator,
) -> None:
    operator.report(await operator.ask("candidate"), **FAILED)
    for _ in range(12):
        await operator.step()
        assert operator.condition("Progressing")["reason"] != "RolledBack"
    assert precisions(operator) == "checkpoint"
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["isRefused"]) == ("Failed", True)
    assert len(operator.keys("deployments")) == 1
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"


async def test_a_refusal_without_a_verdict_stays_until_the_spec_changes(
    operator: GatedOperator,
) -> None:
    await operator.ask("candidate")
    for _ in range(8):
        if (job := operator.running_job()) is not None:
            operator.kill(job)
        await operator.step()
    (record,) = operator.status["rollouts"]
    assert (record["reason"], record["isRefused"]) == ("JobFailed", True)
    await operator.settle(20)
    assert operator.status["rollouts"][0]["isRefused"]
    assert len(operator.keys("deployments")) == 1
