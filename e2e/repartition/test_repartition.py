"""GPUs are repartitioned under running streams, by either backend, and no stream breaks."""

import asyncio

import pytest

from demo import mig
from demo.__main__ import MIG_FLEET, run_mig
from world import start

pytestmark = pytest.mark.world


@pytest.mark.parametrize("backend", ["Agent", pytest.param("MigManager", marks=pytest.mark.full)])
def test_services_reach_their_planned_layout_without_a_broken_stream(backend: mig.Backend) -> None:
    with start(fleet=MIG_FLEET) as world:
        asyncio.run(run_mig(world, print, backend))
