"""Tenants who edit, delete and forge what a gate reads, in whole cycles: users keep the stable
version."""

from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.quality.gate_jobs import GateRun, attempt_name, scorer_of
from tessera.domain.quality.names import answers_claim_name
from tessera.domain.quality.rollout_state import revision_name, rollout_state
from tessera.resources.api_resources import CLAIMS, CONTROLLER_REVISIONS, DEPLOYMENTS, JOBS
from tessera.resources.manifest import ObjectKey
from tests.builders import SMALL, a_budget, a_service, a_spec
from tests.domain.quality.gate_world import a_gate, a_gate_spec
from tests.domain.quality.gated_fleet import (
    A_CHANGE,
    a_first_revision,
    a_gated_fleet,
    a_gated_spec,
)
from tests.hostile.score import SCORE
from tests.memory_operator import CHAT
from tests.reconcile.gated_operator import GATE, GatedOperator

pytestmark = pytest.mark.anyio


@pytest.fixture
async def operator() -> GatedOperator:
    """Return an operator whose service has its first version in force, and serves."""
    operator = GatedOperator()
    await operator.settle(5)
    assert list(operator.revisions().values()) == [1]
    return operator


def expect_stable(operator: GatedOperator) -> None:
    """Fail if another version than the first one is in force, or users have no replica."""
    numbers = sorted(operator.revisions().values())
    is_lost = numbers[-1:] != [1] or operator.status.get("readyReplicas", 0) < 1
    SCORE.add(int(is_lost))
    assert not is_lost, (numbers, operator.status)


async def test_no_annotation_of_its_deployment_opens_a_candidate_to_users(
    operator: GatedOperator,
) -> None:
    first = operator.keys(DEPLOYMENTS.plural)
    operator.edit(7)
    await operator.ask("candidate")
    (tried,) = set(operator.keys(DEPLOYMENTS.plural)) - set(first)
    annotations = operator.body(tried)["metadata"]["annotations"]
    for name in list(annotations):
        annotations[name] = operator.body(first[0])["metadata"]["annotations"].get(name, "")
        operator.cluster.touch(tried)
        await operator.settle(3)
        expect_stable(operator)
        assert operator.status["readyReplicas"] == 1


async def test_a_status_that_is_wiped_or_forged_promotes_nothing(operator: GatedOperator) -> None:
    operator.edit(7)
    await operator.ask("candidate")
    edited = operator.status["candidateRevision"]
    forged = {
        "stableRevision": edited,
        "rollouts": [{"revision": edited, "digest": "d", "reason": "Passed", "endedAt": "x"}],
    }
    for status in ({}, forged, {"candidate": {"digest": 7}}, {"candidateRevision": "other"}):
        operator.body(CHAT)["status"] = dict(status)
        operator.cluster.touch(CHAT)
        await operator.settle(3)
        expect_stable(operator)
    operator.body(GATE)["status"] = {"verdicts": [{"reason": "Passed"}], "suite": 7}
    operator.cluster.touch(GATE)
    await operator.settle(3)
    expect_stable(operator)


async def test_a_gate_that_is_deleted_or_replaced_lets_no_change_pass(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    job = await operator.ask("candidate")
    operator.cluster.discard(GATE)
    operator.report(job)
    await operator.settle(3)
    expect_stable(operator)
    assert operator.condition("Progressing")["reason"] == "GateNotFound"
    operator.put_gate(maxDropPoints="50")
    await operator.settle(3)
    expect_stable(operator)


async def test_a_service_that_is_deleted_while_it_is_tried_leaves_no_job(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    await operator.ask("candidate")
    operator.cluster.discard(CHAT)
    await operator.settle(3)
    assert operator.keys(JOBS.plural) == []


async def test_two_edits_while_one_is_tried_pass_by_no_answer_to_the_first(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    job = await operator.ask("candidate")
    operator.edit(8)
    operator.report(job)
    await operator.settle(3)
    expect_stable(operator)
    assert operator.gate_status.get("verdicts", []) == []


SHAPE = {
    **{"parameters": 1_235_814_400, "layers": 16, "attentionHeads": 32, "kvHeads": 8},
    **{"headDim": 64, "hiddenSize": 2048, "maxPositionEmbeddings": 131_072, "bitsPerWeight": 16},
}


@pytest.mark.parametrize("dimension", [{"maxPositionEmbeddings": 4096}, {"pooling": "Embed"}])
async def test_no_dimension_of_the_model_changes_its_answers_past_the_gate(
    dimension: dict[str, Any],
) -> None:
    operator = GatedOperator()
    operator.fields["model"] = {"uri": SMALL, "shape": SHAPE}
    operator.edit()
    await operator.settle(5)
    first = {key: operator.body(key)["spec"] for key in operator.keys(DEPLOYMENTS.plural)}
    operator.edit(model={"uri": SMALL, "shape": SHAPE | dimension})
    await operator.settle(3)
    now = {key: operator.body(key)["spec"] for key in first}
    SCORE.add(int(now != first))
    assert now == first
    expect_stable(operator)


async def hours_of(operator: GatedOperator, role: str, state: str) -> int:
    """Return for how many of 8 hours a version has a replica while its gate decides nothing."""
    operator.edit(7)
    await operator.ask(role)
    hours = 0
    for _ in range(8):
        if (job := operator.running_job()) is not None:
            operator.report(job, state=state, verdict=None, strata=[])
        await operator.step(5)
        await operator.step(3600)
        hours += len(operator.keys(DEPLOYMENTS.plural)) > 1
    expect_stable(operator)
    return hours


async def test_no_device_is_paid_for_while_the_suite_is_broken(operator: GatedOperator) -> None:
    hours = await hours_of(operator, "baseline", "suiteInvalid")
    SCORE.add(int(hours > 0))
    assert hours == 0
    operator.report(await operator.ask("baseline"))
    await operator.ask("candidate")
    assert len(operator.keys(DEPLOYMENTS.plural)) == 2


@pytest.mark.parametrize("state", ["judgeUnreliable", "requestsRefused"])
async def test_few_hours_are_paid_for_while_judge_or_gateway_refuse(
    operator: GatedOperator, state: str
) -> None:
    hours = await hours_of(operator, "candidate", state)
    SCORE.add(int(hours > 2))
    assert hours <= 2
    # It is asked again, and may be reliable by then.
    for _ in range(7):
        await operator.step(3600)
    operator.report(await operator.ask("candidate"))
    await operator.settle(4)
    assert max(operator.revisions().values()) == 2


def set_strategy(operator: GatedOperator, strategy: str) -> None:
    body = operator.body(CHAT)
    rollout = {"strategy": strategy, "gateRef": "answers"}
    operator.cluster.put(INFERENCE_SERVICES, {**body, "spec": {**body["spec"], "rollout": rollout}})


async def test_gates_off_and_on_again_put_no_edit_in_force_behind_them(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    set_strategy(operator, "Rolling")
    await operator.settle(8)
    set_strategy(operator, "Gated")
    for _ in range(8):
        await operator.step()
        expect_stable(operator)


async def test_gates_off_and_on_again_while_one_is_tried_leave_users_a_replica(
    operator: GatedOperator,
) -> None:
    operator.edit(7)
    await operator.ask("candidate")
    set_strategy(operator, "Rolling")
    await operator.settle(8)
    set_strategy(operator, "Gated")
    for _ in range(12):
        await operator.step()
        SCORE.add(int(operator.status["readyReplicas"] < 1))
        assert operator.status["readyReplicas"] >= 1
    # The version in force is back, and the other one is tried again.
    expect_stable(operator)
    assert (await operator.ask("candidate")).name


async def test_who_edits_all_the_time_leaves_no_trail_of_objects(operator: GatedOperator) -> None:
    for number in range(1, 16):
        operator.edit(number)
        await operator.step(1)
    await operator.settle(4)
    expect_stable(operator)
    kinds = (CONTROLLER_REVISIONS, DEPLOYMENTS, JOBS)
    counts = {kind.plural: len(operator.keys(kind.plural)) for kind in kinds}
    SCORE.add(int(max(counts.values()) > 3))
    assert max(counts.values()) <= 3, counts
    assert len(operator.status["rollouts"]) <= 16


async def test_a_claim_of_that_name_that_is_of_somebody_else_is_not_asked_into(
    operator: GatedOperator,
) -> None:
    meta = {"name": answers_claim_name("answers"), "namespace": "team-a"}
    operator.cluster.put(CLAIMS, {"metadata": meta, "spec": {"volumeName": "theirs"}})
    before = operator.body(ObjectKey(CLAIMS.plural, "team-a", meta["name"]))
    operator.edit(7)
    await operator.settle(6)
    expect_stable(operator)
    SCORE.add(len(operator.keys(JOBS.plural)))
    assert operator.keys(JOBS.plural) == []
    assert operator.body(ObjectKey(CLAIMS.plural, "team-a", meta["name"])) == before


async def test_a_version_that_cannot_be_read_lets_no_edit_pass_as_a_first_one(
    operator: GatedOperator,
) -> None:
    (revision,) = operator.keys(CONTROLLER_REVISIONS.plural)
    operator.body(revision)["data"]["spec"]["ofANewerTessera"] = True
    operator.cluster.touch(revision)
    operator.edit(7)
    operator.restart()
    operator.raises_defects = False
    await operator.settle(5)
    numbers = operator.revisions()
    SCORE.add(int(numbers != {revision.name: 1}))
    assert numbers == {revision.name: 1}
    assert len(operator.keys(DEPLOYMENTS.plural)) == 1
    messages = [each["message"] for each in operator.status["conditions"]]
    assert any(f"ControllerRevision/{revision.name}" in message for message in messages), messages


@pytest.mark.parametrize("number", [2**63 - 1, 2**53])
def test_the_greatest_number_of_a_version_stays_in_force(number: int) -> None:
    """The API server refuses the next one, so no change is promoted, and the writer says why."""
    service = a_service("chat", a_gated_spec(**A_CHANGE))
    stable = a_first_revision(service, number=number)
    state = rollout_state(service, [stable], a_gate())
    assert state.stable == stable
    assert (state.phase, state.next_number) == ("Candidate", number + 1)


def test_names_of_63_characters_have_jobs_claims_and_versions_of_their_own() -> None:
    gates = [a_gate(ref=Ref("team-a", "g" * 62 + end), uid=f"uid-{end}") for end in "ab"]
    services = [Ref("team-a", "s" * 62 + end) for end in "ab"]
    runs = [
        GateRun(
            gate=gate,
            spec=a_gate_spec(),
            service=service,
            role="Candidate",
            digest="d" * 64,
            scorer=scorer_of(a_gate_spec(), ""),
        )
        for gate in gates
        for service in services
    ]
    jobs = {attempt_name(run.name, 99) for run in runs}
    claims = {answers_claim_name(gate.ref.name) for gate in gates}
    versions = {revision_name(service.name, "d" * 64) for service in services}
    assert (len(jobs), len(claims), len(versions)) == (4, 2, 2)
    assert max(map(len, jobs)) <= 63
    assert max(map(len, (*claims, *versions))) <= 253


def test_a_name_that_a_change_would_offer_leads_nowhere_before_it_passed() -> None:
    other = a_service("llama", a_spec())
    adapters = [{"name": "llama", "uri": "hf://a/b"}, {"name": "gpt", "uri": "hf://a/c"}]
    hostile = a_service("chat", a_gated_spec(model={"adapters": adapters, "servedName": "llama"}))
    stable = a_first_revision(a_service("chat", a_gated_spec()))
    before = a_service("chat", a_gated_spec())

    def names(service: ObservedService) -> list[Any]:
        observed = GatewayObservations(services=(service, other), revisions=(stable,))
        models = build_directory(observed, RateLimitsSpec()).models
        return [(model.service, model.names, model.adapters) for model in models]

    SCORE.add(int(names(hostile) != names(before)))
    assert names(hostile) == names(before)


def test_who_edits_every_cycle_holds_no_device_that_another_service_needs() -> None:
    fleet = a_gated_fleet(devices=3)
    for number in range(6):
        fleet.edit(engine={"extraArgs": [f"--seed={number}"]})
        fleet.cycle()
    fleet.others = [a_service("other", a_spec(replicas=1))]
    for number in range(6, 24):
        fleet.edit(engine={"extraArgs": [f"--seed={number}"]})
        fleet.cycle()
    plans = fleet.plans
    running = [pod for pod in fleet.pods.values() if pod.service.name == "other"]
    SCORE.add(int(not running))
    assert plans[Ref("team-a", "other")].desired_pods == 1
    assert running, fleet.describe()


def test_what_is_tried_is_paid_for_while_it_is_and_no_longer() -> None:
    fleet = a_gated_fleet()
    fleet.fields["budgets"] = (a_budget(amount="9000.00", window="Month"),)
    fleet.edit(**A_CHANGE)
    fleet.run(60)
    assert len(fleet.memory.meters["team-a"].running) == 3
    fleet.decide_on_candidate("Failed")
    fleet.run(60)
    assert len(fleet.memory.meters["team-a"].running) == 2


def test_a_revision_of_another_service_or_of_its_namesake_is_none_of_its_own() -> None:
    service = a_service("chat", a_gated_spec(**A_CHANGE))
    namesake = a_first_revision(service, service_uid="uid-before", number=9)
    state = rollout_state(service, [a_first_revision(service), namesake], a_gate())
    assert state.stable is not None
    assert state.stable.number == 1
