"""A change that can change answers waits beside the version in force until its gate decides."""

from dataclasses import replace
from typing import Any

from tessera.api.reasons import RevisionReason
from tessera.api.ref import Ref
from tessera.domain.observed.snapshot import Resolution, RevisionQuery
from tessera.domain.planning.trials import change_trial
from tessera.domain.quality.candidates import split_candidates
from tests.builders import MEDIUM, a_budget, a_node, a_pool, a_service, a_snapshot, a_spec
from tests.domain.quality.gated_fleet import (
    A_CHANGE,
    GatedVariantFleet,
    a_first_revision,
    a_gated_fleet,
    a_gated_spec,
    an_always_open_window,
    version_of,
)
from tests.domain.variant_fleet import CHAT

ANOTHER = {"engine": {"extraArgs": ["--seed=8"]}}


def expect_floor(fleet: GatedVariantFleet, seconds: float, floor: int) -> None:
    """Run for so long; fail as soon as fewer replicas serve, or any of a version that waits."""
    for _ in range(int(seconds / 5)):
        fleet.cycle()
        assert sum(fleet.serving().values()) >= floor, fleet.describe()
        assert fleet.serving().keys() <= fleet.promoted, fleet.describe()


def test_a_passed_change_takes_over_with_the_replica_that_was_tried() -> None:
    fleet = a_gated_fleet()
    stable = fleet.state.digest
    fleet.edit(**A_CHANGE)
    expect_floor(fleet, 60, 2)
    assert (fleet.state.phase, fleet.serving()) == ("Candidate", {stable: 2})
    (tried,) = fleet.tried_pods()
    assert fleet.gated.pod is not None
    assert fleet.gated.pod.ref == tried.ref
    assert (tried.containers_ready, tried.takes_requests, tried.leaving) == (True, False, True)

    fleet.decide_on_candidate("Passed")
    expect_floor(fleet, 120, 2)

    assert fleet.serving() == {fleet.state.digest: 2}
    assert (tried.ref in fleet.pods, fleet.lost) == (True, [])
    assert len(fleet.workloads) == 1, "the Deployment that was tried is the only one"


def test_a_change_costs_what_the_version_in_force_does_in_whatever_pool_it_is_tried() -> None:
    fleet = a_gated_fleet(devices=2)
    fleet.pools = [*fleet.pools, a_pool("spare", "3.36")]
    fleet.nodes = [*fleet.nodes, a_node("spare", whole=1)]
    fleet.edit(**A_CHANGE)
    fleet.run(60)
    (tried,) = fleet.tried_pods()
    assert tried.variant.startswith("spare")
    snapshot = fleet.snapshot()
    gates = {each.ref: each for each in snapshot.gates}
    trial = change_trial(fleet.plans[CHAT], snapshot, gates, fleet.plans)
    assert trial is not None
    assert trial.candidate.variant.startswith("spare")
    assert trial.candidate.per_million_tokens == trial.baseline.per_million_tokens


def test_a_failed_change_leaves_nothing_and_the_version_in_force_alone() -> None:
    fleet = a_gated_fleet()
    before = dict(fleet.workloads)
    fleet.edit(**A_CHANGE)
    fleet.run(60)
    fleet.decide_on_candidate("Failed")
    expect_floor(fleet, 60, 2)

    assert fleet.state.phase == "Refused"
    assert fleet.workloads == before
    assert all(pod.takes_requests for pod in fleet.pods.values())

    fleet.edit(**ANOTHER)
    fleet.run(60)
    assert (fleet.state.phase, len(fleet.tried_pods())) == ("Candidate", 1)


def test_an_inconclusive_gate_decides_by_what_it_requires() -> None:
    for require, phase in (("NotWorse", "Stable"), ("Proven", "Refused")):
        fleet = a_gated_fleet()
        fleet.require = require
        fleet.edit(**A_CHANGE)
        fleet.run(60)
        fleet.decide_on_candidate("Inconclusive")
        fleet.run(15)
        assert fleet.state.phase == phase


def test_without_a_free_device_nothing_is_created_and_the_plan_says_why() -> None:
    fleet = a_gated_fleet(devices=2)
    before = dict(fleet.workloads)
    fleet.edit(**A_CHANGE)
    expect_floor(fleet, 60, 2)

    assert fleet.workloads == before
    assert fleet.gated.missing_device == (
        "no nvidia.com/gpu of AcceleratorPool/a100 is free, 2 of 2 ready replicas stay anyway, and "
        "spec.rollout.gateWindow is not set: add a node, or set it"
    )


def test_within_its_window_one_replica_lends_its_device_and_never_the_last_one() -> None:
    fleet = a_gated_fleet(devices=2)
    fleet.edit(**A_CHANGE, rollout=an_always_open_window())
    expect_floor(fleet, 80, 1)
    assert len(fleet.tried_pods()) == 1

    fleet.decide_on_candidate("Failed")
    expect_floor(fleet, 80, 1)
    assert (sum(fleet.serving().values()), fleet.lost) == (2, [])

    alone = a_gated_fleet(devices=1, floor=1)
    alone.edit(floor=1, **A_CHANGE, rollout=an_always_open_window())
    expect_floor(alone, 120, 1)
    assert alone.tried_pods() == []


def test_a_lent_device_goes_back_when_another_replica_is_lost() -> None:
    fleet = a_gated_fleet(devices=3, floor=3)
    fleet.edit(floor=3, **A_CHANGE, rollout=an_always_open_window())
    expect_floor(fleet, 60, 2)
    assert len(fleet.tried_pods()) == 1

    fleet.nodes = [a_node("a100", whole=2)]
    (lost, *_) = [ref for ref, pod in fleet.pods.items() if pod.takes_requests]
    del fleet.pods[lost]
    fleet.run(60)

    assert fleet.tried_pods() == []
    assert sum(fleet.serving().values()) == 2


def test_a_device_that_the_version_in_force_wants_is_given_back() -> None:
    fleet = a_gated_fleet()
    fleet.edit(**A_CHANGE)
    fleet.run(60)
    assert len(fleet.tried_pods()) == 1

    fleet.edit(floor=3, **A_CHANGE)
    fleet.run(90)

    assert (sum(fleet.serving().values()), fleet.tried_pods()) == (3, [])


def test_a_budget_that_pays_for_no_further_replica_refuses_the_candidate() -> None:
    fleet = a_gated_fleet()
    fleet.fields["budgets"] = (a_budget(gpus="2", amount="9000.00"),)
    fleet.edit(**A_CHANGE)
    expect_floor(fleet, 60, 2)

    assert fleet.tried_pods() == []
    assert "TenantBudget/team-a" in (fleet.gated.missing_device or "")


def test_a_version_that_was_in_force_a_short_time_ago_needs_no_gate() -> None:
    fleet = a_gated_fleet()
    fleet.edit(**A_CHANGE)
    fleet.run(60)
    fleet.decide_on_candidate("Passed")
    fleet.run(90)

    fleet.edit()
    expect_floor(fleet, 120, 2)

    assert (fleet.state.phase, fleet.state.stable and fleet.state.stable.number) == ("Stable", 3)
    assert fleet.serving() == {fleet.state.digest: 2}


def test_a_skipped_gate_lets_the_change_go_on() -> None:
    skip = {"skipGate": {"by": "ann", "reason": "a fix"}}
    fleet = a_gated_fleet()
    fleet.edit(**A_CHANGE, rollout=skip)
    expect_floor(fleet, 120, 2)
    assert fleet.serving() == {fleet.state.digest: 2}

    asleep = a_gated_fleet(floor=0)
    asleep.edit(floor=0, **A_CHANGE, rollout=skip)
    asleep.run(30)
    assert (asleep.state.phase, asleep.state.stable and asleep.state.stable.number) == ("Stable", 2)


def test_a_candidate_that_never_gets_ready_is_given_up() -> None:
    fleet = a_gated_fleet()
    tried = fleet.state.digest
    fleet.is_broken = lambda record: record is not None and version_of(record) != tried
    fleet.edit(**A_CHANGE)
    expect_floor(fleet, 30, 2)
    for _ in range(16):
        fleet.cycle(60)

    assert (fleet.state.phase, fleet.tried_pods()) == ("Refused", [])
    assert sum(fleet.serving().values()) == 2


def test_a_stopped_service_and_one_without_its_gate_start_nothing() -> None:
    fleet = a_gated_fleet()
    fleet.edit(replicas=0, **A_CHANGE)
    fleet.run(60)
    assert (fleet.pods, fleet.state.phase) == ({}, "Candidate")

    fleet = a_gated_fleet()
    fleet.has_gate = False
    fleet.edit(**A_CHANGE)
    expect_floor(fleet, 60, 2)
    assert (fleet.state.phase, fleet.tried_pods()) == ("Candidate", [])


def test_what_was_resolved_for_the_candidate_is_not_resolved_again() -> None:
    fleet = a_gated_fleet()
    asked = RevisionQuery(MEDIUM.removeprefix("hf://"), "main")
    commit = Resolution("c" * 40, RevisionReason.REVISION_RESOLVED, "main")
    fleet.fields["resolutions"] = {}
    fleet.edit(uri=MEDIUM)
    fleet.cycle()
    candidate = fleet.plans[Ref("team-a", "chat")].candidate
    assert candidate is not None
    assert candidate.pinned_revision.query == asked
    assert len(fleet.workloads) == 1, "no replica starts before the hub has answered"

    fleet.fields["resolutions"] = {asked: commit}
    fleet.run(60)
    fleet.fields["resolutions"] = {}
    fleet.decide_on_candidate("Passed")
    fleet.restart_operator()
    for _ in range(48):
        service_plan = fleet.cycle()
        assert all(each.pinned_revision.query is None for each in service_plan.versions)

    assert service_plan.service.status.model is not None
    assert service_plan.service.status.model.revision == "c" * 40
    assert fleet.serving() == {fleet.state.digest: 2}


def test_the_candidate_starts_where_most_replicas_run() -> None:
    fleet = a_gated_fleet()
    fleet.pools = [*fleet.pools, a_pool("cheap", "0.10")]
    fleet.nodes = [*fleet.nodes, a_node("cheap", whole=1)]
    fleet.edit(**A_CHANGE)
    fleet.run(30)
    (tried,) = fleet.tried_pods()
    assert tried.variant == "a100-1gpu"


def test_its_device_is_billed_to_the_service_and_counted_once() -> None:
    fleet = a_gated_fleet()
    fleet.fields["budgets"] = (a_budget(amount="9000.00", window="Month"),)
    fleet.edit(**A_CHANGE)
    fleet.run(60)

    running = fleet.memory.meters["team-a"].running
    assert {each.tariff.service for each in running.values()} == {Ref("team-a", "chat")}
    assert len(running) == 3


def test_a_namesake_that_was_created_again_begins_with_its_own_version() -> None:
    fleet = a_gated_fleet()
    fleet.service = replace(
        fleet.service, uid="uid-new", spec=a_gated_spec(**A_CHANGE), status=a_blank_status(fleet)
    )
    fleet.cycle()
    assert fleet.state.phase == "First"


def a_blank_status(fleet: GatedVariantFleet) -> Any:
    return type(fleet.service.status)()


def test_two_services_that_try_a_change_take_one_free_device_one_after_the_other() -> None:
    fleet = a_gated_fleet(devices=5)
    other = a_service("other", a_gated_spec(**A_CHANGE))
    fleet.others = [other]
    stable = a_first_revision(other)
    fleet.revisions[stable.ref] = stable
    fleet.edit(**A_CHANGE)
    for _ in range(12):
        fleet.cycle()

    plans = [fleet.plans[Ref("team-a", name)] for name in ("chat", "other")]
    waiting = [each.gated.missing_device for each in plans if each.gated is not None]
    assert [text is None for text in waiting] == [True, False]


def test_a_new_replica_of_another_service_is_granted_before_one_that_is_tried() -> None:
    fleet = a_gated_fleet(devices=8)
    fleet.others = [a_service("other", a_spec(replicas=1))]
    fleet.fields["budgets"] = (a_budget(gpus="3", amount="9000.00"),)
    fleet.edit(**A_CHANGE)
    fleet.run(30)

    plans = [fleet.plans[Ref("team-a", name)] for name in ("chat", "other")]
    assert plans[1].desired_pods == 1
    assert plans[0].gated is not None
    assert "TenantBudget" in (plans[0].gated.missing_device or "")


def test_without_another_device_a_change_is_tried_on_spot_nodes_and_never_serves_there() -> None:
    fleet = a_gated_fleet(devices=2)
    fleet.pools = [*fleet.pools, a_pool("cheap", "0.10", tier="Spot")]
    fleet.nodes = [*fleet.nodes, a_node("cheap", whole=1)]
    fleet.edit(**A_CHANGE)
    expect_floor(fleet, 60, 2)
    (tried,) = fleet.tried_pods()
    assert (tried.variant, tried.containers_ready) == ("cheap-1gpu", True)

    fleet.decide_on_candidate("Passed")
    for _ in range(48):
        fleet.cycle()
        assert fleet.counts()["cheap"] == 0
        # No device is free in the other pool, so replicas are replaced in place.
        assert sum(fleet.serving().values()) >= 1

    assert fleet.serving() == {fleet.state.digest: 2}
    assert fleet.counts() == {"a100": 2, "cheap": 0}
    assert len(fleet.workloads) == 1


def test_a_change_is_tried_in_the_precision_that_most_replicas_have() -> None:
    fleet = a_gated_fleet()
    listed = {"precision": {"variants": [{"precision": "fp8"}]}}
    fleet.edit(**listed)
    fleet.run(60)
    assert [pod.variant for pod in fleet.tried_pods()] == ["a100-1gpu-fp8"], "it is what is new"
    fleet.decide_on_candidate("Passed")
    fleet.run(120)
    assert {pod.variant for pod in fleet.pods.values()} == {"a100-1gpu"}, "the price is the same"

    fleet.edit(**listed, **A_CHANGE)
    fleet.run(60)
    assert [pod.variant for pod in fleet.tried_pods()] == ["a100-1gpu"]


def test_a_fleet_without_gates_is_planned_as_it_was_observed() -> None:
    snapshot = a_snapshot(a_service(), pools=(a_pool(),), nodes=(a_node(whole=2),))

    assert split_candidates(snapshot, 1).snapshot is snapshot


def test_who_edits_the_record_of_its_deployment_opens_no_replica_to_users() -> None:
    fleet = a_gated_fleet()
    stable = fleet.state.digest
    fleet.edit(**A_CHANGE)
    fleet.run(60)
    (tried,) = fleet.tried_pods()
    for ref, workload in list(fleet.workloads.items()):
        if workload.template_digest == tried.template_digest and workload.record is not None:
            for record in (None, workload.record.model_copy(update={"gated": stable})):
                fleet.workloads[ref] = replace(workload, record=record)
                fleet.cycle()
                assert not fleet.pods[tried.ref].takes_requests
                assert fleet.pods[tried.ref].serving is False
