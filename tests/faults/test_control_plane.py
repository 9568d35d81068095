"""The control plane stops and returns while the operator runs."""

import asyncio

import pytest

from tests.faults.namespaces import TenantNamespace, wait_until_served
from tests.faults.operators import OperatorOptions, running_operator
from tests.faults.user_actions import run_user_actions
from world import World
from world.api import NODES, Api
from world.object_comparison import differences
from world.testing import condition, eventually

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
        await wait_until_served(api)
        end_state = await run_user_actions(namespace, TIMEOUT_SECONDS)
        await namespace.delete()
    assert not (wrong := differences(clean, end_state)), "\n".join(wrong[:20])


@pytest.mark.parametrize("seconds", [10, pytest.param(40, marks=pytest.mark.full)])
async def test_etcd_does_not_answer_for_a_while(world: World, api: Api, seconds: float) -> None:
    async with running_operator(OperatorOptions(kubeconfig=world.kubeconfig)) as operator:
        clean = await run_user_actions(
            TenantNamespace(api, f"before-pause-{seconds}"), TIMEOUT_SECONDS
        )
        namespace = TenantNamespace(api, f"paused-{seconds}")
        await namespace.create()
        await namespace.apply_service("edited", replicas=0)
        await namespace.apply_service("scaled", replicas=1)
        await namespace.apply_service("gone", replicas=0)
        world.pause_program("etcd")
        try:
            await asyncio.sleep(seconds)  # the fault itself, not a wait for a state
        finally:
            world.resume_program("etcd")
        await wait_until_served(api)
        end_state = await run_user_actions(namespace, TIMEOUT_SECONDS)

        async def all_nodes_are_ready() -> None:
            nodes = (await api.get(NODES.path()))["items"]
            not_ready = [node["metadata"] for node in nodes if condition(node, "Ready") != "True"]
            assert [meta["name"] for meta in not_ready] == []

        await eventually(all_nodes_are_ready, within=TIMEOUT_SECONDS)
        await namespace.delete()
        assert all(code for code in operator.exit_codes), (
            "a lost lease ends the process with an error"
        )
    assert not (wrong := differences(clean, end_state)), "\n".join(wrong[:20])
