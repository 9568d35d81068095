"""`tessera doctor` over pools whose GPUs Tessera partitions."""

from collections.abc import Callable
from typing import Any

import pytest

from tessera.cli.doctor.finding import Finding, FindingState
from tessera.cli.doctor.mig import check_layouts
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.resources.api_resources import PODS
from tessera.resources.manifest import ObjectKey
from tests.cli.check_contexts import a_check_context
from tests.cli.memory_api import MemoryApi, a_pod_body, operator_of, pages
from tests.cli.partitioned_cluster import (
    a_partitioned_cluster,
    a_slice,
    put_layout,
    put_node,
    put_pool,
)

MANAGER = {"backend": "MigManager"}
AGENT = {"backend": "Agent"}
POLICIES = "/apis/nvidia.com/v1/clusterpolicies"


def a_cluster(mig: dict[str, Any], reason: str = "AsPlanned") -> MemoryApi:
    """Return a cluster in which both backends run."""
    api = a_partitioned_cluster(mig, None, reason)
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


async def layout_findings(api: MemoryApi) -> list[Finding]:
    return list(await check_layouts(a_check_context(api)))


@pytest.mark.parametrize("mig", [MANAGER, AGENT, {"mode": "Static"}])
@pytest.mark.parametrize("reason", ["AsPlanned", "AwaitingApproval", "Repartitioning"])
async def test_a_pool_in_order_is_fine_whatever_it_waits_for(
    mig: dict[str, Any], reason: str
) -> None:
    [finding] = await layout_findings(a_cluster(mig, reason))
    assert (finding.check, finding.state) == ("layouts a100", FindingState.OK)
    assert finding.message == f"{reason}: so it is: {reason}"


async def test_pools_that_are_not_partitioned_have_no_findings() -> None:
    assert await layout_findings(a_partitioned_cluster(None)) == []


Breaks = Callable[[MemoryApi], object]


def layout_status(api: MemoryApi, node: str) -> dict[str, Any]:
    status: dict[str, Any] = api.cluster.objects[ObjectKey(NODE_LAYOUTS.plural, "", node)]["status"]
    return status


def _without(name: str) -> Breaks:
    return lambda api: [
        api.cluster.objects.pop(key) for key in list(api.cluster.objects) if key.name == name
    ]


def _odd(api: MemoryApi) -> None:
    api.cluster.objects.pop(ObjectKey(NODE_LAYOUTS.plural, "", "a100-1"))
    put_node(api, "a100-1", 1, {"mig-3g.40gb": 3})


def _make_read_only(api: MemoryApi) -> None:
    layout_status(api, "a100-1").update(partitioningEnabled=False)


def _break_driver(api: MemoryApi) -> None:
    layout_status(api, "a100-1").update(problem="no driver")


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
    "a read-only agent": (AGENT, "is read-only on 1 node: a100-1", "node.partition=true",
                                 _make_read_only),
    "an agent without a driver": (AGENT, "cannot report: no driver", "get nodelayouts a100-1",
                                  _break_driver),
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
    findings = [finding for finding in await layout_findings(api) if words in finding.message]
    assert [(finding.state, fix in finding.fix) for finding in findings] == [
        (FindingState.PROBLEM, True)
    ], findings


async def test_an_operator_without_the_rights_to_partition_is_a_problem() -> None:
    api = a_cluster(AGENT)
    api.pages |= pages()
    finding = (await layout_findings(api))[0]
    assert (finding.state, "mig.enabled=true" in finding.fix) == (FindingState.PROBLEM, True)
    env = operator_of(api)["spec"]["template"]["spec"]["containers"][0]["env"]
    env.append({"name": "TESSERA_MIG_ENABLED", "value": "true"})
    assert [finding.state for finding in await layout_findings(api)] == [FindingState.OK]


async def test_a_slice_without_a_mig_device_is_a_warning() -> None:
    api = a_cluster(AGENT)
    put_layout(api, "a100-0", [[a_slice("3g.40gb", 4)], []])
    finding = (await layout_findings(api))[0]
    assert finding.state is FindingState.WARNING
    assert finding.message == "a100-0 GPU 0: no MIG device on 3g.40gb@4"


async def test_gpus_that_are_all_out_of_mig_mode_are_a_problem() -> None:
    api = a_cluster(AGENT)
    for name in ("a100-0", "a100-1"):
        for gpu in layout_status(api, name)["gpus"]:
            gpu.update(mode="Disabled", slices=[])
    assert (await layout_findings(api))[0].message == "no GPU is in MIG mode"
