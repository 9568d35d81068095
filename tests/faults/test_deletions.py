"""Namespaces, pools and budgets in use are deleted, renamed or moved while the operator runs."""

from decimal import Decimal

import pytest

from tessera.controller.main import LEADERSHIP_LOST
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.resources.api_resources import DEPLOYMENTS
from tests.faults.namespaces import POOL, TenantNamespace, exists
from tests.faults.operators import OperatorOptions, running_operator
from world import World
from world.api import Api, Json
from world.testing import eventually

TIMEOUT_SECONDS = 90


async def service_condition(namespace: TenantNamespace, name: str, kind: str) -> Json:
    service = await namespace.api.get(INFERENCE_SERVICES.path(namespace.name, name))
    conditions = service.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == kind), {})


async def test_a_namespace_is_deleted_with_services_in_it_and_others_stay(
    world: World, api: Api
) -> None:
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        going, staying = TenantNamespace(api, "going"), TenantNamespace(api, "staying")
        for namespace in (going, staying):
            await namespace.create()
            for index in range(3):
                await namespace.apply_service(f"svc-{index}", replicas=index % 2)
        counts = {"svc-0": 0, "svc-1": 1, "svc-2": 0}
        await going.wait_for_replicas(**counts)
        await staying.wait_for_replicas(**counts)
        await staying.wait_until_settled()

        await going.delete()

        async def namespace_is_deleted() -> None:
            assert not await exists(api, "/api/v1/namespaces/going")

        await eventually(namespace_is_deleted, within=TIMEOUT_SECONDS)
        await operator.wait_until_unplanned("going", "svc-0")
        await staying.apply_service("svc-1", replicas=2)
        await staying.wait_for_replicas(**counts | {"svc-1": 2})
        assert await staying.desired_replicas() == counts | {"svc-1": 2}
        assert set(operator.exit_codes) <= {LEADERSHIP_LOST}
        await staying.delete()


async def test_a_pool_in_use_is_renamed_and_replicas_run_on_with_a_reason_in_the_status(
    world: World, api: Api
) -> None:
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)):
        namespace = TenantNamespace(api, "renamed")
        await namespace.create()
        await namespace.apply_service("svc", replicas=1)
        await namespace.wait_for_replicas(svc=1)
        before = (await namespace.wait_until_settled())["Deployment/svc-a100-1g-10gb"]
        try:
            await api.delete(ACCELERATOR_POOLS.path(None, "a100"))

            async def no_pool_is_reported() -> None:
                condition = await service_condition(namespace, "svc", "Placed")
                assert condition.items() >= {("reason", "NoPool"), ("status", "False")}

            await eventually(no_pool_is_reported)
            assert (await namespace.desired_replicas()) == {"svc": 1}, "running replicas stay"

            await api.apply_manifest(POOL | {"metadata": {"name": "a100-new"}}, "kubectl")

            async def service_is_placed() -> None:
                condition = await service_condition(namespace, "svc", "Placed")
                assert condition.get("reason") == "Placed", condition
                await api.get(DEPLOYMENTS.path(namespace.name, "svc-a100-new-1g-10gb"))

            await eventually(service_is_placed)
            await namespace.wait_for_replicas(svc=1)
            after = await namespace.wait_until_settled()
            assert "Deployment/svc-a100-new-1g-10gb" in after
            template = after["Deployment/svc-a100-new-1g-10gb"]["spec"]["template"]["spec"]
            assert template["containers"] == before["spec"]["template"]["spec"]["containers"]
        finally:
            await api.apply_manifest(POOL, "kubectl")
            await api.delete(ACCELERATOR_POOLS.path(None, "a100-new"))
            await namespace.delete()


@pytest.mark.full
async def test_a_namespace_moves_to_another_budget_and_nothing_is_counted_twice(
    world: World, api: Api
) -> None:
    async def spent(name: str) -> Decimal:
        budget = await api.get(TENANT_BUDGETS.path(None, name))
        windows = budget.get("status", {}).get("spend", {}).get("windows", ())
        return Decimal(windows[0]["spent"]) if windows else Decimal(0)

    async def charged(name: str) -> int:
        budget = await api.get(TENANT_BUDGETS.path(None, name))
        return len(budget.get("status", {}).get("spend", {}).get("running", ()))

    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)):
        namespace = TenantNamespace(api, "moves")
        await namespace.create()
        await namespace.apply_budget("other", name="new-owner")
        await namespace.apply_service("svc", replicas=1)
        await namespace.wait_for_replicas(svc=1)

        async def owner_is_charged() -> None:
            assert await charged("moves") == 1
            assert await spent("moves") > 0

        await eventually(owner_is_charged, within=TIMEOUT_SECONDS)
        await namespace.apply_budget("elsewhere", name="moves")
        await namespace.apply_budget("other", "moves", name="new-owner")

        async def new_owner_is_charged() -> None:
            assert (await charged("new-owner"), await charged("moves")) == (1, 0)

        await eventually(new_owner_is_charged, within=TIMEOUT_SECONDS)
        spent_before = await spent("moves")
        charged_elsewhere = await spent("new-owner")

        async def new_owner_is_charged_more() -> None:
            assert await spent("new-owner") > charged_elsewhere
            service = await api.get(INFERENCE_SERVICES.path("moves", "svc"))
            assert service["status"]["tenant"]["budget"] == "new-owner"

        await eventually(new_owner_is_charged_more, within=TIMEOUT_SECONDS)
        assert await spent("moves") == spent_before > 0, (
            "what was spent stays, and nothing is added"
        )

        await api.delete(TENANT_BUDGETS.path(None, "new-owner"))
        await namespace.delete()
