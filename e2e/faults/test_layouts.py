"""Two faults during a repartition: floors and streams hold, and the end is clean in 5 minutes."""

import pytest

from demo import streams
from demo.cluster import InstalledCluster, Ref
from faults import scenes
from faults.layout_faults import BY_NAME
from faults.layout_fleet import FLOORS, LayoutFleet
from faults.observer import observing
from tests.fault_sequences.language import Occurrence
from world.testing import eventually

pytestmark = pytest.mark.world
_SETTLE_SECONDS = 300.0
_TOKENS = 60


@pytest.mark.parametrize(
    "scene",
    [
        *scenes.SHORT_LAYOUTS,
        *(pytest.param(name, marks=pytest.mark.full) for name in scenes.FULL_LAYOUTS),
    ],
)
async def test_a_repartition_with_two_faults_keeps_floors_and_streams_and_ends_clean(
    cluster: InstalledCluster, scene: str
) -> None:
    fleet = LayoutFleet(cluster, scene)
    await fleet.begin()
    addresses = {name: await cluster.address(Ref(fleet.namespace, name)) for name in FLOORS}

    async with (
        streams.streaming(addresses, tokens=_TOKENS) as results,
        observing(fleet) as observer,
    ):

        def note(occurrence: Occurrence[LayoutFleet]) -> None:
            observer.note(occurrence.describe())
            if occurrence.fault.removes_capacity:
                observer.excused |= FLOORS.keys()

        async def ends_clean() -> None:
            assert observer.end_findings() == []

        await fleet.repartition()
        await scenes.play(scenes.sequence_of_names(scene, BY_NAME), fleet, note)
        try:
            await eventually(ends_clean, within=_SETTLE_SECONDS)
        except AssertionError:
            observer.note("not clean within 5 minutes")
        findings = [*observer.findings, *observer.end_findings()]

    assert not [*findings, *results.broken], "\n".join(
        [*findings, *results.broken, f"{results.whole} streams", *observer.log]
    )
    assert results.whole > 0
