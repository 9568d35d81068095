"""The rules of each builder version, and which of them build a manifest."""

from dataclasses import replace
from typing import Any

from tessera.api.recipe import PodTemplateVersion
from tessera.domain.observed.snapshot import Ref
from tessera.domain.sizing.sizing import GPU_MEMORY_UTILIZATION
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


def test_sizing_reckons_with_the_share_of_memory_that_the_newest_gives() -> None:
    assert defaults(newest_version()).gpu_memory_utilization == GPU_MEMORY_UTILIZATION


def test_the_manifest_is_built_by_the_recipe_of_its_allotment() -> None:
    """The golden manifests of test_children.py are those of version 1."""
    allotment = plan_of(a_snapshot(a_service())).service_plans[Ref("team-a", "chat")]
    assert allotment.template is not None
    assert allotment.template_version == PodTemplateVersion(builder_version=1)
    newer = allotment.template.record.model_copy(update={"builder_version": 2})
    changed = replace(allotment, template=replace(allotment.template, record=newer))
    DEFAULTS[2] = TABLE[2]
    try:
        assert (pre_stop(allotment), pre_stop(changed)) == (5, 7)
    finally:
        del DEFAULTS[2]


def pre_stop(allotment: Any) -> int:
    (found,) = [
        one for one in children.service_manifests(allotment) if one.kind.kind == "Deployment"
    ]
    container = found.body["spec"]["template"]["spec"]["containers"][0]
    return int(container["lifecycle"]["preStop"]["sleep"]["seconds"])
