"""The whole operator: a tenant's `replicas: 3` leaves its neighbours where they are."""

import pytest

from tests.builders import MEDIUM, SMALL
from tests.cases import full
from tests.floors.neighbours import raises_of
from tests.repartition.simulation import BACKENDS, RepartitionSimulation

TINY = "hf://Qwen/Qwen2.5-0.5B-Instruct"
CUT = [*(("1g.10gb", at) for at in range(4)), ("3g.40gb", 4)]


def variants(simulation: RepartitionSimulation, name: str) -> list[str]:
    return sorted(
        key.name.removeprefix(f"{name}-a100-").rpartition("-")[0]
        for key, pod in simulation.kube.pods()
        if pod.service.name == name and pod.takes_requests
    )


@pytest.mark.parametrize("mode", ["Propose", *full("Auto")])
async def test_a_third_replica_moves_no_neighbour_to_a_whole_gpu(mode: str) -> None:
    simulation = RepartitionSimulation.of(BACKENDS["agent"], [[CUT, None]])
    simulation.gateways = True
    simulation.pool(mode=mode)
    existing = {"mig": "Existing"}
    simulation.serve("svc2", MEDIUM, 1, "team-b", placement=existing)
    simulation.serve("chat", SMALL, 2)
    simulation.serve("mail", TINY, 1, "team-b")
    simulation.serve("svc1", TINY, 1, "team-b", placement=existing)
    await simulation.run_until_quiet()
    assert variants(simulation, "mail") == ["1g-10gb"], simulation.describe()
    mail = {key for key, pod in simulation.kube.pods() if pod.service.name == "mail"}

    simulation.serve("chat", SMALL, 3)
    await simulation.run_until_quiet()
    assert variants(simulation, "chat") == ["1g-10gb", "1g-10gb", "1gpu"], simulation.describe()
    assert {key for key, pod in simulation.kube.pods() if pod.service.name == "mail"} == mail
    assert not simulation.mig.proposed
    simulation.replay()
    await simulation.close()


@pytest.mark.parametrize("seed", full(*range(20)))
async def test_no_event_of_a_neighbour_makes_an_unchanged_service_dearer(seed: int) -> None:
    """Three tenants come, grow, leave and restart on slices and whole GPUs."""
    assert not await raises_of([seed])


async def test_layouts_that_are_assumed_before_an_agent_reports_are_not_made_unasked() -> None:
    """Without a report the larger slices are taken to be on other GPUs than they are."""
    simulation = RepartitionSimulation.of(
        BACKENDS["agent"], [[[("3g.40gb", 0), ("3g.40gb", 4)], [("7g.80gb", 0)]]]
    )
    simulation.pool(mode="Propose")
    simulation.serve("chat", SMALL, 1)
    [machine] = simulation.machines
    before = machine.layouts()
    for _ in range(12):
        await simulation.tick()
        assert not simulation.mig.units, simulation.describe()
    assert machine.layouts() == before
    await simulation.close()
