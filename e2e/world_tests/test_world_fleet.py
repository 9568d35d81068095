"""The fleet file: what it may say, and what nodes become of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tessera.domain.hardware.gpu_catalog import products
from world import mig
from world.fleet import FleetError, Node, read
from world.folders import DEFAULT_FLEET
from world.gpus.hardware import hardware
from world.labels import labels, provider_id, resources, taints

A100 = products()["NVIDIA-A100-SXM4-80GB"]


def fleet(tmp_path: Path, text: str) -> tuple[Node, ...]:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return read(path)


def a_node(tmp_path: Path, **fields: str) -> Node:
    """A node with one A100, as YAML values say."""
    plain = {"name": "n", "product": A100.product, "gpus": "[whole]"} | fields
    (node,) = fleet(tmp_path, f"nodes: [{{{', '.join(f'{k}: {v}' for k, v in plain.items())}}}]")
    return node


@pytest.mark.parametrize(
    ("layout", "starts"),
    [
        (["7g.80gb"], [0]),
        (["4g.40gb", "3g.40gb"], [0, 4]),
        (["3g.40gb", "3g.40gb"], [0, 4]),
        # A 3g at 0 would strand a compute slice, so it has to go to the right.
        (["3g.40gb", *["1g.10gb"] * 4], [0, 1, 2, 3, 4]),
        (["3g.40gb", "2g.20gb", "2g.20gb"], [0, 2, 4]),
        (["2g.20gb"] * 3 + ["1g.10gb"], [0, 2, 4, 6]),
        (["1g.20gb"] * 4, [0, 2, 4, 6]),
        (["1g.10gb"] * 7, [0, 1, 2, 3, 4, 5, 6]),
        (["1g.10gb+me", "1g.10gb"], [5, 6]),
        ([], []),
    ],
)
def test_slices_that_fit_get_legal_starts(layout: Sequence[str], starts: Sequence[int]) -> None:
    instances = mig.place_slices(A100, layout)

    assert instances is not None
    assert [instance.start for instance in instances] == starts
    assert sorted(instance.profile for instance in instances) == sorted(layout)


@pytest.mark.parametrize(
    "layout",
    [
        ["1g.10gb"] * 8,
        ["4g.40gb", "4g.40gb"],
        ["7g.80gb", "1g.10gb"],
        ["3g.40gb", "3g.40gb", "1g.10gb"],
        ["2g.20gb"] * 4,
        ["1g.10gb+me", "1g.10gb+me"],
    ],
)
def test_slices_that_do_not_fit_are_refused(layout: Sequence[str]) -> None:
    assert mig.place_slices(A100, layout) is None


def test_gpu_instances_are_numbered_as_drivers_number_them() -> None:
    instances = mig.place_slices(A100, ["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"])

    assert instances is not None
    assert {(instance.profile, instance.start): instance.instance for instance in instances} == {
        ("3g.40gb", 4): 2,
        ("2g.20gb", 2): 4,
        ("1g.10gb", 0): 7,
        ("1g.10gb", 1): 8,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nodes: []", "nodes: Tuple should have at least 1 item"),
        ("nodes: [{name: a}]", "nodes[0].gpus: a node of kind gpu needs at least one"),
        ("nodes: [{name: a, kind: cpu, speed: 3}]", "nodes[0].speed: Extra inputs"),
        ("nodes: [{name: A, kind: cpu}]", "nodes[0].name: String should match"),
        ("nodes: [{name: a, kind: cpu, tier: cheap}]", "nodes[0].tier: Input should be"),
        ("nodes: [{name: a, kind: cpu}, {name: a, kind: cpu}]", "nodes: two are named a"),
        ("nodes: [{name: a, gpus: [whole]}]", "nodes[0].product: needed where there are gpus"),
        ("nodes: [{name: a, product: X, gpus: [whole]}]", "nodes[0].product: X is not known"),
        (
            f"nodes: [{{name: a, product: {A100.product}, gpus: [whole, [5g.10gb]]}}]",
            "nodes[0].gpus[1]: NVIDIA-A100-SXM4-80GB has no 5g.10gb; it has 1g.10gb, ",
        ),
        (
            f"nodes: [{{name: a, product: {A100.product}, gpus: [[4g.40gb, 4g.40gb]]}}]",
            "nodes[0].gpus[0]: 4g.40gb + 4g.40gb do not fit on one NVIDIA-A100-SXM4-80GB",
        ),
        ("nodes: [", "cannot be read: while parsing"),
    ],
)
def test_a_mistake_names_the_file_and_the_field(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(FleetError) as raised:
        fleet(tmp_path, text)

    assert f"{tmp_path / 'fleet.yaml'}: {problem}" in str(raised.value)


def test_a_count_makes_numbered_nodes(tmp_path: Path) -> None:
    nodes = fleet(tmp_path, "nodes: [{name: fake, kind: kwok, count: 3}]")

    assert [node.name for node in nodes] == ["fake-0", "fake-1", "fake-2"]
    assert not any(node.live for node in nodes)


def test_the_default_fleet_is_legal() -> None:
    assert len(read(DEFAULT_FLEET)) == 4


@pytest.mark.parametrize(
    ("cloud", "tier", "label"),
    [
        ("aws", "Spot", ("eks.amazonaws.com/capacityType", "SPOT")),
        ("aws", "Spot", ("karpenter.sh/capacity-type", "spot")),
        ("aws", "OnDemand", ("karpenter.sh/capacity-type", "on-demand")),
        ("aws", "Reserved", ("karpenter.sh/capacity-type", "reserved")),
        ("gcp", "Spot", ("cloud.google.com/gke-spot", "true")),
        ("gcp", "OnDemand", ("cloud.google.com/gke-provisioning", "standard")),
        ("azure", "Spot", ("kubernetes.azure.com/scalesetpriority", "spot")),
    ],
)
def test_a_cloud_labels_how_a_node_is_paid(
    tmp_path: Path, cloud: str, tier: str, label: tuple[str, str]
) -> None:
    node_labels = labels(a_node(tmp_path, cloud=cloud, tier=tier))

    assert label in node_labels.items()


@pytest.mark.parametrize(
    ("cloud", "key"),
    [
        ("aws", None),
        ("gcp", "cloud.google.com/gke-spot"),
        ("azure", "kubernetes.azure.com/scalesetpriority"),
        ("onPrem", None),
    ],
)
def test_some_clouds_taint_their_spot_nodes(tmp_path: Path, cloud: str, key: str | None) -> None:
    node_taints = taints(a_node(tmp_path, cloud=cloud, tier="Spot"))

    assert [(taint.key, taint.effect) for taint in node_taints] == (
        [(key, "NoSchedule")] if key else []
    )


def test_on_premises_no_label_says_how_a_node_is_paid(tmp_path: Path) -> None:
    node_labels = labels(a_node(tmp_path, tier="Reserved"))

    assert not {key for key in node_labels if "capacity" in key or "topology" in key}


def test_labels_of_the_file_win(tmp_path: Path) -> None:
    node = a_node(tmp_path, cloud="aws", zone="us-west-2c", labels="{nvidia.com/gpu.memory: '1'}")

    node_labels = labels(node)
    assert node_labels["nvidia.com/gpu.memory"] == "1"
    assert node_labels["topology.kubernetes.io/zone"] == "us-west-2c"
    assert provider_id(node) == "aws:///us-west-2c/n"


def test_slices_are_labeled_as_feature_discovery_does(tmp_path: Path) -> None:
    node_labels = labels(a_node(tmp_path, gpus="[[3g.40gb, 1g.10gb+me, 1g.10gb]]"))

    prefix = "nvidia.com/mig-1g.10gb.me."
    assert {key: value for key, value in node_labels.items() if key.startswith(prefix)} == {
        f"{prefix}count": "1",
        f"{prefix}replicas": "1",
        f"{prefix}product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb.me",
        f"{prefix}memory": "9728",
        f"{prefix}multiprocessors": "14",
        f"{prefix}slices.gi": "1",
        f"{prefix}slices.ci": "1",
        f"{prefix}engines.copy": "1",
        f"{prefix}engines.decoder": "1",
        f"{prefix}engines.encoder": "0",
        f"{prefix}engines.jpeg": "1",
        f"{prefix}engines.ofa": "1",
    }
    assert node_labels["nvidia.com/gpu.replicas"] == "0"


def test_a_node_offers_its_whole_gpus_and_its_slices(tmp_path: Path) -> None:
    node = a_node(tmp_path, gpus="[whole, [2g.20gb, 2g.20gb], whole]")

    offered = {key: count for key, count in resources(node).items() if "nvidia" in key}
    assert offered == {"nvidia.com/gpu": "2", "nvidia.com/mig-2g.20gb": "2"}
    assert len({device.id for device in hardware(node).devices()}) == 4


def test_a_node_offers_what_other_device_plugins_say(tmp_path: Path) -> None:
    node = a_node(tmp_path, gpus="[[7g.80gb]]", resources="{nvidia.com/hostdev: 8}")

    offered = {key: count for key, count in resources(node).items() if "nvidia" in key}
    assert offered == {"nvidia.com/hostdev": "8", "nvidia.com/mig-7g.80gb": "1"}
