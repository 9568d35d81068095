"""Services that are created while GPUs are partitioned for others."""

from tests.builders import SMALL
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, RepartitionSimulation


async def test_a_plan_that_replaces_another_in_progress_removes_no_replica() -> None:
    scenario = SCENARIOS["one slice is free"]
    simulation = RepartitionSimulation.of(BACKENDS["agent"], scenario.nodes)
    scenario.begin(simulation)
    await simulation.run_until_quiet()
    scenario.change(simulation)
    while not simulation.mig.units:
        await simulation.tick()
    first = simulation.mig.target
    simulation.serve("mail", SMALL, 1)
    await simulation.run_until_quiet()
    assert first is not None
    assert simulation.mig.target is not None
    assert simulation.mig.target.name != first.name
    simulation.check("AsPlanned")
    await simulation.close()
