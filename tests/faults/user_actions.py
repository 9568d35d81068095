"""The course of user actions that is played with and without faults."""

import asyncio
from typing import Any

from tests.faults.places import Place
from world.api import Api


async def course(place: Place, within: float = 60) -> dict[str, Any]:
    """Services come, one is edited, one scaled, one goes; how it ended."""
    await place.open()
    await place.serve("edited", replicas=0)
    await place.serve("scaled", replicas=1)
    await place.serve("gone", replicas=0)
    await place.until_deployed(within, edited=0, scaled=1, gone=0)
    await place.serve("edited", replicas=0, context={"maxModelLen": 4096})
    await place.serve("scaled", replicas=2)
    await place.unserve("gone")
    await place.until_deployed(within, edited=0, scaled=2)
    return await place.end(within)


async def many(api: Api, names: list[str], within: float) -> list[dict[str, Any]]:
    """The course in several places at once, which are cleared afterwards."""
    places = [Place(api, name) for name in names]
    found = await asyncio.gather(*(course(place, within) for place in places))
    for place in places:
        await place.close()
    return found
