"""What an uninstall takes back from a node."""

from dataclasses import replace

import pytest

from tessera.controller.uninstall import release_patch
from tessera.domain.mig_backends.devices import DEVICE_PLUGIN_LABEL, PAUSED
from tessera.domain.mig_backends.gpu_clients import STOPPED_LABEL
from tessera.domain.names import DISRUPT_ANNOTATION, GUARD_ANNOTATION
from tessera.domain.observed.node_layout import TAINT
from tests.builders import a_node

STOPPED = {DEVICE_PLUGIN_LABEL: PAUSED, STOPPED_LABEL: "1763640000"}


@pytest.mark.parametrize(
    ("labels", "taints", "patch"),
    [
        ({}, set(), None),
        # Stopped by mig-manager, not by Tessera.
        ({DEVICE_PLUGIN_LABEL: PAUSED}, {"other"}, None),
        ({}, {TAINT, "other"}, ({}, {TAINT: False}, {})),
        (STOPPED, set(), ({DEVICE_PLUGIN_LABEL: "true", STOPPED_LABEL: None}, {}, {})),
    ],
)
def test_a_node_loses_what_tessera_put_on_it_and_nothing_else(
    labels: dict[str, str], taints: set[str], patch: object
) -> None:
    node = a_node("a100-0", slices={"1g.10gb": 7})
    node = replace(node, labels={**node.labels, **labels}, taints=frozenset(taints))
    assert release_patch(node) == patch


def test_a_node_that_karpenter_leaves_alone_for_tessera_is_released() -> None:
    node = replace(a_node("a100-0", slices={"1g.10gb": 7}), guarded=True)
    assert release_patch(node) == ({}, {}, {DISRUPT_ANNOTATION: None, GUARD_ANNOTATION: None})
