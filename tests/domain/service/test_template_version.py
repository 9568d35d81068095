"""The pod template version: an upgrade leaves replicas alone until they are replaced anyway."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Condition
from tessera.api.service_status import InferenceServiceStatus, VariantTemplates
from tessera.api.template_version import (
    EffectiveValues,
    Platform,
    PodTemplateVersion,
    PodTemplateVersionStatus,
)
from tessera.domain.config import Config
from tessera.domain.observed.snapshot import ObservedService, Ref
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.service.template_version import TemplateDecision, template_digest
from tessera.domain.status.service import service_status
from tests.builders import (
    SMALL,
    PlanInputs,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_template_workload,
    a_workload,
    at,
    compute_service_plan,
    plan_of,
    replica_of,
)

CHAT = Ref("team-a", "chat")
MIRROR = Platform(image_registry="mirror.example.org", https_proxy="http://me:secret@proxy:3128")


def status_of(inputs: PlanInputs) -> InferenceServiceStatus:
    return service_status(inputs.snapshot, service_plan_of(inputs), None, None)


def service_plan_of(inputs: PlanInputs) -> ServicePlan:
    return plan_of(*inputs).service_plans[CHAT]


def a_built_service(
    spec: InferenceServiceSpec | None = None, builder_version: int = 1
) -> ObservedService:
    """A service whose replicas were made by builder 1, or by another one."""
    service = a_service(spec=spec)
    inputs = PlanInputs(a_snapshot(service), Config(builder_version=builder_version))
    return replace(service, status=status_of(inputs))


def later(
    service: ObservedService,
    *,
    builder_version: int = 2,
    platform: Platform | None = None,
    **fields: Any,
) -> PlanInputs:
    """The same fleet after an upgrade: its Deployment is there, builder 2 is the newest."""
    pods = (a_pod("chat-0"), a_pod("chat-1"))
    return PlanInputs(
        a_snapshot(service, **{"workloads": (a_workload(2),), "pods": pods, **fields}),
        Config(builder_version=builder_version, platform=platform or Platform()),
    )


def update_condition(inputs: PlanInputs) -> Condition:
    status_conditions = status_of(inputs).conditions
    return next(condition for condition in status_conditions if condition.type == "UpdateAvailable")


def effective_values(service_plan: ServicePlan) -> Any:
    assert service_plan.template is not None
    return service_plan.template.record.effective_values


def test_a_new_service_gets_the_newest_template_version() -> None:
    service_plan = compute_service_plan(
        a_snapshot(a_service()), config=Config(builder_version=2, platform=MIRROR)
    )
    assert service_plan.template_version == PodTemplateVersion(builder_version=2, platform=MIRROR)


def test_an_upgrade_keeps_the_template_version_of_a_service_and_says_what_would_change() -> None:
    upgraded = later(a_built_service(), platform=MIRROR)
    assert service_plan_of(upgraded).template_version == PodTemplateVersion(builder_version=1)
    condition = update_condition(upgraded)
    assert (condition.status, condition.reason) == ("True", "NewTemplateAvailable")
    assert "builder version 2 instead of 1" in condition.message
    assert "imageRegistry of the platform" in condition.message
    assert "kubectl tessera update chat" in condition.message
    assert "secret" not in condition.message


def test_without_a_change_there_is_no_update() -> None:
    condition = update_condition(later(a_built_service(), builder_version=1))
    assert (condition.status, condition.reason) == ("False", "UpToDate")


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 3},
        {"scaling": {"minReplicas": 3}},
        {"placement": {"pools": ["a100"]}},
        {"class": "Standard"},
        {"drain": {"moveStreams": True}},
        # As the API server adds the default.
        {"drain": {"moveStreams": True, "timeout": "60s"}},
    ],
    ids=str,
)
def test_what_does_not_shape_the_pods_keeps_the_template_version(change: dict[str, Any]) -> None:
    before = a_built_service()
    upgraded = later(replace(before, spec=a_spec(**change), generation=2))
    assert service_plan_of(upgraded).template_version.builder_version == 1
    assert status_of(upgraded).pod_template_version == before.status.pod_template_version


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"servedName": "other"}},
        {"engine": {"extraArgs": ["--max-logprobs=5"]}},
        {"drain": {"timeout": "90s"}},
        {"context": {"maxModelLen": 4096}},
        {"slo": {"itlP95": "40ms"}},
    ],
    ids=str,
)
def test_a_change_that_shapes_the_pods_takes_the_newest(change: dict[str, Any]) -> None:
    upgraded = later(replace(a_built_service(), spec=a_spec(**change), generation=2))
    assert service_plan_of(upgraded).template_version.builder_version == 2
    assert update_condition(upgraded).reason == "UpToDate"


def test_a_deleted_deployment_is_created_by_the_newest() -> None:
    assert (
        service_plan_of(
            later(a_built_service(), workloads=(), pods=())
        ).template_version.builder_version
        == 2
    )


def test_a_pool_with_other_nodes_takes_the_newest_since_the_pods_move() -> None:
    (node,) = later(a_built_service()).snapshot.nodes
    node = replace(node, labels={**node.labels, "zone": "b"})
    moved = a_pool(nodeSelector={"pool": "a100", "zone": "b"})
    assert (
        service_plan_of(
            later(a_built_service(), pools=(moved,), nodes=(node,))
        ).template_version.builder_version
        == 2
    )


@pytest.mark.parametrize(
    "change",
    [
        {"tolerations": [{"key": "team", "value": "llm", "effect": "NoSchedule"}]},
        {"runtimeClassName": "nvidia"},
        {"schedulerName": "volcano"},
    ],
    ids=str,
)
def test_a_pool_that_schedules_otherwise_takes_the_newest_since_its_pods_change(
    change: dict[str, Any],
) -> None:
    assert (
        service_plan_of(
            later(a_built_service(), pools=(a_pool(**change),))
        ).template_version.builder_version
        == 2
    )


def rolled_out(inputs: PlanInputs) -> ObservedService:
    """The service after all replicas got the template of the plan."""
    workload = a_template_workload(template_of(inputs).record, created=at(-60))
    pods = tuple(replica_of(workload, f"new-{index}") for index in range(2))
    only = replace(inputs.snapshot, workloads=(workload,), pods=pods)
    return replace(only.services[0], status=status_of(inputs._replace(snapshot=only)))


def beside(inputs: PlanInputs, *records: PodTemplateVersionStatus) -> PlanInputs:
    """The same fleet with Deployments of later templates, the oldest first."""
    later_ones = tuple(
        a_template_workload(record, created=at(index - 30)) for index, record in enumerate(records)
    )
    snapshot = inputs.snapshot
    workloads = (*snapshot.workloads, *later_ones)
    pods = [replica_of(each, f"{each.ref.name}-0") for each in later_ones]
    return inputs._replace(
        snapshot=replace(snapshot, workloads=workloads, pods=(*snapshot.pods, *pods))
    )


def template_of(inputs: PlanInputs) -> TemplateDecision:
    (variant,) = service_plan_of(inputs).variants
    return variant.template


def alone(inputs: PlanInputs, *records: PodTemplateVersionStatus) -> PlanInputs:
    """The same fleet with these Deployments of later templates alone."""
    return beside(
        inputs._replace(snapshot=replace(inputs.snapshot, workloads=(), pods=())), *records
    )


def test_the_annotation_takes_the_newest_once() -> None:
    asking = later(replace(a_built_service(), update="2026-11-20T12:00:00Z"))
    asked = template_of(asking)
    assert (asked.version.builder_version, asked.workload) == (2, None)
    honoured = rolled_out(asking)
    third = alone(later(honoured, builder_version=3), asked.record)
    assert template_of(third).record == asked.record
    again = later(replace(honoured, update="2026-11-21T12:00:00Z"), builder_version=3)
    assert template_of(alone(again, asked.record)).version.builder_version == 3


def test_the_annotation_is_honoured_from_when_its_deployment_exists() -> None:
    """Also while the status has not been written, and replicas of the older template serve."""
    asking = later(replace(a_built_service(), update="2026-11-20T12:00:00Z"))
    record = template_of(asking).record
    third = asking._replace(config=Config(builder_version=3))
    goes_on = template_of(beside(third, record))
    assert goes_on.record == record
    assert goes_on.workload is not None
    assert goes_on.workload.template_digest == template_digest(record)


def test_an_edit_that_is_taken_back_returns_to_the_deployment_of_before() -> None:
    """Only where its record is known to be that of the replicas: the status has its digest."""
    first = later(a_built_service())
    before = rolled_out(first)
    first_record = template_of(first).record
    edited = replace(before, spec=a_spec(context={"maxModelLen": 4096}), generation=2)
    edit = later(edited, workloads=(a_workload(2, record=first_record),))
    edit_record = template_of(edit).record
    assert template_of(edit).workload is None
    back = later(before, workloads=(a_workload(2, record=first_record),))
    returned = template_of(beside(back, edit_record))
    assert returned.workload is not None
    assert (returned.record, returned.workload.template_digest) == (first_record, "")
    forgotten = before.status.model_copy(update={"templates": ()})
    unknown = beside(later(replace(before, status=forgotten), workloads=back.snapshot.workloads))
    assert template_of(beside(unknown, edit_record)).workload is None


def test_a_record_that_somebody_edited_is_not_taken_for_that_of_the_replicas() -> None:
    asking = later(replace(a_built_service(), update="2026-11-20T12:00:00Z"))
    record = template_of(asking).record
    other = asking._replace(config=Config(builder_version=3))
    forged = record.model_copy(update={"platform": MIRROR})
    snapshot = beside(other, record).snapshot
    for written in (forged, None):
        workloads = (
            snapshot.workloads[0],
            replace(snapshot.workloads[1], record=written),
        )
        decided = template_of(other._replace(snapshot=replace(snapshot, workloads=workloads)))
        assert (decided.workload, decided.version.platform) == (None, Platform())
        assert decided.version.builder_version == 3


def test_a_first_deployment_is_what_the_status_says_whatever_its_annotation_does() -> None:
    before = a_built_service()
    forged = template_of(later(before)).record.model_copy(update={"platform": MIRROR})
    upgraded = later(before, workloads=(a_workload(2, record=forged),))
    assert template_of(upgraded).version == PodTemplateVersion(builder_version=1)
    assert template_of(upgraded).workload is not None


def test_taking_the_annotation_away_changes_nothing() -> None:
    service = a_service(update="then")
    before = replace(service, status=status_of(PlanInputs(a_snapshot(service))))
    assert (
        service_plan_of(later(replace(before, update=None))).template_version.builder_version == 1
    )


def test_a_service_from_before_template_versions_keeps_builder_one_without_a_platform() -> None:
    old = a_built_service()
    old = replace(old, status=old.status.model_copy(update={"pod_template_version": None}))
    assert service_plan_of(later(old, platform=MIRROR)).template_version == PodTemplateVersion(
        builder_version=1
    )


def test_a_service_whose_first_status_was_lost_keeps_the_version_it_was_just_built_by() -> None:
    assert service_plan_of(
        later(a_service(), platform=MIRROR)
    ).template_version == PodTemplateVersion(builder_version=2, platform=MIRROR)


def test_a_move_that_an_operator_left_before_its_status_goes_on_in_its_deployment() -> None:
    built = a_built_service()
    record = template_of(later(built)).record
    variant = built.status.variant
    assert variant is not None
    moving = built.status.model_copy(
        update={"variant": variant.model_copy(update={"name": "mig-7g-80gb"})}
    )
    inputs = later(replace(built, status=moving), builder_version=3)
    workload = replace(inputs.snapshot.workloads[0], record=record)
    inputs = inputs._replace(snapshot=replace(inputs.snapshot, workloads=(workload,)))
    template = template_of(inputs)
    assert template.record == record
    assert template.workload == workload


def test_planned_numbers_and_defaults_stay_too() -> None:
    before = a_built_service()
    template_version = before.status.pod_template_version
    assert template_version is not None
    older = template_version.effective_values.model_copy(
        update={"max_num_seqs": 3, "engine_version": "0.31.0", "weights_mib": 7}
    )
    status = before.status.model_copy(
        update={
            "pod_template_version": template_version.model_copy(update={"effective_values": older})
        }
    )
    service_plan = service_plan_of(
        snapshot := later(replace(before, status=status), builder_version=1)
    )
    assert service_plan.choice is not None
    spec = service_plan.located_spec(service_plan.variants[0])
    assert spec is not None
    assert service_plan.choice.fit.limits.max_num_seqs == 3
    assert service_plan.choice.fit.memory.weights_mib == 7
    assert spec.engine.version == "0.31.0"
    assert "engineVersion 0.32.0 instead of 0.31.0" in update_condition(snapshot).message


def test_a_downgrade_builds_by_what_it_knows_says_so_and_goes_on_saying_so() -> None:
    upgraded = a_built_service(builder_version=2)
    down = later(upgraded, builder_version=1)
    assert service_plan_of(down).template_version.builder_version == 1
    assert (update_condition(down).status, update_condition(down).reason) == ("False", "Downgraded")
    assert "builder version 2" in update_condition(down).message
    record = template_of(down).record
    rolling = beside(down, record)
    assert template_of(rolling).record == record
    assert update_condition(rolling).reason == "Downgraded"
    after = rolled_out(down)
    settled = alone(later(after, builder_version=1), record)
    assert template_of(settled).record == record
    assert update_condition(settled).reason == "Downgraded"
    up_again = alone(later(after, builder_version=2), record)
    assert service_plan_of(up_again).template_version.builder_version == 1
    assert update_condition(up_again).reason == "NewTemplateAvailable"


def test_what_it_was_downgraded_from_does_not_tell_a_template_from_others() -> None:
    upgraded = a_built_service(builder_version=2)
    down = template_of(later(upgraded, builder_version=1)).record
    assert down.downgraded_from == 2
    assert template_digest(down) == template_digest(
        down.model_copy(update={"downgraded_from": None})
    )


def test_a_refused_service_keeps_its_template_version() -> None:
    before = a_built_service()
    refused = later(replace(before, spec=None, problem="spec.model: Field required"))
    assert status_of(refused).pod_template_version == before.status.pod_template_version
    assert update_condition(refused).reason == "NotPlaced"


def test_a_service_without_a_plan_keeps_what_is_known_of_its_templates() -> None:
    """Else a leader that starts then takes no Deployment for the one of before, nor a bad one."""
    known = VariantTemplates(variant="a100-1g-10gb", complete="1234", withdrawn="5678")
    before = a_built_service()
    status = before.status.model_copy(update={"templates": (known,)})
    before = replace(before, status=status)
    refused = later(replace(before, spec=None, problem="spec.model: Field required"))
    assert status_of(refused).templates == (known,)
    unplaced = later(before, nodes=())
    assert status_of(unplaced).templates == (known,)


def test_planning_again_with_the_written_status_keeps_it() -> None:
    before = a_built_service(a_spec(SMALL, drain={"timeout": "90s"}))
    wire = before.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    read = replace(before, status=InferenceServiceStatus.model_validate(wire))
    assert status_of(later(read)).pod_template_version == before.status.pod_template_version
    assert effective_values(service_plan_of(later(read))).drain_timeout == timedelta(seconds=90)


SHAPING_DEFAULTS = {
    "model.tokenSecretRef.key",
    "model.shape.bitsPerWeight",
    "model.adapters",
    "model.cache.type",
    "context.typicalInputTokens",
    "context.typicalOutputTokens",
    "engine.version",
    "engine.extraArgs",
    # Of an object that no service had before.
    "engine.speculation.tokens",
    "engine.speculation.model.shape.bitsPerWeight",
    "drain.timeout",
}


def test_the_parts_that_shape_pods_get_no_new_default() -> None:
    """The API server writes defaults into objects that it reads: a new one would change the shape
    of every service, and an upgrade would roll them. A new field there has to be None by default,
    and what stands for None belongs to `EffectiveValues` or to the builder's defaults."""
    names_with_default: set[str] = set()
    for part in ("model", "slo", "context", "engine", "drain"):
        names_with_default |= set(_defaults(InferenceServiceSpec, part))
    assert names_with_default == SHAPING_DEFAULTS


def test_a_template_version_that_was_written_can_be_read_for_ever() -> None:
    """A field that an older Tessera did not write must not be needed; give new ones a default."""
    assert needed(PodTemplateVersionStatus) == {"template_hash", "effective_values"}
    assert needed(Platform) == set()
    assert needed(EffectiveValues) == {
        "drain_timeout",
        "engine_version",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "weights_mib",
    }


def needed(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if field.is_required()}


def _defaults(model: type[BaseModel], part: str) -> list[str]:
    schema = model.model_json_schema(by_alias=True)
    definitions = schema["$defs"]

    def walk(node: dict[str, Any], path: str) -> list[str]:
        for branch in (node, *node.get("anyOf", ())):
            if "$ref" in branch:
                node = definitions[branch["$ref"].rsplit("/", 1)[-1]] | node
        paths = [path] if node.get("default") is not None else []
        for name, child in node.get("properties", {}).items():
            paths += walk(child, f"{path}.{name}")
        return paths

    return walk(schema["properties"][part], part)


def test_a_deployment_keeps_its_template_while_no_status_has_it() -> None:
    """An edit before the first status, or after a lost one, is written into no Deployment."""
    built = a_built_service()
    record = template_of(later(built)).record
    edited = replace(built, spec=a_spec(context={"maxModelLen": 512}))
    inputs = later(replace(edited, status=InferenceServiceStatus()))
    workload = replace(inputs.snapshot.workloads[0], record=record)
    inputs = inputs._replace(snapshot=replace(inputs.snapshot, workloads=(workload,)))
    template = template_of(inputs)
    assert template.workload is None
    assert template.record != record
    assert status_of(inputs).pod_template_version == record, "it is said before it is written"
