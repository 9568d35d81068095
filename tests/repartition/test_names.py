"""A driver that calls a profile otherwise than the tables do, as R535 does on an A100-80GB."""

import pytest

from tests.repartition.courses import COURSES
from tests.repartition.fleet import BACKENDS, World

NAMES = {"3g.40gb": "3g.39gb"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("course", ["one slice is free", "a service comes"])
async def test_pods_ask_for_what_the_device_plugin_offers(backend: str, course: str) -> None:
    played = COURSES[course]
    world = World.of(BACKENDS[backend], played.nodes, names=NAMES)
    played.begin(world)
    await world.settle()
    played.change(world)
    await world.settle()
    world.check("NoSurgeCapacity" if backend in played.roomless else "AsPlanned")
    assert "nvidia.com/mig-3g.39gb" in {
        name for _, pod in world.kube.pods() for name in pod.devices
    }
    await world.close()
