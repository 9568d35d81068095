"""The operator restarts at an API server that lags behind: it never acts on the past.

This is the third pattern of Sieve (time travel). A second API server gets no events from etcd; the
next process of the operator is connected to it. It lists without a resource version, so that the
server reads etcd or fails, and changes nothing; it goes on once the events arrive.
"""

import asyncio
from pathlib import Path

from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tests.faults.namespaces import TenantNamespace
from tests.faults.operators import OperatorOptions, running_operator
from tests.faults.user_actions import run_user_actions
from world import World
from world.api import Api, connect
from world.lagging_api_server import lagging_api_server
from world.object_comparison import differences
from world.testing import eventually

TIMEOUT_SECONDS = 120
LAG_SECONDS = 20


async def cached_replicas(kubeconfig: Path, namespace: str) -> dict[str, int]:
    """Return the replicas of services as the cache of an API server has them."""
    async with connect(kubeconfig) as api:
        listed = await api.get(INFERENCE_SERVICES.path(namespace), resourceVersion="0")
    return {body["metadata"]["name"]: body["spec"]["replicas"] for body in listed["items"]}


async def test_an_operator_that_restarts_at_a_lagging_api_server_acts_on_no_past(
    world: World, api: Api
) -> None:
    namespace = TenantNamespace(api, "lagging")
    async with lagging_api_server(world) as (proxy, lagging):
        async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)):
            clean = await run_user_actions(TenantNamespace(api, "before-lag"), TIMEOUT_SECONDS)
            await namespace.create()
            await namespace.apply_service("edited", replicas=0)
            await namespace.apply_service("scaled", replicas=1)
            await namespace.apply_service("gone", replicas=0)
            await namespace.wait_for_replicas(TIMEOUT_SECONDS, edited=0, scaled=1, gone=0)
            past = {"edited": 0, "scaled": 1, "gone": 0}

            async def cache_has_all_services() -> None:
                assert await cached_replicas(lagging, namespace.name) == past

            await eventually(cache_has_all_services, within=TIMEOUT_SECONDS)
            proxy.holding = True
            await namespace.apply_service("edited", replicas=0, context={"maxModelLen": 4096})
            await namespace.delete_service("gone")
            await namespace.wait_for_replicas(TIMEOUT_SECONDS, edited=0, scaled=1)
            present = await namespace.wait_until_settled(TIMEOUT_SECONDS)

        async with running_operator(OperatorOptions(kubeconfig=lagging)) as operator:
            await asyncio.sleep(LAG_SECONDS)  # the fault itself
            assert await cached_replicas(lagging, namespace.name) == past
            assert proxy.held_frames
            assert not differences(present, await namespace.wait_until_settled(TIMEOUT_SECONDS))
            assert not operator.exit_codes

            await namespace.apply_service("scaled", replicas=2)
            proxy.release()
            await namespace.wait_for_replicas(TIMEOUT_SECONDS, edited=0, scaled=2)
            end_state = await namespace.wait_until_settled(TIMEOUT_SECONDS)
            assert not operator.exit_codes
        await namespace.delete()
    assert not (wrong := differences(clean, end_state)), "\n".join(wrong[:20])
