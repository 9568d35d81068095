"""What is used is deleted, renamed or moved under the operator."""

from decimal import Decimal

import pytest

from tessera.resources.api_resources import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tests.faults.operators import Wiring, operator
from tests.faults.places import POOL, Place
from world import World
from world.api import Api, Json
from world.testing import eventually

PATIENCE = 90


async def condition(place: Place, name: str, kind: str) -> Json:
    found = await place.api.get(INFERENCE_SERVICES.path(place.name, name))
    conditions = found.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})


async def test_a_namespace_goes_while_services_are_in_it_and_others_stay(
    world: World, api: Api
) -> None:
    async with operator(Wiring(kubeconfig=world.kubeconfig)) as one:
        going, staying = Place(api, "going"), Place(api, "staying")
        for place in (going, staying):
            await place.open()
            for index in range(3):
                await place.serve(f"svc-{index}", replicas=index % 2)
        counts = {"svc-0": 0, "svc-1": 1, "svc-2": 0}
        await going.until_deployed(**counts)
        await staying.until_deployed(**counts)
        await staying.end()

        await going.close()

        async def gone() -> bool:
            return not await api.answers("/api/v1/namespaces/going")

        await eventually(gone, bool, within=PATIENCE)

        async def known() -> bool:
            return await one.knows("going", "svc-0")

        await eventually(known, lambda still: not still)
        await staying.serve("svc-1", replicas=2)
        await staying.until_deployed(**counts | {"svc-1": 2})
        assert await staying.deployed() == counts | {"svc-1": 2}
        assert not one.ends
        await staying.close()


async def test_a_pool_is_renamed_in_use_and_what_runs_goes_on_with_the_reason_said(
    world: World, api: Api
) -> None:
    async with operator(Wiring(kubeconfig=world.kubeconfig)):
        place = Place(api, "renamed")
        await place.open()
        await place.serve("svc", replicas=1)
        await place.until_deployed(svc=1)
        before = (await place.end())["Deployment/svc-a100-1g-10gb"]
        try:
            await api.delete(ACCELERATOR_POOLS.path(None, "a100"))

            async def placed() -> Json:
                return await condition(place, "svc", "Placed")

            told = await eventually(placed, lambda one: one.get("reason") == "NoPool")
            assert told["status"] == "False"
            assert (await place.deployed()) == {"svc": 1}, "what runs goes on"

            await api.apply_manifest(POOL | {"metadata": {"name": "a100-new"}}, "kubectl")
            await eventually(placed, lambda one: one.get("reason") == "Placed")
            await place.until_deployed(svc=1)
            after = await place.end()
            assert "Deployment/svc-a100-new-1g-10gb" in after
            template = after["Deployment/svc-a100-new-1g-10gb"]["spec"]["template"]["spec"]
            assert template["containers"] == before["spec"]["template"]["spec"]["containers"]
        finally:
            await api.apply_manifest(POOL, "kubectl")
            await api.delete(ACCELERATOR_POOLS.path(None, "a100-new"))
            await place.close()


@pytest.mark.full
async def test_a_namespace_moves_to_another_budget_and_nothing_is_counted_twice(
    world: World, api: Api
) -> None:
    async def spent(name: str) -> Decimal:
        found = await api.get(TENANT_BUDGETS.path(None, name))
        windows = found.get("status", {}).get("spend", {}).get("windows", ())
        return Decimal(windows[0]["spent"]) if windows else Decimal(0)

    async def charged(name: str) -> int:
        found = await api.get(TENANT_BUDGETS.path(None, name))
        return len(found.get("status", {}).get("spend", {}).get("running", ()))

    async with operator(Wiring(kubeconfig=world.kubeconfig)):
        place = Place(api, "moves")
        await place.open()
        await place.budget("other", name="new-owner")
        await place.serve("svc", replicas=1)
        await place.until_deployed(svc=1)
        await eventually(lambda: charged("moves"), lambda pods: pods == 1)
        await eventually(lambda: spent("moves"), lambda money: money > 0, within=PATIENCE)

        await place.budget("elsewhere", name="moves")
        await place.budget("other", "moves", name="new-owner")
        await eventually(lambda: charged("new-owner"), lambda pods: pods == 1, within=PATIENCE)
        await eventually(lambda: charged("moves"), lambda pods: pods == 0, within=PATIENCE)
        left = await spent("moves")
        moved = await spent("new-owner")
        await eventually(lambda: spent("new-owner"), lambda money: money > moved, within=PATIENCE)
        assert await spent("moves") == left > 0, "what was spent stays, and nothing is added"

        tenant = (await api.get(INFERENCE_SERVICES.path("moves", "svc")))["status"]["tenant"]
        assert tenant["budget"] == "new-owner"
        await api.delete(TENANT_BUDGETS.path(None, "new-owner"))
        await place.close()
