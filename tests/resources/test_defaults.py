"""The rules of each builder version, and which version builds a manifest."""

from dataclasses import replace
from typing import Any

from tessera.api.template_version import PodTemplateVersion
from tessera.domain.observed.snapshot import Ref
from tessera.domain.perf.engine_terms import GPU_MEMORY_UTILIZATION
from tessera.resources import children
from tessera.resources.defaults import DEFAULTS, Defaults, defaults, newest_version
from tests.builders import a_service, a_snapshot, plan_of

TABLE = {1: Defaults(), 2: Defaults(pre_stop_seconds=7)}


def test_the_highest_number_is_the_newest() -> None:
    assert newest_version(TABLE) == 2


def test_a_version_has_its_own_rules() -> None:
    assert defaults(1, TABLE).pre_stop_seconds == 5
    assert defaults(2, TABLE).pre_stop_seconds == 7


def test_a_version_of_a_newer_tessera_is_built_by_the_newest_known() -> None:
    assert defaults(9, TABLE) == TABLE[2]


def test_the_versions_have_no_gap() -> None:
    """An older replica is built by its own version, so none may be taken out of the table."""
    assert sorted(DEFAULTS) == list(range(1, newest_version() + 1))


def test_sizing_uses_the_share_of_memory_that_the_newest_gives() -> None:
    assert defaults(newest_version()).gpu_memory_utilization == GPU_MEMORY_UTILIZATION


def test_the_manifest_is_built_by_the_template_version_of_its_service_plan() -> None:
    """The golden manifests of test_children.py are those of version 1."""
    service_plan = plan_of(a_snapshot(a_service())).service_plans[Ref("team-a", "chat")]
    (variant,) = service_plan.variants
    assert service_plan.template_version == PodTemplateVersion(builder_version=1)
    version = newest_version() + 1
    newer = variant.template.record.model_copy(update={"builder_version": version})
    template = replace(variant.template, record=newer)
    changed = replace(service_plan, variants=(replace(variant, template=template),))
    DEFAULTS[version] = TABLE[2]
    try:
        assert (pre_stop(service_plan), pre_stop(changed)) == (5, 7)
    finally:
        del DEFAULTS[version]


def pre_stop(service_plan: Any) -> int:
    (manifest,) = [
        manifest
        for manifest in children.service_manifests(service_plan)
        if manifest.kind.kind == "Deployment"
    ]
    container = manifest.body["spec"]["template"]["spec"]["containers"][0]
    return int(container["lifecycle"]["preStop"]["sleep"]["seconds"])
