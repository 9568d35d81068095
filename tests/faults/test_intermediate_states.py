"""The operator's process ends at each of its writing requests in turn; the end is always the same."""

import random
import time

import pytest

from tests.faults.operators import ANSWERED, ENDED_BY_FUSE, SENT, Wiring, operator
from tests.faults.places import Place
from world import World
from world.api import Api
from world.ends import differences

SEED = 20261120
SAMPLE = 12


async def course(place: Place) -> dict[str, object]:
    """Services come, one is edited, one scaled, one goes; how it ended."""
    await place.open()
    await place.serve("edited", replicas=0)
    await place.serve("scaled", replicas=1)
    await place.serve("gone", replicas=0)
    await place.until_deployed(edited=0, scaled=1, gone=0)
    await place.serve("edited", replicas=0, context={"maxModelLen": 4096})
    await place.serve("scaled", replicas=2)
    await place.unserve("gone")
    await place.until_deployed(within=60, edited=0, scaled=2)
    return await place.end()


async def test_timing(world: World, api: Api) -> None:
    async with operator(Wiring(kubeconfig=world.kubeconfig)) as one:
        for k in range(6):
            begun = time.monotonic()
            one.fuse.set(f"run-{k}", k * 5)
            place = Place(api, f"run-{k}")
            await course(place)
            print(k, one.fuse.seen, one.ends, time.monotonic() - begun)
            await place.close()
