"""A version in force without a replica that gets ready holds back no edit for ever."""

import pytest

from tessera.resources.api_resources import CONTROLLER_REVISIONS, NODES, PODS
from tests.reconcile.gated_operator import ROLLOUT, GatedOperator

TOTAL = ["total", 400, 0.8, 0.9, -10, -7, 3, False]
SKIP = {"skipGate": {"by": "ann", "reason": "an outage"}}


def readiness(operator: GatedOperator) -> dict[int, str]:
    """Return what is recorded of the replicas of each version, by its number."""
    bodies = [operator.body(key) for key in operator.keys(CONTROLLER_REVISIONS.plural)]
    return {
        body["revision"]: body["metadata"]["annotations"]["tessera.dev/readiness"]
        for body in bodies
    }


async def wait(operator: GatedOperator, minutes: int) -> None:
    for _ in range(minutes):
        await operator.step(60)


@pytest.fixture
async def broken() -> GatedOperator:
    """Return an operator whose service never had a replica that is ready, on one slice."""
    operator = GatedOperator()
    operator.broken = "--seed=13"
    operator.set_slices(1)
    operator.edit(13)
    await operator.settle(4)
    assert readiness(operator) == {1: "Pending"}
    return operator


@pytest.fixture
async def served() -> GatedOperator:
    """Return an operator whose service served, and whose containers fail by now."""
    operator = GatedOperator()
    operator.set_slices(1)
    await operator.settle()
    assert readiness(operator) == {1: "Ready"}
    operator.broken = "--host"
    operator.break_replicas()
    return operator


@pytest.mark.full
async def test_a_version_is_recorded_as_one_that_served() -> None:
    operator = GatedOperator()
    await operator.settle(2)
    assert readiness(operator) == {1: "Pending"}
    await operator.settle()
    assert readiness(operator) == {1: "Ready"}


async def test_the_successor_of_one_that_never_served_goes_on_at_once_in_time(
    broken: GatedOperator,
) -> None:
    broken.edit(7)
    await wait(broken, 8)
    progressing = broken.condition("Progressing")
    assert "spec.rollout.skipGate" in progressing["message"]
    assert "counts as down from 2026-11-20T" in progressing["message"]
    await wait(broken, 8)
    await broken.settle(8)
    assert broken.condition("Progressing")["reason"] == "RolloutComplete"
    assert broken.status["rollouts"][0]["reason"] == "NoBaseline"
    assert readiness(broken) == {2: "Ready"}


@pytest.mark.full
async def test_with_a_score_it_is_tried_on_the_device_of_a_replica_that_is_not_ready(
    broken: GatedOperator,
) -> None:
    broken.put_gate(minScore="0.8")
    await wait(broken, 16)
    assert readiness(broken) == {1: "Overdue"}
    broken.edit(7)
    job = await broken.ask("candidate")
    options = broken.arguments(job)
    assert (options["min-score"], "baseline" in options) == ("0.8", False)
    broken.report(job, strata=[TOTAL])
    await broken.settle(12)
    assert broken.status["rollouts"][0]["reason"] == "Passed"
    assert readiness(broken) == {2: "Ready"}


async def test_answers_on_the_claim_are_the_baseline_of_one_that_fails() -> None:
    operator = GatedOperator()
    operator.set_slices(1)
    await operator.settle()
    operator.edit(7)
    operator.report(await operator.ask("baseline"))
    await operator.settle(2)
    operator.broken = "--host"
    operator.break_replicas()
    await wait(operator, 16)
    assert readiness(operator)[1] == "Failing"
    operator.broken = ""
    job = await operator.ask("candidate")
    assert operator.arguments(job)["baseline"]
    operator.report(job)
    await operator.settle(12)
    assert operator.status["rollouts"][0]["reason"] == "Passed"


@pytest.mark.full
async def test_the_successor_of_one_that_fails_without_answers_has_no_baseline(
    served: GatedOperator,
) -> None:
    served.edit(7)
    await wait(served, 16)
    served.broken = ""
    await wait(served, 2)
    await served.settle(12)
    assert served.status["rollouts"][0]["reason"] == "NoBaseline"
    assert served.condition("Progressing")["reason"] == "RolloutComplete"


async def test_where_the_platform_demands_a_gate_breaking_a_version_passes_nothing() -> None:
    operator = GatedOperator()
    operator.gated_namespaces = frozenset({"team-a"})
    operator.restart()
    operator.set_slices(1)
    await operator.settle()
    operator.broken = "--host"
    operator.break_replicas()
    operator.edit(7)
    await wait(operator, 30)
    assert max(operator.revisions().values()) == 1
    progressing = operator.condition("Progressing")
    assert "spec.rollout.skipGate" in progressing["message"]
    assert "spec.minScore" in progressing["message"]
    assert operator.running_job() is None
    operator.broken = ""
    operator.edit(7, rollout={**ROLLOUT, **SKIP})
    await operator.settle(12)
    assert operator.status["rollouts"][0]["reason"] == "Skipped"
    assert operator.condition("Progressing")["reason"] == "RolloutComplete"


@pytest.mark.full
async def test_a_version_after_a_skipped_gate_is_compared_with_what_served_before() -> None:
    operator = GatedOperator()
    await operator.settle()
    operator.broken = "--seed=13"
    operator.edit(13, rollout={**ROLLOUT, **SKIP})
    await operator.settle(8)
    await wait(operator, 16)
    assert readiness(operator) == {1: "Ready", 2: "Overdue"}
    operator.edit(7)
    job = await operator.ask("candidate")
    assert operator.arguments(job)["baseline"]
    assert operator.status["readyReplicas"] == 1
    operator.report(job)
    await operator.settle(12)
    assert operator.status["rollouts"][0]["reason"] == "Passed"
    assert max(operator.revisions().values()) == 3


@pytest.mark.full
async def test_what_never_served_is_not_gone_back_to_without_a_gate(broken: GatedOperator) -> None:
    await wait(broken, 16)
    broken.edit(7)
    await broken.settle(12)
    broken.broken = ""
    broken.edit(13)
    await broken.settle(4)
    assert broken.condition("Progressing")["reason"] != "RolloutComplete"
    assert max(broken.revisions().values()) == 2


@pytest.mark.full
@pytest.mark.parametrize("case", ["zero", "unbound", "NotReady"])
async def test_what_is_no_failure_of_a_version_lets_no_edit_pass(
    case: str, broken: GatedOperator
) -> None:
    if case == "zero":
        broken.fields["scaling"] = None
        broken.edit(13, replicas=0)
    elif case == "NotReady":
        (node,) = broken.keys(NODES.plural)
        broken.body(node)["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        broken.cluster.touch(node)
    else:
        broken.unbound = True
        for pod in broken.keys(PODS.plural):
            broken.cluster.discard(pod)
    await wait(broken, 30)
    assert readiness(broken) == {1: "Pending"}
