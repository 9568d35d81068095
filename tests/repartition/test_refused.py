"""What the API server refuses while GPUs are cut is said on the pool, and asked for again."""

from tessera.api.reasons import LayoutReady
from tessera.domain.names import MIG_CONFIG
from tessera.resources.api_resources import CONFIG_MAPS
from tessera.resources.manifest import ObjectKey
from tests.repartition.courses import COURSES
from tests.repartition.fleet import BACKENDS, World


async def test_a_refused_write_is_said_on_the_pool_until_it_is_made() -> None:
    course = COURSES["a service wants a GPU for itself"]
    world = World.of(BACKENDS["mig-manager"], course.nodes)
    course.begin(world)
    key = ObjectKey(CONFIG_MAPS.plural, "gpu-operator", MIG_CONFIG)
    world.kube.refusals[key] = "apply configmap tessera-mig: 403 forbidden"
    for _ in range(20):
        await world.tick()
    assert world.reason == LayoutReady.APPLY_FAILED
    assert "403 forbidden" in world.told()[2]
    del world.kube.refusals[key]
    await world.settle()
    world.check("AsPlanned")
    await world.close()
