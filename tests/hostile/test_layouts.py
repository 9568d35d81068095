"""What a tenant wants, and does not pay, takes no slice and no room from others."""

from tessera.domain.observed.snapshot import Ref
from tests.hostile.twin import HOSTILE, Fleet, Twins

AUTO = {"mig": "Auto"}
EVERYTHING = {"minReplicas": 1000, "maxReplicas": 1000}


def planned_pool(fleet: Fleet) -> None:
    """Two GPUs whose layouts are planned, and a busy service on them."""
    fleet.add_pool("a100", mig={"mode": "Auto"})
    for index in range(2):
        fleet.add_node(f"a100-{index}", "a100", {"1g.10gb": 7})
    fleet.serve("chat", placement=AUTO, scaling={"minReplicas": 6, "maxReplicas": 6})
    fleet.running[Ref("team-a", "chat")] = 1200.0


def assigned(fleet: Fleet) -> dict[str, int]:
    """Return the replicas by service in the plan of the pool."""
    body = next(body for key, body in fleet.cluster.objects.items() if key.name == "a100")
    target = body["status"]["mig"]["target"]
    return {entry["service"]: entry["replicas"] for entry in target["services"]}


async def test_a_budget_of_nothing_gets_no_slice() -> None:
    def build(fleet: Fleet) -> None:
        planned_pool(fleet)
        fleet.add_budget(HOSTILE, "0.00")

    twins = Twins(build)
    await twins.run(cycles=15)
    for name in ("aaa", "zzz"):
        twins.hostile.serve(name, HOSTILE, placement=AUTO, scaling=EVERYTHING)
    await twins.run(cycles=15)
    twins.assert_equal()
    assert assigned(twins.hostile) == {"team-a/chat": 6}


async def test_room_that_nobody_pays_sends_no_other_to_a_dearer_pool() -> None:
    def build(fleet: Fleet) -> None:
        fleet.add_pool("a100", "2")
        fleet.add_pool("h100", "9")
        fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
        fleet.add_node("h100-0", "h100", {"1g.10gb": 7}, product="NVIDIA-H100-80GB-HBM3")
        fleet.add_budget(HOSTILE, "0.01")

    def want_everything(fleet: Fleet, cycle: int) -> None:
        if cycle == 0:
            fleet.serve("aaa", HOSTILE, scaling={"minReplicas": 7})

    twins = Twins(build)
    await twins.run(cycles=3, act=want_everything)
    for fleet in twins.both:
        fleet.serve("chat", scaling={"minReplicas": 2, "maxReplicas": 2})
    await twins.run(cycles=15)
    twins.assert_equal()


async def test_a_tenant_who_changes_his_mind_in_every_cycle_keeps_no_plan_back() -> None:
    def change(fleet: Fleet, cycle: int) -> None:
        fleet.serve("restless", HOSTILE, placement=AUTO, replicas=1 + cycle % 2)

    twins = Twins(planned_pool)
    await twins.run(cycles=6, act=change)
    for fleet in twins.both:
        fleet.serve("code", placement=AUTO, replicas=1)
    await twins.run(cycles=4, act=change)
    for fleet in twins.both:
        assert assigned(fleet).items() >= {"team-a/chat": 6, "team-a/code": 1}.items()
    await twins.run(cycles=12, act=change)
    replicas = [len(fleet.pods_of("team-a")) for fleet in twins.both]
    assert replicas == [7, 7]


async def test_a_crowd_of_waiting_pods_takes_no_device_of_a_replica_that_restarts() -> None:
    def build(fleet: Fleet) -> None:
        fleet.add_pool("a100")
        for index in range(2):
            fleet.add_node(f"a100-{index}", "a100", {"1g.10gb": 7})
        fleet.add_budget("team-a", "100")
        fleet.serve("chat", replicas=6)

    def crash_one(fleet: Fleet, cycle: int) -> None:
        if cycle % 10 == 9:
            fleet.cluster.discard(fleet.pods_of("team-a", "chat")[0])

    twins = Twins(build)
    await twins.run(cycles=10)
    twins.hostile.serve("crowd", HOSTILE, scaling=EVERYTHING)
    await twins.run(cycles=61, act=crash_one)
    fleet = twins.hostile
    bound = [
        key
        for key in fleet.pods_of("team-a", "chat")
        if fleet.cluster.objects[key]["spec"].get("nodeName")
    ]
    assert (len(bound), len(fleet.pods_of(HOSTILE))) == (6, 8)
