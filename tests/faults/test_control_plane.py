"""The control plane goes and comes back under the operator."""

import asyncio

from tests.faults.courses import course
from tests.faults.operators import Wiring, operator
from tests.faults.places import Place
from world import World
from world.api import Api
from world.ends import differences
from world.testing import eventually

PAUSE_SECONDS = 10
PATIENCE = 90


async def test_the_api_server_is_restarted_in_the_middle(world: World, api: Api) -> None:
    async with operator(Wiring(kubeconfig=world.kubeconfig)):
        clean = await course(Place(api, "before-restart"), PATIENCE)
        place = Place(api, "restarted")
        await place.open()
        await place.serve("edited", replicas=0)
        await place.serve("scaled", replicas=1)
        await place.serve("gone", replicas=0)
        world.end_program("kube-apiserver")
        world.start_program("kube-apiserver")
        await eventually(lambda: api.answers("/readyz"), bool, within=60)
        found = await course(place, PATIENCE)
        await place.close()
    assert not (wrong := differences(clean, found)), "\n".join(wrong[:20])


async def test_etcd_answers_nobody_for_ten_seconds(world: World, api: Api) -> None:
    async with operator(Wiring(kubeconfig=world.kubeconfig)) as one:
        clean = await course(Place(api, "before-pause"), PATIENCE)
        place = Place(api, "paused")
        await place.open()
        await place.serve("edited", replicas=0)
        await place.serve("scaled", replicas=1)
        await place.serve("gone", replicas=0)
        world.pause_program("etcd")
        try:
            await asyncio.sleep(PAUSE_SECONDS)  # the fault itself, not a wait for a state
        finally:
            world.resume_program("etcd")
        await eventually(lambda: api.answers("/readyz"), bool, within=60)
        found = await course(place, PATIENCE)
        await place.close()
        assert all(code for code in one.ends), "a lost lease ends the process with an error"
    assert not (wrong := differences(clean, found)), "\n".join(wrong[:20])
