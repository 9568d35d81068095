"""The objects that backends request, as they are sent to the API server."""

import yaml

from tessera.api.node_layout import DesiredGpu, NodeLayoutSpec, PlacedSlice
from tessera.domain.mig_backends.backend import BackendRequest
from tessera.resources.mig_objects import configuration, node_layout

ENTRY = '- devices: [0]\n  mig-enabled: true\n  mig-devices: {"3g.40gb": 2}\n'


def test_the_file_of_mig_manager_has_all_requested_and_referenced_configurations() -> None:
    config_map = configuration(
        "gpu-operator", [BackendRequest(configs={"tessera-a-1": ENTRY})], {"old": ENTRY}
    )
    assert (config_map.namespace, config_map.name) == ("gpu-operator", "tessera-mig")
    file = yaml.safe_load(config_map.body["data"]["config.yaml"])
    assert file["version"] == "v1"
    assert sorted(file["mig-configs"]) == ["all-disabled", "all-enabled", "old", "tessera-a-1"]
    (part,) = file["mig-configs"]["tessera-a-1"]
    assert part == {"devices": [0], "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}


def test_the_order_of_requests_does_not_matter() -> None:
    requests = [BackendRequest(configs={"b": ENTRY}), BackendRequest(configs={"a": ENTRY})]
    assert configuration("n", requests, {}) == configuration("n", reversed(requests), {})


def test_the_operator_applies_only_the_spec_of_a_node_layout() -> None:
    gpu = DesiredGpu(uuid="GPU-1", slices=(PlacedSlice(profile="3g.40gb", start=4),))
    body = node_layout("gpu-1", NodeLayoutSpec(gpus=(gpu,))).body
    assert body.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert body["spec"] == {
        "gpus": [{"uuid": "GPU-1", "slices": [{"profile": "3g.40gb", "start": 4}]}]
    }
