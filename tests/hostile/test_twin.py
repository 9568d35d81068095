"""The twins themselves: they come up alike, and a difference is found."""

from tessera.domain.observed.snapshot import Ref
from tests.hostile.twin import HOSTILE, Fleet, Twins


def _build(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    fleet.add_budget("team-a", "100")
    fleet.serve("chat", "team-a", replicas=2)
    fleet.running[Ref("team-a", "chat")] = 1.0


async def test_a_service_comes_up_and_is_paid_in_both() -> None:
    twins = Twins(_build)
    await twins.run(cycles=20)
    for fleet in twins.both:
        assert len(fleet.pods_of("team-a", "chat")) == 2
        status = fleet.cluster.objects[next(k for k in fleet.cluster.objects if k.name == "chat")]
        assert status["status"]["readyReplicas"] == 2
        assert fleet.spent("team-a") > 0
    assert twins.differences() == []


async def test_what_a_tenant_does_to_another_is_found() -> None:
    twins = Twins(_build)
    await twins.run(cycles=10)
    pod = twins.hostile.pods_of("team-a", "chat")[0]
    twins.hostile.cluster.discard(pod)
    await twins.run(cycles=5)
    assert any("team-a" in difference for difference in twins.differences(HOSTILE))


async def test_an_unfunded_service_changes_nothing_for_others() -> None:
    def build(fleet: Fleet) -> None:
        _build(fleet)
        fleet.add_budget(HOSTILE, "0")

    twins = Twins(build)
    await twins.run(cycles=10)
    twins.hostile.serve("x", HOSTILE, replicas=1)
    await twins.run(cycles=10)
    twins.assert_equal()
