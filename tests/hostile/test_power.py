"""What a tenant makes the platform run for him."""

from tests.hostile.twin import HOSTILE, Fleet, Twins


async def test_an_unfunded_tenant_puts_no_image_on_the_nodes() -> None:
    def build(fleet: Fleet) -> None:
        fleet.add_pool("a100", prePull=True)
        fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
        fleet.add_budget("team-a", "100")
        fleet.add_budget(HOSTILE, "0")
        fleet.serve("chat", "team-a", replicas=2)

    twins = Twins(build)
    await twins.run(cycles=5)
    for number in range(2):
        image = {"image": f"evil.example/miner:{number}"}
        twins.hostile.serve(f"x{number}", HOSTILE, replicas=1, engine=image)
    await twins.run(cycles=10)
    twins.assert_equal()
