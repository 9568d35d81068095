"""The sequence of user actions that runs with and without faults."""

import asyncio
from typing import Any

from tests.faults.namespaces import TenantNamespace
from world.api import Api


async def run_user_actions(namespace: TenantNamespace, within: float = 90) -> dict[str, Any]:
    """Create services, edit one, scale one, delete one; return the end state."""
    await namespace.create()
    await namespace.apply_service("edited", replicas=0)
    await namespace.apply_service("scaled", replicas=1)
    await namespace.apply_service("gone", replicas=0)
    await namespace.wait_for_replicas(within, edited=0, scaled=1, gone=0)
    await namespace.apply_service("edited", replicas=0, context={"maxModelLen": 4096})
    await namespace.apply_service("scaled", replicas=2)
    await namespace.delete_service("gone")
    await namespace.wait_for_replicas(within, edited=0, scaled=2)
    return await namespace.wait_until_settled(within)


async def run_in_namespaces(api: Api, names: list[str], within: float) -> list[dict[str, Any]]:
    """Run the actions in several namespaces at once, and delete these afterwards."""
    namespaces = [TenantNamespace(api, name) for name in names]
    end_states = await asyncio.gather(
        *(run_user_actions(namespace, within) for namespace in namespaces)
    )
    for namespace in namespaces:
        await namespace.delete()
    return end_states
