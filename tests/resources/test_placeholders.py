"""The placeholders that bring nodes whose slices no autoscaler knows."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from tessera.api.accelerator_pool import ProvisioningStatus
from tessera.api.template_version import Platform
from tessera.domain.hardware.pools import discover
from tessera.resources.placeholders import placeholders
from tessera.resources.runner import RunnerImage
from tests.builders import A100, NOW, a_pool

Golden = Callable[[str, list[Any]], None]


def test_the_placeholder_of_a_pool_is_as_reviewed(golden: Golden) -> None:
    taint = {"key": "dedicated", "value": "llm", "effect": "NoSchedule"}
    template = {"product": A100, "gpus": 8, "maxNodes": 2, "taints": [taint]}
    pools = (a_pool("asks", nodeTemplate=template), a_pool("silent", nodeTemplate=template))
    views = discover(pools, (), NOW.date())
    status = ProvisioningStatus(expected_start=timedelta(minutes=5))
    asking = status.model_copy(update={"placeholder_since": NOW})
    manifests = placeholders(
        (replace(views[0], provisioning=asking), replace(views[1], provisioning=status)),
        Platform(priority_classes=True),
        RunnerImage("tessera/batch:1", "IfNotPresent", ("registry",)),
        "tessera-prepull",
    )
    golden("placeholder", [dict(manifest.body) for manifest in manifests])
