"""The control plane stops and returns while the operator runs."""

import asyncio

from tests.faults.namespaces import TenantNamespace
from tests.faults.operators import OperatorOptions, running_operator
from tests.faults.user_actions import run_user_actions
from world import World
from world.api import Api
from world.object_comparison import differences
from world.testing import eventually

PAUSE_SECONDS = 10
TIMEOUT_SECONDS = 90


async def test_the_api_server_is_restarted_in_the_middle(world: World, api: Api) -> None:
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)):
        clean = await run_user_actions(TenantNamespace(api, "before-restart"), TIMEOUT_SECONDS)
        namespace = TenantNamespace(api, "restarted")
        await namespace.create()
        await namespace.apply_service("edited", replicas=0)
        await namespace.apply_service("scaled", replicas=1)
        await namespace.apply_service("gone", replicas=0)
        world.end_program("kube-apiserver")
        world.start_program("kube-apiserver")
        await eventually(lambda: api.exists("/readyz"), bool, within=60)
        end_state = await run_user_actions(namespace, TIMEOUT_SECONDS)
        await namespace.delete()
    assert not (wrong := differences(clean, end_state)), "\n".join(wrong[:20])


async def test_etcd_does_not_answer_for_ten_seconds(world: World, api: Api) -> None:
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        clean = await run_user_actions(TenantNamespace(api, "before-pause"), TIMEOUT_SECONDS)
        namespace = TenantNamespace(api, "paused")
        await namespace.create()
        await namespace.apply_service("edited", replicas=0)
        await namespace.apply_service("scaled", replicas=1)
        await namespace.apply_service("gone", replicas=0)
        world.pause_program("etcd")
        try:
            await asyncio.sleep(PAUSE_SECONDS)  # the fault itself, not a wait for a state
        finally:
            world.resume_program("etcd")
        await eventually(lambda: api.exists("/readyz"), bool, within=60)
        end_state = await run_user_actions(namespace, TIMEOUT_SECONDS)
        await namespace.delete()
        assert all(code for code in operator.exit_codes), (
            "a lost lease ends the process with an error"
        )
    assert not (wrong := differences(clean, end_state)), "\n".join(wrong[:20])
