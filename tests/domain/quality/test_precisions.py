"""A precision that the price chooses later is tried before it serves, as an edit is."""

from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from tessera.domain.explain.precisions import explain_precision
from tessera.domain.quality.change import gated_digest
from tests.builders import H100, MEDIUM, a_node, a_pool
from tests.domain.quality.gated_fleet import (
    A_CHANGE,
    GatedVariantFleet,
    a_gated_fleet,
    a_gated_spec,
)
from tests.domain.quality.test_candidates import expect_floor
from tests.domain.quality.test_sequences import GatePlayer
from tests.domain.service.test_precision_change import AWQ, awq_files
from tests.domain.variant_fleet import CHAT
from tests.properties import examples

LISTED = {"precision": {"variants": [{"precision": "fp8"}]}}


def a_fleet_with_untried_fp8() -> GatedVariantFleet:
    """Return a service that lists fp8, and whose version in force was tried without it."""
    fleet = a_gated_fleet()
    fleet.edit(**LISTED)
    fleet.run(60)
    fleet.decide_on_candidate("Passed")
    fleet.run(60)
    fleet.edit(**LISTED, **A_CHANGE)
    fleet.run(60)
    fleet.decide_on_candidate("Passed")
    fleet.run(120)
    assert (fleet.state.phase, fleet.state.untried) == ("Stable", frozenset({"fp8"}))
    assert variants(fleet) == {"a100-1gpu"}
    return fleet


def lower_price(fleet: GatedVariantFleet) -> None:
    """Offer hardware on which tokens cost less in fp8."""
    fleet.pools = [*fleet.pools, a_pool("h100", "1.00")]
    fleet.nodes = [*fleet.nodes, a_node("h100", whole=4, product=H100)]


def variants(fleet: GatedVariantFleet) -> set[str]:
    return {pod.variant for pod in fleet.pods.values()}


def test_a_cheaper_precision_is_tried_by_itself_and_used_once_it_passed() -> None:
    fleet = a_fleet_with_untried_fp8()
    lower_price(fleet)
    fleet.run(60)
    stable = fleet.state.stable
    assert stable is not None
    assert (fleet.state.phase, fleet.state.changes) == ("Candidate", ("spec.precision: fp8",))
    assert [pod.variant for pod in fleet.tried_pods()] == ["h100-1gpu-fp8"]

    (tried,) = fleet.tried_pods()
    fleet.decide_on_candidate("Passed")
    expect_floor(fleet, 300, 2)
    assert variants(fleet) == {"h100-1gpu-fp8"}
    assert tried.ref in fleet.pods, "it is the first of those that follow"
    assert fleet.state.stable is not None
    assert fleet.state.stable.number == stable.number
    assert fleet.state.stable.tried == frozenset({"checkpoint", "fp8"})
    assert fleet.lost == []


def test_a_refused_precision_is_neither_used_nor_tried_again() -> None:
    fleet = a_fleet_with_untried_fp8()
    lower_price(fleet)
    fleet.run(60)
    fleet.decide_on_candidate("Failed")
    fleet.run(60)
    for _ in range(40):
        fleet.cycle(30)
        assert variants(fleet) == {"a100-1gpu"}
    assert (fleet.state.phase, fleet.state.refused) == ("Stable", frozenset({"fp8"}))


def test_a_precision_whose_price_rises_while_it_is_tried_is_judged_all_the_same() -> None:
    fleet = a_fleet_with_untried_fp8()
    lower_price(fleet)
    fleet.run(30)
    fleet.pools = [*fleet.pools[:-1], a_pool("h100", "9.00")]
    for _ in range(20):
        fleet.cycle()
        assert len(fleet.tried_pods()) == 1
    fleet.decide_on_candidate("Passed")
    fleet.run(120)
    assert variants(fleet) == {"a100-1gpu"}, "it costs more by now"
    assert fleet.state.untried == frozenset()


def test_a_precision_that_costs_more_is_not_tried() -> None:
    fleet = a_fleet_with_untried_fp8()
    fleet.run(300)
    assert (fleet.state.phase, variants(fleet)) == ("Stable", {"a100-1gpu"})
    assert fleet.plans[fleet.service.ref].candidate is None


def test_an_edit_takes_the_place_of_a_precision_that_is_tried() -> None:
    fleet = a_fleet_with_untried_fp8()
    lower_price(fleet)
    fleet.run(30)
    fleet.edit(**LISTED, engine={"extraArgs": ["--seed=8"]})
    fleet.run(60)
    assert fleet.state.changes == ("spec.engine.extraArgs",)
    assert [pod.variant for pod in fleet.tried_pods()] == ["a100-1gpu"]


def test_a_version_of_before_precisions_were_recorded_may_run_in_all_that_it_lists() -> None:
    fleet = a_fleet_with_untried_fp8()
    fleet.revisions = {ref: replace(each, tried=None) for ref, each in fleet.revisions.items()}
    fleet.allowed |= {f"{each.digest}/fp8" for each in fleet.revisions.values()}
    lower_price(fleet)
    fleet.run(200)
    assert (fleet.state.phase, variants(fleet)) == ("Stable", {"h100-1gpu-fp8"})


def test_the_own_files_are_tried_as_well_where_another_precision_serves() -> None:
    fleet = a_gated_fleet()
    fleet.edit(**LISTED, **A_CHANGE)
    fleet.run(60)
    assert [pod.variant for pod in fleet.tried_pods()] == ["a100-1gpu-fp8"]
    fleet.decide_on_candidate("Passed")
    fleet.run(120)
    assert (variants(fleet), fleet.state.untried) == ({"a100-1gpu-fp8"}, frozenset({"checkpoint"}))


def test_no_baseline_answers_while_replicas_of_two_precisions_serve() -> None:
    fleet = a_fleet_with_untried_fp8()
    lower_price(fleet)
    fleet.run(60)
    fleet.decide_on_candidate("Passed")
    roles = dict[int, set[str]]()
    for _ in range(60):
        fleet.pods = {
            ref: replace(pod, address=f"10.0.0.{ref.name[5:]}") for ref, pod in fleet.pods.items()
        }
        serving = {pod.variant for pod in fleet.pods.values() if pod.takes_requests}
        service_plan = fleet.cycle()
        trial = service_plan.gated.trial if service_plan.gated is not None else None
        if len(serving) > 1 and fleet.state.phase == "Stable":
            fleet.edit(**LISTED, engine={"extraArgs": ["--seed=8"]})
        elif trial is not None:
            asked = {trial.create.run.role} if trial.create is not None else set[str]()
            roles.setdefault(len(serving), set()).update(asked)
    assert roles == {1: {"Baseline"}, 2: set()}


def test_each_precision_is_tried_by_itself_with_files_of_its_own_as_well() -> None:
    listed: dict[str, Any] = {"precision": {"variants": [{"precision": "fp8"}, AWQ]}}
    fleet = a_gated_fleet(uri=MEDIUM)
    spec = a_gated_spec(uri=MEDIUM, **listed)
    files = tuple(awq_files({"precision": "fp8"}, AWQ))
    digest, (revision,) = gated_digest(spec), fleet.revisions.values()
    tried = frozenset({"checkpoint"})
    fleet.allowed.add(f"{digest}/checkpoint")
    fleet.revisions[revision.ref] = replace(
        revision, spec=spec, digest=digest, precisions=files, tried=tried
    )
    status = fleet.service.status.model_copy(update={"precisions": files})
    fleet.service = replace(fleet.service, spec=spec, status=status)
    lower_price(fleet)

    order = []
    for reason in ("Failed", "Passed"):
        fleet.run(60)
        order.append(fleet.tried_precision())
        fleet.decide_on_candidate(reason)
    fleet.run(300)
    assert sorted(order) == ["awq-int4", "fp8"]
    assert variants(fleet) == {f"h100-1gpu-{order[1]}"}
    assert fleet.state.untried == fleet.state.refused == frozenset(order[:1])


def test_the_explanation_says_which_precision_was_not_tried() -> None:
    fleet = a_fleet_with_untried_fp8()
    snapshot = fleet.snapshot()
    plan = fleet.decide(fleet.config, snapshot, fleet.memory)
    (decision,) = explain_precision(snapshot, plan, plan.service_plans[CHAT])
    rows = dict(decision.numbers)
    assert str(rows["fp8"]).endswith("not used: the gate has not tried it")
    assert str(rows["bf16"]).endswith("chosen")


class PrecisionPlayer(GatePlayer):
    """Plays edits that list fp8 or not, and prices that make it worth more or less."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.listed = False
        self.flags = dict[str, int]()
        """The edit of each version."""
        self.passed = {(0, "checkpoint")}
        """Edit and precision of what a gate let through, and of the first version."""
        self._note()
        self.fleet.nodes = [*self.fleet.nodes, a_node("h100", whole=4, product=H100)]
        self._set_price()

    @override
    def edit(self) -> None:
        self.listed = self.rng.choice((True, True, False))
        super().edit()
        self._set_price()

    def _set_price(self) -> None:
        pools = [pool for pool in self.fleet.pools if pool.name != "h100"]
        self.fleet.pools = [*pools, a_pool("h100", self.rng.choice(("1.00", "9.00")))]

    def _note(self) -> None:
        assert self.fleet.service.spec is not None
        self.flags[gated_digest(self.fleet.service.spec)] = self.change

    @override
    def _write(self, **metadata: dict[str, str]) -> None:
        listed = LISTED if self.listed else {}
        self.fleet.edit(engine=self.engine(), rollout=self.rollout, podTemplate=metadata, **listed)
        self._note()

    @override
    def _decide(self, reason: str) -> None:
        state = self.fleet.state
        if reason == "Passed" and state.phase == "Candidate":
            self.passed.add((self.flags[state.digest.split("/")[0]], self.fleet.tried_precision()))
        super()._decide(reason)

    @override
    def expect_size(self) -> None:
        # Replicas of two pools may serve together.
        assert sum(self.fleet.serving().values()) >= 2
        assert not self.fleet.tried_pods() or self.fleet.state.phase == "Candidate"

    @override
    def _judge(self) -> None:
        super()._judge()
        for served in self.fleet.served:
            digest, precision = served.split("/")
            assert (self.flags[digest], precision) in self.passed, served


@pytest.mark.parametrize("seed", range(examples(120)))
def test_no_replica_of_an_untried_precision_serves_whatever_happens(seed: int) -> None:
    player = PrecisionPlayer(seed)
    try:
        player.play()
    except AssertionError as error:
        raise AssertionError(f"{player.log}\n{player.fleet.describe()}") from error
