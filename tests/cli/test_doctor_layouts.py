"""`tessera doctor` over pools whose GPUs Tessera cuts."""

from collections.abc import Callable
from typing import Any

import pytest

from tessera.cli.doctor.finding import Finding, FindingState
from tessera.cli.doctor.mig import layouts
from tessera.resources.api_resources import NODE_LAYOUTS, PODS
from tessera.resources.manifest import ObjectKey
from tests.cli.check_contexts import a_check_context
from tests.cli.partitioned_cluster import a_cut_cluster, a_slice, put_layout, put_node, put_pool
from tests.cli.memory_api import MemoryApi, a_pod_body, operator_of, pages

MANAGER = {"backend": "MigManager"}
AGENT = {"backend": "Agent"}
POLICIES = "/apis/nvidia.com/v1/clusterpolicies"


def a_cluster(mig: dict[str, Any], reason: str = "AsPlanned") -> MemoryApi:
    """Both backends are in order."""
    api = a_cut_cluster(mig, None, reason)
    ample = {"uuid": "MIG-1"}
    for node, gpus in (("a100-0", [[a_slice("3g.40gb", 0) | ample], []]), ("a100-1", [[]])):
        put_layout(api, node, gpus)
        body = a_pod_body(f"manager-{node}")
        body["metadata"]["labels"] = {"app": "nvidia-mig-manager"}
        body["spec"]["nodeName"] = node
        api.cluster.put(PODS, body)
    api.pages[POLICIES] = {"items": [a_policy("tessera-mig")], "metadata": {}}
    return api


def a_policy(config: str) -> dict[str, Any]:
    spec = {"migManager": {"config": {"name": config}}}
    return {"metadata": {"name": "cluster-policy"}, "spec": spec}


async def found(api: MemoryApi) -> list[Finding]:
    return list(await layouts(a_check_context(api)))


@pytest.mark.parametrize("mig", [MANAGER, AGENT, {"mode": "Static"}])
@pytest.mark.parametrize("reason", ["AsPlanned", "AwaitingApproval", "Repartitioning"])
async def test_a_pool_in_order_is_fine_whatever_it_waits_for(
    mig: dict[str, Any], reason: str
) -> None:
    [told] = await found(a_cluster(mig, reason))
    assert (told.check, told.state) == ("layouts a100", FindingState.OK)
    assert told.message == f"{reason}: so it is: {reason}"


async def test_pools_that_are_not_cut_are_no_matter() -> None:
    assert await found(a_cut_cluster(None)) == []


Breaks = Callable[[MemoryApi], object]


def told_by(api: MemoryApi, node: str) -> dict[str, Any]:
    status: dict[str, Any] = api.cluster.objects[ObjectKey(NODE_LAYOUTS.plural, "", node)]["status"]
    return status


def _without(name: str) -> Breaks:
    return lambda api: [
        api.cluster.objects.pop(key) for key in list(api.cluster.objects) if key.name == name
    ]


def _odd(api: MemoryApi) -> None:
    api.cluster.objects.pop(ObjectKey(NODE_LAYOUTS.plural, "", "a100-1"))
    put_node(api, "a100-1", 1, {"mig-3g.40gb": 3})


def _only_looks(api: MemoryApi) -> None:
    told_by(api, "a100-1").update(partitioningEnabled=False)


def _fault(api: MemoryApi) -> None:
    put_layout(api, "a100-0", [[], []], fault="ResetRequired", message="nvidia-smi -r")


BROKEN: dict[str, tuple[dict[str, Any], str, str, Breaks]] = {
    "no manager": (MANAGER, "mig-manager does not run on 1 node: a100-1", "migManager.enabled",
                   _without("manager-a100-1")),
    "another map": (MANAGER, "reads ConfigMap/other", '{"name": "tessera-mig"}',
                    lambda api: api.pages.update(
                        {POLICIES: {"items": [a_policy("other")], "metadata": {}}})),
    "no agent": (AGENT, "tessera-node does not run on 1 node: a100-1", "node.enabled=true",
                 lambda api: api.cluster.objects.pop(ObjectKey("nodelayouts", "", "a100-1"))),
    "an agent that only looks": (AGENT, "is read-only on 1 node: a100-1", "node.partition=true",
                                 _only_looks),
    "an agent without a driver": (AGENT, "cannot report: no driver", "get nodelayouts a100-1",
                                  lambda api: told_by(api, "a100-1").update(problem="no driver")),
    "a reset": (AGENT, "a100-0 GPU 0: ResetRequired: nvidia-smi -r", "get nodelayouts a100-0",
                _fault),
    "odd numbers": (MANAGER, "cannot be partitioned into 3x 3g.40gb", "describe node a100-1",
                    _odd),
    "a blocked pool": (MANAGER, "NoSurgeCapacity: so it is", "tessera plan a100",
                       lambda api: put_pool(api, MANAGER, None, "NoSurgeCapacity")),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
async def test_what_keeps_layouts_from_being_carried_out_is_named_with_its_fix(name: str) -> None:
    mig, words, fix, breaks = BROKEN[name]
    api = a_cluster(mig)
    breaks(api)
    told = [one for one in await found(api) if words in one.message]
    assert [(one.state, fix in one.fix) for one in told] == [(FindingState.PROBLEM, True)], told


async def test_an_operator_without_the_rights_to_cut_is_a_problem() -> None:
    api = a_cluster(AGENT)
    api.pages |= pages()
    told = (await found(api))[0]
    assert (told.state, "mig.enabled=true" in told.fix) == (FindingState.PROBLEM, True)
    env = operator_of(api)["spec"]["template"]["spec"]["containers"][0]["env"]
    env.append({"name": "TESSERA_MIG_ENABLED", "value": "true"})
    assert [one.state for one in await found(api)] == [FindingState.OK]


async def test_a_slice_without_a_mig_device_is_a_warning() -> None:
    api = a_cluster(AGENT)
    put_layout(api, "a100-0", [[a_slice("3g.40gb", 4)], []])
    told = (await found(api))[0]
    assert told.state is FindingState.WARNING
    assert told.message == "a100-0 GPU 0: no MIG device on 3g.40gb@4"


async def test_gpus_that_are_all_out_of_mig_mode_are_a_problem() -> None:
    api = a_cluster(AGENT)
    for name in ("a100-0", "a100-1"):
        for gpu in told_by(api, name)["gpus"]:
            gpu.update(mode="Disabled", slices=[])
    assert (await found(api))[0].message == "no GPU is in MIG mode"
