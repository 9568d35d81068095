"""A driver whose name of a profile differs from the tables, as R535 on an A100-80GB."""

import pytest

from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, EACH_BACKEND, RepartitionSimulation

NAMES = {"3g.40gb": "3g.39gb"}


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("scenario", ["one slice is free", "a service comes"])
async def test_pods_ask_for_what_the_device_plugin_offers(backend: str, scenario: str) -> None:
    changes = SCENARIOS[scenario]
    simulation = RepartitionSimulation.of(BACKENDS[backend], changes.nodes, names=NAMES)
    changes.begin(simulation)
    await simulation.run_until_quiet()
    changes.change(simulation)
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    assert "nvidia.com/mig-3g.39gb" in {
        name for _, pod in simulation.kube.pods() for name in pod.devices
    }
    await simulation.close()
