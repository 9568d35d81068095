"""A pool that gets a static layout under running services: who fits moves, who does not stays."""

from collections import Counter

import pytest

from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.mig_backends.devices import profile_of
from tessera.resources.manifest import ObjectKey
from tests.builders import MEDIUM, SMALL
from tests.mig_builders import A100
from tests.repartition.simulation import BACKENDS, RepartitionSimulation

WHOLE = [("7g.80gb", 0)]
SEVENTHS = {"1g.10gb": 7}


async def sevenths_for(backend: str, *services: tuple[str, str, int]) -> RepartitionSimulation:
    """Return a fleet of 6 GPUs of one slice each, whose pool then asks for seven."""
    simulation = RepartitionSimulation.of(BACKENDS[backend], [[WHOLE, WHOLE]] * 3)
    simulation.pool()
    for name, uri, replicas in services:
        simulation.serve(name, uri, replicas)
    await simulation.run_until_quiet()
    assert set(slices_of(simulation)) == {(name, "7g.80gb") for name, _, _ in services}
    simulation.pool(mode="Static", layout=SEVENTHS)
    await simulation.run_until_quiet()
    return simulation


def slices_of(simulation: RepartitionSimulation) -> Counter[tuple[str, str | None]]:
    """Return the serving replicas by service and profile."""
    return Counter(
        (pod.service.name, profile_of(A100, device))
        for _, pod in simulation.kube.pods()
        for device in pod.devices
        if pod.takes_requests and pod.service is not None
    )


@pytest.mark.parametrize("backend", ["agent", "mig-manager"])
async def test_a_service_moves_to_slices_that_the_layout_has(backend: str) -> None:
    simulation = await sevenths_for(backend, ("a", SMALL, 2))
    assert slices_of(simulation) == {("a", "1g.10gb"): 2}
    assert simulation.reason == "AsPlanned"
    simulation.replay()
    await simulation.close()


async def test_a_service_that_fits_on_no_slice_of_the_layout_keeps_its_gpu() -> None:
    """Seen: with the annotation that the message advised, it was 0 of 2 to the end."""
    simulation = await sevenths_for("agent", ("a", SMALL, 2), ("b", MEDIUM, 1))
    assert slices_of(simulation) == {("a", "1g.10gb"): 2, ("b", "7g.80gb"): 1}
    simulation.check("NoSurgeCapacity")
    assert "spec.mig.layout has none and team-a/b fits nowhere else, so its GPUs stay" in str(
        simulation.describe()
    )
    key = ObjectKey(INFERENCE_SERVICES.plural, "team-a", "b")
    annotations = {"tessera.dev/allow-downtime": "true"}
    simulation.kube.set(key, "metadata", annotations=annotations)
    await simulation.run_until_quiet()
    assert slices_of(simulation)["b", "7g.80gb"] == 1
    await simulation.close()


async def test_a_service_that_fits_on_slices_to_come_moves_there_once_downtime_is_allowed() -> None:
    """Following the advice of NoSurgeCapacity ends better than not following it."""
    simulation = RepartitionSimulation.of(BACKENDS["agent"], [[WHOLE]])
    simulation.pool()
    simulation.serve("a", SMALL, 1)
    await simulation.run_until_quiet()
    simulation.pool(mode="Static", layout=SEVENTHS)
    await simulation.run_until_quiet()
    simulation.check("NoSurgeCapacity")
    assert slices_of(simulation) == {("a", "7g.80gb"): 1}
    key = ObjectKey(INFERENCE_SERVICES.plural, "team-a", "a")
    simulation.kube.set(key, "metadata", annotations={"tessera.dev/allow-downtime": "true"})
    await simulation.run_until_quiet()
    assert (slices_of(simulation), simulation.reason) == ({("a", "1g.10gb"): 1}, "AsPlanned")
    await simulation.close()
