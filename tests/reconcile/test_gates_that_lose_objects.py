"""A change under a gate whose objects are deleted ends, or says what ends it, in each state."""

import pytest

from tessera.api.api_resource import ApiResource
from tessera.resources.api_resources import CLAIMS, CONTROLLER_REVISIONS, JOBS
from tests.cases import full
from tests.reconcile.gated_operator import FAILED, GATE, GatedOperator

STATES = ("waits", "baseline", "candidate", "passed", "refused")
KINDS = (JOBS, CLAIMS, CONTROLLER_REVISIONS)


async def reach(operator: GatedOperator, state: str) -> None:
    """Bring a change into a state; it waits while its gate has not created a Job."""
    await operator.settle()
    operator.edit(7)
    if state == "waits":
        await operator.step()
        return
    if state == "baseline":
        await operator.ask("baseline")
        return
    job = await operator.ask("candidate")
    if state in {"passed", "refused"}:
        operator.report(job, **(FAILED if state == "refused" else {}))
        await operator.step()


async def finish(operator: GatedOperator) -> str:
    """Let Jobs answer until the change has ended; return how."""
    for _ in range(40):
        if (job := operator.running_job()) is not None:
            operator.report(job)
        await operator.step()
        records = operator.status.get("rollouts", [])
        if records and operator.running_job() is None:
            await operator.settle(8)
            return str(operator.status["rollouts"][0]["reason"])
    raise AssertionError(operator.condition("Progressing"))


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(KINDS, id="all"),
        *(pytest.param((kind,), marks=pytest.mark.full, id=kind.plural) for kind in KINDS),
    ],
)
@pytest.mark.parametrize("state", [STATES[0], *full(*STATES[1:])])
async def test_a_change_ends_whatever_is_deleted(
    state: str, kinds: tuple[ApiResource, ...]
) -> None:
    operator = GatedOperator()
    await reach(operator, state)
    for kind in kinds:
        for key in operator.keys(kind.plural):
            operator.cluster.discard(key)
    assert await finish(operator) == ("Failed" if state == "refused" else "Passed")
    reason = operator.condition("Progressing")["reason"]
    assert reason == ("RolledBack" if state == "refused" else "RolloutComplete")
    assert operator.status["readyReplicas"] == 1


@pytest.mark.parametrize("state", ["baseline", *full("passed", "refused")])
async def test_a_change_whose_gate_is_deleted_names_it_until_it_is_there(state: str) -> None:
    operator = GatedOperator()
    await reach(operator, state)
    gate = operator.body(GATE)["spec"]
    for key in (GATE, *operator.keys(JOBS.plural), *operator.keys(CLAIMS.plural)):
        operator.cluster.discard(key)
    await operator.settle(12)
    if state == "passed":
        assert operator.condition("Progressing")["reason"] in {"GateNotFound", "RolloutComplete"}
    elif state == "refused":
        assert operator.condition("Progressing")["reason"] == "RolledBack"
        return
    else:
        assert operator.condition("Progressing")["reason"] == "GateNotFound"
        assert "create or correct the gate" in operator.condition("Progressing")["message"]
    operator.put_gate(**{name: gate[name] for name in gate if name != "suite"})
    assert await finish(operator) == "Passed"
