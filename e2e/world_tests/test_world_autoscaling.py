"""What an autoscaler thinks of a node that does not exist, and how a group's machines come."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from world.api import Json
from world.autoscaling.fit import known_capacity, known_labels, requests, why_not
from world.autoscaling.groups import GroupChange, group_state
from world.autoscaling.reports import refusal_text
from world.fleet import FleetError, NodeGroup, read_groups
from world.testing import a_container, a_pod, a_pool_pod

GPU, SLICE = "nvidia.com/gpu", "nvidia.com/mig-3g.40gb"


def groups(tmp_path: Path, *entries: str, nodes: str = "{name: control, kind: cpu}") -> Any:
    path = tmp_path / "fleet.yaml"
    lines = ["nodes:", f"- {nodes}", "groups:", *(f"- {{{entry}}}" for entry in entries)]
    path.write_text("\n".join(lines))
    return read_groups(path)


def a_group(tmp_path: Path, **fields: str) -> NodeGroup:
    plain = {
        "name": "burst",
        "product": "NVIDIA-A100-SXM4-80GB",
        "cloud": "aws",
        "gpus": "[[], whole]",
        "labels": "{pool: burst, nvidia.com/gpu.count: '2'}",
        "taints": "[{key: nvidia.com/gpu}]",
    }
    (group,) = groups(tmp_path, ", ".join(f"{k}: {v}" for k, v in (plain | fields).items()))
    return group  # type: ignore[no-any-return]


def test_an_autoscaler_knows_the_machine_and_what_the_group_declares(tmp_path: Path) -> None:
    group = a_group(tmp_path, knownResources=f"{{{SLICE}: 2}}")

    labels = known_labels(group)

    assert labels["pool"] == "burst"
    assert labels["karpenter.sh/nodepool"] == "burst"
    assert labels["node.kubernetes.io/instance-type"] == "p4de.24xlarge"
    assert {key for key in labels if key.startswith("nvidia.com/")} == {"nvidia.com/gpu.count"}
    # Both GPUs count as whole ones, though one is in MIG mode.
    capacity = known_capacity(group)
    assert (int(capacity[GPU]), int(capacity[SLICE])) == (2, 2)


def test_a_pod_asks_for_its_containers_or_its_largest_init_container() -> None:
    def limits(**amounts: str) -> Json:
        return a_container(resources={"limits": amounts})

    init = [limits(cpu="3"), limits(cpu="500m") | {"restartPolicy": "Always"}]
    pod = a_pod("web", limits(cpu="1"), limits(cpu="1", memory="1Gi"), initContainers=init)

    assert requests(pod) == {
        "cpu": Decimal(3),
        "memory": Decimal(2**30),
        "pods": Decimal(1),
    }


@pytest.mark.parametrize(
    ("spec", "obstacle"),
    [
        ({}, None),
        ({"tolerations": []}, "node(s) had untolerated taint {nvidia.com/gpu: }"),
        ({"tolerations": [{"operator": "Exists"}]}, None),
        ({"tolerations": [{"key": GPU, "value": "no"}]}, "node(s) had untolerated taint"),
        ({"tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoExecute"}]}, "node(s)"),
        ({"nodeSelector": {"pool": "other"}}, "node(s) didn't match Pod's node affinity"),
        # Feature discovery has not looked at a node that does not exist.
        ({"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}}, "node(s) didn't"),
    ],
)
def test_a_pod_fits_by_selector_and_tolerations(
    tmp_path: Path, spec: Json, obstacle: str | None
) -> None:
    group = a_group(tmp_path)
    pod = a_pool_pod("web", "burst", **{GPU: 2})
    pod["spec"] |= spec

    answer = why_not(pod, group, known_capacity(group))

    assert answer is None if obstacle is None else (answer or "").startswith(obstacle)


@pytest.mark.parametrize(
    ("operator", "values", "fits"),
    [
        ("In", ["burst", "x"], True),
        ("NotIn", ["burst"], False),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_a_pod_fits_by_affinity(
    tmp_path: Path, operator: str, values: list[str], fits: bool
) -> None:
    group = a_group(tmp_path)
    expression = {"key": "pool", "operator": operator, "values": values}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    pod = a_pool_pod("web", "burst", **{GPU: 1})
    pod["spec"]["affinity"] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    }

    assert (why_not(pod, group, known_capacity(group)) is None) == fits


def test_resources_that_are_not_declared_are_lacking(tmp_path: Path) -> None:
    group = a_group(tmp_path)
    capacity = known_capacity(group)

    for limits, obstacle in (({SLICE: 1}, f"Insufficient {SLICE}"), ({GPU: 3}, "Insufficient")):
        answer = why_not(a_pool_pod("web", "burst", **limits), group, capacity)
        assert (answer or "").startswith(obstacle)


@pytest.mark.parametrize(
    ("arrival", "comes", "driver"),
    [("Normal", True, True), ("Never", False, True), ("NoDriver", True, False)],
)
def test_machines_come_as_the_group_says(
    tmp_path: Path, arrival: Any, comes: bool, driver: bool
) -> None:
    state = group_state(a_group(tmp_path, startSeconds="5"))
    state.change(GroupChange(arrival=arrival), now=100.0)

    launch = state.launch((GPU,), now=101.0)

    assert (launch.due, launch.driver) == (106.0 if comes else None, driver)
    assert (launch.node.name, launch.size) == ("burst-1", 0)
    assert state.size == 1


def test_a_machine_may_be_other_than_its_template(tmp_path: Path) -> None:
    state = group_state(a_group(tmp_path))
    state.change(GroupChange(arrival="Other", product="NVIDIA-H100-80GB-HBM3", gpus=1), now=0.0)

    node = state.launch((), now=0.0).node

    assert node.product is not None
    assert (node.product.product, node.gpus) == ("NVIDIA-H100-80GB-HBM3", (None,))
    assert node.labels["pool"] == "burst"


def test_a_shortage_ends_and_the_group_tries_at_once(tmp_path: Path) -> None:
    state = group_state(a_group(tmp_path))
    state.change(GroupChange(arrival="NoCapacity", for_seconds=600), now=0.0)
    state.retry_at = 700.0
    assert refusal_text(state).startswith("UnfulfillableCapacity: ")

    state.advance(599.0)
    assert state.arrival == "NoCapacity"
    state.advance(600.0)

    assert (state.arrival, state.retry_at) == ("Normal", 600.0)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["name: a, kind: cpu", "name: a, kind: cpu"], "groups: two are named a"),
        (["name: control, kind: cpu"], "would name a node like control"),
        (["name: a, kind: kwok"], "groups[0].kind: Input should be 'gpu' or 'cpu'"),
        (["name: a, kind: cpu, count: 2"], "groups[0].count: Input should be None"),
        (["name: a, kind: cpu, maxNodes: 21"], "groups[0].maxNodes: Input should be less"),
        (["name: a"], "groups[0].gpus: a node of kind gpu needs at least one"),
    ],
)
def test_wrong_groups_are_refused(tmp_path: Path, entries: list[str], message: str) -> None:
    with pytest.raises(FleetError) as refusal:
        groups(tmp_path, *entries)
    assert message in str(refusal.value)
