"""Writes that the API server refuses during a repartition are reported and repeated."""

from tessera.api.pool_reasons import LayoutReady
from tessera.domain.names import MIG_CONFIG
from tessera.resources.api_resources import CONFIG_MAPS
from tessera.resources.manifest import ObjectKey
from tests.repartition.scenarios import SCENARIOS
from tests.repartition.simulation import BACKENDS, RepartitionSimulation


async def test_a_refused_write_is_reported_on_the_pool_until_it_succeeds() -> None:
    scenario = SCENARIOS["a service wants a GPU for itself"]
    simulation = RepartitionSimulation.of(BACKENDS["mig-manager"], scenario.nodes)
    scenario.begin(simulation)
    key = ObjectKey(CONFIG_MAPS.plural, "gpu-operator", MIG_CONFIG)
    simulation.kube.refusals[key] = "apply configmap tessera-mig: 403 forbidden"
    for _ in range(20):
        await simulation.tick()
    assert simulation.reason == LayoutReady.APPLY_FAILED
    assert "403 forbidden" in simulation.describe()[2]
    del simulation.kube.refusals[key]
    await simulation.run_until_quiet()
    simulation.check("AsPlanned")
    await simulation.close()
