"""The scheduler's message about all nodes becomes what the nodes of the pool lack."""

from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_pod
from tessera.adapters.kube.scheduler_message import missing_on_nodes
from tests.cli.memory_api import a_pod_body

MESSAGE = (
    "0/5 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb, 1 node(s) had untolerated "
    "taint(s), 3 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, "
    "preemption: 0/5 nodes are "
    "available: 1 No preemption victims found for incoming pod, 4 Preemption is not helpful for "
    "scheduling."
)
LACKS = "1 node without enough free nvidia.com/mig-1g.10gb, 1 node had untolerated taint(s)"


@pytest.mark.parametrize(
    ("message", "lacks"),
    [
        (MESSAGE, LACKS),
        (
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
            "2 nodes without enough free nvidia.com/gpu",
        ),
        (
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
            "3 nodes didn't match Pod's node affinity/selector",
        ),
        ("no nodes available to schedule pods", "no nodes available to schedule pods"),
        ("0/3 nodes are available: ", "0/3 nodes are available: "),
    ],
)
def test_what_nodes_lack_is_said_without_nodes_of_other_pools(message: str, lacks: str) -> None:
    assert missing_on_nodes(message) == lacks


def test_a_pod_without_a_node_has_what_is_missing() -> None:
    body = a_pod_body("chat-0")
    body["metadata"]["uid"] = "uid-0"
    condition = {"type": "PodScheduled", "status": "False", "message": MESSAGE}
    body["status"] = {"phase": "Pending", "conditions": [condition]}
    pod = parse_pod(body)
    assert pod is not None
    assert pod.unschedulable == LACKS


def test_a_pod_of_others_has_which_nodes_it_waits_for() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": MESSAGE}
    body: dict[str, Any] = {
        "metadata": {"name": "notebook", "namespace": "lab", "uid": "uid-0"},
        "spec": {
            "nodeSelector": {"pool": "a100"},
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
        "status": {"phase": "Pending", "conditions": [condition]},
    }
    body["metadata"]["creationTimestamp"] = "2026-11-20T12:00:00Z"
    pod = parse_pod(body)
    assert pod is not None
    assert (pod.unmanaged, pod.unschedulable) == (True, LACKS)
    assert pod.node_selector == (("pool", "a100"),)
    body["spec"]["nodeName"] = "a100-0"
    bound = parse_pod(body)
    assert bound is not None
    assert bound.node_selector == ()
