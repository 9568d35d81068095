"""Services that come while GPUs are cut for others."""

from tests.builders import SMALL
from tests.repartition.courses import COURSES
from tests.repartition.fleet import BACKENDS, World


async def test_a_plan_that_takes_the_place_of_another_under_way_takes_no_replica_away() -> None:
    course = COURSES["one slice is free"]
    world = World.of(BACKENDS["agent"], course.nodes)
    course.begin(world)
    await world.settle()
    course.change(world)
    while not world.mig.units:
        await world.tick()
    first = world.mig.target
    world.serve("mail", SMALL, 1)
    await world.settle()
    assert first is not None
    assert world.mig.target is not None
    assert world.mig.target.name != first.name
    world.check("AsPlanned")
    await world.close()
