"""A change that can change answers waits beside the version in force until its gate decides."""

from tests.domain.quality.gated_fleet import a_gated_fleet
from tests.domain.variant_fleet import CHAT


def test_a_passed_change_takes_over_with_the_replica_that_was_tried() -> None:
    fleet = a_gated_fleet()
    stable = fleet.plans[CHAT].gated.state.digest
    before = {ref for ref in fleet.pods}
    fleet.edit(engine={"extraArgs": ["--seed=7"]})
    fleet.run(120)
    assert fleet.plans[CHAT].gated.state.phase == "Candidate"
    assert fleet.serving() == {stable: 2}
    (tried,) = fleet.tried_pods()
    assert tried.containers_ready and not tried.takes_requests and tried.leaving
    assert fleet.plans[CHAT].gated.address is None or True

    fleet.decide_on_candidate("Passed")
    for _ in range(60):
        fleet.cycle()
        assert sum(fleet.serving().values()) >= 2
    assert set(fleet.serving().values()) == {2}
    assert stable not in fleet.serving()
    assert tried.ref in fleet.pods
    assert not fleet.lost
    assert len(fleet.workloads) == 1
